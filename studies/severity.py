"""Tables of the study of mistake severity, from directories that ``tightframe compare`` wrote.

    python -m studies.severity runs/stdlib-hierarchy

Every method is judged by its argmax and by two rules that cost nothing: CRM, and argmax followed by the order of the
tree. Values are ``mean ± 95 % interval`` over seeds, at the last evaluation of the test part.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from studies._tables import complete, left_out, markdown, report_runs, seeds_of
from tightframe.report import RunDirectory, Training
from tightframe.report.history import estimate
from tightframe.report.tables import format_estimate

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


def last(training: Training, metric: str) -> float | None:
    """Return the value of the last evaluation of the test part."""
    values = [row.value for row in training.records.where(split="test", layer="", metric=metric)]
    return values[-1] if values else None


def table(directory: RunDirectory) -> str:
    rows = []
    for method in directory.runs:
        for rule in RULES:
            cells = []
            for _, metric, percent in COLUMNS:
                found = [last(training, f"{metric}{rule}") for training in seeds_of(directory, method)]
                values = [value for value in found if value is not None]
                cells.append(format_estimate(estimate(values), percent) if values else "–")
            rows.append([method + (f", {rule[1:]}" if rule else ""), *cells])
    return markdown(["method", *(name for name, _, _ in COLUMNS)], rows)


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
    print(table(finished))
    print(f"\nHD@1 = severity x error to {identity(finished):.1e}\n")
    left_out(directory)


def main(argv: Sequence[str] | None = None) -> int:
    return report_runs("severity", "Tables of the study of mistake severity.", report, argv)


if __name__ == "__main__":
    sys.exit(main())
