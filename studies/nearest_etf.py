"""Tables of the study of nearest simplex ETFs, from directories that ``tightframe compare`` wrote.

    python -m studies.nearest_etf runs/ufm-10 runs/nearest-digits
    python -m studies.nearest_etf runs                              # every comparison in a folder

All numbers come from these directories. Where an epoch is one step (full batches), the tables tell how many steps a
method needs, else which accuracy it has after some epochs. ``10 % excess loss`` is a training loss whose distance from
its floor, that of collapsed features, is a tenth of what the loss of a uniform guess, log K, is above it. Steps,
accuracies and costs are ``median [range]`` over seeds, the geometry at the end is ``mean ± 95 % interval``; quantiles
of the cosine margin are those of the samples that the last snapshot keeps.
"""

from __future__ import annotations

import math
import sys
from typing import Any

import torch
import yaml

from studies._tables import cell, last, markdown, middle, ratios, report_runs, seeds_of, timing
from tightframe.functional import cosine_margins
from tightframe.moments import ClassMoments
from tightframe.report.history import FEATURES
from tightframe.runs import RunDirectory, Training
from tightframe.runs.snapshots import Snapshot

EXCESSES = (0.5, 0.1, 0.01, 0.001)
EPOCHS = (1, 5)
GEOMETRY = {
    "NC1": "nc1.pinv",
    "NC2 of W": "nc2.gram.classifier",
    "NC2 of means": "nc2.gram.means",
    "NC3": "nc3.gram",
    "margin": "cosine_margin",
}
Series = list[tuple[int, float]]


def series(training: Training, split: str, metric: str) -> Series:
    """Return ``(step, value)`` after every epoch."""
    return [(row.step, row.value) for row in training.records.where(split=split, layer="", metric=metric)]


def full_batch(directory: RunDirectory) -> bool:
    """Tell whether every epoch was one step."""
    return all(row.step == row.epoch for row in directory.records.where(split="train", layer="", metric="loss"))


def floor(num_classes: int, scale: float) -> float:
    """Least cross-entropy of unit features times ``scale`` on unit class vectors, for balanced classes."""
    return math.log1p((num_classes - 1) * math.exp(-scale * num_classes / (num_classes - 1)))


def scale_of(directory: RunDirectory, run: str) -> float:
    """Return the scale that the configuration gives to a method's classifier; nan if it gives none."""
    config: Any = yaml.safe_load(directory.config_text) or {}
    arguments = config.get("methods", {}).get(run, {}).get("classifier", {}).get("args", {})
    return float(arguments.get("scale", math.nan))


def steps_until(values: Series, low: float = -math.inf, high: float = math.inf) -> float:
    """Return how many steps had been made when a training batch was first inside the bounds; infinity if never."""
    before = 0
    for step, value in values:
        if low <= value <= high:
            return before
        before = step  # what is logged of a step was computed before it
    return math.inf


def steps_to_excess(training: Training, num_classes: int, scale: float, share: float) -> float:
    """Return the steps until the loss is above its floor by a share of what the chance level is above it."""
    least = floor(num_classes, scale)
    return steps_until(series(training, "train", "loss"), high=least + share * (math.log(num_classes) - least))


def margins(training: Training) -> tuple[float, float]:
    """Return median and 5 % quantile of the cosine margins of the features in the last snapshot."""
    if not training.snapshots:
        return math.nan, math.nan
    snapshot = Snapshot.load(training.snapshots[-1])
    num_classes = len(snapshot.class_means)
    moments = ClassMoments.from_samples(snapshot.class_means, torch.arange(num_classes), num_classes, scatter=False)
    found = cosine_margins(snapshot.features, snapshot.labels, moments, snapshot.class_vectors)
    return found.median().item(), found.quantile(0.05).item()


def speed(directory: RunDirectory) -> str:
    """Steps that each method needs, for full batches."""
    num_classes = len(directory.class_names)
    rows = []
    for run in directory.runs:
        trainings = seeds_of(directory, run)
        steps = max(row.step for training in trainings for row in training.records)
        scale = scale_of(directory, run)
        accuracies = [series(training, "train", "accuracy") for training in trainings]
        cells = [middle([100 * values[0][1] for values in accuracies if values])]
        cells.append(middle([steps_until(values, low=1.0) for values in accuracies], most=steps))
        for share in EXCESSES:
            needed = [steps_to_excess(training, num_classes, scale, share) for training in trainings]
            cells.append("–" if math.isnan(scale) else middle(needed, most=steps))
        rows.append([run, *cells])
    excesses = [f"to {100 * share:g} % excess loss" for share in EXCESSES]
    return markdown(["method", "accuracy % at step 0", "steps to 100 % accuracy", *excesses], rows)


def accuracy(directory: RunDirectory) -> str:
    """Test accuracy of each method after some epochs."""
    tested = directory.records.where(split="test", layer="", metric="accuracy")
    epochs = sorted({*EPOCHS, *tested.unique("epoch")[-1:]})
    rows = []
    for run in directory.runs:
        values = [[100 * row.value for row in tested.where(run=run, epoch=epoch)] for epoch in epochs]
        rows.append([run, *(middle(of_epoch) for of_epoch in values)])
    return markdown(["method", *(f"test accuracy % after epoch {epoch}" for epoch in epochs)], rows)


def geometry(directory: RunDirectory) -> str:
    """Collapse of each method's training features at the end, and what its training cost."""
    rows = []
    reference = timing(directory, directory.runs[0], "fit_seconds")
    for run in directory.runs:
        found = [last(directory, run, metric, split="train", layer=FEATURES) for metric in GEOMETRY.values()]
        cells = [cell(values.values()) for values in found]
        cells += [cell(values) for values in zip(*map(margins, seeds_of(directory, run)), strict=True)]
        rows.append([run, *cells, middle(ratios(timing(directory, run, "fit_seconds"), reference), digits=2)])
    names = [*GEOMETRY, "margin, median", "margin, 5 % quantile", f"time / {directory.runs[0]}"]
    return markdown(["method", *names], rows)


def report(directory: RunDirectory) -> None:
    print(speed(directory) if full_batch(directory) else accuracy(directory))
    print(f"\n{geometry(directory)}\n")


main = report_runs("nearest_etf", "Tables of the nearest-ETF study.", report)

if __name__ == "__main__":
    sys.exit(main())
