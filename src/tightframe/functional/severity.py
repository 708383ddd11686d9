"""How bad mistakes are: metrics of the classes a model ranks, by a distance between classes.

Conventions of every function here:

- *scores* ``(B, K)`` are logits, probabilities or the result of a decision rule, finite; higher is more likely; of
  equal scores the lower class index ranks first;
- *distances* ``(K, K)`` are symmetric, zero on the diagonal alone, for example ``Tree.distances()`` in any mode;
- it returns one float64 number a sample, so that means over batches can be added up: ``(B,)``, or ``(B, n)`` if
  ``top_k`` is a sequence of n numbers, at the cost of one sort;
- labels out of range, tensors that do not fit each other and scores that are not finite raise
  :class:`LabelError`, :class:`DtypeError`, :class:`ShapeError`, :class:`DeviceError`, :class:`NonFiniteError`, and
  ``top_k`` out of 1..K raises :class:`ArgumentError`.

More mistakes, if they are mild, lower the severity: show it beside the error, or show their product, which is the
hierarchical distance at 1.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor

from tightframe.errors import (
    ArgumentError,
    ShapeError,
    check_features,
    check_finite,
    check_label_range,
    check_labels,
)
from tightframe.functional.ranking import Ranking, mean_of_first, several
from tightframe.hierarchy import check_distances

TopK = int | Sequence[int]


def top1_error(scores: Tensor, labels: Tensor) -> Tensor:
    """Return 1 for each mistake and 0 for each other sample ``(B,)``; no distances are needed."""
    check_features(scores, name="scores")
    check_labels(labels, scores)
    check_label_range(labels, scores.shape[1])
    check_finite(scores, "scores")
    return (scores.argmax(dim=1) != labels).double()


def mistake_severity(scores: Tensor, labels: Tensor, distances: Tensor) -> Tensor:
    r"""Mean distance of the mistakes (Bertinetto et al., CVPR 2020).

    .. math:: \mathrm{MS}=\frac1{|M|}\sum_{i\in M}D(p_{i1},y_i),\qquad \mathrm{MS}\cdot\mathrm{error}=\mathrm{HD@1}

    Returns:
        A 0-d float64 tensor; nan if there is no mistake.

    Example:
        >>> from tightframe.hierarchy import Tree
        >>> D = Tree.from_nested({"E": ["A", "B"], "F": ["C", "D"]}).distances()
        >>> mistake_severity(torch.eye(4), torch.tensor([0, 0, 0, 0]), D)  # right, 1, 2 and 2 away
        tensor(1.6667, dtype=torch.float64)
    """
    ranking = _ranking(scores, labels, distances)
    return ranking.distances[:, 0].sum() / ranking.error().sum()


def hierarchical_distance(scores: Tensor, labels: Tensor, distances: Tensor, top_k: TopK = 1) -> Tensor:
    r"""Mean distance of the first k classes (Bertinetto et al., CVPR 2020), the label itself counting 0.

    .. math:: \mathrm{HD@}k=\frac1k\sum_{j\le k}D(p_j,y)

    It does not depend on the order within the k. :func:`ideal_hierarchical_distance` is the floor.

    Example:
        >>> from tightframe.hierarchy import Tree
        >>> D = Tree.from_nested({"E": ["A", "B"], "F": ["C", "D"]}).distances()
        >>> hierarchical_distance(torch.tensor([[0.1, 0.4, 0.3, 0.2]]), torch.tensor([0]), D, top_k=(1, 2))
        tensor([[1.0000, 1.5000]], dtype=torch.float64)
    """
    return _columns(_ranking(scores, labels, distances).hierarchical_distance, top_k)


def best_of_k(scores: Tensor, labels: Tensor, distances: Tensor, top_k: TopK = 1) -> Tensor:
    """Smallest distance of the first k classes; 0 if the label is among them."""
    return _columns(_ranking(scores, labels, distances).best_of_k, top_k)


def hierarchical_precision(scores: Tensor, labels: Tensor, distances: Tensor, top_k: TopK = 1) -> Tensor:
    r"""Similarity of the first k classes in units of the best k (after Barz & Denzler, WACV 2019).

    .. math:: \mathrm{HP@}k=\frac{\sum_{j\le k}s(p_j,y)}{\max_\pi\sum_{j\le k}s(\pi_j,y)},\qquad s=1-D/\max D

    Each sample is divided by the best value for its own label. Published code divides the sum over a batch by that over
    all classes, which depends on the batch size.

    Returns:
        Numbers in [0, 1]; 1 for the best k classes in any order; nan if K = 1.
    """
    return _columns(_ranking(scores, labels, distances).hierarchical_precision, top_k)


def hierarchical_recall(scores: Tensor, labels: Tensor, distances: Tensor, top_k: TopK = 1) -> Tensor:
    r"""Share of the similarity of all classes to the label that the first k hold.

    .. math:: \mathrm{HR@}k=\frac{\sum_{j\le k}s(p_j,y)}{\sum_{j\le K}s(p_j,y)},\qquad s=1-D/\max D

    Returns:
        Numbers in [0, 1]; 1 at k = K; nan if K = 1. The largest value is that of the ideal order, not 1.
    """
    return _columns(_ranking(scores, labels, distances).hierarchical_recall, top_k)


def hops(scores: Tensor, labels: Tensor, distances: Tensor, top_k: TopK | None = None, *, clip: bool = True) -> Tensor:
    r"""Agreement of the order of the classes with the ideal one (HOPS, of the Hier-COS paper).

    With :math:`\rho(c)` the dense rank of D(y, c), 0 for y itself, e its values in ascending and r in predicted order,

    .. math:: \mathrm{HOPS@}k=1-\frac{\sum_{i\le k}w_i|e_i-r_i|}{\sum_{i\le k}w_i|e_i-e_{k+1-i}|}

    The slot of y weighs 1; those of rank :math:`\rho\ge1` fall linearly from :math:`2^{-\rho}` towards
    :math:`2^{-\rho-1}`, towards 0 for the last rank. k = 1 is top-1.

    It depends on the order of the distances, not on their size. It is not monotone: moving a near class back can raise
    it; :func:`pair_concordance` is its monotone companion.

    Args:
        scores: Scores ``(B, K)``.
        labels: Labels ``(B,)``.
        distances: Distances ``(K, K)``.
        top_k: One or several k; None is k = K.
        clip: Whether to clip to [0, 1], as published. The reversed order is not the worst one, so raw values may be
            below 0, and clipping hides how far.

    Returns:
        Numbers <= 1; 1 for an ideal order.

    Example:
        >>> from tightframe.hierarchy import Tree
        >>> D = Tree.from_nested({"E": ["A", "B"], "F": ["C", "D"]}).distances()
        >>> hops(torch.tensor([[4.0, 2.0, 3.0, 1.0]]), torch.tensor([0]), D)  # ranks 0, 2, 1, 2
        tensor([0.7500], dtype=torch.float64)
    """
    values = _columns(_ranking(scores, labels, distances).hops, len(distances) if top_k is None else top_k)
    return values.clamp(0, 1) if clip else values


def pair_concordance(scores: Tensor, labels: Tensor, distances: Tensor) -> Tensor:
    """Share of the pairs of classes at different distances from the label of which the nearer ranks first.

    The monotone companion of :func:`hops`: moving a nearer class ahead of a farther one always raises it.

    Returns:
        Numbers in [0, 1]; 1 for an ideal order, 0 for its reverse; nan if K = 1, because there is no pair.

    Example:
        >>> from tightframe.hierarchy import Tree
        >>> D = Tree.from_nested({"E": ["A", "B"], "F": ["C", "D"]}).distances()
        >>> pair_concordance(torch.tensor([[4.0, 2.0, 3.0, 1.0]]), torch.tensor([0]), D)
        tensor([0.8000], dtype=torch.float64)
    """
    return _ranking(scores, labels, distances).concordance()


def ideal_hierarchical_distance(distances: Tensor, top_k: TopK = 1, weights: Tensor | None = None) -> Tensor:
    """Floor of :func:`hierarchical_distance`: its mean if every sample ranks the classes by distance.

    Args:
        distances: Distances ``(K, K)``.
        top_k: One or several k.
        weights: Samples of each class ``(K,)``, or their shares; None gives all classes the same weight.

    Returns:
        A 0-d float64 tensor, or ``(n,)``.

    Raises:
        ShapeError: if there is not one weight a class.
        ArgumentError: if a weight is negative or not finite, or all are 0.

    Example:
        >>> from tightframe.hierarchy import Tree
        >>> D = Tree.from_nested({"E": ["A", "B"], "F": ["C", "D"]}).distances()
        >>> ideal_hierarchical_distance(D, top_k=(1, 2, 4)).tolist()
        [0.0, 0.5, 1.25]
    """
    check_distances(distances)
    floors = _columns(partial(mean_of_first, distances.detach().double().sort(dim=1).values), top_k)
    if weights is None:
        return floors.mean(dim=0)
    if weights.shape != distances.shape[:1]:
        raise ShapeError(f"weights must have shape (K,) = ({distances.shape[0]},), got {tuple(weights.shape)}")
    weights = weights.detach().to(floors)
    if not bool((weights >= 0).all()) or not 0 < weights.sum().item() < torch.inf:
        raise ArgumentError("weights must be finite, >= 0 and not all 0; pass the number of samples of each class")
    return weights / weights.sum() @ floors


def severity_metrics(
    scores: Tensor, labels: Tensor, distances: Tensor, top_k: Sequence[int] = (1, 5, 20)
) -> dict[str, Tensor]:
    """Compute every metric of this module by id, at the cost of one sort of the scores and one of the distances.

    Args:
        scores: Scores ``(B, K)``.
        labels: Labels ``(B,)``.
        distances: Distances ``(K, K)``.
        top_k: Values of k; those above K are left out.

    Returns:
        From metric id to ``(B,)`` float64. Mistake severity is the sum of ``hierarchical_distance@1`` over that of
        ``error``. ``near_mistakes`` and ``far_mistakes`` are those at the smallest and at the largest distance that two
        classes have.

    Example:
        >>> from tightframe.hierarchy import Tree
        >>> D = Tree.from_nested({"E": ["A", "B"], "F": ["C", "D"]}).distances()
        >>> values = severity_metrics(torch.eye(4), torch.tensor([0, 0, 0, 0]), D, top_k=(2,))
        >>> values["error"].mean(), values["near_mistakes"].mean()
        (tensor(0.7500, dtype=torch.float64), tensor(0.2500, dtype=torch.float64))
    """
    return ranking_metrics(_ranking(scores, labels, distances), [k for k in several(top_k) if k <= len(distances)])


def ranking_metrics(ranking: Ranking, top_k: Sequence[int]) -> dict[str, Tensor]:
    """Compute the metrics of :func:`severity_metrics` from a ranking."""
    whole, at_k = ranking.hops([ranking.distances.shape[1]])[:, 0], ranking.hops(top_k)
    values = {
        "error": ranking.error(),
        "near_mistakes": ranking.near_mistake(),
        "far_mistakes": ranking.far_mistake(),
        "hops": whole.clamp(0, 1),
        "hops_raw": whole,
        "concordance": ranking.concordance(),
        "hierarchical_distance@1": ranking.distances[:, 0],
    }
    of_k = {
        "hierarchical_distance": ranking.hierarchical_distance(top_k),
        "best": ranking.best_of_k(top_k),
        "hierarchical_precision": ranking.hierarchical_precision(top_k),
        "hierarchical_recall": ranking.hierarchical_recall(top_k),
        "hops": at_k.clamp(0, 1),
        "hops_raw": at_k,
    }
    return values | {f"{name}@{k}": table[:, i] for name, table in of_k.items() for i, k in enumerate(top_k)}


def _ranking(scores: Tensor, labels: Tensor, distances: Tensor) -> Ranking:
    check_distances(distances)
    return Ranking(scores, labels, distances)


def _columns(method: Callable[[Sequence[int]], Tensor], top_k: TopK) -> Tensor:
    """Return the columns ``(…, n)`` of several k, or the one ``(…)`` of a single k."""
    values = method(several(top_k))
    return values[..., 0] if isinstance(top_k, int) else values
