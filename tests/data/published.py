"""Small image sets in exactly the formats that are published, written where a test wants them."""

import pickle
import struct
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
from PIL import Image


class Python2Pickler(pickle._Pickler):
    """Writes bytes as Python 2 wrote its strings, and arrays under the names that numpy had then."""

    dispatch: ClassVar = dict(pickle._Pickler.dispatch)

    def save_string(self, text):
        short = len(text) < 256
        self.write(
            pickle.SHORT_BINSTRING + bytes([len(text)]) if short else pickle.BINSTRING + struct.pack("<i", len(text))
        )
        self.write(text)
        self.memoize(text)

    dispatch[bytes] = save_string

    def save_array(self, array):
        self.write(pickle.GLOBAL + b"numpy.core.multiarray\n_reconstruct\n" + pickle.GLOBAL + b"numpy\nndarray\n")
        self.save((0,))
        self.save(b"b")
        self.write(pickle.TUPLE3 + pickle.REDUCE + pickle.MARK)
        self.save(1)
        self.save(array.shape)
        self.write(pickle.GLOBAL + b"numpy\ndtype\n")
        self.save((b"u1", 0, 1))
        self.write(pickle.REDUCE)
        self.save((3, b"|", None, None, None, -1, -1, 0))
        self.write(pickle.BUILD)
        self.save(False)
        self.save(array.tobytes())
        self.write(pickle.TUPLE + pickle.BUILD)

    dispatch[np.ndarray] = save_array


def dump(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        Python2Pickler(file, protocol=2).dump(content)


def pixels(n, *shape, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (n, *shape), dtype=np.uint8)


def names(prefix, n):
    return [f"{prefix}{i}".encode() for i in range(n)]


def cifar10(root, n=4):
    """Write five training files of ``n`` images and a test file; return all images and labels of a part."""
    written = {}
    for seed, name in enumerate(
        ["data_batch_1", "data_batch_2", "data_batch_3", "data_batch_4", "data_batch_5", "test_batch"]
    ):
        data, labels = pixels(n, 3072, seed=seed), [(seed * n + i) % 10 for i in range(n)]
        files = names("a.png", n)
        dump(root / name, {b"batch_label": b"batch", b"labels": labels, b"data": data, b"filenames": files})
        written[name] = data, labels
    dump(root / "batches.meta", {b"num_cases_per_batch": n, b"label_names": names("class", 10), b"num_vis": 3072})
    return written


def cifar100(root, n=100, num_test=3):
    """Write both parts; superclass of a class is its label modulo 20."""
    written = {}
    for seed, (name, size) in enumerate({"train": n, "test": num_test}.items()):
        data, fine = pixels(size, 3072, seed=seed), [(7 * i) % 100 for i in range(size)]
        coarse = [label % 20 for label in fine]
        content = {b"filenames": names("a.png", size), b"batch_label": b"batch", b"fine_labels": fine}
        dump(root / name, content | {b"coarse_labels": coarse, b"data": data})
        written[name] = data, fine
    dump(root / "meta", {b"fine_label_names": names("fine", 100), b"coarse_label_names": names("coarse", 20)})
    return written


def stl10(root, n=10, num_test=2):
    """Write both parts; return images as rows and columns and labels from 0."""
    root.mkdir(parents=True, exist_ok=True)
    written = {}
    for seed, (name, size) in enumerate({"train": n, "test": num_test}.items()):
        images, labels = pixels(size, 3, 96, 96, seed=seed), [(3 * i) % 10 for i in range(size)]
        images.swapaxes(2, 3).tofile(root / f"{name}_X.bin")
        (np.array(labels, np.uint8) + 1).tofile(root / f"{name}_y.bin")
        written[name] = images, labels
    (root / "class_names.txt").write_text("".join(f"class{i}\n" for i in range(10)))
    return written


def image_folder(root, parts=("train", "val"), classes=("bird", "apple", "cat"), n=3, size=(20, 15)):
    """Write ``n`` PNG files a class of ``size`` = (width, height); return the pixels by path."""
    written = {}
    for part in parts:
        for class_name in classes:
            for i in range(n):
                path = Path(root, part, class_name, f"{i}.png")
                path.parent.mkdir(parents=True, exist_ok=True)
                written[path] = pixels(1, size[1], size[0], 3, seed=len(written))[0]
                Image.fromarray(written[path]).save(path)
    return written


def expect(part, pixels, labels):
    """Check that a part holds these images and labels, in order."""
    assert torch.equal(part.tensors[0], torch.as_tensor(pixels))
    assert part.tensors[0].dtype == torch.uint8
    assert part.tensors[1].tolist() == labels
    assert part.tensors[1].dtype == torch.int64
