"""Deep cross-entropy: the best logits of a library, their factors, and how stable deep neural collapse is.

Factors of unequal decays λ_f are those of equal ones, of the geometric mean λ, times √(λ/λ_f): logits and objective
stay as they are, through ReLUs too, so that only the product of the decays counts.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from tightframe.errors import ArgumentError, DimensionError, check_positive
from tightframe.ufm.deep import DeepUFM, last_features
from tightframe.ufm.logit_structures import ReLUStructure, Structure, dnc, library, margins, solution_dimension
from tightframe.ufm.scales import BestScale, Ray
from tightframe.ufm.solution import Solution, bisect


class Scaled(NamedTuple):
    """A structure with the best of its scales in a problem."""

    structure: Structure | ReLUStructure
    scale: BestScale


def best_scale(structure: Structure | ReLUStructure, problem: DeepUFM) -> BestScale:
    r"""Return the scale at which the logits of a structure cost the least in a deep cross-entropy model.

    .. math:: \min_{\alpha \ge 0}\; \mathrm{CE}(\alpha S) + \lambda \tfrac{L+1}2 \sum_i (\alpha \sqrt n\, s_i)^{2/(L+1)}

    Of L >= 2 layers zero is always a local minimum. Another is there below the decay of the fold, and is the better one
    below a still smaller decay.

    Args:
        structure: S with singular values s; of a :class:`ReLUStructure` the price is its own.
        problem: Model with cross-entropy and balanced counts.

    Raises:
        ArgumentError: if the problem has another loss or unequal counts, or the structure another K.

    Example:
        >>> from tightframe.ufm.logit_structures import dnc, pairs, polygon
        >>> problem = DeepUFM((5,) * 10, dim=10, decays=(2**-10,) * 3)
        >>> [round(best_scale(S, problem).loss, 5) for S in (dnc(10), pairs(10), polygon(10))]
        [0.09066, 0.08001, 0.14196]
    """
    _check_deep(problem)
    if len(structure.logits) != problem.num_classes:
        raise ArgumentError(f"structure must be of K = {problem.num_classes} classes, got {len(structure.logits)}")
    return _ray(structure.logits, structure.cost(problem.num_layers), problem).best(problem.mean_decay)


def structures(problem: DeepUFM) -> list[Scaled]:
    """Return all structures of the library that fit into d dimensions, each at its best scale, the best first.

    Raises:
        ArgumentError: if the problem has another loss than cross-entropy, or unequal counts.
    """
    _check_deep(problem)
    scaled = [Scaled(shape, best_scale(shape, problem)) for shape in _library(problem) if shape.min_dim <= problem.dim]
    # Where two are the same but for order or scale, rounding decides nothing.
    return sorted(scaled, key=lambda entry: round(entry.scale.loss, 12))


def lower_bound(problem: DeepUFM) -> BestScale:
    r"""Return the scale and the value of a bound below which no point of a deep cross-entropy model lies.

    .. math:: \min_{\alpha \ge 0}\; \log(1 + (K-1) e^{-\alpha}) + \lambda\tfrac{L+1}2 ((K-1)\,\alpha\sqrt n)^{2/(L+1)}

    By Jensen the fit of logits Z is at least that of the margin :math:`\lVert Z\rVert_*/((K-1)\sqrt n)`, and the price
    at least that of a single singular value :math:`\lVert Z\rVert_*`, as it is at most the product of the norms of all
    factors; a ReLU makes no norm larger, so that this holds with ReLUs too. It is attained by one layer, by two
    classes, and by zero where ``zero_decay`` says so.

    Raises:
        ArgumentError: if the problem has another loss than cross-entropy, or unequal counts.
    """
    _check_deep(problem)
    cost = (problem.num_classes - 1) ** (2 / (problem.num_layers + 1))
    return _ray(dnc(problem.num_classes).logits, cost, problem).best(problem.mean_decay)


def stable_scale(num_classes: int, num_layers: int) -> float:
    r"""Return the scale α of deep neural collapse from which on its Hessian has no negative eigenvalue, linear model.

    With :math:`q = (L-1)/(L+1)` and :math:`D = (e^\alpha - 1)/(e^\alpha + K - 1)`, own probability less another:

    - K >= 4: :math:`\alpha = K q`. Just below, K (K - 3)/2 eigenvalues are negative, those of symmetric changes of the
      logits with zero diagonal and zero sums of rows.
    - K = 3: :math:`\tfrac\alpha3 (1 + \tfrac{A D}{A + D}) = q` with :math:`A = 1 + 3/\alpha`. Just below, two are,
      those of symmetric changes with zero sums of rows and any diagonal v, beside a shift of all classes against v.
    - K = 2: :math:`\alpha (1 + D)/2 = q`, the scale of the fold. Just below, one is, that of the scale itself.

    Args:
        num_classes: K >= 2.
        num_layers: L >= 1.

    Example:
        >>> round(stable_scale(10, 5), 4)
        6.6667
    """
    check_positive("num_classes", num_classes, 2)
    check_positive("num_layers", num_layers)
    q = (num_layers - 1) / (num_layers + 1)
    if num_classes >= 4 or num_layers == 1:
        return num_classes * q

    def excess(a: float) -> float:
        D = math.expm1(a) / (math.exp(a) + num_classes - 1)
        if num_classes == 2:
            return a * (1 + D) / 2 - q
        A = 1 + 3 / a
        return a / 3 * (1 + A * D / (A + D)) - q

    return bisect(excess, 1e-9, num_classes * q)


def stationary_decay(scale: float, problem: DeepUFM) -> float:
    r"""Return the decay at which deep neural collapse of a linear model is stationary at a scale α > 0.

    .. math:: \lambda = n^{-1/(L+1)}\, \alpha^{(L-1)/(L+1)} / (e^\alpha + K - 1)
    """
    L = problem.num_layers
    return scale ** ((L - 1) / (L + 1)) / (
        problem.counts[0] ** (1 / (L + 1)) * (math.exp(scale) + problem.num_classes - 1)
    )


def deep_form(problem: DeepUFM) -> Solution:
    """Return the best point of the library of a deep cross-entropy model, with what is known of all of its structures.

    It is the global minimum by proof where it attains :func:`lower_bound`: of one layer with d >= K - 1, of two classes
    without ReLUs, and where the decay is so large that zero does. Else a better point may exist, of a structure that
    the library lacks.

    Args:
        problem: Model with cross-entropy and balanced counts; decays may differ.

    Raises:
        ArgumentError: if the problem has another loss or unequal counts.
        DimensionError: if no structure but zero fits into d dimensions, and zero is not known to be the minimum.

    Example:
        >>> solution = deep_form(DeepUFM((5,) * 10, dim=10, decays=(2**-10,) * 6))
        >>> solution.reason
        'polygon is the best of 5 structures, of rank 2; the global minimum is not known'
        >>> round(solution.loss, 5), solution.exact
        (0.04533, False)
    """
    candidates, bound = structures(problem), lower_bound(problem)
    if not candidates and bound.value > 0:
        least = min(shape.min_dim for shape in _library(problem))
        raise DimensionError(
            f"dim must be at least {least} for a structure of K = {problem.num_classes} classes, got {problem.dim}"
        )
    scale = candidates[0].scale if candidates else bound
    factors = tuple(torch.zeros(shape, dtype=torch.float64) for shape in problem.shapes)
    if scale.value > 0:
        factors = _factors(problem, candidates[0])
    exact = scale.loss <= bound.loss * (1 + 1e-12)
    return Solution(
        problem=problem,
        W=factors[-1],
        H=last_features(problem, factors),
        bias=None,
        loss=scale.loss,
        exact=exact,
        reason=_reason(candidates, scale, exact),
        lower_bound=min(bound.loss, scale.loss),
        facts=_facts(problem, candidates, bound),
        factors=factors,
    )


def _library(problem: DeepUFM) -> list[Structure] | list[ReLUStructure]:
    return library(problem.num_classes, relu=not problem.linear)


def _ray(logits: Tensor, cost: float, problem: DeepUFM) -> Ray:
    rows = margins(logits)
    # Rows that differ by rounding are of one kind.
    _, kinds, sizes = torch.unique((rows * 1e10).round(), dim=0, return_inverse=True, return_counts=True)
    first = torch.stack([(kinds == kind).nonzero()[0, 0] for kind in range(len(sizes))])
    return Ray(rows[first], sizes.double() / len(rows), cost, problem.counts[0], len(problem.decays))


def _factors(problem: DeepUFM, best: Scaled) -> tuple[Tensor, ...]:
    """Return the factors of equal decays, as those of the problem's."""
    factors = best.structure.factors(best.scale.value, problem.counts[0], problem.num_layers, problem.dim)
    sizes = (math.sqrt(problem.mean_decay / decay) for decay in problem.decays)
    return tuple(size * factor for size, factor in zip(sizes, factors, strict=True))


def _reason(candidates: Sequence[Scaled], scale: BestScale, exact: bool) -> str:
    if exact:
        name = candidates[0].structure.name if scale.value > 0 else "zero"
        return f"{name} is the global minimum: it attains the lower bound"
    if scale.value == 0:
        return f"zero is better than all {len(candidates)} structures; the global minimum is not known"
    best = candidates[0].structure
    rank = int(torch.linalg.matrix_rank(best.logits))
    return f"{best.name} is the best of {len(candidates)} structures, of rank {rank}; the global minimum is not known"


def _facts(problem: DeepUFM, candidates: Sequence[Scaled], bound: BestScale) -> dict[str, float]:
    facts = {"decay": problem.mean_decay, "zero_decay.proved": bound.zero_decay}
    for structure, scale in candidates:
        facts |= {
            f"loss.{structure.name}": scale.loss,
            f"scale.{structure.name}": scale.value,
            f"fold_scale.{structure.name}": scale.fold,
            f"fold_decay.{structure.name}": scale.fold_decay,
            f"zero_decay.{structure.name}": scale.zero_decay,
        }
    if candidates:
        best = candidates[0].structure
        facts["zero_decay"] = max(scale.zero_decay for _, scale in candidates)
        if isinstance(best, Structure):
            facts["dimension"] = solution_dimension(best.rank, problem.dim, problem.num_layers)
    if problem.linear:
        facts["stable_scale.dnc"] = stable_scale(problem.num_classes, problem.num_layers)
        facts["stable_decay.dnc"] = stationary_decay(facts["stable_scale.dnc"], problem)
    return facts


def _check_deep(problem: DeepUFM) -> None:
    if not isinstance(problem, DeepUFM) or problem.loss != "cross-entropy":
        seen = f"loss {problem.loss!r}" if isinstance(problem, DeepUFM) else type(problem).__name__
        raise ArgumentError(f"problem must be a DeepUFM of cross-entropy, got {seen}")
    if not problem.balanced:
        raise ArgumentError(
            f"counts must be equal, got {problem.counts}: of unequal ones no structure is known; use solve(problem)"
        )
