from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from tightframe.errors import DimensionError
from tightframe.frames import is_simplex_etf
from tightframe.ufm import MeanSquaredUFM
from tightframe.ufm.mean_squared import mean_squared_form

from ..brute import minimise
from .comparison import LOSS, assert_close, assert_loss_is_the_objective, assert_minimum, centering


def problem_of(counts, dim, sigma, ratio=2.0, **options):
    return MeanSquaredUFM(counts, dim, sigma * ratio, sigma / ratio, **options)


# Balanced ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("K", "n", "dim", "bias_decay"),
    [(2, 3, 2, 0.04), (4, 2, 4, None), (4, 2, 4, 0.0), (4, 2, 4, 0.5), (3, 1, 5, 0.04), (3, 1, 5, 20.0)],
)
def test_balanced_minimum(K, n, dim, bias_decay):
    assert_minimum(mean_squared_form(problem_of((n,) * K, dim, 0.02, bias_decay=bias_decay)))


@pytest.mark.parametrize("bias_decay", [None, 0.0, 0.01, 0.3, 5.0])
@pytest.mark.parametrize(("K", "n"), [(2, 1), (5, 7), (20, 3)])
def test_balanced_form_is_the_printed_one(K, n, bias_decay):
    weight_decay, feature_decay = 0.01, 0.003
    problem = MeanSquaredUFM((n,) * K, K, weight_decay, feature_decay, bias_decay=bias_decay)
    solution, sigma = mean_squared_form(problem), math.sqrt(weight_decay * feature_decay)
    c = K * math.sqrt(n) * sigma
    t, penalty = 1 - c, bias_decay or 0.0
    if bias_decay is None:
        tau, beta = t, 0.0
    elif penalty > c / (1 - c):
        tau, beta = 1 - c - c / penalty, c / (K * penalty)
    else:
        tau, beta = 0.0, 1 / (K * (1 + penalty))
    for name, wanted in (("simplex_scale", t), ("mean_scale", tau), ("bias", beta), ("kink_bias_decay", c / (1 - c))):
        assert solution.facts[name] == pytest.approx(wanted, abs=1e-12)
    M = t * centering(K) + tau / K
    assert_close(solution.H @ solution.W.T, M)
    assert_close(solution.gram_W, math.sqrt(n * feature_decay / weight_decay) * M)
    assert_close(solution.gram_H, math.sqrt(weight_decay / (n * feature_decay)) * M)
    loss = ((K - 1) * (t - 1) ** 2 + (tau + K * beta - 1) ** 2) / (2 * K)
    loss += sigma * math.sqrt(n) * ((K - 1) * t + tau) + penalty * K * beta**2 / 2
    assert solution.loss == pytest.approx(loss, abs=1e-12)


def test_kink_from_simplex_to_orthogonal_frame():
    base = problem_of((3,) * 4, 4, 0.02, bias_decay=1.0)
    kink = mean_squared_form(base).facts["kink_bias_decay"]
    for factor, simplex in ((0.95, True), (1.05, False)):
        solution = mean_squared_form(replace(base, bias_decay=factor * kink))
        found = assert_minimum(solution, iterations=2000)
        mean_part = found.classifier.sum(dim=0).norm() / found.classifier.norm()
        assert (mean_part < 1e-4) if simplex else (mean_part > 0.1)
        assert is_simplex_etf(solution.W / solution.W.norm(dim=1, keepdim=True)) == simplex
    far = mean_squared_form(replace(base, bias_decay=1e9))
    assert_close(far.gram_W, mean_squared_form(replace(base, bias_decay=None)).gram_W, atol=1e-7)


def test_sum_and_mean_are_one_problem():
    mean = problem_of((4, 4, 4), 3, 0.01, bias_decay=0.2)
    total = MeanSquaredUFM(mean.counts, 3, *(12 * x for x in (mean.weight_decay, mean.feature_decay)), (1.0,) * 3, 2.4)
    found, wanted = mean_squared_form(total), mean_squared_form(mean)
    assert found.loss == pytest.approx(12 * wanted.loss, rel=1e-13)
    assert found.facts["kink_bias_decay"] == pytest.approx(12 * wanted.facts["kink_bias_decay"], rel=1e-13)
    assert_close(found.gram_W, wanted.gram_W)
    assert_close(found.bias, wanted.bias)


# Imbalanced ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("weights", [None, (0.02, 0.3, 0.1, 0.05)])
@pytest.mark.parametrize("counts", [(6, 3, 2, 1), (5, 1, 1, 1)])
def test_without_bias_any_counts_and_weights(counts, weights):
    solution = mean_squared_form(problem_of(counts, 5, 0.03, sample_weights=weights))
    assert_minimum(solution, iterations=600)
    N = sum(counts)
    for k, n in enumerate(counts):
        strength = (1 / N if weights is None else weights[k]) * math.sqrt(n)
        assert solution.logits[k, k].item() == pytest.approx(max(1 - 0.03 / strength, 0), abs=1e-12)


@pytest.mark.parametrize("weights", [None, (0.1, 0.05, 0.2)])
def test_a_class_vanishes_at_its_threshold(weights):
    base = problem_of((6, 3, 1), 3, 0.01, sample_weights=weights)
    threshold = mean_squared_form(base).facts["death_sigma"]
    for factor, dead in ((1.03, 1), (0.97, 0)):
        problem = problem_of((6, 3, 1), 3, factor * threshold, sample_weights=weights)
        solution = mean_squared_form(problem)
        assert int((solution.H.norm(dim=1) == 0).sum()) == dead
        found = minimise(problem, starts=1, iterations=1500)
        assert abs(found.loss - solution.loss) < LOSS
        assert int((found.H.norm(dim=1) < 0.01).sum()) > 0 if dead else found.H.norm(dim=1).min() > 0.05
    if weights is None:
        facts = mean_squared_form(problem_of((6, 3, 1), 3, threshold)).facts
        assert facts["death_count"] == pytest.approx(1, abs=1e-12)


@pytest.mark.parametrize(("counts", "weights"), [((6, 3, 2, 1), None), ((5, 1, 1, 1), (0.2,) * 4), ((7, 2), None)])
def test_free_bias_any_counts(counts, weights):
    K = len(counts)
    solution = mean_squared_form(problem_of(counts, K - 1, 0.03, sample_weights=weights, bias_decay=0))
    found = assert_minimum(solution, iterations=800)
    assert_close(solution.bias * sum(counts), torch.tensor(counts, dtype=torch.float64))
    assert_close(found.bias + found.logits.sub(found.bias).mean(dim=0), solution.bias, atol=1e-5)
    assert solution.W.sum(dim=0).abs().max() < 1e-12


@pytest.mark.parametrize("bias_decay", [None, 0.0, 0.1])
@pytest.mark.parametrize(("counts", "weights"), [((3, 3, 3), (0.05, 0.2, 0.1)), ((6, 3, 1), None)])
def test_zero_is_optimal_from_its_threshold_on(counts, weights, bias_decay):
    options = {"sample_weights": weights, "bias_decay": bias_decay}
    threshold = mean_squared_form(problem_of(counts, 4, 0.01, **options)).facts["zero_sigma"]
    above = mean_squared_form(problem_of(counts, 1, 1.03 * threshold, **options))
    assert not above.W.any()
    assert_minimum(above, width=4)
    below = problem_of(counts, 4, 0.97 * threshold, **options)
    found = minimise(below, starts=2, iterations=400)
    assert found.loss < above.loss - 1e-6
    assert mean_squared_form(below).lower_bound <= found.loss + LOSS


@pytest.mark.parametrize(("weights", "bias_decay"), [((0.02, 0.3, 0.1), 0.0), ((0.02, 0.3, 0.1), 0.1), (None, 0.1)])
@pytest.mark.parametrize("sigma", [1e-3, 0.03])
def test_elsewhere_a_point_and_a_bound(sigma, weights, bias_decay):
    solution = mean_squared_form(problem_of((5, 3, 1), 3, sigma, sample_weights=weights, bias_decay=bias_decay))
    assert not solution.exact
    assert "no closed form" in solution.reason
    assert_loss_is_the_objective(solution)
    found = minimise(solution.problem, starts=2, iterations=300)
    assert 0 < solution.lower_bound <= found.loss + LOSS
    assert found.loss <= solution.loss < 1.1 * found.loss + 0.01


# Invariances and errors ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bias_decay", [None, 0.0, 0.1])
def test_order_of_classes_does_not_matter(bias_decay):
    counts, order = (7, 3, 3, 1), torch.tensor([2, 0, 3, 1])
    wanted = mean_squared_form(problem_of(counts, 5, 0.02, bias_decay=bias_decay))
    found = mean_squared_form(problem_of(tuple(counts[i] for i in order), 5, 0.02, bias_decay=bias_decay))
    assert_close(found.gram_W, wanted.gram_W[order][:, order])
    assert found.facts == pytest.approx(wanted.facts, abs=1e-12)


@pytest.mark.parametrize("counts", [(2, 2, 2, 2), (4, 2, 2, 1)])
@pytest.mark.parametrize(("bias_decay", "needed"), [(None, 4), (0.0, 3)])
def test_too_few_dimensions(counts, bias_decay, needed):
    solution = mean_squared_form(problem_of(counts, needed, 0.01, bias_decay=bias_decay))
    assert solution.facts["rank"] == needed
    with pytest.raises(DimensionError, match=rf"dim must be at least {needed} .*got d = {needed - 1}; .*widen"):
        mean_squared_form(problem_of(counts, needed - 1, 0.01, bias_decay=bias_decay))
