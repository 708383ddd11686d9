"""Squared error with penalties: orthogonal frames, simplex ETFs and what lies between, balanced or not."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from tightframe.ufm.bound import zero_sigma
from tightframe.ufm.losses import SquaredError
from tightframe.ufm.problem import PenalisedWithBias
from tightframe.ufm.solution import Solution, centering, solution_at


@dataclass(frozen=True, repr=False)
class MeanSquaredUFM(PenalisedWithBias):
    r"""Squared error against one-hot targets with penalties (Zhou et al. 2022; Tirer & Bruna 2022).

    .. math:: \sum_i \tfrac{\omega_{y_i}}{2}\lVert W h_i + b - e_{y_i}\rVert^2 + \tfrac{\lambda_W}{2}\lVert W\rVert^2
        + \tfrac{\lambda_H}{2}\lVert H\rVert^2 + \tfrac{\lambda_b}{2}\lVert b\rVert^2

    The arguments are those of :class:`~tightframe.ufm.CrossEntropyUFM`.
    """

    @property
    def criterion(self) -> SquaredError:
        """Half the squared error."""
        return SquaredError()


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
    weight, sigma = problem.uniform_weight, problem.sigma
    facts = {"sigma": sigma, "zero_sigma": zero_sigma(problem)}
    if weight is not None and problem.balanced:
        return _balanced(problem, weight, facts)
    K = problem.num_classes
    if problem.bias_decay is None:
        scales, facts = _class_scales(problem), {**facts, **_death_facts(problem)}
        reason = "orthogonal frame: without bias the classes decouple"
        return _of_logits(problem, scales.diag(), int((scales > 0).sum()), facts, reason)
    if weight is not None and problem.bias_decay == 0:
        reason = "once the free bias is eliminated the fit is a distance: its singular values are lowered"
        return _of_logits(problem, *_lowered(problem, weight), facts, reason)
    zero = torch.zeros(K, K, dtype=torch.float64)
    if sigma >= facts["zero_sigma"]:
        reason = "zero is optimal: the slope of the fit there has operator norm at most sigma"
        return _of_logits(problem, zero, 0, facts, reason)
    problem.require_dim(K, "the logits that the bound is computed from")
    mean_weight = problem.class_weights.sum().item() / problem.num_samples
    reason = "no closed form is known for these counts, weights and bias: the best of a free bias, none and zero"
    candidates = _lowered(problem, mean_weight)[0], _class_scales(problem).diag(), zero
    points = (solution_at(problem, Z, facts, exact=False, reason=reason) for Z in candidates)
    return min(points, key=lambda solution: solution.loss)


def _balanced(problem: MeanSquaredUFM, weight: float, facts: dict[str, float]) -> Solution:
    K, n = problem.num_classes, problem.counts[0]
    c, total = facts["sigma"] / (weight * math.sqrt(n)), weight * problem.num_samples
    t, kink = max(1 - c, 0.0), total * c / (1 - c) if c < 1 else math.inf
    tau, beta = _mean_part(problem, c, total, kink)
    facts = {**facts, "simplex_scale": t, "mean_scale": tau, "bias": beta, "kink_bias_decay": kink}
    if problem.bias_decay is None:
        facts |= _death_facts(problem)
    name = "zero" if t == 0 else "simplex ETF" if tau == 0 else "orthogonal frame" if tau == t else "shifted simplex"
    reason = f"{name}: the simplex part and the mean part of the logits decouple"
    rank = (K - 1) * (t > 0) + (tau > 0)
    return _of_logits(problem, t * centering(K) + tau / K, rank, facts, reason)


def _mean_part(problem: MeanSquaredUFM, c: float, total: float, kink: float) -> tuple[float, float]:
    """Return τ and β, the parts of the logits and of the bias along the vector of ones."""
    K, decay = problem.num_classes, problem.bias_decay
    if decay is None:
        return max(1 - c, 0.0), 0.0
    if decay > kink:
        share = c * total / decay
        return 1 - c - share, share / K
    return 0.0, total / (K * (total + decay))


def _class_scales(problem: MeanSquaredUFM) -> Tensor:
    return (1 - problem.sigma / problem.strengths).clamp(min=0.0)


def _death_facts(problem: MeanSquaredUFM) -> dict[str, float]:
    weight, facts = problem.uniform_weight, {"death_sigma": problem.strengths.min().item()}
    return facts if weight is None else {**facts, "death_count": (problem.sigma / weight) ** 2}


def _lowered(problem: MeanSquaredUFM, weight: float) -> tuple[Tensor, int]:
    """Return the logits ``(K, K)`` without bias for a free one and one sample weight, and their rank."""
    roots = problem.n.sqrt()
    target = roots.diag() - torch.outer(roots, roots.square()) / roots.square().sum()
    U, S, Vh = torch.linalg.svd(target)
    lowered = S - problem.sigma / weight
    lowered[-1] = 0.0  # of the direction that the bias has taken
    lowered.clamp_(min=0.0)
    return (U * lowered) @ Vh / roots.unsqueeze(1), int((lowered > 0).sum())


def _of_logits(problem: MeanSquaredUFM, Z: Tensor, rank: int, facts: dict[str, float], reason: str) -> Solution:
    problem.require_dim(rank, "the optimal logits")
    return solution_at(problem, Z, {**facts, "rank": rank}, exact=True, reason=reason)
