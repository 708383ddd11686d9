import math
from dataclasses import replace

import pytest
import torch

from tests.ufm.points import (
    MINIMA,
    ONE_LAYER,
    at,
    centering,
    draw,
    generator,
    random_point,
    rotation,
)
from tightframe.errors import ShapeError
from tightframe.ufm import (
    ULPM,
    CrossEntropyUFM,
    LayerPeeled,
    MaxMargin,
    MeanSquaredUFM,
    ReLUImbalanced,
    closed_form,
)
from tightframe.ufm.certify import certify
from tightframe.ufm.problem import objective

# Global minima -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("problem", MINIMA, ids=str)
def test_a_closed_form_is_certified_as_the_global_minimum(problem):
    solution = closed_form(problem)
    certificate = certify(problem, solution)
    assert certificate.is_global(1e-9)
    assert abs(certificate.loss - certificate.lower_bound) <= 1e-9 * certificate.loss  # and is no less than the bound
    assert certificate.violation <= 1e-12
    assert certificate.balance <= 1e-9
    assert "a global minimum" in certificate.explanation
    if not isinstance(problem, ULPM):
        assert certificate.stationarity <= 1e-8  # a singular value of 1e-16 is one of 1e-8 in each factor
        assert certificate.operator_norm <= certificate.sigma * (1 + 1e-7)


def test_the_etf_by_hand_is_certified_and_a_wrong_scale_is_not():
    K, n, d, lw, lh = 5, 3, 4, 0.01, 0.004
    problem = CrossEntropyUFM((n,) * K, d, lw, lh)
    a = math.log(1 / math.sqrt(n * lw * lh) - K + 1)
    values, V = torch.linalg.eigh(centering(K))
    frame = V[:, 1:] @ rotation(d)
    for factor in (1.0, 0.9, 1.1):
        W = math.sqrt(factor * a) * (n * lh / lw) ** 0.25 * frame
        H = math.sqrt(lw / (n * lh)) * W
        certificate = certify(problem, at(problem, W, H))
        loss = math.log(1 + (K - 1) * math.exp(-factor * a)) + math.sqrt(n * lw * lh) * (K - 1) * factor * a
        assert certificate.loss == pytest.approx(loss, abs=1e-12)
        assert certificate.balance < 1e-15
        if factor == 1:
            assert certificate.gap < 1e-12
            assert certificate.stationarity < 1e-15
            assert certificate.operator_norm == pytest.approx(certificate.sigma, rel=1e-12)
        else:
            assert not certificate.is_global(1e-4)
            assert certificate.stationarity > 1e-4
            assert "above the minimum" in certificate.explanation
    assert values[0] < 1e-12


@pytest.mark.parametrize("factor", [0.97, 1.03])
def test_zero_is_certified_exactly_above_its_threshold(factor):
    K, n = 4, 5
    c = factor / K  # √(n λ_W λ_H) against 1/K
    problem = CrossEntropyUFM((n,) * K, K, c * 2 / math.sqrt(n), c / 2 / math.sqrt(n))
    zero = torch.zeros(K, K, dtype=torch.float64)
    certificate = certify(problem, at(problem, zero, zero))
    assert certificate.is_global() == (factor > 1)
    assert (certificate.witness is None) == (factor > 1)
    assert certificate.operator_norm / certificate.sigma == pytest.approx(1 / factor, rel=1e-12)


@pytest.mark.parametrize("factor", [0.97, 1.03])
def test_a_dead_class_is_certified_exactly_below_its_threshold(factor):
    # n_3 = N² λ_W λ_H K/(K - 1) is where the third class dies.
    counts, K = (12, 9, 4), 3
    sigma = math.sqrt(counts[2] * (K - 1) / K) / sum(counts) * factor
    problem = ReLUImbalanced(counts, 3, sigma, sigma)
    solution = closed_form(problem)
    assert (solution.H[2].max() == 0) == (factor > 1)
    W, H = solution.W.clone(), solution.H.clone()
    W[:, H[2] > 0] = 0
    H[2] = 0
    certificate = certify(problem, at(problem, W, H))
    assert certificate.stationarity < 1e-12
    assert certificate.is_global() == (factor > 1)
    assert (certificate.witness is None) == (factor > 1)


# Any point -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("problem", ONE_LAYER, ids=str)
@pytest.mark.parametrize("scale", [0.03, 0.5, 2.0])
@pytest.mark.parametrize("rows", ["samples", "classes"])
def test_gap_is_nonnegative_and_its_bound_below_every_other_point(problem, scale, rows):
    certificates = [certify(problem, random_point(problem, 10 * seed, scale, rows)) for seed in range(12)]
    for certificate in certificates:
        assert certificate.gap >= 0
        assert not certificate.is_global(1e-3)
    feasible = [certificate.loss for certificate in certificates if certificate.violation == 0]
    assert feasible or isinstance(problem, LayerPeeled)
    lowest = min(feasible, default=math.inf)
    assert max(certificate.lower_bound for certificate in certificates) <= lowest


@pytest.mark.parametrize("problem", [p for p in MINIMA if not isinstance(p, MaxMargin)], ids=str)
def test_gap_grows_with_the_distance_from_the_minimum(problem):
    solution = closed_form(problem)
    minimum, direction = certify(problem, solution).loss, draw(*solution.W.shape, seed=1)
    gaps = []
    for step in (0.1, 0.01, 0.001):
        moved = certify(problem, at(problem, solution.W + step * direction, solution.H, solution.bias))
        assert moved.lower_bound <= minimum * (1 + 1e-12)
        assert moved.violation > 0 or moved.gap >= moved.loss - minimum > 0
        assert not moved.is_global()
        gaps.append(moved.gap)
    assert gaps[0] > gaps[1] > gaps[2] > 0 or moved.violation > 0


REACHABLE = [p for p in ONE_LAYER if isinstance(p, CrossEntropyUFM | MeanSquaredUFM) and p.dim > 2]


@pytest.mark.parametrize("problem", REACHABLE, ids=str)
def test_descent_from_a_random_start_ends_where_the_gap_does(problem):
    # With d >= K, or K - 1 where the slope has zero sum, there is no other local minimum.
    assert certify(problem, at(problem, *_descend(problem))).relative_gap < 1e-7


def _descend(problem):
    leaves = [draw(problem.num_classes, problem.dim, seed=3), draw(problem.num_classes, problem.dim, seed=4)]
    if problem.bias_decay is not None:
        leaves.append(torch.zeros(problem.num_classes, dtype=torch.float64))
    leaves = [leaf.requires_grad_() for leaf in leaves]
    optimiser = torch.optim.LBFGS(
        leaves, lr=1, max_iter=3000, tolerance_grad=1e-12, tolerance_change=0, line_search_fn="strong_wolfe"
    )

    def closure():
        optimiser.zero_grad()
        loss = objective(problem, *leaves)
        loss.backward()
        return loss

    optimiser.step(closure)
    leaves = [leaf.detach() for leaf in leaves]
    return leaves if len(leaves) == 3 else (*leaves, None)


@pytest.mark.parametrize("problem", [*ONE_LAYER, MaxMargin((3, 2, 4), 4), ULPM((3, 2, 4), 4)], ids=str)
def test_rotation_permutation_and_repetition_change_nothing(problem):
    K, d, per_class = problem.num_classes, problem.dim, random_point(problem, 5, rows="classes")
    if isinstance(problem, MaxMargin | ULPM):
        W = closed_form(problem).W
        per_class = at(problem, W + 0.1 * draw(K, d), W + 0.1 * draw(K, d, seed=1))
    order = torch.randperm(K, generator=generator(1)).tolist()
    R = rotation(d) if not isinstance(problem, ReLUImbalanced) else torch.eye(d, dtype=torch.float64)[torch.randperm(d)]
    counts = tuple(problem.counts[k] for k in order)
    changed = {"counts": counts}
    if getattr(problem, "sample_weights", None) is not None:
        changed["sample_weights"] = tuple(problem.sample_weights[k] for k in order)
    permuted = replace(problem, **changed)
    bias = per_class.bias
    others = [
        (problem, at(problem, per_class.W @ R, per_class.H @ R, bias)),
        (permuted, at(permuted, per_class.W[order], per_class.H[order], None if bias is None else bias[order])),
        (problem, at(problem, per_class.W, per_class.H.repeat_interleave(torch.tensor(problem.counts), dim=0), bias)),
    ]
    wanted = certify(problem, per_class)
    assert wanted.loss < math.inf
    for model, point in others:
        found = certify(model, point)
        for name in ("loss", "lower_bound", "gap", "stationarity", "sigma", "balance", "violation"):
            assert getattr(found, name) == pytest.approx(getattr(wanted, name), rel=1e-9, abs=1e-12), name
        assert found.operator_norm == pytest.approx(wanted.operator_norm, rel=1e-9)
        assert (found.witness is None) == (wanted.witness is None)


@pytest.mark.parametrize("kind", [CrossEntropyUFM, MeanSquaredUFM, ReLUImbalanced])
def test_means_and_sums_are_the_same_model(kind):
    counts, N = (5, 3, 2), 10
    mean = kind(counts, 4, 0.02, 0.01)
    total = kind(counts, 4, 0.02 * N, 0.01 * N, sample_weights=(1.0, 1.0, 1.0))
    point = random_point(mean, 3)
    of_mean, of_sum = certify(mean, point), certify(total, point)
    for name in ("loss", "lower_bound", "gap", "stationarity", "operator_norm", "sigma", "balance"):
        assert getattr(of_sum, name) == pytest.approx(N * getattr(of_mean, name), rel=1e-11), name
    assert of_sum.relative_gap == pytest.approx(of_mean.relative_gap, rel=1e-11)
    assert (of_sum.witness is None) == (of_mean.witness is None)


@pytest.mark.parametrize("problem", [p for p in ONE_LAYER if not isinstance(p, LayerPeeled | ReLUImbalanced)], ids=str)
@pytest.mark.parametrize("rows", ["samples", "classes"])
def test_stationarity_and_operator_norm_by_autograd(problem, rows):
    point = random_point(problem, 7, rows=rows)
    leaves = [x.clone().requires_grad_() for x in (point.W, point.H, point.bias) if x is not None]
    gradients = torch.autograd.grad(objective(problem, *leaves), leaves)
    R = len(point.H)
    prices = torch.tensor(problem.counts, dtype=torch.float64) if rows == "classes" else torch.ones(R).double()
    squares = [g.square().sum() for g in (gradients[0], gradients[1] / prices.sqrt().unsqueeze(1), *gradients[2:])]
    certificate = certify(problem, point)
    assert certificate.stationarity == pytest.approx(math.sqrt(sum(squares)), rel=1e-12)
    without = replace(problem, dim=problem.num_classes, weight_decay=1e-300, feature_decay=1e-300, bias_decay=None)
    Z = point.logits.requires_grad_()
    (slope,) = torch.autograd.grad(objective(without, torch.eye(problem.num_classes, dtype=torch.float64), Z), Z)
    tau = torch.linalg.matrix_norm(slope / prices.sqrt().unsqueeze(1), ord=2)
    assert certificate.operator_norm == pytest.approx(tau.item(), rel=1e-12)


# Errors --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("W", "H", "bias", "message"),
    [
        ((2, 4), (3, 4), None, r"^W must have shape \(K, d\) = \(3, 4\) of the problem, got \(2, 4\)"),
        ((3, 4), (3, 5), None, r"^H must have shape .* d = 4 of the problem, got \(3, 5\)"),
        ((3, 4), (5, 4), None, r"^H must have a row for each of K = 3 classes or N = 6 samples, got 5"),
        ((3, 4), (3, 4), (3,), r"^bias must be None, as CrossEntropyUFM has none"),
    ],
)
def test_tensors_must_be_those_of_the_problem(W, H, bias, message):
    problem = CrossEntropyUFM((2, 2, 2), 4, 0.1, 0.1)
    with pytest.raises(ShapeError, match=message):
        certify(problem, at(problem, draw(*W), draw(*H), None if bias is None else draw(*bias)))


def test_bias_must_fit_and_a_missing_one_is_zero():
    problem = CrossEntropyUFM((2, 2, 2), 4, 0.1, 0.1, bias_decay=0.0)
    W, H = draw(3, 4), draw(3, 4, seed=1)
    with pytest.raises(ShapeError, match=r"^bias must have shape \(K,\) = \(3,\), got \(2,\)"):
        certify(problem, at(problem, W, H, draw(2)))
    without, zero = certify(problem, at(problem, W, H)), certify(problem, at(problem, W, H, torch.zeros(3).double()))
    assert without.loss == zero.loss
    assert without.stationarity == zero.stationarity
