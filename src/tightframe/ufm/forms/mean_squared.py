"""Squared error with penalties: orthogonal frames, simplex ETFs and what lies between, balanced or not."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from tightframe.ufm.forms.common import (
    bias_for,
    centering,
    point,
    require_dim,
    sigma_of,
    strengths_of,
    uniform_weight,
    zero_sigma,
)
from tightframe.ufm.objective import class_weights, counts_of
from tightframe.ufm.problems import MeanSquaredUFM
from tightframe.ufm.solution import Solution


def mean_squared_form(problem: MeanSquaredUFM) -> Solution:
    r"""Return the minimum of the squared-error model, or where no closed form is known a good point and a bound.

    With :math:`\sigma = \sqrt{\lambda_W \lambda_H}`:

    - no bias, any counts and weights: :math:`Z = \mathrm{diag}(x)` with
      :math:`x_k = (1 - \sigma/(\omega_k\sqrt{n_k}))_+`, a general orthogonal frame; class k vanishes iff
      :math:`\omega_k\sqrt{n_k} \le \sigma`.
    - free bias, one weight ω, any counts: :math:`\mathrm{diag}(\sqrt n)\, Z` is :math:`\mathrm{diag}(\sqrt n)`
      projected orthogonally to :math:`\sqrt n`, its singular values lowered by σ/ω, and :math:`b = n/N`. Balanced it is
      a simplex ETF.
    - penalised bias, balanced: :math:`Z = t P + (\tau/K) 11^\top`, :math:`b = \beta 1`. With
      :math:`c = \sigma/(\omega\sqrt n)` and :math:`\bar\lambda_b = \lambda_b/(N\omega)`, :math:`t = (1 - c)_+`, and
      :math:`\tau = 1 - c - c/\bar\lambda_b` where :math:`\bar\lambda_b > c/(1-c)`, else 0: from simplex ETF to
      orthogonal frame, with a kink (Zhou et al. 2022, arXiv 2203.01238; Tirer & Bruna 2022, arXiv 2202.08087).

    Args:
        problem: any counts and weights; d at least the rank of Z.

    Returns:
        The solution; ``facts`` hold ``sigma``, ``zero_sigma`` and, if it is exact, ``rank``; without bias
        ``death_sigma``, from which the first class vanishes, and ``death_count`` if all samples weigh the same; in the
        balanced case ``simplex_scale`` t, ``mean_scale`` τ, ``bias`` β and ``kink_bias_decay``, the λ_b above which
        τ > 0.

    Raises:
        DimensionError: if d is smaller than the rank of the optimal logits, or of those a bound is computed from.

    Example:
        >>> problem = MeanSquaredUFM((4, 4, 4), dim=3, weight_decay=0.01, feature_decay=0.01, bias_decay=1.0)
        >>> solution = mean_squared_form(problem)
        >>> [round(solution.facts[name], 6) for name in ("simplex_scale", "mean_scale", "bias", "kink_bias_decay")]
        [0.94, 0.88, 0.02, 0.06383]
    """
    weight, sigma = uniform_weight(problem), sigma_of(problem)
    facts = {"sigma": sigma, "zero_sigma": zero_sigma(problem)}
    if weight is not None and problem.balanced:
        return _balanced(problem, weight, facts)
    if problem.bias_decay is None:
        return _decoupled(problem, facts)
    if weight is not None and problem.bias_decay == 0:
        return _with_free_bias(problem, weight, facts)
    if sigma >= facts["zero_sigma"]:
        Z = torch.zeros(problem.num_classes, problem.num_classes, dtype=torch.float64)
        reason = "zero is optimal: the slope of the fit there has operator norm at most sigma"
        return _of_logits(problem, Z, bias_for(problem, Z), 0, facts, reason)
    return _bounded(problem, facts)


def _balanced(problem: MeanSquaredUFM, weight: float, facts: dict[str, float]) -> Solution:
    K, n = problem.num_classes, problem.counts[0]
    c, total = facts["sigma"] / (weight * math.sqrt(n)), weight * problem.num_samples
    t, kink = max(1 - c, 0.0), total * c / (1 - c) if c < 1 else math.inf
    tau, beta = _mean_part(problem, c, total, kink)
    facts = {**facts, "simplex_scale": t, "mean_scale": tau, "bias": beta, "kink_bias_decay": kink}
    if problem.bias_decay is None:
        facts |= _death_facts(problem)
    name = "zero" if t == 0 else "simplex ETF" if tau == 0 else "orthogonal frame" if tau == t else "shifted simplex"
    bias = None if problem.bias_decay is None else torch.full((K,), beta, dtype=torch.float64)
    reason = f"{name}: the simplex part and the mean part of the logits decouple"
    rank = (K - 1) * (t > 0) + (tau > 0)
    return _of_logits(problem, t * centering(K) + tau / K, bias, rank, facts, reason)


def _mean_part(problem: MeanSquaredUFM, c: float, total: float, kink: float) -> tuple[float, float]:
    """Return τ and β, the parts of the logits and of the bias along the vector of ones."""
    K, decay = problem.num_classes, problem.bias_decay
    if decay is None:
        return max(1 - c, 0.0), 0.0
    if decay > kink:
        share = c * total / decay
        return 1 - c - share, share / K
    return 0.0, total / (K * (total + decay))


def _decoupled(problem: MeanSquaredUFM, facts: dict[str, float]) -> Solution:
    scales = _class_scales(problem)
    reason = "orthogonal frame: without bias the classes decouple"
    rank = int((scales > 0).sum())
    return _of_logits(problem, scales.diag(), None, rank, {**facts, **_death_facts(problem)}, reason)


def _class_scales(problem: MeanSquaredUFM) -> Tensor:
    return (1 - sigma_of(problem) / strengths_of(problem)).clamp(min=0.0)


def _death_facts(problem: MeanSquaredUFM) -> dict[str, float]:
    weight, facts = uniform_weight(problem), {"death_sigma": strengths_of(problem).min().item()}
    return facts if weight is None else {**facts, "death_count": (sigma_of(problem) / weight) ** 2}


def _with_free_bias(problem: MeanSquaredUFM, weight: float, facts: dict[str, float]) -> Solution:
    Z, rank = _lowered(problem, weight)
    counts = counts_of(problem)
    reason = "once the free bias is eliminated the fit is a distance: its singular values are lowered"
    return _of_logits(problem, Z, counts / counts.sum(), rank, facts, reason)


def _lowered(problem: MeanSquaredUFM, weight: float) -> tuple[Tensor, int]:
    """Return the logits ``(K, K)`` without bias for a free one and one sample weight, and their rank."""
    roots = counts_of(problem).sqrt()
    target = roots.diag() - torch.outer(roots, roots.square()) / roots.square().sum()
    U, S, Vh = torch.linalg.svd(target)
    lowered = S - sigma_of(problem) / weight
    lowered[-1] = 0.0  # of the direction that the bias has taken
    lowered.clamp_(min=0.0)
    return (U * lowered) @ Vh / roots.unsqueeze(1), int((lowered > 0).sum())


def _of_logits(
    problem: MeanSquaredUFM, Z: Tensor, bias: Tensor | None, rank: int, facts: dict[str, float], reason: str
) -> Solution:
    require_dim(problem, rank, "the optimal logits")
    return point(problem, Z, bias, {**facts, "rank": rank}, exact=True, reason=reason)


def _bounded(problem: MeanSquaredUFM, facts: dict[str, float]) -> Solution:
    """Return the best of zero and two points that bracket a penalised bias: with a free one, and without."""
    K = problem.num_classes
    require_dim(problem, K, "the logits that the bound is computed from")
    mean_weight = class_weights(problem).sum().item() / problem.num_samples
    reason = "no closed form is known for these counts, weights and bias: the best of a free bias, none and zero"
    points = (
        point(problem, Z, bias_for(problem, Z), facts, exact=False, reason=reason)
        for Z in (_lowered(problem, mean_weight)[0], _class_scales(problem).diag(), torch.zeros(K, K).double())
    )
    return min(points, key=lambda solution: solution.loss)
