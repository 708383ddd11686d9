import os
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import TensorDataset

from tests.data import published
from tests.data.published import expect
from tightframe.data import CIFAR10, CIFAR100, STL10, ImageFolder
from tightframe.errors import ArgumentError, DataFileError, MissingExtraError, Notice
from tightframe.training import make_loader

WRITERS = {CIFAR10: published.cifar10, CIFAR100: published.cifar100, STL10: published.stl10}
FILES = {
    CIFAR10: ["batches.meta", "data_batch_1", "data_batch_5", "test_batch"],
    CIFAR100: ["meta", "train", "test"],
    STL10: ["class_names.txt", "train_X.bin", "train_y.bin", "test_X.bin", "test_y.bin"],
}
EACH_FILE = [(source, name) for source, names in FILES.items() for name in names]


# --- what the files hold ---


def test_stl10_lies_column_by_column(tmp_path):
    written = published.stl10(tmp_path)
    raw = np.fromfile(tmp_path / "train_X.bin", np.uint8)
    assert raw[:2].tolist() == written["train"][0][0, 0, :2, 0].tolist()
    data = STL10(tmp_path).load()
    expect(data.train, *written["train"])
    expect(data.test, *written["test"])
    assert data.train.tensors[0].shape == (10, 3, 96, 96)
    assert data.class_names == tuple(f"class{i}" for i in range(10))
    assert data.class_counts.tolist() == [1] * 10


# --- validation ---


@pytest.mark.parametrize(("source", "n"), [(CIFAR10, 16), (CIFAR100, 400), (STL10, 40)])
def test_a_share_of_each_class_is_set_aside(tmp_path, source, n):
    WRITERS[source](tmp_path, n)
    whole = source(tmp_path).load()
    data = source(tmp_path, validation_fraction=0.25).load()
    share = whole.class_counts[0] // 4
    assert data.validation.tensors[1].bincount().tolist() == [share] * data.num_classes
    assert torch.equal(data.class_counts, whole.class_counts - share)
    assert torch.equal(data.train.tensors[1].bincount(), data.class_counts)
    both = torch.cat([part.tensors[0] for part in (data.train, data.validation)]).flatten(1)
    assert sorted(both.tolist()) == sorted(whole.train.tensors[0].flatten(1).tolist())
    again, other = (source(tmp_path, validation_fraction=0.25, seed=seed).load() for seed in (0, 1))
    assert torch.equal(again.train.tensors[0], data.train.tensors[0])
    assert not torch.equal(other.train.tensors[0], data.train.tensors[0])
    assert torch.equal(data.test.tensors[0], whole.test.tensors[0])


def test_a_class_too_small_to_split(tmp_path):
    published.cifar10(tmp_path)
    with pytest.raises(ArgumentError, match="leaves a part without some class"):
        CIFAR10(tmp_path, validation_fraction=0.1).load()


@pytest.mark.parametrize("source", [CIFAR10, CIFAR100, STL10, lambda *a, **k: ImageFolder(*a, resize=8, **k)])
@pytest.mark.parametrize("bad", [{"validation_fraction": 1.0}, {"validation_fraction": -0.1}, {"seed": -1}])
def test_options_out_of_range(source, bad):
    with pytest.raises(ArgumentError, match=next(iter(bad))):
        source("nowhere", **bad)


# --- files that are not as published ---


@pytest.mark.parametrize(("source", "name"), EACH_FILE)
def test_a_missing_file(tmp_path, source, name):
    WRITERS[source](tmp_path)
    (tmp_path / name).unlink()
    with pytest.raises(DataFileError, match=f"{name} does not exist; root must be the folder that {source.archive}"):
        source(tmp_path).load()


@pytest.mark.parametrize(("source", "name"), EACH_FILE)
def test_an_empty_file(tmp_path, source, name):
    WRITERS[source](tmp_path)
    (tmp_path / name).write_bytes(b"")
    with pytest.raises(DataFileError, match=f"{name} is empty"):
        source(tmp_path).load()


@pytest.mark.parametrize(("source", "name"), [pair for pair in EACH_FILE if pair[1] != "class_names.txt"])
def test_a_truncated_file(tmp_path, source, name):
    WRITERS[source](tmp_path)
    path = tmp_path / name
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(DataFileError, match=name):
        source(tmp_path).load()


def test_a_file_that_cannot_be_read(tmp_path):
    published.stl10(tmp_path)
    (tmp_path / "train_X.bin").unlink()
    (tmp_path / "train_X.bin").mkdir()
    with pytest.raises(DataFileError, match=r"train_X.bin cannot be read"):
        STL10(tmp_path).load()


def test_stl10_labels_and_sizes(tmp_path):
    published.stl10(tmp_path)
    for labels, text in (
        ([0] * 10, r"label 0 but labels must lie in 1\.\.10"),
        ([11] * 10, "label 11"),
        ([1], "1 labels"),
    ):
        (tmp_path / "train_y.bin").write_bytes(bytes(labels))
        with pytest.raises(DataFileError, match=rf"train_y\.bin has {text}"):
            STL10(tmp_path).load()
    (tmp_path / "train_X.bin").write_bytes(bytes(3 * 96 * 96 - 1))
    with pytest.raises(DataFileError, match=r"train_X\.bin has 27647 bytes, no multiple of the 27648"):
        STL10(tmp_path).load()


# --- folders of images ---


def folder(root, **options):
    return ImageFolder(root, **{"resize": 8, **options})


def test_classes_are_the_sorted_folders(tmp_path):
    written = published.image_folder(tmp_path, size=(8, 8))
    (tmp_path / "train" / ".cache").mkdir()
    (tmp_path / "train" / "cat" / ".hidden").write_text("")
    data = folder(tmp_path).load()
    assert data.class_names == ("apple", "bird", "cat")
    assert data.class_counts.tolist() == [3, 3, 3]
    assert data.validation is None
    for part, name in ((data.train, "train"), (data.test, "val")):
        assert len(part) == 9
        for i, (image, label) in enumerate(part[j] for j in range(9)):
            class_name = data.class_names[i // 3]
            expected = torch.from_numpy(written[tmp_path / name / class_name / f"{i % 3}.png"])
            assert torch.equal(image, expected.permute(2, 0, 1))
            assert (image.dtype, label.dtype, int(label)) == (torch.uint8, torch.int64, i // 3)


@pytest.mark.parametrize(("width", "height"), [(40, 20), (20, 40), (32, 22), (6, 4)])
def test_the_middle_square_at_the_size_asked_for(tmp_path, width, height):
    published.image_folder(tmp_path, classes=["a"], n=1, size=(width, height))
    path = tmp_path / "train" / "a" / "0.png"
    gray = np.zeros((height, width, 3), np.uint8)
    side = min(width, height)
    top, left = (height - side) // 2, (width - side) // 2
    gray[top : top + side, left : left + side] = 200
    Image.fromarray(gray).save(path)
    image = folder(tmp_path, resize=10).load().train[0][0]
    assert image.shape == (3, 10, 10)
    assert (image[:, 1:9, 1:9] == 200).all()


def test_an_image_of_that_height_is_only_cropped(tmp_path):
    written = published.image_folder(tmp_path, ["train", "test"], n=1, size=(14, 8))
    image = folder(tmp_path).load().train[0][0]
    expected = written[tmp_path / "train" / "apple" / "0.png"][:, 3:11]
    assert torch.equal(image, torch.from_numpy(expected.copy()).permute(2, 0, 1))


@pytest.mark.parametrize("mode", ["L", "RGBA", "P", "1", "CMYK"])
def test_every_kind_of_image_becomes_rgb(tmp_path, mode):
    published.image_folder(tmp_path, classes=["a"], n=1)
    (tmp_path / "train" / "a" / "0.png").unlink()
    Image.new("RGB", (9, 9), (255, 255, 255)).convert(mode).save(tmp_path / "train" / "a" / "0.tiff")
    image = folder(tmp_path).load().train[0][0]
    assert image.shape == (3, 8, 8)
    assert (image == 255).all()


def test_a_loader_stacks_what_its_threads_decode(tmp_path):
    published.image_folder(tmp_path, n=4)
    data = folder(tmp_path).load()
    batches = list(make_loader(data.train, 5))
    assert [tuple(inputs.shape) for inputs, _ in batches] == [(5, 3, 8, 8), (5, 3, 8, 8), (2, 3, 8, 8)]
    together = torch.cat([inputs for inputs, _ in batches])
    assert together.dtype == torch.uint8
    assert torch.equal(together, torch.stack([data.train[i][0] for i in range(12)]))
    assert torch.equal(torch.cat([labels for _, labels in batches]), torch.arange(3).repeat_interleave(4))


def test_test_goes_before_val_which_is_then_validation(tmp_path):
    published.image_folder(tmp_path, n=1, size=(8, 8))
    written = published.image_folder(tmp_path, ["test"], n=2, size=(8, 8))
    data = folder(tmp_path).load()
    assert [len(part) for part in (data.train, data.validation, data.test)] == [3, 3, 6]
    expected = torch.from_numpy(written[tmp_path / "test" / "apple" / "1.png"]).permute(2, 0, 1)
    assert torch.equal(data.test[1][0], expected)
    with pytest.raises(
        ArgumentError, match=r"validation_fraction must be 0 where .*val is the validation part, got 0.5"
    ):
        folder(tmp_path, validation_fraction=0.5).load()


def test_a_share_of_each_class_folder_is_set_aside(tmp_path):
    published.image_folder(tmp_path, n=4, size=(8, 8))
    whole, data = (folder(tmp_path, validation_fraction=fraction).load() for fraction in (0.0, 0.25))
    assert data.class_counts.tolist() == [3, 3, 3]
    assert sorted(int(data.validation[i][1]) for i in range(len(data.validation))) == [0, 1, 2]
    assert len(data.test) == 12

    def samples(*parts):
        return sorted(
            (*image.flatten().tolist(), int(label))
            for part in parts
            for image, label in map(part.__getitem__, range(len(part)))
        )

    assert samples(data.train, data.validation) == samples(whole.train)


@pytest.mark.parametrize("content", ["text", "truncated", "none"])
def test_a_file_that_is_no_image_is_named_when_it_is_read(tmp_path, content):
    published.image_folder(tmp_path, size=(64, 64))
    path = tmp_path / "train" / "bird" / "1.png"
    path.write_bytes({"text": b"hello", "truncated": path.read_bytes()[:-3000], "none": b""}[content])
    data = folder(tmp_path).load()
    assert data.train[3][1] == 1
    with pytest.raises(DataFileError, match=r"bird/1\.png cannot be decoded as an image .*; replace or remove it"):
        data.train[4]
    with pytest.raises(DataFileError, match=r"bird/1\.png"):
        list(make_loader(data.train, 9))


def test_folders_that_are_not_as_they_should_be(tmp_path):
    with pytest.raises(DataFileError, match=r"train is no folder that can be read; root = .*/none must hold"):
        folder(tmp_path / "none").load()
    published.image_folder(tmp_path, ["train"])
    with pytest.raises(DataFileError, match="val is no folder"):
        folder(tmp_path).load()
    (tmp_path / "val").mkdir()
    with pytest.raises(DataFileError, match="val holds no class folder"):
        folder(tmp_path).load()
    published.image_folder(tmp_path, ["val"], classes=["bird", "dog"])
    with pytest.raises(DataFileError, match=r"the same class folders, but 3 are in one alone: apple, cat, dog$"):
        folder(tmp_path).load()
    published.image_folder(tmp_path, ["val"], classes=list("hijklmn"))
    with pytest.raises(DataFileError, match=r"10 are in one alone: apple, cat, dog, h, i, \.\.\.$"):
        folder(tmp_path).load()


def test_images_in_folders_of_a_class_folder_belong_to_the_class(tmp_path):
    for part in ("train", "test"):
        for name in ("b/2.png", "b/1.png", "a/more/deep/1.png", "a/0.png", "a/.hidden/3.png"):
            path = tmp_path / part / name
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (8, 8)).save(path)
    data = ImageFolder(tmp_path, 8).load()
    paths = [Path(path).relative_to(tmp_path / "train").as_posix() for path in data.train.paths]
    assert paths == ["a/0.png", "a/more/deep/1.png", "b/1.png", "b/2.png"]
    assert data.train.labels.tolist() == [0, 0, 1, 1]


def test_what_is_left_out_is_counted_and_named(tmp_path, monkeypatch):
    published.image_folder(tmp_path, n=2, size=(8, 8))
    train = tmp_path / "train"
    (train / "labels.csv").write_text("")
    (train / "apple" / "old").mkdir()
    (train / "apple" / "old" / "gone.PNG").symlink_to(tmp_path / "nowhere.png")
    (train / "apple" / "old" / "around").symlink_to(train / "apple")
    (train / "bird" / "a.gif").write_bytes(b"GIF")
    (train / "bird" / "locked.JPEG").write_bytes(b"")
    (train / "cat" / ".hidden.png").write_bytes(b"")
    (train / "dog").symlink_to(tmp_path / "nowhere")
    access = os.access
    monkeypatch.setattr(os, "access", lambda path, mode: "locked" not in path and access(path, mode))
    with pytest.warns(Notice) as caught:
        data = folder(tmp_path).load()
    assert data.class_counts.tolist() == [2, 2, 2]
    (notice,) = caught
    assert str(notice.message).startswith(f"{train}: 6 images are read and 6 files left out: dog (leads nowhere), ")
    for named in ("labels.csv (outside the class folders)", "gone.PNG (leads nowhere)", "a.gif (no image)", ", …"):
        assert named in str(notice.message)
    assert notice.filename == __file__


def test_a_class_folder_without_files(tmp_path):
    published.image_folder(tmp_path)
    for path in (tmp_path / "val" / "bird").iterdir():
        path.unlink()
    with pytest.raises(DataFileError, match=r"bird holds no image \(\.jpg, .*\); add its images or remove the folder"):
        folder(tmp_path).load()
    (tmp_path / "val" / "bird" / "a.gif").write_bytes(b"GIF")
    with pytest.raises(DataFileError, match=r"bird holds no image .*, but bird/a\.gif \(no image\); add"):
        folder(tmp_path).load()


@pytest.mark.parametrize("size", [0, -1, 2.5])
def test_a_size_that_is_none(size):
    with pytest.raises(ArgumentError, match="resize"):
        ImageFolder("nowhere", resize=size)


def test_pillow_is_asked_for_before_anything_is_read(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "PIL.Image", None)
    with pytest.raises(MissingExtraError, match=r"tightframe\[cli\]"):
        folder(tmp_path).load()


def test_whole_sets_are_indexed_a_batch_at_a_time(tmp_path):
    published.cifar10(tmp_path)
    assert isinstance(CIFAR10(tmp_path).load().train, TensorDataset)
