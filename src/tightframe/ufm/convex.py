"""Global minima of the one-layer models: the convex problem in the logits, solved and certified."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from tightframe.errors import ArgumentError, DimensionError, check_positive
from tightframe.ufm.bound import logits_bound
from tightframe.ufm.descent import lbfgs
from tightframe.ufm.grouped import Grouped, Point
from tightframe.ufm.newton import Iterate, Outcome, Penalty, newton
from tightframe.ufm.problem import Problem, check_penalty, factorise
from tightframe.ufm.solution import Solution, centering

_PATIENCE = 30  # Newton steps before a rescue
_RESCUES, _DESCENT = 3, 300  # of Newton's method by L-BFGS, and its steps
_MULTIPLIERS = 60  # tried at most
_SAME_NORM = 1e-11  # relative error of the norm at which the multiplier of a budget is found


@dataclass(frozen=True)
class ConvexSolver:
    r"""The global minimum over all features and classifiers, with a certificate.

    .. math:: \min_{Y, b} F(\mathrm{diag}(c)^{-1/2}\, Y + 1 b^\top) + \sigma \lVert Y\rVert_*
        + \tfrac{\lambda_b}2\lVert b\rVert^2

    by Newton's method on matrices of the rank that it finds (:mod:`tightframe.ufm.newton`), with equal classes merged;
    under budgets, the multiplier of :math:`\lVert Y\rVert_* \le K \sqrt{E_W E_H}` is found by secants about it.

    Args:
        tolerance: largest duality gap, relative to the objective.
        max_iterations: Newton steps for one penalty at most.
    """

    tolerance: float = 1e-9
    max_iterations: int = 100

    def __post_init__(self) -> None:
        check_penalty("tolerance", self.tolerance)
        check_positive("max_iterations", self.max_iterations, minimum=0)

    def solve(self, problem: Problem) -> Solution:
        """Return the minimum; ``exact`` says whether the gap met the tolerance.

        Raises:
            ArgumentError: if the problem is none of :class:`CrossEntropyUFM`, :class:`MeanSquaredUFM` and
                :class:`LayerPeeled`.
            DimensionError: if d is smaller than the rank of the minimum, whose bound the message holds.
        """
        if not problem.convex or problem.nonnegative:
            raise ArgumentError(
                f"problem must be convex in its logits for ConvexSolver, got {type(problem).__name__}; "
                "use MultistartLBFGS or LogTimeFlow"
            )
        grouped = Grouped(problem)
        if problem.radius is not None:
            outcome, multiplier = self._under_budgets(problem, grouped, problem.radius)
        else:
            multiplier = problem.sigma
            outcome = self._penalised(problem, grouped, Penalty(multiplier, problem.bias_decay))
        return self._solution(problem, grouped, outcome, multiplier)

    def _penalised(self, problem: Problem, grouped: Grouped, penalty: Penalty) -> Outcome:
        def certified(last: Iterate) -> bool:
            return last.value - _bound(problem, grouped, last.point) <= self.tolerance * abs(last.value)

        start = first_guess(problem, grouped, penalty.sigma)
        return self._newton(problem, grouped, penalty, start, self.tolerance, certified)

    def _newton(
        self,
        problem: Problem,
        grouped: Grouped,
        penalty: Penalty,
        start: Point,
        tolerance: float,
        done: Callable[[Iterate], bool] | None = None,
    ) -> Outcome:
        """Run Newton's method; where it finds no step, or finds the rank slowly, continue by L-BFGS in the factors."""
        outcome = newton(grouped, penalty, start, tolerance, min(self.max_iterations, _PATIENCE), done)
        for _ in range(_RESCUES):
            left = self.max_iterations - outcome.iterations
            if outcome.reason == "converged" or left <= 0:
                break
            start = descended(problem, grouped, penalty, outcome.last.point)
            again = newton(grouped, penalty, start, tolerance, min(left, _PATIENCE), done)
            iterations, products = outcome.iterations + again.iterations, outcome.products + again.products
            outcome = replace(again, iterations=iterations, products=products)
        if outcome.iterations >= self.max_iterations and outcome.reason != "converged":
            return replace(outcome, reason=f"max_iterations = {self.max_iterations} reached")
        return outcome

    def _under_budgets(self, problem: Problem, grouped: Grouped, budget: float) -> tuple[Outcome, float]:
        """Find the multiplier at which the norm is the budget's."""
        high = _largest_multiplier(problem, grouped)
        low, norms, error = -math.inf, {high: 0.0}, 1.0
        at, point, steps, products = high - 1.0, first_guess(problem, grouped, math.exp(high - 1)), 0, 0
        for _ in range(_MULTIPLIERS):
            # The objective misses by the square of what the norm does.
            tolerance = min(self.tolerance, max(1e-11, 1e-3 * error**2))
            outcome = self._newton(problem, grouped, Penalty(math.exp(at)), point, tolerance)
            point, norm = outcome.last.point, outcome.last.norm
            steps, products = steps + outcome.iterations, products + outcome.products
            error = abs(norm / budget - 1)
            low, high = (at, high) if norm > budget else (low, at)
            if outcome.reason != "converged" or error <= _SAME_NORM or high - low <= 4e-16 * abs(at):
                break
            norms[at] = norm
            at = _next_multiplier(norms, budget, low, high)
        last = outcome.last
        scaled = Point(last.point.packed * (budget / last.norm if last.norm > 0 else 1.0))
        value, _ = grouped.shares(grouped.logits(scaled))
        last = replace(last, point=scaled, value=value, fit=value, norm=budget)
        return Outcome(last, steps, products, outcome.reason), math.exp(at)

    def _solution(self, problem: Problem, grouped: Grouped, outcome: Outcome, multiplier: float) -> Solution:
        last = outcome.last
        Z, bias = grouped.unfold(last.point)
        bound = _bound(problem, grouped, last.point)
        gap = last.value - bound
        exact = gap <= self.tolerance * abs(last.value)
        rank = last.rank + int(((grouped.sizes - 1) * (last.point.alpha > 0)).sum())
        if rank > problem.dim:
            raise DimensionError(
                f"dim must be at least the rank {rank} of the global minimum, got d = {problem.dim}; its objective "
                f"{last.value:.12g} is a lower bound of all d. Use MultistartLBFGS for smaller d"
            )
        W, H = factorise(problem, Z)
        facts = {
            "duality_gap": gap,
            "rank": float(rank),
            "groups": float(len(grouped.sizes)),
            "hessian_products": float(outcome.products),
            "multiplier": multiplier,
        }
        met = f"duality gap {gap:.1e} of objective {last.value:.6g}"
        return Solution(
            problem,
            W,
            H,
            bias if problem.bias_decay is not None else None,
            loss=last.value,
            exact=exact,
            reason=f"certified: {met}" if exact else f"{outcome.reason}; {met}",
            lower_bound=bound,
            facts=facts,
            iterations=outcome.iterations,
            residual=last.gap,
        )


def first_guess(problem: Problem, grouped: Grouped, sigma: float) -> Point:
    """Return the logits a_k (e_k - 1/K) that balance the slope of each class alone: the minimum if all are equal."""
    K = problem.num_classes
    strength = problem.class_weights / (sigma * problem.prices.sqrt())
    if not problem.criterion.squared:
        return grouped.fold((K * strength - K + 1).clamp_min(1.0).log().unsqueeze(1) * centering(K))
    scale = (1 - 1 / strength).clamp_min(0)
    if problem.bias_decay is None:
        return grouped.fold(scale.diag())
    return grouped.fold(scale.unsqueeze(1) * centering(K))


def _largest_multiplier(problem: Problem, grouped: Grouped) -> float:
    """Return the logarithm of the multiplier from which on zero is optimal: the norm of the slope there."""
    zero = grouped.fold(torch.zeros(problem.num_classes, problem.num_classes, dtype=torch.float64))
    slope = grouped.slope(grouped.shares(grouped.logits(zero))[1])
    siblings = (slope.alpha.abs() / (grouped.sizes - 1)).where(grouped.sizes > 1, 0.0).max()
    return math.log(max(torch.linalg.matrix_norm(slope.Y, 2).item(), siblings.item()))


def _next_multiplier(norms: dict[float, float], budget: float, low: float, high: float) -> float:
    """Return where the secant through the two nearest norms, about linear in the logarithm, meets the budget."""
    first, second = sorted(norms, key=lambda at: abs(norms[at] - budget))[:2]
    rate = (norms[second] - norms[first]) / (second - first)
    at = max(first + (budget - norms[first]) / rate, min(first, second) - 4.0) if rate < 0 else math.nan
    if low < at < high:
        return at
    return (low + high) / 2 if math.isfinite(low) else high - 4.0


def descended(problem: Problem, grouped: Grouped, penalty: Penalty, start: Point) -> Point:
    """Return where L-BFGS comes to in factors of Y, from a point that is disturbed to let new directions in."""
    rows = problem.rows()
    Z, bias = grouped.unfold(start)
    U, S, Vh = torch.linalg.svd(rows.roots * Z)
    noise = torch.randn(2, *Z.shape, generator=torch.Generator().manual_seed(0), dtype=Z.dtype)
    parts = [U * S.sqrt() + 1e-2 * noise[0], Vh.T * S.sqrt() + 1e-2 * noise[1]]
    if penalty.bias_decay is not None:
        parts.append(bias)

    def value(parts: Sequence[Tensor]) -> Tensor:
        left, right, *rest = parts
        logits = left @ right.T / rows.roots
        total = penalty.sigma / 2 * (left.square().sum() + right.square().sum())
        for b in rest:
            logits, total = logits + b, total + (penalty.bias_decay or 0.0) / 2 * b.square().sum()
        return problem.criterion.fit(rows, logits) + total

    left, right, *rest = lbfgs(value, parts, _DESCENT, 1e-12).parameters
    return grouped.fold(left @ right.T / rows.roots, rest[0] if rest else None)


def _bound(problem: Problem, grouped: Grouped, point: Point) -> float:
    Z, bias = grouped.unfold(point)
    return logits_bound(problem, problem.rows(), Z, bias)
