"""Run benchmarks: ``python -m benchmarks`` prints all tables of docs/benchmarks.md, ``... measure nc1`` those named.

Several run in a process each, so that none inherits the memory of another.
``python -m benchmarks nc1 --against ../old`` runs them in turn with the package of that checkout and with this one,
and prints how many times as fast this one is, in the geometric mean over the times of a benchmark.
"""

from __future__ import annotations

import argparse
import math
import os
import re
import statistics
import subprocess
import sys
from pathlib import Path

from benchmarks._timing import GROUPS, report, run

ROOT = Path(__file__).parents[1]
TIME = re.compile(r"\| (?P<name>[^|]*\S) +\| (?P<number>[\d.e+]+) (?P<unit>s|ms|us) *\|")


def times(table: str) -> dict[str, float]:
    """Return the seconds of our side in a printed table, by the name of the row."""
    units = {"s": 1.0, "ms": 1e-3, "us": 1e-6}
    return {row["name"]: float(row["number"]) * units[row["unit"]] for row in TIME.finditer(table)}


def speedup(old: dict[str, float], new: dict[str, float]) -> float:
    """Return the geometric mean of old / new over the rows that both have; nan if there is none."""
    ratios = [old[row] / new[row] for row in old.keys() & new.keys()]
    return statistics.geometric_mean(ratios) if ratios else math.nan


def alone(name: str, checkout: Path = ROOT, stdout: int | None = None) -> subprocess.CompletedProcess[str]:
    """Run one benchmark of this tree in a process of its own, with the package of a checkout."""
    path = {"PYTHONPATH": f"{checkout.resolve() / 'src'}{os.pathsep}{ROOT}"}
    command = [sys.executable, "-m", "benchmarks", name]
    return subprocess.run(command, env={**os.environ, **path}, stdout=stdout, text=True)


def compare(name: str, old: Path, rounds: int = 3) -> str:
    ratios = []
    for turn in range(rounds):
        order = (old, ROOT) if turn % 2 else (ROOT, old)
        found = {checkout: times(alone(name, checkout, subprocess.PIPE).stdout) for checkout in order}
        ratios.append(speedup(found[old], found[ROOT]))
    return f"{name}: {statistics.median(ratios):.2f}x as fast [{min(ratios):.2f}, {max(ratios):.2f}]"


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks")
    parser.add_argument("names", nargs="*", choices=[*GROUPS, []], metavar="NAME", help=f"of {', '.join(GROUPS)}")
    parser.add_argument("--against", type=Path, metavar="CHECKOUT", help="another checkout to compare the package with")
    parser.add_argument("--tiny", action="store_true", help="sizes that only show that a benchmark runs")
    options = parser.parse_args()
    names = options.names or list(GROUPS)
    if options.against is not None:
        for name in names:
            print(compare(name, options.against), flush=True)
    elif len(names) > 1 and not options.tiny:
        return sum(alone(name).returncode != 0 for name in names)
    else:
        for name in names:
            report(*run(name, options.tiny))
    return 0


if __name__ == "__main__":
    sys.exit(main())
