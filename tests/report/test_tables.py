from __future__ import annotations

import csv
import io
import math
import shutil
from pathlib import Path

import pytest
from rich.console import Console

from tightframe.errors import EmptyDataError
from tightframe.records import Records
from tightframe.report import leaderboard, print_leaderboard, write_leaderboard_csv, write_records_csv
from tightframe.report.history import Estimate
from tightframe.report.tables import Leaderboard, board_cells, format_estimate, render_rows

T2 = 0.95 * math.sqrt(2 / (1 - 0.95**2))  # t(0.975, 2) in closed form: 4.30


def example() -> Records:
    """Runs a and b with three seeds, c with one; b is better, c diverged."""
    records = Records()
    for run, values in (("a", (0.80, 0.82, 0.84)), ("b", (0.90, 0.90, 0.93)), ("c", (math.nan,))):
        for seed, value in enumerate(values):
            where = {"run": run, "seed": seed, "epoch": 3}
            records.add("accuracy", 0.1, run=run, seed=seed, epoch=0, split="test")
            records.add("accuracy", value, split="test", **where)
            records.add("accuracy", 1.0, split="train", **where)
            records.add("loss", 0.3, split="test", **where)
            records.add("mistake_severity", 2.0 + seed, split="test", **where)
            records.add("nc1.pinv", value / 2, split="train", layer="features", **where)
            records.add("nc1.pinv", 7.0, split="train", layer="backbone.0", **where)
    return records


def cell(board: Leaderboard, run: str, name: str) -> Estimate:
    (row,) = [row for row in board.rows if row.run == run]
    return row.estimates[[column.name for column in board.columns].index(name)]


def test_columns_in_order() -> None:
    names = [column.name for column in leaderboard(example()).columns]
    assert names == ["test.accuracy", "test.error", "train.error", "test.mistake_severity", "train.nc1.pinv"]


def test_rows_by_decreasing_accuracy_with_nan_last() -> None:
    board = leaderboard(example(), classifier_parameters={"a": 0, "b": 640})
    assert [row.run for row in board.rows] == ["b", "a", "c"]
    assert [row.classifier_parameters for row in board.rows] == [640, 0, None]
    assert [row.seeds for row in board.rows] == [(0, 1, 2), (0, 1, 2), (0,)]
    assert [row.epochs for row in board.rows] == [(3, 3)] * 3


def test_means_and_intervals_by_hand() -> None:
    board = leaderboard(example())
    a = cell(board, "a", "test.accuracy")
    assert a.mean == pytest.approx(0.82, abs=1e-15)
    assert a.half_width == pytest.approx(T2 * 0.02 / math.sqrt(3), rel=1e-12)
    error = cell(board, "a", "test.error")
    assert error.mean == pytest.approx(0.18, abs=1e-15)
    assert error.half_width == pytest.approx(a.half_width, rel=1e-12)
    assert cell(board, "b", "train.nc1.pinv").mean == pytest.approx(0.455, abs=1e-15)
    assert cell(board, "b", "test.mistake_severity").mean == 3.0
    assert cell(board, "c", "test.accuracy").count == 0


def test_best_is_nearest_to_the_ideal_and_shared_on_ties() -> None:
    board = leaderboard(example())
    best = {
        c.name: {board.rows[row].run for row, i in board.best if i == column} for column, c in enumerate(board.columns)
    }
    assert best == {
        "test.accuracy": {"b"},
        "test.error": {"b"},
        "train.error": {"a", "b", "c"},
        "test.mistake_severity": set(),
        "train.nc1.pinv": {"a"},
    }


def test_validation_stands_in_for_test() -> None:
    records = Records()
    records.add("accuracy", 0.5, run="a", split="validation")
    assert [c.name for c in leaderboard(records).columns] == ["validation.accuracy", "validation.error"]


def test_no_accuracy_at_all_keeps_the_order_of_the_runs() -> None:
    records = Records()
    for run in ("b", "a"):
        records.add("cdnv", 1.0, run=run, split="train", layer="features")
    board = leaderboard(records)
    assert [row.run for row in board.rows] == ["b", "a"]
    assert [c.name for c in board.columns] == ["train.cdnv"]


def test_unfinished_seeds_show_in_the_epochs() -> None:
    records = Records()
    for seed, last in ((0, 4), (1, 2)):
        for epoch in range(last + 1):
            records.add("accuracy", epoch / 10, run="a", seed=seed, epoch=epoch, split="test")
    (row,) = leaderboard(records).rows
    assert row.epochs == (2, 4)
    assert row.estimates[0].mean == pytest.approx(0.3)


def test_empty_records_are_refused() -> None:
    with pytest.raises(EmptyDataError, match="records must hold at least one row"):
        leaderboard(Records())


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.0, "0.00"),
        (-0.5, "-0.500"),
        (12.3456, "12.3"),
        (999.9, "1,000"),
        (0.0001234, "0.000123"),
        (3e-17, "3.00·10⁻¹⁷"),
    ],
)
def test_numbers_have_three_digits(value: float, text: str) -> None:
    assert format_estimate(Estimate(value, math.nan, 1, 1)) == text


@pytest.mark.parametrize(
    ("estimate", "percent", "text"),
    [
        (Estimate(0.98765, 0.0123, 3, 3), True, "98.77 ± 1.23"),
        (Estimate(0.0456, 0.0078, 2, 3), False, "0.0456 ± 0.0078 (2 of 3)"),
        (Estimate(5e-9, 2e-9, 3, 3), False, "(5.00 ± 2.00)·10⁻⁹"),
        (Estimate(0.0, 0.0, 3, 3), False, "0.00 ± 0.00"),
        (Estimate(math.nan, math.nan, 0, 2), True, "nan"),
        (Estimate(math.nan, math.nan, 0, 0), False, "–"),
    ],
)
def test_format_estimate(estimate: Estimate, percent: bool, text: str) -> None:
    assert format_estimate(estimate, percent) == text


def test_leaderboard_csv(tmp_path: Path) -> None:
    board = leaderboard(example(), classifier_parameters={"b": 640})
    with write_leaderboard_csv(board, tmp_path / "leaderboard.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["run"] for row in rows] == ["b", "a", "c"]
    assert float(rows[1]["test.accuracy"]) == pytest.approx(0.82, abs=1e-15)
    assert float(rows[1]["test.accuracy_ci95"]) == pytest.approx(T2 * 0.02 / math.sqrt(3), rel=1e-12)
    assert (rows[0]["classifier_parameters"], rows[1]["classifier_parameters"]) == ("640", "")
    assert (rows[2]["test.accuracy"], rows[2]["test.accuracy_ci95"], rows[2]["test.accuracy_n"]) == ("", "", "0")
    assert (rows[2]["seeds"], rows[2]["first_last_epoch"], rows[2]["last_epoch"]) == ("1", "3", "3")


def test_records_csv_is_tidy_and_complete(tmp_path: Path) -> None:
    records = example()
    records.add("odd, name", 1e-300, run='with "quotes"\nand lines')
    with write_records_csv(records, tmp_path / "records.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == ["run", "seed", "epoch", "step", "split", "layer", "metric", "value", "tap"]
    assert len(rows) == len(records)
    assert rows[-1]["run"] == 'with "quotes"\nand lines'
    assert float(rows[-1]["value"]) == 1e-300
    assert math.isnan(float(next(r["value"] for r in rows if r["run"] == "c" and r["epoch"] == "3")))


def printed(headings, rows, width: int) -> str:
    console = Console(width=width, file=io.StringIO(), color_system=None)
    render_rows(headings, rows, console=console)
    return console.file.getvalue()  # type: ignore[attr-defined]


def test_terminal_tables_break_into_parts_and_cut_nothing() -> None:
    cells = board_cells(leaderboard(example()))
    wide, narrow = (printed(*cells, width) for width in (200, 52))
    assert wide.count("Run") == 1
    assert narrow.count("Run") > 1
    for text in (wide, narrow):
        words = set(text.split())
        assert {"Test", "accuracy", "Classifier", "parameters", "severity", "Seeds", "Epochs"} <= words
        assert "…" not in text
        for number in ("82.00 ± 4.97", "91.00 ± 4.30", "3.00 ± 2.48", "0.455 ± 0.022", "nan"):
            assert number in text
    assert max(map(len, narrow.splitlines())) <= 52


def test_print_leaderboard_names_what_is_missing(trained: Path, tmp_path: Path) -> None:
    shutil.copytree(trained, tmp_path / "out")
    shutil.rmtree(tmp_path / "out" / "learned" / "seed-1")
    console = Console(width=120, file=io.StringIO(), color_system=None)
    board = print_leaderboard(tmp_path / "out", console=console)
    text = console.file.getvalue()  # type: ignore[attr-defined]
    assert "learned, seed 1: missing: no directory" in text
    assert format_estimate(board.rows[0].estimates[0], percent=True) in text


def test_names_are_printed_as_they_are() -> None:
    records = Records()
    records.add("accuracy", 0.5, run="[bold]x[/nonsense]", split="test")
    records.add("[red]metric[/]", 0.5, run="[bold]x[/nonsense]", split="test")
    text = printed(*board_cells(leaderboard(records)), 80)
    assert "[bold]x[/nonsense]" in text
    assert "[red]metric[/]" in text


@pytest.mark.parametrize("width", [10, 40, 80, 200])
def test_plain_rows_show_every_number_whole_and_every_name_as_it_is(width):
    rows = [["1 [red]blocks.0.linear1", "99.99", "12,345,678"], ["", "–", "0"]]
    text = printed(["Network", "Train %", "Parameters"], rows, width)
    for number in ("99.99", "12,345,678", "–", "1 [red]blocks.0.linear1 "):
        assert number in text


def test_long_names_fold():
    text = printed(["Network", "Train %"], [["x" * 100, "99.99"]], 60)
    assert text.count("x") == 100
    assert max(map(len, text.splitlines())) <= 60


def test_plain_rows_may_be_none():
    assert "Train" in printed(["Network", "Train %"], [], 80)
