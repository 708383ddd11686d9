"""Which solver a problem goes to, and what comes back from one that was given."""

import pytest
import torch

from tightframe.errors import ArgumentError
from tightframe.ufm import (
    ULPM,
    CrossEntropyUFM,
    DeepUFM,
    LayerPeeled,
    MaxMargin,
    MeanSquaredUFM,
    ReLUImbalanced,
    closed_form,
)
from tightframe.ufm.convex import ConvexSolver
from tightframe.ufm.descent import MultistartLBFGS
from tightframe.ufm.flow import LogTimeFlow
from tightframe.ufm.solve import solve


@pytest.mark.parametrize(
    "problem",
    [
        CrossEntropyUFM((6, 3, 1), 2, 0.01, 0.01),
        MeanSquaredUFM((6, 3, 1), 3, 0.01, 0.01, None, 0.0),
        LayerPeeled((6, 3, 1), 2, 1.0, 1.0),
    ],
    ids=str,
)
def test_convex_problems_are_certified(problem):
    solution = solve(problem)
    assert solution.exact
    assert solution.reason.startswith("certified: duality gap")
    assert solution.loss == ConvexSolver().solve(problem).loss


@pytest.mark.parametrize("problem", [CrossEntropyUFM((6, 3, 1), 1, 0.01, 0.01), LayerPeeled((6, 3, 1), 1, 1.0, 1.0)])
def test_narrow_problems_keep_the_bound_of_wide_ones(problem):
    solution = solve(problem)
    assert solution.W.shape == (3, 1)
    wide = solve(type(problem)(problem.counts, 3, *([0.01] * 2 if isinstance(problem, CrossEntropyUFM) else [1.0] * 2)))
    assert solution.lower_bound == pytest.approx(wide.loss, rel=1e-8)
    assert solution.loss > wide.loss + 1e-3
    assert not solution.exact
    assert "the bound is the minimum of d >= 2, which d = 1 cannot hold" in solution.reason


def test_others_go_to_descent_or_flow():
    relu = ReLUImbalanced((3, 2), 3, 0.05, 0.05)
    assert solve(relu).loss == pytest.approx(closed_form(relu).loss, abs=1e-10)
    deep = DeepUFM((2, 2), 3, (0.01, 0.01, 0.01), "mse")
    assert solve(deep).loss == pytest.approx(closed_form(deep).loss, abs=1e-10)
    flow = solve(ULPM((2, 2), 2))
    assert flow.facts["time"] == pytest.approx(1e12)


def test_generator_reaches_the_solver():
    problem = ULPM((2, 2), 2)
    found = [solve(problem, generator=torch.Generator().manual_seed(seed)).W for seed in (1, 1, 2)]
    assert torch.equal(found[0], found[1])
    assert not torch.equal(found[0], found[2])


def test_a_given_solver_is_used():
    problem = CrossEntropyUFM((6, 3, 1), 2, 0.01, 0.01)
    assert "start.2" in solve(problem, MultistartLBFGS(starts=3)).facts
    assert solve(ULPM((2, 2), 2), LogTimeFlow(final_time=10.0, records=2)).facts["time"] == pytest.approx(10)
    with pytest.raises(ArgumentError, match="generator must be None where a solver is given"):
        solve(problem, MultistartLBFGS(), generator=torch.Generator())


def test_max_margin_has_a_closed_form_only():
    with pytest.raises(ArgumentError, match=r"got MaxMargin; use closed_form\(problem\)"):
        solve(MaxMargin((2, 1), 2))
