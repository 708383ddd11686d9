"""Minority collapse of the layer-peeled model: time of a threshold, and of the certified minimum beside it."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import Any

from benchmarks._timing import Row, duration, one_thread, report, seconds
from tightframe.ufm.layer_peeled import layer_peeled_form, minority_collapse_threshold
from tightframe.ufm.problems import LayerPeeled

Model = tuple[int, int, float, float]  # majority and minority classes, feature and weight budget

TABLE = [(majority, 10 - majority, budget, 1.0) for majority in (3, 5) for budget in (1.0, 2.0, 5.0, 10.0)]
LIMIT = 0.1  # seconds


def draw(size: int, largest: int) -> list[Model]:
    """Return models of random sizes, with budgets over four orders of magnitude."""
    generator = random.Random(0)
    return [
        (
            generator.randint(1, largest),
            generator.randint(2, largest),
            10 ** generator.uniform(-2, 1),
            10 ** generator.uniform(-0.5, 0.5),
        )
        for _ in range(size)
    ]


def problem(model: Model, ratio: float) -> LayerPeeled:
    majority, minority, feature_budget, weight_budget = model
    weights = (ratio,) * majority + (1.0,) * minority
    size = majority + minority
    budgets = {"feature_budget": feature_budget, "weight_budget": weight_budget}
    return LayerPeeled((1,) * size, size, sample_weights=weights, **budgets)


def slowest(name: str, calls: Sequence[Callable[[], Any]], limit: float | None = None) -> Row:
    calls[0]()  # pays for set-up
    times = [seconds(call) for call in calls]
    worst, mean = max(times), sum(times) / len(times)
    text = duration(worst)
    if limit is None:
        return Row(name, duration(mean), text, text)
    return Row(name, duration(mean), text, text, f"<= {duration(limit)}", worst <= limit)


def sides(models: Sequence[Model], share: float = 0.03) -> Row:
    """Check the certified minima a little below and above the thresholds: vectors distinct there, one here."""
    worst, wrong, judged = 0.0, 0, 0
    for model in models:
        excess = minority_collapse_threshold(*model) - 1
        if excess > 1e12:  # losses of minority classes that far down are none
            continue
        below, above = (
            layer_peeled_form(problem(model, 1 + excess * factor)).facts for factor in (1 - share, 1 + share)
        )
        judged += 1
        worst = max(worst, below["relative_gap"], above["relative_gap"])
        wrong += not below["minority_cosine"] < 1 - 1e-9
        wrong += above["minority_cosine"] < 1 - 1e-9
    name = f"both sides of {judged} thresholds: wrong ones, largest relative gap"
    return Row(name, str(wrong), f"{worst:.1e}", f"{worst:.1e}", "0, <= 1e-10", wrong == 0 and worst <= 1e-10)


def run(size: int = 300, largest: int = 1000, certified: int = 20) -> list[Row]:
    random_models = draw(size, largest)
    small = draw(size, certified)
    thresholds = {"of the table at K = 10": TABLE, f"of up to {largest} + {largest} classes": random_models}
    rows = [
        slowest(f"thresholds {name}", [lambda m=m: minority_collapse_threshold(*m) for m in models], LIMIT)
        for name, models in thresholds.items()
    ]
    minima = [problem(m, 100.0) for m in small]
    rows.append(
        slowest(
            f"certified minima of up to {certified} + {certified} classes",
            [lambda p=p: layer_peeled_form(p) for p in minima],
        )
    )
    rows.append(sides([*TABLE, *small]))
    return rows


TINY = {"size": 3, "largest": 5, "certified": 4}


def main() -> None:
    one_thread()
    report("Layer-peeled model: minority collapse", run(), columns=("mean", "slowest", "judged"))


if __name__ == "__main__":
    main()
