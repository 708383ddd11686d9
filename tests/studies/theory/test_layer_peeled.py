import functools

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from studies.theory.layer_peeled import (
    FEATURE_BUDGETS,
    MAJORITIES,
    RATIO,
    budget_of,
    mean_cosine,
    minority_collapse,
    minority_collapse_network,
    oversampling,
    train,
)
from studies.theory.networks import Network, Shape, he_start_

from studies.theory import layer_peeled
from tightframe.data import Digits
from tightframe.frames import simplex_etf
from tightframe.ufm import LayerPeeled, minority_collapse_threshold, solve

# K_A, K_B and E_H = 5 and 10 at E_W = 1; found once more from the stationarity of the logits, with 40 digits.
KNOWN = {(3, 5.0): 245.496931, (3, 10.0): 6350.846463, (5, 5.0): 12.192447}


@functools.cache
def of_ratio():
    return minority_collapse(seed=0)


@functools.cache
def of_oversampling():
    return oversampling(seed=0)


def threshold(majority, budget):
    return minority_collapse_threshold(majority, 10 - majority, 1.0, budget)


def curves(charts):
    """Yield budget, K_A, the line and the points of each curve."""
    for budget, chart in zip(FEATURE_BUDGETS, charts, strict=True):
        for i, majority in enumerate(MAJORITIES):
            yield budget, majority, chart.lines[i], chart.lines[len(MAJORITIES) + i]


def solved_cosine(majority, weights, budget):
    solution = solve(LayerPeeled((1,) * 10, dim=10, weight_budget=1.0, feature_budget=budget, sample_weights=weights))
    assert solution.exact
    return mean_cosine(solution.W, majority)


@pytest.mark.parametrize("charts", [of_ratio, of_oversampling])
def test_proved_points_lie_on_the_lines(charts):
    for budget, majority, line, points in curves(charts()):
        on_line = {round(np.log10(x), 6): y for x, y in zip(line.x, line.y, strict=True)}
        expected = [on_line[round(np.log10(x), 6)] for x in points.x]
        assert points.y == pytest.approx(expected, abs=1e-7, nan_ok=True), (budget, majority)
        assert np.isfinite(points.y).sum() >= 2


def test_curves_begin_at_the_simplex_and_collapse_at_their_marks():
    for budget, majority, line, _ in curves(of_ratio()):
        known = threshold(majority, budget)
        x, y = np.asarray(line.x), np.asarray(line.y)
        assert known in x
        assert y[0] == pytest.approx(-1 / 9, abs=1e-9)
        assert np.all(np.diff(y[x <= known]) > 0)
        assert y[x < 0.97 * known].max() < 1 - 1e-3
        assert y[x >= known] == pytest.approx(np.where(np.isnan(y[x >= known]), np.nan, 1), abs=1e-9, nan_ok=True)
    for budget, chart in zip(FEATURE_BUDGETS, of_ratio(), strict=True):
        assert list(chart.marks.values()) == [threshold(majority, budget) for majority in MAJORITIES]


@pytest.mark.parametrize(("majority", "budget"), KNOWN)
def test_marks_have_the_values_known(majority, budget):
    chart = of_ratio()[FEATURE_BUDGETS.index(budget)]
    found = list(chart.marks.values())[MAJORITIES.index(majority)]
    assert found == pytest.approx(KNOWN[majority, budget], rel=1e-8)
    assert f"R₀ = {KNOWN[majority, budget]:.2f}" in chart.marks


def test_minority_vectors_vanish_where_a_line_ends():
    line = next(line for budget, majority, line, _ in curves(of_ratio()) if (budget, majority) == (5.0, 7))
    last = np.asarray(line.x)[np.isfinite(line.y)].max()
    for ratio, zero in ((0.9 * last, False), (1.3 * last, True)):
        solution = solve(LayerPeeled((1,) * 10, 10, 1.0, 5.0, sample_weights=(ratio,) * 7 + (1.0,) * 3))
        share = torch.linalg.vector_norm(solution.W[7:]) / torch.linalg.vector_norm(solution.W)
        assert solution.exact
        assert (share < 1e-3) == zero


@pytest.mark.parametrize(("majority", "budget", "place"), [(3, 5.0, 100.0), (5, 5.0, 10.0), (7, 10.0, 10.0)])
def test_curves_agree_with_a_solver_that_knows_no_groups(majority, budget, place):
    for charts, weights in (
        (of_ratio(), (place,) * majority + (1.0,) * (10 - majority)),
        (of_oversampling(), (RATIO,) * majority + (RATIO / place,) * (10 - majority)),
    ):
        at = place if charts is of_ratio() else RATIO / place
        line = next(line for b, m, line, _ in curves(charts) if (b, m) == (budget, majority))
        cosine = line.y[int(np.argmin(np.abs(np.log(line.x) - np.log(at))))]
        assert cosine == pytest.approx(solved_cosine(majority, weights, budget), abs=1e-4)


def test_oversampling_undoes_collapse_at_the_marks_and_restores_the_simplex():
    for budget, majority, line, _ in curves(of_oversampling()):
        least = RATIO / threshold(majority, budget)
        x, y = np.asarray(line.x), np.asarray(line.y)
        assert x[-1] == RATIO
        assert y[-1] == pytest.approx(-1 / 9, abs=1e-9)
        assert np.all(np.diff(y[x >= least]) < 0)
        assert np.nanmin(y[x <= max(least, 1)], initial=1) == pytest.approx(1 if least > 1 else y[0], abs=1e-9)
        marks = of_oversampling()[FEATURE_BUDGETS.index(budget)].marks.values()
        assert any(mark == pytest.approx(least) for mark in marks) == (least > 1)


# Networks -------------------------------------------------------------------------------------------------------------


def test_what_is_measured_of_a_network():
    data = Digits().load()
    found = train(5, 1, 0.04, seed=0, iterations=0)  # as it starts
    inputs, labels = data.train[:]
    kept = torch.cat([(labels == k).nonzero().flatten()[: 139 if k < 5 else 1] for k in range(10)])
    network = Network(Shape(depth=2, batch_norm=False), 64, seed=0)
    he_start_(network)
    parameters = list(network.parameters())
    W, a, b, c, d = parameters

    def logits(x):
        return ((x @ a.T + b).relu() @ c.T + d).relu() @ W.T

    loss = F.cross_entropy(logits(inputs[kept]), labels[kept]) + 0.02 * sum(p.square().sum() for p in parameters)
    gradient = torch.autograd.grad(loss, parameters)
    assert found["ratio"] == 139
    assert found["slope"] == pytest.approx(sum(g.square().sum().item() for g in gradient) ** 0.5, rel=1e-4)
    cosines = [F.cosine_similarity(W[i], W[j], dim=0).item() for i in range(5, 10) for j in range(5, 10) if i != j]
    assert found["cosine"] == pytest.approx(np.mean(cosines), abs=1e-6)
    inputs, labels = data.test[:]
    right = (logits(inputs).argmax(dim=1) == labels)[labels >= 5]
    assert found["accuracy"] == pytest.approx(right.double().mean().item(), abs=0.01)


def test_the_figure_of_networks_sets_the_models_beside_them(monkeypatch):
    monkeypatch.setattr(layer_peeled, "FEWEST", (139, 1))
    monkeypatch.setattr(layer_peeled, "STARTS", 1)
    calls = []

    def made_up(majority, fewest, decay, seed):
        calls.append((majority, fewest, decay, seed))
        margin, names = 2.0 * fewest, ("ratio", "cosine", "layer-peeled", "margin", "penalised", "accuracy")
        return dict(zip(names, (139 / fewest, 0.3, 0.4, margin, 1 / margin, 0.5), strict=True))

    monkeypatch.setattr(layer_peeled, "train", made_up)
    charts = minority_collapse_network(seed=4)
    assert len(charts) == 6
    assert set(calls) == {(K_A, n, decay, 4) for K_A in MAJORITIES for n in (139, 1) for decay in layer_peeled.DECAYS}
    layer, accuracy, penalised = charts[:3]
    assert layer.lines[3].dashed
    assert list(layer.lines[3].y) == [0.4, 0.4]
    assert list(accuracy.lines[0].y) == [0.5, 0.5]
    assert list(penalised.lines[0].x) == list(penalised.lines[3].x) == [2, 278]
    assert list(penalised.lines[3].y) == [1 / 2, 1 / 278]


def test_the_budget_of_logits_is_that_of_the_minimum_with_them():
    solution = solve(LayerPeeled((4, 4, 1, 1), dim=4, weight_budget=2.0, feature_budget=1.5))
    assert budget_of(solution.logits) == pytest.approx(3.0, rel=1e-8)
    assert budget_of(solution.logits + torch.arange(4.0).unsqueeze(1)) == pytest.approx(3.0, rel=1e-8)


def test_the_mean_cosine_is_that_of_pairs():
    W = torch.randn(6, 4, generator=torch.Generator().manual_seed(0))
    pairs = [torch.cosine_similarity(W[i].double(), W[j].double(), dim=0) for i in range(2, 6) for j in range(2, i)]
    assert mean_cosine(W, 2) == pytest.approx(torch.stack(pairs).mean().item(), abs=1e-12)
    assert mean_cosine(7 * simplex_etf(5, 6), 1) == pytest.approx(-1 / 4, abs=1e-6)
    W[3] = 1e-14
    assert np.isnan(mean_cosine(W, 2))
    assert np.isnan(mean_cosine(W, 5))
