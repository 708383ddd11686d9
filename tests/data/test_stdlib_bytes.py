from __future__ import annotations

import platform
import sys
import sysconfig
from pathlib import Path

import pytest
import torch

from tightframe.data import StdlibBytes
from tightframe.errors import ArgumentError, DataFileError, EmptyDataError


def lines(letter, count):
    """So many lines of ten bytes, each with its number."""
    return "".join(f"{letter}{number:08}\n" for number in range(count))


@pytest.fixture
def library(tmp_path):
    """Two files that are cut, ast.py and json/decoder.py, and two that are too small; all else must be left out."""
    files = {
        "os.py": "import sys\n",
        "ast.py": lines("a", 400),
        "bdb.py": lines("b", 399),
        "json/decoder.py": lines("j", 1000),
        "json/test/test_decoder.py": lines("t", 1000),
        "test/test_ast.py": lines("t", 1000),
        "idlelib/idle.py": lines("i", 1000),
        "encodings/ascii.py": lines("e", 1000),
        "_sysconfigdata__darwin_darwin.py": lines("s", 1000),
        "site-packages/six.py": lines("p", 1000),
        "config-3.11-darwin/python-config.py": lines("c", 1000),
        "json/notes.txt": lines("n", 1000),
    }
    for name, text in files.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(text.encode())
    return tmp_path


def text(part):
    assert part.dtype == torch.uint8
    assert part.ndim == 1
    return bytes(part.tolist()).decode()


def test_the_last_tenth_of_every_file_that_is_large_enough_is_test(library):
    corpus = StdlibBytes(root=library).load()
    a, j = lines("a", 400), lines("j", 1000)
    assert text(corpus.train) == a[:3600] + lines("b", 399) + j[:9000] + "import sys\n"
    assert text(corpus.test) == a[3600:] + j[9000:]
    assert corpus.validation is None


def test_a_cut_is_at_the_line_end_before_it(library):
    (library / "ast.py").write_text("x" * 3000 + "\n" + "y" * 998 + "\n" + "z" * 100)
    corpus = StdlibBytes(root=library).load()
    assert text(corpus.train).startswith("x" * 3000 + "\n" + "b0")
    assert text(corpus.test).startswith("y" * 998 + "\n" + "z" * 100 + "j")


def test_validation_is_the_end_of_what_is_left_of_a_file(library):
    corpus = StdlibBytes(validation_fraction=0.1, root=library).load()
    j = lines("j", 1000)
    # Of ast.py 3,600 bytes are left, which are not cut again.
    assert text(corpus.train) == lines("a", 400)[:3600] + lines("b", 399) + j[:8100] + "import sys\n"
    assert text(corpus.validation) == j[8100:9000]
    assert torch.equal(corpus.test, StdlibBytes(root=library).load().test)


def test_a_file_without_line_ends_is_train(library):
    (library / "ast.py").write_text("x" * 5000)
    corpus = StdlibBytes(root=library).load()
    assert "x" * 5000 in text(corpus.train)
    assert "x" not in text(corpus.test)


def test_line_ends_count_as_one_byte(library):
    expected = StdlibBytes(root=library).load()
    for name, size in (("ast.py", 400), ("bdb.py", 399)):
        (library / name).write_bytes(lines(name[0], size).replace("\n", "\r\n").encode())
    found = StdlibBytes(root=library).load()
    assert torch.equal(found.train, expected.train)
    assert torch.equal(found.test, expected.test)


@pytest.mark.parametrize("fraction", [-0.1, 1.0, True, "half"])
def test_a_fraction_out_of_range_is_refused(fraction):
    with pytest.raises(ArgumentError, match="validation_fraction"):
        StdlibBytes(validation_fraction=fraction)


def test_a_directory_without_source_is_refused_by_name(tmp_path):
    with pytest.raises(DataFileError, match=rf"{tmp_path.name} holds no standard library source"):
        StdlibBytes(root=tmp_path).load()
    with pytest.raises(DataFileError, match="missing holds no standard library source"):
        StdlibBytes(root=tmp_path / "missing").load()


def test_nothing_to_cut_is_an_error(library):
    (library / "json" / "decoder.py").unlink()
    with pytest.raises(EmptyDataError, match=r"of which 0\.1 could be cut off"):
        StdlibBytes(validation_fraction=0.1, root=library).load()
    (library / "ast.py").unlink()
    with pytest.raises(EmptyDataError, match="4000 bytes"):
        StdlibBytes(root=library).load()


def test_the_version_is_that_of_the_library_read(library):
    assert StdlibBytes().python_version == platform.python_version()
    assert StdlibBytes(root=library).python_version is None


def test_a_file_of_the_real_library_is_shared_out_by_the_parts():
    corpus = StdlibBytes(validation_fraction=0.1).load()
    again = StdlibBytes(validation_fraction=0.1).load()
    assert all(torch.equal(getattr(corpus, part), getattr(again, part)) for part in ("train", "validation", "test"))
    source = (Path(sysconfig.get_path("stdlib")) / "difflib.py").read_bytes().replace(b"\r\n", b"\n")
    train, validation, test = (bytes(part.tolist()) for part in (corpus.train, corpus.validation, corpus.test))

    def owners(start, stop):
        stretch = source[int(start * len(source)) : int(stop * len(source))]
        return [stretch in part for part in (train, validation, test)]

    assert owners(0.0, 0.8) == [True, False, False]
    assert owners(0.82, 0.89) == [False, True, False]
    assert owners(0.9, 1.0) == [False, False, True]


@pytest.mark.skipif(sys.version_info[:3] != (3, 11, 7), reason="the sizes are those of Python 3.11.7")
def test_the_sizes_of_the_pilot():
    corpus = StdlibBytes().load()
    assert (len(corpus.train), len(corpus.test)) == (7_917_734, 863_780)
