"""NC1 (pinv) as published code computes it against ours: the error where float32 arithmetic fails, and the time."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from benchmarks._timing import Row, at_most, batches_of, race, samples
from benchmarks.moments import gathered
from tightframe.functional import nc1
from tightframe.moments import ClassMoments

TITLE = "NC1 (pinv): relative error on float32 features, and time once the moments are gathered"


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
TINY: dict[str, Any] = {
    "names": ("two merged classes, equal samples", "d < K (K = 20, d = 8)"),
    "size": (80, 16, 4),
    "rounds": 1,
}


def exact(case: Case) -> float:
    r"""Return tr(Σ_W Σ_B⁺)/K by two passes in float64, with the rank known from how the case was made.

    The centred means are A = F V, both of full rank: V ``(r, d)`` has the distinct means as differences from one of
    them, F ``(K, r)`` says which class is where. Then A⁺ = V⁺ F⁺, the value is the mean over samples of ‖F⁺ᵀ V⁺ᵀ z‖²
    for the residuals z, and nothing is squared before it is summed.
    """
    h, (_, labels, place) = case.features.double(), case
    K = place.numel()
    means = torch.stack([h[labels == k].mean(dim=0) for k in range(K)])
    # A second pass takes the rounding of the first out of the means.
    means += torch.stack([(h[labels == k] - means[k]).mean(dim=0) for k in range(K)])
    distinct = place.unique()
    V = means[distinct[1:]] - means[distinct[0]]
    F = (place.unsqueeze(1) == distinct[1:]).double()
    F = F - F.mean(dim=0)
    if V.shape[0] > V.shape[1]:  # the means span all of space
        F, V = F @ V, torch.eye(V.shape[1], dtype=V.dtype)
    coordinates = torch.linalg.lstsq(V.T, (h - means[labels]).T).solution
    images = F @ torch.linalg.solve(F.T @ F, coordinates)
    return (images.square().sum() / labels.numel()).item()


def published(centered: Tensor, within: Tensor) -> float:
    """Return NC1 of centred class means and a d x d scatter: ``pinv`` with its default cut-off, in float32."""
    K = len(centered)
    return (torch.trace(within @ torch.linalg.pinv(centered.T @ centered / K)) / K).item()


def error(name: str, case: Case) -> Row:
    """Compare the errors of features streamed in batches and of published code, which holds them all."""
    h, labels, place = case
    K, d = place.numel(), h.shape[1]
    means = torch.stack([h[labels == k].mean(dim=0) for k in range(K)])
    residuals = h - means[labels]
    theirs = published(means - means.mean(dim=0), residuals.T @ residuals / labels.numel())
    ours, truth = nc1(gathered(batches_of(h, labels), d, K, scatter=True)).item(), exact(case)
    off = abs(ours / truth - 1)
    factor = f"peer {max(theirs / truth, truth / theirs) if theirs > 0 else float('inf'):.3g}x the truth"
    return at_most(1e-6, f"error, {name}", off, f"{off:.1e}", f"{abs(theirs / truth - 1):.1e}", factor)


def timed(N: int, d: int, K: int, rounds: int) -> Row:
    moments = ClassMoments.from_samples(*samples(N, d, K), K, scatter=True)
    centered, within = moments.centered_means().float(), moments.scatter.float() / N
    ours, peer = partial(nc1, moments), partial(published, centered, within)
    torch.testing.assert_close(ours().item(), peer(), rtol=1e-3, atol=0)  # the two sides mean the same
    return race(ours, peer, rounds).faster(f"time, K = {K}, d = {d}; peer: pinv of the covariance, float32", 10)


def run(
    names: tuple[str, ...] = tuple(CASES), size: tuple[int, int, int] = (2000, 2048, 100), rounds: int = 3
) -> list[Row]:
    return [*(error(name, CASES[name]()) for name in names), timed(*size, rounds)]
