"""``tightframe report``: the table and the page of a directory of runs."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from jsonargparse import ArgumentParser


def parser(text: str) -> ArgumentParser:
    """Return the parser of the command."""
    from jsonargparse import ArgumentParser

    found = ArgumentParser(description=text, exit_on_error=False)
    found.add_argument("out", type=Path, help="directory that compare or train wrote")
    return found


def run(out: Path) -> None:
    """Print the table of a directory of runs and write its report."""
    from tightframe.report import build_report, print_leaderboard
    from tightframe.runs.lock import hold

    print_leaderboard(out)
    with hold(out, wait=True):
        path = build_report(out)
    print(f"\nreport: {path}")  # noqa: T201  # the command's result
