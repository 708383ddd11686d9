"""Unconstrained-feature models: certified minimum against Adam, flow to late times, thresholds of minority collapse."""

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
from tightframe.ufm import ULPM, CrossEntropyUFM, LayerPeeled
from tightframe.ufm.convex import ConvexSolver
from tightframe.ufm.flow import LogTimeFlow
from tightframe.ufm.layer_peeled import layer_peeled_form, minority_collapse_threshold

TITLE = "Unconstrained-feature and layer-peeled models, float64"
TOLERANCE = 1e-9
# Of Adam: learning rate and length of its cosine decay; the fastest counts.
SCHEDULES = ((0.1, 1000), (0.3, 500), (0.3, 1000), (0.3, 2000))
TINY: dict[str, Any] = {
    "K": 6,
    "smallest": 1,
    "schedules": ((0.1, 30),),
    "rounds": 1,
    "final_time": 1e2,
    "drawn": 3,
    "largest": 5,
    "certified": 4,
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


def flow(problem: ULPM, final_time: float) -> list[Row]:
    """Follow the flow, and print the loss and the certified gap p - D, relative to p, on its way."""
    start = time.process_time()
    trajectory = LogTimeFlow(final_time=final_time, records=12).run(problem)
    took = duration(time.process_time() - start)
    name = f"ULPM flow, K = {problem.num_classes}, N = {problem.num_samples}"
    rows = []
    for index in range(3, len(trajectory.times), 3):
        gap = (trajectory.gaps[index] / trajectory.primal[index]).item()
        label = f"{name}: loss and gap at t = {trajectory.times[index].item():.0e}"
        rows.append(Row(label, f"{trajectory.losses[index].item():.3e}", "-", f"{gap:.4f}"))
    drift = trajectory.drifts.max().item() if trajectory.reason.endswith("reached") else math.nan
    return [*rows, at_most(1e-8, f"{name}: time and largest drift to t = {final_time:.0e}", drift, took)]


def models(size: int, largest: int) -> list[Model]:
    """Return models of random sizes, with budgets over four orders of magnitude."""
    draw = random.Random(0)
    return [
        (draw.randint(1, largest), draw.randint(2, largest), 10 ** draw.uniform(-2, 1), 10 ** draw.uniform(-0.5, 0.5))
        for _ in range(size)
    ]


def layer_peeled(model: Model, ratio: float) -> LayerPeeled:
    majority, minority, feature_budget, weight_budget = model
    weights = (ratio,) * majority + (1.0,) * minority
    size = majority + minority
    budgets = {"feature_budget": feature_budget, "weight_budget": weight_budget}
    return LayerPeeled((1,) * size, size, sample_weights=weights, **budgets)


def slowest(name: str, calls: Sequence[Call], limit: float | None = None) -> Row:
    """Return the row of the mean and the largest time of some calls."""
    calls[0]()  # pays for set-up
    times = [seconds(call) for call in calls]
    text = f"slowest {duration(max(times))}"
    return at_most(limit, f"{name}, seconds", max(times), duration(statistics.mean(times)), text=text)


def sides(models: Sequence[Model], share: float = 0.03) -> list[Row]:
    """Check the certified minima a little below and above the thresholds: vectors distinct there, one here."""
    gaps, wrong = [], 0
    for model in models:
        excess = minority_collapse_threshold(*model) - 1
        if excess > 1e12:  # losses of minority classes that far down are none
            continue
        below, above = (
            layer_peeled_form(layer_peeled(model, 1 + excess * factor)).facts for factor in (1 - share, 1 + share)
        )
        gaps += [below["relative_gap"], above["relative_gap"]]
        wrong += (below["minority_cosine"] >= 1 - 1e-9) + (above["minority_cosine"] < 1 - 1e-9)
    name = f"both sides of {len(gaps) // 2} thresholds"
    return [
        at_most(0, f"{name}: wrong ones", wrong, text=str(wrong)),
        at_most(1e-10, f"{name}: largest relative gap", max(gaps)),
    ]


def run(
    K: int = 100,
    smallest: int = 5,
    schedules: Sequence[tuple[float, int]] = SCHEDULES,
    rounds: int = 7,
    final_time: float = 1e12,
    drawn: int = 300,
    largest: int = 1000,
    certified: int = 20,
) -> list[Row]:
    problem, strong = imbalanced(K, smallest, 1e-5), imbalanced(K, smallest, 5e-4)
    table = [(majority, 10 - majority, budget, 1.0) for majority in (3, 5) for budget in (1.0, 2.0, 5.0, 10.0)]
    small = models(drawn, certified)
    rows = [
        *certificate(problem, "rank K - 1"),
        *certificate(strong, "rank < K - 1"),
        against_adam(problem, schedules, rounds, class_means=False, least=50),
        against_adam(problem, schedules, rounds, class_means=True),
    ]
    for counts in ((5,) * 10, (50, 50, 50, 5, 5)):
        rows += flow(ULPM(counts, len(counts)), final_time)
    for name, chosen in (("of K = 10", table), (f"of up to {largest} + {largest} classes", models(drawn, largest))):
        rows.append(slowest(f"thresholds {name}", [partial(minority_collapse_threshold, *m) for m in chosen], 0.1))
    minima = [partial(layer_peeled_form, layer_peeled(model, 100.0)) for model in small]
    return [*rows, slowest(f"certified minima of up to {certified} + {certified}", minima), *sides([*table, *small])]
