from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from tightframe import functional as F
from tightframe.errors import ArgumentError, DimensionError
from tightframe.frames import is_simplex_etf
from tightframe.ufm import CrossEntropyUFM
from tightframe.ufm.cross_entropy import collapse_sigmas, cross_entropy_form, simplex_weights

from ..brute import minimise
from .comparison import GEOMETRY, LOSS, assert_close, assert_loss_is_the_objective, assert_minimum, centering

BIASES = (None, 0.0, 0.3)


def problem_of(counts, dim, sigma, ratio=2.0, **options):
    """Return a problem with the given σ and λ_W/λ_H = ratio²."""
    return CrossEntropyUFM(counts, dim, sigma * ratio, sigma / ratio, **options)


# Balanced ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bias_decay", BIASES)
@pytest.mark.parametrize(("K", "n", "dim"), [(2, 3, 1), (3, 4, 2), (4, 2, 6), (5, 1, 4), (6, 3, 8)])
def test_balanced_minimum_is_a_simplex_etf(K, n, dim, bias_decay):
    assert_minimum(cross_entropy_form(problem_of((n,) * K, dim, 0.02, bias_decay=bias_decay)))


@pytest.mark.parametrize("bias_decay", BIASES)
@pytest.mark.parametrize(("K", "n"), [(2, 1), (5, 7), (20, 3)])
def test_balanced_form_is_the_printed_one(K, n, bias_decay):
    weight_decay, feature_decay = 0.01, 0.003
    problem = CrossEntropyUFM((n,) * K, K + 1, weight_decay, feature_decay, bias_decay=bias_decay)
    solution, sigma = cross_entropy_form(problem), math.sqrt(weight_decay * feature_decay)
    a = math.log(1 / (math.sqrt(n) * sigma) - K + 1)
    assert solution.facts["scale"] == pytest.approx(a, abs=1e-12)
    assert_close(solution.logits, a * centering(K))
    loss = math.log1p((K - 1) * math.exp(-a)) + sigma * (K - 1) * math.sqrt(n) * a
    assert solution.loss == pytest.approx(loss, abs=1e-12)
    ratio = math.sqrt(feature_decay / weight_decay)
    assert solution.facts["squared_norm_W"] == pytest.approx(ratio * (K - 1) * math.sqrt(n) * a, abs=1e-12)
    squared_h = (K - 1) * a / (ratio * K * math.sqrt(n))
    assert_close(solution.H.square().sum(dim=1), torch.full((K,), squared_h, dtype=torch.float64))
    assert solution.facts["squared_norm_h"] == pytest.approx(squared_h, abs=1e-12)
    assert solution.facts["squared_norm_w"] * K == pytest.approx(solution.facts["squared_norm_W"], abs=1e-12)
    assert_close(solution.H, math.sqrt(weight_decay / (n * feature_decay)) * solution.W, atol=1e-7)
    assert is_simplex_etf(solution.W / solution.W.norm(dim=1, keepdim=True))
    assert solution.bias is None if bias_decay is None else not solution.bias.any()


@pytest.mark.parametrize("bias_decay", BIASES)
def test_metrics_of_networks_see_collapse(bias_decay):
    collapse = cross_entropy_form(problem_of((3,) * 4, 5, 0.02, bias_decay=bias_decay)).collapse()
    simplex = [f"nc2.{name}.{of}" for name in ("equinorm", "equiangularity") for of in ("means", "classifier")]
    for name in ("nc1.ratio", *simplex, "nc3.distance"):
        assert collapse[name] == pytest.approx(0, abs=1e-12)


def test_sum_and_mean_are_one_problem():
    mean = problem_of((4, 4, 4), 3, 0.01, bias_decay=0.2)
    total = CrossEntropyUFM(mean.counts, 3, *(12 * x for x in (mean.weight_decay, mean.feature_decay)), (1.0,) * 3, 2.4)
    found, wanted = cross_entropy_form(total), cross_entropy_form(mean)
    assert found.loss == pytest.approx(12 * wanted.loss, rel=1e-13)
    assert_close(found.gram_W, wanted.gram_W)


# Zero ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bias_decay", BIASES)
@pytest.mark.parametrize(
    ("counts", "weights"), [((3, 3, 3), None), ((6, 3, 1), (0.05, 0.2, 0.1)), ((5, 1, 1, 1), None)]
)
def test_zero_is_optimal_from_its_threshold_on(counts, weights, bias_decay):
    options = {"bias_decay": bias_decay, "sample_weights": weights}
    threshold = cross_entropy_form(problem_of(counts, 4, 1.0, **options)).facts["zero_sigma"]
    above = cross_entropy_form(problem_of(counts, 4, 1.03 * threshold, **options))
    assert not above.W.any()
    assert_minimum(above)
    below = problem_of(counts, 4, 0.97 * threshold, **options)
    found = minimise(below, starts=2, iterations=400)
    assert found.loss < above.loss - 1e-6
    solution = cross_entropy_form(below)
    assert solution.lower_bound <= found.loss + LOSS
    assert solution.loss <= above.loss + 1e-15  # zero is among the points tried


@pytest.mark.parametrize("counts", [(3, 3, 3), (9, 2, 2, 1)])
def test_zero_threshold_is_the_printed_one(counts):
    K, N = len(counts), sum(counts)
    P, D = centering(K), torch.tensor(counts, dtype=torch.float64).diag()
    squared = torch.linalg.eigvalsh(P @ D @ P)[-1].item() / N**2
    facts = cross_entropy_form(problem_of(counts, K, 0.01)).facts
    assert facts["zero_sigma"] == pytest.approx(math.sqrt(squared), abs=1e-14)
    if len(set(counts)) == 1:
        assert facts["zero_sigma"] == pytest.approx(1 / (K * math.sqrt(counts[0])), abs=1e-14)


def test_zero_needs_no_dimensions():
    assert cross_entropy_form(problem_of((3, 3, 3, 3), 1, 1.0)).loss == pytest.approx(math.log(4), abs=1e-14)


# Imbalanced ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bias_decay", BIASES)
@pytest.mark.parametrize(("sigma", "weights"), [(1e-3, None), (0.02, (0.02, 0.3, 0.1, 0.05)), (0.1, None)])
def test_elsewhere_a_point_and_a_bound(sigma, weights, bias_decay):
    solution = cross_entropy_form(problem_of((5, 3, 1, 1), 3, sigma, sample_weights=weights, bias_decay=bias_decay))
    assert not solution.exact
    assert "no closed form" in solution.reason
    assert_loss_is_the_objective(solution)
    found = minimise(solution.problem, starts=2, iterations=300)
    assert 0 < solution.lower_bound <= found.loss + LOSS
    assert found.loss <= solution.loss < 1.1 * found.loss + 0.01


@pytest.mark.parametrize("bias_decay", BIASES)
@pytest.mark.parametrize("weight", [None, 0.12])
def test_twins_collapse_up_to_their_threshold(weight, bias_decay):
    weights = None if weight is None else (0.1, 0.1, weight, weight)
    options = {"sample_weights": weights, "bias_decay": bias_decay}
    base = problem_of((4, 4, 1, 1), 5, 1.0, ratio=1.0, **options)
    sigmas = collapse_sigmas(base)
    assert_close(sigmas[2:], torch.full((2,), 0.1 if weight is None else weight, dtype=torch.float64))
    for factor, collapsed in ((1.05, True), (0.95, False)):
        sigma = factor * sigmas[2].item()
        problem = replace(base, weight_decay=sigma, feature_decay=sigma)
        found = minimise(problem, starts=1, iterations=1500)
        w = found.classifier
        apart = ((w[2] - w[3]).norm() / w.norm()).item()
        assert (apart < 1e-3) if collapsed else (apart > 0.05)
        assert w[0].norm() > 0.1  # the others are not zero
        assert (w[0] - w[1]).norm() > 0.1
        assert cross_entropy_form(problem).facts["collapsed_classes"] == (2 if collapsed else 0)


def test_collapse_facts_by_hand():
    facts = cross_entropy_form(CrossEntropyUFM((6, 6, 2, 2, 1), 4, 0.1, 0.1)).facts
    assert facts["collapse_count"] == pytest.approx(17**2 * 0.01, abs=1e-12)
    assert facts["collapse_sigma"] == pytest.approx(math.sqrt(2) / 17, abs=1e-14)
    assert facts["collapsed_classes"] == 2
    lone = collapse_sigmas(CrossEntropyUFM((3, 2, 1), 4, 0.1, 0.1))
    assert lone.isnan().all()
    # Alike in count only is not alike.
    weighted = CrossEntropyUFM((3, 3, 1), 4, 0.1, 0.1, (0.1, 0.2, 0.3))
    assert collapse_sigmas(weighted).isnan().all()
    assert "collapse_sigma" not in cross_entropy_form(weighted).facts


# Weights that make a simplex -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("counts", "sigma"), [((6, 3, 2, 1), 0.05), ((9, 1, 1), 0.02), ((4, 4), 0.1), ((20, 1), 0.03)])
def test_simplex_weights_restore_the_simplex_etf(counts, sigma):
    problem = problem_of(counts, len(counts), sigma)
    weights = simplex_weights(problem)
    assert sum(n * w for n, w in zip(counts, weights, strict=True)) == pytest.approx(1, abs=1e-13)
    solution = cross_entropy_form(replace(problem, sample_weights=weights))
    found = assert_minimum(solution)
    assert is_simplex_etf(found.classifier / found.classifier.norm(dim=1, keepdim=True), tol=GEOMETRY)
    means = solution.class_means / solution.class_means.norm(dim=1, keepdim=True)
    assert_close(means, solution.W / solution.W.norm(dim=1, keepdim=True))
    assert F.nc3_distance(solution.moments, solution.W).isfinite()


def test_simplex_weights_of_equal_counts_are_the_mean():
    assert simplex_weights(problem_of((5,) * 4, 4, 0.01)) == pytest.approx((1 / 20,) * 4, abs=1e-14)


def test_simplex_weights_exist_without_bias_and_below_a_threshold():
    with pytest.raises(ArgumentError, match=r"problem must have no bias .*got bias_decay=0"):
        simplex_weights(problem_of((2, 1), 2, 0.01, bias_decay=0))
    with pytest.raises(ArgumentError, match=r"sum\(sqrt\(counts\)\) < 1 .*got 1.2"):
        simplex_weights(problem_of((4, 4), 2, 0.3))


# Invariances and errors ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bias_decay", BIASES)
def test_order_of_classes_does_not_matter(bias_decay):
    counts, weights, order = (7, 3, 3, 1), (0.05, 0.1, 0.1, 0.2), torch.tensor([2, 0, 3, 1])
    options = {"sigma": 0.05, "bias_decay": bias_decay}
    wanted = cross_entropy_form(problem_of(counts, 5, sample_weights=weights, **options))
    turned = [tuple(x[i] for i in order) for x in (counts, weights)]
    found = cross_entropy_form(problem_of(turned[0], 5, sample_weights=turned[1], **options))
    assert_close(found.gram_W, wanted.gram_W[order][:, order])
    assert found.lower_bound == pytest.approx(wanted.lower_bound, abs=1e-12)
    assert found.facts == pytest.approx(wanted.facts, abs=1e-12)


@pytest.mark.parametrize("counts", [(2, 2, 2, 2), (4, 2, 1, 1)])
def test_too_few_dimensions(counts):
    assert cross_entropy_form(problem_of(counts, 3, 0.01)).loss > 0
    with pytest.raises(DimensionError, match=r"dim must be at least 3 .*K = 4 classes, got d = 2; .*widen"):
        cross_entropy_form(problem_of(counts, 2, 0.01))
