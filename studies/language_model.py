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
import sys
from collections.abc import Sequence
from dataclasses import asdict, fields
from pathlib import Path

import torch

from studies._tables import complete, left_out
from studies.language_model_network import VARIANTS, build, trainable
from studies.language_model_table import CAPTION, draw, table
from studies.language_model_training import Settings, fit
from tightframe.data import StdlibBytes
from tightframe.errors import ConfigError, TightframeError, check_choice
from tightframe.runs import RunDirectory, open_directory
from tightframe.runs.layout import TIMING_FILE


def run(out: Path, variants: Sequence[str], seeds: Sequence[int], settings: Settings, source: StdlibBytes) -> None:
    """Train what is not finished, seed by seed, so that whole comparisons are there early."""
    for variant in variants:
        check_choice("variants", variant, tuple(VARIANTS))
        network = build(variant, settings.width, settings.blocks, 0, settings.gain)
        print(f"{variant}: {len(network.blocks)} blocks, {trainable(network):,} trainable parameters", flush=True)
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


def main(argv: Sequence[str] | None = None) -> int:
    options = parser().parse_args(argv)
    try:
        if options.command == "run":
            if options.num_threads:
                torch.set_num_threads(options.num_threads)
            settings = Settings(**{field.name: getattr(options, field.name) for field in fields(Settings)})
            source = StdlibBytes(settings.validation_fraction)
            run(options.out, options.variants, options.seeds, settings, source)
            return 0
        if options.figure and options.figure.suffix not in (".svg", ".png"):
            raise ConfigError(f"--figure must end in .svg or .png, got {options.figure}")
        directory = RunDirectory.read(options.runs)
        finished = complete(directory)
        if finished.runs:
            print(f"{table(finished)}\n\n{CAPTION}\n")
            if options.figure:
                draw(finished, options.figure)
        left_out(directory)
    except TightframeError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
