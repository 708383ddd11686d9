"""ClassMeanTracker: running means of every class over training batches, as the state of a module."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, final

import torch
import torch.distributed as dist
from torch import Tensor, nn

from tightframe.errors import (
    ArgumentError,
    EmptyDataError,
    NonFiniteError,
    check_features,
    check_finite,
    check_label_range,
    check_labels,
    check_positive,
)

SMALLEST_SHARE = 1e-4
CHUNK = 256


class _SumOverRanks(torch.autograd.Function):
    """The sum over ranks; the gradients of the ranks are summed likewise."""

    @staticmethod
    def forward(ctx: Any, values: Tensor) -> Tensor:
        total = values.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return _SumOverRanks.forward(ctx, grad)


@final
class ClassMeanTracker(nn.Module):
    r"""Means of the classes, each less the global mean of its batch, and of all samples, averaged over batches.

    A batch that has class k moves it by :math:`m_k \leftarrow m_k + \alpha_k (\bar h_k - \bar h - m_k)`; a batch
    without class k leaves it. The global mean moves likewise. By default :math:`\alpha = 2 / (t + 2)`, at least 1e-4,
    after t batches with that class: a weighted mean over all of them, in which late ones count more (Markou, Ajanthan &
    Gould, NeurIPS 2024, section 3.2). With ``momentum`` :math:`\beta`, :math:`\alpha = 1 - \beta` after the first.

    Across ``torch.distributed`` ranks sums and counts are reduced, so each rank holds the means of the joint batch, and
    gradients flow back to all of them. The state is float64, whatever dtype the model is cast to.

    Args:
        num_classes: Number of classes K >= 1.
        dim: Feature dimension d >= 1.
        momentum: Momentum beta in [0, 1), where 0 keeps the last batch only; None is the growing window.
        device: Device of the state; None is PyTorch's default.

    Attributes:
        class_means: ``(K, d)``; zero for a class not seen yet.
        global_mean: ``(d,)``.
        updates: ``(K,)`` int64, batches that had the class.
        steps: 0-d int64, batches.

    Raises:
        ArgumentError: if an argument is outside its range.

    Example:
        >>> tracker = ClassMeanTracker(3, 1)
        >>> means, center = tracker(torch.tensor([[1.0], [2.0], [6.0]]), torch.tensor([0, 0, 1]))
        >>> means.flatten().tolist(), center.item()
        ([-1.5, 3.0, 0.0], 3.0)
    """

    class_means: Tensor
    global_mean: Tensor
    updates: Tensor
    steps: Tensor

    def __init__(
        self,
        num_classes: int,
        dim: int,
        *,
        momentum: float | None = None,
        device: torch.device | str | None = None,
    ) -> None:
        super().__init__()
        check_positive("num_classes", num_classes)
        check_positive("dim", dim)
        number = isinstance(momentum, int | float) and not isinstance(momentum, bool)
        if momentum is not None and not (number and 0 <= momentum < 1):
            raise ArgumentError(f"momentum must be None or a number in [0, 1), got {momentum!r}")
        self.momentum = momentum
        self.register_buffer("class_means", torch.zeros(num_classes, dim, dtype=torch.float64, device=device))
        self.register_buffer("global_mean", torch.zeros(dim, dtype=torch.float64, device=device))
        self.register_buffer("updates", torch.zeros(num_classes, dtype=torch.int64, device=device))
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64, device=device))

    def forward(self, features: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Update with a batch; return class means ``(K, d)`` and global mean ``(d,)``, with gradients to this batch.

        After an error nothing has changed.

        Args:
            features: Features ``(B, d)``, floating point and finite.
            labels: Labels ``(B,)``, integers in 0..K-1.

        Raises:
            DtypeError, ShapeError, DeviceError: if features and labels do not fit.
            LabelError: if a label is out of range.
            NonFiniteError: if a feature is not finite, or a feature or label on another rank is wrong.
            EmptyDataError: if there is no sample on any rank.
        """
        check_features(features, self.global_mean.numel())
        check_labels(labels, features)
        sums, counts = self._totals(features, labels.long())
        total = counts.sum()
        center = sums.sum(dim=0) / total
        present = (counts > 0).unsqueeze(1)
        centered = sums / counts.clamp(min=1).unsqueeze(1) - center
        share = self._share(self.updates).unsqueeze(1).where(present, 0.0)
        class_means = self.class_means.lerp(centered, share)
        global_mean = self.global_mean.lerp(center, self._share(self.steps))
        # New tensors rather than new values: a graph may still need the old ones.
        self.class_means, self.global_mean = class_means.detach(), global_mean.detach()
        self.updates = self.updates + present.squeeze(1)
        self.steps = self.steps + 1
        return class_means, global_mean

    def _totals(self, features: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Return sums ``(K, d)`` and counts ``(K,)`` over the ranks, in float64."""
        num_classes, dim = self.class_means.shape
        known = (labels >= 0) & (labels < num_classes)
        chosen = labels.where(known, 0)
        sums = features.new_zeros(num_classes, dim, dtype=torch.float64)
        # In pieces that stay in the cache when they are widened.
        for some, index in zip(features.split(CHUNK), chosen.split(CHUNK), strict=True):
            sums = sums.index_add_(0, index, some.double())
        # A bad label must stop every rank as a bad feature does, so it makes the sums nan.
        sums = sums.where(known.all(), torch.nan)
        counts = chosen.bincount(minlength=num_classes).double()
        if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
            totals = _SumOverRanks.apply(torch.cat([sums, counts.unsqueeze(1)], dim=1))
            sums, counts = totals[:, :-1], totals[:, -1].detach()
        if not math.isfinite(sums.sum().item()):
            check_label_range(labels, num_classes)
            check_finite(features)
            raise NonFiniteError("features must be finite and labels in range, got others on another rank")
        if not counts.any():
            raise EmptyDataError("features must hold at least one sample, got none")
        return sums, counts

    def _share(self, seen: Tensor) -> Tensor:
        if self.momentum is None:
            return (2 / (seen.double() + 2)).clamp(min=SMALLEST_SHARE)
        return torch.full_like(seen, 1 - self.momentum, dtype=torch.float64).where(seen > 0, 1.0)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        before = dict(self.named_buffers(recurse=False))
        super()._apply(fn, recurse)
        for name, old in before.items():
            new = getattr(self, name)
            if new.dtype != old.dtype:
                setattr(self, name, old.to(new.device))
        return self

    def extra_repr(self) -> str:
        """Return sizes and options for ``repr``."""
        num_classes, dim = self.class_means.shape
        return f"num_classes={num_classes}, dim={dim}, momentum={self.momentum}"
