"""Features of samples kept for a second look: in memory, else in a mapped file, else not at all."""

from __future__ import annotations

import contextlib
import tempfile
import warnings
from collections.abc import Iterator, Mapping
from typing import IO, Any

import numpy as np
import torch
from torch import Tensor

from tightframe.errors import Notice

ALIGNED = 64  # bytes at whose multiples every tensor begins in the file


class Held:
    """Batches of tensors kept for a second look.

    Args:
        hold_bytes: Memory to keep them in.
        spill_bytes: Size of a temporary file that holds them when they take more memory.

    Attributes:
        complete: Whether every batch was kept; after the first that does not fit, none is.

    Example:
        >>> held = Held(hold_bytes=0, spill_bytes=100)
        >>> held.add({"features": torch.ones(2, 3), "labels": torch.tensor([0, 1])})
        >>> [batch["labels"].tolist() for batch in held]
        [[0, 1]]
    """

    def __init__(self, hold_bytes: int, spill_bytes: int) -> None:
        self.complete = True
        self._memory, self._disk = hold_bytes, spill_bytes
        self._batches: list[dict[Any, Tensor]] = []
        self._file: IO[bytes] | None = None
        self._layout: list[dict[Any, tuple[int, torch.dtype, torch.Size]]] = []
        self._end = 0

    def add(self, batch: Mapping[Any, Tensor]) -> None:
        """Keep a batch, if it fits and all before it were kept."""
        if not self.complete:
            return
        batch = {name: _alone(tensor) for name, tensor in batch.items()}
        self._memory -= _size(batch)
        self._batches.append(batch)
        if self._memory >= 0:
            return
        if self._file is None and self._disk:
            warnings.warn("features take more than hold_bytes: they go to a temporary file", Notice, stacklevel=2)
        waiting, self._batches = self._batches, []
        for kept in waiting:
            if self.complete:
                self._write(kept)

    def _write(self, batch: dict[Any, Tensor]) -> None:
        try:
            if self._end + _size(batch) > self._disk:
                raise OSError(f"they take more than spill_bytes={self._disk}")
            if self._file is None:
                self._file = tempfile.TemporaryFile()  # noqa: SIM115  # it is closed with what it holds
            places = {}
            for name, tensor in batch.items():
                places[name] = self._end, tensor.dtype, tensor.shape
                self._file.write(tensor.reshape(-1).view(torch.uint8).numpy().data)
                padding = -tensor.nbytes % ALIGNED
                self._file.write(bytes(padding))
                self._end += tensor.nbytes + padding
            self._file.flush()  # a full disk may show only here
            self._layout.append(places)
        except OSError as error:
            self.complete = False
            self.close()
            warnings.warn(f"features are not kept for a second look ({error}): one more pass", Notice, stacklevel=2)

    def __iter__(self) -> Iterator[dict[Any, Tensor]]:
        yield from self._batches
        if self._file is None or not self._end:
            return
        for places in self._layout:
            # Each batch is mapped alone, and released before the next.
            yield {
                name: torch.from_numpy(np.memmap(self._file, np.uint8, "c", start, (shape.numel() * dtype.itemsize,)))
                .view(dtype)
                .view(shape)
                for name, (start, dtype, shape) in places.items()
            }

    def close(self) -> None:
        """Forget everything."""
        self._batches, self._layout = [], []
        if self._file is not None:
            with contextlib.suppress(OSError):  # of bytes that could not be written
                self._file.close()
            self._file = None


def _size(batch: Mapping[Any, Tensor]) -> int:
    return sum(tensor.nbytes for tensor in batch.values())


def _alone(tensor: Tensor) -> Tensor:
    """Return a contiguous copy on the CPU: other tokens of a sample are not kept, and loaders may reuse memory."""
    return tensor.to("cpu", copy=True, memory_format=torch.contiguous_format)
