from __future__ import annotations

import itertools
import math
import random

import pytest
import torch
import torch.nn.functional as F

from tightframe.errors import ArgumentError
from tightframe.ufm.layer_peeled import (
    layer_peeled_form,
    minority_collapse_threshold,
    minority_cosine,
    oversampling_to_avoid_collapse,
)
from tightframe.ufm.two_groups import two_groups

from .layer_peeled_literal import descend, of_groups, peeled

# K = 10, E_W = 1
THRESHOLDS = {
    (3, 7, 1.0): 4.136,
    (3, 7, 2.0): 14.618,
    (3, 7, 5.0): 245.50,
    (3, 7, 10.0): 6350.8,
    (5, 5, 1.0): 1.735,
    (5, 5, 2.0): 2.895,
    (5, 5, 5.0): 12.192,
    (5, 5, 10.0): 81.10,
}


# Minority collapse ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("majority", "minority", "budget"), THRESHOLDS)
def test_thresholds_have_the_values_known(majority, minority, budget):
    found = minority_collapse_threshold(majority, minority, budget, 1.0)
    assert found == pytest.approx(THRESHOLDS[majority, minority, budget], rel=3e-4)
    assert minority_collapse_threshold(majority, minority, 4.0, budget / 4) == pytest.approx(found, rel=1e-12)


def fixed_points():
    generator = random.Random(1)
    for _ in range(40):
        yield generator.randint(1, 20), generator.randint(2, 20), 10 ** generator.uniform(-1, 1)


@pytest.mark.parametrize(("majority", "minority", "budget"), [*THRESHOLDS, *fixed_points()])
def test_thresholds_are_fixed_points_at_a_certified_minimum(majority, minority, budget):
    threshold = minority_collapse_threshold(majority, minority, budget, 1.0)
    solution = layer_peeled_form(of_groups(majority, minority, threshold * (1 + 1e-10), budget))
    assert solution.exact
    q = torch.softmax(solution.logits, dim=1)
    if majority > 1:
        assert threshold * (q[0, 1:].sum() + q[0, 1]).item() == pytest.approx(1, rel=1e-8)
    assert solution.facts["operator_norm"] == pytest.approx(1, rel=1e-8)  # the weight of a minority class
    assert solution.facts["collapse_ratio"] == threshold


def smallest_with_minority_alike(majority, minority, ratio):
    """Return the nuclear norm of the logits of least cost under penalty 1 / R, by descent in three scalars."""
    K = majority + minority
    gamma = math.sqrt(K / (majority * minority))
    p = torch.tensor([1.0, 1.0, 1.0], dtype=torch.float64, requires_grad=True)

    def norm():
        a, x, y = p
        return a * (majority - 1) + (majority * x * x + minority * y * y).sqrt()

    def cost():
        a, x, y = p
        zero = torch.zeros_like(a)
        heavy = torch.stack([zero, math.log(majority - 1) - a, math.log(minority) - a * (1 - 1 / majority) - gamma * x])
        light = torch.stack([zero + math.log(minority), math.log(majority) - gamma * y])
        fit = majority * heavy.logsumexp(0) + minority / ratio * light.logsumexp(0)
        return fit + norm() / ratio

    optimizer = torch.optim.LBFGS(
        [p], max_iter=1000, tolerance_grad=1e-15, tolerance_change=0, line_search_fn="strong_wolfe"
    )

    def closure():
        optimizer.zero_grad()
        value = cost()
        value.backward()
        return value

    optimizer.step(closure)
    return norm().item()


@pytest.mark.parametrize(("majority", "minority", "budget"), [(3, 7, 2.0), (5, 5, 5.0), (7, 3, 1.0), (2, 2, 0.5)])
def test_thresholds_are_where_the_penalised_minimum_has_the_norm_of_the_budgets(majority, minority, budget):
    threshold = minority_collapse_threshold(majority, minority, budget, 1.0)
    norm = (majority + minority) * math.sqrt(budget)
    assert smallest_with_minority_alike(majority, minority, threshold) == pytest.approx(norm, rel=1e-6)


def test_threshold_lies_between_the_two_sides_that_descent_finds():
    threshold = minority_collapse_threshold(2, 3, 1.5, 1.0)
    cosines = []
    for factor in (0.97, 1.03):
        weights = (factor * threshold,) * 2 + (1.0,) * 3
        _, W, _ = descend((1,) * 5, 1.5, 1.0, 5, weights)
        cosines.append(F.cosine_similarity(W[3], W[4], dim=0).item())
        assert minority_cosine(factor * threshold, 2, 3, 1.5, 1.0) == pytest.approx(cosines[-1], abs=1e-5)
    assert cosines[0] < 0.99
    assert cosines[1] > 1 - 1e-5


def test_threshold_grows_with_the_budgets_from_one_to_infinity():
    budgets = [10**e for e in range(-12, 7)]
    found = [minority_collapse_threshold(4, 3, budget, 1.0) for budget in budgets]
    assert found[0] == pytest.approx(1, abs=1e-5)
    assert all(a < b for a, b in itertools.pairwise(found) if b < math.inf)
    assert found[-1] == math.inf
    assert minority_collapse_threshold(4, 1, 1.0, 1.0) == math.inf
    assert 1 < minority_collapse_threshold(1, 2, 1.0, 1.0) < math.inf


# The curve and its remedy --------------------------------------------------------------------------------------------


def test_cosines_are_those_of_the_class_vectors():
    for ratio in (1.0, 2.0, 8.0, 12.0, 12.5, 1e3):
        W = layer_peeled_form(of_groups(5, 5, ratio)).W
        cosine = F.cosine_similarity(W[5], W[6], dim=0).item()
        assert minority_cosine(ratio, 5, 5, 5.0, 1.0) == pytest.approx(cosine, abs=1e-9)
        point = two_groups(5, 5, ratio, 10 * math.sqrt(5))
        assert point.majority_cosine == pytest.approx(F.cosine_similarity(W[0], W[1], dim=0).item(), abs=1e-9)


def test_curve_of_the_paper():
    curve = [minority_cosine(R, 5, 5, 5.0, 1.0) for R in (1, 2, 8, 12, 12.2, 1e4)]
    assert curve == pytest.approx([-1 / 9, -0.067, 0.283, 0.940, 1, 1], abs=5e-4)
    fine = [minority_cosine(10 ** (i / 50), 3, 7, 5.0, 1.0) for i in range(200)]
    assert all(a <= b + 1e-12 for a, b in itertools.pairwise(fine))


def test_oversampled_minority_is_a_majority():
    for ratio in (0.5, 0.01):
        assert minority_cosine(ratio, 3, 4, 2.0, 1.0) == two_groups(4, 3, 1 / ratio, 7 * math.sqrt(2)).majority_cosine
    below, above = (minority_cosine(1 + move, 3, 4, 2.0, 1.0) for move in (-1e-9, 1e-9))
    assert below == pytest.approx(above, abs=1e-8)


def test_cosine_is_undefined_without_two_vectors():
    assert math.isnan(minority_cosine(5.0, 3, 1, 1.0, 1.0))
    assert math.isnan(minority_cosine(9.0, 2, 2, 0.05, 0.2))  # all of the budgets goes to the majority


def test_oversampling_starts_to_help_at_the_ratio_over_the_threshold():
    needed = oversampling_to_avoid_collapse(1000.0, 3, 4, 5.0, 1.0)
    assert needed == pytest.approx(1000 / minority_collapse_threshold(3, 4, 5.0, 1.0))
    for factor, apart in ((0.97, False), (1.03, True)):
        weights = (1.0,) * 3 + (needed * factor,) * 4
        solution = layer_peeled_form(peeled((1000,) * 3 + (1,) * 4, 7, 5.0, 1.0, weights))
        assert (solution.facts["minority_cosine"] < 1 - 1e-6) == apart
    assert oversampling_to_avoid_collapse(1.2, 3, 4, 5.0, 1.0) == 1
    assert oversampling_to_avoid_collapse(1e9, 3, 1, 5.0, 1.0) == 1


@pytest.mark.parametrize(
    "bad", [{"majority": 0}, {"minority": 2.0}, {"feature_budget": 0.0}, {"weight_budget": math.inf}]
)
def test_thresholds_name_the_argument_that_is_wrong(bad):
    arguments = {"majority": 3, "minority": 4, "feature_budget": 5.0, "weight_budget": 1.0, **bad}
    with pytest.raises(ArgumentError, match=next(iter(bad))):
        minority_collapse_threshold(**arguments)
    with pytest.raises(ArgumentError, match=next(iter(bad))):
        minority_cosine(2.0, **arguments)


@pytest.mark.parametrize("ratio", [0.0, -1.0, math.nan, math.inf])
def test_ratio_must_be_a_positive_number(ratio):
    with pytest.raises(ArgumentError, match="ratio"):
        minority_cosine(ratio, 3, 4, 5.0, 1.0)
    with pytest.raises(ArgumentError, match="ratio"):
        oversampling_to_avoid_collapse(ratio, 3, 4, 5.0, 1.0)
