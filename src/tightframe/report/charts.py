"""Charts of lines and matrices: what figures, page and notebooks draw, and how matplotlib draws it."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from tightframe.errors import ConfigError, require_extra
from tightframe.files import written_whole

# Okabe and Ito's colours, which colour-blind readers can tell apart; yellow is too pale for lines.
PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#6B6B6B")
DASHES = ("-", "--", ":", "-.")
STYLE = {
    "font.size": 11,
    "axes.titlesize": 12,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.25,
    "legend.frameon": False,
    "svg.hashsalt": "tightframe",
    "svg.fonttype": "none",
}


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
        width: Half widths ``(n,)`` of a band around the line, nan where there is none; None for no band at all.
    """

    label: str
    x: ArrayLike
    y: ArrayLike
    group: str | None = None
    points: bool = False
    dashed: bool = False
    width: ArrayLike | None = None


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
        limits: Range of the vertical axis; None fits it to the lines.
    """

    title: str
    x: str
    y: str
    lines: Sequence[Line]
    log_x: bool = False
    log_y: bool = False
    marks: Mapping[str, float] = field(default_factory=dict)
    limits: tuple[float, float] | None = None


@dataclass(frozen=True)
class HeatMap:
    """A matrix in colours, symmetric around zero.

    Args:
        title: Title above the matrix.
        matrix: Matrix ``(n, m)``.
        limit: End of the colour scale; None ends it at the largest entry.
        label: Label of the colour scale.
    """

    title: str
    matrix: ArrayLike
    limit: float | None = None
    label: str = ""


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
    save(draw_charts(charts, columns), path)


def save(figure: Any, path: Path) -> None:
    """Write a figure to a ``*.png`` or ``*.svg``, whole or not at all; equal figures give equal files."""
    metadata = {"Date": None} if path.suffix == ".svg" else None
    with written_whole(path) as partial, require_extra("matplotlib", "cli").rc_context(STYLE):
        figure.savefig(partial, format=path.suffix[1:], dpi=150, metadata=metadata)


def draw_charts(charts: Sequence[Chart | HeatMap], columns: int = 3, groups: Sequence[str] = ()) -> Any:
    """Return a figure of charts side by side.

    Args:
        charts: Charts, at least one.
        columns: Largest number of charts in a row.
        groups: Groups of lines in the order of their colours, for one legend of all charts; empty gives each chart a
            legend of its own.
    """
    matplotlib = require_extra("matplotlib", "cli")
    columns = min(columns, len(charts))
    rows = math.ceil(len(charts) / columns)
    with matplotlib.rc_context(STYLE):
        # A bare Figure leaves pyplot's global state, and any display, alone.
        figure = require_extra("matplotlib.figure", "cli").Figure((4.4 * columns, 3.5 * rows), layout="constrained")
        axes = figure.subplots(rows, columns, squeeze=False).ravel()
        for axis, chart in zip(axes, charts, strict=False):
            if isinstance(chart, HeatMap):
                _draw_matrix(figure, axis, chart)
            else:
                _draw_lines(axis, chart, groups)
        for axis in axes[len(charts) :]:
            axis.set_visible(False)
        if groups:
            lines = {line.get_label(): line for axis in axes for line in axis.lines}
            shown = [plain(group) for group in groups if plain(group) in lines]
            figure.legend([lines[name] for name in shown], shown, loc="outside lower center", ncols=min(len(groups), 3))
    return figure


def _draw_matrix(figure: Any, axis: Any, chart: HeatMap) -> None:
    matrix = np.asarray(chart.matrix)
    limit = chart.limit or float(np.abs(matrix).max()) or 1.0
    image = axis.imshow(matrix, cmap="PuOr_r", vmin=-limit, vmax=limit, interpolation="nearest")
    axis.set_title(textwrap.fill(plain(chart.title), 32), fontsize=10.5)
    axis.grid(False)
    axis.tick_params(length=0, labelsize=8)
    axis.spines[:].set_visible(False)
    for each in (axis.xaxis, axis.yaxis):
        each.set_major_locator(require_extra("matplotlib.ticker", "cli").MaxNLocator("auto", integer=True))
    figure.colorbar(image, ax=axis, shrink=0.8, label=chart.label)


def _draw_lines(axis: Any, chart: Chart, groups: Sequence[str]) -> None:
    own = [i if line.group is None else line.group for i, line in enumerate(chart.lines)]
    order: list[object] = list(groups or dict.fromkeys(own))
    for group, line in zip(own, chart.lines, strict=True):
        cycle, place = divmod(order.index(group), len(PALETTE))
        x, y = np.asarray(line.x), np.asarray(line.y)
        axis.plot(
            x,
            y,
            color=PALETTE[place],
            linestyle="none" if line.points else "--" if line.dashed else DASHES[cycle % len(DASHES)],
            marker="o" if line.points or len(x) == 1 else None,
            markersize=4,
            linewidth=1.6,
            label=plain(line.label) or None,
        )
        if line.width is not None:
            width = np.nan_to_num(line.width)
            # A logarithmic axis has no place for the part of a band below zero.
            low, high = np.clip([y - width, y + width], *(chart.limits or (-math.inf, math.inf)))
            axis.fill_between(x, low, high, color=PALETTE[place], alpha=0.16, linewidth=0)
    for text, mark in chart.marks.items():
        axis.axvline(mark, color="#6B6B6B", linewidth=1, linestyle=":")
        axis.annotate(
            plain(text), (mark, 1), xycoords=("data", "axes fraction"), rotation=90, fontsize=8, ha="right", va="top"
        )
    axis.set(xscale="log" if chart.log_x else "linear", yscale="log" if chart.log_y else "linear")
    if chart.limits is not None:
        axis.set_ylim(chart.limits)
    axis.set(title=plain(chart.title), xlabel=plain(chart.x), ylabel=plain(chart.y))
    if not groups and any(line.label for line in chart.lines):
        axis.legend(fontsize=8)


def plain(text: str) -> str:
    """Keep matplotlib from reading a name as mathematics."""
    return text.replace("$", r"\$")
