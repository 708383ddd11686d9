"""Charts of lines, points and matrices, side by side in one figure."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from tightframe.errors import ConfigError, require_extra
from tightframe.files import written_whole
from tightframe.report.figures import DASHES, PALETTE, STYLE, figure_of, heat_map, plain, save


@dataclass(frozen=True)
class Line:
    """A curve or a row of points.

    Args:
        label: Label for the legend; "" for none.
        x: Places ``(n,)``.
        y: Values ``(n,)``; nan breaks the line.
        group: Group of lines with one colour; None gives a line a colour of its own.
        points: Whether points are marked and not joined, for measured values beside predicted ones.
        dashed: Whether the line is dashed, for a bound or a prediction.
    """

    label: str
    x: ArrayLike
    y: ArrayLike
    group: str | None = None
    points: bool = False
    dashed: bool = False


@dataclass(frozen=True)
class Chart:
    """Axes with lines.

    Args:
        title: Title above the axes.
        x: Label of the horizontal axis.
        y: Label of the vertical axis.
        lines: Lines in the order in which they are drawn.
        log_x: Whether the horizontal axis is logarithmic.
        log_y: Whether the vertical axis is logarithmic.
        marks: Places on the horizontal axis by their label, such as thresholds.
    """

    title: str
    x: str
    y: str
    lines: Sequence[Line]
    log_x: bool = False
    log_y: bool = False
    marks: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class HeatMap:
    """A matrix in colours, symmetric around zero.

    Args:
        title: Title above the matrix.
        matrix: Matrix ``(n, m)``.
    """

    title: str
    matrix: ArrayLike


def write_charts(path: Path, charts: Sequence[Chart | HeatMap], columns: int = 3) -> None:
    """Draw charts side by side into a file.

    Args:
        path: Path of the file, ``*.png`` or ``*.svg``.
        charts: Charts, at least one.
        columns: Largest number of charts in a row.

    Raises:
        ConfigError: if the file has another ending.
        OutputError: if the file cannot be written.
    """
    if path.suffix not in (".png", ".svg"):
        raise ConfigError(f"a figure must be written to *.png or *.svg, got {path}")
    figure = draw_charts(charts, columns)
    with written_whole(path) as partial:
        save(figure, partial, path.suffix)


def draw_charts(charts: Sequence[Chart | HeatMap], columns: int = 3) -> Any:
    """Return a figure of charts side by side; for the arguments see :func:`write_charts`."""
    matplotlib = require_extra("matplotlib", "cli")
    columns = min(columns, len(charts))
    rows = math.ceil(len(charts) / columns)
    with matplotlib.rc_context(STYLE):
        figure = figure_of(4.4 * columns, 3.5 * rows)
        axes = np.atleast_1d(figure.subplots(rows, columns)).ravel()
        for axis, chart in zip(axes, charts, strict=False):
            _draw(figure, axis, chart)
        for axis in axes[len(charts) :]:
            axis.set_visible(False)
    return figure


def _draw(figure: Any, axis: Any, chart: Chart | HeatMap) -> None:
    if isinstance(chart, HeatMap):
        matrix = np.asarray(chart.matrix)
        image = heat_map(axis, matrix, float(np.abs(matrix).max()) or 1.0, plain(chart.title))
        integers = require_extra("matplotlib.ticker", "cli").MaxNLocator
        for each in (axis.xaxis, axis.yaxis):
            each.set_major_locator(integers("auto", integer=True))
        figure.colorbar(image, ax=axis, shrink=0.8)
        return
    groups = list(dict.fromkeys(_group(line, i) for i, line in enumerate(chart.lines)))
    for i, line in enumerate(chart.lines):
        index = groups.index(_group(line, i))
        axis.plot(
            np.asarray(line.x),
            np.asarray(line.y),
            color=PALETTE[index % len(PALETTE)],
            linestyle="none" if line.points else "--" if line.dashed else DASHES[index // len(PALETTE) % len(DASHES)],
            marker="o" if line.points else None,
            markersize=4,
            linewidth=1.6,
            label=plain(line.label) or None,
        )
    for text, place in chart.marks.items():
        axis.axvline(place, color="#6B6B6B", linewidth=1, linestyle=":")
        axis.annotate(
            plain(text), (place, 1), xycoords=("data", "axes fraction"), rotation=90, fontsize=8, ha="right", va="top"
        )
    axis.set_xscale("log" if chart.log_x else "linear")
    axis.set_yscale("log" if chart.log_y else "linear")
    axis.set_title(plain(chart.title))
    axis.set_xlabel(plain(chart.x))
    axis.set_ylabel(plain(chart.y))
    if any(line.label for line in chart.lines):
        axis.legend(fontsize=8)


def _group(line: Line, index: int) -> object:
    return index if line.group is None else line.group
