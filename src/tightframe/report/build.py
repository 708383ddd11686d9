"""The report of an output directory: its content is gathered once, and rendered as tables, figures and one page."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, is_dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tightframe.errors import require_extra
from tightframe.files import write_text
from tightframe.hierarchy import Tree
from tightframe.report.charts import PALETTE, Chart, HeatMap, draw_charts, save
from tightframe.report.confusion import Confusions, gather_confusions, sums_below
from tightframe.report.geometry import RunGeometry, gather_geometry
from tightframe.report.history import History, Panel, panels
from tightframe.report.layers import Layers, gather_layers
from tightframe.report.tables import Leaderboard, board_cells, leaderboard, write_leaderboard_csv, write_records_csv
from tightframe.runs import RunDirectory

MAX_MAPS = 6
MAX_LEVELS = 100
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
        """End of a colour scale on which cosines between different classes, the interesting ones, are told apart."""
        matrices = [matrix for item in self.geometry for matrix in (item.means, item.classifier, item.ideal)]
        cosines = [matrix[~np.eye(len(matrix), dtype=bool)] for matrix in matrices]
        return min(1.0, math.ceil(10 * np.nanmax(np.abs(np.concatenate(cosines)))) / 10) if cosines else 1.0


def build_report(out: str | Path, *, classes: Sequence[int] | None = None) -> Path:
    """Write ``report.html``, ``leaderboard.csv``, ``records.csv`` and ``figures/`` into an output directory.

    Trainings that are missing, unfinished or damaged are named in the page; the others are reported.

    Args:
        out: output directory of a comparison or a training.
        classes: the 2 to 4 classes shown on the simplex; ``None`` takes the first ones whose features the snapshots
            hold.

    Returns:
        Path of ``report.html``.

    Raises:
        DataFileError: if ``out`` is not a directory.
        EmptyDataError: if nothing has been measured below it.
        ArgumentError: if ``classes`` are not classes of the trainings.
    """
    directory = RunDirectory.read(Path(out))
    content = gather(directory, classes)
    write_leaderboard_csv(content.board, directory.path / "leaderboard.csv")
    write_records_csv(directory.records, directory.path / "records.csv")
    write_figures(content, directory.path / "figures")
    return write_html(content, directory.path / "report.html")


def gather(directory: RunDirectory, classes: Sequence[int] | None = None) -> Content:
    """Work out everything that tables, figures and page show.

    Args:
        directory: Directory of runs.
        classes: the 2 to 4 classes of the simplex view; ``None`` takes the first ones.

    Raises:
        ArgumentError: if ``classes`` are not classes of the snapshots.
    """
    records = directory.records
    history = History(records)
    geometry = gather_geometry(directory, classes)
    num_classes = geometry[0].num_classes if geometry else None
    return Content(
        directory,
        leaderboard(records, classifier_parameters=directory.classifier_parameters, num_classes=num_classes),
        panels(history, num_classes),
        geometry,
        gather_confusions(directory, history.evaluation_split),
        gather_layers(history, records),
    )


def write_figures(content: Content, directory: Path) -> None:
    """Write ``accuracy``, ``collapse`` and ``class_means``, each as PNG and SVG, where there is material for them.

    The charts are those of the page's first view; class means are of the first six runs.

    Args:
        content: Content of the report.
        directory: Folder of the figures.
    """
    main = [panel for panel in content.panels if panel.main]
    drawn = content.geometry[:MAX_MAPS]
    means = [(f"{item.run}, class means", item.means) for item in drawn]
    ideal = [("simplex ETF", item.ideal) for item in drawn[:1]]
    vectors = [(f"{item.run}, class vectors", item.classifier) for item in drawn]
    figures: dict[str, list[Chart | HeatMap]] = {
        "accuracy": [panel.chart for panel in main if panel.key[2] == "accuracy"],
        "collapse": [panel.chart for panel in main if panel.key[2] != "accuracy"],
        "class_means": [
            HeatMap(title, matrix, content.color_limit, "cosine after centring")
            for title, matrix in (*means, *ideal, *vectors)
        ],
    }
    for name, charts in figures.items():
        if charts:
            maps = name == "class_means"
            figure = draw_charts(charts, len(drawn) + 1 if maps else 3, () if maps else content.directory.runs)
            save(figure, directory / f"{name}.png")
            figure.set_layout_engine("none")  # keeps the layout just found, which takes as long as the drawing
            save(figure, directory / f"{name}.svg")


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

    A node is a mapping of its number, name, number of classes below it, names of its leaves, and levels below it that
    are not shown: browsers nest no more than some hundred. A template that called itself would not reach the end of a
    deep tree.
    """
    children: list[list[int]] = [[] for _ in tree.names]
    for node in range(1, len(children)):
        children[tree.parents[node]].append(node)
    levels = [0] * len(children)
    for node in range(len(children) - 1, 0, -1):  # a parent comes before its children
        levels[tree.parents[node]] = max(levels[tree.parents[node]], levels[node] + 1)
    leaves = set(tree.classes.tolist())
    classes = sums_below(tree, np.bincount(tree.classes, minlength=len(children)))
    steps, pending = [], [(0, False, 1)]
    while pending:
        node, ends, depth = pending.pop()
        cut = levels[node] if depth == MAX_LEVELS else 0
        below = [] if cut else children[node]
        names = [tree.names[child] for child in below if child in leaves]
        shown = {"number": node, "name": tree.names[node], "classes": classes[node], "leaves": names, "cut": cut}
        steps.append((shown, ends))
        if not ends:
            inner = [(child, False, depth + 1) for child in reversed(below) if child not in leaves]
            pending += [(node, True, depth), *inner]
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
