"""Print the table of docs/reliability.md from the results of the tests: ``python -m tests.reliability junit.xml``.

``pytest --junitxml=junit.xml`` writes them. A test of several cases says how many as its property ``cases``, and how
many were lost as ``lost``; any other test is one case, lost if it fails.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from xml.etree import ElementTree

# What is promised, and the tests that show it, by the beginning of file::test.
PROMISES = [
    (
        "A training killed by SIGKILL is resumed to the same bits",
        ["training/test_kills.py::test_killed", "training/test_resume.py"],
    ),
    (
        "SIGTERM and SIGINT end with 143 and 130, a line, and the same bits",
        ["training/test_kills.py::test_stopped"],
    ),
    ("A full disk loses nothing, and is one line", ["training/test_kills.py::test_a_full_disk"]),
    ("A clock that goes back changes nothing", ["training/test_kills.py::test_a_clock"]),
    ("Two processes write one directory in turn", ["cli/test_cli.py::test_a_second_process", "runs/test_lock.py"]),
    (
        "A damaged file of a directory of runs: same result, or one line that names it",
        ["runs/test_corruption.py::test_damaged"],
    ),
    ("A flipped bit in such a file is seen", ["runs/test_corruption.py::test_a_flipped_bit"]),
    ("A damaged file of data: what was promised, or one line that names it", ["test_damage.py::test_damage"]),
    ("An object planted in a file does not run", ["test_damage.py::test_nothing_that_is_planted"]),
    ("A recipe of a stranger imports nothing", ["cli/test_cli.py::test_a_recipe_of_a_stranger"]),
    ("Random mutations of files: a fixed sample", ["fuzz/test_sample.py"]),
    (
        "Every error is one line, with its exit code",
        ["cli/test_cli.py::test_every_error", "cli/test_cli.py::test_wrong_input", "cli/test_cli.py::test_an_output"],
    ),
    ("A training that a limit ends is not finished", ["cli/test_cli.py::test_a_training"]),
    ("`compare` trains the others when one fails", ["cli/test_cli.py::test_compare_goes_on"]),
    (
        "Ranks with uneven or no data are one process",
        ["probing/test_ranks.py::test_uneven", "metrics/test_collapse_ranks.py", "test_moments_reduce.py"],
    ),
    ("A rank that fails makes the others fail, with its words", ["probing/test_ranks.py::test_a_rank"]),
    ("Theory at the edges of its arguments", ["ufm/test_edges.py"]),
]


def main() -> int:
    """Print the table, and return whether a case was lost or a promise has no test."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("junit", type=Path)
    counts: dict[str, list[tuple[int, int]]] = {}
    for case in ElementTree.parse(parser.parse_args().junit).iter("testcase"):
        properties = {each.get("name"): int(each.get("value", 0)) for each in case.iter("property")}
        failed = int(case.find("failure") is not None or case.find("error") is not None)
        place = case.get("classname", "").removeprefix("tests.").replace(".", "/")
        name = f"{place}.py::{case.get('name')}"
        counts.setdefault(name, []).append((properties.get("cases", 1), max(failed, properties.get("lost", 0))))
    print("| what is promised | shown by | cases tried | lost |\n|---|---|---|---|")
    bad = 0
    for promise, tests in PROMISES:
        found = [pair for name, pairs in counts.items() if name.startswith(tuple(tests)) for pair in pairs]
        tried, lost = (sum(column) for column in zip(*found, strict=True)) if found else (0, 0)
        files = ", ".join(dict.fromkeys(f"tests/{test.partition('::')[0]}" for test in tests))
        print(f"| {promise} | {files} | {tried:,} | {lost} |")
        bad += lost or not tried
    return int(bad > 0)


if __name__ == "__main__":
    sys.exit(main())
