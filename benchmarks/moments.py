"""ClassMoments against the least that any single pass in float64 must do."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from benchmarks._timing import Row, one_thread, race, report
from tightframe.moments import ClassMoments


class Samples(NamedTuple):
    features: Tensor
    labels: Tensor
    num_classes: int
    batch: int = 256

    def batches(self) -> list[tuple[Tensor, Tensor]]:
        return list(zip(self.features.split(self.batch), self.labels.split(self.batch), strict=True))


def draw(N: int, d: int, K: int) -> Samples:
    """Float32 features about random class means."""
    generator = torch.Generator().manual_seed(0)
    means = torch.randn(K, d, generator=generator)
    labels = torch.randint(K, (N,), generator=generator)
    return Samples(means[labels] + torch.randn(N, d, generator=generator), labels, K)


def ours(samples: Samples, scatter: bool) -> Callable[[], ClassMoments]:
    batches = samples.batches()

    def call() -> ClassMoments:
        moments = ClassMoments(samples.num_classes, samples.features.shape[1], scatter=scatter)
        for h, y in batches:
            moments.update(h, y)
        moments.mean  # noqa: B018  # reading finishes the sums
        return moments

    return call


def bare_sums(samples: Samples) -> Callable[[], Tensor]:
    batches = samples.batches()

    def call() -> Tensor:
        sums = torch.zeros(samples.num_classes, samples.features.shape[1], dtype=torch.float64)
        for h, y in batches:
            sums.index_add_(0, y, h.double())
        return sums

    return call


def bare_products(samples: Samples) -> Callable[[], Tensor]:
    batches = samples.batches()

    def call() -> Tensor:
        products = torch.zeros(samples.features.shape[1], samples.features.shape[1], dtype=torch.float64)
        for h, _ in batches:
            wide = h.double()
            products.addmm_(wide.T, wide)
        return products

    return call


def run(N: int = 20_000, d: int = 512, classes: tuple[int, ...] = (10, 100, 1000), rounds: int = 5) -> list[Row]:
    rows = []
    for K in classes:
        samples = draw(N, d, K)
        rows.append(
            race(ours(samples, False), bare_sums(samples), 3 * rounds).costlier(
                f"moments, K = {K}; peer: index_add_ of float64 features", at_most=3
            )
        )
    for K in classes:
        samples = draw(N, d, K)
        rows.append(
            race(ours(samples, True), bare_products(samples), rounds).costlier(
                f"with scatter, K = {K}; peer: float64 XᵀX", at_most=1.3
            )
        )
    return rows


TINY = {"N": 600, "d": 16, "classes": (3,), "rounds": 1}


def main() -> None:
    one_thread()
    report("ClassMoments: N = 20000, d = 512, batches of 256", run())


if __name__ == "__main__":
    main()
