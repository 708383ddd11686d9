from __future__ import annotations

import math
import random
from dataclasses import replace

import pytest
import torch

from tightframe.errors import DimensionError, ShapeError
from tightframe.frames import is_simplex_etf
from tightframe.ufm import CrossEntropyUFM
from tightframe.ufm.bound import dual_bound
from tightframe.ufm.layer_peeled import layer_peeled_form, minority_cosine, semidefinite_matrix

from .layer_peeled_literal import descend, of_groups, peeled

# name: counts, E_H, E_W, start of the reason
CASES = {
    "balanced": ((3, 3, 3, 3), 2.0, 0.5, "simplex ETF"),
    "all distinct": ((2, 6, 2, 6, 2), 3.0, 1.0, "two groups of classes: all class vectors are distinct"),
    "collapsed": ((30, 1, 30, 1, 1), 1.0, 1.0, "two groups of classes: the class vectors of the light ones are one"),
    "zero minority": ((9, 9, 1, 1), 0.05, 0.2, "two groups of classes: only the heavy classes"),
    "one heavy class": ((8, 2, 2, 2), 1.0, 2.0, "two groups of classes: all class vectors are distinct"),
    "one light class": ((4, 4, 4, 1), 3.0, 1.0, "two groups of classes: all class vectors are distinct"),
    "one of each": ((7, 2), 1.0, 1.0, "two groups of classes: all class vectors are distinct"),
}


def problem_of(name, dim=None):
    counts, feature_budget, weight_budget, _ = CASES[name]
    return peeled(counts, dim or len(counts), feature_budget, weight_budget)


# The minimum ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("width", ["K - 1", "K", "2 K"])
def test_it_is_what_descent_in_features_and_classifier_finds(name, width):
    counts, *budgets, reason = CASES[name]
    K = len(counts)
    problem = problem_of(name, {"K - 1": K - 1, "K": K, "2 K": 2 * K}[width])
    solution = layer_peeled_form(problem)
    loss, W, means = min((descend(counts, *budgets, problem.dim, seed=seed) for seed in range(2)), key=lambda x: x[0])
    assert solution.reason.startswith(reason)
    assert solution.exact
    assert solution.loss == pytest.approx(loss, rel=0, abs=1e-10)
    # Where a singular value joins or leaves, the loss is flat to fourth order in the factors.
    torch.testing.assert_close(solution.logits, means @ W.T, rtol=0, atol=1e-5)
    torch.testing.assert_close(solution.gram_W, W @ W.T, rtol=0, atol=1e-5)
    torch.testing.assert_close(solution.gram_H, means @ means.T, rtol=0, atol=1e-5)


def test_weights_of_samples_count_as_in_descent():
    counts, weights = (4, 4, 2, 2), (0.1, 0.1, 0.3, 0.3)
    solution = layer_peeled_form(peeled(counts, 4, 2.0, 1.0, weights))
    loss, W, means = descend(counts, 2.0, 1.0, 4, weights)
    assert solution.exact
    assert solution.facts["ratio"] == pytest.approx(1.5)  # 0.6 of the smaller classes over 0.4
    assert solution.loss == pytest.approx(loss, rel=0, abs=1e-10)
    torch.testing.assert_close(solution.logits, means @ W.T, rtol=0, atol=1e-5)


def test_certificate_holds_for_random_groups_and_budgets():
    generator = random.Random(0)
    reasons = set()
    for _ in range(300):
        majority, minority = generator.randint(1, 12), generator.randint(1, 12)
        ratio, product = 10 ** generator.uniform(0, 5), 10 ** generator.uniform(-3, 2.5)
        weight_budget = 10 ** generator.uniform(-2, 2)
        solution = layer_peeled_form(of_groups(majority, minority, ratio, product / weight_budget, weight_budget))
        assert solution.exact
        assert 0 <= solution.facts["gap"] <= 1e-11 * solution.loss
        assert solution.lower_bound == pytest.approx(solution.loss, rel=1e-11)
        assert solution.loss == pytest.approx(brute_loss(solution), rel=1e-9)
        reasons.add(solution.reason)
    assert len(reasons) == 3


def brute_loss(solution):
    Z, problem = solution.logits, solution.problem
    weights = torch.tensor(problem.counts, dtype=torch.float64)
    weights = (
        weights / weights.sum()
        if problem.sample_weights is None
        else weights * torch.tensor(problem.sample_weights, dtype=torch.float64)
    )
    others = (Z - Z.diagonal().unsqueeze(1)).fill_diagonal_(-torch.inf)
    return (weights * torch.log1p(others.exp().sum(dim=1))).sum().item()


def test_both_budgets_are_used_up_and_bound_the_nuclear_norm():
    for name in CASES:
        problem = problem_of(name)
        solution, K = layer_peeled_form(problem), problem.num_classes
        assert solution.W.square().sum().item() == pytest.approx(K * problem.weight_budget, rel=1e-12)
        assert solution.H.square().sum().item() == pytest.approx(K * problem.feature_budget, rel=1e-12)
        nuclear = torch.linalg.matrix_norm(solution.logits, "nuc").item()
        assert nuclear == pytest.approx(K * math.sqrt(problem.feature_budget * problem.weight_budget), rel=1e-12)
        assert nuclear == pytest.approx(solution.facts["nuclear_norm"], rel=1e-12)
        assert solution.facts["squared_norm_W"] == pytest.approx(K * problem.weight_budget)


def test_many_classes_and_wide_budgets_are_certified_too():
    for majority, minority, ratio, budget in ((300, 200, 100.0, 3.0), (1, 400, 9.0, 0.2), (100, 1, 1e6, 50.0)):
        assert layer_peeled_form(of_groups(majority, minority, ratio, budget)).exact
    assert layer_peeled_form(of_groups(5, 5, 100.0, 1e4, 1e4)).exact  # losses of less than any float
    assert minority_cosine(1e300, 5, 5, 5.0, 1.0) == 1


# Symmetries and special cases ----------------------------------------------------------------------------------------


def test_balanced_is_the_simplex_with_the_loss_of_the_paper():
    solution = layer_peeled_form(peeled((7,) * 5, 4, feature_budget=3.0, weight_budget=2.0))
    wanted = math.log(1 + 4 * math.exp(-5 / 4 * math.sqrt(6)))
    assert solution.loss == pytest.approx(wanted, rel=1e-13)
    assert is_simplex_etf(solution.W / math.sqrt(2), tol=1e-12)
    assert is_simplex_etf(solution.H / math.sqrt(3), tol=1e-12)
    assert "multiplier" not in solution.facts


def test_two_groups_become_the_simplex_as_their_weights_become_equal():
    for majority, minority in ((1, 1), (1, 4), (4, 1), (3, 5)):
        simplex = layer_peeled_form(of_groups(majority, minority, 1.0)).logits
        for ratio in (1 + 1e-10, 1 + 1e-7):
            solution = layer_peeled_form(of_groups(majority, minority, ratio))
            assert solution.reason.startswith("two groups")
            torch.testing.assert_close(solution.logits, simplex, rtol=0, atol=5 * (ratio - 1) + 1e-13)


def test_oversampling_to_equal_weights_gives_the_exact_simplex():
    solution = layer_peeled_form(peeled((60, 60, 3, 3), 4, 5.0, 1.0, weights=(1 / 3, 1 / 3, 20 / 3, 20 / 3)))
    assert solution.exact
    assert solution.reason.startswith("simplex ETF")


def test_the_order_of_classes_does_not_matter():
    order = torch.tensor([2, 0, 4, 1, 3])
    problem = peeled((40, 40, 3, 3, 3), 5, 6.0, 1.0)
    permuted = replace(problem, counts=tuple(problem.counts[i] for i in order))
    first, second = layer_peeled_form(problem), layer_peeled_form(permuted)
    assert second.loss == pytest.approx(first.loss, rel=1e-14)
    torch.testing.assert_close(second.logits, first.logits[order][:, order], rtol=0, atol=1e-12)


def test_sums_and_means_have_the_same_point():
    problem = peeled((40, 40, 3, 3, 3), 5, 6.0, 1.0)
    mean, total = layer_peeled_form(problem), layer_peeled_form(replace(problem, sample_weights=(1.0,) * 5))
    assert total.loss == pytest.approx(89 * mean.loss, rel=1e-13)
    assert total.facts["operator_norm"] == pytest.approx(89 * mean.facts["operator_norm"], rel=1e-12)
    torch.testing.assert_close(total.logits, mean.logits, rtol=0, atol=1e-12)


def test_only_the_product_of_the_budgets_counts_for_the_logits():
    problem = peeled((40, 40, 3, 3, 3), 5, 6.0, 1.0)
    first, second = (
        layer_peeled_form(problem),
        layer_peeled_form(replace(problem, feature_budget=0.5, weight_budget=12.0)),
    )
    torch.testing.assert_close(second.logits, first.logits, rtol=0, atol=1e-12)
    torch.testing.assert_close(second.gram_W, first.gram_W * math.sqrt(144), rtol=0, atol=1e-11)


@pytest.mark.parametrize("name", CASES)
def test_its_multiplier_makes_it_the_minimum_of_the_penalised_model(name):
    problem = problem_of(name)
    solution, K = layer_peeled_form(problem), problem.num_classes
    sigma = solution.facts["operator_norm"]
    decay = sigma * math.sqrt(problem.feature_budget / problem.weight_budget)
    weights = tuple(count / problem.num_samples for count in problem.counts)
    penalised = CrossEntropyUFM((1,) * K, K, decay, sigma**2 / decay, weights)
    norm = solution.facts["nuclear_norm"]
    bound = dual_bound(penalised, solution.W, solution.H)
    assert bound == pytest.approx(solution.loss + sigma * norm, rel=1e-12)
    light = min(weights)
    if weights.count(light) > 1:  # their vectors are one in one model iff in the other
        assert (sigma >= light) == (solution.facts.get("ratio", 1.0) >= solution.facts.get("collapse_ratio", math.inf))


def test_multiplier_is_the_slope_of_the_minimum():
    problem, step = peeled((20, 20, 2, 2, 2), 5, 4.0, 1.0), 1e-4
    norm = layer_peeled_form(problem).facts["nuclear_norm"]
    low, high = (
        layer_peeled_form(replace(problem, feature_budget=((norm + move) / 5) ** 2)).loss for move in (-step, step)
    )
    assert layer_peeled_form(problem).facts["operator_norm"] == pytest.approx((low - high) / (2 * step), rel=1e-7)


# Other weights, and dimensions ---------------------------------------------------------------------------------------


def test_more_than_two_weights_give_a_point_and_a_bound_around_the_minimum():
    counts = (40, 30, 4, 2)
    solution = layer_peeled_form(peeled(counts, 4, 2.0, 1.0))
    loss, *_ = descend(counts, 2.0, 1.0, 4)
    assert not solution.exact
    assert "no closed form" in solution.reason
    assert solution.lower_bound <= loss <= solution.loss
    assert solution.loss - solution.lower_bound < 0.3 * loss
    simplex = layer_peeled_form(peeled((19,) * 4, 4, 2.0, 1.0)).logits
    assert solution.loss <= brute_loss(replace(solution, W=simplex.T.contiguous(), H=torch.eye(4, dtype=torch.float64)))


def test_dimension_must_be_the_rank_of_the_logits():
    # 3 majority vectors and the one of all minority classes, centred
    for ratio, rank in ((1.0, 6), (1.3, 6), (1e4, 3)):
        problem = of_groups(3, 4, ratio, 1.0, dim=rank)
        assert layer_peeled_form(problem).exact
        with pytest.raises(DimensionError, match=f"at least {rank}.*got d = {rank - 1}"):
            layer_peeled_form(replace(problem, dim=rank - 1))


def test_dimension_of_other_weights():
    problem = peeled((500, 400, 4, 3, 2), 2, 0.5, 0.5)
    narrow = layer_peeled_form(problem)  # the minority classes as one
    assert torch.linalg.matrix_rank(narrow.logits) <= 2
    assert narrow.lower_bound < narrow.loss
    with pytest.raises(DimensionError, match="dim must be at least 2"):
        layer_peeled_form(replace(problem, dim=1))


# The semidefinite program --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", CASES)
def test_matrix_is_feasible_for_the_semidefinite_program_and_has_the_norm_as_its_trace(name):
    problem = problem_of(name)
    solution, K = layer_peeled_form(problem), problem.num_classes
    X = semidefinite_matrix(solution)
    assert X.shape == (2 * K, 2 * K)
    assert torch.linalg.eigvalsh(X)[0] > -1e-12 * X.trace()
    assert X[:K, :K].trace().item() == pytest.approx(K * problem.feature_budget, rel=1e-12)
    assert X[K:, K:].trace().item() == pytest.approx(K * problem.weight_budget, rel=1e-12)
    torch.testing.assert_close(X[:K, K:], solution.logits, rtol=0, atol=1e-12)
    nuclear = torch.linalg.matrix_norm(X[:K, K:], "nuc").item()
    assert nuclear == pytest.approx(math.sqrt(X[:K, :K].trace().item() * X[K:, K:].trace().item()), rel=1e-12)


def test_matrix_needs_class_means():
    solution = layer_peeled_form(peeled((2, 2), 2, 1.0, 1.0))
    with pytest.raises(ShapeError, match="got 4 rows"):
        semidefinite_matrix(replace(solution, H=solution.H.repeat_interleave(2, dim=0)))
