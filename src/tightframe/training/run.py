"""One training: module, data and a directory in; checkpoints, records and snapshots out."""

from __future__ import annotations

import io
import logging
import time
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins.io import TorchCheckpointIO
from lightning.pytorch import LightningDataModule, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint, Timer
from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch.utils.data import DataLoader, Dataset

from tightframe.errors import ConfigError, DataFileError, ResumeError, TightframeError
from tightframe.files import read_checkpoint, write_json, written_whole
from tightframe.runs.layout import CHECKPOINT, RECORDS_FILE, SNAPSHOT_DIR, TIMING_FILE
from tightframe.runs.lock import hold
from tightframe.runs.write import seal
from tightframe.surgery import parameter_report
from tightframe.training.adaptive import AdaptiveETF
from tightframe.training.collapse import NeuralCollapseCallback
from tightframe.training.loaders import make_loader
from tightframe.training.module import ClassifierModule
from tightframe.training.writer import RecordWriter


class _Parts(LightningDataModule):
    """The loaders of one run; the global batch is shared out among the ranks."""

    def __init__(self, train: Dataset[Any], evaluation: Mapping[str, Dataset[Any]], batch_size: int, seed: int) -> None:
        super().__init__()
        self.train = train
        self.evaluation = evaluation
        self.batch_size = batch_size
        self.seed = seed

    def _loader(self, dataset: Dataset[Any], batch_size: int, seed: int | None) -> DataLoader[Any]:
        trainer = self.trainer
        rank, world_size = (trainer.global_rank, trainer.world_size) if trainer else (0, 1)
        return make_loader(dataset, batch_size, seed=seed, rank=rank, world_size=world_size)

    def train_dataloader(self) -> DataLoader[Any]:
        overfit = getattr(self.trainer, "overfit_batches", 0)  # takes the same batches in every epoch
        return self._loader(self.train, self.batch_size, None if overfit else self.seed)

    def val_dataloader(self) -> list[DataLoader[Any]]:
        return [self._loader(part, max(self.batch_size, 512), None) for part in self.evaluation.values()]


class _WholeEpochs(ModelCheckpoint):
    """Checkpoint after every epoch that was not cut short: a training resumes after the last whole one."""

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the checkpoint."""
        if _epoch_is_whole(trainer):
            super().on_train_epoch_end(trainer, pl_module)


class _WholeFiles(TorchCheckpointIO):
    """Write a checkpoint beside its file and rename it.

    Lightning writes it to the temporary folder and moves it. From one file system to another a move is a copy: a kill
    or a full disk would leave half of the new checkpoint, and nothing of the old one.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        """Write the file."""
        content = io.BytesIO()  # torch does not raise OSError at a full disk
        torch.save(checkpoint, content)
        with written_whole(path) as partial:
            partial.write_bytes(content.getbuffer())


class _TimeLimit(Timer):
    """Time of one call, which trains for an epoch at least: a resumed training has all of it once more."""

    def on_fit_start(self, trainer: Trainer, *args: Any, **kwargs: Any) -> None:
        """Let the first epoch begin."""

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Forget the time of earlier calls."""


def _epoch_is_whole(trainer: Trainer) -> bool:
    return trainer.fit_loop.epoch_loop.batch_progress.is_last_batch


def check_options(
    collapse: Mapping[str, Any], trainer: Mapping[str, Any], adaptive: Mapping[str, Any] | None = None
) -> None:
    """Raise whatever the callbacks and Lightning's Trainer raise on these arguments of :func:`fit`."""
    NeuralCollapseCallback(snapshot_dir=None, **collapse)
    AdaptiveETF(**(adaptive or {}))
    with quiet():
        loop = _trainer(trainer, max_epochs=1, callbacks=[ModelCheckpoint()], default_root_dir=None)
    if not all(isinstance(logger, Logger) for logger in loop.loggers):
        raise ConfigError(f"trainer.logger must be true or false in a recipe, got {trainer['logger']!r}")
    if loop.check_val_every_n_epoch == 0:
        raise ConfigError("trainer.check_val_every_n_epoch must be >= 1, got 0; leave it out for every epoch")
    if loop.limit_train_batches == 0:
        raise ConfigError("trainer.limit_train_batches must leave a batch to train on, got 0; leave it out to take all")


def _trainer(options: Mapping[str, Any], **own: Any) -> Trainer:
    defaults: dict[str, Any] = {
        "devices": 1,
        "logger": False,
        "enable_model_summary": False,
        "enable_progress_bar": False,
        "log_every_n_steps": 1,
    }
    return Trainer(**{**defaults, **options}, num_sanity_val_steps=0, use_distributed_sampler=False, **own)


def fit(
    module: ClassifierModule,
    train: Dataset[Any],
    evaluation: Mapping[str, Dataset[Any]],
    directory: Path,
    *,
    run: str,
    seed: int,
    epochs: int,
    batch_size: int,
    collapse: Mapping[str, Any] | None = None,
    trainer: Mapping[str, Any] | None = None,
    adaptive: Mapping[str, Any] | None = None,
) -> str:
    """Train a module, or resume an earlier call in the same directory.

    After every whole epoch a checkpoint is written whole or not at all. Stopping the process at any moment, with
    SIGKILL too, and calling this again gives the weights, records and confusions of an uninterrupted run: bit for bit
    on the CPU. One process at a time trains in a directory.

    Args:
        module: Module whose ``splits`` name the evaluation parts in order.
        train: Map-style dataset of ``(input, label)``.
        evaluation: Parts to evaluate after every epoch, by name.
        directory: Directory for ``records.jsonl``, ``checkpoints/``, ``snapshots/``, if the module knows distances
            ``confusion-<split>.safetensors`` and, at the end, ``timing.json``.
        run: Name written into the records.
        seed: Seed of the order of the samples; written into the records.
        epochs: Number of epochs in all.
        batch_size: Samples of a step, over all ranks together.
        collapse: Arguments of :class:`NeuralCollapseCallback`.
        trainer: Further arguments of ``lightning.Trainer``. ``max_time`` is that of this call, and ends it at the end
            of an epoch.
        adaptive: Arguments of :class:`AdaptiveETF`, to lock layers along the way; None locks nothing.

    Returns:
        Name of the Trainer's argument that ended or shortened the training, such as ``max_steps``, or an empty text.
        Only without one is the training finished, and has a ``timing.json``.

    Raises:
        ResumeError: if the checkpoint is damaged, or another process trains in the directory.
        ConfigError: if the Trainer's arguments do not fit the data.
        OutputError: if the directory cannot be written to.
    """
    options = dict(trainer or {})
    limit = options.pop("max_time", None)
    writer = RecordWriter(directory / RECORDS_FILE, run=run, seed=seed)
    callbacks = [
        *([] if adaptive is None else [AdaptiveETF(**adaptive)]),
        NeuralCollapseCallback(snapshot_dir=directory / SNAPSHOT_DIR, **(collapse or {})),
        writer,
        *([] if limit is None else [_TimeLimit(limit, "epoch", verbose=False)]),
        _WholeEpochs(
            (directory / CHECKPOINT).parent,
            filename=CHECKPOINT.stem,
            every_n_epochs=1,
            save_on_train_epoch_end=True,
            enable_version_counter=False,
        ),
    ]
    started = time.perf_counter()
    with quiet():
        loop = _trainer(options, max_epochs=epochs, callbacks=callbacks, default_root_dir=directory)
        loop.strategy.checkpoint_io = _WholeFiles()
        with hold(directory) if loop.is_global_zero else nullcontext():  # the other ranks write nothing
            parts = _Parts(train, evaluation, batch_size, seed)
            checkpoint = _checkpoint(directory)
            try:
                loop.fit(module, parts, ckpt_path=checkpoint, weights_only=True)
            except (LookupError, TypeError, AttributeError, RuntimeError) as error:
                if checkpoint is None or writer.started or isinstance(error, TightframeError):
                    raise
                raise ResumeError(
                    f"{checkpoint} is not of this training: {' '.join(str(error).split())[:300]}"
                ) from error
            except (MisconfigurationException, ValueError) as error:  # of what only the data can tell
                if isinstance(error, ValueError) and "val_check_interval" not in str(error):
                    raise
                raise ConfigError(f"trainer: {' '.join(str(error).split())}") from error
            stopped = _stopped_by(loop, epochs, trainer or {})
            if loop.is_global_zero and not stopped:
                timing = {
                    "fit_seconds": time.perf_counter() - started,
                    "epochs": epochs,
                    "trainable_parameters": parameter_report(module).trainable,
                    "classifier_parameters": parameter_report(module.classifier).trainable,
                }
                write_json(directory / TIMING_FILE, timing)
                seal(directory)
    return stopped


def _stopped_by(loop: Trainer, epochs: int, options: Mapping[str, Any]) -> str:
    """Return the name of the option that ended a training before its last epoch, or shortened its epochs."""
    for name in ("fast_dev_run", "limit_train_batches", "limit_val_batches"):
        value = options.get(name)
        if value and not (isinstance(value, float) and value == 1):
            return name
    if loop.current_epoch >= epochs and _epoch_is_whole(loop):
        return ""
    return next(name for name in ("max_steps", "max_time", "max_epochs") if options.get(name) or name == "max_epochs")


def _checkpoint(directory: Path) -> Path | None:
    """Return the checkpoint to resume from, if there is one."""
    path = directory / CHECKPOINT
    if not path.exists():
        return None
    try:
        read_checkpoint(path)
    except DataFileError as error:
        raise ResumeError(str(error)) from error
    return path


@contextmanager
def quiet() -> Iterator[None]:
    """Silence what Lightning says at every start; its errors and real warnings pass."""
    loggers = [logging.getLogger(name) for name in ("lightning.pytorch", "lightning.fabric")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            for text in ("does not have many workers", "Checkpoint directory", "LeafSpec", "tensorboardX"):
                warnings.filterwarnings("ignore", f".*{text}.*")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
