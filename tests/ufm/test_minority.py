from __future__ import annotations

import math
import random
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from tightframe.errors import ArgumentError, DimensionError
from tightframe.ufm import CrossEntropyUFM, LayerPeeled, MeanSquaredUFM
from tightframe.ufm.layer_peeled import layer_peeled_form, minority_collapse_threshold
from tightframe.ufm.minority import MinorityCollapse, minority_collapse


def penalised(counts, weights=None, sigma=0.02, bias_decay=None, dim=None):
    return CrossEntropyUFM(tuple(counts), dim or len(counts), sigma, sigma, weights, bias_decay)


def budgeted(counts, weights=None, product=5.0):
    return LayerPeeled(tuple(counts), len(counts), product, 1.0, weights)


def apart(problem, first, second):
    """Return how far two class vectors are from each other, in units of the largest, as descent finds them."""
    counts = torch.tensor(problem.counts)
    K, N = len(counts), int(counts.sum())
    labels = torch.arange(K).repeat_interleave(counts)
    weights = torch.tensor(problem.sample_weights or [1 / N] * K, dtype=torch.float64)[labels]
    generator = torch.Generator().manual_seed(0)
    parameters = [torch.randn(n, K, dtype=torch.float64, generator=generator).requires_grad_() for n in (K, N)]
    bias = torch.zeros(K, dtype=torch.float64, requires_grad=problem.bias_decay is not None)
    variables = [*parameters, bias] if bias.requires_grad else parameters
    optimizer = torch.optim.LBFGS(
        variables,
        max_iter=2000,
        tolerance_grad=1e-13,
        tolerance_change=0,
        history_size=30,
        line_search_fn="strong_wolfe",
    )

    def closure():
        optimizer.zero_grad()
        W, H = parameters
        loss = (weights * F.cross_entropy(H @ W.T + bias, labels, reduction="none")).sum()
        loss = loss + problem.weight_decay / 2 * W.square().sum() + problem.feature_decay / 2 * H.square().sum()
        loss = loss + (problem.bias_decay or 0.0) / 2 * bias.square().sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    W = parameters[0].detach()
    return ((W[first] - W[second]).norm() / W.norm(dim=1).max()).item()


def copied(problem, classes, copies):
    return replace(problem, counts=tuple(n * copies if k in classes else n for k, n in enumerate(problem.counts)))


def weighted(problem, classes, factor):
    weights = problem.sample_weights or (1 / problem.num_samples,) * problem.num_classes
    return replace(problem, sample_weights=tuple(w * factor if k in classes else w for k, w in enumerate(weights)))


# Penalties -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bias_decay", [None, 0.0, 0.01])
def test_margin_says_on_which_side_descent_finds_the_vectors(bias_decay):
    critical = math.sqrt(3) / 43  # of three samples, n = 43
    for factor, collapsed in ((1.05, True), (0.95, False)):
        problem = penalised((20, 20, 3), sigma=critical * factor, bias_decay=bias_decay)
        assert minority_collapse(problem, 2).margin == math.inf  # alone
        problem = penalised((20, 17, 3, 3), sigma=critical * factor, bias_decay=bias_decay)
        fate = minority_collapse(problem)
        assert fate.classes == (2, 3)
        assert fate.margin == pytest.approx(1 / factor)
        assert fate.collapsed == collapsed
        assert (apart(problem, 2, 3) < 1e-4) == collapsed


def test_weighting_keeps_vectors_apart_from_its_factor_on():
    problem = penalised((20, 20, 2, 2), sigma=0.05)
    fate = minority_collapse(problem)
    assert fate.weighting == pytest.approx(0.05 * 44 / math.sqrt(2))
    for share, collapsed in ((0.95, True), (1.05, False)):
        mended = weighted(problem, fate.classes, fate.weighting * share)
        assert minority_collapse(mended, 2).collapsed == collapsed
        assert (apart(mended, 2, 3) < 1e-4) == collapsed


@pytest.mark.parametrize("weights", [None, (0.02,) * 4])
def test_copies_keep_vectors_apart_from_their_number_on(weights):
    problem = penalised((30, 30, 2, 2), weights, sigma=0.04 if weights is None else 0.05)
    fate = minority_collapse(problem)
    fewest = math.floor(fate.duplication) + 1
    assert fewest > 2
    for copies, collapsed in ((fewest - 1, True), (fewest, False)):
        mended = copied(problem, fate.classes, copies)
        assert minority_collapse(mended, 2).collapsed == collapsed
        assert (apart(mended, 2, 3) < 1e-4) == collapsed


def test_copies_needed_are_those_that_enumeration_finds():
    generator, helped, helpless = random.Random(0), 0, 0
    for _ in range(60):
        n, m = generator.randint(20, 200), generator.randint(1, 10)
        counts = (n,) * generator.randint(1, 4) + (m,) * generator.randint(2, 5)
        problem = penalised(counts, sigma=math.sqrt(m) / sum(counts) * generator.uniform(1.01, 4))
        fate = minority_collapse(problem, len(counts) - 1)
        good = [
            c
            for c in range(1, 300)
            if not minority_collapse(copied(problem, fate.classes, c), len(counts) - 1).collapsed
        ]
        assert fate.collapsed
        if fate.duplication == math.inf:
            assert not good
            helpless += 1
        elif good:
            assert good[0] == math.floor(fate.duplication) + 1
            helped += 1
    assert min(helped, helpless) > 5


def test_copies_of_all_samples_do_not_help_a_mean():
    fate = minority_collapse(penalised((4, 4, 4), sigma=0.2))
    assert fate.collapsed
    assert fate.duplication == math.inf
    assert minority_collapse(penalised((4, 4, 4), (1 / 12,) * 3, sigma=0.2)).duplication == pytest.approx(1.44)


def test_group_is_of_classes_alike_in_count_and_weight():
    problem = penalised((9, 4, 9, 4, 4), (0.1, 0.2, 0.1, 0.2, 0.1))
    assert minority_collapse(problem).classes == (4,)
    assert minority_collapse(problem, 3).classes == (1, 3)
    assert minority_collapse(problem, 0).classes == (0, 2)
    assert minority_collapse(problem, 1).margin == pytest.approx(0.4 / 0.02)


def test_vectors_that_are_distinct_need_nothing():
    assert minority_collapse(penalised((5, 5, 4, 4), sigma=0.01)) == MinorityCollapse(
        (2, 3), pytest.approx(100 / 9), 1, 1
    )


# Budgets -------------------------------------------------------------------------------------------------------------


def test_margin_under_budgets_is_that_of_the_threshold_and_both_remedies_agree():
    threshold = minority_collapse_threshold(2, 3, 5.0, 1.0)
    problem = budgeted((300, 300, 2, 2, 2))
    fate = minority_collapse(problem)
    assert fate.classes == (2, 3, 4)
    assert fate.collapsed
    assert fate.margin == pytest.approx(threshold / 150)
    assert fate.weighting == fate.duplication == pytest.approx(150 / threshold)
    for share, collapsed in ((0.97, True), (1.03, False)):
        mended = weighted(problem, fate.classes, fate.weighting * share)
        assert minority_collapse(mended).collapsed == collapsed
        assert (layer_peeled_form(mended).facts["minority_cosine"] > 1 - 1e-9) == collapsed
    fewest = math.floor(fate.duplication) + 1
    assert minority_collapse(copied(problem, fate.classes, fewest - 1)).collapsed
    assert not minority_collapse(copied(problem, fate.classes, fewest)).collapsed


def test_samples_repeated_up_to_balance_give_the_simplex():
    problem = copied(budgeted((300, 300, 2, 2, 2)), (2, 3, 4), 150)
    assert minority_collapse(problem) == MinorityCollapse((0, 1, 2, 3, 4), math.inf, 1, 1)
    assert layer_peeled_form(problem).reason.startswith("simplex ETF")


def test_majority_never_collapses_under_budgets():
    problem = budgeted((300, 300, 2, 2, 2), product=1e-4)
    assert minority_collapse(problem).collapsed
    assert minority_collapse(problem, 1) == MinorityCollapse((0, 1), math.inf, 1, 1)
    W = layer_peeled_form(problem).W
    assert (W[0] - W[1]).norm() > 0.5 * W.norm()
    assert minority_collapse(budgeted((300, 300, 2))) == MinorityCollapse((2,), math.inf, 1, 1)


def test_models_agree_at_the_multiplier_of_the_budget():
    for product in (0.5, 2.0, 8.0):
        problem = budgeted((40, 40, 2, 2, 2), product=product)
        sigma = layer_peeled_form(problem).facts["operator_norm"]
        weights = tuple(n / problem.num_samples for n in problem.counts)
        same = penalised((1,) * 5, weights, sigma)
        assert minority_collapse(same).collapsed == minority_collapse(problem).collapsed


# What is refused -----------------------------------------------------------------------------------------------------


def test_what_has_no_answer_says_so():
    with pytest.raises(ArgumentError, match="at most two class weights, got 3"):
        minority_collapse(budgeted((9, 5, 2, 2)))
    with pytest.raises(ArgumentError, match=r"class_index must lie in 0\.\.3, got 4"):
        minority_collapse(penalised((9, 5, 2, 2)), 4)
    with pytest.raises(DimensionError, match="at least 3"):
        minority_collapse(penalised((9, 5, 2, 2), dim=2))
    with pytest.raises(ArgumentError, match="LayerPeeled or CrossEntropyUFM, got MeanSquaredUFM"):
        minority_collapse(MeanSquaredUFM((2, 2), 2, 0.1, 0.1))
