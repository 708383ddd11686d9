"""Feature dumps: features and labels in npz, safetensors or parquet files, streamed, mapped or loaded."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor
from torch.utils.data import ConcatDataset, Dataset

from tightframe.data._shards import CHUNK, FORMATS, MOST_CLASSES, Shard, format_of, gathered
from tightframe.data.base import ClassificationData, DataSource, StrPath
from tightframe.errors import (
    ArgumentError,
    DataFileError,
    DtypeError,
    EmptyDataError,
    LabelError,
    check_features,
    check_finite,
    check_labels,
    check_positive,
    check_range,
)
from tightframe.files import reading, written_whole

# Classes that labels may stand for, however few the samples, where nobody says how many there are.
GUESSED_CLASSES = 2**16


class FeatureFile:
    """Features ``(N, d)`` and labels ``(N,)`` in one file, or in shards that follow each other.

    ``.npz`` holds two arrays, ``.safetensors`` two tensors, ``.parquet`` (extra ``hf``) a column of lists of d floats
    and one of integers. Opening reads the headers alone and keeps no file open. Values are checked as they are read:
    labels when a pass over a file begins, features batch by batch.

    Args:
        path: a file, a directory (all files of one format in it, by name), or a sequence of files in the order given.
        features_key: name of the features in each file.
        labels_key: name of the labels in each file.

    Raises:
        ArgumentError: if the sequence of files is empty.
        DataFileError: if a file is missing, damaged, of another suffix or lacks a key (the message lists those it has),
            if features and labels differ in length, or if shards differ in format or width.
        DtypeError: if features are no floating-point or labels no integer numbers.
        ShapeError: if features are not ``(N, d)`` or labels not ``(N,)``.
        EmptyDataError: if a file holds no sample.
    """

    def __init__(
        self, path: StrPath | Sequence[StrPath], features_key: str = "features", labels_key: str = "labels"
    ) -> None:
        paths = _expand(path)
        if len({each.suffix for each in paths}) > 1:
            raise DataFileError(f"shards must be of one format, got {', '.join(map(str, paths))}")
        self._shards = [format_of(each)(each, features_key, labels_key) for each in paths]
        for shard in self._shards:
            if shard.dim != self.dim:
                raise DataFileError(
                    f"{shard.path} has width d = {shard.dim} but {paths[0]} has {self.dim}; shards must agree"
                )

    def __len__(self) -> int:
        return sum(shard.rows for shard in self._shards)

    def __repr__(self) -> str:
        more = f" and {len(self._shards) - 1} more" if len(self._shards) > 1 else ""
        return f"FeatureFile({str(self._shards[0].path)!r}{more}, N={len(self)}, d={self.dim})"

    @property
    def dim(self) -> int:
        """The width d."""
        return self._shards[0].dim

    @cached_property
    def num_classes(self) -> int:
        """The largest label plus one, from one pass over the labels alone.

        Raises:
            DataFileError: if a file is damaged.
            LabelError: if a label is negative, or beyond any class.
        """
        return max(int(shard.labels().max()) for shard in self._shards) + 1

    def batches(self, batch_size: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Stream features ``(B, d)`` in the file's dtype and int64 labels ``(B,)``, holding one shard's labels.

        ``B`` is at most ``batch_size``: batches do not reach across shards. One kind of file is held whole instead:
        a compressed npz whose features are in Fortran order.

        Raises:
            ArgumentError: if ``batch_size`` is not a positive integer.
            DataFileError: if a file is damaged.
            LabelError: if a label is negative, or beyond any class.
            NonFiniteError: on the first batch with NaN or infinite features.
        """
        check_positive("batch_size", batch_size)
        return (batch for shard in self._shards for batch in shard.batches(batch_size))

    def load(self) -> tuple[Tensor, Tensor]:
        """Read everything into memory: features ``(N, d)`` and int64 labels ``(N,)``; raises as :meth:`batches`."""
        return gathered(self._shards)

    def dataset(self) -> Dataset[tuple[Tensor, Tensor]]:
        """Return a map-style dataset of ``(float32 feature (d,), int64 label)``, after one pass that checks all values.

        Safetensors and uncompressed npz (``numpy.savez``) files are mapped into memory, so they may exceed it; parquet
        and compressed npz files are loaded. Raises as :meth:`batches`.
        """
        return ConcatDataset([_Rows(shard) for shard in self._shards])

    def _class_counts(self, num_classes: int) -> Tensor:
        return torch.stack([shard.labels().bincount(minlength=num_classes) for shard in self._shards]).sum(0)


class FeatureFiles(DataSource):
    """Feature dumps as the parts of a classification problem, to train a classifier on frozen features.

    Args:
        train: a :class:`FeatureFile`, or the path of one with the default keys.
        test: the same.
        validation: the same, or None.
        num_classes: K, at most 2^31; None takes the largest label of all parts plus one, at most the number of their
            samples or 65,536, whichever is larger.

    Raises:
        ArgumentError: if ``num_classes`` lies outside its range.
    """

    def __init__(
        self,
        train: FeatureFile | StrPath,
        test: FeatureFile | StrPath,
        validation: FeatureFile | StrPath | None = None,
        num_classes: int | None = None,
    ) -> None:
        if num_classes is not None:
            check_positive("num_classes", num_classes)
            check_range("num_classes", num_classes, num_classes <= MOST_CLASSES, f"at most {MOST_CLASSES}")
        self.train = train
        self.test = test
        self.validation = validation
        self.num_classes = num_classes

    def load(self) -> ClassificationData:
        """Read every file once, checking its values, and return map-style datasets (:meth:`FeatureFile.dataset`).

        Raises:
            DataFileError: if the parts differ in width, and as :class:`FeatureFile`.
            LabelError: if a label is negative, not below ``num_classes``, or far beyond the number of samples.
            NonFiniteError: if features are NaN or infinite.
        """
        given = {"train": self.train, "test": self.test, "validation": self.validation}
        parts = {
            name: part if isinstance(part, FeatureFile) else FeatureFile(part)
            for name, part in given.items()
            if part is not None
        }
        samples = sum(map(len, parts.values()))
        most = self.num_classes or max(GUESSED_CLASSES, samples)
        for name, part in parts.items():
            if part.dim != parts["train"].dim:
                raise DataFileError(f"{name} {part} and train {parts['train']} must have the same width d")
            if part.num_classes > most:
                known = f"num_classes={most}" if self.num_classes else f"{samples} samples in all and no num_classes"
                raise LabelError(
                    f"{name} {part} has label {part.num_classes - 1} but labels must lie in 0..{most - 1} ({known}); "
                    "raise num_classes or correct the file"
                )
        num_classes = self.num_classes or max(part.num_classes for part in parts.values())
        datasets = {name: part.dataset() for name, part in parts.items()}
        return ClassificationData(
            train=datasets["train"],
            validation=datasets.get("validation"),
            test=datasets["test"],
            num_classes=num_classes,
            class_names=tuple(map(str, range(num_classes))),
            class_counts=parts["train"]._class_counts(num_classes),
        )


def write_features(path: StrPath, features: Tensor, labels: Tensor) -> Path:
    """Write features and labels to a file that :class:`FeatureFile` reads; an existing file is replaced whole or not.

    Args:
        path: ends in ``.npz`` (uncompressed), ``.safetensors`` or ``.parquet`` (extra ``hf``).
        features: ``(N, d)`` floating-point, finite; no bfloat16 unless in safetensors.
        labels: ``(N,)`` integers in 0..2^31 - 1.

    Raises:
        DataFileError: if the suffix is another.
        DtypeError, ShapeError, DeviceError, EmptyDataError, LabelError, NonFiniteError: if a tensor is not as above.
        OutputError: if the file cannot be written.

    Example:
        >>> import tempfile, torch
        >>> with tempfile.TemporaryDirectory() as directory:
        ...     path = write_features(f"{directory}/layer4.npz", torch.ones(3, 2), torch.tensor([0, 2, 2]))
        ...     file = FeatureFile(path)
        ...     len(file), file.dim, file.num_classes
        (3, 2, 3)
    """
    path = Path(path)
    form = format_of(path)
    check_features(features)
    check_labels(labels, features)
    if features.dtype not in form.writable:
        raise DtypeError(
            f"features must be one of {', '.join(map(str, form.writable))} in a {path.suffix} file, got "
            f"{features.dtype}; pass features.float()"
        )
    if not features.numel():
        raise EmptyDataError(f"features must hold at least one number, got shape {tuple(features.shape)}")
    check_finite(features)
    wrong = labels[(labels < 0) | (labels.long() >= MOST_CLASSES)]
    if len(wrong):
        raise LabelError(f"labels must lie in 0..{MOST_CLASSES - 1}, got {int(wrong[0])}; leave such samples out")
    with written_whole(path) as partial:
        form.write(partial, features.detach().cpu(), labels.cpu().long())
    return path


class _Rows(Dataset[tuple[Tensor, Tensor]]):
    """Rows of one shard in memory or, where its format allows, in a memory map."""

    def __init__(self, shard: Shard) -> None:
        self._shard = shard
        self._features = shard.mapped()
        self._mapped = self._features is not None
        if self._mapped:
            self._labels = shard.labels()
            for _ in shard.batches(CHUNK):
                pass
        else:
            self._features, self._labels = gathered([shard])

    def __getstate__(self) -> dict[str, Any]:
        # A worker process opens a map itself: a pickled one would be a copy of the whole file.
        return {**self.__dict__, "_features": None} if self._mapped else self.__dict__

    def __len__(self) -> int:
        return self._shard.rows

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        if self._features is None:
            self._features = cast(Tensor, self._shard.mapped())
        return self._features[index].float(), self._labels[index]


def _expand(path: StrPath | Sequence[StrPath]) -> list[Path]:
    """Return the files that a path, a directory or a sequence of paths stands for."""
    if isinstance(path, str | os.PathLike):
        paths = [Path(path)]
        if paths[0].is_dir():
            with reading(path, "cannot be read", "check its rights"):
                paths = sorted(each for each in paths[0].iterdir() if each.suffix in FORMATS)
            if not paths:
                raise DataFileError(f"{path} is a directory without a file ending in one of {', '.join(FORMATS)}")
    else:
        paths = [Path(each) for each in path]
    if not paths:
        raise ArgumentError("path must name at least one file, got an empty sequence")
    for each in paths:
        if not each.is_file():
            raise DataFileError(f"{each} does not exist or is no file; check the path")
    return paths
