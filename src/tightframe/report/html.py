"""One page that holds everything: text, numbers, plots and the code that draws them; it loads nothing."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tightframe.errors import require_extra
from tightframe.files import write_text
from tightframe.hierarchy import Tree
from tightframe.report.confusion import confusion_data
from tightframe.report.content import Content, RunGeometry
from tightframe.report.figures import PALETTE
from tightframe.report.geometry import Array, SimplexFrame
from tightframe.report.history import Panel
from tightframe.report.layers import layer_data
from tightframe.report.tables import board_cells

# The same hues, lighter, for a dark ground.
DARK_PALETTE = ("#5AA9E6", "#FF8B4D", "#2BC79A", "#E39AC6", "#F2B93B", "#9BD7F5", "#A6A6A6")
CLASS_PALETTE = ("#E69F00", "#56B4E9", "#009E73", "#CC79A7")


def write_html(content: Content, path: Path) -> Path:
    """Write the page, whole or not at all.

    Args:
        content: Content of the page.
        path: Path of the file.
    """
    jinja2 = require_extra("jinja2", "cli")
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.policies["json.dumps_kwargs"] = {"separators": (",", ":"), "sort_keys": True}
    page = environment.get_template("report.html.j2").render(
        **_texts(content),
        data=_data(content),
        plotlyjs=require_extra("plotly.offline", "cli").get_plotlyjs(),
    )
    write_text(path, page)
    return path


def _texts(content: Content) -> dict[str, Any]:
    directory, board = content.directory, content.board
    headings, rows = board_cells(board)
    return {
        "title": directory.path.name,
        "summary": _summary(content),
        "best": _best_sentence(content),
        "headings": headings,
        "rows": rows,
        "columns": board.columns,
        "outputs": sum(column.source[1] == "" for column in board.columns),
        "best_cells": {(row, i) for i, column in enumerate(board.columns, start=1) for row in column.best},
        "run_index": {run: index for index, run in enumerate(directory.runs)},
        "intervals": any(len(row.seeds) > 1 for row in board.rows),
        "geometry": content.geometry,
        "views": [item for item in content.geometry if item.view is not None],
        "class_name": directory.class_name,
        "tree": None if directory.tree is None else _nodes(directory.tree),
        "confusions": content.confusions,
        "layers": content.layers,
        "panels_left": sum(not panel.main for panel in content.panels),
        "directory": directory,
    }


def _nodes(tree: Tree) -> list[tuple[dict[str, Any], bool]]:
    """Return each inner node twice, in the order of the page: where it begins, and, with True, where it ends.

    A node is a mapping of its number, name, number of classes below it, names of its leaves and other children. A
    template that called itself would not reach the end of a deep tree.
    """
    nodes: list[dict[str, Any]] = [
        {"number": number, "name": name, "classes": 0, "leaves": [], "inner": []}
        for number, name in enumerate(tree.names)
    ]
    leaves = set(tree.classes.tolist())
    for node in range(len(nodes) - 1, -1, -1):
        nodes[node]["leaves"].reverse()
        nodes[node]["inner"].reverse()
        nodes[node]["classes"] += node in leaves
        if node:
            above = nodes[tree.parents[node]]
            above["classes"] += nodes[node]["classes"]
            if node in leaves:
                above["leaves"].append(nodes[node]["name"])
            else:
                above["inner"].append(nodes[node])
    steps, pending = [], [(nodes[0], False)]
    while pending:
        here, ends = pending.pop()
        steps.append((here, ends))
        if not ends:
            pending.append((here, True))
            pending += [(child, False) for child in reversed(here["inner"])]
    return steps


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def _summary(content: Content) -> str:
    """Say in one sentence what the page shows."""
    rows = content.board.rows
    trainings = sum(len(row.seeds) for row in rows)
    sentence = f"{_count(len(rows), 'run')}, {_count(trainings, 'training')} of up to "
    sentence += _count(max(row.epochs[1] for row in rows), "epoch")
    if content.geometry:
        first = content.geometry[0]
        sentence += f", K = {first.num_classes} classes in d = {first.dim} dimensions"
    return sentence + ": how well they classify, and how far their features have collapsed onto a simplex."


def _best_sentence(content: Content) -> str:
    board = content.board
    if not board.columns or not board.columns[0].name.endswith("accuracy") or len(board.rows) < 2:
        return ""
    headings, rows = board_cells(board)
    percentage = rows[0][1].partition(" (")[0]
    return f"Best {headings[1].removesuffix(' %').lower()}: {board.rows[0].run}, {percentage} %."


def _data(content: Content) -> dict[str, Any]:
    """Collect what the plots draw, as plain JSON."""
    runs = content.directory.runs
    limit = max((item.color_limit for item in content.geometry), default=1.0)
    return {
        "runs": runs,
        "palette": {"light": PALETTE, "dark": DARK_PALETTE, "classes": CLASS_PALETTE},
        "panels": [_panel(panel, runs) for panel in content.panels],
        "geometry": [_geometry(item, content) for item in content.geometry],
        "colorLimit": limit,
        "confusion": None if content.confusions is None else confusion_data(content.confusions, content.directory),
        "layers": layer_data(content.layers),
    }


def _panel(panel: Panel, runs: Sequence[str]) -> dict[str, Any]:
    factor = 100 if panel.quantity.percent else 1
    return {
        "title": panel.title + (" %" if panel.quantity.percent else ""),
        "meaning": panel.quantity.meaning,
        "ideal": panel.quantity.ideal if panel.quantity.ideal is None else factor * panel.quantity.ideal,
        "main": panel.main,
        "log": panel.log,
        "range": [math.log10(v) if panel.log else factor * v for v in panel.limits],
        "curves": [
            {
                "run": runs.index(curve.run),
                "x": curve.epochs,
                "y": _numbers([factor * e.mean for e in curve.estimates]),
                "width": _numbers([factor * e.half_width for e in curve.estimates]),
                "low": _numbers([factor * v for v in curve.low]),
                "high": _numbers([factor * v for v in curve.high]),
            }
            for curve in panel.curves
        ],
    }


def _geometry(item: RunGeometry, content: Content) -> dict[str, Any]:
    view = item.view
    drawn = None
    if view is not None:
        drawn = {
            "names": [content.directory.class_name(c) for c in view.classes],
            "vertices": _matrix(view.vertices, 3),
            "frames": [_frame(frame) for frame in view.frames],
        }
    return {
        "run": item.run,
        "seed": item.seed,
        "epoch": item.epoch,
        "K": item.num_classes,
        "names": [content.directory.class_name(c) for c in range(len(item.means))],
        "means": _matrix(item.means, 3),
        "classifier": _matrix(item.classifier, 3),
        "view": drawn,
    }


def _frame(frame: SimplexFrame) -> dict[str, Any]:
    return {
        "epoch": frame.epoch,
        "vectors": _matrix(frame.vectors, 3),
        "means": _matrix(frame.means, 3),
        "points": [_matrix(points, 3) for points in frame.points],
    }


def _matrix(array: Array, decimals: int) -> list[list[float | None]]:
    """Round for a small page; adding zero turns -0.0 into 0.0."""
    rounded = np.round(array, decimals) + 0.0
    return [[float(v) if math.isfinite(v) else None for v in row] for row in rounded]


def _numbers(values: Sequence[float]) -> list[float | None]:
    return [float(f"{value:.5g}") if math.isfinite(value) else None for value in values]
