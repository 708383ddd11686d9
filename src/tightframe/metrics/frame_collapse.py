"""Collapse onto a given frame, gathered batch by batch."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from tightframe.errors import check_features, check_finite
from tightframe.functional.registry import METRICS
from tightframe.metrics.collapse import MomentsMetric


class FrameCollapse(MomentsMetric):
    """All metrics of :func:`tightframe.functional.frame_metrics`, as a dict keyed by metric id.

    Args:
        frame: Class vectors ``(K, d)``; a copy is kept in its own precision, which says what its rounding can hide.
        scatter: gather the pooled scatter ``(d, d)``, which ``frame.outside.features`` needs.
        ignore_index: label whose samples are left out.
        kwargs: passed to ``torchmetrics.Metric``.

    Raises:
        DtypeError, ShapeError, NonFiniteError: if the frame is no finite floating-point matrix.

    Example:
        >>> import torch
        >>> metric = FrameCollapse(torch.eye(3))
        >>> metric.update(torch.eye(3), torch.arange(3))
        >>> metric.compute()["frame.alignment"]
        tensor(1., dtype=torch.float64)
    """

    frame: Tensor

    def __init__(self, frame: Tensor, *, scatter: bool = False, ignore_index: int | None = None, **kwargs: Any) -> None:
        check_features(frame, name="frame")
        check_finite(frame, "frame")
        super().__init__(frame.shape[0], frame.shape[1], scatter=scatter, ignore_index=ignore_index, **kwargs)
        self.register_buffer("frame", frame.detach().clone(), persistent=False)

    def compute(self) -> dict[str, Tensor]:
        """Return 0-d float64 tensors by metric id."""
        return self._evaluate(_ROWS, frame=self.frame)


_ROWS = [metric.id for metric in METRICS if "frame" in metric.needs]
