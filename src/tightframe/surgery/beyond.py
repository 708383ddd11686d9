"""Lock every layer beyond a depth: what a trained network's effective depth leaves over."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from tightframe.errors import ArgumentError, check_positive
from tightframe.probing.names import match_layers, trains_matrix
from tightframe.surgery._modules import find_module
from tightframe.surgery.locking import Fix, Lock, as_fix, lock_to_etf


def lock_beyond(
    model: nn.Module,
    layers: Sequence[str],
    depth: int,
    kind: str | Fix = "aligned",
    *,
    inclusive: bool = False,
    min_trainable: int = 1,
    keep: Sequence[str] = (),
    optimizer: torch.optim.Optimizer | None = None,
    **options: Any,
) -> list[Lock]:
    """Lock those of the layers 1..L beyond a depth whose weights are still trained, each with a draw of its own.

    Args:
        model: Any module.
        layers: Names of its linear maps in order of execution, as in :attr:`~tightframe.probing.LayerCurves.layers`.
        depth: Last layer to keep, 1..L, such as :func:`~tightframe.probing.effective_depth`.
        kind: Kind of the fixed weights or a :class:`~tightframe.surgery.Fix`, as in
            :func:`~tightframe.surgery.lock_to_etf`.
        inclusive: Whether to lock that one too.
        min_trainable: Number of first layers that are kept whatever the depth, >= 1.
        keep: Names or patterns of layers that are not locked wherever they are, such as a classifier of more than
            d + 1 classes, for which there is no simplex ETF.
        optimizer: Optimizer, as in :func:`~tightframe.surgery.lock_to_etf`.
        options: Further fields of :class:`~tightframe.surgery.Fix`.

    Raises:
        ArgumentError: if the depth is no layer, if ``keep`` names no module, or as in
            :func:`~tightframe.surgery.lock_to_etf`; what was locked before the layer at fault stays so.

    Example:
        >>> model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 3))
        >>> [lock.name for lock in lock_beyond(model, ["0", "2", "4"], depth=1)]
        ['2', '4']
    """
    check_positive("depth", depth)
    check_positive("min_trainable", min_trainable)
    fix = as_fix(kind, options)
    if depth > len(layers):
        raise ArgumentError(f"depth must be one of the layers 1..{len(layers)}, got {depth}")
    beyond = list(enumerate(layers))[max(depth - inclusive, min_trainable) :]
    kept = match_layers(model, keep, "keep")
    trained = [(i, name) for i, name in beyond if name not in kept and trains_matrix(find_module(model, name))]
    return [lock_to_etf(model, name, replace(fix, seed=fix.seed + i), optimizer=optimizer) for i, name in trained]
