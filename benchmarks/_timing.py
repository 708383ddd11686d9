"""What the benchmarks share: paired timing, the peak memory of a fresh process, one table."""

from __future__ import annotations

import math
import os
import platform
import re
import statistics
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import threadpoolctl
import torch

import tightframe

SHORTEST = 0.02  # seconds; a shorter call is repeated until it takes as long
STATUS = Path("/proc/self/status")


@dataclass(frozen=True)
class Row:
    """A line of the table; ``ratio`` is the number that ``target`` speaks about, ``met`` None where there is none."""

    name: str
    ours: str
    peer: str
    ratio: str
    target: str = "-"
    met: bool | None = None


@dataclass(frozen=True)
class Race:
    """Seconds of a call to each side, round by round."""

    ours: tuple[float, ...]
    peer: tuple[float, ...]

    def costs(self) -> list[float]:
        """Return the ratios ours / peer of the rounds in ascending order."""
        return sorted(a / b for a, b in zip(self.ours, self.peer, strict=True))

    def faster(self, name: str, at_least: float | None = None) -> Row:
        """Return the row of a race that we are to win by a factor."""
        ratios = [1 / cost for cost in reversed(self.costs())]
        middle = statistics.median(ratios)
        text = f"{middle:.1f}x faster [{ratios[0]:.1f}, {ratios[-1]:.1f}]"
        if at_least is None:
            return self._row(name, text)
        return self._row(name, text, f">= {at_least:g}x", middle >= at_least)

    def costlier(self, name: str, at_most: float | None = None) -> Row:
        """Return the row of a race against a bare baseline that does less."""
        ratios = self.costs()
        middle = statistics.median(ratios)
        text = f"{middle:.2f}x the time [{ratios[0]:.2f}, {ratios[-1]:.2f}]"
        if at_most is None:
            return self._row(name, text)
        return self._row(name, text, f"<= {at_most:g}x", middle <= at_most)

    def _row(self, name: str, ratio: str, target: str = "-", met: bool | None = None) -> Row:
        mine, theirs = statistics.median(self.ours), statistics.median(self.peer)
        return Row(name, duration(mine), duration(theirs), ratio, target, met)


def race(
    ours: Callable[[], Any],
    peer: Callable[[], Any],
    rounds: int,
    clock: Callable[[], float] = time.process_time,
) -> Race:
    """Time two functions in turn, so that whatever else the machine does meets both.

    What counts are the seconds of this process alone, which on one thread are those of an idle machine. On several
    threads these add up, and only ``time.perf_counter`` tells how long one waits.
    """
    calls = [_calls(function) for function in (ours, peer)]
    rows = [[seconds(f, n, clock) for f, n in zip((ours, peer), calls, strict=True)] for _ in range(rounds)]
    mine, theirs = zip(*rows, strict=True)
    return Race(mine, theirs)


def _calls(function: Callable[[], Any]) -> int:
    first = seconds(function)  # pays for set-up that no later call pays for
    once = first if first > 1 else seconds(function)
    return 1 if once >= SHORTEST else math.ceil(SHORTEST / max(once, 1e-6))


def seconds(function: Callable[[], Any], calls: int = 1, clock: Callable[[], float] = time.process_time) -> float:
    """Return the time of a call, averaged over so many."""
    start = clock()
    for _ in range(calls):
        function()
    return (clock() - start) / calls


def extra_memory(prepare: Callable[..., Callable[[], Any]], small: Sequence[Any], full: Sequence[Any]) -> float:
    """Return by how many bytes the call to ``prepare(*full)()`` raises the memory of a fresh process at its peak.

    ``prepare(*small)()`` runs first, so that libraries are loaded; what ``prepare`` itself holds does not count. It
    must be importable by name. nan where the system keeps no such account (other than Linux).
    """
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(peak_of, prepare, small, full).result()


def peak_of(prepare: Callable[..., Callable[[], Any]], small: Sequence[Any], full: Sequence[Any]) -> float:
    """Do what :func:`extra_memory` says in this process."""
    one_thread()
    prepare(*small)()
    return peak_of_call(prepare(*full))


def peak_of_call(call: Callable[[], Any]) -> float:
    """Return by how many bytes a call raises the memory of this process at its peak."""
    if not STATUS.exists():
        return math.nan
    # Not getrusage: a child process starts from the peak of its parent there.
    Path("/proc/self/clear_refs").write_text("5")  # the peak restarts from now
    before = _status("VmRSS")
    kept = call()
    after = _status("VmHWM")
    del kept
    return after - before


def _status(field: str) -> float:
    found = re.search(rf"{field}:\s+(\d+) kB", STATUS.read_text())
    return math.nan if found is None else 1024.0 * int(found[1])


def one_thread() -> None:
    """Let torch use one thread: ratios then depend on the arithmetic and not on who else wants the cores."""
    torch.set_num_threads(1)


def environment() -> str:
    """Return versions, machine and the threads that each library would use in one line."""
    pools = sorted({(pool["internal_api"], pool["num_threads"]) for pool in threadpoolctl.threadpool_info()})
    return (
        f"tightframe {tightframe.__version__}, torch {torch.__version__}, Python {platform.python_version()}, "
        f"{platform.system()} {platform.machine()} ({torch.backends.cpu.get_cpu_capability()}), "
        f"{os.cpu_count()} cores, threads: torch {torch.get_num_threads()}, "
        + ", ".join(f"{library} {threads}" for library, threads in pools)
    )


def report(title: str, rows: Sequence[Row], columns: tuple[str, str, str] = ("ours", "peer", "ratio")) -> None:
    """Print rows as a Markdown table."""
    lines: list[tuple[str, ...]] = [("", *columns, "target", "met")]
    for row in rows:
        met = "-" if row.met is None else "yes" if row.met else "no"
        lines.append((row.name, row.ours, row.peer, row.ratio, row.target, met))
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    print(f"\n## {title}\n\n{environment()}\n")
    lines.insert(1, tuple("-" * width for width in widths))
    for line in lines:
        print("| " + " | ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) + " |")


def duration(seconds: float) -> str:
    """Return a time with three digits and its unit."""
    for unit, scale in (("s", 1.0), ("ms", 1e-3)):
        if seconds >= scale:
            return f"{seconds / scale:.3g} {unit}"
    return f"{seconds * 1e6:.3g} us"


def megabytes(size: float) -> str:
    """Return a size with its unit."""
    return f"{size / 2**20:.0f} MiB"
