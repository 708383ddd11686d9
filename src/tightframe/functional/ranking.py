"""Ranking: distances of the classes in the order in which each sample ranks them, sorted once for every metric."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import final

import torch
from torch import Tensor

from tightframe.errors import (
    ArgumentError,
    DeviceError,
    check_features,
    check_finite,
    check_label_range,
    check_labels,
    check_positive,
)


@final
class Ranking:
    """Distances and ranks of a batch for the severity metrics, which :mod:`tightframe.functional.severity` defines.

    Of equal scores the lower class index ranks first.

    Args:
        scores: Scores ``(B, K)``, floating point and finite, higher is more likely: logits, probabilities or the result
            of a decision rule of :mod:`tightframe.functional.decisions`.
        labels: Labels ``(B,)`` in 0..K-1.
        distances: Distances ``(K, K)`` that ``hierarchy.check_distances`` accepts. They are not checked here: reading
            K² values for every batch would cost as much as the ranking.
        extent: Smallest and largest distance, as :func:`extent` returns; None computes them when they are needed.

    Attributes:
        distances: ``(B, K)`` float64 distance from the label to the first class ranked, the second, ...

    Example:
        >>> flat = 1 - torch.eye(3, dtype=torch.float64)
        >>> Ranking(torch.tensor([[0.2, 0.5, 0.3]]), torch.tensor([2]), flat).distances
        tensor([[1., 0., 1.]], dtype=torch.float64)
    """

    def __init__(
        self, scores: Tensor, labels: Tensor, distances: Tensor, extent: tuple[Tensor, Tensor] | None = None
    ) -> None:
        num_classes = distances.shape[0]
        check_features(scores, num_classes, "scores")
        check_labels(labels, scores)
        check_label_range(labels, num_classes)
        check_finite(scores, "scores")
        check_device(distances, scores)
        order = scores.detach().sort(dim=1, descending=True, stable=True).indices
        self._table = distances.detach()
        self._given_extent = extent
        self.distances = self._table[labels.long()].gather(1, order).double()

    @cached_property
    def _extent(self) -> tuple[Tensor, Tensor]:
        return extent(self._table) if self._given_extent is None else self._given_extent

    @cached_property
    def ideal(self) -> Tensor:
        """Distances in the best order ``(B, K)``: ascending."""
        return self._sorted[0]

    @cached_property
    def ideal_ranks(self) -> Tensor:
        """Dense ranks of :attr:`ideal` ``(B, K)`` int64: 0 for the label, 1 for its nearest classes, ..."""
        steps = torch.zeros_like(self.ideal, dtype=torch.int64)
        steps[:, 1:] = self.ideal.diff(dim=1) > 0
        return steps.cumsum(dim=1)

    @cached_property
    def ranks(self) -> Tensor:
        """Dense ranks of :attr:`distances` ``(B, K)`` int64."""
        return torch.empty_like(self.ideal_ranks).scatter_(1, self._sorted[1], self.ideal_ranks)

    @cached_property
    def _sorted(self) -> tuple[Tensor, Tensor]:
        values, order = self.distances.sort(dim=1)
        return values, order

    # ---------------------------------------------------------------- one number a sample, or (B, n) for n values of k

    def error(self) -> Tensor:
        """1 for a mistake, 0 else."""
        return (self.distances[:, 0] > 0).double()

    def near_mistake(self) -> Tensor:
        """1 for a mistake at the smallest distance that two classes have, 0 else."""
        return (self.distances[:, 0] == self._extent[0]).double()

    def far_mistake(self) -> Tensor:
        """1 for a mistake at the largest distance that two classes have, 0 else."""
        return (self.distances[:, 0] == self._extent[1]).double() * self.error()

    def hierarchical_distance(self, top_k: Sequence[int] = (1,)) -> Tensor:
        """Mean distance of the first k classes."""
        return mean_of_first(self.distances, top_k)

    def best_of_k(self, top_k: Sequence[int]) -> Tensor:
        """Smallest distance of the first k classes."""
        return self.distances.cummin(dim=1).values[:, places(top_k, self.distances.shape[1])]

    def hierarchical_precision(self, top_k: Sequence[int]) -> Tensor:
        """Similarity of the first k classes over that of the k nearest."""
        return mean_of_first(self._similarity(self.distances), top_k) / mean_of_first(
            self._similarity(self.ideal), top_k
        )

    def hierarchical_recall(self, top_k: Sequence[int]) -> Tensor:
        """Similarity of the first k classes over that of all."""
        gained = self._similarity(self.distances).cumsum(dim=1)
        return gained[:, places(top_k, gained.shape[1])] / gained[:, -1:]

    def _similarity(self, distances: Tensor) -> Tensor:
        return 1 - distances / self._extent[1]

    def hops(self, top_k: Sequence[int]) -> Tensor:
        """Weighted agreement of the ranks with the ideal ones, not clipped."""
        penalty = self._weighted((self.ideal_ranks - self.ranks).abs())
        columns = [self._hops(penalty[:, : i + 1]) for i in places(top_k, penalty.shape[1])]
        return torch.stack(columns, dim=1) if columns else penalty[:, :0]

    def _hops(self, penalty: Tensor) -> Tensor:
        size = penalty.shape[1]
        if size == 1:  # the reversed list of one is the list itself
            return 1 - self.error()
        ideal = self.ideal_ranks[:, :size]
        return 1 - penalty.sum(dim=1) / self._weighted((ideal - ideal.flip(1)).abs()).sum(dim=1)

    def _weighted(self, differences: Tensor) -> Tensor:
        return differences * self._weights[:, : differences.shape[1]]

    @cached_property
    def _weights(self) -> Tensor:
        """Weights of the slots ``(B, K)``, which fall linearly within the slots of one ideal rank."""
        ranks = self.ideal_ranks
        size = torch.zeros_like(ranks).scatter_add_(1, ranks, torch.ones_like(ranks))
        start = size.cumsum(dim=1) - size
        place = torch.arange(ranks.shape[1], device=ranks.device) - start.gather(1, ranks)
        high = torch.exp2(-ranks.double())
        low = torch.where(ranks == ranks[:, -1:], 0.0, high / 2)
        return high - (high - low) * place / size.gather(1, ranks)

    def concordance(self) -> Tensor:
        """Share of the class pairs at different distances that are in the right order."""
        num_classes = self.ranks.shape[1]
        size = torch.zeros_like(self.ranks).scatter_add_(1, self.ranks, torch.ones_like(self.ranks))
        comparable = num_classes**2 - size.square().sum(dim=1)
        return 1 - 2 * inversions(self.ranks).double() / comparable.double()


def inversions(ranks: Tensor) -> Tensor:
    """Count in each row of ``(B, K)`` integers >= 0 the pairs that have the greater one first: O(B K log² K).

    A pair is counted at the highest bit in which its two numbers differ. Stable sorts bring the rows into the order of
    the bits above, so that numbers with the same bits there stand side by side.

    Example:
        >>> inversions(torch.tensor([[0, 1, 2], [2, 1, 0], [1, 1, 0]]))
        tensor([0, 3, 2])
    """
    total = ranks.new_zeros(ranks.shape[0])
    highest = int(ranks.max()).bit_length() if ranks.numel() else 0
    for bit in reversed(range(highest)):
        ones = ranks >> bit & 1
        before = ones.cumsum(dim=1)
        above = ranks >> bit + 1
        begins = above.diff(dim=1, prepend=above[:, :1] - 1) != 0
        # As `before` never falls, its largest value at a beginning so far is that at the beginning of the group.
        of_group = before - ((before - ones) * begins).cummax(dim=1).values
        total += (of_group * (1 - ones)).sum(dim=1)
        if bit:
            ranks = ranks.gather(1, (ranks >> bit).argsort(dim=1, stable=True))
    return total


def mean_of_first(values: Tensor, top_k: Sequence[int]) -> Tensor:
    """Return the mean of the first k columns of ``(B, K)`` for n values of k: ``(B, n)``."""
    counts = torch.arange(1, values.shape[1] + 1, device=values.device)
    return (values.cumsum(dim=1) / counts)[:, places(top_k, values.shape[1])]


def places(top_k: Sequence[int], num_classes: int) -> list[int]:
    """Check numbers of classes and return where they end, counted from 0.

    Raises:
        ArgumentError: if one is not an integer in 1..K.
    """
    for k in several(top_k):
        if k > num_classes:
            raise ArgumentError(f"top_k must be at most K = {num_classes}, got {k}; leave it out for so few classes")
    return [k - 1 for k in top_k]


def several(top_k: int | Sequence[int]) -> tuple[int, ...]:
    """Return one or several numbers of classes as a tuple.

    Raises:
        ArgumentError: if one is not an integer >= 1.
    """
    numbers = tuple(top_k) if isinstance(top_k, Sequence) and not isinstance(top_k, str) else (top_k,)
    for k in numbers:
        check_positive("top_k", k)
    return numbers


def extent(distances: Tensor) -> tuple[Tensor, Tensor]:
    """Return the smallest and the largest distance of two classes, 0-d float64; without a second class inf and 0."""
    return distances.masked_fill(distances == 0, torch.inf).min().double(), distances.max().double()


def check_device(distances: Tensor, scores: Tensor) -> None:
    """Raise :class:`DeviceError` unless distances and scores lie on one device."""
    if distances.device != scores.device:
        raise DeviceError(
            f"distances are on {distances.device} and scores on {scores.device}; move one with .to(device)"
        )
