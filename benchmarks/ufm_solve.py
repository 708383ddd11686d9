"""Unconstrained-feature models solved: certified minimum against Adam, and gradient flow to late times."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks._timing import Row, duration, one_thread, report, seconds
from tightframe.ufm.convex import ConvexSolver
from tightframe.ufm.flow import LogTimeFlow
from tightframe.ufm.problems import ULPM, CrossEntropyUFM
from tightframe.ufm.solution import Solution

TOLERANCE = 1e-9
# Of Adam: learning rate and length of its cosine decay; the fastest counts.
SCHEDULES = ((0.1, 1000), (0.3, 500), (0.3, 1000), (0.3, 2000))


class Reached(NamedTuple):
    """How long Adam took, and how far above the minimum it ended, relatively."""

    seconds: float
    excess: float


def imbalanced(K: int, smallest: int, ratio: float, weight_decay: float, feature_decay: float) -> CrossEntropyUFM:
    """Return a model of K classes with counts between two bounds of that ratio, uniform in their logarithm."""
    draw = torch.rand(K - 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    counts = (smallest * ratio**draw).round().int().tolist()
    return CrossEntropyUFM((round(smallest * ratio), *counts, smallest), K, weight_decay, feature_decay)


def adam(
    problem: CrossEntropyUFM, goal: float, schedule: tuple[float, int], cap: float, class_means: bool = False
) -> Reached:
    """Descend in (W, H) with d = K until the objective is within the tolerance of the goal, or the time is over.

    H has a row for each sample, or for each class where the caller knows that its samples share one.
    """
    rate, length = schedule
    counts = torch.tensor(problem.counts)
    labels = torch.arange(len(counts))
    weights, prices = counts.double() / counts.sum(), counts.double()
    if not class_means:
        labels = labels.repeat_interleave(counts)
    generator = torch.Generator().manual_seed(1)
    W, H = (
        torch.randn(rows, problem.dim, generator=generator, dtype=torch.float64).mul_(0.1).requires_grad_()
        for rows in (len(counts), len(labels))
    )

    def objective() -> Tensor:
        logits = H @ W.T
        if class_means:
            fit = weights @ F.cross_entropy(logits, labels, reduction="none")
            square = prices @ H.square().sum(dim=1)
        else:
            fit, square = F.cross_entropy(logits, labels), H.square().sum()
        return fit + problem.weight_decay / 2 * W.square().sum() + problem.feature_decay / 2 * square

    optimizer = torch.optim.Adam([W, H], lr=rate, fused=True)
    decay = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, length)
    start, excess = time.process_time(), math.inf
    for _ in range(length):
        optimizer.zero_grad()
        loss = objective()
        excess = loss.item() / goal - 1
        if excess <= TOLERANCE or time.process_time() - start > cap:
            break
        loss.backward()
        optimizer.step()
        decay.step()
    return Reached(time.process_time() - start, excess)


def against_adam(
    problem: CrossEntropyUFM,
    schedules: Sequence[tuple[float, int]],
    cap: float,
    rounds: int,
    class_means: bool,
    at_least: float | None = None,
) -> Row:
    solution = ConvexSolver(TOLERANCE).solve(problem)
    times = sorted(seconds(lambda: ConvexSolver(TOLERANCE).solve(problem)) for _ in range(rounds))
    ours = statistics.median(times)
    runs = [adam(problem, solution.loss, schedule, cap, class_means) for schedule in schedules]
    arrived = [run.seconds for run in runs if run.excess <= TOLERANCE]
    # One that did not arrive in its time gives a bound.
    theirs = min(arrived) if arrived else max(run.seconds for run in runs)
    what = "class means" if class_means else f"all {problem.num_samples} features"
    name = f"K = {problem.num_classes}, to {TOLERANCE:g} of the minimum; peer: Adam on W and {what}"
    ratio = f"{'' if arrived else '> '}{theirs / ours:.0f}x faster [{theirs / times[-1]:.0f}, {theirs / times[0]:.0f}]"
    if at_least is None:
        return Row(name, duration(ours), duration(theirs), ratio)
    return Row(name, duration(ours), duration(theirs), ratio, f">= {at_least:g}x", theirs / ours >= at_least)


def certificate(problem: CrossEntropyUFM, name: str) -> Row:
    found: list[Solution] = []
    took = seconds(lambda: found.append(ConvexSolver(TOLERANCE).solve(problem)))
    gap = (found[0].loss - found[0].lower_bound) / found[0].loss
    met = gap <= TOLERANCE and took < 5
    return Row(
        f"K = {problem.num_classes}, {name}: certified gap", duration(took), "-", f"{gap:.1e}", "<= 1e-9, < 5 s", met
    )


def flow(problem: ULPM, final_time: float) -> list[Row]:
    """Follow the flow, and print the certified gap p - D, relative to p, on its way."""
    start = time.process_time()
    trajectory = LogTimeFlow(final_time=final_time, records=12).run(problem)
    took = duration(time.process_time() - start)
    name = f"ULPM flow, K = {problem.num_classes}, N = {problem.num_samples}"
    rows = []
    for index in range(3, len(trajectory.times), 3):
        gap = (trajectory.gaps[index] / trajectory.primal[index]).item()
        label = f"{name}: gap at t = {trajectory.times[index].item():.0e}"
        rows.append(Row(label, f"{trajectory.losses[index].item():.3e}", "-", f"{gap:.4f}"))
    drift = trajectory.drifts.max().item()
    met = drift <= 1e-8 and trajectory.reason.endswith("reached") and len(trajectory.times) == 13
    label = f"{name}: largest drift to t = {trajectory.times[-1].item():.0e}"
    return [*rows, Row(label, took, "-", f"{drift:.1e}", "<= 1e-8", met)]


def run(
    K: int = 100,
    smallest: int = 5,
    schedules: Sequence[tuple[float, int]] = SCHEDULES,
    cap: float = 60.0,
    rounds: int = 7,
    final_time: float = 1e12,
) -> list[Row]:
    problem = imbalanced(K, smallest, 100, weight_decay=5e-4, feature_decay=1e-5)
    strong = imbalanced(K, smallest, 100, weight_decay=5e-4, feature_decay=5e-4)
    rows = [certificate(problem, "rank K - 1"), certificate(strong, "rank < K - 1")]
    rows.append(against_adam(problem, schedules, cap, rounds, class_means=False, at_least=50))
    rows.append(against_adam(problem, schedules, cap, rounds, class_means=True))
    for counts in ((5,) * 10, (50, 50, 50, 5, 5)):
        rows += flow(ULPM(counts, len(counts)), final_time)
    return rows


TINY: dict[str, Any] = {
    "K": 6,
    "smallest": 1,
    "schedules": ((0.1, 30),),
    "cap": 1.0,
    "rounds": 1,
    "final_time": 1e2,
}


def main() -> None:
    one_thread()
    columns = ("time, or loss", "peer's time", "gap, drift or ratio")
    report("Unconstrained-feature models, float64", run(), columns)


if __name__ == "__main__":
    main()
