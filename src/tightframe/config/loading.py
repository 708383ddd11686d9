"""Load a training from a directory of runs, to go on working with its network."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tightframe.config.bind import check_trusted
from tightframe.config.experiment import build
from tightframe.config.recipe import Recipe, recipe_parser
from tightframe.errors import ConfigError, DataFileError
from tightframe.files import read_checkpoint, read_yaml

if TYPE_CHECKING:
    from torch import nn

    from tightframe.data import ClassificationData
    from tightframe.runs import Training


@dataclass(frozen=True)
class LoadedRun:
    """A training from a directory of runs, with everything to go on working with its network.

    Args:
        training: Files of the training.
        recipe: Recipe of the directory.
        data: Data of the recipe.
        network: Backbone and classifier as the training left them, in eval mode; locked weights need no gradient.
    """

    training: Training
    recipe: Recipe
    data: ClassificationData
    network: nn.Module


def load_run(path: str | os.PathLike[str], *, trust: bool = False) -> LoadedRun:
    """Load ``<out>/<method>/seed-<s>`` that ``compare`` or ``train`` wrote: recipe, data and network.

    Nothing in the directory is executed: the checkpoint is read as tensors and plain data, and hierarchies come from
    the directory.

    Args:
        path: Directory of the training.
        trust: Whether the recipe may name classes outside tightframe and PyTorch, whose modules are then imported.

    Raises:
        ConfigError: if the directory is not one of a method of its recipe, the recipe cannot be read, or it names
            other classes and ``trust`` is False.
        DataFileError: if there is no checkpoint, or one of another network.
    """
    from torch import nn

    from tightframe.runs import Training
    from tightframe.runs.directory import changed_files, read_trees, stored_format
    from tightframe.runs.layout import CHECKPOINT, CONFIG_FILE, FORMAT, HIERARCHY_FILE, run_and_seed

    directory = Path(path).resolve()
    out = directory.parent.parent
    recipe = _recipe_of(out / CONFIG_FILE, trust)
    method, seed = run_and_seed(directory) or ("", 0)
    if method not in recipe.methods:
        raise ConfigError(f"RUN must be <out>/<method>/seed-<s> of a method in <out>/{CONFIG_FILE}, got {directory}")
    if changed := [name for name in changed_files(out) if name in (CONFIG_FILE, HIERARCHY_FILE)]:
        raise DataFileError(f"{out / changed[0]} is not what was written there; restore it, or train again")
    checkpoint = directory / CHECKPOINT
    if not checkpoint.is_file():
        raise DataFileError(
            f"{checkpoint} does not exist: the training of {method} with seed {seed} has not finished an epoch"
        )
    try:
        experiment = build(recipe, [], trees=read_trees(out), trust=True)
        module = experiment.module(method, seed)
    except ConfigError as error:
        if stored_format(out) == FORMAT:
            raise
        raise ConfigError(f"{error}; an earlier tightframe wrote {out}: use that version, or train again") from error
    network = nn.Sequential()
    network.backbone, network.classifier = module.backbone, module.classifier
    state = read_checkpoint(checkpoint)
    try:
        module.load_state_dict(state["state_dict"])
        for callback in state["callbacks"].values():
            for name in callback.get("locked", ()):
                network.get_submodule(name).get_parameter("weight").requires_grad_(False)
    except Exception as error:  # whatever reading and loading say of a file that is something else
        raise DataFileError(f"{checkpoint} cannot be loaded: {' '.join(str(error).split())[:300]}") from error
    return LoadedRun(Training.read(directory), recipe, experiment.data, network.eval())


def _recipe_of(path: Path, trust: bool) -> Recipe:
    """Return the recipe that a directory of runs was made with."""
    from jsonargparse import ArgumentError

    if not path.is_file():
        raise ConfigError(f"RUN must be <out>/<method>/seed-<s> beside <out>/{path.name}, but {path} does not exist")
    parser = recipe_parser()
    try:
        plain = read_yaml(path)
        if not trust:
            check_trusted(plain, str(path))
        options: Any = parser.instantiate(parser.parse_object(plain))
    except (ArgumentError, AttributeError, DataFileError, TypeError) as error:
        raise ConfigError(f"{path}: {' '.join(str(error).split())}") from error
    return Recipe(**vars(options))
