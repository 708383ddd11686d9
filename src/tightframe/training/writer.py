"""Records and confusions of a training, exact across kill and resume."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any
from zlib import crc32

from lightning.pytorch import Callback, LightningModule, Trainer

from tightframe.errors import OutputError, ResumeError
from tightframe.files import write_text
from tightframe.records import Record, Records
from tightframe.training.collapse import MeasuringCallback
from tightframe.training.module import ClassifierModule


class RecordWriter(Callback):
    """Append logged and measured numbers to a JSONL file after every epoch, and keep the last confusions beside it.

    A checkpoint remembers how many rows had been written, and their CRC-32. Resuming from it cuts the file back to
    these rows, and cuts off the half line of a killed process, so the file ends up as if nothing had happened. The
    :class:`Confusion` of a split takes the place of the one before after every evaluation, and needs no state:
    checkpoints come after the evaluation of their epoch, so a resumed training has the last file already or evaluates
    that epoch once more.

    Args:
        path: Path of the file; it is emptied when training starts from scratch.
        run: Name written into every row.
        seed: Seed written into every row.
    """

    def __init__(self, path: str | os.PathLike[str], *, run: str = "", seed: int = 0) -> None:
        self.path = Path(path)
        self.run = run
        self.seed = seed
        self.started = False
        self._rows = 0
        self._crc: int | None = 0
        self._taken: dict[int, int] = {}
        self._before: dict[str, Any] = {}

    def state_dict(self) -> dict[str, Any]:
        """Return the number of rows in the file, and of those of each callback."""
        return {"rows": self._rows, "crc": self._crc, "taken": dict(self._taken)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the state of a checkpoint."""
        self._rows = state_dict["rows"]
        self._crc = state_dict.get("crc")  # None in checkpoints of earlier versions
        self._taken = dict(state_dict["taken"])

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Create the file, or cut it back to the rows of the checkpoint."""
        self.started = True
        if not trainer.is_global_zero:
            return
        self.path.parent.mkdir(parents=True, exist_ok=True)
        if not self._rows:
            Records().save(self.path)
            return
        written = list(Records.read(self.path)) if self.path.exists() else []
        if len(written) < self._rows:
            raise ResumeError(
                f"{self.path} has {len(written)} rows and the checkpoint knows of {self._rows}: the file was changed "
                "since; train again in an empty directory"
            )
        text = _lines(written[: self._rows])
        if self._crc not in (None, crc32(text)):
            raise ResumeError(
                f"{self.path} is not what the checkpoint knows: it was changed since; train again in an empty directory"
            )
        self._crc = crc32(text)
        write_text(self.path, text.decode())

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Remember the metrics from before: Lightning keeps those of an evaluation for epochs without one."""
        self._before = dict(trainer.callback_metrics)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the confusions that the module has kept of this evaluation."""
        if trainer.is_global_zero and not trainer.sanity_checking and isinstance(pl_module, ClassifierModule):
            for split, confusion in pl_module.confusions.items():
                confusion.save(self.path.parent, split)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the rows of this epoch."""
        if not trainer.is_global_zero:
            return
        rows = self._measured(trainer)
        for key, value in sorted(trainer.callback_metrics.items()):
            split, slash, metric = key.rpartition("/")
            if "/" not in split and value is not self._before.get(key):
                step, epoch = trainer.global_step, trainer.current_epoch + 1
                rows.add(metric if slash else key, float(value), epoch=epoch, step=step, split=split)
        self._write(rows)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the rows that were measured after those of the last epoch."""
        if trainer.is_global_zero:
            self._write(self._measured(trainer))

    def _measured(self, trainer: Trainer) -> Records:
        """Return the rows of other callbacks that have not been written yet."""
        rows = Records()
        callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]
        measuring = [c for c in callbacks if isinstance(c, MeasuringCallback)]
        for i, callback in enumerate(measuring):
            measured = list(callback.records)
            rows.extend(measured[self._taken.get(i, 0) :])
            self._taken[i] = len(measured)
        return rows

    def _write(self, rows: Records) -> None:
        if not len(rows):
            return
        lines = _lines(replace(row, run=self.run, seed=self.seed) for row in rows)
        try:
            with self.path.open("ab") as file:
                file.write(lines)
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise OutputError(f"{self.path} cannot be written: {error}") from error
        self._rows += len(rows)
        self._crc = crc32(lines, self._crc or 0)


def _lines(rows: Iterable[Record]) -> bytes:
    return "".join(row.to_json() + "\n" for row in rows).encode()
