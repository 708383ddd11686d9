"""Data loaders whose order depends on seed and epoch alone, on any number of ranks."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset, Sampler, SequentialSampler, TensorDataset

from tightframe.errors import EmptyDataError, check_positive


class BatchSampler(Sampler[list[int]]):
    """Batches of indices, shuffled by ``(seed, epoch)`` or in order; each rank takes its share of every batch.

    The union of what the ranks take is the batch that a single process takes, so a run means the same on any number of
    ranks, and it can be resumed at any epoch without stored state. A last incomplete batch is kept when in order and
    dropped when shuffled, unless it is the only one; a rank whose share of it is empty goes without.

    Args:
        size: Number of samples.
        batch_size: Samples of a batch, over all ranks together.
        seed: Seed of the shuffle; None keeps the order.
        rank: Rank of this process.
        world_size: Number of processes.
    """

    def __init__(self, size: int, batch_size: int, seed: int | None = None, rank: int = 0, world_size: int = 1) -> None:
        check_positive("batch_size", batch_size, minimum=world_size)
        self.size = size
        self.batch_size = batch_size
        self.seed = seed
        self.rank = rank
        self.world_size = world_size
        self.epoch = 0
        self.sampler = self  # where Lightning looks for set_epoch

    def set_epoch(self, epoch: int) -> None:
        """Choose the order of the next iteration."""
        self.epoch = epoch

    def __len__(self) -> int:
        whole, rest = divmod(self.size, self.batch_size)
        incomplete = rest > self.rank and (self.seed is None or whole == 0)
        return whole + incomplete

    def __iter__(self) -> Iterator[list[int]]:
        order = torch.arange(self.size, device="cpu")
        if self.seed is not None:
            generator = torch.Generator("cpu").manual_seed(self.seed * 1_000_003 + self.epoch)
            order = torch.randperm(self.size, generator=generator, device="cpu")
        for batch in order.split(self.batch_size)[: len(self)]:
            yield batch[self.rank :: self.world_size].tolist()


class Loader(DataLoader[Any]):
    """A ``DataLoader`` that draws the seed of its workers on the CPU, whatever PyTorch's default device is."""

    def __iter__(self) -> Any:
        with torch.device("cpu"):
            return super().__iter__()


class InOrder(BatchSampler, SequentialSampler):  # type: ignore[misc]  # it yields lists where that one has numbers
    """A sampler in order that Lightning recognises: under ``overfit_batches`` Lightning replaces any other."""


def make_loader(
    dataset: Dataset[Any],
    batch_size: int,
    *,
    seed: int | None = None,
    rank: int = 0,
    world_size: int = 1,
    **options: Any,
) -> DataLoader[Any]:
    """Return a loader over a map-style dataset; for the arguments see :class:`BatchSampler`.

    A :class:`TensorDataset` is indexed a batch at a time instead of sample by sample.

    Args:
        dataset: Data set of ``(input, label)``.
        batch_size: Samples of a batch, over all ranks together.
        seed: Seed of the shuffle; None keeps the order.
        rank: Rank of this process.
        world_size: Number of processes.
        options: Further arguments of ``DataLoader``, such as ``num_workers``.

    Raises:
        EmptyDataError: if the dataset is empty.
    """
    size = len(dataset)  # type: ignore[arg-type]  # map-style datasets are sized
    if size == 0:
        raise EmptyDataError("dataset must hold at least one sample, got none")
    sampler = (InOrder if seed is None else BatchSampler)(size, batch_size, seed, rank, world_size)
    if type(dataset) is TensorDataset:  # a subclass may look at its samples one by one
        return Loader(dataset, batch_size=None, sampler=sampler, **options)
    return Loader(dataset, batch_sampler=sampler, **options)


def evaluation_loader(loader: Any, batch_size: int, rank: int = 0, world_size: int = 1) -> Any:
    """Return a loader that visits the samples behind a loader of :func:`make_loader` once, in order.

    Any other loader is returned as it is: its sampler, workers and hooks may do anything.
    """
    if not isinstance(loader, DataLoader):
        return loader
    sampler = loader.sampler if loader.batch_sampler is None else loader.batch_sampler
    if not isinstance(sampler, BatchSampler):
        return loader
    size = max(batch_size, world_size)
    options: dict[str, Any] = {"num_workers": loader.num_workers, "collate_fn": loader.collate_fn}
    return make_loader(loader.dataset, size, rank=rank, world_size=world_size, **options)
