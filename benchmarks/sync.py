"""Synchronising NeuralCollapse between two ranks: all_reduce in place against torchmetrics' gather and stack."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torchmetrics import Metric

from benchmarks._timing import Race, Row, leaner, peak_of_call, seconds
from tightframe.metrics import NeuralCollapse
from tightframe.moments import ClassMoments

TINY = {"sync": {"K": 4, "d": 3, "rounds": 1}}


class Gathered(NeuralCollapse):
    """The same state, synchronised as torchmetrics does by default."""

    _sync_dist = Metric._sync_dist


def filled(kind: type[NeuralCollapse], K: int, d: int) -> NeuralCollapse:
    """Return a metric that has seen samples of its rank."""
    metric = kind(K, d)
    rank = dist.get_rank()
    generator = torch.Generator().manual_seed(rank)
    for labels in torch.arange(K).split(32):  # few at a time, as the buffers for a batch would blur the account
        metric.update(torch.randn(labels.numel(), d, generator=generator) + rank, labels)
    metric.moments.mean  # noqa: B018  # reading finishes the sums
    return metric


def there_and_back(metric: NeuralCollapse) -> Callable[[], None]:
    def call() -> None:
        dist.barrier()
        metric.sync()
        metric.unsync()

    return call


def check(K: int, d: int) -> None:
    """Raise unless both ways leave the same moments."""
    states = []
    for kind in (NeuralCollapse, Gathered):
        metric = filled(kind, K, d)
        metric.sync()
        states.append(metric.moments.packed)
    torch.testing.assert_close(*states, rtol=1e-12, atol=1e-12)


def timed(K: int, d: int, rounds: int) -> Race:
    check(8, 8)
    calls = [there_and_back(filled(kind, K, d)) for kind in (NeuralCollapse, Gathered)]
    for call in calls:
        call()
    pairs = ([seconds(call, clock=time.perf_counter) for call in calls] for _ in range(rounds))
    return Race(*zip(*pairs, strict=True))


def peak(kind: type[NeuralCollapse], K: int, d: int) -> float:
    there_and_back(filled(kind, 8, 8))()
    return peak_of_call(filled(kind, K, d).sync)


def two_ranks(task: Callable[..., Any], *args: Any) -> list[Any]:
    """Return what ``task(*args)`` gives on each of two ranks, both fresh processes."""
    with tempfile.TemporaryDirectory() as folder, ProcessPoolExecutor(2, mp_context=get_context("spawn")) as pool:
        store = (Path(folder) / "store").as_uri()
        results = [pool.submit(on_rank, rank, 2, store, task, *args) for rank in range(2)]
        return [result.result() for result in results]


def on_rank(rank: int, size: int, store: str, task: Callable[..., Any], *args: Any) -> Any:
    dist.init_process_group("gloo", init_method=store, rank=rank, world_size=size)
    try:
        return task(*args)
    finally:
        dist.destroy_process_group()


def sync(K: int = 1000, d: int = 1024, rounds: int = 7) -> list[Row]:
    """Syncing NeuralCollapse between two gloo ranks: K = 1000, d = 1024, with scatter."""
    race = two_ranks(timed, K, d, rounds)[0]
    mine, theirs = (max(two_ranks(peak, kind, K, d)) for kind in (NeuralCollapse, Gathered))
    name, state = "peak extra memory of a rank; peer:", 8 * ClassMoments.packed_size(K, d, scatter=True)
    return [
        race.faster("time of sync and unsync; peer: all_gather + stack"),
        leaner(f"{name} all_gather + stack", mine, theirs),
        leaner(f"{name} the state", mine, state, 2),
    ]
