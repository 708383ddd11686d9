"""Still figures for papers and slides, as PNG and SVG."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tightframe.errors import require_extra
from tightframe.files import written_whole
from tightframe.report.content import RunGeometry
from tightframe.report.geometry import Array
from tightframe.report.history import Panel

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
MAX_ROWS = 6


def write_figures(
    directory: Path, panels: Sequence[Panel], runs: Sequence[str], classes: Sequence[RunGeometry]
) -> None:
    """Write ``accuracy``, ``collapse`` and ``class_means``, each as PNG and SVG, where there is material for them.

    Args:
        directory: Folder of the figures.
        panels: Charts against epochs; only those of the first view are drawn.
        runs: Names of all runs, in the order of their colours.
        classes: Class geometry of each run; the first six are drawn.
    """
    matplotlib = require_extra("matplotlib", "cli")
    main = [panel for panel in panels if panel.main]
    drawn = {
        name: draw_panels(chosen, runs)
        for name, chosen in (
            ("accuracy", [panel for panel in main if panel.key[2] == "accuracy"]),
            ("collapse", [panel for panel in main if panel.key[2] != "accuracy"]),
        )
        if chosen
    }
    with matplotlib.rc_context(STYLE):
        if classes:
            drawn["class_means"] = _class_means(classes[:MAX_ROWS])
        for name, figure in drawn.items():
            for suffix in (".png", ".svg"):
                with written_whole(directory / f"{name}{suffix}") as partial:
                    save(figure, partial, suffix)
                figure.set_layout_engine("none")  # keeps the layout just found, which takes as long as the drawing


def save(figure: Any, path: Path, suffix: str) -> None:
    """Write a figure in the format of ``.png`` or ``.svg``; equal figures give equal files."""
    with require_extra("matplotlib", "cli").rc_context(STYLE):
        figure.savefig(path, format=suffix[1:], dpi=150, metadata={"Date": None} if suffix == ".svg" else None)


def draw_panels(panels: Sequence[Panel], runs: Sequence[str]) -> Any:
    """Return a figure of charts against epochs.

    Args:
        panels: Charts, at least one.
        runs: Names of all runs, in the order of their colours.
    """
    with require_extra("matplotlib", "cli").rc_context(STYLE):
        return _curves(panels, runs)


def _curves(panels: Sequence[Panel], runs: Sequence[str]) -> Any:
    columns = min(3, len(panels))
    rows = math.ceil(len(panels) / columns)
    figure = figure_of(max(5.0, 4.2 * columns), 3.1 * rows + 0.7)
    axes = np.atleast_1d(figure.subplots(rows, columns)).ravel()
    for axis, panel in zip(axes, panels, strict=False):
        _draw_panel(axis, panel, runs)
    for axis in axes[len(panels) :]:
        axis.set_visible(False)
    handles = {line.get_label(): line for axis in axes for line in axis.lines if line.get_label() in runs}
    figure.legend(
        [handles[run] for run in runs if run in handles],
        [plain(run) for run in runs if run in handles],
        loc="outside lower center",
        ncols=min(len(runs), 3),
    )
    return figure


def _draw_panel(axis: Any, panel: Panel, runs: Sequence[str]) -> None:
    factor = 100 if panel.quantity.percent else 1
    for curve in panel.curves:
        index = runs.index(curve.run)
        color, dash = PALETTE[index % len(PALETTE)], DASHES[index // len(PALETTE) % len(DASHES)]
        means = [factor * e.mean for e in curve.estimates]
        marker = "o" if len(means) == 1 else None
        axis.plot(curve.epochs, means, color=color, linestyle=dash, marker=marker, linewidth=1.8, label=curve.run)
        low, high = ([factor * v for v in bound] for bound in (curve.low, curve.high))
        axis.fill_between(curve.epochs, low, high, color=color, alpha=0.16, linewidth=0)
    axis.set_yscale("log" if panel.log else "linear")
    axis.set_ylim(*(factor * limit for limit in panel.limits))
    axis.set_title(plain(panel.title) + (" %" if panel.quantity.percent else ""))
    axis.set_xlabel("epoch")


def _class_means(classes: Sequence[RunGeometry]) -> Any:
    """Draw a column a run, class means above and classifier below, and the simplex ETF at the end."""
    figure = figure_of(2.5 * (len(classes) + 1) + 0.6, 5.6)
    axes = figure.subplots(2, len(classes) + 1, squeeze=False)
    limit = max(item.color_limit for item in classes)
    for column, item in enumerate(classes):
        heat_map(axes[0, column], item.means, limit, textwrap.fill(plain(item.run), 20))
        image = heat_map(axes[1, column], item.classifier, limit)
    axes[0, 0].set_ylabel("class means")
    axes[1, 0].set_ylabel("class vectors")
    heat_map(axes[0, -1], classes[0].ideal, limit, "simplex ETF")
    axes[1, -1].set_visible(False)
    figure.colorbar(image, ax=axes, shrink=0.7, aspect=30, label="cosine after centring", pad=0.02)
    return figure


def heat_map(axis: Any, matrix: Array, limit: float, title: str = "") -> Any:
    """Draw a matrix in colours from -limit to limit, and return the image."""
    image = axis.imshow(matrix, cmap="PuOr_r", vmin=-limit, vmax=limit, interpolation="nearest")
    axis.set_title(title, fontsize=10.5)
    axis.grid(False)
    axis.tick_params(length=0, labelsize=8)
    for side in axis.spines.values():
        side.set_visible(False)
    return image


def figure_of(width: float, height: float) -> Any:
    """Return an empty figure of a width and height in inches."""
    # A bare Figure leaves pyplot's global state, and any display, alone.
    return require_extra("matplotlib.figure", "cli").Figure(figsize=(width, height), layout="constrained")


def plain(text: str) -> str:
    """Keep matplotlib from reading a name as mathematics."""
    return text.replace("$", r"\$")
