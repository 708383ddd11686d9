"""Largest margins: the SELI geometry with its dual certificate, and the flow of the unregularised model towards it."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from tightframe.errors import ArgumentError, check_positive, check_range, require_extra
from tightframe.ufm.problem import Problem, factorise, objective
from tightframe.ufm.solution import Solution, bisect, centering, norms


@dataclass(frozen=True, repr=False)
class ULPM(Problem):
    r"""The unconstrained layer-peeled model: the sum of cross-entropies, nothing else (Ji et al. 2022).

    .. math:: \sum_i \mathrm{CE}(W h_i, y_i)

    Its infimum 0 is not attained; gradient flow goes to infinity in a direction that :class:`MaxMargin` decides.
    """

    @property
    def class_weights(self) -> Tensor:
        """``n_k`` ``(K,)``, for the objective is a sum."""
        return self.n


@dataclass(frozen=True, repr=False)
class MaxMargin(Problem):
    r"""The unconstrained-feature support vector machine (Thrampoulidis et al. 2022).

    .. math:: \min \tfrac12\lVert W\rVert^2 + \tfrac12\lVert H\rVert^2 \quad \text{s.t.}\quad
        (w_{y_i} - w_j)^\top h_i \ge 1 \quad \forall i,\ j \ne y_i
    """

    @property
    def has_objective(self) -> bool:
        """False: there are constraints in place of a fit."""
        return False

    @property
    def class_weights(self) -> Tensor:
        """``n_k`` ``(K,)``."""
        return self.n


def max_margin_form(problem: MaxMargin) -> Solution:
    r"""Return the minimum of the unconstrained-feature SVM, the SELI geometry, for any counts.

    The logits are the simplex-encoded labels, :math:`Z = P` a class (Thrampoulidis et al. 2022, arXiv 2208.05512,
    theorem 1), and with :math:`P\,\mathrm{diag}(n) P = V \Lambda^2 V^\top` on the vectors of zero sum

    .. math:: W W^\top = V\Lambda V^\top, \qquad H H^\top = P V \Lambda^{-1} V^\top P, \qquad
        \tfrac12\lVert W\rVert^2 + \tfrac12\lVert H\rVert^2 = \operatorname{tr}\Lambda.

    It is global by :func:`margin_certificate`.

    Args:
        problem: d >= K - 1.

    Returns:
        The solution; ``facts`` hold ``max_normalised_margin`` = 1/(2 tr Λ), the largest smallest margin in units of
        ‖W‖² + ‖H‖², ``dual_value``, and ``certificate_norm`` and ``certificate_largest``, which must be at most 1 and 0
        up to rounding.

    Raises:
        DimensionError: if d < K - 1.

    Example:
        >>> solution = max_margin_form(MaxMargin((9, 9, 1), dim=2))
        >>> round(solution.loss, 6), round(solution.facts["dual_value"], 6)
        (4.914854, 4.914854)
    """
    W, H, facts = _separator(problem)
    loss = (facts["squared_norm_W"] + facts["squared_norm_H"]) / 2
    reason = "SELI: the dual certificate has operator norm 1 and nonnegative multipliers"
    return Solution(problem, W, H, None, loss, True, reason, lower_bound=facts["dual_value"], facts=facts)


def margin_certificate(problem: MaxMargin | ULPM) -> Tensor:
    r"""Return the dual certificate :math:`B = V \Lambda^{-1} V^\top` ``(K, K)`` of the largest margin.

    The multiplier of sample i against class j is :math:`-B_{j y_i}`; feasible means that these are nonnegative and that
    the operator norm of B :math:`\mathrm{diag}(\sqrt n)` is at most 1, and then :math:`\operatorname{tr}(B\,
    \mathrm{diag}(n))` bounds the minimum from below.

    :math:`B^2 = D^{-1} - D^{-1} 11^\top D^{-1} / (1^\top D^{-1} 1)`, D = diag(n), is the Laplacian of a complete graph
    with positive weights. Hence :math:`e^{-tB^2}` has positive entries, and off the diagonal
    :math:`B \propto -\int_0^\infty e^{-tB^2} t^{-3/2} dt` is negative for all counts.

    Example:
        >>> margin_certificate(MaxMargin((4, 4), dim=1))
        tensor([[ 0.2500, -0.2500],
                [-0.2500,  0.2500]], dtype=torch.float64)
    """
    inverse = 1 / problem.n
    eigenvalues, V = torch.linalg.eigh(inverse.diag() - torch.outer(inverse, inverse) / inverse.sum())
    eigenvalues[0] = 0.0  # of the vector of ones
    return (V * eigenvalues.clamp(min=0.0).sqrt()) @ V.T


def step_geometry(ratio: float, rho: float, num_classes: int, minority_count: float = 1.0) -> dict[str, float]:
    r"""Return the SELI geometry of (R, ρ)-STEP counts: norms and inner products of majority and minority classes.

    (1-ρ)K majority classes have R m samples, ρK minority classes m (Thrampoulidis et al. 2022, lemma on STEP).

    Args:
        ratio: R >= 1; need not make R m an integer.
        rho: share of minority classes in (0, 1), ρK an integer.
        num_classes: K >= 2.
        minority_count: m > 0.

    Returns:
        ``w_majority``, ``w_minority``: squared norms of class vectors; ``w_majority_pair``, ``w_minority_pair``,
        ``w_cross``: inner products of two of the majority, the minority, one of each (a pair of a group of one class is
        not there); the same of class means with ``h_``; ``singular_value_majority``, ``_between``, ``_minority``.

    Raises:
        ArgumentError: if an argument is outside its range.

    Example:
        >>> step = step_geometry(ratio=10, rho=0.5, num_classes=4)
        >>> round(step["w_minority_pair"] / step["w_minority"], 4)  # the minority's class vectors come closer
        0.0794
    """
    K = num_classes
    check_positive("num_classes", K, minimum=2)
    check_range("ratio", ratio, ratio >= 1, ">= 1")
    check_range("minority_count", minority_count, minority_count > 0, "> 0")
    minority = round(rho * K)
    if not 0 < minority < K or abs(minority - rho * K) > 1e-9:
        raise ArgumentError(f"rho must make rho * K one of 1, ..., {K - 1} for K = {K}, got rho = {rho}")
    majority, q = K - minority, math.sqrt(minority_count)
    s_A, s_B, s_AB = q * math.sqrt(ratio), q, q * math.sqrt(ratio * minority / K + majority / K)
    facts = {"singular_value_majority": s_A, "singular_value_between": s_AB, "singular_value_minority": s_B}
    # The class vectors' Gram matrix has the singular values, the class means' their inverses, on the same directions.
    for name, (a, b, ab) in {"w": (s_A, s_B, s_AB), "h": (1 / s_A, 1 / s_B, 1 / s_AB)}.items():
        for group, size, other, value in (("majority", majority, minority, a), ("minority", minority, majority, b)):
            between = ab * other / (K * size)
            facts[f"{name}_{group}"] = value * (1 - 1 / size) + between
            if size > 1:
                facts[f"{name}_{group}_pair"] = between - value / size
        facts[f"{name}_cross"] = -ab / K
    return facts


def unregularised_form(problem: ULPM) -> Solution:
    r"""Return the direction in which the unregularised model is minimised, at margin 1.

    The infimum 0 of the loss is not attained. Once the loss is below log 2 all samples are on their side, and gradient
    flow then converges in direction to a critical point of the largest margin (Ji et al. 2022, arXiv 2110.02796), of
    which :func:`max_margin_form` is the global one.

    Args:
        problem: d >= K - 1.

    Returns:
        The largest-margin solution, with the loss there; ``facts`` as of :func:`max_margin_form`, and
        ``separation_loss``, log 2.

    Raises:
        DimensionError: if d < K - 1.

    Example:
        >>> solution = unregularised_form(ULPM((3, 3, 3), dim=2))
        >>> solution.exact, solution.lower_bound, round(solution.facts["max_normalised_margin"] * 4 * math.sqrt(3), 12)
        (False, 0.0, 1.0)
    """
    W, H, facts = _separator(problem)
    reason = "the infimum 0 is not attained: this is the direction of the largest margin, at margin 1"
    facts["separation_loss"] = math.log(2)
    loss = objective(problem, W, H).item()
    return Solution(problem, W, H, None, loss, False, reason, lower_bound=0.0, facts=facts)


def etf_flow_scale(problem: ULPM, times: Tensor, start: float) -> Tensor:
    r"""Return the scale a(t) of the logits :math:`a P` along gradient flow from a balanced simplex ETF.

    From W and H of equal norms with logits :math:`a(0) P` the flow stays on such, with

    .. math:: \dot a = \frac{2\sqrt n\, K a}{e^a + K - 1}, \qquad
        \mathrm{Ei}(a) + (K - 1) \log a = 2\sqrt n\, K t + \mathrm{const},

    so that the loss is :math:`(K-1)\sqrt n / (2 t a)` in the end.

    Args:
        problem: balanced.
        times: t >= 0, of any shape.
        start: a(0) > 0.

    Raises:
        ArgumentError: if the counts differ, a time is negative or infinite, or ``start`` is not a finite number > 0.

    Example:
        >>> etf_flow_scale(ULPM((10, 10, 10), dim=2), torch.tensor([0.0, 1.0, 1e6, 1e12]), start=1.0)
        tensor([ 1.0000,  3.8871, 19.6829, 34.0718], dtype=torch.float64)
    """
    if not problem.balanced:
        raise ArgumentError(f"counts must be equal for the flow to stay on simplex ETFs, got {problem.counts}")
    check_range("start", start, start > 0, "> 0")
    times = times.double()
    if not bool(((times >= 0) & times.isfinite()).all()):
        raise ArgumentError(f"times must be finite and >= 0, got {times.min().item()} to {times.max().item()}")
    K = problem.num_classes
    speed = 2 * math.sqrt(problem.counts[0]) * K

    exponential_integral = require_extra("scipy.special", "theory").expi

    def clock(a: float) -> float:
        return float(exponential_integral(a)) + (K - 1) * math.log(a)

    def scale(t: float) -> float:
        wanted = clock(start) + speed * t
        high = start + 1.0
        while clock(high) < wanted:
            high *= 2
        return start if t == 0 else bisect(lambda a: clock(a) - wanted, start, high)

    return torch.tensor([scale(t) for t in times.flatten().tolist()], dtype=torch.float64).reshape(times.shape)


def _separator(problem: MaxMargin | ULPM) -> tuple[Tensor, Tensor, dict[str, float]]:
    problem.require_dim(problem.num_classes - 1, "the SELI geometry")
    W, H = factorise(problem, centering(problem.num_classes))
    facts = {**norms(problem, W, H), **_certificate_facts(problem)}
    facts["max_normalised_margin"] = 1 / (facts["squared_norm_W"] + facts["squared_norm_H"])
    return W, H, facts


def _certificate_facts(problem: MaxMargin | ULPM) -> dict[str, float]:
    B, counts = margin_certificate(problem), problem.n
    norm = torch.linalg.matrix_norm(B * counts.sqrt(), ord=2).item()
    off_diagonal = B.clone().fill_diagonal_(-math.inf)
    return {
        "certificate_norm": norm,
        "certificate_largest": off_diagonal.max().item(),
        "dual_value": (B.diagonal() * counts).sum().item() / max(norm, 1.0),
    }
