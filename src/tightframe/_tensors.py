"""Files of a few tensors and an epoch: written whole or not at all, refused if they are something else."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from tightframe.errors import DataFileError


def write_tensors(path: Path, tensors: Mapping[str, Tensor], epoch: int) -> Path:
    """Write a safetensors file in place of the one that is there, if any; its folder is created."""
    from safetensors.torch import save_file

    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    apart = {name: t.detach().cpu().clone(memory_format=torch.contiguous_format) for name, t in tensors.items()}
    # safetensors puts several keys of metadata in random order: with one, equal contents are equal files.
    save_file(apart, partial, metadata={"epoch": str(epoch)})
    os.replace(partial, path)
    return path


def read_tensors(path: str | os.PathLike[str], names: Sequence[str], what: str) -> tuple[int, list[Tensor]]:
    """Return the epoch and the named tensors of a file that :func:`write_tensors` wrote.

    Raises:
        DataFileError: if it is missing, truncated or something else.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            return int((file.metadata() or {})["epoch"]), [file.get_tensor(name) for name in names]
    except (OSError, SafetensorError, KeyError, ValueError) as error:
        raise DataFileError(f"{path} is not {what}: {error}") from error
