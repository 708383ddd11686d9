"""The byte-level language model on the standard library's source: which feed-forward weights must be trained?

    python -m studies.language_model run --out runs/language-model
    python -m studies.language_model run --out runs/large --width 512 --blocks 8 --bf16 --variants baseline,no-ff,w2
    python -m studies.language_model table runs/language-model --figure docs/language_model.svg

The first trains every variant with every seed into ``<out>/<variant>/seed-<s>/``, on a GPU if there is one. What is
finished there is skipped, so calling it again after a kill loses the training that was under way and no more; several
processes may share a directory if their variants or seeds differ. With ``--validation_fraction`` that share of train is
judged by and test is not looked at: for choosing parameters.
"""

from __future__ import annotations

import argparse
import math
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from studies._tables import command, report_finished
from studies.language_model_network import CONTEXT, GPT, VARIANTS, build
from studies.language_model_table import CAPTION, draw, table
from tightframe.data import ByteCorpus, StdlibBytes
from tightframe.data.base import check_fraction
from tightframe.errors import ArgumentError, ConfigError, EmptyDataError, check_choice, check_positive
from tightframe.frames.layers import check_gain
from tightframe.records import Records
from tightframe.runs import RunDirectory, open_directory, write
from tightframe.runs.layout import TIMING_FILE
from tightframe.surgery import lock_to_etf, parameter_report
from tightframe.training.run import quiet

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


def lock(network: GPT, matrices: Sequence[str], optimizer: torch.optim.Optimizer) -> None:
    """Put the nearest simplex, of the best gain, in place of feed-forward matrices; the optimiser forgets these."""
    for i in range(len(network.blocks)):
        for name in matrices:
            lock_to_etf(network, f"blocks.{i}.feed_forward.{name}", classifier=False, optimizer=optimizer)


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
        if batch_idx == self.settings.steps // 3:
            lock(self.network, self.aligned, self.optimizers(use_pl_optimizer=False))

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        loss = negative_log_likelihood(self.network, batch).mean()
        self.losses[batch_idx] = loss.detach()
        return loss

    def on_train_end(self) -> None:
        self.losses[-1].item()  # a GPU may still be busy with the last step
        wall, cpu = time.perf_counter() - self.clocks[0], time.process_time() - self.clocks[1]
        report = parameter_report(self.network, self.optimizers(use_pl_optimizer=False))
        self.timing = {
            "fit_seconds": wall,
            "cpu_seconds": cpu,
            "steps": self.settings.steps,
            "blocks": len(self.network.blocks),
            "trainable_parameters": report.trainable,
            "optimizer_bytes": report.optimizer_bytes,
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
    # Where there is a validation part it is judged by, so that nobody looks at test.
    split, judged = ("test", corpus.test) if corpus.validation is None else ("validation", corpus.validation)
    for name, part in (("train", corpus.train), (split, judged)):
        if len(part) <= CONTEXT:
            raise EmptyDataError(f"{name} must have at least {CONTEXT + 1} bytes, got {len(part)}")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    network = build(variant, settings.width, settings.blocks, seed, settings.gain)
    chosen = VARIANTS[variant]
    module = LanguageModel(network, settings, chosen.matrices if chosen.aligned else ())
    with quiet():
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
    last = 0
    for some in module.losses.split(LOSS_EVERY):
        last += len(some)
        epoch = last * settings.batch_size * CONTEXT // len(corpus.train)
        records.add("loss", some.double().mean().item(), epoch=epoch, step=last, split="train")
    records.add("bits_per_byte", score, epoch=epoch, step=settings.steps, split=split)
    timing = {**module.timing, "device": device}
    write(records, out, run=variant, seed=seed, timing=timing)
    return score, timing


def run(out: Path, variants: Sequence[str], seeds: Sequence[int], settings: Settings, source: StdlibBytes) -> None:
    """Train what is not finished, seed by seed, so that whole comparisons are there early."""
    for variant in variants:
        check_choice("variants", variant, tuple(VARIANTS))
        network = build(variant, settings.width, settings.blocks, 0, settings.gain)
        trainable = parameter_report(network).trainable
        print(f"{variant}: {len(network.blocks)} blocks, {trainable:,} trainable parameters", flush=True)
    config = {**asdict(settings), "python": source.python_version}
    open_directory(out, config, class_names=(), trees={}, sources={})
    corpus = source.load()
    for seed in seeds:
        for variant in variants:
            directory = out / variant / f"seed-{seed}"
            if (directory / TIMING_FILE).exists():
                print(f"{variant}, seed {seed}: finished before", flush=True)
                continue
            score, timing = fit(variant, seed, settings, corpus, out)
            milliseconds = 1000 * timing["fit_seconds"] / settings.steps
            print(f"{variant}, seed {seed}: {score:.4f} bits per byte, {milliseconds:.1f} ms a step", flush=True)


def names(text: str) -> list[str]:
    """Split ``a,b``."""
    return [part for part in text.split(",") if part]


def seeds(text: str) -> list[int]:
    """Split ``0,1``."""
    return [int(part) for part in names(text)]


def parser() -> argparse.ArgumentParser:
    found = argparse.ArgumentParser(prog="python -m studies.language_model", description="The language-model study.")
    commands = found.add_subparsers(dest="command", required=True)
    train = commands.add_parser("run", help="train what is not finished")
    train.add_argument("--out", type=Path, required=True, help="directory of the trainings")
    train.add_argument("--variants", type=names, default=list(VARIANTS), help=f"of {', '.join(VARIANTS)}; default: all")
    train.add_argument("--seeds", type=seeds, default=[0, 1, 2, 3, 4], help="default: 0,1,2,3,4")
    train.add_argument("--num_threads", type=int, help="threads of a process on the CPU")
    for name, kind, text in (
        ("steps", int, "of the optimiser"),
        ("width", int, "of the network, a multiple of 32; the feed-forward layers are four times as wide"),
        ("blocks", int, "of the baseline"),
        ("batch_size", int, "windows of 128 bytes a step"),
        ("learning_rate", float, "at the end of the warm-up"),
        ("gain", float, "of fixed matrices; default: the one that preserves variance after GELU, 1.70"),
        ("validation_fraction", float, "of train, to judge by in place of test"),
    ):
        default = getattr(Settings, name)
        suffix = "" if default is None else f"; default: {default}"
        train.add_argument(f"--{name}", type=kind, default=default, help=text + suffix)
    train.add_argument("--bf16", action="store_true", help="autocast to bfloat16")
    show = commands.add_parser("table", help="print the results as Markdown")
    show.add_argument("runs", type=Path, help="directory of the trainings")
    show.add_argument("--figure", type=Path, help="SVG or PNG to draw the bits against what they cost into")
    return found


@command
def main(argv: Sequence[str] | None) -> None:
    options = parser().parse_args(argv)
    if options.command == "run":
        if options.num_threads:
            torch.set_num_threads(options.num_threads)
        settings = Settings(**{field.name: getattr(options, field.name) for field in fields(Settings)})
        source = StdlibBytes(settings.validation_fraction)
        run(options.out, options.variants, options.seeds, settings, source)
        return
    if options.figure and options.figure.suffix not in (".svg", ".png"):
        raise ConfigError(f"--figure must end in .svg or .png, got {options.figure}")

    def report(finished: RunDirectory) -> None:
        print(f"{table(finished)}\n\n{CAPTION}\n")
        if options.figure:
            draw(finished, options.figure)

    report_finished(RunDirectory.read(options.runs), report)


if __name__ == "__main__":
    sys.exit(main())
