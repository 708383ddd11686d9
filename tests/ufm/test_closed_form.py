from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tightframe.errors import ArgumentError, DimensionError
from tightframe.ufm import (
    ULPM,
    CrossEntropyUFM,
    DeepUFM,
    LayerPeeled,
    MaxMargin,
    MeanSquaredUFM,
    Problem,
    ReLUImbalanced,
    closed_form,
)

from .forms.comparison import assert_close, centering

PENALTIES = {"weight_decay": 0.02, "feature_decay": 0.01}
MODELS = [
    CrossEntropyUFM((4, 4, 4), 3, **PENALTIES),
    CrossEntropyUFM((8, 4, 1), 3, **PENALTIES, bias_decay=0.1),
    MeanSquaredUFM((4, 4, 4), 3, **PENALTIES),
    MeanSquaredUFM((8, 4, 1), 3, **PENALTIES, bias_decay=0.1),
    ReLUImbalanced((8, 4, 1), 3, **PENALTIES),
    LayerPeeled((4, 4, 4), 3, weight_budget=1.0, feature_budget=5.0),
    ULPM((8, 4, 1), 3),
    MaxMargin((8, 4, 1), 3),
    DeepUFM((4, 4, 4), 3, (0.01, 0.01, 0.01), loss="mse"),
    DeepUFM((4, 4, 4), 3, (0.01, 0.01, 0.01)),
]


@pytest.mark.parametrize("problem", MODELS, ids=lambda problem: type(problem).__name__)
def test_every_model_has_a_point_with_a_reason_and_a_bound(problem):
    solution = closed_form(problem)
    assert solution.problem == problem
    assert solution.reason
    assert solution.W.shape == solution.H.shape == (3, 3)
    assert solution.W.dtype == solution.H.dtype == torch.float64
    assert -math.inf < solution.lower_bound <= solution.loss + 1e-12
    if solution.exact:
        assert solution.lower_bound == pytest.approx(solution.loss, rel=1e-12)
    assert all(math.isfinite(value) or name == "kink_bias_decay" for name, value in solution.facts.items())


@pytest.mark.parametrize("problem", [Problem((2, 2), 2), None, "CrossEntropyUFM"])
def test_unknown_problems_are_refused(problem):
    with pytest.raises(ArgumentError, match=r"problem must be a model of tightframe\.ufm, got "):
        closed_form(problem)


@pytest.mark.parametrize("problem", MODELS[:-1], ids=lambda problem: type(problem).__name__)
def test_more_dimensions_change_nothing_but_the_width(problem):
    found, wanted = closed_form(replace(problem, dim=7)), closed_form(problem)
    assert found.loss == pytest.approx(wanted.loss, abs=1e-13)
    assert_close(found.logits, wanted.logits)
    assert_close(found.gram_W, wanted.gram_W, atol=1e-11)


@pytest.mark.parametrize("K", [2, 5])
def test_balanced_models_agree_on_the_simplex(K):
    """Cross-entropy, its layer-peeled twin and the largest margin have one geometry; the first two one loss."""
    n, sigma = 4, 0.01
    penalised = closed_form(CrossEntropyUFM((n,) * K, K, 2 * sigma, sigma / 2))
    # The budgets that the penalised minimum spends.
    E_W = penalised.W.square().sum().item() / K
    E_H = penalised.H.square().sum().item() / K
    peeled = closed_form(LayerPeeled((n,) * K, K, weight_budget=E_W, feature_budget=E_H))
    assert_close(peeled.logits, penalised.logits, atol=1e-9)
    penalty = sigma * (2 * K * E_W + n * K * E_H / 2) / 2
    assert peeled.loss + penalty == pytest.approx(penalised.loss, abs=1e-12)
    margin = closed_form(MaxMargin((n,) * K, K))
    for solution in (penalised, peeled, margin):
        assert_close(solution.gram_W / solution.gram_W[0, 0], centering(K) * K / (K - 1), atol=1e-9)


def test_deep_models_of_one_matrix_are_the_flat_ones():
    counts, decays = (3, 3, 3), (0.02, 0.05)
    flat = {"weight_decay": decays[1], "feature_decay": decays[0]}
    for deep, shallow in (
        (DeepUFM(counts, 3, decays, loss="mse"), MeanSquaredUFM(counts, 3, **flat)),
        (DeepUFM(counts, 3, decays), CrossEntropyUFM(counts, 3, **flat)),
    ):
        found, wanted = closed_form(deep), closed_form(shallow)
        assert found.loss == pytest.approx(wanted.loss, abs=1e-10)
        assert_close(found.logits - found.logits.mean(), wanted.logits - wanted.logits.mean(), atol=1e-5)


counts_of = st.lists(st.integers(1, 60), min_size=2, max_size=6).map(tuple)
decay = st.floats(1e-4, 1.0)


@settings(max_examples=60, deadline=None)
@given(counts_of, decay, decay, st.sampled_from([None, 0.0, 0.05, 2.0]), st.floats(0.1, 10), st.booleans())
def test_mean_and_sum_forms_are_one(counts, weight_decay, feature_decay, bias_decay, factor, squared):
    """Weights and penalties times a factor: the same point, the loss times it."""
    model, N, d = MeanSquaredUFM if squared else CrossEntropyUFM, sum(counts), len(counts)
    mean = closed_form(model(counts, d, weight_decay, feature_decay, bias_decay=bias_decay))
    scaled_bias = None if bias_decay is None else factor * bias_decay
    weights = (factor / N,) * d
    found = closed_form(model(counts, d, factor * weight_decay, factor * feature_decay, weights, scaled_bias))
    assert found.exact == mean.exact
    assert found.loss == pytest.approx(factor * mean.loss, rel=1e-9)
    assert found.lower_bound == pytest.approx(factor * mean.lower_bound, rel=1e-6, abs=1e-12)
    assert_close(found.logits, mean.logits, atol=1e-6)


@settings(max_examples=60, deadline=None)
@given(counts_of, decay, st.sampled_from([None, 0.0, 0.05]), st.randoms(use_true_random=False))
def test_bound_holds_at_any_other_point(counts, sigma, bias_decay, random):
    """No point that is easy to write down has a smaller objective than the bound, exact or not."""
    from .brute import labels_of, value

    generator = torch.Generator().manual_seed(random.randrange(2**31))
    for model in (CrossEntropyUFM, MeanSquaredUFM):
        problem = model(counts, len(counts), sigma, sigma, bias_decay=bias_decay)
        solution = closed_form(problem)
        H, W, bias = solution.H[labels_of(problem)], solution.W, solution.bias
        for step in (0.0, 1e-4, 1e-2, 1.0):
            near = [
                x if x is None else x + step * torch.randn(x.shape, generator=generator).double() for x in (H, W, bias)
            ]
            assert value(problem, near[0], (near[1],), near[2]).item() >= solution.lower_bound - 1e-13


@pytest.mark.parametrize("problem", MODELS, ids=lambda problem: type(problem).__name__)
def test_one_dimension_does_not_hold_three_classes(problem):
    with pytest.raises(DimensionError, match="dim must be at least"):
        closed_form(replace(problem, dim=1))
