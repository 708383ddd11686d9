"""The numbers behind the figures of training without penalties."""

import functools
import math

import numpy as np
import pytest
import torch
from studies.theory.networks import Shape
from studies.theory.ulpm import flow_course, measure, network_course, start_of_equal_norm

from studies.theory import FIGURES, ulpm
from tightframe.report.charts import Chart
from tightframe.ufm import ULPM, MaxMargin, closed_form
from tightframe.ufm.flow import LogTimeFlow
from tightframe.ufm.margin import etf_flow_scale

PROBLEM = ULPM((4,) * 3, dim=5)


def draw(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def best(problem=PROBLEM):
    solution = closed_form(MaxMargin(problem.counts, problem.dim))
    return solution.W, solution.H


def slope(rows, name, points=4):
    """Power of log t by which a quantity falls at the end of a course."""
    ages, values = ([row[key] for row in rows[-points:]] for key in ("log log t", name))
    return np.polyfit(ages, np.log(values), 1)[0]


# Points --------------------------------------------------------------------------------------------------------------


def test_the_largest_margin_is_certified_and_has_the_scale_of_its_logits():
    W, H = best()
    values = measure(PROBLEM, 3 * W, 3 * H)
    assert abs(values["above"]) < 1e-12
    assert abs(values["certified"]) < 1e-9
    assert values["scale"] == pytest.approx(9, rel=1e-12)
    assert values["nc3.distance"] < 1e-20


def test_the_gap_does_not_see_how_weight_and_features_share_their_norm():
    W, H = best()
    W, H = W + 0.1 * draw(3, 5), H[torch.arange(3).repeat_interleave(4)] + 0.1 * draw(12, 5, seed=1)
    wanted = measure(PROBLEM, W, H)
    found = measure(PROBLEM, 10 * W, H / 10)
    assert 0 < wanted["above"] < wanted["certified"] < math.inf
    for name in ("above", "certified", "scale", "nc1.ratio"):
        assert found[name] == pytest.approx(wanted[name], rel=1e-9)
    # by hand: p = |W| |H| / margin, the least p is (K - 1) √n
    logits, labels = H @ W.T, torch.arange(3).repeat_interleave(4)
    margin = min(
        (row[y] - torch.cat([row[:y], row[y + 1 :]]).max()).item() for row, y in zip(logits, labels, strict=True)
    )
    assert wanted["above"] == pytest.approx((W.norm() * H.norm()).item() / margin / (2 * 2) - 1, rel=1e-9)


def test_a_misclassified_sample_leaves_no_gap():
    W, H = best()
    H = H.clone()
    H[0] = -H[0]
    values = measure(PROBLEM, W, H)
    assert math.isnan(values["above"])
    assert math.isnan(values["certified"])


def test_a_mean_of_the_class_vectors_does_not_reach_what_is_centred():
    W, H = best()
    values = measure(PROBLEM, W + draw(5), H)
    assert values["nc2.equinorm.centred"] < 1e-12
    assert values["nc2.max_angle.centred"] < 1e-12
    assert values["nc2.equinorm.classifier"] > 1e-2


# Flow ----------------------------------------------------------------------------------------------------------------


def test_the_flow_from_an_etf_is_the_dashed_line():
    W, H = best()
    flow = LogTimeFlow(1e12, records=6, start=(W, H)).run(PROBLEM)
    start = start_of_equal_norm(flow)
    assert start == pytest.approx(1.0, rel=1e-12)
    scales = [measure(PROBLEM, w, h)["scale"] for w, h in zip(flow.W, flow.H, strict=True)]
    assert torch.tensor(scales, dtype=torch.float64) == pytest.approx(
        etf_flow_scale(PROBLEM, flow.times, start), rel=1e-8
    )


def test_the_sum_of_the_class_vectors_never_moves():
    flow = LogTimeFlow(1e12, records=4, per_sample=True).run(PROBLEM)
    sums = flow.W.sum(dim=1)
    assert (sums - sums[0]).abs().max() < 1e-9
    assert (flow.H[-1].sum(dim=0) - flow.H[0].sum(dim=0)).abs().max() > 0.1


def test_what_is_centred_falls_as_one_over_log_t_and_the_classifier_as_its_root():
    rows = flow_course(PROBLEM, seed=1, final_time=1e120, points=20)
    for name in ("nc1.ratio", "nc3.distance", "nc2.equinorm.means", "nc2.equinorm.centred", "above"):
        assert slope(rows, name) == pytest.approx(-1, abs=0.12), name
    assert slope(rows, "nc2.equinorm.classifier") == pytest.approx(-0.5, abs=0.12)
    assert rows[-1]["scale"] == pytest.approx(rows[-1]["law"], rel=1e-2)


# Networks ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("batch_norm", [True, False])
def test_a_course_of_a_network_descends(batch_norm):
    course = network_course(Shape(16, 1, batch_norm=batch_norm), 0, [1.0, 1e8], per_class=5)
    assert [row["t"] >= time for row, time in zip(course, (1.0, 1e8), strict=True)] == [True, True]
    assert course[1]["loss"] < course[0]["loss"]


# Figures -------------------------------------------------------------------------------------------------------------


def test_the_flow_is_drawn(monkeypatch):
    monkeypatch.setattr(ulpm, "flow_course", functools.partial(flow_course, final_time=1e4, points=6))
    charts = FIGURES["ulpm-flow"](0)
    assert len(charts) == 6
    assert all(isinstance(chart, Chart) and chart.x == "log log t" for chart in charts)
    guides = [line for line in charts[0].lines if line.dashed]
    assert [line.label for line in guides] == ["1/log t", "1/√(log t)"]
    for line, power in zip(guides, (1, 0.5), strict=True):
        assert np.polyfit(line.x, np.log(line.y), 1)[0] == pytest.approx(-power)
    assert [line.label for line in charts[4].lines if not line.dashed] == [
        "K = 4: p above its minimum",
        "K = 10: p above its minimum",
    ]


def test_the_networks_are_drawn(monkeypatch):
    monkeypatch.setattr(ulpm, "SHAPES", {"one": Shape(16, 1), "other": Shape(16, 1, batch_norm=False)})
    monkeypatch.setattr(ulpm, "network_course", functools.partial(network_course, per_class=3))
    monkeypatch.setattr(ulpm, "DECADE", 3)
    charts = FIGURES["ulpm-network"](0)
    assert len(charts) == 6
    assert [line.label for line in charts[-1].lines] == ["one", "other"]
    for line in charts[-1].lines:
        assert line.x[-1] >= 1e3
        assert list(line.y) == sorted(line.y, reverse=True)
