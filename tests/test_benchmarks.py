"""The benchmarks run, and the harness counts rightly; their speed is not looked at here."""

import math
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from benchmarks import _timing, collapse, sync
from benchmarks.__main__ import speedup, times
from benchmarks._timing import GROUPS, Race, Row


def test_every_benchmark_is_run_by_the_command():
    assert {path.stem for path in Path(_timing.__file__).parent.glob("[!_]*.py")} == {*GROUPS.values(), "statements"}


@pytest.mark.parametrize("name", GROUPS)
def test_a_tiny_run_fills_its_table(name, capsys, monkeypatch, tmp_path):
    pytest.importorskip(f"benchmarks.{GROUPS[name]}")
    # In this process, as a fresh one takes seconds to start.
    monkeypatch.setattr(_timing, "ProcessPoolExecutor", lambda size, mp_context: ThreadPoolExecutor(size))
    monkeypatch.setattr(sync, "two_ranks", lambda *args: [sync.on_rank(0, 1, (tmp_path / "store").as_uri(), *args)])
    title, rows = _timing.run(name, tiny=True)
    assert all(cell for row in rows for cell in row)
    assert all((row.met == "-") == (row.target == "-") for row in rows)
    _timing.report(title, rows)
    table = [line for line in capsys.readouterr().out.splitlines() if line.startswith("|")]
    assert len(table) == len(rows) + 2


@pytest.mark.parametrize("name", [name for name in collapse.CASES if "2048" not in name])
def test_nc1_of_small_cases_is_that_of_the_reference(name):
    assert collapse.nc1_error(name, collapse.CASES[name]()).met == "yes"


def test_ratios_come_from_pairs():
    race = Race(ours=(1.0, 2.0, 8.0), peer=(2.0, 6.0, 8.0))
    assert race.costs() == [1 / 3, 0.5, 1.0]
    assert race.faster("a", 2) == Row("a", "2 s", "6 s", "2.0x faster [1.0, 3.0]", ">= 2x", "yes")
    assert race.faster("a", 2.1).met == "no"
    assert race.costlier("a", 0.5) == Row("a", "2 s", "6 s", "0.50x the time [0.33, 1.00]", "<= 0.5", "yes")
    assert race.costlier("a", 0.4).met == "no"
    assert race.costlier("a").met == "-"


def test_a_race_warms_up_and_alternates(monkeypatch):
    monkeypatch.setattr(_timing, "SHORTEST", 0.0)
    called: list[str] = []
    result = _timing.race(lambda: called.append("a"), lambda: called.append("b"), rounds=3)
    assert "".join(called) == "aabb" + "ab" * 3
    assert len(result.costs()) == 3


def test_two_checkouts_are_compared_row_by_row(capsys):
    found = []
    for units in ((1.0, 0.02, 5e-5), (4.0, 0.01, 2e-4)):
        rows = [Race((t,), (1.0,)).faster(f"row {i}") for i, t in enumerate(units)]
        _timing.report("title", [*rows, Row("a size", "3 MiB", "4 MiB", "-")])
        found.append(times(capsys.readouterr().out))
    assert found[0] == pytest.approx({"row 0": 1.0, "row 1": 0.02, "row 2": 5e-5})
    assert speedup(*found) == pytest.approx((1 / 4 * 2 * 1 / 4) ** (1 / 3))
    assert math.isnan(speedup({"a": 1.0}, {"b": 1.0}))


def test_both_sides_use_one_thread():
    code = "from benchmarks import collapse, _timing; _timing.report('', [])"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    threads = re.findall(r" (\w+) (\d+)(?=[,\n])", found.partition("threads:")[2])
    assert {"torch", "openmp"} < dict(threads).keys()
    assert set(dict(threads).values()) == {"1"}


def test_seconds_average_over_calls():
    ticks = iter([10.0, 12.0])
    assert _timing.seconds(lambda: None, calls=4, clock=lambda: next(ticks)) == 0.5


@pytest.mark.skipif(not _timing.STATUS.exists(), reason="the account of memory is Linux's")
def test_peak_memory_counts_what_a_call_frees_again():
    differences_and_squares = 2 * 4 * 400 * 400 * 32
    assert _timing.extra_memory(collapse.untiled, (8, 8), (400, 32)) == pytest.approx(differences_and_squares, rel=0.25)
