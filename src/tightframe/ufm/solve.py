"""The minimum of a model: its closed form, or the bound where none is known, and a numerical solution."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, Protocol

import torch

from tightframe.errors import ArgumentError, DimensionError
from tightframe.ufm.convex import ConvexSolver
from tightframe.ufm.cross_entropy import CrossEntropyUFM, cross_entropy_form
from tightframe.ufm.deep import DeepUFM, deep_squared_form
from tightframe.ufm.deep_cross_entropy import deep_form
from tightframe.ufm.descent import MultistartLBFGS
from tightframe.ufm.flow import LogTimeFlow
from tightframe.ufm.layer_peeled import LayerPeeled, layer_peeled_form
from tightframe.ufm.margin import ULPM, MaxMargin, max_margin_form, unregularised_form
from tightframe.ufm.mean_squared import MeanSquaredUFM, mean_squared_form
from tightframe.ufm.problem import Problem
from tightframe.ufm.relu import ReLUImbalanced, relu_form
from tightframe.ufm.solution import Solution, on_cpu


def _deep_form(problem: DeepUFM) -> Solution:
    return deep_squared_form(problem) if problem.loss == "mse" else deep_form(problem)


_FORMS: dict[type[Problem], Callable[[Any], Solution]] = {
    CrossEntropyUFM: cross_entropy_form,
    MeanSquaredUFM: mean_squared_form,
    ReLUImbalanced: relu_form,
    LayerPeeled: layer_peeled_form,
    ULPM: unregularised_form,
    MaxMargin: max_margin_form,
    DeepUFM: _deep_form,
}


@on_cpu
def closed_form(problem: Problem) -> Solution:
    """Return the global minimum of a model in closed form, or a good point and a lower bound where none is known.

    ``exact`` says which of the two, and ``reason`` by which theorem or why not; ``facts`` hold scales, norms and
    thresholds. What is known of each model is said by ``cross_entropy_form``, ``mean_squared_form``, ``relu_form``,
    ``layer_peeled_form``, ``max_margin_form``, ``unregularised_form``, ``deep_squared_form`` and ``deep_form``, each in
    the file of its model.

    Args:
        problem: any model of :mod:`tightframe.ufm`.

    Raises:
        ArgumentError: if the problem is none of them, or one of which nothing is known.
        DimensionError: if d is too small for the form.

    Example:
        >>> solution = closed_form(CrossEntropyUFM((5, 5, 5), dim=2, weight_decay=0.01, feature_decay=0.01))
        >>> round(solution.loss, 6), solution.exact
        (0.213667, True)
        >>> solution.gram_W / solution.gram_W[0, 0]
        tensor([[ 1.0000, -0.5000, -0.5000],
                [-0.5000,  1.0000, -0.5000],
                [-0.5000, -0.5000,  1.0000]], dtype=torch.float64)
    """
    for kind, form in _FORMS.items():
        if isinstance(problem, kind):
            return form(problem)
    raise ArgumentError(f"problem must be a model of tightframe.ufm, got {type(problem).__name__}")


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
    if isinstance(problem, ULPM):
        return LogTimeFlow(generator=generator).solve(problem)
    if isinstance(problem, MaxMargin):
        raise ArgumentError("problem must be one that is minimised, got MaxMargin; use closed_form(problem)")
    descent = MultistartLBFGS(generator=generator)
    if not problem.convex or problem.nonnegative:
        return descent.solve(problem)
    try:
        return ConvexSolver().solve(problem)
    except DimensionError:
        wide = ConvexSolver().solve(replace(problem, dim=problem.num_classes))
    found = descent.solve(problem)
    rank = int(wide.facts["rank"])
    return replace(
        found,
        lower_bound=max(found.lower_bound, wide.lower_bound),
        reason=f"{found.reason}; the bound is the minimum of d >= {rank}, which d = {problem.dim} cannot hold",
        facts={**found.facts, "wide_minimum": wide.loss},
    )
