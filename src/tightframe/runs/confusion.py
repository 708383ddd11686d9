"""Confusion: the pairs of label and prediction in one evaluation, and how often each occurred."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from tightframe.errors import DataFileError
from tightframe.files import read_tensors, write_tensors
from tightframe.runs.layout import CONFUSION_FILES


@dataclass(frozen=True)
class Confusion:
    """Every pair of label and prediction that occurred, correct ones included, with its number of samples.

    Its size is that of the pairs, of which there are no more than samples; it does not grow with K².

    Args:
        epoch: Number of completed epochs.
        pairs: Labels and predictions ``(P, 2)``, int64, no pair twice.
        counts: Numbers of samples ``(P,)`` of each pair, int64, >= 1.
    """

    epoch: int
    pairs: Tensor
    counts: Tensor

    def save(self, directory: str | os.PathLike[str], split: str) -> Path:
        """Write ``confusion-<split>.safetensors`` into ``directory``, whole or not at all."""
        path = Path(directory) / CONFUSION_FILES.replace("*", split)
        write_tensors(path, {"pairs": self.pairs, "counts": self.counts}, {"epoch": str(self.epoch)})
        return path

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Confusion:
        """Read a file that :meth:`save` wrote.

        Raises:
            DataFileError: if the file is missing, truncated or something else.
        """
        tensors, metadata = read_tensors(path, "a confusion")
        try:
            epoch, pairs, counts = int(metadata["epoch"]), tensors["pairs"], tensors["counts"]
        except (KeyError, ValueError) as error:
            raise DataFileError(f"{path} is not a confusion: {error!r}") from error
        integers = pairs.dtype == counts.dtype == torch.int64
        if not integers or counts.ndim != 1 or pairs.shape != (len(counts), 2):
            raise DataFileError(
                f"{path} is not a confusion: pairs must be (P, 2) and counts (P,), int64, "
                f"got {tuple(pairs.shape)} {pairs.dtype} and {tuple(counts.shape)} {counts.dtype}"
            )
        if (pairs < 0).any() or (counts < 1).any() or len(set(map(tuple, pairs.tolist()))) < len(pairs):
            raise DataFileError(f"{path} is not a confusion: classes must be >= 0, counts >= 1, and no pair twice")
        return cls(epoch, pairs, counts)
