"""Metrics that compare samples with class means gathered before."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from tightframe.functional.registry import select
from tightframe.functional.samples import Judge
from tightframe.metrics._base import StreamedMetric
from tightframe.moments import ClassMoments


class _Share(StreamedMetric):
    """Share of samples that agree with their nearest class mean: a row of the registry, averaged."""

    higher_is_better = True
    plot_lower_bound = 0.0
    plot_upper_bound = 1.0
    agreeing: Tensor
    total: Tensor

    def __init__(self, moments: ClassMoments, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.moments = moments
        self.add_state("agreeing", torch.tensor(0), dist_reduce_fx="sum")
        self.add_state("total", torch.tensor(0), dist_reduce_fx="sum")
        self._keep_apart(f"{type(self).__name__}_{id(moments)}")

    def _count(self, row: str, features: Tensor, labels: Tensor | None = None, logits: Tensor | None = None) -> None:
        rows = select([row], ("means", "samples", "logits"))
        (values,) = Judge(self.moments).look(rows, features, labels, logits).values()
        self.agreeing += values.sum().long()
        self.total += len(values)

    def compute(self) -> Tensor:
        """Return a 0-d float64 tensor in [0, 1]; nan before the first sample."""
        return self.agreeing.double() / self.total


class NCCAccuracy(_Share):
    """Accuracy of the nearest-class-centre rule; see :func:`tightframe.functional.ncc_accuracy`.

    Args:
        moments: Moments of the training features.
        kwargs: Arguments of ``torchmetrics.Metric``.

    Example:
        >>> moments = ClassMoments.from_samples(torch.tensor([[0.0], [4.0]]), torch.tensor([0, 1]), 2)
        >>> metric = NCCAccuracy(moments)
        >>> metric.update(torch.tensor([[1.0], [1.5]]), torch.tensor([0, 1]))
        >>> metric.compute()
        tensor(0.5000, dtype=torch.float64)
    """

    def update(self, features: Tensor, labels: Tensor) -> None:
        """Count features ``(B, d)`` whose nearest class mean is that of their label ``(B,)``; B may be 0."""
        self._count("ncc.accuracy", features, labels)


class NC4Agreement(_Share):
    """Agreement of the network with the nearest-class-centre rule; see :func:`tightframe.functional.nc4_agreement`.

    Args:
        moments: Moments of the training features.
        kwargs: Arguments of ``torchmetrics.Metric``.
    """

    def update(self, features: Tensor, logits: Tensor) -> None:
        """Count features ``(B, d)`` whose nearest class mean is that of the largest logit ``(B, K)``; B may be 0."""
        self._count("nc4.agreement", features, logits=logits)
