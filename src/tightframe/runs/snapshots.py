"""Snapshot: the geometry of one layer at one moment, small enough to keep for every epoch."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from tightframe.errors import DataFileError
from tightframe.files import read_tensors, write_tensors


@dataclass(frozen=True)
class Snapshot:
    """Class means, class vectors and some features of one layer after one epoch.

    Args:
        epoch: Number of completed epochs.
        class_means: Means ``(K, d)`` of the training features, not centred; a row of nan is an absent class.
        class_vectors: Rows ``(K, d)`` of the classifier's weight.
        features: Features ``(n, d)`` of a fixed sample of the training set.
        labels: Labels ``(n,)`` of these features.
    """

    epoch: int
    class_means: Tensor
    class_vectors: Tensor
    features: Tensor
    labels: Tensor

    def save(self, directory: str | os.PathLike[str]) -> Path:
        """Write ``epoch-00012.safetensors`` into ``directory``, whole or not at all."""
        path = Path(directory) / f"epoch-{self.epoch:05d}.safetensors"
        tensors = {"class_means": self.class_means, "class_vectors": self.class_vectors}
        write_tensors(path, {**tensors, "features": self.features, "labels": self.labels}, {"epoch": str(self.epoch)})
        return path

    @classmethod
    def check(cls, path: str | os.PathLike[str]) -> None:
        """Raise :class:`DataFileError` unless the beginning of a file is that of a snapshot."""
        names, metadata = read_tensors(path, "a snapshot", header=True)
        if {"epoch", *names} != set(cls.__dataclass_fields__) or not metadata.get("epoch", "").isdecimal():
            raise DataFileError(f"{path} is not a snapshot: it holds {', '.join(names)}")

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Snapshot:
        """Read a file that :meth:`save` wrote.

        Raises:
            DataFileError: if the file is missing, truncated or something else.
        """
        tensors, metadata = read_tensors(path, "a snapshot")
        try:
            found = cls(int(metadata["epoch"]), **tensors)
        except (KeyError, TypeError, ValueError) as error:
            raise DataFileError(f"{path} is not a snapshot: {error!r}") from error
        means, vectors, features, labels = found.class_means, found.class_vectors, found.features, found.labels
        rows, widths = (means, vectors, features), {t.shape[1:] for t in (means, vectors, features)}
        floating = all(t.ndim == 2 and t.is_floating_point() for t in rows) and len(widths) == 1
        whole = labels.dtype == torch.int64 and labels.shape == features.shape[:1] and len(means) == len(vectors)
        if not (floating and whole and bool(((labels >= 0) & (labels < len(means))).all())):
            shapes = ", ".join(f"{name} {tuple(t.shape)} {t.dtype}" for name, t in tensors.items())
            raise DataFileError(f"{path} is not a snapshot: it holds {shapes}")
        return found
