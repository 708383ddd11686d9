from __future__ import annotations

import math

import pytest

from tightframe.records import Records
from tightframe.report.charts import draw_charts
from tightframe.report.history import Estimate, History, estimate, panels

NC1 = ("train", "features", "nc1.pinv")


def test_interval_of_three_seeds_by_hand() -> None:
    e = estimate([1.0, 2.0, 6.0])
    assert (e.mean, e.count, e.total) == (3.0, 3, 3)
    # s^2 = (4 + 1 + 9) / 2 = 7; with two degrees of freedom the quantile has a closed form
    assert e.half_width == pytest.approx(0.95 * math.sqrt(2 / (1 - 0.95**2)) * math.sqrt(7 / 3), rel=1e-12)


def test_interval_of_two_seeds_by_hand() -> None:
    assert estimate([0.0, 2.0]).half_width == pytest.approx(math.tan(0.475 * math.pi), rel=1e-12)


def test_one_seed_has_no_interval() -> None:
    e = estimate([0.25])
    assert (e.mean, e.count, e.total) == (0.25, 1, 1)
    assert math.isnan(e.half_width)


def test_values_that_are_not_finite_are_counted_and_left_out() -> None:
    e = estimate([0.5, math.nan, math.inf, 1.5])
    assert (e.mean, e.count, e.total) == (1.0, 2, 4)
    e = estimate([math.nan])
    assert math.isnan(e.mean)
    assert (e.count, e.total) == (0, 1)
    assert estimate([]).total == 0


def test_last_value_of_each_seed_and_later_rows_win() -> None:
    records = Records()
    for seed, epoch, value in ((0, 2, 0.2), (0, 1, 0.1), (1, 1, 0.5), (1, 1, 0.6)):
        records.add("nc1.pinv", value, run="a", seed=seed, epoch=epoch, split="train", layer="features")
    history = History(records)
    assert history.last(NC1, "a") == {0: 0.2, 1: 0.6}
    assert history.last(NC1, "b") == {}


@pytest.mark.parametrize(
    ("splits", "expected"),
    [(("train", "validation", "test"), "test"), (("train", "validation"), "validation"), (("train",), "train")],
)
def test_evaluation_split_falls_back(splits: tuple[str, ...], expected: str) -> None:
    records = Records()
    for split in splits:
        records.add("accuracy", 0.5, run="a", split=split)
    assert History(records).evaluation_split == expected


def curves_of(*rows: tuple[int, int, float], metric: str = "nc1.pinv", layer: str = "features") -> Records:
    records = Records()
    for seed, epoch, value in rows:
        records.add(metric, value, run="a", seed=seed, epoch=epoch, split="train", layer=layer)
    return records


def test_panel_holds_means_and_bands_that_end_at_its_limits() -> None:
    (panel,) = panels(History(curves_of((0, 0, 1.0), (1, 0, 3.0), (0, 5, 0.1), (1, 5, 0.1))))
    (line,) = panel.chart.lines
    assert panel.chart.log_y
    assert panel.main
    assert line.x == [0, 5]
    assert line.y == [2.0, pytest.approx(0.1)]
    assert 0 < panel.chart.limits[0] < 0.1
    assert panel.chart.limits[1] > 3.0
    # 2 ± 12.7 leaves the panel on both sides, also the logarithm's domain.
    axis = draw_charts([panel.chart]).axes[0]
    low, high = axis.collections[0].get_datalim(axis.transData).get_points()[:, 1]
    assert (low, high) == pytest.approx(panel.chart.limits)
    assert line.width[1] == pytest.approx(0, abs=1e-12)


def test_axis_is_linear_where_a_value_is_not_positive() -> None:
    (panel,) = panels(History(curves_of((0, 0, 1.0), (0, 1, 0.0))))
    assert not panel.chart.log_y
    assert panel.chart.limits[0] < 0 < 1 < panel.chart.limits[1]


def test_nan_makes_a_gap_and_all_nan_no_panel() -> None:
    (panel,) = panels(History(curves_of((0, 0, 1.0), (0, 1, math.nan), (0, 2, 0.5))))
    assert panel.chart.lines[0].x == [0, 2]
    assert panels(History(curves_of((0, 0, math.nan)))) == []


def test_climb_from_chance_is_left_out_of_an_accuracys_scale() -> None:
    rows = [(0, epoch, 0.1 if epoch == 0 else 0.95 + epoch / 1000) for epoch in range(11)]
    (panel,) = panels(History(curves_of(*rows, metric="accuracy", layer="")))
    assert panel.chart.limits[0] > 90
    assert panel.chart.lines[0].x[0] == 0


def test_constant_curve_has_a_scale() -> None:
    for value in (0.0, 1.0, 1e-17):
        (panel,) = panels(History(curves_of((0, 0, value), (0, 1, value))))
        assert panel.chart.limits[0] < value < panel.chart.limits[1]


def test_panels_are_ordered_main_first_and_hold_unknown_metrics_but_no_inner_layers() -> None:
    records = curves_of((0, 0, 1.0), metric="brand.new")
    records.extend(curves_of((0, 0, 1.0)))
    records.extend(curves_of((0, 0, 1.0), layer="backbone.0"))
    records.add("accuracy", 0.5, run="a", split="train")
    records.add("accuracy", 0.5, run="a", split="validation")
    made = panels(History(records))
    assert [p.chart.title for p in made] == ["Validation accuracy %", "Train accuracy %", "NC1", "Brand.new"]
    assert [p.main for p in made] == [True, True, True, False]


def test_estimate_is_plain_data() -> None:
    assert estimate([2.0, 2.0]) == Estimate(2.0, 0.0, 2, 2)
