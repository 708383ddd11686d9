"""Certificates of perceptrons on digits, trained with weight decay: what their distance from the minimum depends on.

    python -m studies.network_certificate [--seeds 3]

Trains one network and its variations, one thing changed at a time, on equally many digits of each class, all at once,
and prints a table: a minute of one core a seed. Cells are ``median [least, greatest]`` over seeds. *Above the minimum*
is by how much the objective exceeds the certified bound of the unconstrained-feature model's minimum, in % of it; then
the same where features are replaced by their class means, and where these are centred too, scaled anew; then how far
the objective is above the bound of nonnegative features.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from studies._tables import command, markdown, middle
from studies.theory.certificates import PARTS, certified_course
from studies.theory.networks import Shape
from studies.theory.panels import Rows
from tightframe.errors import check_positive


@dataclass(frozen=True)
class Training:
    """A network and how it is trained."""

    shape: Shape
    decay: float
    steps: int


BASE = Training(Shape(), decay=5e-3, steps=1000)


def varied(shape: Mapping[str, Any], **training: Any) -> Training:
    return replace(BASE, shape=replace(BASE.shape, **shape), **training)


VARIATIONS: dict[str, Training] = {
    "base": BASE,
    "100 steps": varied({}, steps=100),
    "300 steps": varied({}, steps=300),
    "3000 steps": varied({}, steps=3000),
    "decay 0.0005": varied({}, decay=5e-4),
    "decay 0.002": varied({}, decay=2e-3),
    "decay 0.01": varied({}, decay=1e-2),
    "width 16": varied({"width": 16}),
    "width 256": varied({"width": 256}),
    "depth 1": varied({"depth": 1}),
    "depth 2": varied({"depth": 2}),
    "depth 5": varied({"depth": 5}),
    "linear features": varied({"relu": False}),
    "linear features, depth 5": varied({"relu": False, "depth": 5}),
    "depth 2, no batch norm": varied({"batch_norm": False, "depth": 2}),
    "the same, 3000 steps": varied({"batch_norm": False, "depth": 2}, steps=3000),
    "the same, linear features": varied({"batch_norm": False, "depth": 2, "relu": False}),
}
COLUMNS = (
    "network",
    "cross-entropy",
    "objective",
    "above the minimum %",
    "class means %",
    "centred %",
    "above ReLU's %",
    "‖∇F‖op/σ",
    "NC1",
    "W Wᵀ off by %",
)


def row(name: str, ends: Rows) -> list[str]:
    """Write what is known of a network at the end of its trainings."""

    def cell(column: str, digits: int = 1, factor: float = 1.0) -> str:
        return middle([factor * end[column] for end in ends], digits)

    return [
        name,
        cell("cross-entropy", 4),
        cell("objective", 4),
        *(cell(column, factor=100) for column in (*PARTS, "above ReLU's")),
        cell("operator norm", 2),
        cell("NC1", 4),
        cell("gram_W", factor=100),
    ]


def table(trainings: Mapping[str, Training], seeds: int, per_class: int = 139) -> str:
    """Train, certify and tabulate."""
    rows = []
    for name, training in trainings.items():
        ends = [
            certified_course(training.shape, seed, training.decay, training.steps, per_class=per_class)[-1]
            for seed in range(seeds)
        ]
        rows.append(row(name, ends))
    return markdown(COLUMNS, rows)


@command
def main(argv: Sequence[str] | None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m studies.network_certificate", description="Certificates of trained networks."
    )
    parser.add_argument("--seeds", type=int, default=3, help="trainings of each network")
    parser.add_argument("--only", nargs="+", choices=tuple(VARIATIONS), metavar="NAME", help="of the networks")
    parser.add_argument("--per_class", type=int, default=139, help="training samples of each class, at most 139")
    options = parser.parse_args(argv)
    check_positive("--seeds", options.seeds)
    check_positive("--per_class", options.per_class)
    trainings = {name: VARIATIONS[name] for name in options.only or VARIATIONS}
    print(f"base: {BASE.shape}, decay {BASE.decay:g}, {BASE.steps} steps, {options.seeds} seeds\n")
    print(table(trainings, options.seeds, options.per_class))


if __name__ == "__main__":
    sys.exit(main())
