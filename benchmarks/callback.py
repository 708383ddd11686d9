"""What NeuralCollapseCallback adds to a training epoch of a small CNN on digits, and to the forward passes it makes."""

from __future__ import annotations

import logging
import time
import warnings
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor, nn

from benchmarks._timing import Race, Row, batches_of, seconds
from benchmarks.measure import forward
from tightframe.data import ClassificationData, Digits
from tightframe.nn import LinearClassifier
from tightframe.training import ClassifierModule, NeuralCollapseCallback, SmallCNN, make_loader

TITLE = "NeuralCollapseCallback: SmallCNN(1, (32, 64, 128)) on digits, batch 64, validated every epoch"
TINY: dict[str, Any] = {"widths": (2, 3), "epochs": 1, "schedules": (1,), "rounds": 1}
BATCH = 512  # of a measurement


class EpochClock(Callback):
    """Seconds of an epoch, and samples that the network saw in it, in training, validation and measurements."""

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.current_epoch == 0:
            self.seen = 0
            pl_module.backbone.register_forward_pre_hook(self.count)
            self.start = time.process_time()

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.seconds = (time.process_time() - self.start) / trainer.current_epoch
        self.samples = self.seen / trainer.current_epoch

    def count(self, module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        self.seen += len(inputs[0])


def network(data: ClassificationData, widths: tuple[int, ...]) -> ClassifierModule:
    torch.manual_seed(0)
    backbone = SmallCNN(1, widths)
    return ClassifierModule(
        backbone,
        LinearClassifier(backbone.out_features, data.num_classes),
        nn.CrossEntropyLoss(),
        lambda parameters: torch.optim.SGD(parameters, lr=0.05, momentum=0.9),
    )


def epoch(data: ClassificationData, widths: tuple[int, ...], epochs: int, *callbacks: Callback) -> EpochClock:
    """Train and evaluate every epoch, with the given callbacks."""
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
    trainer.fit(network(data, widths), make_loader(data.train, 64, seed=0), make_loader(data.test, BATCH))
    return clock


def forward_seconds(data: ClassificationData, widths: tuple[int, ...]) -> float:
    """Return the time of a forward pass over the training samples, divided by their number."""
    model, batches = network(data, widths).eval(), batches_of(*data.train[:], BATCH)
    forward(model, batches)
    return seconds(lambda: forward(model, batches), 3) / len(data.train)


def run(
    widths: tuple[int, ...] = (32, 64, 128), epochs: int = 5, schedules: tuple[int, ...] = (1, 5), rounds: int = 7
) -> list[Row]:
    for noise in (".*does not have many workers.*", ".*LeafSpec.*"):
        warnings.filterwarnings("ignore", noise)
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    data = Digits(flatten=False).load()
    epoch(data, widths, 1)
    bare: list[float] = []
    timed: dict[int, list[float]] = {n: [] for n in schedules}
    least: dict[int, list[float]] = {n: [] for n in schedules}
    for _ in range(rounds):
        without = epoch(data, widths, epochs)
        bare.append(without.seconds)
        of_sample = forward_seconds(data, widths)
        for n in schedules:
            watched = epoch(data, widths, epochs, NeuralCollapseCallback(every_n_epochs=n, batch_size=BATCH))
            timed[n].append(watched.seconds)
            least[n].append(without.seconds + (watched.samples - without.samples) * of_sample)
    rows = []
    for n in schedules:
        name = f"epoch with the callback, every_n_epochs={n}; peer: without"
        rows.append(Race(timed[n], bare).costlier(name, 1.1))
        rows.append(Race(timed[n], least[n]).costlier(f"{name}, and its forward passes", 1.15))
    return rows
