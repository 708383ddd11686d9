"""``tightframe compare``: all methods of a recipe, several seeds."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from tightframe.cli import report
from tightframe.cli.recipe import parser_of_recipe, prepare, train_one
from tightframe.errors import FailedError, check_positive

if TYPE_CHECKING:
    from jsonargparse import ArgumentParser


def parser(text: str) -> ArgumentParser:
    """Return the parser of the command."""
    found = parser_of_recipe(text)
    found.add_argument("--num_seeds", type=int, default=3, help="seeds of each method: seed, seed + 1, ...")
    return found


def run(out: Path, seed: int, num_seeds: int, trust: bool, config: Any = None, **recipe: Any) -> None:
    """Train every method of a recipe under several seeds, and report them side by side.

    Raises:
        FailedError: at the end, if a training failed; the others are trained nevertheless.
    """
    from rich.console import Console

    check_positive("--num_seeds", num_seeds)
    experiment = prepare(recipe, None, out, seed, trust)
    console = Console(stderr=True)
    pairs = [(method, s) for s in range(seed, seed + num_seeds) for method in experiment.recipe.methods]
    failed: list[tuple[str, Exception]] = []
    for i, (method, s) in enumerate(pairs, start=1):
        console.print(f"[{i}/{len(pairs)}] {method}, seed {s}", highlight=False, markup=False)
        try:
            train_one(experiment, method, s, out, progress=False)
        except Exception as error:  # whatever it is, the other trainings have nothing to do with it
            failed.append((f"{method}, seed {s}: {type(error).__name__}: {' '.join(str(error).split())}", error))
            console.print(f"{failed[-1][0]}; going on with the others", highlight=False, markup=False)
    if len(failed) < len(pairs):
        report.run(out)
    if failed:
        lines = " | ".join(line for line, _ in failed)
        raise FailedError(f"{len(failed)} of {len(pairs)} trainings failed: {lines}") from failed[0][1]
