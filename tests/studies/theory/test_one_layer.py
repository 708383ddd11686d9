"""The numbers behind the figures of the one-layer models."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from studies.theory.one_layer import (
    bias_kink,
    descend,
    descend_nonnegative,
    kink_problem,
    mean_share,
    twin_gaps,
)

from studies.theory import FIGURES, one_layer
from tightframe.report.charts import Chart
from tightframe.ufm import CrossEntropyUFM, MeanSquaredUFM, ReLUImbalanced, closed_form
from tightframe.ufm.solve import solve

RELU = ReLUImbalanced((1, 6, 12, 40), 8, 0.03, 0.03)


@pytest.mark.parametrize(
    ("problem", "rate"),
    [
        (CrossEntropyUFM((3,) * 3, 4, 0.01, 0.02), 3.0),
        (MeanSquaredUFM((3,) * 3, 4, 0.02, 0.01), 1.0),
        (MeanSquaredUFM((3,) * 3, 4, 0.02, 0.01, bias_decay=0.0), 1.0),
    ],
)
def test_descent_ends_at_the_predicted_norms(problem, rate):
    path, exact = descend(problem, rate, 1500, seed=1), closed_form(problem)
    step, end = path[-1]
    assert step == 1500
    assert abs(end.loss - exact.loss) < 1e-10
    assert end.W.square().sum().item() == pytest.approx(exact.facts["squared_norm_W"], abs=1e-5)
    assert end.H.square().sum().item() == pytest.approx(exact.facts["squared_norm_H"], abs=1e-5)
    torch.testing.assert_close(end.gram_W, exact.gram_W, atol=1e-5, rtol=0)
    assert end.collapse()["nc1.ratio"] < 1e-9 < 1e-2 < path[0][1].collapse()["nc1.ratio"]


@pytest.mark.parametrize("constant", [0.1, 0.5, 0.8])
def test_bias_kinks_at_its_threshold(constant):
    problem = kink_problem(constant)
    kink = closed_form(problem).facts["kink_bias_decay"]
    assert kink == pytest.approx(constant / (1 - constant))
    below, above = (solve(replace(problem, bias_decay=factor * kink)) for factor in (0.97, 1.03))
    assert below.gram_W[0, 1] / below.gram_W[0, 0] == pytest.approx(-1 / 3, abs=1e-7)
    assert mean_share(below) == pytest.approx(0, abs=1e-7)
    # With t = 1 - c and x the excess of the penalty, the mean part is t - c / kink / (1 + x) = t x / (1 + x).
    assert mean_share(above) == pytest.approx(0.03 / 1.03, abs=1e-5)


def test_bias_figure_draws_what_was_solved_on_the_closed_form():
    charts = bias_kink(0)
    assert [len(chart.lines) for chart in charts] == [6, 6, 6]
    for chart in charts:
        assert isinstance(chart, Chart)
        assert list(chart.marks.values()) == pytest.approx([1 / 9, 3 / 7, 1])
        for joined, points in zip(chart.lines[:3], chart.lines[3:], strict=True):
            assert points.points
            # Every fifth place of the line is one of the points; the kink of c = 0.5 is one, where the solver is slow.
            assert list(points.x) == pytest.approx(list(joined.x)[::5])
            assert list(points.y) == pytest.approx(list(joined.y)[::5], abs=1e-4)


def test_nonnegative_descent_ends_at_the_closed_form():
    exact = closed_form(RELU)
    assert exact.facts["active_classes"] == 3
    for seed in range(2):
        found = descend_nonnegative(RELU, seed)
        assert found.loss == pytest.approx(exact.loss, abs=1e-10)
        torch.testing.assert_close(found.gram_H, exact.gram_H, atol=1e-5, rtol=0)
        torch.testing.assert_close(found.gram_W, exact.gram_W, atol=1e-5, rtol=0)
        assert bool((found.H >= 0).all())


@pytest.mark.parametrize(("factor", "lives"), [(1.03, False), (0.97, True)])
def test_a_class_dies_at_its_threshold(factor, lives):
    decay = factor * closed_form(RELU).facts["death_sigma"]
    found = descend_nonnegative(replace(RELU, weight_decay=decay, feature_decay=decay), seed=0, steps=2000)
    assert (found.gram_H[0, 0].item() > 1e-4) == lives


@pytest.mark.parametrize(("factor", "merged"), [(1.03, True), (0.97, False)])
def test_twins_merge_at_the_threshold(factor, merged):
    total = 2 * sum(one_layer.COUNTS)
    index = one_layer.COUNTS.index(8)
    gaps, threshold = twin_gaps(math.sqrt(8 * factor) / total)
    assert threshold == pytest.approx(8 * factor)
    assert (gaps[index] < 1e-8) == merged
    assert gaps[index + 1] > 1


@pytest.mark.parametrize("name", ["balanced-norms", "relu-death"])
def test_figures_are_made(monkeypatch, name):
    monkeypatch.setattr(one_layer, "DESCENT_STEPS", 20)
    monkeypatch.setattr(one_layer, "NETWORK_STEPS", 5)
    monkeypatch.setattr(one_layer, "descend_nonnegative", lambda problem, seed: descend_nonnegative(problem, seed, 5))
    charts = FIGURES[name](0)
    assert len(charts) == 6
    for chart in charts:
        for line in chart.lines:
            assert len(line.x) == len(line.y) > 1
