import pickle

import numpy as np
import pytest
import torch

from tests.data import published
from tests.data.published import expect
from tightframe.data import CIFAR10, CIFAR100
from tightframe.errors import DataFileError


def images(flat):
    return torch.from_numpy(flat).view(-1, 3, 32, 32)


def test_cifar10_in_the_order_of_its_files(tmp_path):
    written = published.cifar10(tmp_path)
    data = CIFAR10(tmp_path).load()
    train = [written[f"data_batch_{i}"] for i in range(1, 6)]
    expect(data.train, images(np.concatenate([p for p, _ in train])), [label for _, own in train for label in own])
    expect(data.test, images(written["test_batch"][0]), written["test_batch"][1])
    assert data.validation is None
    assert data.num_classes == 10
    assert data.class_names == tuple(f"class{i}" for i in range(10))
    assert data.class_counts.tolist() == [2] * 10
    assert data.paths is None


def test_cifar100_has_fine_labels_and_superclasses(tmp_path):
    written = published.cifar100(tmp_path)
    data = CIFAR100(tmp_path).load()
    expect(data.train, images(written["train"][0]), written["train"][1])
    expect(data.test, images(written["test"][0]), written["test"][1])
    assert data.num_classes == 100
    assert data.class_names[37] == "fine37"
    assert data.paths[37] == ("coarse17", "fine37")
    assert data.class_counts.tolist() == [1] * 100


def test_the_pixels_of_an_image_lie_channel_by_channel_and_row_by_row(tmp_path):
    published.cifar10(tmp_path)
    pixels = published.pixels(4, 3072)
    pixels[2] = 0
    pixels[2, 1024 + 32 * 5 + 7] = 9
    published.dump(tmp_path / "test_batch", {b"data": pixels, b"labels": [0, 1, 2, 3]})
    image = CIFAR10(tmp_path).load().test[2][0]
    assert image.nonzero().tolist() == [[1, 5, 7]]


@pytest.mark.filterwarnings("ignore:numpy.core")
def test_the_files_of_these_tests_are_what_the_standard_library_reads(tmp_path):
    pixels, labels = published.cifar10(tmp_path)["data_batch_2"]
    with (tmp_path / "data_batch_2").open("rb") as file:
        read = pickle.load(file, encoding="bytes")
    assert np.array_equal(read[b"data"], pixels)
    assert read[b"data"].dtype == np.uint8
    assert (read[b"labels"], read[b"filenames"][0]) == (labels, b"a.png0")


@pytest.mark.parametrize("protocol", [2, 4])
@pytest.mark.parametrize("text", [bytes, str], ids=["bytes", "str"])
def test_what_python_3_writes_is_read_too(tmp_path, text, protocol):
    written = published.cifar10(tmp_path)
    pixels, labels = written["test_batch"]
    for order in (np.ascontiguousarray, np.asfortranarray):
        content = {b"data": order(pixels), b"labels": labels}
        keys = content if text is bytes else {key.decode(): value for key, value in content.items()}
        (tmp_path / "test_batch").write_bytes(pickle.dumps(keys, protocol))
        expect(CIFAR10(tmp_path).load().test, images(pixels), labels)


# --- files that are not as published ---

GOOD = {b"data": published.pixels(4, 3072), b"labels": [0, 1, 2, 3]}


@pytest.mark.parametrize(
    ("content", "text"),
    [
        ([1, 2], "must hold a dictionary, got list"),
        ({b"labels": [0]}, r"has no 'data', only \['labels'\]"),
        ({b"data": GOOD[b"data"]}, "has no 'labels'"),
        (GOOD | {b"data": published.pixels(4, 3000)}, r"of shape \(N, 3072\), got 'u1' of shape \(4, 3000\)"),
        (GOOD | {b"data": published.pixels(4, 3, 1024)}, "must be an array of images"),
        (GOOD | {b"data": published.pixels(0, 3072)}, "in 0 bytes"),
        (GOOD | {b"data": [1, 2]}, "must be an array of images"),
        (GOOD | {b"labels": [0, 1, 2]}, "3 labels for 4 images"),
        (GOOD | {b"labels": [0, 1, 2, 10]}, r"label 10 but labels must lie in 0\.\.9"),
        (GOOD | {b"labels": [0, -1, 2, 3]}, "label -1"),
        (GOOD | {b"labels": [0, 1.5, 2, 3]}, "integer label"),
        (GOOD | {b"labels": 3}, "integer label"),
        (GOOD | {b"labels": [0, [1, 2], 2, 3]}, "integer label"),
        (GOOD | {b"labels": GOOD[b"data"]}, "integer label"),
    ],
)
def test_a_pickle_of_something_else(tmp_path, content, text):
    published.cifar10(tmp_path)
    published.dump(tmp_path / "test_batch", content)
    with pytest.raises(DataFileError, match=f"test_batch.*{text}"):
        CIFAR10(tmp_path).load()


@pytest.mark.parametrize("changed", [np.float32, np.int8])
def test_pixels_of_another_type(tmp_path, changed):
    published.cifar10(tmp_path)
    (tmp_path / "test_batch").write_bytes(pickle.dumps(GOOD | {b"data": GOOD[b"data"].astype(changed)}, 2))
    with pytest.raises(DataFileError, match=r"test_batch: data must be uint8 images .*, got '[fi]\d'"):
        CIFAR10(tmp_path).load()


@pytest.mark.parametrize("names", [[], b"abc", [1, 2]])
def test_class_names_that_are_none(tmp_path, names):
    published.cifar10(tmp_path)
    published.dump(tmp_path / "batches.meta", {b"label_names": names})
    with pytest.raises(DataFileError, match=r"batches\.meta: label_names must be a list of class names"):
        CIFAR10(tmp_path).load()


def test_a_class_in_two_superclasses_or_in_none(tmp_path):
    for last, text in ((0, "fine4 must have one superclass, got coarse4, coarse5"), (1, "fine4 .* got none")):
        pixels, _ = published.cifar100(tmp_path, 101)["train"]
        fine = [i % 100 for i in range(100)] + [4]
        coarse = [label % 20 for label in fine[:100]] + [5]
        if last:
            fine = [3 if label == 4 else label for label in fine]
            coarse = [label % 20 for label in fine]
        published.dump(tmp_path / "train", {b"data": pixels, b"fine_labels": fine, b"coarse_labels": coarse})
        published.dump(tmp_path / "test", {b"data": pixels[:1], b"fine_labels": [0], b"coarse_labels": [0]})
        with pytest.raises(DataFileError, match=text):
            CIFAR100(tmp_path).load()


# --- pickles that want to run something ---


class Hostile:
    def __init__(self, function, *args):
        self.call = function, args

    def __reduce__(self):
        return self.call


def test_a_pickle_that_names_any_code_runs_nothing(tmp_path):
    published.cifar10(tmp_path)
    trace = tmp_path / "trace"
    for content in (
        Hostile(exec, f"open({str(trace)!r}, 'w')"),
        Hostile(open, str(trace), "w"),
        Hostile(np.dtype, "O"),
    ):
        for position in (content, {b"data": content, b"labels": [0]}, [content]):
            (tmp_path / "test_batch").write_bytes(pickle.dumps(position, 2))
            with pytest.raises(DataFileError, match="test_batch"):
                CIFAR10(tmp_path).load()
            assert not trace.exists()


@pytest.mark.parametrize(
    ("module", "name"),
    [
        ("os", "system"),
        ("builtins", "eval"),
        ("builtins", "getattr"),
        ("numpy", "load"),
        ("numpy.core.multiarray", "scalar"),
        ("numpy._core.multiarray", "_reconstruct.__self__"),
        ("_codecs", "decode"),
        ("tightframe.data.cifar", "_read"),
    ],
)
@pytest.mark.parametrize("protocol", [2, 4])
def test_any_other_global_is_refused_by_its_name(tmp_path, module, name, protocol):
    published.cifar10(tmp_path)
    if protocol == 2:
        body = f"c{module}\n{name}\n".encode()
    else:
        body = b"".join(b"\x8c" + bytes([len(part)]) + part.encode() for part in (module, name)) + b"\x93"
    (tmp_path / "test_batch").write_bytes(b"\x80" + bytes([protocol]) + body + b".")
    with pytest.raises(DataFileError, match=f"it asks for {module}.{name}, which no published file does"):
        CIFAR10(tmp_path).load()


def test_a_file_that_claims_more_than_it_holds(tmp_path):
    published.cifar10(tmp_path)
    whole = pickle.dumps(GOOD, 2)
    claimed = whole.replace(b"K\x04M\x00\x0c\x86", b"J\xff\xff\xff\x7fM\x00\x0c\x86")
    assert claimed != whole
    (tmp_path / "test_batch").write_bytes(claimed)
    with pytest.raises(DataFileError, match=r"got 'u1' of shape \(2147483647, 3072\) in 12288 bytes"):
        CIFAR10(tmp_path).load()


@pytest.mark.parametrize(
    "body",
    [
        b"}r\xff\xff\xff\x7f",  # a place in the memo for each of two billion values
        b"\x96" + b"\xff" * 7 + b"\x7f",  # an array of that many bytes
        b"}K\x00" + b"2\x86" * 100 + b"K\x00s",  # a key of 2^100 numbers, which its hash would visit
        b"(K\x00" + b"2\x86" * 100 + b"K\x00d",
        b"\x8f(K\x00" + b"2\x86" * 100 + b"\x90",
        b"}" + b"]" * 20_000 + b"a" * 19_999,
        b"(" * 20_000,
    ],
)
def test_pickles_that_would_take_all_memory_or_time(tmp_path, body):
    published.cifar10(tmp_path)
    (tmp_path / "test_batch").write_bytes(b"\x80\x04" + body + b".")
    with pytest.raises(DataFileError, match="test_batch"):
        CIFAR10(tmp_path).load()


def test_values_of_values_are_not_visited(tmp_path):
    published.cifar10(tmp_path)
    endless = [0]
    for _ in range(100):
        endless = [endless, endless]
    for content in (GOOD | {b"labels": endless}, GOOD | {b"data": endless}, {b"labels": [0]}):
        (tmp_path / "test_batch").write_bytes(pickle.dumps(content, 2))
        with pytest.raises(DataFileError, match="test_batch"):
            CIFAR10(tmp_path).load()
