"""``tightframe compare``: all methods of a recipe, several seeds."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from tightframe.cli import report
from tightframe.cli.recipe import parser_of_recipe, prepare, train_one
from tightframe.errors import check_positive

if TYPE_CHECKING:
    from jsonargparse import ArgumentParser


def parser(text: str) -> ArgumentParser:
    """Return the parser of the command."""
    found = parser_of_recipe(text)
    found.add_argument("--num_seeds", type=int, default=3, help="seeds of each method: seed, seed + 1, ...")
    return found


def run(out: Path, seed: int, num_seeds: int, config: Any = None, **recipe: Any) -> None:
    """Train every method of a recipe under several seeds, and report them side by side."""
    from rich.console import Console

    check_positive("--num_seeds", num_seeds)
    experiment = prepare(recipe, None, out, seed)
    console = Console(stderr=True)
    pairs = [(method, s) for s in range(seed, seed + num_seeds) for method in experiment.recipe.methods]
    for i, (method, s) in enumerate(pairs, start=1):
        console.print(f"[{i}/{len(pairs)}] {method}, seed {s}", highlight=False, markup=False)
        train_one(experiment, method, s, out, progress=False)
    report.run(out)
