"""CIFAR-10 and CIFAR-100 from the pickles of their Python version, read without running anything that they name."""

from __future__ import annotations

import io
import pickle
from pathlib import Path
from typing import Any, final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tightframe.data.images import Images, ImageSet, checked_labels
from tightframe.errors import DataFileError

SHAPE = (3, 32, 32)


@final
class CIFAR10(ImageSet):
    """CIFAR-10 (Krizhevsky 2009): 32x32 colour images of 10 classes, from the Python version.

    Args:
        root: the folder ``cifar-10-batches-py`` that ``cifar-10-python.tar.gz`` unpacks to.
        validation_fraction: share of the training part that is set aside, the same of each class, in [0, 1).
        seed: Seed of that split; fixed by default so that all runs of a comparison share it.

    Raises:
        ArgumentError: if an argument lies outside its range, or (from :meth:`load`) a part would miss a class.
        DataFileError: from :meth:`load`, if a file is missing, truncated, of another format or asks for any code.
    """

    archive = "cifar-10-python.tar.gz"

    def _classes(self) -> tuple[str, ...]:
        return _names(_read(self, "batches.meta"), "label_names", self.root / "batches.meta")

    def _part(self, name: str, num_classes: int) -> Images:
        files = ["test_batch"] if name == "test" else [f"data_batch_{i}" for i in range(1, 6)]
        images, labels = [], []
        for file in files:
            content, path = _read(self, file), self.root / file
            images.append(_pixels(content, path))
            labels.append(_labels(content, "labels", path, len(images[-1]), num_classes))
        return Images(torch.from_numpy(np.concatenate(images)), torch.cat(labels))


@final
class CIFAR100(ImageSet):
    """CIFAR-100 (Krizhevsky 2009): 32x32 colour images of 100 classes in 20 superclasses, from the Python version.

    The fine labels are the classes; ``paths`` are ``(superclass, class)`` as the files label every image.

    Args:
        root: the folder ``cifar-100-python`` that ``cifar-100-python.tar.gz`` unpacks to.
        validation_fraction: share of the training part that is set aside, the same of each class, in [0, 1).
        seed: Seed of that split; fixed by default so that all runs of a comparison share it.

    Raises:
        ArgumentError: if an argument lies outside its range, or (from :meth:`load`) a part would miss a class.
        DataFileError: from :meth:`load`, if a file is missing, truncated, of another format or asks for any code, or a
            class has not exactly one superclass.
    """

    archive = "cifar-100-python.tar.gz"

    def _classes(self) -> tuple[str, ...]:
        return _names(_read(self, "meta"), "fine_label_names", self.root / "meta")

    def _part(self, name: str, num_classes: int) -> Images:
        content, path = _read(self, name), self.root / name
        images = _pixels(content, path)
        labels = _labels(content, "fine_labels", path, len(images), num_classes)
        return Images(torch.from_numpy(images.copy()), labels)

    def _paths(self, class_names: tuple[str, ...]) -> tuple[tuple[str, ...], ...]:
        superclasses = _names(_read(self, "meta"), "coarse_label_names", self.root / "meta")
        found: list[set[int]] = [set() for _ in class_names]
        for name in ("train", "test"):
            content, path = _read(self, name), self.root / name
            fine = content["fine_labels"]
            coarse = _labels(content, "coarse_labels", path, len(fine), len(superclasses))
            for label, superclass in zip(fine, coarse.tolist(), strict=True):
                found[label].add(superclass)
        for class_name, own in zip(class_names, found, strict=True):
            if len(own) != 1:
                seen = ", ".join(superclasses[i] for i in sorted(own)) or "none, as it has no image"
                raise DataFileError(
                    f"{self.root}: class {class_name} must have one superclass, got {seen}; get {self.archive} again"
                )
        return tuple((superclasses[own.pop()], name) for own, name in zip(found, class_names, strict=True))


class _Recorded:
    """A pickled array or dtype as what it was made from.

    Numpy's own reconstruction trusts sizes and flags of the file, which a crafted one can turn into wild pointers.
    """

    def __init__(self, *args: Any) -> None:
        self.args = args
        self.state: Any = None

    def __setstate__(self, state: Any) -> None:
        self.state = state


# Under either numpy's spelling, and what Python 3 writes for bytes in the protocol of these files.
_ALLOWED: dict[tuple[str, str], Any] = {
    ("numpy.core.multiarray", "_reconstruct"): _Recorded,
    ("numpy._core.multiarray", "_reconstruct"): _Recorded,
    ("numpy", "ndarray"): _Recorded,
    ("numpy", "dtype"): _Recorded,
    ("_codecs", "encode"): str.encode,
}


class _Unpickler(pickle.Unpickler):
    """Reads plain values and arrays."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _ALLOWED:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}, which no published file does")
        return _ALLOWED[module, name]


def _read(source: ImageSet, name: str) -> dict[str, Any]:
    """Read the mapping in a file of a set; its keys are bytes or text, as Python 2 or 3 wrote them."""
    path = source.root / name
    try:
        content = _Unpickler(io.BytesIO(source._bytes(name)), encoding="bytes").load()
    except DataFileError:
        raise
    except Exception as error:  # a damaged pickle raises exceptions of many kinds
        raise DataFileError(
            f"{path} is no pickle of {source.archive} or is damaged ({type(error).__name__}: {error}); get it again"
        ) from error
    if not isinstance(content, dict):
        raise DataFileError(f"{path} must hold a dictionary, got {type(content).__name__}; get {source.archive} again")
    return {_text(key): value for key, value in content.items()}


def _pixels(content: dict[str, Any], path: Path) -> NDArray[np.uint8]:
    """Return the images ``(N, 3, 32, 32)`` of a file, which may not be written to."""
    size = int(np.prod(SHAPE))
    array = _field(content, "data", path)
    try:
        _, shape, dtype, fortran, raw = array.state
        kind, (rows, columns) = _text(dtype.args[0]), shape
        if kind == "u1" and columns == size and len(raw) == rows * size > 0:
            pixels = np.frombuffer(raw, np.uint8).reshape(shape, order="F" if fortran else "C")
            return pixels.reshape(-1, *SHAPE)
    except (AttributeError, TypeError, ValueError, IndexError) as error:
        raise DataFileError(f"{path}: data must be an array of images (N, {size}); get the file again") from error
    raise DataFileError(
        f"{path}: data must be uint8 images of shape (N, {size}), got {kind} of shape {tuple(shape)} in {len(raw)} "
        "bytes; get the file again"
    )


def _labels(content: dict[str, Any], key: str, path: Path, num_images: int, num_classes: int) -> Tensor:
    return checked_labels(path, _field(content, key, path), num_images, num_classes)


def _names(content: dict[str, Any], key: str, path: Path) -> tuple[str, ...]:
    names = _field(content, key, path)
    if not isinstance(names, list) or not names or not all(isinstance(name, bytes | str) for name in names):
        raise DataFileError(f"{path}: {key} must be a list of class names; get the file again")
    return tuple(map(_text, names))


def _field(content: dict[str, Any], key: str, path: Path) -> Any:
    if key not in content:
        raise DataFileError(f"{path} has no {key!r}, only {sorted(content)}; is it the file of another set?")
    return content[key]


def _text(value: Any) -> str:
    return value.decode("latin1") if isinstance(value, bytes) else str(value)
