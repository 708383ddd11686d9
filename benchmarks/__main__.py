"""Run benchmarks, each in a process of its own, so that none inherits the memory or the threads of another.

``python -m benchmarks`` prints all tables of docs/benchmarks.md, ``python -m benchmarks measure cdnv`` those named.
``python -m benchmarks cdnv --against ../old`` runs them in turn with the package of that checkout and with this one,
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

NAMES = (
    *("nc1_accuracy", "moments", "nc1_time", "cdnv", "pairs", "etf_logits", "measure", "callback", "sync"),
    *("nearest_solve", "nearest_gradient", "nearest_step"),
    "cosine_gram",
    "hierarchical_frame",
    "etf_linear",
    "etf_transformer",
    "layer_probing",
    "ufm_solve",
    "ufm_thresholds",
)
ROOT = Path(__file__).parents[1]
TIME = re.compile(r"\| (?P<name>[^|]*\S) +\| (?P<number>[\d.e+]+) (?P<unit>s|ms|us) *\|")


def times(table: str) -> dict[str, float]:
    """Return the seconds of our side in a printed table, by the name of the row."""
    units = {"s": 1.0, "ms": 1e-3, "us": 1e-6}
    return {row["name"]: float(row["number"]) * units[row["unit"]] for row in TIME.finditer(table)}


def speedup(old: dict[str, float], new: dict[str, float]) -> float:
    """Return the geometric mean of old / new over the rows that both have; nan if there is none."""
    both = old.keys() & new.keys()
    return math.exp(sum(math.log(old[row] / new[row]) for row in both) / len(both)) if both else math.nan


def in_checkout(name: str, checkout: Path) -> dict[str, float]:
    """Run one benchmark of this tree with the package of a checkout."""
    path = {"PYTHONPATH": f"{checkout.resolve() / 'src'}{os.pathsep}{ROOT}"}
    command = [sys.executable, "-m", f"benchmarks.{name}"]
    return times(subprocess.run(command, env={**os.environ, **path}, stdout=subprocess.PIPE, text=True).stdout)


def compare(name: str, old: Path, rounds: int) -> str:
    ratios = []
    for turn in range(rounds):
        order = (old, ROOT) if turn % 2 else (ROOT, old)
        found = {checkout: in_checkout(name, checkout) for checkout in order}
        ratios.append(speedup(found[old], found[ROOT]))
    ratios.sort()
    return f"{name}: {statistics.median(ratios):.2f}x as fast [{ratios[0]:.2f}, {ratios[-1]:.2f}]"


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks")
    parser.add_argument("names", nargs="*", choices=[*NAMES, []], metavar="NAME", help=f"of {', '.join(NAMES)}")
    parser.add_argument("--against", type=Path, metavar="CHECKOUT", help="another checkout to compare the package with")
    parser.add_argument("--rounds", type=int, default=3, help="of a comparison")
    options = parser.parse_args()
    names = options.names or NAMES
    if options.against is not None:
        for name in names:
            print(compare(name, options.against, options.rounds), flush=True)
        return 0
    failed = [name for name in names if subprocess.run([sys.executable, "-m", f"benchmarks.{name}"]).returncode]
    for name in failed:
        print(f"benchmarks.{name} failed", file=sys.stderr)
    return len(failed)


if __name__ == "__main__":
    sys.exit(main())
