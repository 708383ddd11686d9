"""Kill trainings at random moments until they have finished: ``python -m tests.fuzz.kills --times 50``.

Two recipes, one with a hierarchy and one that locks layers while it trains, in processes of their own. Each is started
again and again, and ended after a random time by SIGKILL, SIGTERM or SIGINT; what it comes to is compared with the same
training left in peace, to the last bit.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from tests.training.test_resume import assert_same_training

SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT)
CODES = {signal.SIGKILL: -9, signal.SIGTERM: 143, signal.SIGINT: 130}
PROGRAM = "from tightframe.cli import main, report; report.run = lambda out: None; main()"
SIZES = ["--epochs", "12", "--collapse.every_n_epochs", "3", "--trainer.enable_progress_bar", "false"]


def recipes(folder: Path) -> dict[str, list[str]]:
    """Return the commands of the two trainings."""
    tree = folder / "tree.tsv"
    tree.write_text("".join(f"root\t{kind}\n" for kind in "ab") + "".join(f"{'ab'[d % 2]}\t{d}\n" for d in range(10)))
    hierarchy = ["train", "digits", "--hierarchy", str(tree), "--backbone.args.widths", "[64, 32]", *SIZES]
    adaptive = [
        "train",
        "adaptive-digits",
        "--method",
        "adaptive",
        "--backbone.args.widths",
        "[32, 32, 32, 32]",
        *SIZES,
    ]
    return {"digits with a hierarchy": hierarchy, "adaptive-digits": adaptive}


def ended(command: list[str], out: Path, number: int | None, after: float) -> tuple[int, str]:
    """Return the exit code of a training, ended by a signal after some seconds, and its last line."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    arguments = [sys.executable, "-c", PROGRAM, *command, "--out", str(out)]
    process = subprocess.Popen(arguments, stderr=subprocess.PIPE, text=True, env=environment)
    if number is not None:
        time.sleep(after)
        process.send_signal(number)
    lines = process.communicate()[1].splitlines()
    return process.returncode, lines[-1] if lines else ""


def main() -> int:
    """Run, print a line for each recipe, and return whether anything was lost."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--times", type=int, default=50, help="signals in all")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    rng, lost = random.Random(options.seed), 0
    print(f"{'recipe':<26}{'SIGKILL':>9}{'SIGTERM':>9}{'SIGINT':>9}{'finished':>10}{'lost':>6}")
    with tempfile.TemporaryDirectory() as place:
        for name, command in recipes(Path(place)).items():
            started = time.monotonic()
            ended(command, Path(place) / name / "whole", None, 0)
            length = time.monotonic() - started
            sent: Counter[int] = Counter()
            trainings = faults = 0
            while sent.total() < options.times // 2:
                out, trainings = Path(place) / name / str(trainings), trainings + 1
                code = -1
                while code and sent.total() < options.times // 2:
                    number = rng.choice(SIGNALS)
                    code, line = ended(command, out, number, rng.uniform(0.3, 1.0) * length)
                    if code:  # else it was faster
                        sent[number] += 1
                        early = code == -number  # before tightframe, or Python, listens
                        if code != CODES[number] and not early:
                            faults += 1
                            print(f"{name}: {signal.Signals(number).name} gave {code}: {line}")
                code, line = ended(command, out, None, 0)
                try:
                    assert code == 0, line
                    assert_same_training(out, Path(place) / name / "whole")
                except AssertionError as error:
                    faults += 1
                    print(f"{name}: {error}")
            print(f"{name:<26}{sent[9]:>9}{sent[15]:>9}{sent[2]:>9}{trainings:>10}{faults:>6}", flush=True)
            lost += faults
    return int(lost > 0)


if __name__ == "__main__":
    sys.exit(main())
