"""Unconstrained-feature models: certified minimum against Adam, thresholds of minority collapse."""

from __future__ import annotations

import math
import random
import statistics
import time
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks._timing import Call, Race, Row, at_most, duration, seconds
from tightframe.ufm import CrossEntropyUFM, minority_collapse_threshold
from tightframe.ufm.convex import ConvexSolver

TOLERANCE = 1e-9
# Of Adam: learning rate and length of its cosine decay; the fastest counts.
SCHEDULES = ((0.1, 1000), (0.3, 500), (0.3, 1000), (0.3, 2000))
TINY: dict[str, dict[str, Any]] = {
    "ufm": {"K": 6, "smallest": 1, "schedules": ((0.1, 30),), "rounds": 1, "drawn": 3, "largest": 5},
}
Model = tuple[int, int, float, float]  # majority and minority classes, feature and weight budget


def imbalanced(K: int, smallest: int, feature_decay: float) -> CrossEntropyUFM:
    """Return a model of K classes with counts between bounds of ratio 100, uniform in their logarithm."""
    draw = torch.rand(K - 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    counts = (smallest * 100**draw).round().int().tolist()
    return CrossEntropyUFM((smallest * 100, *counts, smallest), K, 5e-4, feature_decay)


def adam(problem: CrossEntropyUFM, goal: float, rate: float, length: int, class_means: bool) -> tuple[float, bool]:
    """Descend in (W, H) with d = K; return the time, and whether the objective came within the tolerance of the goal.

    H has a row for each sample, or for each class where the caller knows that its samples share one.
    """
    prices = torch.tensor(problem.counts).double()
    labels = torch.arange(len(prices))
    if not class_means:
        labels = labels.repeat_interleave(prices.long())
        prices = torch.ones(len(labels), dtype=torch.float64)
    generator = torch.Generator().manual_seed(1)
    W, H = (
        torch.randn(rows, problem.dim, generator=generator, dtype=torch.float64).mul_(0.1).requires_grad_()
        for rows in (problem.num_classes, len(labels))
    )

    def objective() -> Tensor:
        fit = prices @ F.cross_entropy(H @ W.T, labels, reduction="none") / problem.num_samples
        square = prices @ H.square().sum(dim=1)
        return fit + problem.weight_decay / 2 * W.square().sum() + problem.feature_decay / 2 * square

    optimizer = torch.optim.Adam([W, H], lr=rate, fused=True)
    decay = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, length)
    start, excess = time.process_time(), math.inf
    for _ in range(length):
        optimizer.zero_grad()
        loss = objective()
        excess = loss.item() / goal - 1
        if excess <= TOLERANCE:
            break
        loss.backward()
        optimizer.step()
        decay.step()
    return time.process_time() - start, excess <= TOLERANCE


def against_adam(
    problem: CrossEntropyUFM,
    schedules: Sequence[tuple[float, int]],
    rounds: int,
    class_means: bool,
    least: float | None = None,
) -> Row:
    solve = partial(ConvexSolver(TOLERANCE).solve, problem)
    goal = solve().loss
    ours = [seconds(solve) for _ in range(rounds)]
    runs = [adam(problem, goal, *schedule, class_means) for schedule in schedules]
    arrived = [took for took, reached in runs if reached]
    # One that did not arrive gives a bound.
    peer = min(arrived) if arrived else max(took for took, _ in runs)
    rows = "class means" if class_means else f"all {problem.num_samples} features"
    name = f"K = {problem.num_classes}, to {TOLERANCE:g} of the minimum; peer: Adam on W and {rows}"
    return Race(ours, [peer] * rounds).faster(name if arrived else f"{name}, which did not arrive", least)


def certificate(problem: CrossEntropyUFM, name: str) -> list[Row]:
    solve = partial(ConvexSolver(TOLERANCE).solve, problem)
    found, name = solve(), f"certified minimum, K = {problem.num_classes}, {name}"
    return [
        slowest(name, [solve], 5),
        at_most(TOLERANCE, f"{name}, gap", (found.loss - found.lower_bound) / found.loss),
    ]


def models(size: int, largest: int) -> list[Model]:
    """Return models of random sizes, with budgets over four orders of magnitude."""
    draw = random.Random(0)
    return [
        (draw.randint(1, largest), draw.randint(2, largest), 10 ** draw.uniform(-2, 1), 10 ** draw.uniform(-0.5, 0.5))
        for _ in range(size)
    ]


def slowest(name: str, calls: Sequence[Call], limit: float | None = None) -> Row:
    """Return the row of the mean and the largest time of some calls."""
    calls[0]()  # pays for set-up
    times = [seconds(call) for call in calls]
    text = f"slowest {duration(max(times))}"
    return at_most(limit, f"{name}, seconds", max(times), duration(statistics.mean(times)), text=text)


def ufm(
    K: int = 100,
    smallest: int = 5,
    schedules: Sequence[tuple[float, int]] = SCHEDULES,
    rounds: int = 7,
    drawn: int = 300,
    largest: int = 1000,
) -> list[Row]:
    """Unconstrained-feature and layer-peeled models, float64."""
    problem, strong = imbalanced(K, smallest, 1e-5), imbalanced(K, smallest, 5e-4)
    table = [(majority, 10 - majority, budget, 1.0) for majority in (3, 5) for budget in (1.0, 2.0, 5.0, 10.0)]
    rows = [
        *certificate(problem, "rank K - 1"),
        *certificate(strong, "rank < K - 1"),
        against_adam(problem, schedules, rounds, class_means=False, least=50),
        against_adam(problem, schedules, rounds, class_means=True),
    ]
    for name, chosen in (("of K = 10", table), (f"of up to {largest} + {largest} classes", models(drawn, largest))):
        rows.append(slowest(f"thresholds {name}", [partial(minority_collapse_threshold, *m) for m in chosen], 0.1))
    return rows
