"""Parts of the commands that take a recipe: its options, its file, and one training of it."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tightframe.config import (
    Experiment,
    Recipe,
    build,
    check_trusted,
    find_recipe,
    located,
    recipe_parser,
    shipped_recipes,
)
from tightframe.errors import ConfigError
from tightframe.files import read_yaml

if TYPE_CHECKING:
    from jsonargparse import ArgumentParser

COMMANDS = ("compare", "train")


def parser_of_recipe(text: str) -> ArgumentParser:
    """Return a parser with the options that every command with a recipe has."""
    parser = recipe_parser(
        description=f"{text}. RECIPE is the name of a shipped recipe or a YAML file; any key of it can be overridden, "
        "as in --epochs 5 or --data.args.imbalance 0.01; a method's args are given together, as in "
        """--methods.etf-haar.classifier.args '{"seed": 1, "scale": 4}'""",
        usage="%(prog)s RECIPE [options]",
    )
    parser.add_argument("--config", action="config", help="the recipe; RECIPE is short for this")
    parser.add_argument("--out", type=Path, default=Path("runs"), help="directory for runs and report")
    parser.add_argument("--seed", type=int, default=0, help="seed of weights, order and frames")
    parser.add_argument("--trust", action="store_true", help="import classes of other packages that the recipe names")
    return parser


def with_recipe(arguments: list[str]) -> tuple[list[str], str]:
    """Return the arguments with the contents of the recipe's file in place of its name, and a prefix for errors.

    The parser would read the file by rules of its own: keys such as ``010`` and ``1e5`` stay as they are written here,
    and paths in the file are relative to it.
    """
    if len(arguments) < 2 or arguments[0] not in COMMANDS:
        return arguments, ""
    if not arguments[1].startswith("-"):
        path, rest = find_recipe(arguments[1]), arguments[2:]
    elif arguments[1] == "--config" and len(arguments) > 2:
        path, rest = find_recipe(arguments[2]), arguments[3:]
    else:
        rest = arguments[1:]
    if any(argument.split("=")[0] == "--config" for argument in rest):
        raise ConfigError(f"the recipe comes first, and once: tightframe {arguments[0]} RECIPE [options]")
    if rest == arguments[1:]:
        return arguments, ""
    shipped = path in shipped_recipes().values()  # relative to the working directory, as options are
    plain = read_yaml(path)
    if "--trust" not in arguments:
        check_trusted(plain, str(path))
    plain = located(plain, Path.cwd() if shipped else path.parent)
    if not isinstance(plain, dict):
        raise ConfigError(f"{path} must hold the keys of a recipe, got {type(plain).__name__}; see the config it needs")
    return [arguments[0], "--config", json.dumps(plain), *rest], f"{path}: "


def prepare(options: dict[str, Any], methods: list[str] | None, out: Path, seed: int, trust: bool) -> Experiment:
    """Find every mistake that can be found before training, load the data, and open the directory.

    Args:
        options: Recipe as the parser returned it.
        methods: Methods that will be trained; None for all.
        out: Directory of runs.
        seed: First seed.
        trust: Whether the recipe may name classes outside tightframe and PyTorch.
    """
    from tightframe.runs.write import check_directory, open_directory

    if not 0 <= seed < 2**31:
        raise ConfigError(f"--seed must be in 0..{2**31 - 1}, got {seed}")
    recipe = Recipe(**options)
    config = asdict(recipe)
    if not trust:
        check_trusted(config, "the recipe")
    config = located(config, Path.cwd())
    check_directory(out, config)
    experiment = build(recipe, methods, trust=trust)
    open_directory(
        out, config, class_names=experiment.data.class_names, trees=experiment.trees, sources=experiment.sources
    )
    return experiment


def train_one(experiment: Experiment, method: str, seed: int, out: Path, *, progress: bool) -> None:
    """Train one method with one seed, or resume it, or do nothing if it has finished; say so if a limit stops it."""
    from tightframe.runs import Training
    from tightframe.runs.layout import CHECKSUMS_FILE, training_directory
    from tightframe.runs.lock import hold
    from tightframe.runs.write import seal
    from tightframe.training import fit

    recipe = experiment.recipe
    directory = training_directory(out, method, seed)
    if directory.is_dir() and Training.read(directory).timing.get("epochs") == recipe.epochs:
        if not (directory / CHECKSUMS_FILE).exists():  # the last file was not written
            with hold(directory, wait=True):
                seal(directory)
        return
    adaptive = recipe.methods[method].adaptive
    try:
        stopped = fit(
            experiment.module(method, seed),
            experiment.data.train,
            experiment.evaluation,
            directory,
            run=method,
            seed=seed,
            epochs=recipe.epochs,
            batch_size=recipe.batch_size,
            collapse=recipe.collapse,
            trainer={"enable_progress_bar": progress, **recipe.trainer},
            adaptive=None if adaptive is None else {"seed": seed, **adaptive},
        )
    except SystemExit as stop:
        if isinstance(stop.__context__, KeyboardInterrupt):  # Lightning turns Ctrl-C into an exit
            raise KeyboardInterrupt from stop
        raise
    if stopped:
        print(  # noqa: T201
            f"tightframe: {method}, seed {seed}: stopped by trainer.{stopped}, not finished; run the same command to "
            "resume after the last whole epoch",
            file=sys.stderr,
        )
