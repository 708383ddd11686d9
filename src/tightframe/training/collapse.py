"""NeuralCollapseCallback: measure collapse while any Lightning Trainer trains any model."""

from __future__ import annotations

import contextlib
import os
import tempfile
import uuid
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.strategies.launchers import _MultiProcessingLauncher
from lightning.pytorch.trainer.states import RunningStage
from lightning.pytorch.utilities.combined_loader import CombinedLoader
from torch import Tensor, nn

from tightframe.errors import ArgumentError, OutputError, check_choice, check_positive
from tightframe.functional import registry
from tightframe.probing import FEATURES, Engine, Measured, record
from tightframe.probing.batches import Reading, call, length_of
from tightframe.probing.measure import TRAIN, reference_of
from tightframe.probing.split import Looked, together
from tightframe.records import Record, Records
from tightframe.runs.snapshots import Snapshot
from tightframe.training.loaders import evaluation_loader
from tightframe.training.module import ClassifierModule

SNAPSHOT_CLASSES = 4
SNAPSHOT_SAMPLES = 40


@dataclass
class CollapseProgress:
    """State of :class:`NeuralCollapseCallback` in a training, which a checkpoint keeps beside the rows.

    Args:
        measured_step: Last step after which collapse was measured.
    """

    measured_step: int = -1


class MeasuringCallback(Callback):
    """Base of callbacks that measure: their rows, and the use of data and model as the Trainer uses them.

    A training from scratch forgets rows and progress of an earlier one.

    Args:
        batch_size: Number of samples of a batch, for loaders of :func:`~tightframe.training.make_loader`.
        forward: Function of the module and the inputs of a batch, in place of a plain call.
        progress: Dataclass of what a checkpoint keeps beside the rows.
    """

    def __init__(
        self, batch_size: int, forward: Callable[[nn.Module, Any], Any] | None, progress: Callable[..., Any]
    ) -> None:
        check_positive("batch_size", batch_size)
        self.batch_size = batch_size
        self.forward = forward
        self._records = Records()
        self._new_progress = progress
        self._progress = progress()
        # If a strategy starts processes, the callback of this one gets no rows: the first of them writes a file.
        self._home, self._spool = os.getpid(), Path(tempfile.gettempdir()) / f"tightframe-{uuid.uuid4().hex}.jsonl"

    @property
    def records(self) -> Records:
        """Rows so far."""
        if os.getpid() == self._home and self._spool.exists():
            self._records = Records.read(self._spool)
            self._spool.unlink()
        return self._records

    def state_dict(self) -> dict[str, Any]:
        """Return the rows and the progress so far, for the checkpoint."""
        return {"records": [record.to_json() for record in self._records], **vars(self._progress)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from a checkpoint."""
        progress = dict(state_dict)
        self._records = Records(map(Record.from_json, progress.pop("records")))
        self._progress = self._new_progress(**progress)

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Forget an earlier training; the state of a checkpoint comes after this."""
        if stage == "fit" and trainer.global_step == 0:
            self._records, self._progress = Records(), self._new_progress()

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Save the rows for the process that started this one."""
        launched = isinstance(trainer.strategy.launcher, _MultiProcessingLauncher)
        if launched and stage == "fit" and trainer.is_global_zero and os.getpid() != self._home:
            self._records.save(self._spool)

    @contextlib.contextmanager
    def _measuring(self, trainer: Trainer) -> Iterator[None]:
        """Let hooks of the Trainer see an evaluation, so that they do not augment."""
        stage = trainer.state.stage
        trainer.state.stage = RunningStage.VALIDATING
        try:
            yield
        finally:
            trainer.state.stage = stage

    def _run(self, trainer: Trainer) -> Callable[[nn.Module, Any], Any]:
        """Return a function that runs a module on inputs in the precision of the training."""
        precision, forward = trainer.precision_plugin, self.forward

        def run(module: nn.Module, inputs: Any) -> Any:
            with precision.forward_context():
                inputs = precision.convert_input(inputs)
                return call(module, inputs) if forward is None else forward(module, inputs)

        return run

    def _training_data(self, trainer: Trainer, max_batches: int | None = None, as_it_is: bool = False) -> Reading:
        """Return the reading of the training data: in order and whole for a loader of ours, else as it is."""
        combined, loader = trainer.fit_loop._combined_loader, trainer.train_dataloader
        if combined is not None and not (len(combined.flattened) == 1 and combined.flattened[0] is loader):
            loader = CombinedLoader(combined.iterables, combined._mode)
        size = trainer.num_training_batches if _limited(trainer.limit_train_batches) else None
        reading = self._reading(trainer, loader, size, 0, max_batches, as_it_is)
        if any(isinstance(part, Iterator) for part in reading.parts):  # the one that the training uses
            raise _spent(loader)
        return reading

    def _reading(
        self, trainer: Trainer, loader: Any, size: float | None, index: int, most: int | None, as_it_is: bool = False
    ) -> Reading:
        """Return the reading of a loader, with as many batches as the Trainer reads of it."""
        if size is not None and size != float("inf"):
            most = int(min(size, most or size))
        elif most is None and trainer.max_epochs == -1 and length_of(loader) is None:
            raise ArgumentError(
                "max_batches must be given for a loader without length in a training without max_epochs, which may "
                f"never end, got {type(loader).__name__}"
            )
        elif not as_it_is:
            loader = evaluation_loader(loader, self.batch_size, trainer.global_rank, trainer.world_size)
        reading = Reading(loader, most, partial(_transfer, trainer, index))
        if reading.once:
            raise _spent(loader)
        return reading


class NeuralCollapseCallback(MeasuringCallback):
    """Measures the collapse of a model's layers on a schedule, in one pass over each split.

    ``Trainer(callbacks=[NeuralCollapseCallback()])`` is all a model needs whose ``forward`` returns logits. Every
    measurement runs in eval mode at one snapshot of the weights, reads the loaders of the Trainer as they are, through
    its own transfer hooks, and leaves weights, modes, samplers and random numbers as they were. Under DDP each rank
    visits its share and the moments are reduced.

    The classifier is found before the first step, as :func:`tightframe.measure` finds it. The rows are in
    :attr:`records`, which a checkpoint keeps, and are logged as ``split/layer/metric``.

    Args:
        layers: Dotted names of modules whose inputs are measured too, beside the classifier's, called ``features``; or
            patterns as in :func:`tightframe.probing.match_layers`.
        every_n_epochs: Number of epochs between measurements; there is one before training and one at its end, too.
        every_n_steps: Number of optimizer steps between measurements, in place of epochs.
        splits: Splits to measure, of ``train`` and ``validation``: the loaders that the Trainer has. Several validation
            loaders have the names that a :class:`ClassifierModule` gives them, else ``validation.<key>`` by their key
            or number.
        classifier, features, logits: Arguments of :class:`tightframe.probing.Engine`, as on the next two lines.
        scatter, preset, ignore_index, num_classes: Arguments of the engine.
        hold_bytes, spill_bytes, max_batches: Arguments of the engine.
        batch_size: Number of samples of a batch, for loaders of :func:`~tightframe.training.make_loader`; others keep
            theirs.
        forward: Function of the module and the inputs of a batch, in place of a plain call.
        snapshot_dir: Directory for a :class:`Snapshot` at every measurement, for the report's pictures; None for none.
        on_error: Reaction to an error after the first measurement: ``"warn"`` leaves a gap in the records and continues
            the training, ``"raise"`` ends it. An error before the first step always ends it, and so does a snapshot
            that cannot be written.
    """

    def __init__(
        self,
        *,
        layers: Sequence[str] = (),
        every_n_epochs: int = 1,
        every_n_steps: int | None = None,
        splits: Sequence[str] = (TRAIN, "validation"),
        classifier: str | nn.Module | Sequence[Any] | None = None,
        features: str | nn.Module | None = None,
        logits: str | int | Callable[[Any], Tensor] | None = None,
        scatter: bool = True,
        preset: str | Sequence[str] | None = None,
        ignore_index: int | None = None,
        hold_bytes: int = 2**28,
        spill_bytes: int = 2**32,
        max_batches: int | None = None,
        batch_size: int = 512,
        num_classes: int | None = None,
        forward: Callable[[nn.Module, Any], Any] | None = None,
        snapshot_dir: str | os.PathLike[str] | None = None,
        on_error: str = "warn",
    ) -> None:
        super().__init__(batch_size, forward, CollapseProgress)
        if forward is not None and not callable(forward):
            raise ArgumentError(f"forward must be a function of the module and a batch's inputs, got {forward!r}")
        check_positive("every_n_epochs", every_n_epochs)
        if every_n_steps is not None:
            check_positive("every_n_steps", every_n_steps)
        for split in splits:
            check_choice("splits", split, (TRAIN, "validation"))
        check_choice("on_error", on_error, ("warn", "raise"))
        registry.select("default" if preset is None else preset, ())
        self.layers = list(layers)
        self.every_n_epochs = every_n_epochs
        self.every_n_steps = every_n_steps
        self.splits = tuple(splits)
        self.preset = preset
        self.scatter = scatter
        self.max_batches = max_batches
        self.snapshot_dir = None if snapshot_dir is None else Path(snapshot_dir)
        self.on_error = on_error
        self._options: dict[str, Any] = {
            "classifier": classifier,
            "features": features,
            "layers": self.layers,
            "logits": logits,
            "num_classes": num_classes,
            "scatter": scatter,
            "preset": preset,
            "ignore_index": ignore_index,
            "hold_bytes": hold_bytes,
            "spill_bytes": spill_bytes,
        }
        self._engine: Engine | None = None

    @property
    def state_key(self) -> str:
        """Name of the state in a checkpoint: callbacks that measure other things have their own."""
        options = ("layers", "every_n_epochs", "every_n_steps", "splits", "scatter", "preset")
        return self._generate_state_key(**{name: getattr(self, name) for name in options})

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Save the rows for the process that started this one, and release the model."""
        super().teardown(trainer, pl_module, stage)
        if stage == "fit":
            self._engine = None

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Find the classifier, and measure the untrained model."""
        self._engine = engine = Engine(
            pl_module,
            forward=self._run(trainer),
            all_ranks=trainer.world_size > 1,
            on_batch=self._keep if self.snapshot_dir is not None and trainer.is_global_zero else None,
            **self._options,
        )
        if trainer.global_step == 0:
            self._measure(trainer, epoch=0)
            return
        with self._measuring(trainer):  # a resumed training
            for data in list(self._data(trainer).values())[:1]:
                data.max_batches = 1
                together(partial(engine.passes, data, lambda looked: None), engine.all_ranks)
        ended = trainer.fit_loop.epoch_loop.batch_progress.is_last_batch
        if (
            ended and trainer.global_step != self._progress.measured_step
        ):  # saved before the hook, which is not called again
            self._after_epoch(trainer, trainer.current_epoch)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Measure on a step schedule."""
        new = trainer.global_step != self._progress.measured_step
        if self.every_n_steps and new and trainer.global_step % self.every_n_steps == 0:
            self._try_to_measure(trainer, trainer.current_epoch)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Measure on an epoch schedule."""
        self._after_epoch(trainer, trainer.current_epoch + 1)

    def _after_epoch(self, trainer: Trainer, epoch: int) -> None:
        due = epoch % self.every_n_epochs == 0 or epoch == trainer.max_epochs
        if self.every_n_steps is None and due:
            self._try_to_measure(trainer, epoch)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Measure the final weights if training ended early."""
        if self.every_n_steps is None and trainer.global_step != self._progress.measured_step:
            self._try_to_measure(trainer, trainer.current_epoch)

    def _try_to_measure(self, trainer: Trainer, epoch: int) -> None:
        try:
            self._measure(trainer, epoch)
        except Exception as error:
            if self.on_error == "raise" or isinstance(error, OutputError):
                raise
            warnings.warn(
                f"collapse was not measured after step {trainer.global_step}, and training continues: "
                f"{type(error).__name__}: {error}",
                RuntimeWarning,
                stacklevel=2,
            )

    def _measure(self, trainer: Trainer, epoch: int) -> None:
        if self._engine is None:
            return
        self._progress.measured_step = trainer.global_step
        self._kept: dict[int, list[Tensor]] = {k: [] for k in range(SNAPSHOT_CLASSES)}
        rows, train = Records(), None
        with self._measuring(trainer):
            data = self._data(trainer)
            for measured in self._engine.measure(data, reference_of(None, list(data))):
                record(rows, measured, epoch=epoch, step=trainer.global_step)
                train = measured if measured.split == TRAIN else train
        self._records.extend(rows)
        for logger in trainer.loggers:
            for split in rows.unique("split"):
                values = {f"{split}/{r.layer}/{r.metric}": r.value for r in rows.where(split=split)}
                logger.log_metrics(values, step=trainer.global_step)
        if train is not None and any(self._kept.values()):
            self._snapshot(epoch, train)

    def _data(self, trainer: Trainer) -> Mapping[str, Reading]:
        """Return the loaders to visit by split, the training set first."""
        found = {}
        if TRAIN in self.splits:
            found[TRAIN] = self._training_data(trainer, self.max_batches)
        loaders = trainer.val_dataloaders
        if "validation" not in self.splits or loaders is None:
            return found
        module = trainer.lightning_module
        parts = CombinedLoader(loaders).flattened
        if isinstance(loaders, Mapping) and len(parts) == len(loaders):
            names = [f"validation.{key}" for key in loaders]
        else:
            names = ["validation"] if len(parts) == 1 else [f"validation.{i}" for i in range(len(parts))]
            names = module.splits if isinstance(module, ClassifierModule) else names
        limited = _limited(trainer.limit_val_batches)
        for index, (name, loader) in enumerate(zip(names, parts, strict=True)):
            size = trainer.num_val_batches[index] if limited else None
            found[name] = self._reading(trainer, loader, size, index, self.max_batches)
        return found

    def _keep(self, split: str, looked: Looked) -> None:
        """Keep the first training features of a few classes, for the pictures."""
        features = next((h for place, h in looked.features.items() if place.layer == FEATURES), None)
        if split != TRAIN or features is None:
            return
        for k, kept in self._kept.items():
            missing = SNAPSHOT_SAMPLES - sum(map(len, kept))
            if missing > 0:
                kept.append(features[looked.labels == k][:missing].float().cpu())

    def _snapshot(self, epoch: int, train: Measured) -> None:
        kept = {k: torch.cat(parts) for k, parts in self._kept.items() if parts}
        labels = torch.cat([torch.full((len(h),), k) for k, h in kept.items()])
        moments = next(m for place, m in train.moments.items() if place.layer == FEATURES)
        means = moments.mean.where(moments.present.unsqueeze(1), torch.nan)
        weight, _ = self._engine.weights() if self._engine is not None else (None, None)
        if weight is not None and self.snapshot_dir is not None:
            features = torch.cat(list(kept.values()))
            Snapshot(epoch, means.float(), weight.float(), features, labels).save(self.snapshot_dir)


def _spent(loader: Any) -> ArgumentError:
    return ArgumentError(
        f"loader must give its batches at every pass, got {type(loader).__name__}, which measuring would use up before "
        "the training; pass a DataLoader or a list, or leave its split out of splits"
    )


def _limited(limit: float | None) -> bool:
    return limit is not None and not (isinstance(limit, float) and limit == 1.0)


def _transfer(trainer: Trainer, index: int, batch: Any) -> Any:
    """Move a batch as the loops of the Trainer do, through the hooks of the user."""
    batch = trainer.precision_plugin.convert_input(batch)
    batch = trainer.lightning_module._on_before_batch_transfer(batch, dataloader_idx=index)
    return trainer.strategy.batch_to_device(batch, dataloader_idx=index)
