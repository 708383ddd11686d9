"""Fuzz the command line, in one process: ``python -m tests.fuzz.commands --minutes 10``.

Each case is a command with one to three options of a value from a list, and a number: ``--first N`` begins there. A
fault is any exit code but 0 and 2, a code 2 without exactly one line, or no answer in half a minute.
"""

from __future__ import annotations

import argparse
import io
import logging
import os
import random
import shutil
import sys
import tempfile
import time
import warnings
from collections import Counter, defaultdict
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

from tests.recipe_material import tiny_recipe
from tightframe import cli
from tightframe.cli import main as tightframe

ANSWER = 30  # seconds
VALUES = [
    *"01+-*x.",
    "",
    "2",
    "-1",
    "1.5",
    "-0",
    "1e999",
    "1e-320",
    "nan",
    "inf",
    "2**80",
    str(2**31),
    str(2**63),
    str(2**70),
]
VALUES += [
    "[]",
    "{}",
    "[1]",
    "[1,2,3]",
    '{"a":1}',
    "null",
    "true",
    "yes",
    "[null]",
    '["a"]',
    "[[[",
    "{",
    "../x",
    "/",
    "a b",
]
VALUES += [
    "é",
    "\ud800",
    "\0",
    "--",
    "/dev/null",
    "no.such.Net",
    "relu",
    "learned",
    "[4]",
    "cpu",
    '{"class_path":"a.B"}',
]
PLACES = {
    "theory": ["cross-entropy", "mse", "layer-peeled", "ulpm", "max-margin", "relu", "deep-cross-entropy", "deep-mse"],
    "recipes": ["list", "show", "copy", "digits"],
    "report": ["RUNS", ".", "x"],
    "convert": ["RUNS/learned/seed-0", "."],
    "train": ["recipe.yaml"],
    "compare": ["recipe.yaml"],
    "frame": ["--dim"],
}
ALWAYS = {
    "theory": ["--counts", "[5,3]"],
    "frame": ["--hierarchy", "tree.tsv", "--out", "frame.safetensors"],
    "train": ["--out", "out"],
    "compare": ["--out", "out", "--num_seeds", "1"],
}
KEYS = """
name args args.widths args.lr layers preset every_n_epochs batch_size max_batches hold_bytes splits forward
"""
TRAINER = """
precision max_steps max_time accelerator logger strategy limit_train_batches gradient_clip_val devices
accumulate_grad_batches check_val_every_n_epoch callbacks max_epochs plugins profiler val_check_interval
"""


def options(command: str) -> list[str]:
    """Return the options of a command, and keys below those that are mappings."""
    parser = cli.build_parser([command])._subcommands_action._name_parser_map[command]
    found = [action.option_strings[-1] for action in parser._actions if action.option_strings]
    found = [option for option in found if option != "--config" and not option.endswith("help")]
    if command in ("train", "compare"):
        parts = ("data", "backbone", "optimizer", "scheduler", "transform", "collapse", "methods.learned.classifier")
        found += [f"--{part}.{key}" for part in parts for key in KEYS.split()] + [
            f"--trainer.{key}" for key in TRAINER.split()
        ]
    return found


def ended(arguments: list[str]) -> tuple[object, str]:
    """Return the exit code of a command, or what it raised, and its error output."""
    out, err = io.StringIO(), io.StringIO()
    try:
        with redirect_stdout(out), redirect_stderr(err):
            tightframe(arguments)
    except SystemExit as end:
        return end.code, err.getvalue()
    except BaseException as error:
        return f"raised {error!r}", err.getvalue()
    return 0, err.getvalue()


def main() -> int:
    """Run in an empty folder, print counts and faults, and return whether there are faults."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=5)
    parser.add_argument("--first", type=int, default=0)
    wanted = parser.parse_args()
    warnings.simplefilter("ignore")
    logging.disable()
    known = {command: options(command) for command in PLACES}
    counts: dict[str, Counter[object]] = defaultdict(Counter)
    faults: dict[str, list[tuple[int, list[str]]]] = defaultdict(list)
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        tiny_recipe(Path(folder))
        ended(["train", "recipe.yaml", "--out", "RUNS"])
        number, end = wanted.first, time.monotonic() + 60 * wanted.minutes
        while time.monotonic() < end:
            rng = random.Random(number)
            command = rng.choice(list(PLACES))
            place = rng.choice(PLACES[command]) if rng.random() < 0.95 else rng.choice(VALUES)
            choices = known[command] or VALUES
            drawn = [(rng.choice(choices), rng.choice(VALUES)) for _ in range(rng.choice([1, 1, 2, 3]))]
            arguments = [command, place, *ALWAYS.get(command, []), *(word for pair in drawn for word in pair)]
            started = time.monotonic()
            code, err = ended(arguments)
            lines = [line for line in err.splitlines() if line.startswith("tightframe: ")]
            counts[command][code] += 1
            wrong = code not in (0, 2) or (code == 2 and len(lines) != 1) or time.monotonic() - started > ANSWER
            if wrong:
                faults[f"{command}: {code} {err.strip()[-150:]!r}"].append((number, arguments))
            shutil.rmtree("out", ignore_errors=True)
            number += 1
    print(f"{'command':<10}{'cases':>8}{'exit 0':>8}{'exit 2':>8}{'faults':>8}")
    for command, found in [*counts.items(), ("all", sum(counts.values(), Counter()))]:
        rest = found.total() - found[0] - found[2]
        print(f"{command:<10}{found.total():>8}{found[0]:>8}{found[2]:>8}{rest:>8}")
    for said, cases in faults.items():
        print(f"{len(cases)} times, such as case {cases[0]}: {said}")
    return int(bool(faults))


if __name__ == "__main__":
    sys.exit(main())
