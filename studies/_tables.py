"""What the studies share: runs in, Markdown tables out."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path

from tightframe.errors import DataFileError, TightframeError
from tightframe.runs import RunDirectory, Training


def run_directories(paths: Iterable[Path]) -> list[RunDirectory]:
    """Read comparisons, or folders of comparisons."""
    found: list[Path] = []
    for path in paths:
        children = sorted(child for child in path.glob("*/") if any(child.glob("*/seed-*")))
        found += [path] if any(path.glob("*/seed-*")) or not children else children
    if not found:
        raise DataFileError("RUNS must name at least one directory that tightframe compare wrote, got none")
    return [RunDirectory.read(path) for path in found]


def markdown(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a table whose columns are aligned in the source too."""
    lines = [list(columns), *map(list, rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    lines.insert(1, ["-" * width for width in widths])
    return "\n".join(
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) + " |" for line in lines
    )


def seeds_of(directory: RunDirectory, run: str) -> list[Training]:
    return [training for training in directory.trainings if training.run == run]


def complete(directory: RunDirectory) -> RunDirectory:
    """Return it without trainings that are not finished: what they have not reached, they may yet reach."""
    return replace(directory, trainings=tuple(t for t in directory.trainings if not t.problem))


def left_out(directory: RunDirectory) -> None:
    """Name the trainings that :func:`complete` leaves out."""
    for training in directory.problems:
        print(f"left out: {training.run}, seed {training.seed}, {training.problem}")


def report_runs(name: str, description: str, report: Callable[[RunDirectory], None], argv: Sequence[str] | None) -> int:
    """Report every directory that the command line names; return the exit code."""
    parser = argparse.ArgumentParser(prog=f"python -m studies.{name}", description=description)
    parser.add_argument(
        "runs", nargs="+", type=Path, help="output directory of tightframe compare, or a folder of them"
    )
    try:
        for directory in run_directories(parser.parse_args(argv).runs):
            report(directory)
    except TightframeError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0
