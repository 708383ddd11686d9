"""Recipe: the keys of a YAML file that describes an experiment."""

# No `from __future__ import annotations`: to read annotations that are strings, jsonargparse would execute the imports
# under TYPE_CHECKING, and `--help` would wait for torch.

import math
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tightframe.errors import ConfigError, check_positive

if TYPE_CHECKING:
    from jsonargparse import ArgumentParser


@dataclass
class Part:
    """A class or a function, and its arguments.

    Args:
        name: Name of a class of this package, or of PyTorch where it fits, or the dotted path of any other. Where a
            frame is wanted, a function that is annotated to return one will do.
        args: Arguments by name. Required ones that the rest of the recipe decides (num_classes, dim, in_features,
            class_counts, ...) are filled in, and so are optional ones set to ``auto``, such as ``seed: auto``. An
            argument that is a frame is a part too; a name alone is a part without arguments.
    """

    name: str
    args: dict[str, Any] = field(default_factory=dict)


@dataclass
class Method:
    """One row of a comparison.

    Args:
        classifier: Map from features to logits.
        loss: Loss of logits and labels, or a ``FeatureLoss``.
        dim: Feature dimension for a backbone with ``dim: auto``: a number, ``classes`` (K, the default),
            ``classes-1``, or ``nodes`` for the number of nodes of the hierarchy without the root.
        hierarchy: File with another hierarchy for this classifier and loss; evaluation keeps that of the recipe.
        adaptive: Arguments of ``AdaptiveETF``, which locks the layers beyond the effective depth; None trains them
            all. Draws depend on the seed of the run if none is given, here and in ``etf_transformer``.
        etf_transformer: Arguments of ``etf_transformer_``, which locks feed-forward layers of the backbone from the
            start.
        backbone: Arguments of the backbone that differ from the recipe's, for a control such as a shallower one.
    """

    classifier: Part
    loss: Part = field(default_factory=lambda: Part("CrossEntropyLoss"))
    dim: int | str | None = None
    hierarchy: str | None = None
    adaptive: dict[str, Any] | None = None
    etf_transformer: dict[str, Any] | None = None
    backbone: dict[str, Any] = field(default_factory=dict)


@dataclass
class Recipe:
    """An experiment. Methods differ in what they say and share everything else.

    Paths are relative to the recipe's file; on the command line, to the working directory.

    Args:
        data: Source of the samples.
        backbone: Map from inputs to features.
        methods: Classifier and loss of each method, by the name that tables show; names differ in more than capital
            letters and are those of directories on every system.
        optimizer: Optimizer.
        epochs: Number of passes over the training set.
        batch_size: Samples of a step, over all processes together.
        scheduler: Schedule of the learning rate, advanced every step; its horizon is filled in.
        mixup_alpha: Parameter of Beta(alpha, alpha), the share in which pairs of inputs are mixed; 0 is off.
        hierarchy: File with a hierarchy of the classes, for :meth:`tightframe.hierarchy.Tree.read`; None takes that of
            the data, if it has one. Classifiers and losses get its ``tree`` and ``distances``, evaluation its metrics.
        transform: Map of a batch of inputs in front of the backbone, for normalisation and augmentation.
        collapse: Arguments of ``NeuralCollapseCallback``, which say what to measure, and when.
        trainer: Arguments of Lightning's ``Trainer``, such as precision or accelerator.
        num_threads: Number of CPU threads of a tensor operation; small networks are fastest, and their results
            steadiest, on one.
        description: Purpose of the recipe, in a sentence or two.
        paper: Source of the recipe and the numbers printed there.
    """

    data: Part
    backbone: Part
    methods: dict[str, Method]
    optimizer: Part
    epochs: int
    batch_size: int
    scheduler: Part | None = None
    mixup_alpha: float = 0.0
    hierarchy: str | None = None
    transform: Part | None = None
    collapse: dict[str, Any] = field(default_factory=dict)
    trainer: dict[str, Any] = field(default_factory=dict)
    num_threads: int | None = None
    description: str = ""
    paper: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Check names and numbers, so that a mistake is found before anything is read or written."""
        from tightframe.runs.layout import check_names  # imports torch

        check_positive("epochs", self.epochs)
        check_positive("batch_size", self.batch_size)
        if self.num_threads is not None:
            check_positive("num_threads", self.num_threads)
        if not (self.mixup_alpha == 0 or 1e-30 <= self.mixup_alpha < math.inf):  # draws are float32
            raise ConfigError(f"mixup_alpha must be >= 0, finite, and at least 1e-30 if not 0, got {self.mixup_alpha}")
        if not self.methods:
            raise ConfigError("methods must name at least one method, got none")
        check_names(self.methods)


def shipped_recipes() -> dict[str, Path]:
    """Return the paths of the recipes in this package by name."""
    root = resources.files("tightframe") / "recipes"
    return {p.stem: p for p in sorted(Path(str(root)).glob("*.yaml"))}


def find_recipe(name: str) -> Path:
    """Return the path of a recipe given by its shipped name or as a file.

    Raises:
        ConfigError: if it is neither.
    """
    if Path(name).suffix in (".yaml", ".yml"):
        if not Path(name).is_file():
            raise ConfigError(f"recipe file {name} does not exist")
        return Path(name)
    shipped = shipped_recipes()
    if name not in shipped:
        raise ConfigError(f"recipe must be a .yaml file or one of {', '.join(shipped)}, got {name!r}")
    return shipped[name]


def recipe_parser(**options: Any) -> "ArgumentParser":
    """Return a parser with an option for every key of a recipe; ``options`` are arguments of ``ArgumentParser``."""
    from jsonargparse import ArgumentParser

    parser = ArgumentParser(exit_on_error=False, **options)
    parser.add_class_arguments(Recipe, fail_untyped=False)
    return parser
