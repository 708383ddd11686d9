"""ConfusedPairs: pairs of label and prediction, counted over batches and ranks."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from tightframe.errors import check_features, check_finite, check_label_range, check_labels, check_positive
from tightframe.metrics._base import StreamedMetric


class ConfusedPairs(StreamedMetric):
    """Every pair of label and prediction that occurred, correct ones included, with its number of samples.

    The prediction is the class of the highest score, of equal ones the lowest class. Memory is one integer a sample;
    torchmetrics' ``MulticlassConfusionMatrix`` is dense, (K, K).

    Args:
        num_classes: Number of classes K.
        kwargs: Arguments of ``torchmetrics.Metric``.

    Raises:
        ArgumentError: if ``num_classes`` is not an integer >= 1.

    Example:
        >>> metric = ConfusedPairs(3)
        >>> metric.update(torch.eye(3)[[1, 0, 1]], torch.tensor([0, 0, 0]))
        >>> metric.compute()
        tensor([[0, 0, 1],
                [0, 1, 2]])
    """

    higher_is_better = None
    codes: list[Tensor] | Tensor

    def __init__(self, num_classes: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        check_positive("num_classes", num_classes)
        self.num_classes = num_classes
        self.add_state("codes", [], dist_reduce_fx="cat")

    def update(self, scores: Tensor, labels: Tensor) -> None:
        """Add scores ``(B, K)``, higher for likelier classes, and labels ``(B,)``; B may be 0.

        Raises:
            DtypeError, ShapeError: if scores are not floating point ``(B, K)``, or labels not integers ``(B,)``.
            DeviceError: if they lie on different devices.
            LabelError: if a label is out of range.
            NonFiniteError: if a score is NaN or infinite.
        """
        check_features(scores, self.num_classes, "scores")
        check_labels(labels, scores)
        check_label_range(labels, self.num_classes)
        check_finite(scores, "scores")
        self.codes.append(labels.long() * self.num_classes + scores.argmax(dim=1))  # type: ignore[union-attr]

    def compute(self) -> Tensor:
        """Return label, prediction and samples of each pair ``(P, 3)`` int64, in the order of the first two."""
        codes = self.codes if isinstance(self.codes, Tensor) else torch.cat([self._nobody(), *self.codes])
        found, counts = codes.unique(return_counts=True)
        # One tensor, because torchmetrics makes a scalar of the counts if there is only one pair.
        return torch.stack([found // self.num_classes, found % self.num_classes, counts], dim=1)

    def sync(self, *args: Any, **kwargs: Any) -> None:
        """Gather the states of all ranks; see ``torchmetrics.Metric.sync``."""
        if len(self.codes) == 0:  # a rank without samples would send floats, and the others integers
            self.codes = [self._nobody()]
        super().sync(*args, **kwargs)

    def _nobody(self) -> Tensor:
        return torch.zeros(0, dtype=torch.int64, device=self.device)
