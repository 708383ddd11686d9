"""The layer-peeled model: its minimum for one or two groups of classes, and where minority classes become one."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass

import torch
from torch import Tensor

from tightframe.errors import ShapeError, check_positive
from tightframe.ufm.bound import descent, logits_bound, slope_norm
from tightframe.ufm.problem import Problem, check_penalty, factorise
from tightframe.ufm.solution import Solution, centering, norms
from tightframe.ufm.two_groups import TwoGroups, threshold_point, two_groups

_EQUAL = 1e-12  # relative difference up to which class weights are equal: what n ω loses to rounding
_EXACT = 1e-10  # relative Frank-Wolfe gap up to which a point is the minimum


@dataclass(frozen=True, repr=False)
class LayerPeeled(Problem):
    r"""The layer-peeled model: cross-entropy under budgets (Fang et al. 2021, arXiv 2101.12699).

    .. math:: \min \sum_i \omega_{y_i}\, \mathrm{CE}(W h_i, y_i) \quad \text{s.t.}\quad
        \tfrac1K \sum_k \lVert w_k\rVert^2 \le E_W,\quad
        \tfrac1K \sum_k \tfrac1{n_k} \sum_{i: y_i = k} \lVert h_i\rVert^2 \le E_H

    Args:
        counts: ``n_k``.
        dim: d.
        weight_budget: :math:`E_W > 0`.
        feature_budget: :math:`E_H > 0`.
        sample_weights: Weights as in :class:`~tightframe.ufm.CrossEntropyUFM`; oversampling class k by r is a weight r
            times as large.
    """

    weight_budget: float
    feature_budget: float
    sample_weights: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        check_penalty("weight_budget", self.weight_budget)
        check_penalty("feature_budget", self.feature_budget)

    @property
    def convex(self) -> bool:
        """True."""
        return True

    @property
    def prices(self) -> Tensor:
        """1 for each class: a budget counts the mean of its samples ``(K,)``."""
        return torch.ones(self.num_classes, dtype=torch.float64)

    @property
    def radius(self) -> float:
        """K √(E_W E_H): both budgets together are this ball of nuclear norm."""
        return self.num_classes * math.sqrt(self.weight_budget * self.feature_budget)

    @property
    def split(self) -> float:
        """Ratio of the budgets."""
        return self.weight_budget / self.feature_budget


def layer_peeled_form(problem: LayerPeeled) -> Solution:
    r"""Return the minimum of the layer-peeled model of one or two groups of classes, else a point and a lower bound.

    Samples of a class share their feature (Jensen), and both budgets are one on the logits:

    .. math:: \min_Z \sum_k n_k \omega_k\, \mathrm{CE}(z_k, k) \quad\text{s.t.}\quad
        \lVert Z\rVert_* \le r = K \sqrt{E_W E_H}

    (Fang et al. 2021, arXiv 2101.12699, whose program in 2K x 2K matrices, :func:`semidefinite_matrix`, is the same).
    Only the class weights :math:`n_k \omega_k` count. If all are equal the minimum is the simplex ETF
    :math:`Z = \tfrac{r}{K-1} (I - \tfrac1K 11^\top)`. If they have two values, four scalars remain, which bisection
    finds to the last digit. Either way the gap of Frank and Wolfe,
    :math:`\langle\nabla F, Z\rangle + r \lVert\nabla F\rVert_{op}`, certifies the point. Of any other weights the
    point is the better of the simplex and the minimum of two groups whose weights are the means of these.

    Args:
        problem: d must be at least the rank of the logits: K - 1, or fewer where classes share a vector.

    Returns:
        The solution, ``exact`` if the gap is at most 1e-10 of the loss. ``facts`` hold ``gap``, ``relative_gap``,
        ``nuclear_norm`` r, ``operator_norm`` of the slope, which at the minimum is the multiplier -dF/dr, and the
        squared norms of W and H; of two groups moreover ``ratio`` R of their weights, ``majority_cosine`` and
        ``minority_cosine`` between class vectors of a group (nan where they are zero, or there is one only), and
        ``collapse_ratio``, from which on the minority vectors are one.

    Raises:
        DimensionError: if d is smaller than the rank.

    Example:
        >>> solution = layer_peeled_form(LayerPeeled((80, 80, 1, 1), dim=4, weight_budget=1.0, feature_budget=1.0))
        >>> solution.exact, round(solution.facts["minority_cosine"], 6), round(solution.facts["collapse_ratio"], 6)
        (True, 1.0, 3.380488)
    """
    radius, weights = problem.radius, problem.class_weights
    major, values = groups_of(problem)
    if len(values) == 1:
        return _at(
            problem, _simplex(problem, radius), problem.num_classes - 1, "simplex ETF: all classes weigh the same"
        )
    heavy, light = weights[major].mean().item(), weights[~major].mean().item()
    point = two_groups(int(major.sum()), int((~major).sum()), heavy / light, radius)
    Z = _logits(point, major)
    if len(values) == 2:
        facts = _facts(problem, point, heavy, light)
        return _at(problem, Z, point.rank, f"two groups of classes: {_describe(point)}", facts)
    reason = "no closed form for more than two class weights: the best of two symmetric points"
    candidates = [(_simplex(problem, radius), problem.num_classes - 1), (Z, point.rank)]
    points = [_at(problem, Z, rank, reason, exact=False) for Z, rank in candidates if rank <= problem.dim]
    if not points:
        problem.require_dim(point.rank, "two groups of classes")
    return min(points, key=lambda solution: solution.loss)


def minority_collapse_threshold(majority: int, minority: int, weight_budget: float, feature_budget: float) -> float:
    r"""Return the imbalance ratio :math:`R_0` from which on all minority classes have one and the same class vector.

    At :math:`R_0` the multiplier of the budget is the weight of a minority class, :math:`1/R_0`, and the logits do not
    tell minority classes apart: :math:`R_0 (1 - p_{own} + p_{other}) = 1` at a majority sample. Norm and ratio are
    explicit in one unknown, and grow with it.

    Args:
        majority: Number of classes of weight R, >= 1.
        minority: Number of classes of weight 1, >= 1; one alone has nobody to share its vector with.
        weight_budget: :math:`E_W > 0`.
        feature_budget: :math:`E_H > 0`; only the product :math:`E_H E_W` counts.

    Returns:
        A number > 1, to about 12 digits; it grows like the exponential of the root of the budgets. Infinite if there is
        one minority class, or beyond 1e308.

    Raises:
        ArgumentError: if a count is not a positive integer or a budget not a positive number.

    Example:
        >>> round(minority_collapse_threshold(5, 5, weight_budget=1.0, feature_budget=5.0), 6)
        12.192447
    """
    norm = _norm(majority, minority, weight_budget, feature_budget)
    if minority == 1:
        return math.inf
    log_ratio = threshold_point(majority, minority, norm)[1]
    return math.exp(log_ratio) if log_ratio < 709 else math.inf


def minority_cosine(ratio: float, majority: int, minority: int, weight_budget: float, feature_budget: float) -> float:
    r"""Return the cosine between the class vectors of two minority classes at the minimum (Fang et al. 2021, figure 3).

    Args:
        ratio: R > 0, the weight of a majority class over that of a minority class. Below 1 the minority classes weigh
            more, as after too much oversampling.
        majority: :math:`K_A \ge 1`.
        minority: :math:`K_B \ge 1`.
        weight_budget: :math:`E_W > 0`.
        feature_budget: :math:`E_H > 0`.

    Returns:
        :math:`-1/(K-1)` at R = 1, and 1 from :func:`minority_collapse_threshold` on; nan where the vectors are zero
        (small budgets are spent on the heavy classes alone), or there is one minority class only.

    Raises:
        ArgumentError: if an argument is outside its range.

    Example:
        >>> [round(minority_cosine(R, 5, 5, 1.0, 5.0), 3) for R in (1, 8, 12, 100)]
        [-0.111, 0.283, 0.94, 1.0]
    """
    check_penalty("ratio", ratio)
    norm = _norm(majority, minority, weight_budget, feature_budget)
    if ratio < 1:
        return two_groups(minority, majority, 1 / ratio, norm).majority_cosine
    return two_groups(majority, minority, ratio, norm).minority_cosine


def oversampling_to_avoid_collapse(
    ratio: float, majority: int, minority: int, weight_budget: float, feature_budget: float
) -> float:
    r"""Return :math:`R / R_0`, by more than which minority samples are to be repeated for their vectors to be distinct.

    In this model a sample repeated w times, or of weight w, makes of R just R/w, since the budget of features averages
    over classes. At w = R the minimum is the exact simplex ETF.

    Args:
        ratio: R, the weight of a majority class over that of a minority class, > 0.
        majority: :math:`K_A \ge 1`.
        minority: :math:`K_B \ge 1`.
        weight_budget: :math:`E_W > 0`.
        feature_budget: :math:`E_H > 0`.

    Returns:
        At least 1, which says that the vectors are distinct as it is.

    Raises:
        ArgumentError: if an argument is outside its range.

    Example:
        >>> round(oversampling_to_avoid_collapse(1000.0, 5, 5, weight_budget=1.0, feature_budget=5.0), 4)
        82.018
    """
    check_penalty("ratio", ratio)
    return max(1.0, ratio / minority_collapse_threshold(majority, minority, weight_budget, feature_budget))


def semidefinite_matrix(solution: Solution) -> Tensor:
    r"""Return :math:`X = (H; W)(H; W)^\top` ``(2K, 2K)``, the variable of the semidefinite program of Fang et al. 2021.

    Its diagonal blocks are the Gram matrices of class means and class vectors, of traces at most :math:`K E_H` and
    :math:`K E_W`; that beside the diagonal holds the logits of class k in row k.

    Args:
        solution: Solution of a :class:`LayerPeeled` problem.

    Raises:
        ShapeError: if its features are not one row a class.

    Example:
        >>> solution = layer_peeled_form(LayerPeeled((4, 4), dim=2, weight_budget=3.0, feature_budget=3.0))
        >>> X = semidefinite_matrix(solution)
        >>> round(X[:2, :2].trace().item(), 9), torch.allclose(X[:2, 2:], solution.logits)
        (6.0, True)
    """
    if len(solution.H) != solution.problem.num_classes:
        raise ShapeError(
            f"solution must have one feature for each of K = {solution.problem.num_classes} classes, got "
            f"{len(solution.H)} rows; replace H by solution.class_means"
        )
    rows = torch.cat([solution.H, solution.W])
    return rows @ rows.T


def groups_of(problem: LayerPeeled) -> tuple[Tensor, list[float]]:
    """Return which classes are heavy ``(K,)`` bool, and the distinct class weights n_k ω_k, rising.

    Of more than two weights, the heavy classes are those above the widest gap between neighbours, in logarithms.
    """
    weights = problem.class_weights
    values: list[float] = []
    for weight in weights.sort().values.tolist():
        if not values or weight > values[-1] * (1 + _EQUAL):
            values.append(weight)
    gaps = [math.log(high / low) for low, high in itertools.pairwise(values)]
    cut = values[gaps.index(max(gaps)) + 1] if gaps else values[0]
    return weights >= cut, values


def _norm(majority: int, minority: int, weight_budget: float, feature_budget: float) -> float:
    check_positive("majority", majority)
    check_positive("minority", minority)
    check_penalty("feature_budget", feature_budget)
    check_penalty("weight_budget", weight_budget)
    return (majority + minority) * math.sqrt(feature_budget) * math.sqrt(weight_budget)


def _simplex(problem: LayerPeeled, radius: float) -> Tensor:
    return centering(problem.num_classes) * (radius / (problem.num_classes - 1))


def _logits(point: TwoGroups, major: Tensor) -> Tensor:
    """Return the logits ``(K, K)`` of a point, row k those of class k, given which classes are of group A."""
    heavy = major.double()
    light = 1 - heavy
    side = heavy / point.majority - light / point.minority
    Z = torch.outer(point.x * heavy - point.y * light, side / torch.linalg.vector_norm(side))
    for mask, scale in ((major, point.a), (~major, point.b)):
        classes = mask.nonzero().squeeze(1)
        Z[classes.unsqueeze(1), classes] += scale * centering(len(classes))
    return Z


def _facts(problem: LayerPeeled, point: TwoGroups, heavy: float, light: float) -> dict[str, float]:
    budgets = problem.weight_budget, problem.feature_budget
    return {
        "ratio": heavy / light,
        "majority_cosine": point.majority_cosine,
        "minority_cosine": point.minority_cosine,
        "collapse_ratio": minority_collapse_threshold(point.majority, point.minority, *budgets),
    }


def _describe(point: TwoGroups) -> str:
    if point.joint == 0:
        return "only the heavy classes are told apart"
    if point.minority > 1 and point.b == 0:
        return "the class vectors of the light ones are one (minority collapse)"
    return "all class vectors are distinct"


def _at(
    problem: LayerPeeled,
    Z: Tensor,
    rank: int,
    reason: str,
    facts: dict[str, float] | None = None,
    *,
    exact: bool = True,
) -> Solution:
    """Return the solution with logits Z, ``exact`` if its gap agrees."""
    problem.require_dim(rank, "the optimal logits")
    rows = problem.rows()
    loss = problem.criterion.fit(rows, Z).item()
    bound = min(loss, logits_bound(problem, rows, Z))
    gap = loss - bound
    W, H = factorise(problem, Z)
    facts = {
        "gap": gap,
        "relative_gap": gap / loss if gap > 0 else 0.0,
        "nuclear_norm": problem.radius,
        "operator_norm": slope_norm(problem, rows, descent(problem, rows, Z)),
        **(facts or {}),
        **norms(problem, W, H),
    }
    return Solution(problem, W, H, None, loss, exact and gap <= _EXACT * loss, reason, lower_bound=bound, facts=facts)
