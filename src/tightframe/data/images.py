"""Images from disk: what the readers of whole sets share, STL-10, and folders of image files."""

from __future__ import annotations

import os
import warnings
from abc import abstractmethod
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, final

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from tightframe.data.base import ClassificationData, HoldOutSource, StrPath, TensorSamples, differing
from tightframe.errors import ArgumentError, DataFileError, Notice, check_positive, is_name, require_extra, shown
from tightframe.files import reading

# As torchvision knows images.
SUFFIXES = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")
# Files that a message names of those left out.
SHOWN = 5


class ImageSet(HoldOutSource):
    """A published set of images that fits into memory, read from the folder that its archive unpacks to.

    The parts are TensorDatasets of ``(uint8 image (C, H, W), int64 label)``.

    Args:
        root: Folder of the files themselves.
        validation_fraction: share of the training part that is set aside, the same of each class, in [0, 1).
        seed: Seed of that split; fixed by default so that all runs of a comparison share it.

    Raises:
        ArgumentError: if an argument lies outside its range, or (from :meth:`load`) a part would miss a class.
        DataFileError: from :meth:`load`, if a file is missing, damaged, truncated, empty or of another format.
    """

    archive: str

    def __init__(self, root: StrPath, validation_fraction: float = 0.0, seed: int = 0) -> None:
        super().__init__(validation_fraction, seed)
        self.root = Path(root)

    @abstractmethod
    def _classes(self) -> tuple[str, ...]:
        """Return the names of the classes in label order."""

    @abstractmethod
    def _part(self, name: str, num_classes: int) -> TensorSamples:
        """Read the part ``train`` or ``test``."""

    def _paths(self, class_names: tuple[str, ...]) -> tuple[tuple[str, ...], ...] | None:
        """Return where the classes lie in a hierarchy, if the set has one."""
        return None

    def _read(self) -> ClassificationData:
        names = self._classes()
        train, test = (self._part(part, len(names)) for part in ("train", "test"))
        return ClassificationData.of(train, None, test, train.labels, names, self._paths(names))

    def read_bytes(self, name: str) -> bytes:
        """Read a file of the set."""
        path = self.root / name
        with reading(path, "cannot be read", f"root must be the folder that {self.archive} unpacks to"):
            content = path.read_bytes()
        if not content:
            raise DataFileError(f"{path} is empty; unpack {self.archive} again")
        return content


def checked_labels(path: Path, labels: Any, num_images: int, num_classes: int, first: int = 0) -> Tensor:
    """Return labels read from a file as int64 from 0.

    Raises:
        DataFileError: if they are no integers, not one an image, or outside ``first..first + num_classes - 1``.
    """
    numbers = isinstance(labels, np.ndarray) or (isinstance(labels, list) and all(type(x) is int for x in labels))
    read = np.asarray(labels if numbers else 0.0)
    if read.ndim != 1 or not np.issubdtype(read.dtype, np.integer):
        raise DataFileError(f"{path} must hold one integer label an image; get the published file again")
    if len(read) != num_images:
        raise DataFileError(
            f"{path} has {len(read)} labels for {num_images} images; one of the files is truncated, unpack them again"
        )
    wrong = read[(read < first) | (read >= first + num_classes)]
    if len(wrong):
        raise DataFileError(
            f"{path} has label {wrong[0]} but labels must lie in {first}..{first + num_classes - 1}, the {num_classes} "
            "classes that the set names; get the published file again"
        )
    return torch.from_numpy(read.astype(np.int64) - first)


@final
class STL10(ImageSet):
    """STL-10 (Coates, Lee & Ng, AISTATS 2011): 96x96 colour images of 10 classes, from the binary files.

    Its 100,000 images without labels are not read.

    Args:
        root: the folder ``stl10_binary`` that ``stl10_binary.tar.gz`` unpacks to.
        validation_fraction: share of the training part that is set aside, the same of each class, in [0, 1).
        seed: Seed of that split; fixed by default so that all runs of a comparison share it.

    Raises:
        ArgumentError: if an argument lies outside its range, or (from :meth:`load`) a part would miss a class.
        DataFileError: from :meth:`load`, if a file is missing, truncated, empty or has labels out of range.
    """

    archive = "stl10_binary.tar.gz"
    shape = (3, 96, 96)
    num_classes = 10

    def _classes(self) -> tuple[str, ...]:
        names = tuple(self.read_bytes("class_names.txt").decode("utf-8", "replace").split())
        if len(names) != self.num_classes or not all("\ufffd" not in name and is_name(name) for name in names):
            path = self.root / "class_names.txt"
            raise DataFileError(
                f"{path} must hold {self.num_classes} names, got {shown(names)}; unpack {self.archive} again"
            )
        return names

    def _part(self, name: str, num_classes: int) -> TensorSamples:
        path = self.root / f"{name}_X.bin"
        pixels = np.frombuffer(self.read_bytes(path.name), np.uint8)
        size = int(np.prod(self.shape))
        if len(pixels) % size:
            raise DataFileError(
                f"{path} has {len(pixels)} bytes, no multiple of the {size} of an image; it is truncated or of another "
                f"format, unpack {self.archive} again"
            )
        # The files hold each channel column by column.
        images = np.ascontiguousarray(pixels.reshape(-1, *self.shape).transpose(0, 1, 3, 2))
        labels = np.frombuffer(self.read_bytes(f"{name}_y.bin"), np.uint8)
        where = self.root / f"{name}_y.bin"
        return TensorSamples(torch.from_numpy(images), checked_labels(where, labels, len(images), num_classes, first=1))


@final
class ImageFolder(HoldOutSource):
    """Image files in one folder a class, decoded when they are read: ``train/<class>/**`` and ``test/`` or ``val/``.

    Classes are the names of the folders, sorted. ``val/`` is the test part where there is no ``test/``, as for
    ImageNet, and the validation part where there is.

    A class has the images at any depth below its folder, by the suffixes that torchvision knows. Names that begin with
    a dot are passed over. A :class:`~tightframe.errors.Notice` counts and names other files that are left out: those of
    another suffix or outside the class folders, links that lead nowhere, and what may not be read.

    Every image becomes RGB, its shorter side is resized to ``resize`` pixels (bilinear) and the middle square is kept,
    so that a batch has one shape; a batch is decoded by several threads. The parts are map-style datasets of
    ``(uint8 image (3, resize, resize), int64 label)``.

    Args:
        root: the folder that holds ``train/``.
        resize: height and width of the images, in pixels.
        validation_fraction: share of ``train/`` that is set aside, the same of each class, in [0, 1).
        seed: Seed of that split; fixed by default so that all runs of a comparison share it.

    Raises:
        ArgumentError: if an argument lies outside its range, or (from :meth:`load`) a part would miss a class or there
            is a validation part already.
        DataFileError: from :meth:`load`, if a folder is missing or holds no image or parts have different classes; from
            reading a sample, if its file is no image.
        MissingExtraError: from :meth:`load`, if Pillow is not installed.
    """

    def __init__(self, root: StrPath, resize: int, validation_fraction: float = 0.0, seed: int = 0) -> None:
        check_positive("resize", resize)
        super().__init__(validation_fraction, seed)
        self.root = Path(root)
        self.resize = resize

    def _read(self) -> ClassificationData:
        require_extra("PIL.Image", "cli")
        names, train = self._part("train")
        test_name = "test" if (self.root / "test").is_dir() else "val"
        _, test = self._part(test_name, names)
        validation = None
        if test_name == "test" and (self.root / "val").is_dir():
            if self.validation_fraction:
                raise ArgumentError(
                    f"validation_fraction must be 0 where {self.root / 'val'} is the validation part, got "
                    f"{self.validation_fraction}"
                )
            _, validation = self._part("val", names)
        return ClassificationData.of(train, validation, test, train.labels, names)

    def _part(self, name: str, expected: Sequence[str] = ()) -> tuple[list[str], ImageFiles]:
        """Return the classes and the samples of a part, whose classes must be the ``expected`` ones, if any."""
        folder = self.root / name
        there = _names(folder, self.root)
        names = [name for name in there if os.path.isdir(folder / name)]
        if not names:
            raise DataFileError(f"{folder} holds no class folder; root must hold train/<class>/ and val/<class>/")
        if expected and (found := differing(names, expected)):
            raise DataFileError(f"{folder} and {self.root / 'train'} must have the same class folders, but {found}")
        paths, labels = [], []
        others = [str(folder / name) for name in there if name not in names]
        left_out = [(p, "outside the class folders" if os.path.exists(p) else "leads nowhere") for p in others]
        for label, class_name in enumerate(names):
            files, unread = _images(folder / class_name)
            if not files:
                seen = f", but {_listed(unread, folder)}" if unread else ""
                raise DataFileError(
                    f"{folder / class_name} holds no image ({', '.join(SUFFIXES)}){seen}; add its images or remove "
                    "the folder"
                )
            paths += files
            labels += [label] * len(files)
            left_out += unread
        if left_out:
            said = f"{len(paths)} images are read and {len(left_out)} files left out: {_listed(left_out, folder)}"
            warnings.warn(f"{folder}: {said}", Notice, stacklevel=4)
        return names, ImageFiles(paths, torch.tensor(labels, device="cpu"), self.resize)


@final
class ImageFiles(Dataset[tuple[Tensor, Tensor]]):
    """Image files and their labels, decoded when they are read.

    Args:
        paths: N files.
        labels: ``(N,)`` int64.
        size: height and width of the images, in pixels.
    """

    def __init__(self, paths: list[str], labels: Tensor, size: int) -> None:
        self.paths = paths
        self.labels = labels
        self.size = size

    def subset(self, indices: Tensor) -> ImageFiles:
        """Return the samples at ``indices``."""
        return ImageFiles([self.paths[i] for i in indices.tolist()], self.labels[indices], self.size)

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return _decoded(self.paths[index], self.size), self.labels[index]

    def __getitems__(self, indices: list[int]) -> list[tuple[Tensor, Tensor]]:
        """Return a batch: Pillow decodes outside Python's lock."""
        with ThreadPoolExecutor() as pool:
            return list(pool.map(self.__getitem__, indices))


def _decoded(path: str, size: int) -> Tensor:
    """Return the middle square of an image as ``(3, size, size)`` uint8."""
    image, operations = require_extra("PIL.Image", "cli"), require_extra("PIL.ImageOps", "cli")
    missing = "unpack its images again, or correct `root`"
    with reading(path, "cannot be decoded as an image", "replace or remove it", missing), image.open(path) as opened:
        square = operations.fit(opened.convert("RGB"), (size, size), image.Resampling.BILINEAR)
    return torch.from_numpy(np.array(square)).permute(2, 0, 1).contiguous()


def _images(folder: Path) -> tuple[list[str], list[tuple[str, str]]]:
    """Return the images below a folder, sorted, and all other files with why they are none; hidden ones are in neither.

    A link to a folder that was read already is left out, as it may lead around in a circle.
    """
    images: list[str] = []
    others: list[tuple[str, str]] = []
    seen: set[str] = set()

    def unreadable(error: OSError) -> None:
        others.append((str(error.filename), "may not be read"))

    for here, folders, files in os.walk(folder, onerror=unreadable, followlinks=True):
        seen.add(os.path.realpath(here))
        below = [os.path.join(here, name) for name in sorted(folders) if not name.startswith(".")]
        again = {path for path in below if os.path.islink(path) and os.path.realpath(path) in seen}
        others += [(path, "a link to a folder that was read") for path in sorted(again)]
        folders[:] = [os.path.basename(path) for path in below if path not in again]
        for name in sorted(files):
            path = os.path.join(here, name)
            if name.startswith("."):
                continue
            if not os.path.isfile(path):
                others.append((path, "leads nowhere" if os.path.islink(path) else "no file"))
            elif not name.lower().endswith(SUFFIXES):
                others.append((path, "no image"))
            elif not os.access(path, os.R_OK):
                others.append((path, "may not be read"))
            else:
                images.append(path)
    return sorted(images), others


def _listed(left_out: list[tuple[str, str]], folder: Path) -> str:
    """Return the first few files with why they are left out."""
    named = [f"{os.path.relpath(path, folder)} ({why})" for path, why in left_out[:SHOWN]]
    return ", ".join(named) + (", …" if len(left_out) > SHOWN else "")


def _names(folder: Path, root: Path) -> list[str]:
    """Return what lies in a folder, hidden entries left out."""
    try:
        return sorted(name for name in os.listdir(folder) if not name.startswith("."))
    except OSError as error:
        raise DataFileError(
            f"{folder} is no folder that can be read; root = {root} must hold train/<class>/ and test/ or val/<class>/"
        ) from error
