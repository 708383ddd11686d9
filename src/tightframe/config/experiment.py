"""Experiment: the data, the hierarchies and the modules that a recipe describes, made once."""

from __future__ import annotations

import copy
import glob
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from tightframe.config.bind import bind, check_trusted, checked, find, path_arguments
from tightframe.config.recipe import Part, Recipe
from tightframe.errors import ConfigError, TightframeError

if TYPE_CHECKING:
    from tightframe.data import ClassificationData
    from tightframe.hierarchy import Tree
    from tightframe.training import ClassifierModule

OPTIMIZERS = ("tightframe.training", "torch.optim")


@dataclass(frozen=True)
class Experiment:
    """Data, hierarchies and modules of a recipe; :func:`build` makes it.

    Args:
        recipe: Recipe.
        data: Data.
        trees: Hierarchy of the classes under the name ``""``, if there is one, and those of single methods.
    """

    recipe: Recipe
    data: ClassificationData
    trees: Mapping[str, Tree]

    @property
    def tree(self) -> Tree | None:
        """Hierarchy that judges every method, if there is one."""
        return self.trees.get("")

    @property
    def evaluation(self) -> dict[str, Any]:
        """Parts to evaluate by the name of their split."""
        parts = {"validation": self.data.validation, "test": self.data.test}
        return {name: part for name, part in parts.items() if part is not None}

    @property
    def sources(self) -> dict[str, Path]:
        """Files and folders that were read, by the key of the recipe that names them."""
        recipe = self.recipe
        named: dict[str, Any] = {f"methods.{name}.hierarchy": m.hierarchy for name, m in recipe.methods.items()}
        named["hierarchy"] = recipe.hierarchy
        for argument in path_arguments(recipe.data.name):
            paths = recipe.data.args.get(argument)
            for path in map(str, paths if isinstance(paths, list) else [paths]):
                for found in [path] if Path(path).exists() else glob.glob(path):
                    named[f"data.args.{argument} ({Path(found).name})"] = found
        return {key: Path(path) for key, path in named.items() if path is not None and Path(path).exists()}

    def module(self, method: str, seed: int) -> ClassifierModule:
        """Return backbone, classifier, loss and optimizer of a method; a seed gives all methods the same backbone.

        Raises:
            ConfigError: if a part cannot be bound.
        """
        import torch
        from torch import nn

        from tightframe.nn import Classifier
        from tightframe.training import AGD, ClassifierModule, scaled_orthogonal_

        recipe, data = self.recipe, self.data
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
        tree = self.trees.get(method, self.tree)
        if tree is not None:
            given |= {"tree": tree, "distances": tree.distances(), "heights": tree.distances("height")}
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
            raise ConfigError(f"backbone.name: {part.name} has no integer out_features, the feature dimension d")
        if chosen.dim is not None and dim != sizes["dim"]:
            raise ConfigError(
                f"{where}.dim is {sizes['dim']} but the backbone gives {dim} features; let its dim be auto"
            )
        room = ("tightframe.nn",)
        classifier = bind(chosen.classifier, room, Classifier, f"{where}.classifier", {**given, "dim": dim})
        loss = bind(chosen.loss, ("tightframe.nn", "torch.nn"), nn.Module, f"{where}.loss", given)
        if issubclass(find(recipe.optimizer.name, OPTIMIZERS, "optimizer"), AGD):
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
            splits=list(self.evaluation),
            seed=seed,
            distances=None if self.tree is None else self.tree.distances(),
        )


def build(
    recipe: Recipe,
    methods: Iterable[str] | None = None,
    *,
    data: ClassificationData | None = None,
    trees: Mapping[str, Tree] = MappingProxyType({}),
    trust: bool = False,
) -> Experiment:
    """Load data and hierarchies, and make every object of a training once, so that mistakes show before the first one.

    Args:
        recipe: Recipe.
        methods: Methods to check; None checks all.
        data: Data to use in place of the recipe's source; None loads that.
        trees: Hierarchies that are known, as :class:`Experiment` holds them; the others are read from their files.
        trust: Whether the recipe may name classes outside tightframe and PyTorch, whose modules are then imported.

    Raises:
        ConfigError: if a part cannot be made or is not trusted, if a batch does not pass through it, or if the Trainer
            or a callback refuses its arguments.
        DataFileError: if data or a hierarchy cannot be read.
    """
    from tightframe.data import DataSource
    from tightframe.training import AdaptiveETF, NeuralCollapseCallback, check_options
    from tightframe.training.run import Trainer

    if not trust:
        check_trusted(asdict(recipe), "the recipe")
    if data is None:
        data = bind(recipe.data, ("tightframe.data",), DataSource, "data").load()
    experiment = Experiment(recipe, data, _read_trees(recipe, data, trees))
    if recipe.mixup_alpha and not data.train[0][0].is_floating_point():
        raise ConfigError(f"mixup_alpha must be 0: inputs of type {data.train[0][0].dtype} cannot be mixed")
    steps = recipe.epochs * max(1, len(data.train) // recipe.batch_size)  # type: ignore[arg-type]  # it is sized
    collapse = checked(NeuralCollapseCallback, recipe.collapse, "collapse")
    checked(Trainer, {key: value for key, value in recipe.trainer.items() if key != "logger"}, "trainer")
    for method in recipe.methods if methods is None else methods:
        module = experiment.module(method, seed=0)
        _check_batch(module, data, method)
        if recipe.batch_size == 1 or len(data.train) % recipe.batch_size == 1:  # type: ignore[arg-type]
            _check_single(module, data, recipe.batch_size)
        optimizer = _optimizer(recipe.optimizer)(module.parameters())
        if recipe.scheduler is not None:
            _scheduler(recipe.scheduler)(optimizer, steps)
        adaptive = checked(AdaptiveETF, recipe.methods[method].adaptive or {}, f"methods.{method}.adaptive")
        try:
            check_options(collapse, recipe.trainer, adaptive)
        except TightframeError:
            raise
        except Exception as error:  # Lightning refuses arguments with exceptions of many kinds
            raise ConfigError(f"collapse, trainer or adaptive: {' '.join(str(error).split())}") from error
    return experiment


def _check_batch(module: ClassifierModule, data: ClassificationData, method: str) -> None:
    """Pass two samples through a module in eval mode, whose errors then name the method."""
    import torch

    samples = [data.train[i] for i in range(min(2, len(data.train)))]  # type: ignore[arg-type]  # it is sized
    inputs = torch.stack([torch.as_tensor(sample[0]) for sample in samples])
    labels = torch.as_tensor([int(sample[1]) for sample in samples])
    try:
        with torch.no_grad():
            module.eval().logits_and_loss(module.backbone(inputs), labels)
    except TightframeError:
        raise
    except Exception as error:  # whatever a layer of any package says of its inputs
        raise ConfigError(
            f"methods.{method}: inputs of type {inputs.dtype} and shape {tuple(inputs.shape)} do not pass through "
            f"backbone, classifier and loss: {' '.join(str(error).split())[:300]}"
        ) from error
    finally:
        module.train()


def _check_single(module: ClassifierModule, data: ClassificationData, batch_size: int) -> None:
    """Pass one sample through a backbone in training mode, as a batch of one would be."""
    import torch

    backbone = copy.deepcopy(module.backbone).train()
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            backbone(torch.as_tensor(data.train[0][0]).unsqueeze(0))
    except ValueError as error:  # of batch norm
        raise ConfigError(
            f"batch_size {batch_size} leaves a batch of one of {len(data.train)} samples, "  # type: ignore[arg-type]
            f"which the backbone does not take: {error}"
        ) from error


def _read_trees(recipe: Recipe, data: ClassificationData, known: Mapping[str, Tree]) -> dict[str, Tree]:
    from tightframe.hierarchy import Tree

    trees = dict(known)
    files = {"": recipe.hierarchy, **{name: method.hierarchy for name, method in recipe.methods.items()}}
    for name, path in files.items():
        if path is not None and name not in trees:
            trees[name] = Tree.read(path, data.class_names, prune=True)
    if "" not in trees and data.paths is not None:
        trees[""] = Tree.from_paths(data.paths)
    return trees


def _lock_feed_forward(backbone: Any, args: dict[str, Any], where: str) -> None:
    from tightframe.surgery import etf_transformer_

    try:
        etf_transformer_(backbone, **args)
    except TypeError as error:  # an unknown argument
        raise ConfigError(f"{where}: {error}") from error


def _dimension(wanted: int | str | None, num_classes: int, tree: Tree | None, where: str) -> int:
    named = {None: num_classes, "classes": num_classes, "classes-1": num_classes - 1}
    if tree is not None:
        named["nodes"] = len(tree.names) - 1
    if wanted in named:
        return named[wanted]
    if isinstance(wanted, bool) or not isinstance(wanted, int) or wanted < 1:
        names = ", ".join(map(str, list(named)[1:]))
        raise ConfigError(f"{where} must be an integer >= 1 or one of {names}, got {wanted!r}")
    return wanted


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
