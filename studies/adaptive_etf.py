"""Tables of the study of fewer trainable parameters, from directories that ``tightframe compare`` wrote.

    python -m studies.adaptive_etf runs/adaptive-digits

Values are ``mean ± 95 % interval`` over seeds. Where ``tightframe convert`` was run on the trainings of a method, with
and without ``--truncate``, their conversions are tabulated too.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Iterable, Sequence
from typing import Any

from studies._tables import cell, last, markdown, minus, ratios, report_runs, seeds_of, timing
from tightframe.runs import RunDirectory
from tightframe.surgery.convert import CONVERSION_FILE

TRAINED = "trainable_parameters"
# Stages of a network along its conversion.
Stages = list[dict[str, Any]]


def table(directory: RunDirectory) -> str:
    """Tabulate what each method gets right, and what it trained in the end."""
    first = directory.runs[0]
    baseline = last(directory, first, "accuracy", split="test")
    untouched = timing(directory, first, TRAINED)
    rows = []
    for method in directory.runs:
        accuracy = last(directory, method, "accuracy", split="test")
        trained = timing(directory, method, TRAINED)
        low, high, shares = min(trained.values()), max(trained.values()), ratios(trained, untouched)
        rows.append(
            [
                method,
                str(len(seeds_of(directory, method))),
                cell(accuracy.values(), percent=True),
                "–" if method == first else cell(minus(accuracy, baseline).values(), percent=True),
                cell(last(directory, method, "accuracy", split="train").values(), percent=True),
                f"{low:,.0f} to {high:,.0f}" if low < high else f"{low:,.0f}",
                f"{100 * sum(shares) / len(shares):.0f}",
                _depths(last(directory, method, "effective_depth", split="train").values()),
            ]
        )
    columns = ["method", "seeds", "test %", f"minus {first}", "train %", "trained at the end", "of it %", "depth"]
    return markdown(columns, rows)


def _depths(depths: Iterable[float]) -> str:
    """Write the last effective depth of each seed."""
    return " ".join("none" if math.isnan(d) else f"{d:.0f}" for d in depths) or "–"


def conversions(directory: RunDirectory, method: str, kind: str) -> list[Stages]:
    """Return the stages of each training's conversion, with their share of the first, the one at the depth marked."""
    found = []
    for training in seeds_of(directory, method):
        path = directory.path / method / f"seed-{training.seed}" / kind / CONVERSION_FILE
        if path.is_file():
            facts = json.loads(path.read_text(encoding="utf-8"))
            cut, whole = facts["depth"] if facts["truncated"] else 0, facts["stages"][0]
            for number, stage in enumerate(facts["stages"]):
                shares = {f"share of {name}": stage[name] / whole[name] for name in ("parameters", "flops")}
                stage |= {"chosen": number == cut, **shares}  # without a depth below the last the network stays whole
            found.append(facts["stages"])
    return found


def numbered(names: Iterable[str], trainings: Sequence[Stages]) -> dict[str, Stages]:
    """Return the stages of all trainings by name; some may have fewer."""
    return {name: [stages[i] for stages in trainings if i < len(stages)] for i, name in enumerate(names)}


def locked(trainings: Sequence[Stages]) -> dict[str, Stages]:
    """Return the stages of locking without training: before, after, and with batch norm estimated anew."""
    return numbered(("trained", "locked", "batch norm anew"), trainings)


def truncated(trainings: Sequence[Stages]) -> dict[str, Stages]:
    """Return the stages of cutting: the whole network, at the effective depth, and after each layer."""
    layers = max(map(len, trainings)) - 1
    whole, *after = numbered(["whole", *(f"after {i}" for i in range(1, layers + 1))], trainings).items()
    chosen = [stage for stages in trainings for stage in stages if stage["chosen"]]
    return dict([whole, ("at the effective depth", chosen), *after])


def _stage(stages: Stages) -> list[str]:
    trained = sorted({stage["trainable"] for stage in stages})
    cells = [cell([stage[part] for stage in stages], percent=True) for part in ("train", "test")]
    cells.append(" / ".join(f"{number:,}" for number in trained))
    for name in ("parameters", "flops"):
        cells.append(f"{100 * sum(stage[f'share of {name}'] for stage in stages) / len(stages):.0f}")
    return [*cells, cell([stage["relative"] for stage in stages], percent=True)]


def report(directory: RunDirectory) -> None:
    print(f"{table(directory)}\n")
    for method in directory.runs:
        for kind, stages_of in (("locked", locked), ("truncated", truncated)):
            trainings = conversions(directory, method, kind)
            if trainings:
                rows = [[name, *_stage(stages)] for name, stages in stages_of(trainings).items() if stages]
                columns = [method, "train %", "test %", "trainable", "parameters %", "FLOPs %", "time %"]
                print(f"{markdown(columns, rows)}\n")


main = report_runs("adaptive_etf", "Tables of the study of fewer trainable parameters.", report)

if __name__ == "__main__":
    sys.exit(main())
