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
from tightframe.report.history import History, estimate
from tightframe.report.names import FEATURES

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
    """

    run: str
    layers: tuple[str, ...]
    epochs: tuple[int, ...]
    values: dict[str, Array]

    @property
    def depths(self) -> list[int | None]:
        """At each epoch the row, counted from 1, from which the nearest class mean errs on at most 1 %."""
        if "ncc.error" not in self.values:
            return [None] * len(self.epochs)
        return [effective_depth(column, EPSILON) for column in self.values["ncc.error"].T.tolist()]


def gather_layers(history: History, records: Records) -> list[RunLayers]:
    """Return one map a run whose records hold layers beside the classifier's input.

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
    return [
        _of_run(history, run, found, f"{run}{tap}" if taps[run] > 1 else run, is_input=not tap)
        for (run, tap), found in places.items()
    ]


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
    epochs = _thinned(epochs)
    maps = {
        metric: np.array([[measured.get((layer, metric), {}).get(e, math.nan) for e in epochs] for layer in layers])
        for metric in metrics
    }
    return RunLayers(name, tuple(places.get(layer, layer) for layer in layers), tuple(epochs), maps)


def _thinned(epochs: Sequence[int]) -> list[int]:
    """Return at most 120 epochs, evenly spaced, with the first and the last."""
    if len(epochs) <= MAX_EPOCHS:
        return list(epochs)
    return [epochs[round(i)] for i in np.linspace(0, len(epochs) - 1, MAX_EPOCHS)]


def layer_data(maps: Sequence[RunLayers]) -> dict[str, Any]:
    """Return what the page's script draws, as plain JSON; each metric has one scale for all runs."""
    return {
        "runs": [
            {
                "run": item.run,
                "layers": item.layers,
                "epochs": item.epochs,
                "depths": item.depths,
                "values": {metric: [_numbers(row) for row in rows] for metric, rows in item.values.items()},
            }
            for item in maps
        ],
        "metrics": [_metric(metric, maps) for metric in LAYER_METRICS if any(metric in m.values for m in maps)],
    }


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


def _numbers(row: Array) -> list[float | None]:
    return [float(f"{value:.4g}") if math.isfinite(value) else None for value in row.tolist()]
