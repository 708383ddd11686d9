"""The leaderboard as data, in the terminal and as CSV."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tightframe.errors import EmptyDataError, require_extra
from tightframe.files import written_whole
from tightframe.functional.registry import Described, describe
from tightframe.records import Records
from tightframe.report.history import FEATURES, MAIN_METRICS, Estimate, History, Key, estimate, is_detail, title_of
from tightframe.runs import RunDirectory

PADDING = 3  # columns of a terminal between two columns of a table
SUPERSCRIPTS = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


@dataclass(frozen=True)
class Column:
    """One quantity of the leaderboard.

    Args:
        name: its name in the CSV, such as ``test.accuracy``.
        source: split, layer and metric of the records it comes from.
        quantity: label, meaning and ideal.
    """

    name: str
    source: Key
    quantity: Described


@dataclass(frozen=True)
class Row:
    """One run of the leaderboard.

    Args:
        run: its name.
        seeds: the seeds that measured anything.
        epochs: smallest and largest last epoch among the seeds; they differ if a training is unfinished.
        estimates: one for each column.
        classifier_parameters: trainable parameters of the classifier; ``None`` if unknown.
    """

    run: str
    seeds: tuple[int, ...]
    epochs: tuple[int, int]
    estimates: tuple[Estimate, ...]
    classifier_parameters: int | None


@dataclass(frozen=True)
class Leaderboard:
    """Rows by decreasing accuracy, and the columns that they have values for."""

    columns: tuple[Column, ...]
    rows: tuple[Row, ...]

    @property
    def best(self) -> frozenset[tuple[int, int]]:
        """Row and column of each mean that is nearest to its ideal; none of a column without an ideal or a rival."""
        found = set()
        for i, column in enumerate(self.columns):
            means = [row.estimates[i].mean for row in self.rows]
            if column.quantity.ideal is not None and len(means) > 1:
                gaps = [math.inf if math.isnan(mean) else abs(mean - column.quantity.ideal) for mean in means]
                found |= {(row, i) for row, gap in enumerate(gaps) if gap == min(gaps) < math.inf}
        return frozenset(found)


def leaderboard(
    records: Records, *, classifier_parameters: Mapping[str, int] | None = None, num_classes: int | None = None
) -> Leaderboard:
    """Compare the runs at their last epoch: mean and 95 % Student-t interval over seeds.

    Accuracy comes first (test, else validation, else train), then the errors and whatever else was measured on the
    outputs of that split, then the main collapse metrics on the training features.

    Args:
        records: measurements of all runs.
        classifier_parameters: trainable parameters of the classifier, by run.
        num_classes: K, for the ideal value of those metrics that depend on it.

    Raises:
        EmptyDataError: if ``records`` is empty.

    Example:
        >>> records = Records()
        >>> for seed, value in enumerate([0.90, 0.92, 0.94]):
        ...     records.add("accuracy", value, run="haar", seed=seed, epoch=10, split="test")
        >>> row = leaderboard(records).rows[0]
        >>> round(row.estimates[0].mean, 3), round(row.estimates[0].half_width, 4)
        (0.92, 0.0497)
    """
    if not len(records):
        raise EmptyDataError("records must hold at least one row, got none; measure something first")
    history = History(records)
    columns = _columns(history, num_classes)
    rows = [_row(history, run, columns, (classifier_parameters or {}).get(run)) for run in history.runs]
    if columns and columns[0].source[2] == "accuracy":
        rows.sort(key=lambda row: -math.inf if row.estimates[0].count == 0 else row.estimates[0].mean, reverse=True)
    return Leaderboard(tuple(columns), tuple(rows))


def _columns(history: History, num_classes: int | None) -> list[Column]:
    split = history.evaluation_split
    judged = [s for s in dict.fromkeys((split, "train")) if (s, "", "accuracy") in history.values]
    columns = []
    if split in judged:
        columns = [Column(f"{split}.accuracy", (split, "", "accuracy"), describe("accuracy"))]
        columns += [Column(f"{s}.error", (s, "", "accuracy"), describe("error")) for s in judged]
    shown = [key for key in history.values if key[:2] == (split, "") and not is_detail(key[2])]
    sources = [key for key in shown if key[2] not in ("accuracy", "error", "loss")]
    sources += [key for m in MAIN_METRICS if (key := ("train", FEATURES, m)) in history.values]
    return columns + [Column(f"{key[0]}.{key[2]}", key, describe(key[2], num_classes)) for key in sources]


def _row(history: History, run: str, columns: list[Column], parameters: int | None) -> Row:
    last = history.last_epochs[run]
    estimates = []
    for column in columns:
        values = history.last(column.source, run).values()
        estimates.append(
            estimate(1 - value for value in values) if column.name.endswith(".error") else estimate(values)
        )
    return Row(run, tuple(sorted(last)), (min(last.values()), max(last.values())), tuple(estimates), parameters)


def format_estimate(value: Estimate, percent: bool = False) -> str:
    """Write ``mean ± half width`` to three digits of the mean, or two decimals of a percentage.

    If some seeds were not finite, the number of those that count follows.

    Example:
        >>> format_estimate(Estimate(0.9731, 0.0042, 3, 3), percent=True)
        '97.31 ± 0.42'
        >>> format_estimate(Estimate(2.13e-8, 4e-9, 3, 3))
        '(2.13 ± 0.40)·10⁻⁸'
        >>> format_estimate(Estimate(0.0123, math.nan, 1, 2))
        '0.0123 (1 of 2)'
    """
    if value.count == 0:
        return "nan" if value.total else "–"
    scale = 100.0 if percent else 1.0
    mean, width = scale * value.mean, scale * value.half_width
    size, power = math.floor(math.log10(abs(mean))) if mean else 0, ""
    if not percent and (size < -4 or size > 6):
        mean, width, power = mean / 10.0**size, width / 10.0**size, f"·10{str(size).translate(SUPERSCRIPTS)}"
    decimals = 2 if percent or power or not mean else max(0, 2 - size)
    text = f"{mean:,.{decimals}f}"
    if not math.isnan(width):
        text += f" ± {width:,.{decimals}f}"
        text = f"({text})" if power else text
    return text + power + ("" if value.count == value.total else f" ({value.count} of {value.total})")


def board_cells(board: Leaderboard) -> tuple[list[str], list[list[str]]]:
    """Write the board's headings, and its cells row by row, as text."""
    headings = [
        "Run",
        *(title_of(c.source, c.quantity) for c in board.columns),
        "Classifier parameters",
        "Seeds",
        "Epochs",
    ]
    rows = []
    for row in board.rows:
        cells = [format_estimate(e, c.quantity.percent) for c, e in zip(board.columns, row.estimates, strict=True)]
        parameters = "–" if row.classifier_parameters is None else f"{row.classifier_parameters:,}"
        epochs = "–".join(map(str, sorted(set(row.epochs))))
        rows.append([row.run, *cells, parameters, str(len(row.seeds)), epochs])
    return headings, rows


def render_rows(
    headings: Sequence[str],
    rows: Sequence[Sequence[str]],
    *,
    bold: Collection[tuple[int, int]] = (),
    console: Any = None,
) -> None:
    """Print a table, continued in a further one where it would be wider than the console.

    The first column is text, the others numbers. Headings may wrap between words and long names anywhere, but no number
    is cut.

    Args:
        headings: Headings of the columns.
        rows: Cells of each row.
        bold: Row and column of the cells in bold.
        console: Console to print on, a ``rich.console.Console``; None prints to standard output.
    """
    console = console or require_extra("rich.console", "cli").Console()
    text = require_extra("rich.text", "cli").Text
    widths = [max(map(len, [*heading.split(), *cells])) for heading, *cells in zip(headings, *rows, strict=True)]
    widths = [min(widths[0], 32), *(max(w, len(h) // 2 + 2) for w, h in zip(widths[1:], headings[1:], strict=True))]
    parts: list[list[int]] = [[0]]
    for i in range(1, len(headings)):
        if len(parts[-1]) > 1 and sum(widths[j] + PADDING for j in [*parts[-1], i]) > console.width:
            parts.append([0])
        parts[-1].append(i)
    for part in parts:
        box = require_extra("rich.box", "cli").SIMPLE_HEAD
        table = require_extra("rich.table", "cli").Table(box=box, pad_edge=False)
        for i in part:
            side, size = "right" if i else "left", widths[i]
            table.add_column(text(headings[i]), justify=side, overflow="fold", min_width=size, max_width=size)
        for index, row in enumerate(rows):
            table.add_row(*(text(row[i], style="bold" if (index, i) in bold else "") for i in part))
        console.print(table, crop=False)


def print_leaderboard(out: str | Path, *, console: Any = None) -> Leaderboard:
    """Print the leaderboard of an output directory, and which trainings are missing or unfinished.

    Args:
        out: Output directory of a comparison or a training.
        console: Console to print on, a ``rich.console.Console``; None prints to standard output.

    Raises:
        EmptyDataError: if nothing has been measured below ``out``.
    """
    runs = RunDirectory.read(out)
    console = console or require_extra("rich.console", "cli").Console()
    board = leaderboard(runs.records, classifier_parameters=runs.classifier_parameters)
    render_rows(*board_cells(board), bold={(row, column + 1) for row, column in board.best}, console=console)
    console.print("Mean ± 95 % interval over seeds, at the last epoch measured", style="dim")
    for training in runs.problems:
        console.print(f"{training.run}, seed {training.seed}: {training.problem}", markup=False, highlight=False)
    for line in runs.damaged:
        console.print(f"damaged: {line}", markup=False, highlight=False)
    return board


def write_leaderboard_csv(board: Leaderboard, path: Path) -> Path:
    """Write one line a run: for each quantity the mean, the half width ``_ci95`` and the number of seeds ``_n``.

    Shares are in 0..1, not in percent; what is unknown is empty.
    """
    pandas = require_extra("pandas", "cli")
    table = []
    for row in board.rows:
        cells = {
            "run": row.run,
            "seeds": len(row.seeds),
            "first_last_epoch": row.epochs[0],
            "last_epoch": row.epochs[1],
        }
        cells["classifier_parameters"] = row.classifier_parameters
        for column, e in zip(board.columns, row.estimates, strict=True):
            cells |= {column.name: e.mean, f"{column.name}_ci95": e.half_width, f"{column.name}_n": e.count}
        table.append(cells)
    return _write_csv(pandas.DataFrame(table, dtype=object), path)


def write_records_csv(records: Records, path: Path) -> Path:
    """Write all records as one tidy table of nine columns."""
    return _write_csv(records.to_frame(), path, na_rep="nan")


def _write_csv(table: Any, path: Path, **options: Any) -> Path:
    """Write a data frame; a text that a spreadsheet would run as a formula gets a ``'`` in front."""
    first = ("=", "+", "-", "@", "\t", "\r")
    texts = {}
    for name in (name for name in table.columns if table[name].dtype.kind == "O"):
        cells = (f"'{cell}" if isinstance(cell, str) and cell.startswith(first) else cell for cell in table[name])
        texts[name] = np.fromiter(cells, dtype=object, count=len(table))
    with written_whole(path) as partial:
        table.assign(**texts).to_csv(partial, index=False, lineterminator="\r\n", **options)
    return path
