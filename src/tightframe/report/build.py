"""Write the whole report of an output directory."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from tightframe.report.content import gather
from tightframe.report.figures import write_figures
from tightframe.report.html import write_html
from tightframe.report.tables import write_leaderboard_csv, write_records_csv
from tightframe.runs import RunDirectory

REPORT_FILE = "report.html"
LEADERBOARD_FILE = "leaderboard.csv"
TABLE_FILE = "records.csv"
FIGURE_DIR = "figures"


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
    write_leaderboard_csv(content.board, directory.path / LEADERBOARD_FILE)
    write_records_csv(directory.records, directory.path / TABLE_FILE)
    write_figures(directory.path / FIGURE_DIR, content.panels, directory.runs, content.geometry)
    return write_html(content, directory.path / REPORT_FILE)
