"""ClassMoments against the least that any single pass in float64 must do, and against a mixed-precision scatter."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from benchmarks._timing import Row, one_thread, race, report
from tightframe.functional import nc1
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


def with_loud_direction(samples: Samples) -> Samples:
    """Add noise 10^3 times as large along one direction, in which the class means do not differ."""
    noise = 1e3 * torch.randn(samples.labels.numel(), generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    for k in range(samples.num_classes):
        noise[samples.labels == k] -= noise[samples.labels == k].mean()
    direction = torch.ones(samples.features.shape[1], dtype=torch.float64)
    direction /= torch.linalg.vector_norm(direction)
    quiet = samples.features.double()
    loud = torch.outer(noise - quiet @ direction, direction)
    return samples._replace(features=(quiet + loud).float())


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


def mixed(samples: Samples) -> Callable[[], tuple[ClassMoments, Tensor]]:
    """Moments as ours, but the scatter from float32 products of centred batches, summed in float64."""
    batches = samples.batches()
    origin = torch.zeros(samples.num_classes, samples.features.shape[1])
    origin[samples.labels.flip(0)] = samples.features.flip(0)  # one sample of each class, as ClassMoments takes it

    def call() -> tuple[ClassMoments, Tensor]:
        moments = ClassMoments(samples.num_classes, samples.features.shape[1])
        products = torch.zeros(samples.features.shape[1], samples.features.shape[1], dtype=torch.float64)
        for h, y in batches:
            moments.update(h, y)
            centered = h - origin[y]
            products += centered.T @ centered
        gap = (moments.mean - origin) * moments.count.sqrt().unsqueeze(1)
        return moments, products.addmm_(gap.T, gap, alpha=-1)

    return call


def errors(samples: Samples) -> tuple[tuple[float, float], tuple[float, float]]:
    """Return relative errors of scatter (Frobenius) and NC1 (pinv), of ours and of mixed precision."""
    h = samples.features.double()
    means = torch.stack([h[samples.labels == k].mean(dim=0) for k in range(samples.num_classes)])
    residuals = h - means[samples.labels]
    truth = residuals.T @ residuals
    directions = torch.linalg.pinv(means - means.mean(dim=0))
    value = torch.linalg.matrix_norm(residuals @ directions).square() / samples.labels.numel()

    moments = ours(samples, scatter=True)()
    _, scatter = mixed(samples)()
    exact = moments.scatter.clone()
    found = nc1(moments)
    moments.scatter.copy_(scatter)  # the same moments with the other scatter
    return (
        (_relative(exact, truth), _relative(found, value)),
        (_relative(scatter, truth), _relative(nc1(moments), value)),
    )


def _relative(found: Tensor, truth: Tensor) -> float:
    return (torch.linalg.vector_norm(found - truth) / torch.linalg.vector_norm(truth)).item()


def run_on_all_threads(N: int = 20_000, d: int = 512, rounds: int = 15) -> list[Row]:
    """Race the moments without scatter as torch runs by default; this one wants an idle machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(os.cpu_count() or 1)
    rows = []
    for K in (10, 100, 1000):
        samples = draw(N, d, K)
        timed = race(ours(samples, False), bare_sums(samples), rounds, time.perf_counter)
        rows.append(timed.costlier(f"the same on {torch.get_num_threads()} threads, K = {K}", at_most=3))
    torch.set_num_threads(threads)
    return rows


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
    samples = draw(N, d, classes[0])
    name = f"K = {classes[0]}; peer: float32 products"
    rows.append(race(ours(samples, True), mixed(samples), rounds).costlier(f"with scatter, {name}"))
    for title, case in (("", samples), (", one loud direction", with_loud_direction(samples))):
        for quantity, mine, theirs in zip(("scatter", "NC1"), *errors(case), strict=True):
            rows.append(Row(f"error of {quantity}, {name}{title}", f"{mine:.1e}", f"{theirs:.1e}", "-"))
    return rows


TINY = {"N": 600, "d": 16, "classes": (3,), "rounds": 1}


def main() -> None:
    one_thread()
    report("ClassMoments: N = 20000, d = 512, batches of 256", run() + run_on_all_threads())


if __name__ == "__main__":
    main()
