"""Cross-entropy with penalties: the simplex ETF, when zero is optimal, when minorities collapse, which weights help."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass

import torch
from torch import Tensor

from tightframe.errors import ArgumentError
from tightframe.ufm.bound import zero_sigma
from tightframe.ufm.problem import PenalisedWithBias
from tightframe.ufm.solution import Solution, bisect, centering, solution_at

_EQUAL = 1e-12  # up to which norms that make the frame a simplex are equal: the objective does not see the square


@dataclass(frozen=True, repr=False)
class CrossEntropyUFM(PenalisedWithBias):
    r"""Cross-entropy with penalties on classifier and features (Zhu et al. 2021, arXiv 2105.02375).

    .. math:: \sum_i \omega_{y_i}\, \mathrm{CE}(W h_i + b, y_i) + \tfrac{\lambda_W}{2}\lVert W\rVert^2
        + \tfrac{\lambda_H}{2}\lVert H\rVert^2 + \tfrac{\lambda_b}{2}\lVert b\rVert^2

    Args:
        counts: ``n_k``.
        dim: d.
        weight_decay: :math:`\lambda_W > 0`.
        feature_decay: :math:`\lambda_H > 0`.
        sample_weights: :math:`\omega_k > 0` of one sample of each class, ``(K,)``; None is 1/N, the mean over samples.
            Papers that write a sum have weights of 1.
        bias_decay: :math:`\lambda_b`; None is no bias, 0 a free one.
    """


def cross_entropy_form(problem: CrossEntropyUFM) -> Solution:
    r"""Return the minimum of the cross-entropy model where it is a simplex ETF or zero, else a good point and a bound.

    With :math:`\sigma = \sqrt{\lambda_W \lambda_H}`, zero is optimal iff :math:`\sigma \ge` the operator norm of the
    slope there, without bias :math:`\lambda_{\max}(P\,\mathrm{diag}(\omega_k^2 n_k)P)^{1/2}`. Else the logits of
    class k are :math:`a_k (e_k - 1/K)` with

    .. math:: a_k = \log\bigl(K \omega_k \sqrt{n_k} / \sigma - K + 1\bigr)

    as soon as all :math:`\sqrt{n_k}\, a_k` are equal: the slope is then σ times a partial isometry. So it is in the
    balanced case, with or without bias (Zhu et al. 2021, arXiv 2105.02375, theorem 3.1), and without bias under the
    weights of :func:`simplex_weights`. Elsewhere no closed form is known; the point returned is the best of these
    logits, of the same direction for all classes, and of zero.

    Classes alike in count and weight have one and the same class vector iff :math:`\omega_k\sqrt{n_k} \le \sigma`
    (:func:`collapse_sigmas`), with any bias.

    Args:
        problem: any counts and weights; d >= K - 1 unless zero is optimal.

    Returns:
        The solution; ``facts`` hold ``sigma``, ``zero_sigma``, ``collapse_sigma`` and ``collapsed_classes`` of classes
        that have a twin, ``collapse_count`` if all samples weigh the same, and in the balanced case ``scale`` a, the
        squared norms of one class vector and one feature, and their ``cosine``.

    Raises:
        DimensionError: if d < K - 1 and zero is not optimal.

    Example:
        >>> solution = cross_entropy_form(CrossEntropyUFM((5, 5, 5), dim=3, weight_decay=0.01, feature_decay=0.01))
        >>> solution.exact, round(solution.facts["scale"], 6)
        (True, 3.754699)
    """
    sigma, K = problem.sigma, problem.num_classes
    facts = {"sigma": sigma, "zero_sigma": zero_sigma(problem), **_collapse_facts(problem)}
    if sigma >= facts["zero_sigma"]:
        Z = torch.zeros(K, K, dtype=torch.float64)
        reason = "zero is optimal: the slope of the fit there has operator norm at most sigma"
        return solution_at(problem, Z, facts, exact=True, reason=reason)
    problem.require_dim(K - 1, "a simplex ETF")
    scales = _class_scales(problem)
    if _is_simplex(problem, scales):
        facts |= _simplex_facts(problem, scales)
        reason = "simplex ETF: the slope of the fit is sigma times a partial isometry aligned with the logits"
        return solution_at(problem, scales.unsqueeze(1) * centering(K), facts, exact=True, reason=reason)
    if K == 2 and problem.uniform_weight is not None and problem.bias_decay is None:
        Z = _guesses(problem, scales)[-1]
        reason = (
            "two classes of one weight: all logits have the same scale, at which the slope is sigma times a partial "
        )
        return solution_at(problem, Z, facts, exact=True, reason=reason + "isometry aligned with them")
    reason = "no closed form is known for these counts, weights and bias: the best of a few simplex-like logits"
    points = (solution_at(problem, Z, facts, exact=False, reason=reason) for Z in _guesses(problem, scales))
    return min(points, key=lambda solution: solution.loss)


def collapse_sigmas(problem: CrossEntropyUFM) -> Tensor:
    r"""Return the σ from which class k has the same class vector as its twins, ``(K,)``; nan if it has no twin.

    Twins are classes alike in count and weight. The optimal logits are unique, so they are symmetric in twins, and
    their part that tells twins apart is a simplex with singular directions of its own: it is zero iff the slope's part,
    :math:`\omega_k \sqrt{n_k}` there, is at most :math:`\sigma = \sqrt{\lambda_W\lambda_H}` (minority collapse). For
    the mean over samples that is :math:`n_k \le N^2 \lambda_W \lambda_H`.

    Example:
        >>> problem = CrossEntropyUFM((8, 1, 1), dim=3, weight_decay=0.1, feature_decay=0.1)
        >>> collapse_sigmas(problem)
        tensor([   nan, 0.1000, 0.1000], dtype=torch.float64)
    """
    kinds = list(zip(problem.counts, problem.sample_weights or [None] * problem.num_classes, strict=True))
    sizes = Counter(kinds)
    twin = torch.tensor([sizes[kind] > 1 for kind in kinds])
    return problem.strengths.where(twin, torch.nan)


def simplex_weights(problem: CrossEntropyUFM) -> tuple[float, ...]:
    r"""Return the sample weights under which class vectors and directions of features are a simplex ETF, whatever n_k.

    With W a simplex ETF and :math:`\lVert h_k\rVert \propto 1/\sqrt{n_k}`, the logits of class k are
    :math:`(y/\sqrt{n_k})(e_k - 1/K)`, and are optimal iff

    .. math:: \omega_k = \frac{\sigma}{K\sqrt{n_k}} \bigl(e^{y/\sqrt{n_k}} + K - 1\bigr).

    y > 0 is the one for which :math:`\sum_k n_k \omega_k = 1`, as of the mean over samples.

    Args:
        problem: without bias; its own weights do not matter.

    Raises:
        ArgumentError: if there is a bias, which spoils the symmetry, or :math:`\sigma \sum_k \sqrt{n_k} \ge 1`, where
            such weights do not exist.

    Example:
        >>> problem = CrossEntropyUFM((16, 4, 1), dim=2, weight_decay=0.05, feature_decay=0.05)
        >>> [round(weight, 4) for weight in simplex_weights(problem)]
        [0.0178, 0.0596, 0.4767]
    """
    if problem.bias_decay is not None:
        raise ArgumentError(f"problem must have no bias (bias_decay=None), got bias_decay={problem.bias_decay}")
    roots, sigma, K = problem.n.sqrt(), problem.sigma, problem.num_classes
    total = sigma * roots.sum().item()
    if total >= 1:
        raise ArgumentError(
            f"weight_decay and feature_decay must have sigma * sum(sqrt(counts)) < 1 for a simplex ETF, got {total:.6g}"
        )

    def weights(y: float) -> Tensor:
        return sigma / K / roots * (torch.exp(y / roots) + K - 1)

    # One class alone weighs more than 1 at the upper end.
    high = (roots * torch.log(K / (sigma * roots))).min().item()
    y = bisect(lambda y: (roots.square() * weights(y)).sum().item() - 1, 0.0, high)
    return tuple(weights(y).tolist())


def _class_scales(problem: CrossEntropyUFM) -> Tensor:
    """Return a_k ``(K,)``, the value that the slope of class k alone implies; 0 where it implies none."""
    K = problem.num_classes
    return (K * problem.strengths / problem.sigma - K + 1).clamp(min=1.0).log()


def _is_simplex(problem: CrossEntropyUFM, scales: Tensor) -> bool:
    radii = problem.n.sqrt() * scales
    low, high = radii.aminmax()
    # A bias is at rest only where all classes miss equally much.
    return bool(low > 0 and high - low <= _EQUAL * high) and (problem.bias_decay is None or problem.balanced)


def _guesses(problem: CrossEntropyUFM, scales: Tensor) -> list[Tensor]:
    """Return logits ``(K, K)`` of which the best is not far off: zero, each class by itself, one scale for all."""
    P = centering(problem.num_classes)
    guesses = [torch.zeros_like(P), scales.unsqueeze(1) * P]
    # One scale a for all costs Σ n_k ω_k log(1 + (K - 1) e⁻ᵃ) + a σ ‖diag(√n) P‖_*.
    nuclear = torch.linalg.svdvals(problem.n.sqrt().unsqueeze(1) * P).sum().item()
    missed = problem.sigma * nuclear / problem.class_weights.sum().item()
    if missed < 1 - 1 / problem.num_classes:
        guesses.append(math.log((problem.num_classes - 1) * (1 / missed - 1)) * P)
    return guesses


def _collapse_facts(problem: CrossEntropyUFM) -> dict[str, float]:
    sigmas, sigma, weight = collapse_sigmas(problem), problem.sigma, problem.uniform_weight
    facts: dict[str, float] = {"collapsed_classes": int((sigmas <= sigma).sum())}
    if bool((~sigmas.isnan()).any()):
        facts["collapse_sigma"] = sigmas.nan_to_num(nan=math.inf).min().item()
    if weight is not None:
        facts["collapse_count"] = (sigma / weight) ** 2
    return facts


def _simplex_facts(problem: CrossEntropyUFM, scales: Tensor) -> dict[str, float]:
    K, n = problem.num_classes, problem.counts[0]
    facts = {"cosine": -1 / (K - 1)}
    if problem.balanced:
        a, ratio = scales[0].item(), math.sqrt(problem.feature_decay / problem.weight_decay)
        facts["scale"] = a
        facts["squared_norm_w"] = ratio * (K - 1) / K * math.sqrt(n) * a
        facts["squared_norm_h"] = (K - 1) / K * a / (ratio * math.sqrt(n))
    return facts
