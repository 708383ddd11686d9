"""What NeuralCollapseCallback adds to a training epoch of a small CNN on digits."""

from __future__ import annotations

import logging
import statistics
import time
import warnings
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import nn

from benchmarks._timing import Race, Row, duration, one_thread, report
from tightframe.data import ClassificationData, Digits
from tightframe.nn import LinearClassifier
from tightframe.training import ClassifierModule, NeuralCollapseCallback, SmallCNN, make_loader

TARGET = 0.10


class EpochClock(Callback):
    """Seconds of an epoch, averaged from the start of the first to the end of the last."""

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.current_epoch == 0:
            self.start = time.process_time()

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.seconds = (time.process_time() - self.start) / trainer.current_epoch


def epoch_seconds(data: ClassificationData, widths: tuple[int, ...], epochs: int, *callbacks: Callback) -> float:
    """Train and evaluate every epoch, with the given callbacks; return the time of an epoch."""
    torch.manual_seed(0)
    backbone = SmallCNN(1, widths)
    module = ClassifierModule(
        backbone,
        LinearClassifier(backbone.out_features, data.num_classes),
        nn.CrossEntropyLoss(),
        lambda parameters: torch.optim.SGD(parameters, lr=0.05, momentum=0.9),
    )
    clock = EpochClock()
    trainer = Trainer(
        max_epochs=epochs,
        accelerator="cpu",
        callbacks=[*callbacks, clock],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        use_distributed_sampler=False,
    )
    trainer.fit(module, make_loader(data.train, 64, seed=0), make_loader(data.test, 512))
    return clock.seconds


def run(
    widths: tuple[int, ...] = (32, 64, 128), epochs: int = 5, schedules: tuple[int, ...] = (1, 5), rounds: int = 7
) -> list[Row]:
    data = Digits(flatten=False).load()
    epoch_seconds(data, widths, 1)
    bare: list[float] = []
    timed: dict[int, list[float]] = {n: [] for n in schedules}
    for _ in range(rounds):
        bare.append(epoch_seconds(data, widths, epochs))
        for n in schedules:
            timed[n].append(epoch_seconds(data, widths, epochs, NeuralCollapseCallback(every_n_epochs=n)))
    return [_row(f"epoch with the callback, every_n_epochs={n}; peer: without", timed[n], bare) for n in schedules]


def _row(name: str, timed: list[float], bare: list[float]) -> Row:
    added = [cost - 1 for cost in Race(tuple(timed), tuple(bare)).costs()]
    middle = statistics.median(added)
    ours, peer = duration(statistics.median(timed)), duration(statistics.median(bare))
    ratio = f"{middle:+.0%} [{added[0]:+.0%}, {added[-1]:+.0%}]"
    return Row(name, ours, peer, ratio, f"< {TARGET:.0%}", middle < TARGET)


TINY: dict[str, Any] = {"widths": (2, 3), "epochs": 1, "schedules": (1,), "rounds": 1}


def main() -> None:
    one_thread()
    for noise in (".*does not have many workers.*", ".*LeafSpec.*"):
        warnings.filterwarnings("ignore", noise)
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    report("NeuralCollapseCallback: SmallCNN(1, (32, 64, 128)) on digits, batch 64, validated every epoch", run())


if __name__ == "__main__":
    main()
