"""Geometry for the pictures: cosines of class vectors, and features in the simplex's own space."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from tightframe.errors import ArgumentError
from tightframe.runs import RunDirectory
from tightframe.runs.snapshots import Snapshot

Array = NDArray[np.float64]
MAX_CLASSES = 60


def centred_cosines(vectors: Array) -> Array:
    """Cosines between the rows of ``vectors`` after their average is subtracted.

    Args:
        vectors: ``(K, d)``; a row of nan is left out of the average.

    Returns:
        ``(K, K)``, nan where a row is nan or equals the average.

    Example:
        >>> centred_cosines(np.eye(3)).round(3)[0]
        array([ 1. , -0.5, -0.5])
    """
    present = np.isfinite(vectors).all(axis=1)
    centred = vectors - (vectors[present].mean(axis=0) if present.any() else 0.0)
    lengths = np.linalg.norm(centred, axis=1, keepdims=True)
    unit = np.divide(centred, lengths, out=np.full_like(centred, np.nan), where=lengths > 0)
    cosines: Array = unit @ unit.T
    return cosines


def reference_simplex(count: int) -> Array:
    """Vertices of the regular simplex with unit circumradius, one of them upright; ``(count, count - 1)``.

    Example:
        >>> reference_simplex(3).round(3)
        array([[ 0.   ,  1.   ],
               [ 0.866, -0.5  ],
               [-0.866, -0.5  ]])
    """
    if count == 1:
        return np.zeros((1, 0))
    height = 1 / (count - 1)
    base = np.sqrt(1 - height**2) * reference_simplex(count - 1)
    top = np.append(np.zeros(count - 2), 1.0)
    return np.vstack([top, np.hstack([base, np.full((count - 1, 1), -height)])])


@dataclass(frozen=True)
class SimplexFrame:
    """One epoch of a :class:`SimplexView`, in its coordinates.

    Args:
        epoch: completed epochs.
        vectors: ``(m, m-1)`` centred class vectors; their root mean square length is 1.
        means: ``(m, m-1)`` class means.
        points: Features ``(n, m-1)`` of each class.
    """

    epoch: int
    vectors: Array
    means: Array
    points: tuple[Array, ...]


@dataclass(frozen=True)
class SimplexView:
    """Features of m classes against epochs, seen in the space that the m centred class vectors span.

    Args:
        classes: the m classes, at most 4.
        vertices: Vertices ``(m, m-1)`` of the regular simplex, the same in every frame.
        frames: Frames by increasing epoch.
    """

    classes: tuple[int, ...]
    vertices: Array
    frames: tuple[SimplexFrame, ...]


def simplex_view(
    snapshots: Sequence[Snapshot], classes: Sequence[int] | None = None, *, per_class: int = 40
) -> SimplexView | None:
    """Project features on the space of a few class vectors and turn it onto one fixed simplex.

    The basis of each epoch is the orthonormal ``(d, m-1)`` matrix nearest to V^T T, with V the centred class vectors
    and T the fixed simplex: it spans the rows of V and solves the orthogonal Procrustes problem between V and T. So a
    fixed classifier does not move, and a learned one moves without jumps of the view. Means and features are centred by
    the average of the m class means and divided by these means' root mean square length in all d dimensions: the means
    reach the vertices only if nothing of them lies outside the picture.

    Args:
        snapshots: Snapshots of one training, by increasing epoch.
        classes: 2 to 4 classes; ``None`` takes the first ones of which the last snapshot holds mean and features.
        per_class: most features drawn of a class.

    Returns:
        The view, or ``None`` if no snapshot can be drawn: fewer than two classes, or nothing finite.

    Raises:
        ArgumentError: if ``classes`` are not 2 to 4 distinct classes of the snapshots.
    """
    if not snapshots:
        return None
    num_classes, dim = snapshots[-1].class_vectors.shape
    most = min(4, num_classes, dim + 1)
    if classes is None:
        usable = _finite_rows(snapshots[-1].class_means) & _finite_rows(snapshots[-1].class_vectors)
        seen = set(snapshots[-1].labels.tolist())
        classes = sorted(map(int, np.flatnonzero(usable)), key=lambda c: (c not in seen, c))[:most]
        if len(classes) < 2:
            return None
    elif not 2 <= len(set(classes)) == len(classes) <= most or not all(0 <= c < num_classes for c in classes):
        raise ArgumentError(
            f"classes must be 2 to {most} distinct numbers in 0..{num_classes - 1} (K = {num_classes}, d = {dim}), "
            f"got {list(classes)}"
        )
    vertices = reference_simplex(len(classes))
    frames = [_frame(snapshot, list(classes), vertices, per_class) for snapshot in snapshots]
    drawn = tuple(frame for frame in frames if frame is not None)
    return SimplexView(tuple(classes), vertices, drawn) if drawn else None


def _frame(snapshot: Snapshot, classes: list[int], vertices: Array, per_class: int) -> SimplexFrame | None:
    vectors, means = to_array(snapshot.class_vectors)[classes], to_array(snapshot.class_means)[classes]
    if not (np.isfinite(vectors).all() and np.isfinite(means).all()):
        return None
    vectors, centre = vectors - vectors.mean(axis=0), means.mean(axis=0)
    length, scale = _rms(vectors), _rms(means - centre)
    if length == 0 or scale == 0:
        return None
    left, _, right = np.linalg.svd(vectors.T @ vertices, full_matrices=False)
    basis = left @ right
    features, labels = to_array(snapshot.features), snapshot.labels.numpy()
    points = [features[labels == c][:per_class] for c in classes]
    points = [(p[np.isfinite(p).all(axis=1)] - centre) @ basis / scale for p in points]
    return SimplexFrame(snapshot.epoch, vectors @ basis / length, (means - centre) @ basis / scale, tuple(points))


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
        ideal: ``(k, k)`` cosines of the simplex ETF of K classes.
        view: features in the space of a few class vectors; ``None`` if nothing can be drawn.
    """

    run: str
    seed: int
    epoch: int
    num_classes: int
    dim: int
    means: Array
    classifier: Array
    ideal: Array
    view: SimplexView | None


def gather_geometry(directory: RunDirectory, classes: Sequence[int] | None = None) -> list[RunGeometry]:
    """Return one geometry a run that has snapshots of at least two classes.

    It is that of the first seed with snapshots, a finished one if there is any.

    Args:
        directory: Directory of runs.
        classes: Classes of the view, as for :func:`simplex_view`.

    Raises:
        ArgumentError: if ``classes`` are not classes of the snapshots.
    """
    finished_first = sorted(directory.trainings, key=lambda training: bool(training.problem))
    chosen = {training.run: training for training in reversed(finished_first) if training.snapshots}
    found = []
    for run in directory.runs:
        snapshots = chosen[run].load_snapshots() if run in chosen else []
        if not snapshots or len(snapshots[-1].class_vectors) < 2:
            continue
        last = snapshots[-1]
        num_classes, dim = last.class_vectors.shape
        means, vectors = (
            centred_cosines(to_array(rows))[:MAX_CLASSES, :MAX_CLASSES]
            for rows in (last.class_means, last.class_vectors)
        )
        ideal = np.where(np.eye(len(means), dtype=bool), 1.0, -1 / (num_classes - 1))
        view = simplex_view(snapshots, classes)
        found.append(RunGeometry(run, chosen[run].seed, last.epoch, num_classes, dim, means, vectors, ideal, view))
    return found


def to_array(tensor: Tensor) -> Array:
    """Convert to float64 on the CPU, from any floating dtype."""
    array: Array = tensor.detach().cpu().double().numpy()
    return array


def _finite_rows(tensor: Tensor) -> NDArray[np.bool_]:
    return np.asarray(np.isfinite(to_array(tensor)).all(axis=1))


def _rms(vectors: Array) -> float:
    return float(np.sqrt((vectors**2).sum(axis=1).mean()))
