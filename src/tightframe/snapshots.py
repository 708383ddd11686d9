"""Snapshot: the geometry of one layer at one moment, small enough to keep for every epoch and draw later."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from tightframe._checks import DataFileError


@dataclass(frozen=True)
class Snapshot:
    """Class means, class vectors and some features of one layer after one epoch.

    Args:
        epoch: completed epochs.
        class_means: ``(K, d)`` means of the training features, not centred; a row of nan is an absent class.
        class_vectors: ``(K, d)`` rows of the classifier's weight.
        features: ``(n, d)`` the features of a fixed sample of the training set.
        labels: ``(n,)`` their labels.
    """

    epoch: int
    class_means: Tensor
    class_vectors: Tensor
    features: Tensor
    labels: Tensor

    def save(self, directory: str | os.PathLike[str]) -> Path:
        """Write ``epoch-00012.safetensors`` into ``directory``, whole or not at all."""
        from safetensors.torch import save_file

        path = Path(directory) / f"epoch-{self.epoch:05d}.safetensors"
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix(".partial")
        tensors = {
            name: getattr(self, name).detach().cpu().clone(memory_format=torch.contiguous_format) for name in TENSORS
        }
        save_file(tensors, partial, metadata={"epoch": str(self.epoch)})
        os.replace(partial, path)
        return path

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Snapshot:
        """Read one file that :meth:`save` wrote.

        Raises:
            DataFileError: if it is missing, truncated or something else.
        """
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(path, framework="pt") as file:
                epoch = int((file.metadata() or {})["epoch"])
                return cls(epoch, **{name: file.get_tensor(name) for name in TENSORS})
        except (OSError, SafetensorError, KeyError, ValueError) as error:
            raise DataFileError(f"{path} is not a snapshot: {error}") from error


TENSORS = ("class_means", "class_vectors", "features", "labels")
