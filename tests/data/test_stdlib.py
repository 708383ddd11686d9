from __future__ import annotations

import platform
import re
import sys
import sysconfig
import zlib
from importlib import resources
from itertools import chain
from pathlib import Path

import pytest
import torch
import yaml

from tightframe.data import StdlibBytes, StdlibModules
from tightframe.errors import ArgumentError, DataFileError, EmptyDataError

# Large enough that the numbers below have distinct ids, so a window tells which tokens it holds.
VOCABULARY = 2**32


def numbers(first, count):
    return " ".join(map(str, range(first, first + count)))


def write(root, files):
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(text.encode())
    return root


@pytest.fixture
def library(tmp_path):
    """Classes of at least 5,000 bytes: csv, json.big, json.* and difflib; everything else must be left out."""
    files = {
        "os.py": "import sys",
        "difflib.py": numbers(0, 2000),
        "csv.py": numbers(10_000, 1000),
        "unlisted.py": numbers(20_000, 1000),
        "encodings/table.py": numbers(20_000, 1000),
        "json/__init__.py": numbers(30_000, 500),
        "json/big.py": numbers(40_000, 900),
        "json/small.py": numbers(50_000, 700),
        "json/tests/test_big.py": numbers(60_000, 900),
        "wave.py": numbers(70_000, 100),
        "html/__init__.py": numbers(80_000, 50),
        "html/parser.py": "x" * 6000,
    }
    return write(tmp_path, files)


def load(library, **changes):
    return StdlibModules(**({"vocabulary": VOCABULARY, "min_bytes": 5000, "root": library} | changes)).load()


def positions(dataset, label):
    """The numbers that the windows of one class hold, window by window."""
    number = {zlib.crc32(str(n).encode()): n for n in range(60_000)}
    windows, labels = dataset.tensors
    return [[number[token] for token in window] for window in windows[labels == label].tolist()]


def runs(starts, window=32):
    return [list(range(start, start + window)) for start in starts]


def test_classes_are_the_listed_modules_that_are_large_enough(library):
    data = load(library)
    assert data.paths == (
        ("Text Processing Services", "difflib", "difflib"),
        ("File Formats", "csv", "csv"),
        ("Internet Data Handling", "json", "json.*"),
        ("Internet Data Handling", "json", "json.big"),
    )
    assert data.class_names == ("difflib", "csv", "json.*", "json.big")
    assert data.num_classes == 4
    assert torch.equal(data.train.tensors[1].bincount(), data.class_counts)


def test_a_package_file_that_is_large_enough_is_named_after_the_package(library):
    (library / "json" / "__init__.py").write_text(numbers(30_000, 1200))
    assert load(library).class_names == ("difflib", "csv", "json", "json.big")


def test_windows_lie_where_the_periods_put_them(library):
    data = load(library)
    assert positions(data.train, 0) == runs([*range(0, 576, 32), *range(832, 1344, 32), *range(1600, 2000 - 31, 32)])
    assert positions(data.test, 0) == runs([*range(640, 768, 32), *range(1408, 1536, 32)])
    assert data.validation is None


def test_files_of_a_pool_are_cut_apart(library):
    data = load(library)
    # json/__init__.py is too short for test; json/small.py has its own period.
    assert positions(data.train, 2) == runs([*range(30_000, 30_480, 32), *range(50_000, 50_576, 32)])
    assert positions(data.test, 2) == runs([50_640])


def test_tokens_are_words_numbers_and_single_signs(library):
    (library / "csv.py").write_bytes(b"def f_1(x):\r\n\treturn x2+34 \xc3\xa4 " * 500)
    data = load(library, window=13)
    words = [b"def", b"f_1", b"(", b"x", b")", b":", b"return", b"x2", b"+", b"34", b"\xc3", b"\xa4", b"def"]
    assert data.train.tensors[0][data.train.tensors[1] == 1][0].tolist() == [zlib.crc32(word) for word in words]


def test_line_ends_do_not_decide_which_modules_are_large_enough(library):
    (library / "wave.py").write_bytes(b"a\r\n" * 2400)
    assert "wave" not in load(library).class_names
    (library / "wave.py").write_bytes(b"a\r\n" * 2500)
    assert "wave" in load(library).class_names


def test_ids_are_below_the_vocabulary(library):
    windows = load(library, vocabulary=50).train.tensors[0]
    assert windows.dtype == torch.int64
    assert (int(windows.min()), int(windows.max())) == (0, 49)


@pytest.mark.parametrize("fraction", [0.01, 0.1, 0.5])
def test_validation_is_cut_off_train_with_a_gap(library, fraction):
    plain, data = load(library), load(library, validation_fraction=fraction)
    assert torch.equal(plain.test.tensors[0], data.test.tensors[0])
    assert data.class_names == plain.class_names
    for label in range(4):
        parts = [list(chain(*positions(part, label))) for part in (data.train, data.validation, data.test)]
        assert all(parts)
        owner = {place: part for part, places in enumerate(parts) for place in places}
        assert len(owner) == sum(map(len, parts))
        for place, part in owner.items():
            assert all(owner.get(place + step, part) == part for step in range(1, 65))


def test_validation_has_the_asked_share_of_a_whole_stretch(library):
    data = load(library, validation_fraction=0.25)
    # The second stretch of train is 832 to 1344: 4 of its 16 windows, and 64 tokens before them belong to nobody.
    held_out = [window for window in positions(data.validation, 0) if 768 <= window[0] < 1536]
    kept = [window for window in positions(data.train, 0) if 768 <= window[0] < 1536]
    assert held_out == runs(range(1216, 1344, 32))
    assert kept == runs(range(832, 1152, 32))


@pytest.mark.parametrize(
    ("arguments", "name"),
    [
        ({"window": 0}, "window"),
        ({"window": 129}, "window must be at most 128"),
        ({"vocabulary": 1}, "vocabulary"),
        ({"validation_fraction": 1.0}, "validation_fraction"),
        ({"validation_fraction": 0.85}, "validation_fraction=0.85 leaves train no window of 32"),
        ({"min_bytes": 0}, "min_bytes"),
    ],
)
def test_the_constructor_refuses_values_out_of_range(arguments, name):
    with pytest.raises(ArgumentError, match=name):
        StdlibModules(**arguments)


@pytest.mark.parametrize("source", [StdlibModules, StdlibBytes])
def test_a_directory_without_source_is_refused_by_name(tmp_path, source):
    for root in (tmp_path, tmp_path / "missing"):
        with pytest.raises(DataFileError, match=rf"{root.name} holds no standard library source"):
            source(root=root).load()


def test_no_class_at_all_is_an_error(library):
    with pytest.raises(EmptyDataError, match="min_bytes=1000000"):
        load(library, min_bytes=1_000_000)


@pytest.mark.parametrize("source", [StdlibModules, StdlibBytes])
def test_the_version_is_that_of_the_library_read(source):
    assert source().python_version == platform.python_version()
    assert source(root="elsewhere").python_version is None


def test_the_topic_file_lists_every_module_once_and_no_excluded_one():
    text = resources.files("tightframe.data").joinpath("stdlib_topics.yaml").read_text(encoding="utf-8")
    listed = [module for modules in yaml.safe_load(text).values() for module in modules]
    assert len(listed) == len(set(listed))
    excluded = {"encodings", "pydoc_data", "idlelib", "lib2to3", "ensurepip", "turtledemo", "test", "site-packages"}
    assert excluded.isdisjoint(listed)


@pytest.fixture(scope="module")
def real():
    return StdlibModules().load()


def test_the_real_library(real):
    assert real.num_classes > 150
    assert len(set(real.class_names)) == real.num_classes
    assert len({path[0] for path in real.paths}) >= 24
    assert all(len(path) == 3 for path in real.paths)
    assert all(name.split(".")[0] == path[1] for name, path in zip(real.class_names, real.paths, strict=True))
    assert not any("test" in name.split(".") for name in real.class_names)
    assert torch.equal(real.train.tensors[1].bincount(), real.class_counts)
    assert real.test.tensors[1].bincount(minlength=real.num_classes).min() > 0
    assert real.train.tensors[0].shape == (int(real.class_counts.sum()), 32)
    assert real.train.tensors[0].max() < 16384


def test_train_and_test_of_a_real_module_lie_where_the_periods_put_them(real):
    source = (Path(sysconfig.get_path("stdlib")) / "difflib.py").read_bytes()
    tokens = [zlib.crc32(token) % 16384 for token in re.findall(rb"[A-Za-z_]\w*|\d+|[^\w\s]", source)]
    label = real.class_names.index("difflib")
    train, test = (part.tensors[0][part.tensors[1] == label] for part in (real.train, real.test))
    assert test[0].tolist() == tokens[640:672]
    assert test[4].tolist() == tokens[1408:1440]
    assert train[17].tolist() == tokens[544:576]
    assert train[18].tolist() == tokens[832:864]


@pytest.mark.skipif(sys.version_info[:3] != (3, 11, 7), reason="the pilot's counts are of Python 3.11.7")
def test_the_counts_of_the_pilot(real):
    assert real.num_classes == 207
    assert len({path[:2] for path in real.paths}) == 117
    assert len({path[0] for path in real.paths}) == 25
    assert (len(real.train), len(real.test)) == (36_794, 8_311)
    counts = real.class_counts
    assert (int(counts.min()), int(counts.median()), int(counts.max())) == (44, 126, 1093)


# --- the corpus of bytes ---


def lines(letter, count):
    """So many lines of ten bytes, each with its number."""
    return "".join(f"{letter}{number:08}\n" for number in range(count))


@pytest.fixture
def corpus_library(tmp_path):
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
    return write(tmp_path, files)


def text(part):
    assert part.dtype == torch.uint8
    assert part.ndim == 1
    return bytes(part.tolist()).decode()


def test_the_last_tenth_of_every_file_that_is_large_enough_is_test(corpus_library):
    corpus = StdlibBytes(root=corpus_library).load()
    a, j = lines("a", 400), lines("j", 1000)
    assert text(corpus.train) == a[:3600] + lines("b", 399) + j[:9000] + "import sys\n"
    assert text(corpus.test) == a[3600:] + j[9000:]
    assert corpus.validation is None


def test_a_cut_is_at_the_line_end_before_it(corpus_library):
    (corpus_library / "ast.py").write_text("x" * 3000 + "\n" + "y" * 998 + "\n" + "z" * 100)
    corpus = StdlibBytes(root=corpus_library).load()
    assert text(corpus.train).startswith("x" * 3000 + "\n" + "b0")
    assert text(corpus.test).startswith("y" * 998 + "\n" + "z" * 100 + "j")


def test_validation_is_the_end_of_what_is_left_of_a_file(corpus_library):
    corpus = StdlibBytes(validation_fraction=0.1, root=corpus_library).load()
    j = lines("j", 1000)
    # Of ast.py 3,600 bytes are left, which are not cut again.
    assert text(corpus.train) == lines("a", 400)[:3600] + lines("b", 399) + j[:8100] + "import sys\n"
    assert text(corpus.validation) == j[8100:9000]
    assert torch.equal(corpus.test, StdlibBytes(root=corpus_library).load().test)


def test_a_file_without_line_ends_is_train(corpus_library):
    (corpus_library / "ast.py").write_text("x" * 5000)
    corpus = StdlibBytes(root=corpus_library).load()
    assert "x" * 5000 in text(corpus.train)
    assert "x" not in text(corpus.test)


def test_line_ends_count_as_one_byte(corpus_library):
    expected = StdlibBytes(root=corpus_library).load()
    for name, size in (("ast.py", 400), ("bdb.py", 399)):
        (corpus_library / name).write_bytes(lines(name[0], size).replace("\n", "\r\n").encode())
    found = StdlibBytes(root=corpus_library).load()
    assert torch.equal(found.train, expected.train)
    assert torch.equal(found.test, expected.test)


@pytest.mark.parametrize("fraction", [-0.1, 1.0, True, "half"])
def test_a_fraction_out_of_range_is_refused(fraction):
    with pytest.raises(ArgumentError, match="validation_fraction"):
        StdlibBytes(validation_fraction=fraction)


def test_nothing_to_cut_is_an_error(corpus_library):
    (corpus_library / "json" / "decoder.py").unlink()
    with pytest.raises(EmptyDataError, match=r"of which 0\.1 could be cut off"):
        StdlibBytes(validation_fraction=0.1, root=corpus_library).load()
    (corpus_library / "ast.py").unlink()
    with pytest.raises(EmptyDataError, match="4000 bytes"):
        StdlibBytes(root=corpus_library).load()


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
