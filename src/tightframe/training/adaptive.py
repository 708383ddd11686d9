"""AdaptiveETF: lock the layers beyond the effective depth to simplex ETFs while any Lightning Trainer trains."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.strategies import DDPStrategy, SingleDeviceStrategy
from torch import Tensor, nn

from tightframe.errors import ArgumentError, TightframeError, check_choice, check_positive, check_range
from tightframe.probing import LayerCurves, effective_depth, probe_layers
from tightframe.probing.batches import split_batch
from tightframe.probing.split import together
from tightframe.surgery import Fix, Lock, lock_beyond, parameter_report, reestimate_batch_norm
from tightframe.surgery.batch_norm import batch_norms
from tightframe.surgery.locking import as_fix, check_optimizer, lockable, trained_beyond
from tightframe.training.collapse import MeasuringCallback
from tightframe.training.module import ClassifierModule, total_steps


@dataclass
class LockProgress:
    """State of :class:`AdaptiveETF` in a training, which a checkpoint keeps beside the rows.

    Args:
        locked: Names of the layers that were locked, in that order.
        layers: Names of the layers 1..L.
        num_classes: Number K of classes of the training data.
        boundary: Number of layers that are not locked; 0 before the first step.
        window: Depths of the last checks in a row that were below the boundary.
        schedule_step: Step of the optimizer at which the present schedule began.
        first_weights: Weights to come back to after the first stage.
    """

    locked: list[str] = field(default_factory=list)
    layers: list[str] = field(default_factory=list)
    num_classes: int = 0
    boundary: int = 0
    window: list[int] = field(default_factory=list)
    schedule_step: int = 0
    first_weights: dict[str, Tensor] = field(default_factory=dict)


class AdaptiveETF(MeasuringCallback):
    r"""Locks every linear map beyond the effective depth to a simplex ETF (Liu 2024, arXiv 2412.00884, reconstructed).

    Layers are the linear maps 1..L in order of execution, the classifier last. After an epoch the depth d is the first
    layer from which the nearest class means err on at most ε of the training samples, in every later layer too
    (:func:`~tightframe.probing.effective_depth`). Once d is below the boundary b (at first L) in ``patience`` checks in
    a row, layers beyond the largest of these depths are locked (:func:`~tightframe.surgery.lock_to_etf`) and b falls to
    it; nothing is ever unlocked. Then the statistics of batch norm are estimated again. The schedule of the learning
    rate begins again over the steps that are left, as late steps are too small to recover.

    The rows of :attr:`records` are ``ncc.error`` of each layer and ``effective_depth`` (nan if there is none) at each
    check, ``lock.distance`` of each locked layer (relative change of its weight) and ``trainable_parameters``. A
    checkpoint keeps them with what is locked, and a training resumed from the end of an epoch is the uninterrupted one.

    Several processes of DDP measure their shares together, and lock the same layers to the same weights. What the paper
    does at these places is not public: rule, patience and defaults are ours. Before the first step it is checked that
    every layer which the rule may come to can be locked. A training from scratch forgets what this callback saw before.

    Args:
        layers: Dotted names or patterns of the layers, see :func:`~tightframe.probing.probe_layers`; None for all
            linear maps that run.
        epsilon: Error ε in [0, 1). 0.1 is vacuous on easy data, whose inputs pass.
        patience: Number of checks in a row that must agree, >= 1.
        every_n_epochs: Number of epochs between checks.
        warmup: Number of epochs before the first check, >= 0.
        inclusive: Whether to lock layer d too. The default leaves it trainable: it makes what the later layers keep.
        min_trainable: Number of first layers that are never locked, >= 1.
        keep: Names or patterns of further ones, such as a classifier of more than d + 1 classes.
        start: Layer beyond which all are locked before training, without further checks; None for none.
        first_stage: Number of epochs after which the depth is found, the first weights are restored, the layers beyond
            the depth are locked and the remaining epochs are trained; without a layer to lock, training continues. None
            locks along the way.
        kind: Kind of the fixed weights or a :class:`~tightframe.surgery.Fix`.
        tap: Place at which the representation of a layer is read, ``"post"`` or ``"pre"``.
        pooling: Pooling of tokens and maps to vectors, see :class:`~tightframe.probing.Probe`: ``"flatten"``,
            ``"mean"``, ``"cls"`` or None.
        rewarm: Whether to begin the learning-rate schedule again after a lock; for a :class:`ClassifierModule` with a
            scheduler.
        batch_size: Number of samples of a batch in the checks, for loaders of
            :func:`~tightframe.training.make_loader`; others keep theirs.
        forward: Function of the module and the inputs of a batch, in place of a plain call.
        options: Further fields of :class:`~tightframe.surgery.Fix`.

    Raises:
        ArgumentError: if an argument is outside its range; in training, if the strategy shards the model, if there are
            several optimisers, or a layer cannot be locked.
        DimensionError: in training, if there is no such simplex in the sizes of a layer.
    """

    def __init__(
        self,
        *,
        layers: Sequence[str] | None = None,
        epsilon: float = 0.01,
        patience: int = 3,
        every_n_epochs: int = 1,
        warmup: int = 0,
        inclusive: bool = False,
        min_trainable: int = 1,
        keep: Sequence[str] = (),
        start: int | None = None,
        first_stage: int | None = None,
        kind: str | Fix = "aligned",
        tap: str = "post",
        pooling: str | None = None,
        rewarm: bool = True,
        batch_size: int = 512,
        forward: Callable[[nn.Module, Any], Any] | None = None,
        **options: Any,
    ) -> None:
        super().__init__(batch_size, forward, LockProgress)
        check_range("epsilon", epsilon, isinstance(epsilon, int | float) and 0 <= epsilon < 1, "in [0, 1)")
        check_choice("tap", tap, ("post", "pre"))
        if pooling is not None:
            check_choice("pooling", pooling, ("flatten", "mean", "cls"))
        for name, value, minimum in (
            ("patience", patience, 1),
            ("every_n_epochs", every_n_epochs, 1),
            ("min_trainable", min_trainable, 1),
            ("warmup", warmup, 0),
            ("start", 1 if start is None else start, 1),
            ("first_stage", 1 if first_stage is None else first_stage, 1),
        ):
            check_positive(name, value, minimum)
        if start is not None and first_stage is not None:
            raise ArgumentError(f"start and first_stage exclude each other, got {start} and {first_stage}")
        if layers is not None and (isinstance(layers, str) or not layers):
            raise ArgumentError(f"layers must be a list of names or patterns, got {layers!r}; None is all linear maps")
        self.fix = as_fix(kind, options)
        self.layers = layers
        self.epsilon = epsilon
        self.patience = patience
        self.every_n_epochs = every_n_epochs
        self.warmup = warmup
        self.inclusive = inclusive
        self.min_trainable = min_trainable
        self.keep = keep
        self.start = start
        self.first_stage = first_stage
        self.rewarm = rewarm
        self._probe_options: dict[str, Any] = {"tap": tap, "pooling": pooling}

    @property
    def locked(self) -> list[str]:
        """Names of the layers that were locked, in that order."""
        return self._progress.locked

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Lock again what a checkpoint says is locked, before the states of optimiser and schedule come back."""
        if not isinstance(trainer.strategy, SingleDeviceStrategy | DDPStrategy):
            raise ArgumentError(
                f"AdaptiveETF locks whole weights, got {type(trainer.strategy).__name__}, which may shard them; train "
                "with devices=1 or strategy='ddp'"
            )
        if len(trainer.optimizers) != 1:
            raise ArgumentError(f"AdaptiveETF needs exactly one optimizer, got {len(trainer.optimizers)}")
        check_optimizer(trainer.optimizers[0])
        later = self.start is None  # what is locked from the start has its schedule from there
        if self.rewarm and later and trainer.lr_scheduler_configs and not isinstance(pl_module, ClassifierModule):
            raise ArgumentError(
                f"rewarm must be False for a {type(pl_module).__name__} with a scheduler: only a ClassifierModule says "
                "how to begin its schedule again"
            )
        if self._progress.boundary:
            self._lock(trainer, pl_module)
        if self._progress.schedule_step:
            self._begin_schedule(trainer, pl_module)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Lock what is to be locked from the start, or remember the weights to come back to."""
        if len(self._records):
            return  # a training that is resumed
        epoch, last = trainer.current_epoch, trainer.max_epochs
        curves = self._curves(trainer, pl_module, at_a_glance=True)
        self._progress.layers = list(curves.layers)
        self._progress.boundary = len(curves.layers)
        self._progress.num_classes = next(iter(curves.moments.values())).num_classes
        self._check_layers(pl_module)
        if self.start is not None:
            self._lock_beyond(trainer, pl_module, self.start, epoch)
        if not self.locked:
            self._count_parameters(trainer, pl_module, epoch)
        if self.first_stage is not None:
            if self.first_stage <= epoch or (last not in (None, -1) and self.first_stage >= last):
                raise ArgumentError(
                    f"first_stage must lie between {epoch}, the epochs behind, and max_epochs = {last}, got "
                    f"{self.first_stage}"
                )
            self._progress.first_weights = {
                name: t.detach().cpu().clone() for name, t in pl_module.state_dict().items()
            }

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Check the depth, and lock if the rule says so; after the last epoch nothing could recover, so it rests."""
        epoch = trainer.current_epoch + 1
        if self.start is not None or epoch == trainer.max_epochs or 0 < trainer.max_steps <= trainer.global_step:
            return
        if self.first_stage is not None:
            if epoch == self.first_stage:
                self._second_stage(trainer, pl_module, epoch)
        elif epoch > self.warmup and epoch % self.every_n_epochs == 0:
            depth = self._check(trainer, pl_module, epoch)
            below = depth is not None and depth < self._progress.boundary
            self._progress.window = [*self._progress.window, depth] if below else []
            if len(self._progress.window) == self.patience:
                self._lock_beyond(trainer, pl_module, max(self._progress.window), epoch)
                self._progress.window = []

    def _second_stage(self, trainer: Trainer, module: LightningModule, epoch: int) -> None:
        """Restore the first weights with the layers beyond the depth locked, or continue if there are none."""
        depth = self._check(trainer, module, epoch)
        if depth is not None and self._trained_beyond(module, depth):
            module.load_state_dict(self._progress.first_weights)
            for optimizer in trainer.optimizers:
                optimizer.state.clear()
            self._lock_beyond(trainer, module, depth, epoch)
        self._progress.first_weights = {}

    def _check(self, trainer: Trainer, module: LightningModule, epoch: int) -> int | None:
        """Return the effective depth, and record the curve that it is read from."""
        curves = self._curves(trainer, module)
        depth = effective_depth(curves.ncc_error, self.epsilon)
        for layer, error in zip(curves.layers, curves.ncc_error, strict=True):
            self._record(trainer, epoch, "ncc.error", error, layer, self._probe_options["tap"])
        self._record(trainer, epoch, "effective_depth", torch.nan if depth is None else depth)
        return depth

    def _curves(self, trainer: Trainer, module: LightningModule, at_a_glance: bool = False) -> LayerCurves:
        """Probe the layers; at a glance, on one batch, only to see which they are."""
        with self._measuring(trainer):
            return probe_layers(
                module,
                self._training_data(trainer, 1 if at_a_glance else None),
                layers=self.layers,
                ncc=not at_a_glance,
                forward=self._run(trainer),
                all_ranks=trainer.world_size > 1,
                **self._probe_options,
            )

    def _check_layers(self, module: LightningModule) -> None:
        """Raise now what locking would raise when much has been trained already."""
        if self.start is not None and self.start >= len(self._progress.layers):
            raise ArgumentError(
                f"start must be below the number of layers, {len(self._progress.layers)}, got {self.start}"
            )
        fix = replace(
            self.fix.for_classes(self._progress.num_classes), gain=1.0
        )  # which there is whatever the weight will be
        for _, name in self._trained_beyond(module, self.start or 1):
            try:
                lockable(module, name, fix)
            except TightframeError as error:
                raise type(error)(f"{error}; or pass keep=[{name!r}]") from error

    def _trained_beyond(self, module: LightningModule, depth: int) -> list[tuple[int, str]]:
        """Return the layers beyond a depth that have a matrix to train: a fixed classifier has at most a scale."""
        return trained_beyond(module, self._progress.layers, self._kept(depth), self.keep)

    def _kept(self, depth: int) -> int:
        """Return how many layers stay as they are if the depth is this."""
        return min(max(depth - self.inclusive, self.min_trainable), len(self._progress.layers))

    def _lock_beyond(self, trainer: Trainer, module: LightningModule, depth: int, epoch: int) -> None:
        """Lock what is trained beyond a depth, repair what this breaks, and begin the schedule again."""
        self._progress.boundary = min(self._kept(depth), self._progress.boundary)
        locks = self._lock(trainer, module)
        for lock in locks:
            self._progress.locked = [*self.locked, lock.name]
            self._record(trainer, epoch, "lock.distance", lock.distance, lock.name)
        if locks:
            self._reestimate(trainer, module)
            self._count_parameters(trainer, module, epoch)
            if self.rewarm and self.start is None:
                self._progress.schedule_step = trainer.global_step
                self._begin_schedule(trainer, module)

    def _lock(self, trainer: Trainer, module: LightningModule) -> list[Lock]:
        (optimizer,) = trainer.optimizers
        layers, boundary = self._progress.layers, self._progress.boundary
        fix = self.fix.for_classes(self._progress.num_classes)
        locks = lock_beyond(module, layers, boundary, fix, keep=self.keep, optimizer=optimizer)
        if locks and isinstance(trainer.strategy, DDPStrategy):
            # It waits for a gradient of every parameter that was trained when it wrapped the model.
            trainer.strategy.model = module
            trainer.strategy.configure_ddp()
        return locks

    def _reestimate(self, trainer: Trainer, module: LightningModule) -> None:
        """Estimate the statistics of batch norm again, on the training batches of all ranks."""
        reading = self._training_data(trainer, as_it_is=True)
        ranks = trainer.world_size > 1
        with reading.undisturbed():
            inputs = ((split_batch(batch)[0],) for batch, _ in reading.batches(module.device))
            together(lambda: reestimate_batch_norm(_InPrecision(module, self._run(trainer)), inputs), ranks)
        for norm in batch_norms(module) if ranks else []:
            for name in ("running_mean", "running_var"):
                statistic = norm.get_buffer(name)
                statistic.copy_(trainer.strategy.reduce(statistic, reduce_op="mean"))

    def _begin_schedule(self, trainer: Trainer, module: LightningModule) -> None:
        """Put a new scheduler, for the steps that were left when it began, in place of the old one."""
        for config in trainer.lr_scheduler_configs:
            steps = total_steps(trainer) - self._progress.schedule_step
            optimizer = config.scheduler.optimizer
            for group in optimizer.param_groups:
                group["lr"] = copy.deepcopy(group["initial_lr"])  # may be a tensor, which schedulers write into
            config.scheduler = module.schedule(optimizer, steps)  # type: ignore[operator]  # of a ClassifierModule

    def _count_parameters(self, trainer: Trainer, module: LightningModule, epoch: int) -> None:
        self._record(trainer, epoch, "trainable_parameters", parameter_report(module).trainable)

    def _record(self, trainer: Trainer, epoch: int, metric: str, value: float, layer: str = "", tap: str = "") -> None:
        here: dict[str, Any] = {"epoch": epoch, "step": trainer.global_step, "split": "train"}
        self._records.add(metric, value, **here, layer=layer, tap=tap)


class _InPrecision(nn.Module):
    """A module that runs as it does in training, for code that calls it by itself."""

    def __init__(self, module: nn.Module, run: Callable[[nn.Module, Any], Any]) -> None:
        super().__init__()
        self.module = module
        self.run = run

    def forward(self, inputs: Any) -> Any:
        return self.run(self.module, inputs)
