"""Tables of the study of mistake severity, from directories that ``tightframe compare`` wrote.

    python -m studies.severity runs/stdlib-hierarchy

Every method is judged by its argmax and by two rules that cost nothing: CRM, and argmax followed by the order of the
tree. Values are ``mean ± 95 % interval`` over seeds, at the last evaluation of the test part. Where a validation part
was held out, parameters are being chosen: then there is its table alone, of argmax, and nobody looks at the test part.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from studies._tables import cell, last, markdown, minus, report_runs
from tightframe.report.history import FEATURES
from tightframe.runs import RunDirectory

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


def table(directory: RunDirectory, split: str, rules: Sequence[str]) -> str:
    rows = []
    for method in directory.runs:
        for rule in rules:
            found = [(last(directory, method, metric + rule, split=split), percent) for _, metric, percent in COLUMNS]
            cells = [cell(values.values(), percent) for values, percent in found]
            rows.append([method + (f", {rule[1:]}" if rule else ""), *cells])
    return markdown(["method", *(name for name, _, _ in COLUMNS)], rows)


def differences(directory: RunDirectory) -> str:
    """Tabulate what each method adds to the first one's values, seed by seed, under argmax."""
    first, *others = directory.runs
    rows = []
    for method in others:
        cells = []
        for _, metric, percent in DIFFERENCES:
            mine, theirs = (last(directory, name, metric, split="test") for name in (method, first))
            cells.append(cell(minus(mine, theirs).values(), percent))
        rows.append([method, *cells])
    return markdown([f"minus {first}", *(name for name, _, _ in DIFFERENCES)], rows)


def alignment(directory: RunDirectory) -> str:
    """Tabulate how far the class means of the training features have come to a fixed frame."""
    rows = []
    for method in directory.runs:
        found = [last(directory, method, metric, split="train", layer=FEATURES) for _, metric in ALIGNMENT]
        if any(found):
            rows.append([method, *(cell(values.values()) for values in found)])
    return markdown(["method", *(name for name, _ in ALIGNMENT)], rows)


def identity(directory: RunDirectory) -> float:
    """Return the largest ``|HD@1 - severity * error|`` of any training and rule."""
    gaps = [0.0]
    for method in directory.runs:
        for rule in RULES:
            distance, severity, error = (
                last(directory, method, f"{metric}{rule}", split="test")
                for metric in ("hierarchical_distance@1", "mistake_severity", "error")
            )
            seeds = [seed for seed in distance if seed in severity and error.get(seed, 0) > 0]
            gaps += [abs(distance[seed] - severity[seed] * error[seed]) for seed in seeds]
    return max(gaps)


def report(directory: RunDirectory) -> None:
    if len(directory.records.where(split="validation", metric="error")):
        print(table(directory, "validation", RULES[:1]), end="\n\n")
        return
    for part in (table(directory, "test", RULES), differences(directory), alignment(directory)):
        print(part, end="\n\n")
    print(f"HD@1 = severity x error to {identity(directory):.1e}\n")


main = report_runs("severity", "Tables of the study of mistake severity.", report)

if __name__ == "__main__":
    sys.exit(main())
