"""Tables of the study of fewer trainable parameters, from directories that ``tightframe compare`` wrote.

    python -m studies.adaptive_etf runs/adaptive-digits

Values are ``mean ± 95 % interval`` over seeds. Where ``tightframe convert`` was run on the trainings of a method, with
and without ``--truncate``, their conversions are tabulated too.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Sequence
from typing import Any

from studies._tables import complete, left_out, markdown, report_runs, seeds_of
from tightframe.report.history import estimate
from tightframe.report.tables import format_estimate
from tightframe.runs import RunDirectory, Training
from tightframe.surgery.convert import CONVERSION_FILE


def values_of(training: Training, metric: str, split: str) -> list[float]:
    return [row.value for row in training.records.where(split=split, layer="", metric=metric)]


def cell(values: Sequence[float], percent: bool = False) -> str:
    return format_estimate(estimate(values), percent) if values else "–"


def table(directory: RunDirectory) -> str:
    """Tabulate what each method gets right, and what it trained in the end."""
    first = directory.runs[0]
    baseline = {t.seed: t for t in seeds_of(directory, first)}
    rows = []
    for method in directory.runs:
        trainings = seeds_of(directory, method)
        accuracy = {t.seed: values_of(t, "accuracy", "test")[-1] for t in trainings}
        gaps = [a - values_of(baseline[s], "accuracy", "test")[-1] for s, a in accuracy.items() if s in baseline]
        trained = [float(t.timing["trainable_parameters"]) for t in trainings]
        shares = [n / baseline[t.seed].timing["trainable_parameters"] for n, t in zip(trained, trainings, strict=True)]
        depths = [d[-1] for t in trainings if (d := values_of(t, "effective_depth", "train"))]
        row = [method, str(len(trainings)), cell(list(accuracy.values()), percent=True)]
        row += ["–" if method == first else cell(gaps, percent=True)]
        row += [cell([values_of(t, "accuracy", "train")[-1] for t in trainings], percent=True)]
        row += [f"{min(trained):,.0f} to {max(trained):,.0f}" if len(set(trained)) > 1 else f"{trained[0]:,.0f}"]
        row += [f"{100 * sum(shares) / len(shares):.0f}", _depths(depths)]
        rows.append(row)
    columns = ["method", "seeds", "test %", f"minus {first}", "train %", "trained at the end", "of it %", "depth"]
    return markdown(columns, rows)


def _depths(depths: Sequence[float]) -> str:
    """Write the last effective depth of each seed."""
    return " ".join("none" if math.isnan(d) else f"{d:.0f}" for d in depths) or "–"


def conversions(directory: RunDirectory, method: str, kind: str) -> list[list[dict[str, Any]]]:
    """Return the stages of each training's conversion, the one at its effective depth marked."""
    found = []
    for training in seeds_of(directory, method):
        path = directory.path / method / f"seed-{training.seed}" / kind / CONVERSION_FILE
        if path.is_file():
            facts = json.loads(path.read_text(encoding="utf-8"))
            cut = facts["depth"] if facts["truncated"] else 0  # without a depth below the last the network stays whole
            for number, stage in enumerate(facts["stages"]):
                stage["chosen"] = number == cut
            found.append(facts["stages"])
    return found


def converted(directory: RunDirectory, method: str) -> str:
    """Tabulate locking without training: before, after, and with batch norm estimated anew."""
    trainings = conversions(directory, method, "locked")
    names = ("trained", "locked", "batch norm anew")
    reached = [(name, [t[i] for t in trainings if i < len(t)]) for i, name in enumerate(names)]
    rows = [[name, *_stage(stages)] for name, stages in reached if stages]  # a network may have no batch norm
    return markdown([method, "train %", "test %", "trainable", "parameters %", "FLOPs %", "time %"], rows)


def truncated(directory: RunDirectory, method: str) -> str:
    """Tabulate cutting: the whole network, at the effective depth, and after each layer."""
    trainings = conversions(directory, method, "truncated")
    rows = [["whole", *_stage([t[0] for t in trainings])]]
    chosen = [stage for t in trainings for stage in t if stage["chosen"]]
    rows += [["at the effective depth", *_stage(chosen, [t[0] for t in trainings])]]
    for i in range(1, max(map(len, trainings))):
        rows += [[f"after {i}", *_stage([t[i] for t in trainings if i < len(t)], [t[0] for t in trainings])]]
    return markdown([method, "train %", "test %", "trainable", "parameters %", "FLOPs %", "time %"], rows)


def _stage(stages: Sequence[dict[str, Any]], whole: Sequence[dict[str, Any]] = ()) -> list[str]:
    if not stages:
        return ["–"] * 6
    trained = sorted({stage["trainable"] for stage in stages})
    cells = [cell([stage[part] for stage in stages], percent=True) for part in ("train", "test")]
    cells.append(" / ".join(f"{number:,}" for number in trained))
    for name in ("parameters", "flops"):
        shares = [a[name] / b[name] for a, b in zip(stages, whole or stages, strict=False)]
        cells.append(f"{100 * sum(shares) / len(shares):.0f}")
    return [*cells, cell([stage["relative"] for stage in stages], percent=True)]


def report(directory: RunDirectory) -> None:
    finished = complete(directory)
    print(f"\n## {directory.path.name}\n\n{table(finished)}\n")
    for method in finished.runs:
        for kind, tabulate in (("locked", converted), ("truncated", truncated)):
            if conversions(finished, method, kind):
                print(f"{tabulate(finished, method)}\n")
    left_out(directory)


def main(argv: Sequence[str] | None = None) -> int:
    return report_runs("adaptive_etf", "Tables of the study of fewer trainable parameters.", report, argv)


if __name__ == "__main__":
    sys.exit(main())
