"""Recipes: YAML that names classes and their arguments, checked and bound here and nowhere else."""

# No `from __future__ import annotations`: to read annotations that are strings, jsonargparse would execute the imports
# under TYPE_CHECKING, and `--help` would wait for torch.

import importlib
import inspect
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tightframe.errors import ConfigError, TightframeError, check_positive

if TYPE_CHECKING:
    from tightframe.data import ClassificationData
    from tightframe.hierarchy import Tree
    from tightframe.training import ClassifierModule


AUTO = "auto"
OPTIMIZERS = ("tightframe.training", "torch.optim")


@dataclass
class Part:
    """A class and its arguments.

    Args:
        name: of a class of this package, of PyTorch where it fits, or the dotted path of any other.
        args: its arguments by name. Required ones that the rest of the recipe decides (num_classes, dim, in_features,
            class_counts, ...) are filled in, and so are optional ones set to ``auto``, such as ``seed: auto``.
    """

    name: str
    args: dict[str, Any] = field(default_factory=dict)


@dataclass
class Method:
    """One row of a comparison.

    Args:
        classifier: from features to logits.
        loss: of logits and labels, or a ``FeatureLoss``.
        dim: feature dimension for a backbone with ``dim: auto``: a number, ``classes`` (K, as without it),
            ``classes-1``, or ``nodes`` of the hierarchy, the root left out.
        hierarchy: file with another hierarchy for this classifier and loss, evaluation keeping that of the recipe.
        adaptive: arguments of ``AdaptiveETF``: lock the layers beyond the effective depth; None trains them all. Draws
            depend on the seed of the run if none is given, here and in ``etf_transformer``.
        etf_transformer: arguments of ``etf_transformer_``: lock feed-forward layers of the backbone from the start.
        backbone: arguments of the backbone that differ from the recipe's, as for a control that is shallower.
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
    """What to run. Methods share everything but classifier and loss, and what they say differs.

    Args:
        data: where samples come from.
        backbone: from inputs to features.
        methods: classifier and loss of each, by the name that tables show.
        optimizer: builds the optimiser.
        epochs: passes over the training set.
        batch_size: samples a step, over all processes together.
        scheduler: of the learning rate, stepped every step; its horizon is filled in.
        mixup_alpha: inputs are mixed in pairs with a share from Beta(alpha, alpha); 0 is off.
        hierarchy: file with a hierarchy of the classes, for :meth:`tightframe.hierarchy.Tree.read`; None takes that of
            the data, if it has one. Classifiers and losses get its ``tree`` and ``distances``, evaluation its metrics.
        transform: of a batch of inputs, in front of the backbone: normalisation and augmentation.
        collapse: arguments of ``NeuralCollapseCallback``: what to measure, and when.
        trainer: arguments of Lightning's ``Trainer``, such as precision or accelerator.
        num_threads: CPU threads of a tensor operation; small networks are fastest, and their results steadiest, on one.
        description: what the recipe shows, in a sentence or two.
        paper: where the recipe comes from and the numbers printed there.
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
        """Check the numbers, so that a mistake is found before anything is read or written."""
        check_positive("epochs", self.epochs)
        check_positive("batch_size", self.batch_size)
        if self.num_threads is not None:
            check_positive("num_threads", self.num_threads)
        if not self.mixup_alpha >= 0:
            raise ConfigError(f"mixup_alpha must be >= 0, got {self.mixup_alpha}")
        if not self.methods:
            raise ConfigError("methods must name at least one method, got none")


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


def bind(part: Part, rooms: tuple[str, ...], base: type, where: str, given: Mapping[str, Any] | None = None) -> Any:
    """Make the object that a part names.

    Args:
        part: class and arguments.
        rooms: modules in which a name without dots is looked up.
        base: what the class must derive from.
        where: key of the part in the recipe, for errors.
        given: arguments that the rest of the recipe decides, for parameters that are required or set to ``auto``.

    Raises:
        ConfigError: if the class is unknown, of the wrong kind, or an argument is.
    """
    cls = _find_class(part.name, rooms, where)
    if not issubclass(cls, base):
        raise ConfigError(f"{where}.name must be a {base.__name__}, got {part.name}")
    parameters = inspect.signature(cls).parameters
    own = {name: value for name, value in part.args.items() if value != AUTO}
    arguments = _checked(cls, own, where)
    for name, parameter in parameters.items():
        required = parameter.default is parameter.empty and parameter.kind not in (
            parameter.VAR_POSITIONAL,
            parameter.VAR_KEYWORD,
        )
        if name in own or not (required or name in part.args):
            continue
        if name not in (given or {}):
            raise ConfigError(f"{where}.args must set {name} for {part.name}: nothing else decides it")
        arguments[name] = (given or {})[name]
    try:
        return cls(**arguments)
    except TightframeError:
        raise
    except Exception as error:  # whatever a class of any package says of its arguments
        raise ConfigError(f"{where}: {part.name} cannot be made: {error}") from error


def build_data(recipe: Recipe) -> "ClassificationData":
    """Load the data of a recipe."""
    from tightframe.data import DataSource

    data: ClassificationData = bind(recipe.data, ("tightframe.data",), DataSource, "data").load()
    return data


def check_bindings(recipe: Recipe, data: "ClassificationData", methods: Iterable[str]) -> None:
    """Make everything that the runs of some methods will make, so that a mistake shows before the first of them.

    Raises:
        ConfigError: if a part cannot be made, or the Trainer or the collapse callback refuse their arguments.
    """
    from tightframe.training import check_options

    if recipe.mixup_alpha and not data.train[0][0].is_floating_point():
        raise ConfigError(f"mixup_alpha must be 0: inputs of type {data.train[0][0].dtype} cannot be mixed")
    steps = recipe.epochs * max(1, len(data.train) // recipe.batch_size)  # type: ignore[arg-type]  # it is sized
    for method in methods:
        module = build_module(recipe, method, data, seed=0)
        optimizer = _optimizer(recipe.optimizer)(module.parameters())
        if recipe.scheduler is not None:
            _scheduler(recipe.scheduler)(optimizer, steps)
    try:
        for method in methods:
            check_options(recipe.collapse, recipe.trainer, recipe.methods[method].adaptive)
    except TightframeError:
        raise
    except Exception as error:  # Lightning refuses arguments with exceptions of many kinds
        raise ConfigError(f"collapse, trainer or adaptive: {' '.join(str(error).split())}") from error


def build_module(recipe: Recipe, method: str, data: "ClassificationData", seed: int) -> "ClassifierModule":
    """Build backbone, classifier, loss and optimiser of one method; the same seed gives all methods the same backbone.

    Raises:
        ConfigError: if a part cannot be bound.
    """
    import torch
    from torch import nn

    from tightframe.nn import Classifier
    from tightframe.training import AGD, ClassifierModule, scaled_orthogonal_

    if recipe.num_threads is not None:
        torch.set_num_threads(recipe.num_threads)
    torch.manual_seed(seed)
    given: dict[str, Any] = {
        "num_classes": data.num_classes,
        "class_counts": data.class_counts,
        "epochs": recipe.epochs,
        "seed": seed,
    }
    chosen = recipe.methods[method]
    where = f"methods.{method}"
    judge = build_tree(recipe, data)
    tree = judge if chosen.hierarchy is None else _read_tree(chosen.hierarchy, data)
    if tree is not None:
        given |= {"tree": tree, "distances": tree.distances()}
    sample = torch.as_tensor(data.train[0][0])
    transform = None
    if recipe.transform is not None:
        transform = bind(recipe.transform, ("tightframe.training", "torch.nn"), nn.Module, "transform", given)
        sample = transform.eval()(sample.unsqueeze(0)).squeeze(0)
        transform.train()
    sizes = {
        "in_features": sample.numel(),
        "in_channels": sample.shape[0] if sample.ndim else 1,
        "dim": _dimension(chosen.dim, data.num_classes, tree, f"{where}.dim"),
        "num_samples": len(data.train),  # type: ignore[arg-type]  # it is sized
    }
    part = Part(recipe.backbone.name, {**recipe.backbone.args, **chosen.backbone})
    named = f"backbone with {where}.backbone" if chosen.backbone else "backbone"
    backbone = bind(part, ("tightframe.training", "torch.nn"), nn.Module, named, {**given, **sizes})
    dim = getattr(backbone, "out_features", None)
    if not isinstance(dim, int):
        raise ConfigError(f"backbone.name: {recipe.backbone.name} has no integer out_features, the feature dimension d")
    if chosen.dim is not None and dim != sizes["dim"]:
        raise ConfigError(f"{where}.dim is {sizes['dim']} but the backbone gives {dim} features; let its dim be auto")
    room = ("tightframe.nn",)
    classifier = bind(chosen.classifier, room, Classifier, f"{where}.classifier", {**given, "dim": dim})
    loss = bind(chosen.loss, ("tightframe.nn", "torch.nn"), nn.Module, f"{where}.loss", given)
    if issubclass(_find_class(recipe.optimizer.name, OPTIMIZERS, "optimizer"), AGD):
        scaled_orthogonal_([*backbone.parameters(), *classifier.parameters()], seed)
        classifier.project_()
    if chosen.etf_transformer is not None:
        _lock_feed_forward(backbone, {"seed": seed, **chosen.etf_transformer}, f"{where}.etf_transformer")
    return ClassifierModule(
        backbone if transform is None else nn.Sequential(transform, backbone),
        classifier,
        loss,
        _optimizer(recipe.optimizer),
        None if recipe.scheduler is None else _scheduler(recipe.scheduler),
        mixup_alpha=recipe.mixup_alpha,
        splits=list(evaluation_parts(data)),
        seed=seed,
        distances=None if judge is None else judge.distances(),
    )


def _lock_feed_forward(backbone: Any, args: dict[str, Any], where: str) -> None:
    from tightframe.surgery import etf_transformer_

    try:
        etf_transformer_(backbone, **args)
    except TypeError as error:  # an unknown argument
        raise ConfigError(f"{where}: {error}") from error


def _dimension(wanted: int | str | None, num_classes: int, tree: "Tree | None", where: str) -> int:
    named = {None: num_classes, "classes": num_classes, "classes-1": num_classes - 1}
    if tree is not None:
        named["nodes"] = len(tree.names) - 1
    if wanted in named:
        return named[wanted]
    if isinstance(wanted, bool) or not isinstance(wanted, int) or wanted < 1:
        names = ", ".join(map(str, list(named)[1:]))
        raise ConfigError(f"{where} must be an integer >= 1 or one of {names}, got {wanted!r}")
    return wanted


def build_tree(recipe: Recipe, data: "ClassificationData") -> "Tree | None":
    """Return the hierarchy of the classes, if the recipe or the data have one.

    Raises:
        DataFileError: if the recipe's file cannot be read, or is no tree over the classes of the data.
    """
    from tightframe.hierarchy import Tree

    if recipe.hierarchy is not None:
        return _read_tree(recipe.hierarchy, data)
    return None if data.paths is None else Tree.from_paths(data.paths)


def _read_tree(path: str, data: "ClassificationData") -> "Tree":
    from tightframe.hierarchy import Tree

    return Tree.read(path, data.class_names, prune=True)


def evaluation_parts(data: "ClassificationData") -> dict[str, Any]:
    """Return the parts to evaluate by split name."""
    parts = {"validation": data.validation, "test": data.test}
    return {name: part for name, part in parts.items() if part is not None}


def _optimizer(part: Part) -> Callable[[Any], Any]:
    import torch

    def build(parameters: Any) -> Any:
        return bind(part, OPTIMIZERS, torch.optim.Optimizer, "optimizer", {"params": parameters})

    return build


def _scheduler(part: Part) -> Callable[[Any, int], Any]:
    import torch

    def build(optimizer: Any, steps: int) -> Any:
        given = {"optimizer": optimizer, "total_steps": steps, "T_max": steps, "total_iters": steps}
        base = torch.optim.lr_scheduler.LRScheduler
        return bind(part, ("torch.optim.lr_scheduler",), base, "scheduler", given)

    return build


def _find_class(name: str, rooms: tuple[str, ...], where: str) -> type:
    module, _, attribute = name.rpartition(".")
    candidates = [module] if module else list(rooms)
    for candidate in candidates:
        try:
            found = getattr(importlib.import_module(candidate), attribute, None)
        except ImportError as error:
            raise ConfigError(f"{where}.name: {candidate} cannot be imported: {error}") from error
        if inspect.isclass(found):
            return found
    raise ConfigError(f"{where}.name: no class {attribute!r} in {', '.join(candidates)}")


def _checked(cls: type, args: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Check arguments against the signature's types, as far as jsonargparse understands these."""
    import jsonargparse

    parser = jsonargparse.ArgumentParser(exit_on_error=False)
    accepted = list(inspect.signature(cls).parameters)
    unknown = sorted(set(args) - set(accepted))
    if unknown:
        raise ConfigError(
            f"{where}.args: {cls.__name__} takes no {', '.join(map(repr, unknown))}; it takes {', '.join(accepted)}"
        )
    parser.add_class_arguments(cls, skip=set(accepted) - set(args), fail_untyped=False, sub_configs=False)
    try:
        parsed = parser.parse_object(dict(args), defaults=False)
    except jsonargparse.ArgumentError as error:
        raise ConfigError(f"{where}.args: {' '.join(str(error).split())}") from error
    return {name: parsed[name] for name in args}
