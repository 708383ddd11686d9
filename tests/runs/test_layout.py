import pytest

from tightframe.errors import ConfigError
from tightframe.runs.layout import check_names


def test_names_that_every_system_takes_for_a_directory():
    check_names(["learned", "1e5", "etf-haar", "v1.2+x", "_", "Ünï", "a" * 100, "console"])


@pytest.mark.parametrize(
    ("names", "text"),
    [
        (["a/b"], "got 'a/b'"),
        ([".."], r"got '\.\.'"),
        (["../x"], r"got '\.\./x'"),
        (["/abs"], "got '/abs'"),
        ([""], "got ''"),
        (["a b"], "got 'a b'"),
        (["a\n"], r"got 'a\\n'"),
        (["=1+1"], "got '=1"),
        (["-x"], "got '-x'"),
        (["a" * 101], "at most 100"),
        ([None], "got None"),
        (["con"], "device of Windows, got 'con'"),
        (["LPT1.txt"], "device of Windows"),
        (["etf", "ETF"], "more than capital letters, got 'etf' and 'ETF'"),
    ],
)
def test_names_that_some_system_refuses(names, text):
    with pytest.raises(ConfigError, match=f"methods must .*{text}"):
        check_names(names)
