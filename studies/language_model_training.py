"""One training of the language-model study: settings, corpus and variant in; records and timing out."""

from __future__ import annotations

import logging
import math
import time
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from studies.language_model_network import CONTEXT, GPT, VARIANTS, build, lock, optimizer_bytes, trainable
from tightframe.data import ByteCorpus
from tightframe.data.base import check_fraction
from tightframe.errors import ArgumentError, EmptyDataError, check_positive
from tightframe.frames.layers import check_gain
from tightframe.records import Records
from tightframe.runs import write
from tightframe.surgery import parameter_report

SCORED_WINDOWS = 1500
LOSS_EVERY = 100
Timing = dict[str, Any]


@dataclass(frozen=True)
class Settings:
    """Settings that all trainings of a directory share.

    Args:
        steps: Number of steps of the optimizer.
        width: Width of the network.
        blocks: Number of blocks of the baseline.
        batch_size: Windows of a step.
        learning_rate: Learning rate at the end of the warm-up.
        gain: Gain of the fixed matrices; None preserves variance.
        validation_fraction: Share of train to judge by, while parameters are chosen; with 0, test is judged by.
        bf16: Whether to train and judge under autocast to bfloat16.
    """

    steps: int = 2400
    width: int = 128
    blocks: int = 4
    batch_size: int = 16
    learning_rate: float = 3e-3
    gain: float | None = None
    validation_fraction: float = 0.0
    bf16: bool = False

    def __post_init__(self) -> None:
        for name in ("steps", "width", "blocks", "batch_size"):
            check_positive(name, getattr(self, name))
        if not 0 < self.learning_rate < math.inf:
            raise ArgumentError(f"learning_rate must be a finite number > 0, got {self.learning_rate!r}")
        if self.gain is not None:
            check_gain(self.gain)
        check_fraction("validation_fraction", self.validation_fraction)


class Windows(Dataset[Tensor]):
    """One batch a step, ``(B, 129)`` int64, from places that the seed alone decides."""

    def __init__(self, text: Tensor, steps: int, batch_size: int, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.text = text
        self.starts = torch.randint(len(text) - CONTEXT, (steps, batch_size), generator=generator)

    def __len__(self) -> int:
        return len(self.starts)

    def __getitem__(self, step: int) -> Tensor:
        return windows_at(self.text, self.starts[step])


def windows_at(text: Tensor, starts: Tensor) -> Tensor:
    """Return the 128 bytes at each start and the one after them, ``(B, 129)`` int64."""
    return text[starts.unsqueeze(1) + torch.arange(CONTEXT + 1)].long()


def rate(step: int, steps: int) -> float:
    """Return the share of the learning rate at a step: 5 % of linear warm-up, then a cosine down to 5 %."""
    warm = math.ceil(0.05 * steps)
    if step < warm:
        return (step + 1) / warm
    return 0.525 + 0.475 * math.cos(math.pi * (step - warm) / max(steps - 1 - warm, 1))


def negative_log_likelihood(network: GPT, windows: Tensor) -> Tensor:
    """Return the nats of every byte but the first of each window, ``(B * 128,)``."""
    logits = network(windows[:, :-1])
    return F.cross_entropy(logits.float().flatten(0, 1), windows[:, 1:].flatten(), reduction="none")


@torch.no_grad()
def bits_per_byte(network: GPT, text: Tensor, batch_size: int = 100, bf16: bool = False) -> float:
    """Return the mean over 1,500 evenly spaced windows of 128 predicted bytes, each without what stands before it."""
    device = network.output.weight.device
    network.eval()
    starts = torch.arange(SCORED_WINDOWS) * (len(text) - CONTEXT - 1) // (SCORED_WINDOWS - 1)
    total = 0.0
    for some in starts.split(batch_size):
        with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
            total += float(negative_log_likelihood(network, windows_at(text, some).to(device)).double().sum())
    return total / (SCORED_WINDOWS * CONTEXT * math.log(2))


class LanguageModel(LightningModule):
    """The training of one network by the recipe; a step costs 128.9 ms of one CPU, in a plain loop 128.8.

    Args:
        network: as its variant starts.
        settings: of the training.
        aligned: feed-forward matrices to lock after a third of the steps.
    """

    losses: Tensor

    def __init__(self, network: GPT, settings: Settings, aligned: tuple[str, ...]) -> None:
        super().__init__()
        self.network = network
        self.settings = settings
        self.aligned = aligned
        # In one block: a tensor for each step, allocated between the activations, would keep the heap from shrinking.
        self.register_buffer("losses", torch.empty(settings.steps), persistent=False)
        self.timing: Timing = {}

    def on_train_start(self) -> None:
        self.clocks = time.perf_counter(), time.process_time()

    def on_train_batch_start(self, batch: Tensor, batch_idx: int) -> None:
        if self.aligned and batch_idx == self.settings.steps // 3:
            lock(self.network, self.aligned, self.optimizers(use_pl_optimizer=False))

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        loss = negative_log_likelihood(self.network, batch).mean()
        self.losses[batch_idx] = loss.detach()
        return loss

    def on_train_end(self) -> None:
        self.losses[-1].item()  # a GPU may still be busy with the last step
        wall, cpu = self.clocks
        self.timing = {
            "fit_seconds": time.perf_counter() - wall,
            "cpu_seconds": time.process_time() - cpu,
            "steps": self.settings.steps,
            "blocks": len(self.network.blocks),
            "trainable_parameters": trainable(self.network),
            "optimizer_bytes": optimizer_bytes(self.optimizers(use_pl_optimizer=False)),
            "optimizer_bytes_saved": parameter_report(self.network, "adam").optimizer_bytes_saved,
        }

    def configure_optimizers(self) -> Any:
        parameters = [p for p in self.network.parameters() if p.requires_grad]
        groups = [
            {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": 0.1},
            {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
        ]
        optimizer = torch.optim.AdamW(groups, lr=self.settings.learning_rate, betas=(0.9, 0.95))
        steps = self.settings.steps
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: rate(step, steps))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}


def judged_part(corpus: ByteCorpus) -> tuple[str, Tensor]:
    """Return name and text of the part to judge by: validation where there is one, so that nobody looks at test."""
    return ("test", corpus.test) if corpus.validation is None else ("validation", corpus.validation)


def fit(variant: str, seed: int, settings: Settings, corpus: ByteCorpus, out: Path) -> tuple[float, Timing]:
    """Train and judge one network; write ``records.jsonl`` and then ``timing.json``; return bits per byte and timing.

    A training leaves nothing before it is finished, and its result depends on the arguments alone.

    Args:
        variant: one of ``VARIANTS``.
        seed: of weights and order.
        settings: of the training.
        corpus: what to learn and to judge by.
        out: Directory of runs.

    Raises:
        EmptyDataError: if a part has fewer than 129 bytes.
    """
    split, judged = judged_part(corpus)
    for name, part in (("train", corpus.train), (split, judged)):
        if len(part) <= CONTEXT:
            raise EmptyDataError(f"{name} must have at least {CONTEXT + 1} bytes, got {len(part)}")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    network = build(variant, settings.width, settings.blocks, seed, settings.gain)
    module = LanguageModel(network, settings, VARIANTS[variant].aligned)
    with warnings.catch_warnings():
        for text in (".*does not have many workers.*", ".*LeafSpec.*"):
            warnings.filterwarnings("ignore", text)
        logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
        Trainer(
            max_steps=settings.steps,
            gradient_clip_val=1.0,
            accelerator=device,
            devices=1,
            precision="bf16-mixed" if settings.bf16 else "32-true",
            logger=False,
            log_every_n_steps=1,
            enable_checkpointing=False,
            enable_model_summary=False,
            enable_progress_bar=False,
        ).fit(module, DataLoader(Windows(corpus.train, settings.steps, settings.batch_size, seed), batch_size=None))
    score = bits_per_byte(network.to(device), judged, bf16=settings.bf16)

    records = Records()
    for last, loss in _means(module.losses):
        epoch = last * settings.batch_size * CONTEXT // len(corpus.train)
        records.add("loss", loss, epoch=epoch, step=last, split="train")
    records.add("bits_per_byte", score, epoch=epoch, step=settings.steps, split=split)
    timing = {**module.timing, "device": device}
    write(records, out, run=variant, seed=seed, timing=timing)
    return score, timing


def _means(losses: Tensor) -> Iterator[tuple[int, float]]:
    """Yield step and mean loss of every hundred steps."""
    last = 0
    for some in losses.split(LOSS_EVERY):
        last += len(some)
        yield last, some.double().mean().item()
