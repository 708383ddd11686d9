"""ClassMoments against the least that any single pass in float64 must do."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from benchmarks._timing import Row, batches_of, race, samples
from tightframe.moments import ClassMoments

TITLE = "ClassMoments: N = 20000, d = 512, batches of 256"
TINY = {"N": 600, "d": 16, "classes": (3,), "rounds": 1}
Batches = list[tuple[Tensor, Tensor]]


def gathered(batches: Batches, d: int, K: int, scatter: bool) -> ClassMoments:
    moments = ClassMoments(K, d, scatter=scatter)
    for h, y in batches:
        moments.update(h, y)
    moments.mean  # noqa: B018  # reading finishes the sums
    return moments


def bare_sums(batches: Batches, d: int, K: int) -> Tensor:
    sums = torch.zeros(K, d, dtype=torch.float64)
    for h, y in batches:
        sums.index_add_(0, y, h.double())
    return sums


def bare_products(batches: Batches, d: int) -> Tensor:
    products = torch.zeros(d, d, dtype=torch.float64)
    for h, _ in batches:
        wide = h.double()
        products.addmm_(wide.T, wide)
    return products


def run(N: int = 20_000, d: int = 512, classes: tuple[int, ...] = (10, 100, 1000), rounds: int = 5) -> list[Row]:
    rows, with_scatter = [], []
    for K in classes:
        batches = batches_of(*samples(N, d, K))
        ours = partial(gathered, batches, d, K)
        sums = race(partial(ours, False), partial(bare_sums, batches, d, K), 3 * rounds)
        rows.append(sums.costlier(f"moments, K = {K}; peer: index_add_ of float64 features", 3))
        products = race(partial(ours, True), partial(bare_products, batches, d), rounds)
        with_scatter.append(products.costlier(f"with scatter, K = {K}; peer: float64 XᵀX", 1.3))
    return rows + with_scatter
