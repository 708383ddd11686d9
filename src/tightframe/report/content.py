"""From a run directory to what figures and page show: leaderboard, charts and the geometry of every run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from tightframe.report.confusion import Confusions, gather_confusions
from tightframe.report.geometry import Array, SimplexView, centred_cosines, simplex_view, to_array
from tightframe.report.history import History, Panel, panels
from tightframe.report.layers import RunLayers, gather_layers
from tightframe.report.tables import Leaderboard, leaderboard
from tightframe.runs import RunDirectory, Training
from tightframe.runs.snapshots import Snapshot

MAX_CLASSES = 60


@dataclass(frozen=True)
class RunGeometry:
    """Geometry of one training: cosines between classes at its last snapshot, and its features against epochs.

    Args:
        run: name of the run.
        seed: the training's seed.
        epoch: completed epochs at the last snapshot.
        num_classes: K.
        dim: d.
        means: ``(k, k)`` cosines of the centred class means; k is K or, if that is too many to see, 60.
        classifier: ``(k, k)`` cosines of the centred class vectors.
        view: features in the space of a few class vectors; ``None`` if nothing can be drawn.
    """

    run: str
    seed: int
    epoch: int
    num_classes: int
    dim: int
    means: Array
    classifier: Array
    view: SimplexView | None

    @property
    def ideal(self) -> Array:
        """``(k, k)`` cosines of the simplex ETF of K classes."""
        cosine = -1 / (self.num_classes - 1)
        return np.where(np.eye(len(self.means), dtype=bool), 1.0, cosine)

    @property
    def color_limit(self) -> float:
        """End of a colour scale on which the off-diagonal entries, the interesting ones, are told apart."""
        off = ~np.eye(len(self.means), dtype=bool)
        entries = np.abs(np.concatenate([self.means[off], self.classifier[off], self.ideal[off]]))
        finite = entries[np.isfinite(entries)]
        return float(min(1.0, np.ceil(10 * finite.max()) / 10)) if finite.size else 1.0


@dataclass(frozen=True)
class Content:
    """All that is shown.

    Args:
        directory: the run directory.
        board: the leaderboard.
        panels: charts against epochs.
        geometry: one a run that has snapshots of at least two classes.
        confusions: mistakes of the runs; None without a hierarchy or without a file of them.
        layers: layers against epochs, one a run that measured some beside the classifier's input.
    """

    directory: RunDirectory
    board: Leaderboard
    panels: list[Panel]
    geometry: list[RunGeometry]
    confusions: Confusions | None
    layers: list[RunLayers]


def gather(directory: RunDirectory, classes: Sequence[int] | None = None) -> Content:
    """Work out everything that figures and page show.

    Args:
        directory: Directory of runs.
        classes: the 2 to 4 classes of the simplex view; ``None`` takes the first ones.

    Raises:
        ArgumentError: if ``classes`` are not classes of the snapshots.
    """
    drawn = [_geometry(training, classes) for training in _drawn_trainings(directory)]
    geometry = [item for item in drawn if item is not None]
    num_classes = geometry[0].num_classes if geometry else None
    records = directory.records
    board = leaderboard(records, classifier_parameters=directory.classifier_parameters, num_classes=num_classes)
    history = History(records)
    shown = panels(history, num_classes)
    return Content(directory, board, shown, geometry, gather_confusions(directory), gather_layers(history, records))


def _drawn_trainings(directory: RunDirectory) -> list[Training]:
    """Of each run the first seed with snapshots, a finished one if there is any."""
    chosen: dict[str, Training] = {}
    for training in sorted(directory.trainings, key=lambda t: bool(t.problem)):
        if training.snapshots:
            chosen.setdefault(training.run, training)
    return [chosen[run] for run in directory.runs if run in chosen]


def _geometry(training: Training, classes: Sequence[int] | None) -> RunGeometry | None:
    snapshots = training.load_snapshots()
    if not snapshots or snapshots[-1].class_vectors.shape[0] < 2:
        return None
    last: Snapshot = snapshots[-1]
    num_classes, dim = last.class_vectors.shape
    shown = min(num_classes, MAX_CLASSES)
    means, classifier = (
        centred_cosines(to_array(vectors))[:shown, :shown] for vectors in (last.class_means, last.class_vectors)
    )
    view = simplex_view(snapshots, classes)
    return RunGeometry(training.run, training.seed, last.epoch, num_classes, dim, means, classifier, view)
