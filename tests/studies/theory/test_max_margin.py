"""The numbers behind the figure of the SELI geometry."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
from studies.theory.max_margin import cosine, path_distances, path_slope, penalised

from studies.theory import FIGURES, max_margin
from tightframe.report.charts import HeatMap
from tightframe.ufm.margin import step_geometry

PROFILES = [(12, 12, 3, 3), (100, 100, 1, 1), (50, 20, 5, 1), (7, 2), (9, 4, 4, 2, 1, 1)]


@pytest.mark.parametrize("counts", PROFILES)
def test_the_path_has_the_derived_slope(counts):
    exponents = (24, 48, 96)
    distances = path_distances(counts, [10.0**-exponent for exponent in exponents])
    measured = [d * math.log(10) * e for d, e in zip(distances, exponents, strict=True)]
    errors = [abs(value - path_slope(counts)) for value in measured]
    assert errors[-1] < 0.02
    # What is left is of the next order in 1/log(1/λ).
    for error, half in pairwise(errors):
        assert half == pytest.approx(error / 2, rel=0.15, abs=1e-6)


def test_the_printed_slope_of_the_specification():
    assert path_slope((12, 12, 3, 3)) == pytest.approx(0.504, abs=5e-4)


@pytest.mark.parametrize("counts", [(5, 5), (5, 5, 5), (1,) * 7])
def test_equal_counts_are_on_the_path_from_the_start(counts):
    assert path_slope(counts) < 1e-12
    assert path_distances(counts, [1e-3])[0] < 1e-7


def test_angles_approach_seli():
    step = step_geometry(100, 0.5, 4)
    target = step["w_minority_pair"] / step["w_minority"]
    errors = [abs(cosine(penalised((100, 100, 1, 1), 10.0**-e).gram_W, 2, 3) - target) for e in (4, 12, 36)]
    assert errors[0] > 2.5 * errors[1] > 5 * errors[2] > 0


def test_figure_is_made(monkeypatch):
    monkeypatch.setattr(max_margin, "RATIOS", (1, 10))
    monkeypatch.setattr(max_margin, "EXPONENTS", (3, 96))
    charts = FIGURES["seli"](0)
    assert [isinstance(chart, HeatMap) for chart in charts] == [True] * 3 + [False] * 3
    vectors, _, path = charts[3:]
    step = step_geometry(10, 0.5, 4)
    for line, pair in zip(vectors.lines, ("majority", "minority"), strict=False):
        assert line.y[1] == pytest.approx(step[f"w_{pair}_pair"] / step[f"w_{pair}"], abs=1e-9)
    for points, tangent in zip(path.lines[:3], path.lines[3:], strict=True):
        x, y = tangent.x[-1], tangent.y[-1]
        assert points.points
        assert not tangent.points
        assert points.y[-1] == pytest.approx(y / x * points.x[-1], rel=0.02)
