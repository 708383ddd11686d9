"""Metrics that compare samples with class means gathered before."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from tightframe import functional as F
from tightframe.functional import ClassMoments
from tightframe.metrics._base import StreamedMetric


class _Share(StreamedMetric):
    """Share of samples that agree with their nearest class mean."""

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

    def _count(self, share: Tensor, size: int) -> None:
        self.agreeing += (share * size).round().long()
        self.total += size

    def compute(self) -> Tensor:
        """Return a 0-d float64 tensor in [0, 1]; nan before the first sample."""
        return self.agreeing.double() / self.total


class NCCAccuracy(_Share):
    """Accuracy of the nearest-class-centre rule; see :func:`tightframe.functional.ncc_accuracy`.

    Args:
        moments: of the training features.
        kwargs: passed to ``torchmetrics.Metric``.

    Example:
        >>> moments = ClassMoments.from_samples(torch.tensor([[0.0], [4.0]]), torch.tensor([0, 1]), 2)
        >>> metric = NCCAccuracy(moments)
        >>> metric.update(torch.tensor([[1.0], [1.5]]), torch.tensor([0, 1]))
        >>> metric.compute()
        tensor(0.5000, dtype=torch.float64)
    """

    def update(self, features: Tensor, labels: Tensor) -> None:
        """Count features ``(B, d)`` whose nearest class mean is that of their label ``(B,)``."""
        self._count(F.ncc_accuracy(features, labels, self.moments), labels.numel())


class NC4Agreement(_Share):
    """Agreement of the network with the nearest-class-centre rule; see :func:`tightframe.functional.nc4_agreement`.

    Args:
        moments: of the training features.
        kwargs: passed to ``torchmetrics.Metric``.
    """

    def update(self, features: Tensor, logits: Tensor) -> None:
        """Count features ``(B, d)`` whose nearest class mean is the network's choice by its logits ``(B, K)``."""
        self._count(F.nc4_agreement(features, logits, self.moments), features.shape[0])
