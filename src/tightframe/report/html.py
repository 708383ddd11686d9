"""One page that holds everything: text, numbers, plots and the code that draws them; it loads nothing."""

from __future__ import annotations

import math
from dataclasses import dataclass, is_dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tightframe.errors import require_extra
from tightframe.files import write_text
from tightframe.hierarchy import Tree
from tightframe.report.charts import PALETTE
from tightframe.report.confusion import Confusions, sums_below
from tightframe.report.geometry import RunGeometry
from tightframe.report.history import Panel
from tightframe.report.layers import Layers
from tightframe.report.tables import Leaderboard, board_cells
from tightframe.runs import RunDirectory

# The same hues, lighter, for a dark ground.
DARK_PALETTE = ("#5AA9E6", "#FF8B4D", "#2BC79A", "#E39AC6", "#F2B93B", "#9BD7F5", "#A6A6A6")
CLASS_PALETTE = ("#E69F00", "#56B4E9", "#009E73", "#CC79A7")


@dataclass(frozen=True)
class Content:
    """All that is shown.

    Args:
        directory: the run directory.
        board: the leaderboard.
        panels: charts against epochs.
        geometry: one a run that has snapshots of at least two classes.
        confusions: mistakes of the runs; None without a hierarchy or without a file of them.
        layers: layers against epochs of the runs that measured some beside the classifier's input.
    """

    directory: RunDirectory
    board: Leaderboard
    panels: list[Panel]
    geometry: list[RunGeometry]
    confusions: Confusions | None
    layers: Layers

    @property
    def color_limit(self) -> float:
        """End of the colour scale of all cosines."""
        return max((item.color_limit for item in self.geometry), default=1.0)


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
        content=content,
        board=content.board,
        directory=content.directory,
        cells=board_cells(content.board),
        tree=None if content.directory.tree is None else _nodes(content.directory.tree),
        data=_data(content),
        plotlyjs=require_extra("plotly.offline", "cli").get_plotlyjs(),
    )
    write_text(path, page)
    return path


def _nodes(tree: Tree) -> list[tuple[dict[str, Any], bool]]:
    """Return each inner node twice, in the order of the page: where it begins, and, with True, where it ends.

    A node is a mapping of its number, name, number of classes below it and names of its leaves. A template that called
    itself would not reach the end of a deep tree.
    """
    children: list[list[int]] = [[] for _ in tree.names]
    for node in range(1, len(children)):
        children[tree.parents[node]].append(node)
    leaves = set(tree.classes.tolist())
    classes = sums_below(tree, np.bincount(tree.classes, minlength=len(children)))
    steps, pending = [], [(0, False)]
    while pending:
        node, ends = pending.pop()
        names = [tree.names[child] for child in children[node] if child in leaves]
        steps.append(({"number": node, "name": tree.names[node], "classes": classes[node], "leaves": names}, ends))
        if not ends:
            pending += [(node, True), *((child, False) for child in reversed(children[node]) if child not in leaves)]
    return steps


def _data(content: Content) -> dict[str, Any]:
    """Collect what the plots draw, as plain JSON."""
    directory = content.directory
    return plain_json(
        {
            "runs": directory.runs,
            "classes": directory.class_names,
            "palette": {"light": PALETTE, "dark": DARK_PALETTE, "classes": CLASS_PALETTE},
            "panels": content.panels,
            "geometry": content.geometry,
            "colorLimit": content.color_limit,
            "confusion": content.confusions,
            "layers": content.layers,
        }
    )


def plain_json(value: Any) -> Any:
    """Return content as JSON: dataclasses as objects, numbers to five digits, None for what is not finite.

    Example:
        >>> plain_json((np.array([1 / 3]), math.nan))
        [[0.33333], None]
    """
    if isinstance(value, np.ndarray):
        value = value.tolist()
    if isinstance(value, list | tuple):
        return [plain_json(each) for each in value]
    if is_dataclass(value):
        value = vars(value)
    if isinstance(value, dict):
        return {name: plain_json(each) for name, each in value.items()}
    if isinstance(value, float):
        return float(f"{value:.5g}") if math.isfinite(value) else None
    return value
