"""Metrics that look at all pairs of classes: their peak memory, and the time of CDNV against the untiled form."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from benchmarks._timing import Row, extra_memory, leaner, race, samples
from tightframe import functional as F
from tightframe.moments import ClassMoments

TITLE = "All pairs of classes, d = 512"
TINY = {"K": 9, "many": 12, "d": 8, "rounds": 1}
OF_MEANS = ("nc2_equiangularity", "nc2_max_angle", "nc2_gram", "nc2_min_separation", "gnc2", "cdnv")
WITH_ROWS = ("nc3_gram", "frame_cosine_error")


def draw(K: int, d: int) -> ClassMoments:
    moments = ClassMoments.from_samples(*samples(2 * K, d, K), K, scatter=False)
    moments.mean  # noqa: B018  # reading finishes the sums
    return moments


def tiled(name: str, K: int, d: int) -> Callable[[], Tensor]:
    metric, moments, rows = getattr(F, name), draw(K, d), torch.ones(K, d)
    rows[:, 0] = torch.arange(K)
    return lambda: metric(moments, rows) if name in WITH_ROWS else metric(moments)


def untiled(K: int, d: int) -> Callable[[], Tensor]:
    """Return CDNV in float32 from the differences of all pairs of class means at once, as published code has it."""
    moments = draw(K, d)
    means, variances = moments.mean.float(), (moments.trace / moments.count).float()

    def call() -> Tensor:
        squares = (means.unsqueeze(1) - means.unsqueeze(0)).square().sum(dim=2)
        ratios = (variances.unsqueeze(1) + variances) / (2 * squares)
        return ratios[~torch.eye(K, dtype=torch.bool)].mean()

    return call


def run(K: int = 1000, many: int = 6000, d: int = 512, rounds: int = 3) -> list[Row]:
    ours, theirs = tiled("cdnv", K, d), untiled(K, d)
    torch.testing.assert_close(ours().float(), theirs(), rtol=1e-4, atol=0)  # the two mean the same
    name = f"cdnv, K = {K}, d = {d}; peer: untiled pairs, float32"
    peaks = extra_memory(tiled, ("cdnv", 8, 8), ("cdnv", K, d)), extra_memory(untiled, (8, 8), (K, d))
    rows = [
        race(ours, theirs, rounds).faster(f"time of {name}", 20),
        leaner(f"peak extra memory of {name}", *peaks, 1 / 50),
    ]
    matrix = 8.0 * many**2
    for metric in (*OF_MEANS, *WITH_ROWS):
        peak = extra_memory(tiled, (metric, 9, 8), (metric, many, d))
        rows.append(
            leaner(f"peak extra memory of {metric}, K = {many}; peer: one float64 K x K matrix", peak, matrix, 0.69)
        )
    return rows
