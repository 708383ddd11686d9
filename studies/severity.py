"""Tables of the study of mistake severity, from directories that ``tightframe compare`` wrote.

    python -m studies.severity runs/stdlib-hierarchy

Every method is judged by its argmax and by two rules that cost nothing: CRM, and argmax followed by the order of the
tree. Values are ``mean ± 95 % interval`` over seeds, at the last evaluation of the test part. Where a validation part
was held out, parameters are being chosen: then there is its table alone, of argmax, and nobody looks at the test part.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from studies._tables import complete, left_out, markdown, report_runs, seeds_of
from tightframe.report.history import FEATURES, estimate
from tightframe.report.tables import format_estimate
from tightframe.runs import RunDirectory, Training

RULES = ("", ".crm", ".tree-order")
# Name of a column, metric, and whether it is a percentage.
COLUMNS = (
    ("error %", "error", True),
    ("severity", "mistake_severity", False),
    ("HD@1", "hierarchical_distance@1", False),
    ("HD@5", "hierarchical_distance@5", False),
    ("HD@20", "hierarchical_distance@20", False),
    ("HOPS", "hops", False),
    ("HOPS@5", "hops@5", False),
    ("concordance %", "concordance", True),
    ("near %", "near_mistakes", True),
    ("far %", "far_mistakes", True),
)
# Of these the first method's value is taken off, seed by seed.
DIFFERENCES = COLUMNS[:4] + COLUMNS[5:6] + COLUMNS[8:]
# Class means of the training features against a fixed frame.
ALIGNMENT = (
    ("cos(μ, w)", "frame.alignment"),
    ("in its span", "frame.alignment.span"),
    ("means outside the span", "frame.outside.means"),
    ("error of cosines", "frame.cosine_error"),
    ("in its span", "frame.cosine_error.span"),
)


def last(training: Training, metric: str, split: str = "test", layer: str = "") -> float | None:
    """Return the value of the last evaluation of a part."""
    values = [row.value for row in training.records.where(split=split, layer=layer, metric=metric)]
    return values[-1] if values else None


def cell(values: Sequence[float | None], percent: bool = False) -> str:
    known = [value for value in values if value is not None]
    return format_estimate(estimate(known), percent) if known else "–"


def table(directory: RunDirectory, split: str, rules: Sequence[str]) -> str:
    rows = []
    for method in directory.runs:
        for rule in rules:
            trainings = seeds_of(directory, method)
            cells = [
                cell([last(t, metric + rule, split) for t in trainings], percent) for _, metric, percent in COLUMNS
            ]
            rows.append([method + (f", {rule[1:]}" if rule else ""), *cells])
    return markdown(["method", *(name for name, _, _ in COLUMNS)], rows)


def differences(directory: RunDirectory) -> str:
    """Tabulate what each method adds to the first one's values, seed by seed, under argmax."""
    first, *others = directory.runs
    baseline = {training.seed: training for training in seeds_of(directory, first)}
    rows = []
    for method in others:
        pairs = [(t, baseline[t.seed]) for t in seeds_of(directory, method) if t.seed in baseline]
        cells = []
        for _, metric, percent in DIFFERENCES:
            values = [(last(mine, metric), last(theirs, metric)) for mine, theirs in pairs]
            cells.append(cell([a - b for a, b in values if a is not None and b is not None], percent))
        rows.append([method, *cells])
    return markdown([f"minus {first}", *(name for name, _, _ in DIFFERENCES)], rows)


def alignment(directory: RunDirectory) -> str:
    """Tabulate how far the class means of the training features have come to a fixed frame."""
    rows = []
    for method in directory.runs:
        trainings = seeds_of(directory, method)
        found = [[last(t, metric, "train", FEATURES) for t in trainings] for _, metric in ALIGNMENT]
        if any(value is not None for values in found for value in values):
            rows.append([method, *map(cell, found)])
    return markdown(["method", *(name for name, _ in ALIGNMENT)], rows)


def identity(directory: RunDirectory) -> float:
    """Return the largest ``|HD@1 - severity * error|`` of any training and rule."""
    gaps = [0.0]
    for training in directory.trainings:
        for rule in RULES:
            distance, severity, error = (
                last(training, f"{metric}{rule}") for metric in ("hierarchical_distance@1", "mistake_severity", "error")
            )
            if distance is not None and severity is not None and error is not None and error > 0:
                gaps.append(abs(distance - severity * error))
    return max(gaps)


def report(directory: RunDirectory) -> None:
    finished = complete(directory)
    print(f"\n## {directory.path.name}, {len({t.seed for t in finished.trainings})} seeds\n")
    if len(finished.records.where(split="validation", metric="error")):
        print(table(finished, "validation", RULES[:1]), end="\n\n")
        left_out(directory)
        return
    for part in (table(finished, "test", RULES), differences(finished), alignment(finished)):
        print(part, end="\n\n")
    print(f"HD@1 = severity x error to {identity(finished):.1e}\n")
    left_out(directory)


def main(argv: Sequence[str] | None = None) -> int:
    return report_runs("severity", "Tables of the study of mistake severity.", report, argv)


if __name__ == "__main__":
    sys.exit(main())
