"""NeuralCollapseCallback: measure collapse while any Lightning Trainer trains any model."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities.seed import isolate_rng
from torch import Tensor, nn
from torch.utils.data import DataLoader

from tightframe._checks import ArgumentError, check_choice, check_positive
from tightframe.functional import PRESETS, ClassMoments
from tightframe.probing import (
    FEATURES,
    Measurement,
    find_classifier,
    gather,
    layer_metrics,
    num_outputs,
    sample_metrics,
)
from tightframe.records import Record, Records
from tightframe.snapshots import Snapshot
from tightframe.training.loaders import evaluation_loader
from tightframe.training.module import ClassifierModule

SNAPSHOT_CLASSES = 4
SNAPSHOT_SAMPLES = 40


class NeuralCollapseCallback(Callback):
    """Measures the collapse of a model's layers on a schedule, in one pass over each split.

    ``Trainer(callbacks=[NeuralCollapseCallback()])`` is all a model needs whose batches are ``(inputs, labels)`` and
    whose ``forward`` returns logits. Every measurement runs in eval mode at one snapshot of the weights, visits each
    sample once, whatever the shuffling, and leaves weights, modes and random numbers as they were. Under DDP each rank
    visits its share and the moments are reduced.

    The rows are in :attr:`records`, which a checkpoint keeps, and are logged as ``split/layer/metric``.

    Args:
        layers: dotted names of modules whose inputs are measured too, beside the classifier's, called ``features``; or
            patterns as in :func:`tightframe.probing.match_layers`.
        every_n_epochs: measure before training, after every so many epochs and after the last.
        every_n_steps: measure after every so many steps instead.
        splits: which of ``train``, ``validation``: the loaders that the Trainer has. Several validation loaders are
            called as a :class:`ClassifierModule` says, else ``validation.0``, ``validation.1`` and so on.
        scatter: gather ``(d, d)`` scatters, which ``nc1.pinv`` and ``vci`` need.
        preset: see :func:`tightframe.functional.collapse_metrics`; None measures everything.
        hold_bytes: memory for the features that metrics with a second look at the samples need, and as much again for
            those of ``layers`` (``ncc.error``); a split that takes more goes without them.
        batch_size: samples of a batch in these passes.
        num_classes: K; None takes it from the classifier.
        forward: how to run the module on the inputs of a batch; ``module(inputs)`` by default.
        snapshot_dir: where to write a :class:`Snapshot` at every measurement, for the report's pictures; None for none.
    """

    def __init__(
        self,
        *,
        layers: Sequence[str] = (),
        every_n_epochs: int = 1,
        every_n_steps: int | None = None,
        splits: Sequence[str] = ("train", "validation"),
        scatter: bool = True,
        preset: str | None = None,
        hold_bytes: int = 2**28,
        batch_size: int = 512,
        num_classes: int | None = None,
        forward: Callable[[nn.Module, Any], Any] | None = None,
        snapshot_dir: str | os.PathLike[str] | None = None,
    ) -> None:
        check_positive("every_n_epochs", every_n_epochs)
        check_positive("batch_size", batch_size)
        if every_n_steps is not None:
            check_positive("every_n_steps", every_n_steps)
        for split in splits:
            check_choice("splits", split, ("train", "validation"))
        if preset is not None:
            check_choice("preset", preset, PRESETS)
        self.layers = list(layers)
        self.every_n_epochs = every_n_epochs
        self.every_n_steps = every_n_steps
        self.splits = tuple(splits)
        self.scatter = scatter
        self.preset = preset
        self.hold_bytes = hold_bytes
        self.batch_size = batch_size
        self.num_classes = num_classes
        self.forward = forward
        self.snapshot_dir = None if snapshot_dir is None else Path(snapshot_dir)
        self.records = Records()
        self._measured_step = -1

    @property
    def state_key(self) -> str:
        """Name of the state in a checkpoint: callbacks that measure other things have their own."""
        options = ("layers", "every_n_epochs", "every_n_steps", "splits", "scatter", "preset")
        return f"{type(self).__name__}{ {name: getattr(self, name) for name in options} }"

    def state_dict(self) -> dict[str, Any]:
        """Return the rows so far, for the checkpoint."""
        return {"records": [record.to_json() for record in self.records], "measured_step": self._measured_step}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take the rows of a checkpoint back."""
        self.records = Records(map(Record.from_json, state_dict["records"]))
        self._measured_step = state_dict["measured_step"]

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Measure the untrained model."""
        if trainer.global_step == 0:
            self._measure(trainer, pl_module, epoch=0)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Measure on a step schedule."""
        new = trainer.global_step != self._measured_step
        if self.every_n_steps and new and trainer.global_step % self.every_n_steps == 0:
            self._measure(trainer, pl_module, epoch=trainer.current_epoch)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Measure on an epoch schedule."""
        epoch = trainer.current_epoch + 1
        if self.every_n_steps is None and (epoch % self.every_n_epochs == 0 or epoch == trainer.max_epochs):
            self._measure(trainer, pl_module, epoch)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Measure what training ended with, if it ended early."""
        if self.every_n_steps is None and trainer.global_step != self._measured_step:
            self._measure(trainer, pl_module, trainer.current_epoch)

    def _measure(self, trainer: Trainer, module: LightningModule, epoch: int) -> None:
        self._measured_step = trainer.global_step
        name = find_classifier(module)
        classifier = module.get_submodule(name)
        layers = [*(layer for layer in self.layers if layer != name), name]
        num_classes = self.num_classes or num_outputs(classifier)
        train: Measurement | None = None
        with isolate_rng(include_cuda=False):
            for split, loader in self._loaders(trainer, module):
                batches = evaluation_loader(loader, self.batch_size, trainer.global_rank, trainer.world_size)
                hold = self.hold_bytes if self.preset is None else 0
                measured = gather(
                    module,
                    batches,
                    layers,
                    num_classes,
                    scatter=self.scatter,
                    hold_bytes=hold,
                    forward=forward_in_precision(trainer, self.forward),
                )
                if trainer.world_size > 1:
                    for moments in measured.moments.values():
                        moments.all_reduce_()
                if split == "train":
                    train = measured
                self._record(trainer, module, epoch, split, measured, train, name)
        if train is not None and self.snapshot_dir is not None and trainer.is_global_zero:
            self._snapshot(epoch, classifier, train, name)

    def _loaders(self, trainer: Trainer, module: LightningModule) -> list[tuple[str, Any]]:
        """Return the loaders to visit by split, the training set first."""
        found: list[tuple[str, Any]] = []
        if "train" in self.splits:
            found.append(("train", training_loader(trainer)))
        evaluation = trainer.val_dataloaders
        if "validation" in self.splits and evaluation is not None:
            loaders = evaluation if isinstance(evaluation, list) else [evaluation]
            default = ["validation"] if len(loaders) == 1 else [f"validation.{i}" for i in range(len(loaders))]
            names = module.splits if isinstance(module, ClassifierModule) else default
            found += zip(names, loaders, strict=True)
        return found

    def _record(
        self,
        trainer: Trainer,
        module: LightningModule,
        epoch: int,
        split: str,
        measured: Measurement,
        train: Measurement | None,
        classifier_name: str,
    ) -> None:
        classifier = module.get_submodule(classifier_name)
        looks: dict[str, dict[str, float]] = {}
        if train is not None and self.preset is None and self.hold_bytes:
            looks = _second_looks(measured, train.moments, classifier, classifier_name, module.device)
        for name, moments in measured.moments.items():
            is_classifier = name == classifier_name
            values = layer_metrics(moments, classifier if is_classifier else None, preset=self.preset)
            values |= looks.get(name, {})
            layer = FEATURES if is_classifier else name
            for metric, value in values.items():
                self.records.add(metric, value, epoch=epoch, step=trainer.global_step, split=split, layer=layer)
            for logger in trainer.loggers:
                logger.log_metrics({f"{split}/{layer}/{m}": v for m, v in values.items()}, step=trainer.global_step)

    def _snapshot(self, epoch: int, classifier: nn.Module, train: Measurement, name: str) -> None:
        look = train.second_look()
        weight = getattr(classifier, "weight", None)
        if look is None or not isinstance(weight, Tensor) or self.snapshot_dir is None:
            return
        features, _, labels = look
        chosen = [(labels == k).nonzero().squeeze(1)[:SNAPSHOT_SAMPLES] for k in range(SNAPSHOT_CLASSES)]
        index = torch.cat(chosen)
        moments = train.moments[name]
        means = moments.mean.where(moments.present.unsqueeze(1), torch.nan)
        Snapshot(epoch, means.float(), weight.detach().float(), features[index].float(), labels[index]).save(
            self.snapshot_dir
        )


def training_loader(trainer: Trainer) -> DataLoader[Any]:
    """Return the loader of the training set.

    Raises:
        ArgumentError: if there are several, or it is no ``DataLoader``.
    """
    loader = trainer.train_dataloader
    if not isinstance(loader, DataLoader):
        raise ArgumentError(f"the Trainer's training loader must be one DataLoader, got {type(loader).__name__}")
    return loader


def forward_in_precision(
    trainer: Trainer, forward: Callable[[nn.Module, Any], Any] | None = None
) -> Callable[[nn.Module, Any], Any]:
    """Return how to run a module on inputs, in the precision of the training; ``module(inputs)`` by default."""
    precision = trainer.precision_plugin

    def run(module: nn.Module, inputs: Any) -> Any:
        with precision.forward_context():
            inputs = precision.convert_input(inputs)
            return module(inputs) if forward is None else forward(module, inputs)

    return run


def _second_looks(
    measured: Measurement,
    train: Mapping[str, ClassMoments],
    classifier: nn.Module,
    classifier_name: str,
    device: torch.device,
) -> dict[str, dict[str, float]]:
    """Return the metrics of samples by layer, over all ranks."""
    look = measured.second_look()
    of_classifier = {} if look is None else sample_metrics(*look, train[classifier_name], classifier)
    size = int(sum(batch.labels.numel() for batch in measured.held_layers.batches))
    errors = _over_ranks(measured.ncc_errors(train), size, device)
    return {
        classifier_name: _over_ranks(of_classifier, 0 if look is None else look[2].numel(), device),
        **{name: {"ncc.error": error} for name, error in errors.items()},
    }


def _over_ranks(values: dict[str, float], size: int, device: torch.device) -> dict[str, float]:
    """Return the averages over the samples of all ranks, or none if one rank did not hold its samples."""
    if not (dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1):
        return values
    holding = torch.tensor(float(bool(values)), device=device)
    dist.all_reduce(holding, op=dist.ReduceOp.MIN)
    if not holding:
        return {}
    packed = torch.tensor([*(v * size for v in values.values()), size], dtype=torch.float64, device=device)
    dist.all_reduce(packed)
    return dict(zip(values, (packed[:-1] / packed[-1]).tolist(), strict=True))
