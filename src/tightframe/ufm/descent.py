"""L-BFGS in the factors, from several starts: for any width, for nonnegative features, and for deep models."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from tightframe.errors import ArgumentError, check_positive
from tightframe.ufm.bound import dual_bound
from tightframe.ufm.deep import DeepUFM, deep_objective, last_features
from tightframe.ufm.problem import Problem, check_penalty, objective_of_rows
from tightframe.ufm.solution import Solution

Features = Callable[[Sequence[Tensor]], tuple[Tensor, ...]]

_CERTAIN = 1e-7  # relative gap below which a point is taken for the minimum: L-BFGS stops at √eps of the parameters

_ROUNDING = 1e-13  # relative decrease of the objective that is none


@dataclass(frozen=True)
class MultistartLBFGS:
    r"""The best of several descents by L-BFGS, each from a Gaussian draw.

    The parameters are :math:`(\lambda_W/\lambda_H)^{1/4} W` and :math:`(\lambda_H/\lambda_W)^{1/4} \sqrt{c_k}\, h_k`,
    between which the penalty does not distinguish; of a budget, directions whose norm is the budget's; of
    :class:`ReLUImbalanced`, S with :math:`H = S \circ S`, where the first start gives each class an axis of its own if
    d >= K; of :class:`DeepUFM`, its factors.

    Args:
        starts: Number of descents.
        max_iterations: steps of each at most.
        tolerance: a descent has converged once no entry of the gradient is larger.
        scale: standard deviation of the logits at a start, about.
        generator: Generator of the draws, on the CPU; None is one of seed 0.
    """

    starts: int = 8
    max_iterations: int = 3000
    tolerance: float = 1e-10
    scale: float = 1.0
    generator: torch.Generator | None = None

    def __post_init__(self) -> None:
        check_positive("starts", self.starts)
        check_positive("max_iterations", self.max_iterations)
        check_penalty("tolerance", self.tolerance)
        check_penalty("scale", self.scale)

    def solve(self, problem: Problem) -> Solution:
        """Return the best point; ``facts`` hold the objective of every start, as ``start.0``, ``start.1`` and so on.

        Raises:
            ArgumentError: if the problem has no minimum (:class:`ULPM`), or constraints (:class:`MaxMargin`).
        """
        if not problem.convex and not isinstance(problem, DeepUFM):
            raise ArgumentError(
                f"problem must have an unconstrained minimum for MultistartLBFGS, got {type(problem).__name__}; "
                "use LogTimeFlow for ULPM, closed_form for MaxMargin"
            )
        generator = self.generator or torch.Generator().manual_seed(0)
        build = factors_of(problem)
        draws = [self._draw(problem, generator) for _ in range(self.starts)]
        if problem.nonnegative and problem.dim >= problem.num_classes:
            # From draws alone classes that should live die in each other's way.
            draws[0][0] = torch.eye(problem.num_classes, problem.dim, dtype=torch.float64)
        runs = [self._descend(problem, build, draw) for draw in draws]
        best = min(runs, key=lambda run: run.value if math.isfinite(run.value) else math.inf)
        facts = {f"start.{index}": run.value for index, run in enumerate(runs)}
        return _solution(problem, tuple(part.detach() for part in build(best.parameters)), best, facts)

    def _draw(self, problem: Problem, generator: torch.Generator) -> list[Tensor]:
        d = problem.dim
        # Logits of several factors have the spread of a product of as many, each of unit rows.
        size = self.scale ** (1 / len(problem.shapes))
        parts = [
            size * torch.randn(shape, generator=generator, dtype=torch.float64) / d ** (0.5 if i else 0)
            for i, shape in enumerate(problem.shapes)
        ]
        if not isinstance(problem, DeepUFM):
            parts[0], parts[1] = parts[0] / d**0.25, parts[1] * d**0.25
        if problem.bias_decay is not None:
            parts.append(torch.zeros(problem.num_classes, dtype=torch.float64))
        return parts

    def _descend(self, problem: Problem, build: Features, parameters: list[Tensor]) -> Descent:
        rows = problem.rows()

        def value(parts: Sequence[Tensor]) -> Tensor:
            if isinstance(problem, DeepUFM):
                return deep_objective(problem, parts)
            H, W, *bias = build(parts)
            return objective_of_rows(problem, rows, W, H, *bias)

        return lbfgs(value, parameters, self.max_iterations, self.tolerance)


@dataclass(frozen=True)
class Descent:
    """Where a descent stopped, and why; ``slope`` is the largest entry of the gradient there."""

    parameters: list[Tensor]
    value: float
    slope: float
    iterations: int
    reason: str


def lbfgs(
    function: Callable[[Sequence[Tensor]], Tensor], parameters: Sequence[Tensor], max_iterations: int, tolerance: float
) -> Descent:
    """Minimise a function of several tensors; restart where the line search fails, until that fails too."""
    leaves = [part.detach().clone(memory_format=torch.contiguous_format).requires_grad_() for part in parameters]
    iterations = 0

    def closure() -> Tensor:
        loss = function(leaves)
        for leaf, gradient in zip(leaves, torch.autograd.grad(loss, leaves), strict=True):
            leaf.grad = gradient.contiguous()
        return loss.detach()

    previous, value = math.inf, closure().item()
    while (reason := _stops(previous, value, _slope(leaves), tolerance)) is None and iterations < max_iterations:
        optimizer = torch.optim.LBFGS(
            leaves,
            max_iter=max_iterations - iterations,
            history_size=30,
            tolerance_grad=tolerance,
            tolerance_change=1e-18,
            line_search_fn="strong_wolfe",
        )
        optimizer.step(closure)
        iterations += max(1, optimizer.state[leaves[0]]["n_iter"])
        previous, value = value, closure().item()
    if reason is None or (iterations >= max_iterations and _slope(leaves) > tolerance):
        reason = f"max_iterations = {max_iterations} reached"
    return Descent([leaf.detach() for leaf in leaves], value, _slope(leaves), iterations, reason)


def _stops(previous: float, value: float, slope: float, tolerance: float) -> str | None:
    if not math.isfinite(value) or not math.isfinite(slope):
        return "the objective is not finite"
    if slope <= tolerance:
        return f"no entry of the gradient is above {tolerance:g}"
    if not value < previous - _ROUNDING * abs(value):
        return f"no step lowers the objective any more; largest entry of the gradient {slope:.1e}"
    return None


def factors_of(problem: Problem) -> Features:
    """Return how parameters become H, W and bias, or the factors of a deep model."""
    if isinstance(problem, DeepUFM):
        return tuple
    root, ratio = problem.rows().roots, problem.split**0.25

    def build(parts: Sequence[Tensor]) -> tuple[Tensor, ...]:
        features, classifier, *bias = parts
        if problem.radius is not None:
            # Both norms, of W and of the priced H, are √radius here: the split makes budgets of them.
            features, classifier = (math.sqrt(problem.radius) * part / torch.linalg.matrix_norm(part) for part in parts)
        if problem.nonnegative:
            features = features.square()
        return features / (ratio * root), ratio * classifier, *bias

    return build


def _solution(problem: Problem, factors: tuple[Tensor, ...], best: Descent, facts: dict[str, float]) -> Solution:
    reason = f"best of {len(facts)} starts: {best.reason}"
    if isinstance(problem, DeepUFM):
        H, W, bias, bound, exact = last_features(problem, factors), factors[-1], None, 0.0, False
    else:
        H, W, *rest = factors
        bias = rest[0] if rest else None
        bound = dual_bound(problem, W, H, bias)
        gap = best.value - bound
        exact = math.isfinite(best.value) and gap <= _CERTAIN * abs(best.value)
        facts["duality_gap"] = gap
        reason += f"; duality gap {gap:.1e}"
    return Solution(
        problem,
        W,
        H,
        bias,
        best.value,
        exact,
        reason,
        bound,
        facts,
        best.iterations,
        best.slope,
        factors if isinstance(problem, DeepUFM) else (),
    )


def _slope(leaves: Sequence[Tensor]) -> float:
    return max(leaf.grad.abs().max().item() for leaf in leaves if leaf.grad is not None)
