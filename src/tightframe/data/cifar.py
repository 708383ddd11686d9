"""CIFAR-10 and CIFAR-100 from the pickles of their Python version, read without running anything that they name."""

from __future__ import annotations

import io
import math
import pickle
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, ClassVar, final

import numpy as np
import torch
from numpy.typing import NDArray

from tightframe.data.base import TensorSamples
from tightframe.data.images import ImageSet, checked_labels
from tightframe.errors import DataFileError, shown
from tightframe.files import reading

SHAPE = (3, 32, 32)


class _Cifar(ImageSet):
    """Pickled files of images and labels, and one of names."""

    meta: str
    names_key: str
    labels_key: str
    files: Mapping[str, Sequence[str]]

    def _classes(self) -> tuple[str, ...]:
        return _PickledFile(self, self.meta).names(self.names_key)

    def _part(self, name: str, num_classes: int) -> TensorSamples:
        images, labels = [], []
        for each in self.files[name]:
            file = _PickledFile(self, each)
            images.append(file.images())
            labels.append(checked_labels(file.path, file.field(self.labels_key), len(images[-1]), num_classes))
        return TensorSamples(torch.from_numpy(np.concatenate(images)), torch.cat(labels))


@final
class CIFAR10(_Cifar):
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
    meta, names_key, labels_key = "batches.meta", "label_names", "labels"
    files = MappingProxyType({"train": [f"data_batch_{i}" for i in range(1, 6)], "test": ["test_batch"]})


@final
class CIFAR100(_Cifar):
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
    meta, names_key, labels_key = "meta", "fine_label_names", "fine_labels"
    files = MappingProxyType({"train": ["train"], "test": ["test"]})

    def _paths(self, class_names: tuple[str, ...]) -> tuple[tuple[str, ...], ...]:
        superclasses = _PickledFile(self, self.meta).names("coarse_label_names")
        found: list[set[int]] = [set() for _ in class_names]
        for name in ("train", "test"):
            file = _PickledFile(self, name)
            fine = file.field("fine_labels")
            coarse = checked_labels(file.path, file.field("coarse_labels"), len(fine), len(superclasses))
            for label, superclass in zip(fine, coarse.tolist(), strict=True):
                found[label].add(superclass)
        for class_name, own in zip(class_names, found, strict=True):
            if len(own) != 1:
                seen = ", ".join(superclasses[i] for i in sorted(own)) or "none, as it has no image"
                raise DataFileError(
                    f"{self.root}: class {class_name} must have one superclass, got {seen}; get {self.archive} again"
                )
        return tuple((superclasses[own.pop()], name) for own, name in zip(found, class_names, strict=True))


class _PickledFile:
    """A mapping in a pickled file of a set; its keys are bytes or text, as Python 2 or 3 wrote them."""

    def __init__(self, source: ImageSet, name: str) -> None:
        self.path = source.root / name
        raw = source.read_bytes(name)
        with reading(self.path, f"is no pickle of {source.archive} or is damaged", "get it again"):
            content = _Unpickler(io.BytesIO(raw), encoding="bytes").load()
        if not isinstance(content, dict):
            seen = type(content).__name__
            raise DataFileError(f"{self.path} must hold a dictionary, got {seen}; get {source.archive} again")
        self.content = content

    def field(self, key: str) -> Any:
        """Return the value of a key."""
        if key not in self.content:
            seen = f"only {shown(sorted(self.content))}; is it the file of another set?"
            raise DataFileError(f"{self.path} has no {key!r}, {seen}")
        return self.content[key]

    def names(self, key: str) -> tuple[str, ...]:
        """Return a list of names."""
        names = self.field(key)
        if not isinstance(names, list) or not names or not all(isinstance(name, bytes | str) for name in names):
            raise DataFileError(f"{self.path}: {key} must be a list of class names; get the file again")
        return tuple(map(_text, names))

    def images(self) -> NDArray[np.uint8]:
        """Return the images ``(N, 3, 32, 32)``, which may not be written to."""
        size = math.prod(SHAPE)
        array = self.field("data")
        try:
            _, shape, dtype, fortran, raw = array.state
            kind, (rows, columns) = _text(dtype.args[0]), map(int, shape)
            if kind == "u1" and columns == size and len(raw) == rows * size > 0:
                pixels = np.frombuffer(raw, np.uint8).reshape((rows, columns), order="F" if fortran else "C")
                return pixels.reshape(-1, *SHAPE)
        except (AttributeError, TypeError, ValueError, IndexError) as error:
            raise DataFileError(
                f"{self.path}: data must be an array of images (N, {size}); get the file again"
            ) from error
        seen = f"{shown(kind)} of shape {(rows, columns)} in {len(raw)} bytes"
        raise DataFileError(
            f"{self.path}: data must be uint8 images of shape (N, {size}), got {seen}; get the file again"
        )


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


class _Keyed(dict[str, Any]):
    """A dictionary whose keys are text: to hash tuples of tuples that a file shares between them may never end."""

    __slots__ = ()

    def __setitem__(self, key: Any, value: Any) -> None:
        super().__setitem__(_text(key), value)


class _Unpickler(pickle._Unpickler):
    """Reads plain values and arrays.

    Python's own unpickler, not the one in C, which takes the memory that a number in the file asks for.
    """

    # No sets, for the sake of hashes, and no buffers, which have the length that the file claims.
    dispatch: ClassVar[dict[int, Any]] = {
        code: load
        for code, load in pickle._Unpickler.dispatch.items()
        if bytes([code]) not in (pickle.EMPTY_SET, pickle.ADDITEMS, pickle.FROZENSET, pickle.BYTEARRAY8)
    }

    def load_empty_dictionary(self: Any) -> None:
        self.append(_Keyed())

    dispatch[pickle.EMPTY_DICT[0]] = load_empty_dictionary

    def load_dict(self: Any) -> None:
        items = self.pop_mark()
        self.append(_Keyed())
        for key, value in zip(items[::2], items[1::2], strict=True):
            self.stack[-1][key] = value

    dispatch[pickle.DICT[0]] = load_dict

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _ALLOWED:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}, which no published file does")
        return _ALLOWED[module, name]


def _text(value: Any) -> str:
    if not isinstance(value, bytes | str):
        raise TypeError(f"it has a {type(value).__name__} where text belongs")
    return value.decode("latin1") if isinstance(value, bytes) else value
