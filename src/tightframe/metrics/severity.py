"""torchmetrics classes over ``tightframe.functional.severity``: streaming, distributed, sums in float64."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from tightframe.errors import check_choice, check_features, check_finite
from tightframe.functional.decisions import DECISIONS
from tightframe.functional.ranking import Ranking, check_device, extent, places, several
from tightframe.functional.severity import ranking_metrics
from tightframe.hierarchy import check_distances
from tightframe.metrics._base import StreamedMetric


class _SeverityMetric(StreamedMetric):
    """Sums over samples of numbers that a subclass computes from their ranking; the metric is a ratio of two sums.

    Distances are checked once, here. Distances and sums are float64 and stay so when a parent module is cast.
    """

    higher_is_better: bool | None = False
    plot_lower_bound = 0.0
    distances: Tensor
    sums: Tensor

    def __init__(self, distances: Tensor, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        check_distances(distances)
        self.register_buffer("distances", distances.detach().double().clone(), persistent=False)

    def _gather(self, num_sums: int) -> None:
        self.add_state("sums", torch.zeros(num_sums, dtype=torch.float64), dist_reduce_fx="sum")
        self._keep_apart(f"{type(self).__name__}_{id(self)}")

    @abstractmethod
    def _numbers(self, scores: Tensor, labels: Tensor) -> Tensor:
        """Return the numbers to sum ``(B, n)``, with the n given to :meth:`_gather`."""

    def update(self, scores: Tensor, labels: Tensor) -> None:
        """Add scores ``(B, K)``, higher for likelier classes, and labels ``(B,)``; B may be 0."""
        self.sums += self._numbers(scores, labels).sum(dim=0)


class MistakeSeverity(_SeverityMetric):
    """Mean distance of the mistakes; see :func:`tightframe.functional.mistake_severity`.

    Args:
        distances: Distances ``(K, K)``, for example ``Tree.distances()``.
        kwargs: Arguments of ``torchmetrics.Metric``.

    Raises:
        DtypeError, ShapeError, ArgumentError: if ``distances`` is not a valid distance matrix.

    Example:
        >>> from tightframe.hierarchy import Tree
        >>> D = Tree.from_nested({"E": ["A", "B"], "F": ["C", "D"]}).distances()
        >>> metric = MistakeSeverity(D)
        >>> metric.update(torch.eye(4), torch.tensor([0, 0, 0, 0]))  # right, 1, 2 and 2 away
        >>> metric.compute()
        tensor(1.6667, dtype=torch.float64)
    """

    def __init__(self, distances: Tensor, **kwargs: Any) -> None:
        super().__init__(distances, **kwargs)
        self._gather(2)

    def _numbers(self, scores: Tensor, labels: Tensor) -> Tensor:
        ranking = Ranking(scores, labels, self.distances)
        return torch.stack([ranking.distances[:, 0], ranking.error()], dim=1)

    def compute(self) -> Tensor:
        """Return a 0-d float64 tensor; nan before the first mistake."""
        return self.sums[0] / self.sums[1]


class HierarchicalDistance(_SeverityMetric):
    """Mean distance of the first k classes; see :func:`tightframe.functional.hierarchical_distance`.

    Args:
        distances: Distances ``(K, K)``, for example ``Tree.distances()``.
        top_k: One or several k in 1..K.
        kwargs: Arguments of ``torchmetrics.Metric``.

    Raises:
        ArgumentError: if a k is out of range.
        DtypeError, ShapeError, ArgumentError: if ``distances`` is not a valid distance matrix.

    Example:
        >>> from tightframe.hierarchy import Tree
        >>> D = Tree.from_nested({"E": ["A", "B"], "F": ["C", "D"]}).distances()
        >>> metric = HierarchicalDistance(D, top_k=(1, 2))
        >>> metric.update(torch.tensor([[0.1, 0.4, 0.3, 0.2]]), torch.tensor([0]))
        >>> metric.compute()
        {'hierarchical_distance@1': tensor(1., dtype=torch.float64), \
'hierarchical_distance@2': tensor(1.5000, dtype=torch.float64)}
    """

    def __init__(self, distances: Tensor, top_k: int | Sequence[int] = 1, **kwargs: Any) -> None:
        super().__init__(distances, **kwargs)
        self.top_k = top_k
        self._several = several(top_k)
        places(self._several, len(distances))
        self._gather(len(self._several) + 1)

    def _numbers(self, scores: Tensor, labels: Tensor) -> Tensor:
        values = Ranking(scores, labels, self.distances).hierarchical_distance(self._several)
        return torch.cat([values, torch.ones_like(values[:, :1])], dim=1)

    def compute(self) -> Tensor | dict[str, Tensor]:
        """Return a 0-d float64 tensor, or a dict of them for several k; nan before the first sample."""
        means = self.sums[:-1] / self.sums[-1]
        if isinstance(self.top_k, int):
            return means[0]
        return {f"hierarchical_distance@{k}": mean for k, mean in zip(self._several, means, strict=True)}


class HierarchicalMetrics(_SeverityMetric):
    """Error, severity and quality of the ranking, under one or several decision rules, as a dict by metric id.

    The ids are those of :func:`tightframe.functional.severity_metrics` and ``mistake_severity``; a decision rule other
    than argmax is appended to them, as in ``hops@5.crm``. The rules cost nothing in training: a method that trains for
    its ranking must be better than they are.

    Args:
        distances: Distances ``(K, K)``, for example ``Tree.distances()``.
        top_k: Values of k; those above K are left out.
        decisions: Names of rules: ``"argmax"``, ``"crm"`` (:func:`tightframe.functional.conditional_risk`) and
            ``"tree-order"`` (:func:`tightframe.functional.tree_order`).
        kwargs: Arguments of ``torchmetrics.Metric``.

    Raises:
        ArgumentError: if a k is not an integer >= 1 or a decision rule is unknown.
        DtypeError, ShapeError, ArgumentError: if ``distances`` is not a valid distance matrix.

    Example:
        >>> from tightframe.hierarchy import Tree
        >>> D = Tree.from_nested({"E": ["A", "B"], "F": ["C", "D"]}).distances()
        >>> metric = HierarchicalMetrics(D, top_k=(2,))
        >>> metric.update(torch.tensor([[4.0, 2.0, 3.0, 1.0]]), torch.tensor([0]))
        >>> values = metric.compute()
        >>> values["hops"], values["hops.tree-order"]
        (tensor(0.7500, dtype=torch.float64), tensor(1., dtype=torch.float64))
    """

    higher_is_better = None
    _nearest: Tensor
    _farthest: Tensor

    def __init__(
        self,
        distances: Tensor,
        top_k: Sequence[int] = (1, 5, 20),
        decisions: Sequence[str] = ("argmax", "crm", "tree-order"),
        **kwargs: Any,
    ) -> None:
        for decision in decisions:
            check_choice("decisions", decision, tuple(DECISIONS))
        super().__init__(distances, **kwargs)
        self.decisions = tuple(decisions)
        self.top_k = tuple(k for k in several(top_k) if k <= len(distances))
        nobody = torch.zeros(0, dtype=torch.int64, device=distances.device)
        self._ids = tuple(ranking_metrics(Ranking(distances[:0], nobody, distances), self.top_k))
        self._gather(len(self.decisions) * len(self._ids) + 1)
        nearest, farthest = extent(self.distances)
        self.register_buffer("_nearest", nearest, persistent=False)
        self.register_buffer("_farthest", farthest, persistent=False)

    def _numbers(self, scores: Tensor, labels: Tensor) -> Tensor:
        check_features(scores, len(self.distances), "scores")
        check_device(self.distances, scores)
        check_finite(scores, "scores")  # a rule may hide such scores
        columns: list[Tensor] = []
        for decision in self.decisions:
            decided = DECISIONS[decision](scores.detach(), self.distances)
            ranking = Ranking(decided, labels, self.distances, (self._nearest, self._farthest))
            columns += ranking_metrics(ranking, self.top_k).values()
        columns.append(torch.ones(len(scores), dtype=torch.float64, device=scores.device))
        return torch.stack(columns, dim=1)

    def compute(self) -> dict[str, Tensor]:
        """Return 0-d float64 tensors by metric id; nan before the first sample, or mistake for the severity."""
        values: dict[str, Tensor] = {}
        of_rules = self.sums[:-1].view(len(self.decisions), len(self._ids))
        for decision, sums in zip(self.decisions, of_rules, strict=True):
            suffix = "" if decision == "argmax" else f".{decision}"
            means = dict(zip(self._ids, sums / self.sums[-1], strict=True))
            means["mistake_severity"] = means["hierarchical_distance@1"] / means["error"]
            values |= {f"{name}{suffix}": mean for name, mean in means.items()}
        return values
