"""Feature sets whose collapse is known, and what two passes in extended precision make of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from hypothesis import settings
from numpy.typing import NDArray
from torch import Tensor

from tightframe.moments import ClassMoments

law = settings(deadline=None, derandomize=True, max_examples=25)
"""How often hypothesis tries a law: always the same examples, with no clock."""


@dataclass(frozen=True)
class Problem:
    """Labelled features.

    Args:
        features: ``(N, d)`` float32 or float64.
        labels: ``(N,)``.
        num_classes: K, absent classes included.
        merged: for each *present* class the place of its mean; classes at one place share their mean by construction.
    """

    features: Tensor
    labels: Tensor
    num_classes: int
    merged: tuple[int, ...]

    def moments(self, scatter: bool = True) -> ClassMoments:
        return ClassMoments.from_samples(self.features, self.labels, self.num_classes, scatter=scatter)

    @property
    def rank(self) -> int:
        return min(max(self.merged), self.features.shape[1])


class Exact(NamedTuple):
    """Statistics of the present classes from two passes in extended precision."""

    classes: NDArray[np.int64]
    count: NDArray[np.float64]
    mean: NDArray[np.longdouble]
    trace: NDArray[np.longdouble]
    residuals: NDArray[np.longdouble]


def exact_statistics(features: Tensor, labels: Tensor) -> Exact:
    h = features.double().numpy().astype(np.longdouble)
    y = labels.numpy().astype(np.int64)
    classes, index = np.unique(y, return_inverse=True)
    mean = np.stack([h[y == k].sum(axis=0) / np.longdouble((y == k).sum()) for k in classes])
    residuals = h - mean[index]
    trace = np.stack([np.square(residuals[y == k]).sum() for k in classes])
    return Exact(classes, np.bincount(index).astype(np.float64), mean, trace, residuals)


def nc1_trace(problem: Problem, weighting: str = "class") -> float:
    r"""tr(Σ_W Σ_B⁺), where the rank of Σ_B is known and no matrix is squared.

    The centred means are A = F V: V holds the differences of the distinct means from the first one, F which class is
    where. Both have full rank, so A⁺ = V⁺ F⁺, and each residual z adds ‖F⁺ᵀ V⁺ᵀ z‖² K / N.
    """
    exact = exact_statistics(problem.features, problem.labels)
    place = np.array(problem.merged)
    distinct = np.stack([exact.mean[np.flatnonzero(place == p)[0]] for p in range(place.max() + 1)])
    V = (distinct[1:] - distinct[0]).astype(np.float64)
    member = (place[:, None] == np.arange(1, place.max() + 1)).astype(np.float64)
    weight = np.ones_like(exact.count) if weighting == "class" else exact.count
    F = member - weight @ member / weight.sum()
    if V.shape[0] > V.shape[1]:  # the means span all of space
        F, V = F @ V, np.eye(V.shape[1])
    coordinates = np.linalg.lstsq(V.T, exact.residuals.T.astype(np.float64), rcond=None)[0]
    images = F @ np.linalg.solve(F.T @ F, coordinates)
    return float(np.square(images).sum() * len(place) / problem.labels.numel())


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def rotation(dim: int, seed: int = 0) -> Tensor:
    return torch.linalg.qr(draw(dim, dim, seed=seed))[0]


def batches(features: Tensor, labels: Tensor, sizes: int | list[int]) -> Iterator[tuple[Tensor, Tensor]]:
    return zip(features.split(sizes), labels.split(sizes), strict=True)


def simplex(K: int, d: int, seed: int = 0) -> Tensor:
    """K unit vectors at equal angles in d >= K - 1 dimensions, without the package's own basis."""
    centered = torch.eye(K, dtype=torch.float64) - 1 / K
    basis = torch.linalg.svd(centered).U[:, : K - 1]
    unit = centered @ basis * (K / (K - 1)) ** 0.5
    return unit @ rotation(d, seed)[: K - 1]


def scattered(means: Tensor, counts: list[int], sigma: float, seed: int = 0, *, offset: float = 0.0) -> Problem:
    """Gaussian clouds about the means ``(K, d)``; a count of 0 makes a class absent."""
    labels = torch.arange(len(counts)).repeat_interleave(torch.tensor(counts))
    order = torch.randperm(labels.numel(), generator=torch.Generator().manual_seed(seed + 1))
    noise = sigma * draw(labels.numel(), means.shape[1], seed=seed + 2)
    features = offset + means[labels] + noise
    present = sum(n > 0 for n in counts)
    return Problem(features[order], labels[order], len(counts), tuple(range(present)))


def collapsed(K: int = 4, d: int = 6, n: int = 5, scale: float = 2.0) -> Problem:
    """Every class in one point, the points a simplex ETF whose coordinates are exact in any floating-point type."""
    points = torch.zeros(K, d, dtype=torch.float64)
    points[:, :K] = scale * (torch.eye(K, dtype=torch.float64) - 1 / K)
    labels = torch.arange(K).repeat(n)
    return Problem(points[labels], labels, K, tuple(range(K)))


def isotropic(K: int, d: int, sigma: float, radius: float, offset: float = 0.0) -> Problem:
    """Simplex ETF means of norm ``radius``, and Σ_W = σ² I: each sample lies ± σ√d along one axis from its mean."""
    steps = sigma * d**0.5 * torch.cat([torch.eye(d), -torch.eye(d)]).double()
    features = (offset + radius * simplex(K, d)).unsqueeze(1) + steps
    return Problem(features.flatten(0, 1), torch.arange(K).repeat_interleave(2 * d), K, tuple(range(K)))


def hierarchy(gap: float, d: int = 512) -> Problem:
    """Two superclasses of three classes, ``gap`` times farther from the middle than a class from its superclass."""
    means = simplex(3, d).repeat(2, 1)
    means[:3] += gap * simplex(2, d, seed=1)[0]
    means[3:] += gap * simplex(2, d, seed=1)[1]
    return as_float32(scattered(means, [20] * 6, 0.05))


def merged(K: int = 5, d: int = 16, n: int = 60, sigma: float = 0.3, offset: float = 0.0) -> Problem:
    """Class K - 1 has the samples of class 1 in another order, so their means differ by rounding alone."""
    problem = as_float32(scattered(draw(K, d, seed=3), [n] * K, sigma, offset=offset))
    features = problem.features.clone()
    source = features[problem.labels == 1]
    features[problem.labels == K - 1] = source[torch.randperm(n, generator=torch.Generator().manual_seed(0))]
    return Problem(features, problem.labels, K, (*range(K - 1), 1))


def nearly_merged(gap: float = 1e-3) -> Problem:
    """Six classes, two of them ``gap`` apart: minority collapse on its way."""
    means = draw(6, 32, seed=4)
    means[5] = means[4] + gap * draw(32, seed=5)
    return as_float32(scattered(means, [50, 50, 50, 50, 8, 8], 1e-3))


def as_float32(problem: Problem) -> Problem:
    return Problem(problem.features.float(), problem.labels, problem.num_classes, problem.merged)


# Features as a network would give them, in float32, on which the pseudo-inverse of a float32 covariance goes wrong or
# which single out one difficulty each.
HARD: dict[str, Callable[[], Problem]] = {
    "offset 1000, sigma 1e-3": lambda: as_float32(scattered(draw(5, 16), [50] * 5, 1e-3, offset=1000.0)),
    "superclass gap 100": lambda: hierarchy(100.0),
    "superclass gap 300": lambda: hierarchy(300.0),
    "two classes merged": merged,
    "two classes merged, offset 1000": lambda: merged(offset=1000.0),
    "two classes nearly merged": nearly_merged,
    "K = 12 > d = 3": lambda: as_float32(scattered(draw(12, 3), [20] * 12, 0.3)),
    "d = K - 1": lambda: as_float32(scattered(draw(6, 5), [20] * 6, 0.3)),
    "few samples, many dimensions": lambda: as_float32(scattered(draw(20, 256), [5] * 20, 0.3)),
    "imbalanced": lambda: as_float32(scattered(draw(4, 8), [400, 40, 4, 2], 0.3)),
    "absent class": lambda: as_float32(scattered(draw(5, 8), [30, 0, 20, 10, 0], 0.3)),
    "class of one sample": lambda: as_float32(scattered(draw(4, 8), [30, 20, 1, 10], 0.3)),
}


UNEVEN = scattered(draw(5, 7), [40, 1, 0, 17, 6], 1.5, offset=2.0)


def assert_same(found: ClassMoments, wanted: ClassMoments, rtol: float = 1e-12, atol: float = 0.0) -> None:
    """Compare two moments, in units of their spread."""
    torch.testing.assert_close(found.count, wanted.count, rtol=0, atol=0)
    spread = wanted.trace.sum().sqrt().item()
    torch.testing.assert_close(found.mean, wanted.mean, rtol=rtol, atol=max(atol, rtol * spread))
    torch.testing.assert_close(found.trace, wanted.trace, rtol=rtol, atol=atol)
    assert found.has_scatter == wanted.has_scatter
    if wanted.has_scatter:
        largest = wanted.scatter.abs().max().item()
        torch.testing.assert_close(found.scatter, wanted.scatter, rtol=rtol, atol=max(atol, rtol * largest))
