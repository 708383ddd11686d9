"""Models at the edges of their arguments: weights far apart, tiny penalties, numbers of numpy, and what is printed."""

import math

import numpy as np
import pytest
import torch

from tightframe.errors import ArgumentError, DimensionError
from tightframe.ufm import (
    CrossEntropyUFM,
    DeepUFM,
    MeanSquaredUFM,
    certify,
    certify_network,
    closed_form,
    minority_collapse,
    solve,
)
from tightframe.ufm.bound import dual_bound
from tightframe.ufm.deep import deep_objective
from tightframe.ufm.problem import objective
from tightframe.ufm.solution import Solution


@pytest.mark.parametrize(
    ("model", "weights"),
    [
        (CrossEntropyUFM, (1e-12, 1.0, 1e12)),
        (CrossEntropyUFM, (1e-6, 1.0, 1e6)),
        (CrossEntropyUFM, (1e12, 1e-12, 1.0)),
        (MeanSquaredUFM, (1e-6, 1.0, 1e6)),
    ],
)
def test_no_bound_is_above_a_point_however_far_apart_the_weights_are(model, weights):
    problem = model((5, 3, 1), 3, 0.1, 0.1, weights, 0.0)
    solution = solve(problem)
    generator = torch.Generator().manual_seed(0)
    for size in (0.0, 1e-6, 1e-2, 1.0):
        noise = [torch.randn(3, 3, generator=generator, dtype=torch.float64) * size for _ in range(2)]
        bound = dual_bound(problem, solution.W + noise[0], solution.H + noise[1], solution.bias)
        assert bound <= solution.loss * (1 + 1e-12)
    assert certify(problem, solution).is_global() or model is MeanSquaredUFM  # whose solver stops early


def test_the_bound_of_a_free_bias_is_below_a_feasible_point_of_the_spec():
    problem = CrossEntropyUFM((5, 3, 1), 3, 0.1, 0.1, (1e-12, 1.0, 1e12), 0.0)
    solution = solve(problem)
    assert dual_bound(problem, solution.W, solution.H, solution.bias) <= 2.223274
    assert solution.loss == pytest.approx(2.22324, abs=4e-5)


# log(1 + 9 e^-a) + 9 λ √50 a with a = log(√50 / (50 λ) - 9), with 60 digits.
SMALL = {
    1e-8: 1.1114447243993698e-5,
    1e-12: 1.6975872167128019e-9,
    1e-16: 2.2837296887802796e-13,
    1e-20: 2.8698721608457325e-17,
}


@pytest.mark.parametrize("decay", SMALL)
def test_a_loss_keeps_its_digits_at_small_penalties(decay):
    problem = CrossEntropyUFM((50,) * 10, 9, decay, decay)
    for solution in (closed_form(problem), solve(problem)):
        assert solution.loss == pytest.approx(SMALL[decay], rel=1e-13)
        assert certify(problem, solution).is_global()


@pytest.mark.parametrize("model", [CrossEntropyUFM, MeanSquaredUFM])
def test_penalties_whose_product_underflows(model):
    problem = model((5, 5), 2, 1e-300, 1e-300)
    assert problem.sigma == pytest.approx(1e-300)
    for solution in (closed_form(problem), solve(problem)):
        assert 0 < solution.loss < 1e-290
        # 1 - 1e-300 is 1: the squared error has no slope left to prove with.
        assert certify(problem, solution).is_global() or model is MeanSquaredUFM


def test_numbers_of_numpy_and_pytorch():
    plain = CrossEntropyUFM((2, 3, 2), 3, 0.1, 0.25, (0.5, 0.5, 1.0), 0.0)
    counts = np.bincount([0, 0, 1, 1, 1, 2, 2])
    assert CrossEntropyUFM(counts, np.int64(3), np.float64(0.1), 0.25, np.array([0.5, 0.5, 1.0]), 0.0) == plain
    assert CrossEntropyUFM(torch.tensor([2, 3, 2]), 3, 0.1, torch.tensor(0.25), (0.5, 0.5, 1.0), 0.0) == plain
    assert DeepUFM(counts, np.int32(3), np.array([0.5, 0.25])).decays == (0.5, 0.25)
    for wrong in (True, "3", 3.0, np.float64(3)):
        with pytest.raises(ArgumentError, match="dim must be an integer"):
            CrossEntropyUFM((2, 3), wrong, 0.1, 0.1)
    with pytest.raises(ArgumentError, match="relu must be true or false, got 'no'"):
        DeepUFM((5, 5), 2, (0.1, 0.1, 0.1), relu="no")
    with pytest.raises(ArgumentError, match="bias_decay must be None, 0 or a finite number > 0, got -1"):
        CrossEntropyUFM((5, 5), 2, 0.1, 0.1, None, -1.0)


@pytest.mark.parametrize("kind", [torch.Tensor.float, torch.Tensor.numpy, torch.Tensor.tolist, torch.Tensor.int])
def test_points_of_any_type(kind):
    problem = CrossEntropyUFM((5, 5, 5), 3, 0.01, 0.01)
    W, H = (4 * torch.eye(3, dtype=torch.float64) for _ in range(2))
    for function in (objective, dual_bound):
        assert float(function(problem, kind(W), kind(H))) == float(function(problem, W, H))
    if kind is not torch.Tensor.tolist:
        point = Solution(problem, kind(W), kind(H), None, 0.0, False, "given")
        assert certify(problem, point).loss == objective(problem, W, H).item()
    deep = DeepUFM((5, 5, 5), 3, (0.1, 0.1, 0.1))
    assert float(deep_objective(deep, [kind(W)] * 3)) == float(deep_objective(deep, [W] * 3))


@pytest.mark.parametrize(("counts", "weights"), [((5, 3), (1 / 8, 1 / 8)), ((90, 10), None)])
def test_two_classes_of_one_weight_are_exact(counts, weights):
    problem = CrossEntropyUFM(counts, 1, 0.01, 0.01, weights)
    solution = closed_form(problem)
    assert solution.exact
    assert solution.loss == pytest.approx(dual_bound(problem, solution.W, solution.H), rel=1e-12)
    assert solution.loss == pytest.approx(solve(problem).loss, rel=1e-10)


def test_classes_that_share_a_vector_need_no_dimension_of_their_own():
    counts = (100, 100, 1, 1, 1, 1)
    assert minority_collapse(CrossEntropyUFM(counts, 2, 0.02, 0.02)).classes == (2, 3, 4, 5)
    with pytest.raises(DimensionError, match="dim must be at least 2"):
        minority_collapse(CrossEntropyUFM(counts, 1, 0.02, 0.02))
    with pytest.raises(DimensionError, match="dim must be at least 5"):
        minority_collapse(CrossEntropyUFM(counts, 4, 1e-5, 1e-5))


def test_what_is_printed_fits_a_screen():
    problem = CrossEntropyUFM((50,) * 1000, 999, 1e-6, 1e-6)
    solution = closed_form(problem)
    features, labels = torch.randn(60, 4, dtype=torch.float64), torch.arange(60) % 3
    network = certify_network(features, labels, torch.randn(3, 4, dtype=torch.float64), weight_decay=0.1)
    small = CrossEntropyUFM((3, 3), 2, 0.1, 0.1)
    for shown in (problem, solution, certify(small, closed_form(small)), network):
        assert len(repr(shown)) < 1000
        assert "tensor(" not in repr(shown)
    assert "1000, 999" in repr(solution)
    assert "<table>" in network._repr_html_()
    assert "a global minimum" in repr(certify(small, closed_form(small)))


def test_rounding_breaks_no_constraint():
    certificate = certify(small := CrossEntropyUFM((3, 3), 2, 0.1, 0.1), closed_form(small))
    object.__setattr__(certificate, "violation", 6.7e-16)
    assert "constraint" not in certificate.explanation
    assert math.isfinite(certificate.gap)
