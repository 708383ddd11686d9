import os
import signal

import pytest
import torch

from tests.training.processes import preloaded
from tightframe.errors import DataFileError, LabelError, OutputError
from tightframe.files import (
    YAML_BYTES,
    read_json,
    read_tensors,
    read_yaml,
    reading,
    write_json,
    write_tensors,
    write_text,
    write_yaml,
    written_whole,
)


def _killed_half_way(path):
    with written_whole(path) as partial:
        partial.write_text("half")
        os.kill(os.getpid(), signal.SIGKILL)


def test_a_killed_write_leaves_the_old_file(tmp_path):
    path = tmp_path / "a.txt"
    write_text(path, "old")
    process = preloaded().Process(target=_killed_half_way, args=(path,))
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    assert path.read_text() == "old"
    write_text(path, "new")
    assert path.read_text() == "new"


def test_an_error_while_writing_leaves_the_old_file_alone(tmp_path):
    path = tmp_path / "new" / "a.safetensors"
    write_tensors(path, {"x": torch.ones(2)})
    with pytest.raises(ZeroDivisionError), written_whole(path) as partial:
        partial.write_text(f"half {1 / 0}")
    assert [p.name for p in path.parent.iterdir()] == ["a.safetensors"]
    assert torch.equal(read_tensors(path)[0]["x"], torch.ones(2))


def test_a_link_is_followed_and_no_device_or_folder_is_replaced(tmp_path):
    (tmp_path / "link").symlink_to(tmp_path / "target")
    write_text(tmp_path / "link", "x")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "target").read_text() == "x"
    (tmp_path / "full").symlink_to("/dev/full")
    for name in ("full", "."):
        with pytest.raises(OutputError, match="exists and is not a file"):
            write_text(tmp_path / name, "x")
    with pytest.raises(OutputError, match="cannot be written"):
        write_text(tmp_path / "target" / "below", "x")


def test_tensors_come_back_with_their_metadata(tmp_path):
    whole = torch.arange(12.0).view(4, 3)
    tensors = {"strided": whole[:, :2], "shared": whole[1:], "weight": torch.nn.Parameter(whole.half())}
    contents = set()
    for i in range(5):
        write_tensors(tmp_path / f"{i}", tensors, {"epoch": "3"})
        contents.add((tmp_path / f"{i}").read_bytes())
    assert len(contents) == 1
    found, metadata = read_tensors(tmp_path / "0")
    assert metadata == {"epoch": "3"}
    assert found.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert torch.equal(found[name], tensor)
        assert not found[name].requires_grad


def test_files_that_hold_no_tensors(tmp_path):
    path = tmp_path / "a.safetensors"
    write_tensors(path, {"x": torch.ones(9)})
    content = path.read_bytes()
    for other in (content[:0], content[:7], content[:20], content[:-1], b"\x00" * 100, b"epoch: 12\n" * 50):
        path.write_bytes(other)
        with pytest.raises(DataFileError, match=r"a\.safetensors is not a snapshot \("):
            read_tensors(path, "a snapshot")
    for missing, message in ((tmp_path / "none", "does not exist"), (tmp_path, "cannot be read|is not a safetensors")):
        with pytest.raises(DataFileError, match=message):
            read_tensors(missing)


WORDS = [
    "010",
    "1e5",
    "no",
    "on",
    "null",
    "~",
    "true",
    "1.5",
    ".inf",
    "",
    " x",
    "a: b",
    "Çay",
    "0x10",
    "1_000",
    "-.inf",
]
NUMBERS = [0, -3, 1e5, 1e-4, 0.25, 1e300, float("inf"), True, False, None]


def test_yaml_comes_back_as_it_was(tmp_path):
    content = {"words": WORDS, "numbers": NUMBERS, **dict.fromkeys(WORDS, 1), "nested": {"a": [{"b": []}]}}
    write_yaml(tmp_path / "a.yaml", content)
    found = read_yaml(tmp_path / "a.yaml")
    assert found == content
    assert [type(x) for x in found["numbers"]] == [type(x) for x in NUMBERS]
    write_json(tmp_path / "a.json", content["nested"])
    assert read_json(tmp_path / "a.json") == content["nested"]


def test_keys_are_read_as_they_are_written_and_words_on_request(tmp_path):
    path = tmp_path / "a.yaml"
    path.write_text("\ufeff010: no\n1e5: [010, 1e-3, yes, 12:30, 2020-01-01]\nno: 3\n", encoding="utf-8")
    assert read_yaml(path) == {"010": "no", "1e5": ["010", 0.001, "yes", "12:30", "2020-01-01"], "no": 3}
    path.write_text("010: 1e5\n1e5: [010, 1e-3, 'no', \"2020-01-01\"]\n'no': 0x10\n")
    assert read_yaml(path, words=True) == {"010": "1e5", "1e5": ["010", "1e-3", "no", "2020-01-01"], "no": "0x10"}


@pytest.mark.parametrize("text", ["a: no", "no: a", "null: a", "- 2020-01-01", "a: true"])
def test_names_that_yaml_reads_as_something_else_need_quotes(tmp_path, text):
    (tmp_path / "a.yaml").write_text(text)
    with pytest.raises(DataFileError, match="in quotes"):
        read_yaml(tmp_path / "a.yaml", words=True)


def laughs(times):
    """Lists of ten aliases of lists of ten aliases: 10 ** times words in a few lines."""
    return "a0: &a0 [x]\n" + "".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]\n" for i in range(1, times + 1))


def test_yaml_within_its_limits_may_use_aliases(tmp_path):
    path = tmp_path / "a.yaml"
    path.write_text(laughs(4))
    assert [len(x) for x in read_yaml(path).values()] == [1, 10, 10, 10, 10]
    path.write_text("[" * 100 + "]" * 100)
    assert isinstance(read_yaml(path), list)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: [1,\n b: }", "parsing"),
        ("b: 0\na: 1\na: 2", "'a' must be a word that comes once in its mapping in .*, line 1"),
        ("[1, 2]: 3", "must be a word"),
        ("&a [*a]", "an alias stands inside what it names in .*, line 1, column 5"),
        ("a: &a\n  b: [*a]", "an alias stands inside what it names"),
        ("a: 1\n---\nb: 2", "another document"),
        ("[" * 5000, "at most 100 levels"),
        ("[" * 101 + "]" * 101, "at most 100 levels"),
        ("".join(f"{' ' * i}a:\n" for i in range(1000)), "at most 100 levels"),
        ("- &a0 x\n" + "".join(f"- &a{i + 1} [*a{i}]\n" for i in range(200)), "at most 100 levels"),
        (laughs(9), "at most 100000 values"),
        ("#" * (YAML_BYTES + 1), f"at most {YAML_BYTES} bytes"),
        ("1" * 5000, "a.yaml"),
        ("\0", "a.yaml"),
    ],
)
def test_yaml_that_is_refused(tmp_path, text, message):
    path = tmp_path / "a.yaml"
    path.write_text(text)
    with pytest.raises(DataFileError, match=message) as caught:
        read_yaml(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", [b"", b"{", b"\xff", b"[" * 100_000])
def test_json_that_is_refused(tmp_path, content):
    (tmp_path / "a.json").write_bytes(content)
    with pytest.raises(DataFileError, match=r"a\.json cannot be read as JSON \(.*\); write it again"):
        read_json(tmp_path / "a.json")


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (FileNotFoundError(2, "gone"), "a.bin does not exist; look for it"),
        (PermissionError(13, "denied"), r"a.bin cannot be read \(.*denied\); write it again"),
        (OSError("cannot identify"), r"a.bin is damaged \(cannot identify\); write it again"),
        (ValueError("two\n lines"), r"a.bin is damaged \(two lines\); write it again"),
        (ValueError("long " * 100), r"a.bin is damaged \((long ){60} …\); write it again"),
        (MemoryError(), "a.bin needs more memory than there is, or is damaged; write it again"),
        (KeyError("data"), r"a.bin is damaged \(KeyError: 'data'\); write it again"),
    ],
)
def test_a_file_that_cannot_be_read_is_named_with_what_to_do(error, message):
    with (
        pytest.raises(DataFileError, match=f"^{message}$"),
        reading("a.bin", "is damaged", "write it again", "look for it"),
    ):
        raise error


@pytest.mark.parametrize("error", [LabelError("own"), KeyboardInterrupt()])
def test_what_says_nothing_about_a_file_passes(error):
    with pytest.raises(type(error)), reading("a.bin", "is damaged", "write it again"):
        raise error
