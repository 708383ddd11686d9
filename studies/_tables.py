"""What the studies share: a command line, runs in, Markdown tables out."""

from __future__ import annotations

import argparse
import functools
import math
import statistics
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from tightframe.errors import DataFileError, TightframeError
from tightframe.report.history import estimate
from tightframe.report.tables import format_estimate
from tightframe.runs import RunDirectory, Training

BySeed = Mapping[int, float]


def command(work: Callable[[Sequence[str] | None], None]) -> Callable[..., int]:
    """Return a command that does the work and returns the exit code: 2, and one line, after an error of ours."""

    @functools.wraps(work)
    def main(argv: Sequence[str] | None = None) -> int:
        try:
            work(argv)
        except TightframeError as error:
            print(f"error: {error}", file=sys.stderr)
            return 2
        return 0

    return main


def report_runs(name: str, description: str, report: Callable[[RunDirectory], None]) -> Callable[..., int]:
    """Return the command that reports every directory it is given, without trainings that are not finished."""

    @command
    def main(argv: Sequence[str] | None) -> None:
        parser = argparse.ArgumentParser(prog=f"python -m studies.{name}", description=description)
        parser.add_argument(
            "runs", nargs="+", type=Path, help="output directory of tightframe compare, or a folder of them"
        )
        for directory in run_directories(parser.parse_args(argv).runs):
            seeds = {t.seed for t in directory.trainings if not t.problem}
            print(f"\n## {directory.path.name}, {len(seeds)} seeds\n")
            report_finished(directory, report)

    return main


def run_directories(paths: Iterable[Path]) -> list[RunDirectory]:
    """Read comparisons, or folders of comparisons."""
    found: list[Path] = []
    for path in paths:
        children = sorted(child for child in path.glob("*/") if any(child.glob("*/seed-*")))
        found += [path] if any(path.glob("*/seed-*")) or not children else children
    if not found:
        raise DataFileError("RUNS must name at least one directory that tightframe compare wrote, got none")
    return [RunDirectory.read(path) for path in found]


def report_finished(directory: RunDirectory, report: Callable[[RunDirectory], None]) -> None:
    """Report what is finished, and name the rest: what they have not reached, they may yet reach."""
    finished = replace(directory, trainings=tuple(t for t in directory.trainings if not t.problem))
    if finished.runs:
        report(finished)
    for training in directory.problems:
        print(f"left out: {training.run}, seed {training.seed}, {training.problem}")


def seeds_of(directory: RunDirectory, run: str) -> list[Training]:
    return [training for training in directory.trainings if training.run == run]


def last(directory: RunDirectory, run: str, metric: str, *, layer: str = "", **columns: str) -> BySeed:
    """Return the last value of each seed that has one."""
    found = {t.seed: t.records.where(metric=metric, layer=layer, **columns) for t in seeds_of(directory, run)}
    return {seed: rows.value(metric) for seed, rows in found.items() if len(rows)}


def timing(directory: RunDirectory, run: str, key: str) -> BySeed:
    """Return what the timing file of each seed says, where it does."""
    return {t.seed: t.timing[key] for t in seeds_of(directory, run) if key in t.timing}


def minus(mine: BySeed, theirs: BySeed) -> BySeed:
    """Return the difference of each seed that both have."""
    return {seed: mine[seed] - theirs[seed] for seed in mine if seed in theirs}


def ratios(mine: BySeed, theirs: BySeed) -> list[float]:
    """Return the ratio of each seed that both have."""
    return [mine[seed] / theirs[seed] for seed in mine if seed in theirs]


def cell(values: Iterable[float], percent: bool = False) -> str:
    """Write ``mean ± 95 % interval``."""
    return format_estimate(estimate(values), percent)


def middle(values: Sequence[float], digits: int = 1, most: float = math.inf) -> str:
    """Write ``median [least, greatest]``; what is infinite was not reached within ``most`` steps."""
    known = sorted(v for v in values if not math.isnan(v))
    if not known:
        return "–"

    def text(value: float) -> str:
        return f"> {most:g}" if value == math.inf else f"{round(value, digits):g}"

    low, high = text(known[0]), text(known[-1])
    return low if low == high else f"{text(statistics.median(known))} [{low}, {high}]"


def markdown(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a table whose columns are aligned in the source too."""
    lines = [list(columns), *map(list, rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    lines.insert(1, ["-" * width for width in widths])
    return "\n".join(
        "| " + " | ".join(text.ljust(width) for text, width in zip(line, widths, strict=True)) + " |" for line in lines
    )
