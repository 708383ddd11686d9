"""Solve a model numerically, by the solver that suits it or the one given."""

from __future__ import annotations

from dataclasses import replace
from typing import Protocol

import torch

from tightframe.errors import ArgumentError, DimensionError
from tightframe.ufm.convex import ConvexSolver
from tightframe.ufm.descent import MultistartLBFGS
from tightframe.ufm.flow import LogTimeFlow
from tightframe.ufm.problems import (
    ULPM,
    CrossEntropyUFM,
    DeepUFM,
    LayerPeeled,
    MeanSquaredUFM,
    Problem,
    ReLUImbalanced,
)
from tightframe.ufm.solution import Solution, on_cpu


class Solver(Protocol):
    """Anything with a ``solve(problem)`` that returns the point where it stopped, and why, even if it failed."""

    def solve(self, problem: Problem) -> Solution:
        """Return where the solver stopped."""


@on_cpu
def solve(problem: Problem, solver: Solver | None = None, *, generator: torch.Generator | None = None) -> Solution:
    r"""Return a minimum of a model, found numerically; ``exact`` and ``lower_bound`` say how good it is.

    Without a solver, :class:`CrossEntropyUFM`, :class:`MeanSquaredUFM` and :class:`LayerPeeled` go to
    :class:`~tightframe.ufm.convex.ConvexSolver`, whose duality gap is at most :math:`10^{-9}` of the objective, and
    where d is smaller than the rank of that minimum to :class:`~tightframe.ufm.descent.MultistartLBFGS`, the minimum of
    wider features then being the bound; :class:`ReLUImbalanced` and :class:`DeepUFM` go there too, and :class:`ULPM`,
    which has no minimum, to :class:`~tightframe.ufm.flow.LogTimeFlow`.

    Args:
        problem: any model but :class:`MaxMargin`, whose closed form holds for all counts.
        solver: an instance; None chooses as above.
        generator: Generator of the random starts, if the solver chosen here has any; on the CPU, None is one of seed 0.

    Raises:
        ArgumentError: if the problem is none that the solver solves, or a solver comes with a generator, which it would
            have of its own.

    Example:
        >>> solution = solve(CrossEntropyUFM((50, 20, 5, 5), dim=3, weight_decay=1e-3, feature_decay=1e-3))
        >>> solution.exact, solution.loss - solution.lower_bound < 1e-9 * solution.loss
        (True, True)
    """
    if solver is not None:
        if generator is not None:
            raise ArgumentError("generator must be None where a solver is given; pass it to the solver's constructor")
        return solver.solve(problem)
    if isinstance(problem, CrossEntropyUFM | MeanSquaredUFM | LayerPeeled):
        try:
            return ConvexSolver().solve(problem)
        except DimensionError:
            return _narrow(problem, generator)
    if isinstance(problem, ReLUImbalanced | DeepUFM):
        return MultistartLBFGS(generator=generator).solve(problem)
    if isinstance(problem, ULPM):
        return LogTimeFlow(generator=generator).solve(problem)
    raise ArgumentError(
        f"problem must be one that is minimised, got {type(problem).__name__}; use closed_form(problem)"
    )


def _narrow(problem: CrossEntropyUFM | MeanSquaredUFM | LayerPeeled, generator: torch.Generator | None) -> Solution:
    wide = ConvexSolver().solve(replace(problem, dim=problem.num_classes))
    found = MultistartLBFGS(generator=generator).solve(problem)
    rank = int(wide.facts["rank"])
    return replace(
        found,
        lower_bound=max(found.lower_bound, wide.lower_bound),
        reason=f"{found.reason}; the bound is the minimum of d >= {rank}, which d = {problem.dim} cannot hold",
        facts={**found.facts, "wide_minimum": wide.loss},
    )
