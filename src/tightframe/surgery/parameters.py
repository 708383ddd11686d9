"""Parameter report: the numbers that a model trains, holds and stores, and those of its optimizer."""

from __future__ import annotations

import dataclasses
from collections import defaultdict
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from tightframe.errors import ArgumentError

COLUMNS = ("trainable", "frozen", "buffers", "stored", "bytes")


@dataclass(frozen=True)
class LayerParameters:
    """Parameters of one module itself, without those of the modules inside it.

    Args:
        name: Name of the module, ``""`` for the model.
        kind: name of its class.
        trainable: numbers in parameters that need gradients.
        frozen: numbers in parameters that do not.
        buffers: numbers in buffers.
        stored: numbers in the state.
        bytes: memory of parameters and buffers.
    """

    name: str
    kind: str
    trainable: int = 0
    frozen: int = 0
    buffers: int = 0
    stored: int = 0
    bytes: int = 0


@dataclass(frozen=True)
class ParameterReport:
    """Parameters of a model, layer by layer, and the state of its optimizer.

    Args:
        trainable: numbers in parameters that need gradients.
        frozen: numbers in parameters that do not.
        buffers: numbers in buffers.
        stored: numbers in the state.
        bytes: memory of parameters and buffers.
        layers: those that hold anything. What several share is counted in the first of them.
        optimizer_bytes: memory of the optimiser's state, or None if none was named.
        optimizer_bytes_saved: memory that the state of the frozen parameters would take, were they trained too; None
            unless the optimizer is ``"adam"``.
    """

    trainable: int
    frozen: int
    buffers: int
    stored: int
    bytes: int
    layers: tuple[LayerParameters, ...]
    optimizer_bytes: int | None = None
    optimizer_bytes_saved: int | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return totals, and ``layers`` as dictionaries, for JSON."""
        return dataclasses.asdict(self)


def parameter_report(model: nn.Module, optimizer: torch.optim.Optimizer | str | None = None) -> ParameterReport:
    """Count what a model trains, holds and stores; a tensor that several layers share is counted once.

    Args:
        model: any module.
        optimizer: Optimizer that trains it, whose state is measured as it is now: before the first step it holds
            nothing. Or ``"adam"`` for what Adam and AdamW will hold: two tensors, and a counter of four bytes, for each
            that is trained.

    Raises:
        ArgumentError: if ``optimizer`` is none of these.

    Example:
        >>> model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
        >>> _ = model[0].weight.requires_grad_(False)
        >>> report = parameter_report(model, "adam")
        >>> report.trainable, report.frozen, report.bytes, report.optimizer_bytes, report.optimizer_bytes_saved
        (35, 32, 268, 292, 260)
    """
    rows: dict[str, dict[str, int]] = defaultdict(lambda: defaultdict(int))
    seen: set[tuple[Any, ...]] = set()
    held: list[tuple[str, Tensor, str]] = [
        (name, p, "trainable" if p.requires_grad else "frozen") for name, p in model.named_parameters()
    ]
    held += [(name, buffer, "buffers") for name, buffer in model.named_buffers()]
    for name, tensor, column in held:
        if _new(tensor, seen):
            row = rows[name.rpartition(".")[0]]
            row[column] += tensor.numel()
            row["bytes"] += _bytes(tensor)
    stored: set[tuple[Any, ...]] = set()
    for name, value in model.state_dict(keep_vars=True).items():
        if isinstance(value, Tensor) and _new(value, stored):
            rows[name.rpartition(".")[0]]["stored"] += value.numel()
    modules = dict(model.named_modules(remove_duplicate=False))
    order = {name: index for index, name in enumerate(modules)}
    layers = tuple(
        LayerParameters(name, type(modules[name]).__name__ if name in modules else "", **rows[name])
        for name in sorted(rows, key=lambda name: order.get(name, len(order)))
    )
    totals = {column: sum(getattr(layer, column) for layer in layers) for column in COLUMNS}
    used, saved = _optimizer_bytes(model, optimizer)
    return ParameterReport(**totals, layers=layers, optimizer_bytes=used, optimizer_bytes_saved=saved)


def _new(tensor: Tensor, seen: set[tuple[Any, ...]]) -> bool:
    """Return whether this memory is met for the first time, and remember it."""
    address = 0 if tensor.is_meta or tensor.layout != torch.strided else tensor.data_ptr()
    key = (tensor.device, address or id(tensor))
    known = key in seen
    seen.add(key)
    return not known


def _bytes(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()


def _optimizer_bytes(model: nn.Module, optimizer: object) -> tuple[int | None, int | None]:
    if optimizer is None:
        return None, None
    if optimizer == "adam":
        distinct: set[tuple[Any, ...]] = set()
        held = {True: 0, False: 0}
        for parameter in model.parameters():
            if _new(parameter, distinct):
                held[parameter.requires_grad] += 2 * _bytes(parameter) + 4
        return held[True], held[False]
    if not isinstance(optimizer, torch.optim.Optimizer):
        raise ArgumentError(f"optimizer must be a torch.optim.Optimizer, 'adam' or None, got {optimizer!r}")
    return sum(_bytes(t) for state in optimizer.state.values() for t in state.values() if isinstance(t, Tensor)), None
