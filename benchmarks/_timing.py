"""The harness of the benchmarks: their groups, timing in pairs, peak memory, rows of a table, and inputs."""

from __future__ import annotations

import importlib
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
from typing import Any, NamedTuple

import threadpoolctl
import torch
from torch import Tensor

import tightframe

SHORTEST = 0.02  # seconds; a shorter call is repeated until it takes as long
STATUS = Path("/proc/self/status")
# Module of each group, a function of the group's name.
GROUPS = {
    **dict.fromkeys(("nc1", "moments", "pairs"), "collapse"),
    "nearest": "nearest",
    **dict.fromkeys(("hierarchy", "etf"), "frames"),
    **dict.fromkeys(("probing", "measure", "callback"), "passes"),
    "ufm": "ufm",
    "sync": "sync",
}
Call = Callable[[], Any]
Batches = list[tuple[Tensor, Tensor]]


class Row(NamedTuple):
    """A line of the table; ``ratio`` is the number that ``target`` speaks about, and ``met`` says whether it does."""

    name: str
    ours: str
    peer: str
    ratio: str
    target: str = "-"
    met: str = "-"


YES_NO = {True: "yes", False: "no"}


def at_most(limit: float | None, name: str, value: float, ours: str = "-", peer: str = "-", text: str = "") -> Row:
    """Return the row of a number that should be small, printed as ``text``; without a limit it is not judged."""
    text = text or f"{value:.1e}"
    target = () if limit is None else (f"<= {limit:g}", YES_NO[value <= limit])
    return Row(name, ours, peer, text, *target)


@dataclass(frozen=True)
class Race:
    """Seconds of a call to each side, round by round."""

    ours: Sequence[float]
    peer: Sequence[float]

    def costs(self) -> list[float]:
        """Return the ratios ours / peer of the rounds in ascending order."""
        return sorted(a / b for a, b in zip(self.ours, self.peer, strict=True))

    def medians(self) -> tuple[str, str]:
        """Return the two times to print."""
        return duration(statistics.median(self.ours)), duration(statistics.median(self.peer))

    def faster(self, name: str, least: float | None = None) -> Row:
        """Return the row of a race that we are to win by a factor."""
        ratios = [1 / cost for cost in reversed(self.costs())]
        middle = statistics.median(ratios)
        text = f"{middle:.1f}x faster [{ratios[0]:.1f}, {ratios[-1]:.1f}]"
        target = () if least is None else (f">= {least:g}x", YES_NO[middle >= least])
        return Row(name, *self.medians(), text, *target)

    def costlier(self, name: str, most: float | None = None) -> Row:
        """Return the row of a race against a bare baseline that does less."""
        ratios = self.costs()
        middle = statistics.median(ratios)
        text = f"{middle:.2f}x the time [{ratios[0]:.2f}, {ratios[-1]:.2f}]"
        return at_most(most, name, middle, *self.medians(), text)


def race(ours: Call, peer: Call, rounds: int) -> Race:
    """Time two functions in turn, so that whatever else the machine does meets both.

    What counts are the seconds of this process alone, which on one thread are those of an idle machine.
    """
    calls = [_calls(function) for function in (ours, peer)]
    return Race(*zip(*([seconds(ours, calls[0]), seconds(peer, calls[1])] for _ in range(rounds)), strict=True))


def _calls(function: Call) -> int:
    first = seconds(function)  # pays for set-up that no later call pays for
    once = first if first > 1 else seconds(function)
    return 1 if once >= SHORTEST else math.ceil(SHORTEST / max(once, 1e-6))


def seconds(function: Call, calls: int = 1, clock: Callable[[], float] = time.process_time) -> float:
    """Return the time of a call, averaged over ``calls`` of them."""
    start = clock()
    for _ in range(calls):
        function()
    return (clock() - start) / calls


def leaner(name: str, ours: float, peer: float, most: float | None = None) -> Row:
    """Return the row of two sizes in bytes; ``most`` is the largest ratio ours / peer."""
    ratio = ours / max(peer, 1)
    return at_most(most, name, ratio, megabytes(ours), megabytes(peer), f"{ratio:.2g}x the memory")


def extra_memory(prepare: Callable[..., Call], small: Sequence[Any], full: Sequence[Any]) -> float:
    """Return by how many bytes the call to ``prepare(*full)()`` raises the memory of a fresh process at its peak.

    ``prepare(*small)()`` runs first, so that libraries are loaded; what ``prepare`` itself holds does not count. It
    must be importable by name. nan where the system keeps no such account (other than Linux).
    """
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(_peak, prepare, small, full).result()


def _peak(prepare: Callable[..., Call], small: Sequence[Any], full: Sequence[Any]) -> float:
    prepare(*small)()
    return peak_of_call(prepare(*full))


def peak_of_call(call: Call) -> float:
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


def run(name: str, tiny: bool = False) -> tuple[str, list[Row]]:
    """Return the title and the rows of a group."""
    module = importlib.import_module(f"benchmarks.{GROUPS[name]}")
    group = getattr(module, name)
    return group.__doc__.splitlines()[0].rstrip("."), group(**(module.TINY[name] if tiny else {}))


def report(title: str, rows: Sequence[Row]) -> None:
    """Print rows as a Markdown table, below the versions, the machine and the threads of each library."""
    pools = sorted({(pool["internal_api"], pool["num_threads"]) for pool in threadpoolctl.threadpool_info()})
    print(
        f"\n## {title}\n\n"
        f"tightframe {tightframe.__version__}, torch {torch.__version__}, Python {platform.python_version()}, "
        f"{platform.system()} {platform.machine()} ({torch.backends.cpu.get_cpu_capability()}), "
        f"{os.cpu_count()} cores, threads: torch {torch.get_num_threads()}, "
        + ", ".join(f"{library} {threads}" for library, threads in pools)
        + "\n"
    )
    lines: list[Sequence[str]] = [("", "ours", "peer", "ratio", "target", "met"), *rows]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
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


def samples(N: int, d: int, K: int) -> tuple[Tensor, Tensor]:
    """Return float32 features about random class means, and labels in random order; the classes are of one size."""
    generator = torch.Generator().manual_seed(0)
    labels = (torch.arange(N) % K)[torch.randperm(N, generator=generator)]
    means = torch.randn(K, d, generator=generator)
    return means[labels] + torch.randn(N, d, generator=generator), labels


def batches_of(inputs: Tensor, labels: Tensor, size: int = 256) -> Batches:
    """Return copies, as a loader gives them.

    The inputs can then be freed. So the allocator does not hand every block back to the system, as it does in a
    process that has never freed a large one.
    """
    return [(x.clone(), y.clone()) for x, y in zip(inputs.split(size), labels.split(size), strict=True)]


def training_step(loss: Callable[[], Tensor], optimizer: torch.optim.Optimizer) -> Call:
    """Return a call that makes one step of an optimizer."""

    def call() -> None:
        optimizer.zero_grad()
        loss().backward()
        optimizer.step()

    return call


def distance(found: Tensor, truth: Tensor) -> float:
    """Return how far a tensor is from the truth, relative to the norm of that."""
    return ((found - truth).norm() / truth.norm()).item()
