"""What the metrics have in common beside their numbers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torchmetrics import Metric


class StreamedMetric(Metric):
    """A metric whose update looks at its own batch alone, and whose values have no gradient."""

    is_differentiable = False
    full_state_update = False

    def _keep_apart(self, name: str) -> None:
        """Let only metrics that give the same name share this one's state."""
        # torchmetrics lets metrics share a state if names and, after one batch, values agree; this name forbids it.
        self.add_state(name, torch.zeros(0), dist_reduce_fx="sum")

    def plot(self, val: Any = None, ax: Any = None) -> Any:
        """Plot one value, or a list of values over time; see ``torchmetrics.Metric.plot``."""
        return self._plot(val, ax)


class UncastMetric(StreamedMetric):
    """A metric whose float64 states and buffers move with a parent module, and are never cast with it."""

    def _apply(self, fn: Callable, exclude_state: Sequence[str] = "") -> nn.Module:
        def move(tensor: Tensor) -> Tensor:
            moved = fn(tensor)
            return moved if moved.dtype == tensor.dtype else tensor.to(moved.device)

        return super()._apply(move, exclude_state)
