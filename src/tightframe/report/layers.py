"""Layer by layer: how separable and how collapsed the training features of each layer are, epoch by epoch."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from tightframe.functional.registry import describe
from tightframe.probing import effective_depth
from tightframe.records import Records
from tightframe.report.geometry import Array
from tightframe.report.history import FEATURES, History, estimate

LAYER_METRICS = ("ncc.error", "cdnv", "nc1.pinv", "nc1.ratio")
ACCURACY = "ncc.accuracy"  # what the records of a classifier's input have in place of an error
EPSILON = 0.01
MAX_EPOCHS = 120


@dataclass(frozen=True)
class RunLayers:
    """The layers of one run: rows in order of execution, columns in order of epochs.

    Args:
        run: name of the run, with the tap if layers were read at several.
        layers: names of the L layers; the classifier's input, if it was measured with them, is the last.
        epochs: the E epochs shown.
        values: ``(L, E)`` means over seeds, by metric; nan where nothing finite was measured.
        depths: Row at each epoch, counted from 1, from which the nearest class mean errs on at most 1 %; None if none.
    """

    run: str
    layers: tuple[str, ...]
    epochs: tuple[int, ...]
    values: dict[str, Array]
    depths: list[int | None]


@dataclass(frozen=True)
class Layers:
    """Layers of all runs.

    Args:
        runs: one a run and tap.
        metrics: Id, label, meaning, percent sign and range of each metric; the range is the same for all runs.
    """

    runs: list[RunLayers]
    metrics: list[dict[str, Any]]


def gather_layers(history: History, records: Records) -> Layers:
    """Return one map of each run whose records hold layers beside the classifier's input.

    Args:
        history: History of the records.
        records: they tell the order of the layers, which may differ between runs that share names.
    """
    places: dict[tuple[str, str], dict[str, str]] = {}
    for row in records:
        if row.split == "train" and row.layer not in ("", FEATURES) and row.metric in LAYER_METRICS:
            # Inputs and outputs of layers are two things, and make two maps.
            places.setdefault((row.run, row.place.removeprefix(row.layer)), {})[row.place] = row.layer
    taps = Counter(run for run, _ in places)
    maps = [
        _of_run(history, run, found, f"{run}{tap}" if taps[run] > 1 else run, is_input=not tap)
        for (run, tap), found in places.items()
    ]
    return Layers(maps, [_metric(metric, maps) for metric in LAYER_METRICS if any(metric in m.values for m in maps)])


def _of_run(history: History, run: str, places: dict[str, str], name: str, is_input: bool) -> RunLayers:
    layers = list(places)
    measured = {
        (layer, metric): {epoch: estimate(seeds.values()).mean for epoch, seeds in values.items()}
        for layer in (*layers, FEATURES)
        for metric in (*LAYER_METRICS, ACCURACY)
        if (values := history.values.get(("train", layer, metric), {}).get(run))
    }
    if (FEATURES, ACCURACY) in measured:
        accuracies = measured.pop((FEATURES, ACCURACY))
        measured[FEATURES, "ncc.error"] = {epoch: 1 - value for epoch, value in accuracies.items()}
    metrics = [m for m in LAYER_METRICS if any((layer, m) in measured for layer in layers)]
    epochs = sorted({e for layer in layers for m in metrics for e in measured.get((layer, m), {})})
    # Layers that were read after they ran have the classifier among them, and perhaps epochs of their own.
    if is_input and all(set(epochs) <= set(measured.get((FEATURES, m), {})) for m in metrics):
        layers = [*layers, FEATURES]
    if len(epochs) > MAX_EPOCHS:
        epochs = [epochs[round(i)] for i in np.linspace(0, len(epochs) - 1, MAX_EPOCHS)]
    maps = {
        metric: np.array([[measured.get((layer, metric), {}).get(e, math.nan) for e in epochs] for layer in layers])
        for metric in metrics
    }
    errors = maps["ncc.error"].T.tolist() if "ncc.error" in maps else []
    depths = [effective_depth(column, EPSILON) for column in errors] or [None] * len(epochs)
    return RunLayers(name, tuple(places.get(layer, layer) for layer in layers), tuple(epochs), maps, depths)


def _metric(metric: str, maps: Sequence[RunLayers]) -> dict[str, Any]:
    shown = describe(metric)
    values = np.concatenate([item.values[metric].ravel() for item in maps if metric in item.values])
    values = values[np.isfinite(values)]
    positive = values[values > 0]
    low = 0.0 if shown.percent or not positive.size else float(positive.min())
    return {
        "id": metric,
        "label": shown.label,
        "meaning": shown.meaning,
        "percent": shown.percent,
        "range": [low, float(values.max(initial=low))],
    }
