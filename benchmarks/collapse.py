"""Moments and metrics of collapse: NC1 against published code, one pass against the least work, pairs of classes."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from benchmarks._timing import Batches, Row, at_most, batches_of, extra_memory, leaner, race, samples
from tightframe import functional as F
from tightframe.moments import ClassMoments

TINY: dict[str, dict[str, Any]] = {
    "nc1": {
        "names": ("two merged classes, equal samples", "d < K (K = 20, d = 8)"),
        "size": (80, 16, 4),
        "rounds": 1,
    },
    "moments": {"N": 600, "d": 16, "classes": (3,), "rounds": 1},
    "pairs": {"K": 9, "many": 12, "d": 8, "rounds": 1},
}
OF_MEANS = ("nc2_equiangularity", "nc2_max_angle", "nc2_gram", "nc2_min_separation", "gnc2", "cdnv")
WITH_ROWS = ("nc3_gram", "frame_cosine_error")


class Case(NamedTuple):
    """Features ``(N, d)`` float32 and labels; ``place[k]`` is the same number for classes with the same mean."""

    features: Tensor
    labels: Tensor
    place: Tensor


def draw(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def clouds(means: Tensor, per_class: int, sigma: float) -> Case:
    """Gaussian clouds about the means ``(K, d)``, in shuffled order."""
    K, d = means.shape
    order = torch.randperm(K * per_class, generator=torch.Generator().manual_seed(1))
    labels = torch.arange(K).repeat_interleave(per_class)[order]
    noise = sigma * draw(K * per_class, d, seed=2)
    return Case((means[labels] + noise).float(), labels, torch.arange(K))


def superclasses(gap: float, d: int = 512) -> Case:
    """Two superclasses of three classes; their centres are ``gap`` times as long as the steps from centre to class."""
    centres = gap * draw(2, d, seed=4) / d**0.5
    means = centres.repeat_interleave(3, dim=0) + draw(6, d, seed=3) / d**0.5
    return clouds(means, per_class=100, sigma=0.05)


def merged(d: int = 512) -> Case:
    """Five classes, two of them about the same point, each with samples of its own: minority collapse."""
    means = draw(5, d, seed=5)
    means[4] = means[0]
    return clouds(means, per_class=200, sigma=0.05)


def equal(d: int = 64) -> Case:
    """Five classes of which the last has the features of the first, in another order."""
    features, labels, place = clouds(draw(5, d, seed=5), per_class=200, sigma=0.3)
    features[labels == 4] = features[labels == 0].flip(0)
    return Case(features, labels, place.where(place != 4, 0))


CASES: dict[str, Callable[[], Case]] = {
    "class-mean offset 1000, sigma 1e-3": lambda: clouds(1000 + draw(10, 64, seed=6), per_class=200, sigma=1e-3),
    "superclass/subclass gap 100": lambda: superclasses(100),
    "superclass/subclass gap 300": lambda: superclasses(300),
    "two merged classes": merged,
    "two merged classes, equal samples": equal,
    "K = 100, d = 2048, n_k = 5": lambda: clouds(draw(100, 2048, seed=7), per_class=5, sigma=0.3),
    "d < K (K = 20, d = 8)": lambda: clouds(draw(20, 8, seed=8), per_class=100, sigma=0.3),
}


def exact(case: Case) -> float:
    r"""Return tr(Σ_W Σ_B⁺)/K by two passes in float64, with the rank known from how the case was made.

    The centred means are A V, both of full rank: V ``(r, d)`` has the distinct means as differences from one of
    them, A ``(K, r)`` says which class is where. Their pseudo-inverse is V⁺ A⁺, the value is the mean over samples of
    ‖A⁺ᵀ V⁺ᵀ z‖² for the residuals z, and nothing is squared before it is summed.
    """
    h, (_, labels, place) = case.features.double(), case
    K = place.numel()
    means = torch.stack([h[labels == k].mean(dim=0) for k in range(K)])
    # A second pass takes the rounding of the first out of the means.
    means += torch.stack([(h[labels == k] - means[k]).mean(dim=0) for k in range(K)])
    distinct = place.unique()
    V = means[distinct[1:]] - means[distinct[0]]
    A = (place.unsqueeze(1) == distinct[1:]).double()
    A = A - A.mean(dim=0)
    if V.shape[0] > V.shape[1]:  # the means span all of space
        A, V = A @ V, torch.eye(V.shape[1], dtype=V.dtype)
    coordinates = torch.linalg.lstsq(V.T, (h - means[labels]).T).solution
    images = A @ torch.linalg.solve(A.T @ A, coordinates)
    return (images.square().sum() / labels.numel()).item()


def published(centered: Tensor, within: Tensor) -> float:
    """Return NC1 of centred class means and a d x d scatter: ``pinv`` with its default cut-off, in float32."""
    K = len(centered)
    return (torch.trace(within @ torch.linalg.pinv(centered.T @ centered / K)) / K).item()


def nc1_error(name: str, case: Case) -> Row:
    """Compare the errors of features streamed in batches and of published code, which holds them all."""
    h, labels, place = case
    K, d = place.numel(), h.shape[1]
    means = torch.stack([h[labels == k].mean(dim=0) for k in range(K)])
    residuals = h - means[labels]
    theirs = published(means - means.mean(dim=0), residuals.T @ residuals / labels.numel())
    ours, truth = F.nc1(gathered(batches_of(h, labels), d, K, scatter=True)).item(), exact(case)
    off = abs(ours / truth - 1)
    factor = f"peer {max(theirs / truth, truth / theirs) if theirs > 0 else float('inf'):.3g}x the truth"
    return at_most(1e-6, f"error, {name}", off, f"{off:.1e}", f"{abs(theirs / truth - 1):.1e}", factor)


def nc1_time(N: int, d: int, K: int, rounds: int) -> Row:
    moments = ClassMoments.from_samples(*samples(N, d, K), K, scatter=True)
    centered, within = moments.centered_means().float(), moments.scatter.float() / N
    ours, peer = partial(F.nc1, moments), partial(published, centered, within)
    torch.testing.assert_close(ours().item(), peer(), rtol=1e-3, atol=0)  # the two sides mean the same
    return race(ours, peer, rounds).faster(f"time, K = {K}, d = {d}; peer: pinv of the covariance, float32", 10)


def nc1(
    names: tuple[str, ...] = tuple(CASES), size: tuple[int, int, int] = (2000, 2048, 100), rounds: int = 3
) -> list[Row]:
    """NC1 (pinv): relative error on float32 features, and time once the moments are gathered."""
    return [*(nc1_error(name, CASES[name]()) for name in names), nc1_time(*size, rounds)]


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


def moments(N: int = 20_000, d: int = 512, classes: tuple[int, ...] = (10, 100, 1000), rounds: int = 5) -> list[Row]:
    """ClassMoments: N = 20000, d = 512, batches of 256."""
    rows, with_scatter = [], []
    for K in classes:
        batches = batches_of(*samples(N, d, K))
        ours = partial(gathered, batches, d, K)
        sums = race(partial(ours, False), partial(bare_sums, batches, d, K), 3 * rounds)
        rows.append(sums.costlier(f"moments, K = {K}; peer: index_add_ of float64 features", 3))
        products = race(partial(ours, True), partial(bare_products, batches, d), rounds)
        with_scatter.append(products.costlier(f"with scatter, K = {K}; peer: float64 XᵀX", 1.3))
    return rows + with_scatter


def random_moments(K: int, d: int) -> ClassMoments:
    moments = ClassMoments.from_samples(*samples(2 * K, d, K), K, scatter=False)
    moments.mean  # noqa: B018  # reading finishes the sums
    return moments


def tiled(name: str, K: int, d: int) -> Callable[[], Tensor]:
    metric, moments, rows = getattr(F, name), random_moments(K, d), torch.ones(K, d)
    rows[:, 0] = torch.arange(K)
    return lambda: metric(moments, rows) if name in WITH_ROWS else metric(moments)


def untiled(K: int, d: int) -> Callable[[], Tensor]:
    """Return CDNV in float32 from the differences of all pairs of class means at once, as published code has it."""
    moments = random_moments(K, d)
    means, variances = moments.mean.float(), (moments.trace / moments.count).float()

    def call() -> Tensor:
        squares = (means.unsqueeze(1) - means.unsqueeze(0)).square().sum(dim=2)
        ratios = (variances.unsqueeze(1) + variances) / (2 * squares)
        return ratios[~torch.eye(K, dtype=torch.bool)].mean()

    return call


def pairs(K: int = 1000, many: int = 6000, d: int = 512, rounds: int = 3) -> list[Row]:
    """All pairs of classes, d = 512."""
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
