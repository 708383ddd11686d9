"""Descent in the factors finds what brute force and the convex solver find, and says which starts did not."""

import math

import pytest
import torch

from tests.ufm.brute import minimise
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
from tightframe.ufm.deep import deep_objective
from tightframe.ufm.descent import MultistartLBFGS, lbfgs
from tightframe.ufm.problem import objective


@pytest.mark.parametrize(
    "problem",
    [
        CrossEntropyUFM((5, 3, 2, 1), 4, 0.02, 0.01, None, 0.0),
        CrossEntropyUFM((5, 5, 5, 5), 3, 0.02, 0.001),
        MeanSquaredUFM((5, 3, 3), 3, 0.02, 0.01, (0.1, 0.05, 0.05), 0.01),
        LayerPeeled((5, 3, 1), 2, 1.0, 2.0),
        LayerPeeled((5, 3, 1), 6, 1.0, 2.0),
    ],
    ids=str,
)
def test_no_start_misses_the_global_minimum_where_the_landscape_is_benign(problem):
    found, best = MultistartLBFGS(starts=4).solve(problem), ConvexSolver().solve(problem)
    for index in range(4):
        assert found.facts[f"start.{index}"] == pytest.approx(best.loss, rel=1e-12)
    assert found.exact
    assert 0 <= found.loss - found.lower_bound < 1e-7 * found.loss
    torch.testing.assert_close(found.gram_W, best.gram_W, rtol=0, atol=1e-5)
    torch.testing.assert_close(found.gram_H, best.gram_H, rtol=0, atol=1e-5)
    if isinstance(problem, LayerPeeled):
        assert found.W.square().sum().item() == pytest.approx(3 * 1.0)
        assert found.H.square().sum().item() == pytest.approx(3 * 2.0)


def test_width_too_small_for_the_simplex_is_a_different_minimum():
    # K = 5: d = 4 is exact, d = 3 is not.
    wide = CrossEntropyUFM((4,) * 5, 4, 0.01, 0.01)
    best = closed_form(wide)
    narrow = MultistartLBFGS().solve(CrossEntropyUFM((4,) * 5, 3, 0.01, 0.01))
    assert MultistartLBFGS(starts=2).solve(wide).loss == pytest.approx(best.loss, rel=1e-12)
    brute = minimise(CrossEntropyUFM((4,) * 5, 3, 0.01, 0.01), starts=6, iterations=800)
    assert narrow.loss == pytest.approx(brute.loss, abs=1e-9)
    assert narrow.loss - best.loss > 5e-3
    assert not narrow.exact
    assert narrow.lower_bound <= best.loss


@pytest.mark.parametrize("counts", [(20, 8, 3), (30, 10, 1)])
def test_nonnegative_features(counts):
    problem = ReLUImbalanced(counts, 8, 0.01, 0.01)
    found, best = MultistartLBFGS(starts=1).solve(problem), closed_form(problem)
    assert found.H.min() >= 0
    assert found.loss == pytest.approx(best.loss, abs=1e-10)
    torch.testing.assert_close(found.gram_W, best.gram_W, rtol=0, atol=1e-4)
    assert found.loss == pytest.approx(objective(problem, found.W, found.H).item())
    assert found.exact


@pytest.mark.parametrize("relu", [False, True])
def test_deep_squared_error(relu):
    problem = DeepUFM((2, 2, 2), 4, (0.01, 0.02, 0.03), "mse", relu)
    found, best = MultistartLBFGS().solve(problem), closed_form(problem)
    assert found.loss == pytest.approx(best.loss, abs=1e-10)
    assert found.loss == pytest.approx(deep_objective(problem, found.factors).item())
    assert [tuple(factor.shape) for factor in found.factors] == [(3, 4), (4, 4), (3, 4)]
    hidden = found.factors[0] @ found.factors[1].T
    torch.testing.assert_close(found.logits, (hidden.relu() if relu else hidden) @ found.factors[2].T)
    assert found.lower_bound == 0
    assert not found.exact


def test_deep_cross_entropy_has_several_minima():
    problem = DeepUFM((5,) * 6, 6, (2**-9,) * 3)
    found = MultistartLBFGS().solve(problem)
    values = [found.facts[f"start.{index}"] for index in range(8)]
    assert found.loss == min(values) < max(values)
    assert found.loss <= closed_form(problem).loss + 1e-10


def test_generator_decides_the_starts():
    problem = DeepUFM((5,) * 4, 4, (2**-9,) * 3)
    runs = [MultistartLBFGS(starts=2, generator=torch.Generator().manual_seed(s)).solve(problem) for s in (3, 3, 4)]
    assert torch.equal(runs[0].W, runs[1].W)
    assert not torch.equal(runs[0].W, runs[2].W)
    assert torch.equal(MultistartLBFGS(starts=1).solve(problem).W, MultistartLBFGS(starts=1).solve(problem).W)


def test_a_start_that_fails_is_not_the_best():
    problem = CrossEntropyUFM((3, 2), 2, 0.01, 0.01)
    found = MultistartLBFGS(starts=2, scale=1e308).solve(problem)
    assert not math.isfinite(found.loss)
    assert "not finite" in found.reason
    assert not found.exact


def test_descent_says_why_it_stopped():
    def bowl(parts):
        return (parts[0] - 1).square().sum() + parts[1].square().sum()

    zeros = [torch.ones(3, dtype=torch.float64) * 4, torch.ones(2, 2, dtype=torch.float64)]
    done = lbfgs(bowl, zeros, 100, 1e-8)
    assert done.reason == "no entry of the gradient is above 1e-08"
    assert done.value == pytest.approx(0, abs=1e-15)
    assert done.slope <= 1e-8
    assert torch.equal(zeros[1], torch.ones(2, 2, dtype=torch.float64))

    def valley(parts):
        return 100 * (parts[0][1] - parts[0][0] ** 2) ** 2 + (1 - parts[0][0]) ** 2

    early = lbfgs(valley, [torch.tensor([-1.2, 1.0], dtype=torch.float64)], 5, 1e-12)
    assert early.reason == "max_iterations = 5 reached"
    assert early.iterations == 5
    late = lbfgs(lambda parts: parts[0].square().sum() + 1e6, [torch.ones(1, dtype=torch.float64)], 100, 1e-300)
    assert late.reason.startswith(("no step lowers the objective any more", "no entry"))


@pytest.mark.parametrize("problem", [ULPM((2, 1), 2), MaxMargin((2, 1), 2)])
def test_problems_without_a_free_minimum(problem):
    with pytest.raises(ArgumentError, match=rf"problem must have an unconstrained minimum.*{type(problem).__name__}"):
        MultistartLBFGS().solve(problem)


@pytest.mark.parametrize("options", [{"starts": 0}, {"max_iterations": 0}, {"tolerance": -1.0}, {"scale": 0.0}])
def test_options_are_checked(options):
    with pytest.raises(ArgumentError, match=next(iter(options))):
        MultistartLBFGS(**options)


def test_every_class_that_should_live_does():
    counts = (40, 30, 25, 20, 16, 12, 9, 8, 7, 5, 3, 1)
    problem = ReLUImbalanced(counts, len(counts), weight_decay=0.008, feature_decay=0.008)
    found, best = MultistartLBFGS(starts=1).solve(problem), closed_form(problem)
    assert 0 < best.facts["active_classes"] < len(counts)
    assert found.loss == pytest.approx(best.loss, abs=1e-10)
    torch.testing.assert_close(found.gram_W, best.gram_W, rtol=0, atol=1e-4)
