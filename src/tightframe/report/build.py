"""Write the whole report of an output directory: gather its content once, and render it as tables, figures and page."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from tightframe.report.charts import Chart, HeatMap, draw_charts, save
from tightframe.report.confusion import gather_confusions
from tightframe.report.geometry import gather_geometry
from tightframe.report.history import History, panels
from tightframe.report.html import Content, write_html
from tightframe.report.layers import gather_layers
from tightframe.report.tables import leaderboard, write_leaderboard_csv, write_records_csv
from tightframe.runs import RunDirectory

MAX_MAPS = 6


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
