from __future__ import annotations

import math

import pytest
import torch

from tightframe.errors import DimensionError
from tightframe.ufm import CrossEntropyUFM, ReLUImbalanced
from tightframe.ufm.cross_entropy import cross_entropy_form
from tightframe.ufm.relu import relu_form

from ..brute import minimise
from .comparison import LOSS, assert_close, assert_minimum


def problem_of(counts, dim, sigma, ratio=2.0, **options):
    return ReLUImbalanced(counts, dim, sigma * ratio, sigma / ratio, **options)


@pytest.mark.parametrize(
    ("counts", "sigma", "weights"),
    [
        ((3, 3, 3), 0.03, None),
        ((6, 3, 1), 0.03, None),
        ((5, 1, 1), 0.1, (0.1, 0.4, 0.05)),  # the last is dead
    ],
)
def test_minimum(counts, sigma, weights):
    solution = relu_form(problem_of(counts, len(counts) + 2, sigma, sample_weights=weights))
    assert solution.H.min() >= 0
    # The squares that keep features nonnegative make brute force slow, and let it stop at saddles.
    assert_minimum(solution, starts=4, iterations=600)


@pytest.mark.parametrize("weights", [None, (0.01, 0.02, 0.03, 0.1)])
@pytest.mark.parametrize("counts", [(5, 5, 5, 5), (20, 9, 3, 1)])
def test_form_is_the_printed_one(counts, weights):
    K, N, weight_decay, feature_decay = len(counts), sum(counts), 0.02, 0.04
    solution = relu_form(ReLUImbalanced(counts, K, weight_decay, feature_decay, weights))
    sigma, loss = math.sqrt(weight_decay * feature_decay), 0.0
    gram = torch.zeros(K, K, dtype=torch.float64)
    for k, n in enumerate(counts):
        omega = 1 / N if weights is None else weights[k]
        c = sigma / (omega * math.sqrt(n)) * math.sqrt((K - 1) / K)
        a = math.log((K - 1) * (1 / c - 1)) if (K - 1) * (1 / c - 1) > 1 else 0.0
        direction = torch.full((K,), -1 / K, dtype=torch.float64)
        direction[k] += 1
        assert_close(solution.logits[k], a * direction)
        squared = math.sqrt(weight_decay * (K - 1) / (feature_decay * K * n)) * a
        assert solution.H[k].square().sum().item() == pytest.approx(squared, abs=1e-12)
        if a > 0:
            gram += a * a / squared * torch.outer(direction, direction)
        loss += n * omega * math.log1p((K - 1) * math.exp(-a)) + sigma * math.sqrt(n * (K - 1) / K) * a
    assert_close(solution.gram_W, gram)
    assert_close(solution.gram_H, solution.gram_H.diagonal().diag())
    assert solution.loss == pytest.approx(loss, abs=1e-12)
    assert solution.W.sum(dim=0).abs().max() < 1e-12


@pytest.mark.parametrize("weights", [None, (0.1, 0.1, 0.06)])
def test_a_class_dies_at_its_threshold_alone(weights):
    counts = (4, 3, 1)
    threshold = relu_form(problem_of(counts, 3, 0.01, sample_weights=weights)).facts["death_sigma"]
    for factor, dead in ((1.03, True), (0.97, False)):
        solution = relu_form(problem_of(counts, 5, factor * threshold, sample_weights=weights))
        assert solution.facts["active_classes"] == 3 - dead
        assert (solution.H[2].norm() == 0) == dead
        assert ("squared_norm_shared_w" in solution.facts) == dead
        found = minimise(solution.problem, starts=2, iterations=300)
        assert abs(found.loss - solution.loss) < LOSS
        last = found.H[-1].norm()
        assert (last < 0.02) if dead else (last > 0.05)


def test_dead_classes_share_a_class_vector():
    solution = relu_form(problem_of((20, 9, 1, 1, 2), 2, 0.05))
    assert solution.facts["active_classes"] == 2
    assert not solution.H[2:].any()
    assert_close(solution.W[2:], solution.W[2].expand(3, -1))
    assert solution.facts["squared_norm_shared_w"] == pytest.approx(solution.W[4].square().sum().item(), abs=1e-14)
    assert (solution.W[:2] - solution.W[2]).norm(dim=1).min() > 0.1


def test_death_count_is_the_printed_one():
    facts = relu_form(problem_of((9, 5, 1), 3, 0.02)).facts
    assert facts["death_count"] == pytest.approx(15**2 * 0.02**2 * 3 / 2, abs=1e-14)


def test_all_die():
    solution = relu_form(problem_of((9, 5, 1), 1, 1.0))
    assert solution.loss == pytest.approx(math.log(3), abs=1e-14)
    facts = relu_form(problem_of((9, 5, 1), 3, 0.01)).facts
    assert relu_form(problem_of((9, 5, 1), 3, 0.97 * facts["zero_sigma"])).facts["active_classes"] == 1
    assert relu_form(problem_of((9, 5, 1), 3, 1.03 * facts["zero_sigma"])).facts["active_classes"] == 0


def test_no_nonnegative_combination_is_steeper():
    """The certificate, from its definition: max ‖Gv‖ over nonnegative unit v is at most σ."""
    generator = torch.Generator().manual_seed(0)
    for counts, weights in [((12, 5, 2, 1), None), ((5, 3, 1), (0.02, 0.1, 0.3))]:
        sigma, labels = 0.02, torch.tensor([k for k, n in enumerate(counts) for _ in range(n)])
        solution = relu_form(problem_of(counts, 4, sigma, sample_weights=weights))
        omega = torch.tensor(weights or [1 / sum(counts)] * len(counts), dtype=torch.float64)[labels]
        Z = solution.logits[labels]
        G = omega.unsqueeze(1) * (torch.eye(len(counts), dtype=torch.float64)[labels] - Z.softmax(dim=1))
        across = (G @ G.T)[labels.unsqueeze(1) != labels]
        assert across.max() < 0
        v = torch.rand(2000, len(labels), generator=generator, dtype=torch.float64)
        v[torch.rand(v.shape, generator=generator) < 0.7] = 0
        v[: len(counts)] = torch.nn.functional.one_hot(labels).T
        steepest = (v @ G).norm(dim=1) / v.norm(dim=1)
        assert steepest.nan_to_num().max() <= sigma + 1e-14
        assert steepest[0].item() == pytest.approx(sigma, abs=1e-14)


def test_balanced_twin_of_linear_features_costs_more():
    counts, sigma = (4, 4, 4), 0.03
    linear = cross_entropy_form(CrossEntropyUFM(counts, 3, 2 * sigma, sigma / 2))
    assert linear.loss < relu_form(problem_of(counts, 3, sigma)).loss - 1e-3


def test_order_and_scale():
    order, weights = torch.tensor([2, 0, 3, 1]), (0.02, 0.05, 0.05, 0.3)
    wanted = relu_form(problem_of((9, 4, 2, 1), 4, 0.05, sample_weights=weights))
    turned = [tuple(x[i] for i in order) for x in ((9, 4, 2, 1), weights)]
    found = relu_form(problem_of(turned[0], 4, 0.05, sample_weights=turned[1]))
    assert_close(found.gram_W, wanted.gram_W[order][:, order])
    assert_close(found.logits, wanted.logits[order][:, order])
    scaled = relu_form(problem_of((9, 4, 2, 1), 4, 0.5, sample_weights=tuple(10 * w for w in weights)))
    assert scaled.loss == pytest.approx(10 * wanted.loss, rel=1e-13)
    assert_close(scaled.gram_W, wanted.gram_W)


def test_too_few_dimensions_for_the_living():
    assert relu_form(problem_of((9, 9, 1), 2, 0.1)).facts["active_classes"] == 2
    with pytest.raises(DimensionError, match=r"dim must be at least 2 for the orthogonal features .*got d = 1; "):
        relu_form(problem_of((9, 9, 1), 1, 0.1))
