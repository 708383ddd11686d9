"""``tightframe train``: one method of a recipe, one seed."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from tightframe.cli import report
from tightframe.cli.recipe import parser_of_recipe, prepare, train_one
from tightframe.errors import ConfigError

if TYPE_CHECKING:
    from jsonargparse import ArgumentParser


def parser(text: str) -> ArgumentParser:
    """Return the parser of the command."""
    found = parser_of_recipe(text)
    found.add_argument("--method", type=str | None, default=None, help="name of the method; the first by default")
    return found


def run(out: Path, seed: int, method: str | None, trust: bool, config: Any = None, **recipe: Any) -> None:
    """Train one method of a recipe."""
    chosen = next(iter(recipe["methods"]), "") if method is None else method
    if recipe["methods"] and chosen not in recipe["methods"]:
        raise ConfigError(f"--method must be one of {', '.join(recipe['methods'])}, got {method!r}")
    experiment = prepare(recipe, [chosen], out, seed, trust)
    train_one(experiment, chosen, seed, out, progress=True)
    report.run(out)
