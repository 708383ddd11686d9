"""Base class of the metrics: states, checkpoints, copies and casts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor, nn
from torchmetrics import Metric


class StreamedMetric(Metric):
    """A metric whose update looks at its own batch alone, and whose values have no gradient.

    Its states can always be updated: a tensor made in inference mode, or of a checkpoint, is copied before it becomes a
    state. States move with a parent module and are never cast with it.
    """

    is_differentiable = False
    full_state_update = False

    def _keep_apart(self, name: str) -> None:
        """Let only metrics that give the same name share this one's state."""
        # torchmetrics lets metrics share a state if names and, after one batch, values agree; this name forbids it.
        self._apart = name
        self.add_state(name, torch.zeros(0), dist_reduce_fx="sum")

    def persistent(self, mode: bool = False) -> None:
        """Choose whether states are part of ``state_dict``."""
        super().persistent(mode)
        if hasattr(self, "_apart"):
            self._persistent[self._apart] = False  # another object has another name

    def __setattr__(self, name: str, value: Any) -> None:
        if isinstance(value, Tensor) and value.is_inference():
            with torch.inference_mode(False):
                value = value.clone()
        super().__setattr__(name, value)

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        for name in self._defaults:
            setattr(self, name, getattr(self, name))  # a copy made in inference mode bypasses __setattr__

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, metadata: Any, strict: bool, *messages: list[str]
    ) -> None:
        for name, default in self._defaults.items():
            key = prefix + name
            if key not in state_dict:
                continue
            if isinstance(default, Tensor) and state_dict[key].shape != default.shape:
                found = f"{tuple(state_dict.pop(key).shape)} in the checkpoint, {tuple(default.shape)} here"
                messages[-1].append(f"shape of {key}: {found}")
                continue
            state_dict[key] = _on(deepcopy(state_dict[key]), self.device)
            self._computed, self._update_count = None, max(1, self._update_count)
        super()._load_from_state_dict(state_dict, prefix, metadata, strict, *messages)

    def _apply(self, fn: Callable, exclude_state: Sequence[str] = "") -> nn.Module:
        def move(tensor: Tensor) -> Tensor:
            moved = fn(tensor)
            return moved if moved.dtype == tensor.dtype else tensor.to(moved.device)

        return super()._apply(move, exclude_state)

    def plot(self, val: Any = None, ax: Any = None) -> Any:
        """Plot one value, or a list of values over time; see ``torchmetrics.Metric.plot``."""
        return self._plot(val, ax)


def _on(state: Any, device: torch.device) -> Any:
    return [_on(part, device) for part in state] if isinstance(state, list) else state.to(device)
