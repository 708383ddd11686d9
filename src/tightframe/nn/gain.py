"""The gain at which fixed layers between activations keep the scale of what passes through."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from tightframe.errors import ArgumentError, check_choice

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {"relu": F.relu, "gelu": F.gelu, "silu": F.silu}

_REACH = 20.0  # the normal density there is 5e-88
_PANELS = 80  # of width 1/2: an activation that bends at a multiple of that is smooth within each
_NODES = 16
_HALVINGS = 50
_TOLERANCE = 1e-13


def variance_preserving_gain(activation: str | Callable[[Tensor], Tensor] = "relu") -> float:
    r"""Return :math:`1 / \operatorname{std}(\operatorname{act}(z))` for standard normal z.

    A simplex weight centres what it is given, so that of the activations only their variance survives, and this gain
    makes up for it: in a square layer, entries of variance 1 before the activation give entries of variance 1 after
    the weight. For ReLU it is :math:`\sqrt{2\pi / (\pi - 1)} = 1.7129`, where He's :math:`\sqrt 2` shrinks them by a
    factor of .83 a layer.

    The expectation is by adaptive Gauss-Legendre quadrature in float64, right to about ten digits, for activations with
    bends and jumps too; fewer where the mean of the activation is many times its deviation.

    Args:
        activation: ``"relu"``, ``"gelu"``, ``"silu"``, or any function or module that acts on each entry of a float64
            tensor by itself.

    Raises:
        ArgumentError: if the name is unknown, or the activation does not return a tensor of the shape that it was
            given, is not finite on [-20, 20], is constant, or grows so fast that it has no variance.

    Example:
        >>> round(variance_preserving_gain("relu"), 4), round(variance_preserving_gain("gelu"), 4)
        (1.7129, 1.7009)
        >>> round(variance_preserving_gain(torch.nn.LeakyReLU(0.1)), 4)
        1.6306
    """
    if isinstance(activation, str):
        check_choice("activation", activation, tuple(ACTIVATIONS))
        activation = ACTIVATIONS[activation]
    elif not callable(activation):
        raise ArgumentError(f"activation must be a name or a function, got {activation!r}")
    weights, values = _quadrature(activation)
    mean = float((weights * values).sum())
    deviation = math.sqrt(float((weights * (values - mean) ** 2).sum()))
    if deviation <= 1e-12 * abs(mean) or deviation == 0:
        raise ArgumentError(f"activation must vary, got the constant {mean:g}: no gain preserves its variance")
    return 1 / deviation


def _quadrature(activation: Callable[[Tensor], Tensor]) -> tuple[np.ndarray, np.ndarray]:
    """Return weights, the normal density included, and values of the activation at the nodes of all final panels."""
    edges = np.linspace(-_REACH, _REACH, _PANELS + 1)
    low, high = edges[:-1], edges[1:]
    weights, values = _panels(activation, low, high)
    with np.errstate(over="ignore"):
        squares = (weights * values**2).sum(axis=1)
    total = squares.sum()
    if not max(squares[0], squares[-1]) <= 1e-9 * total < math.inf:
        raise ArgumentError(f"activation must grow slower than exp(z²/4), got one of no variance: {activation!r}")
    accepted: list[tuple[np.ndarray, np.ndarray]] = []
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        halves = [_panels(activation, low, middle), _panels(activation, middle, high)]
        coarse = np.stack([(weights * values**power).sum(axis=1) for power in (1, 2)])
        fine = np.stack([sum((w * v**power).sum(axis=1) for w, v in halves) for power in (1, 2)])
        scale = np.array([[math.sqrt(total)], [total]])
        rough = (np.abs(fine - coarse) > _TOLERANCE * scale).any(axis=0)
        accepted.append((weights[~rough], values[~rough]))
        if not rough.any():
            break
        low, high = (np.concatenate(ends) for ends in ((low[rough], middle[rough]), (middle[rough], high[rough])))
        weights, values = (np.concatenate([first[rough], second[rough]]) for first, second in zip(*halves, strict=True))
    else:
        accepted.append((weights, values))
    weights, values = (np.concatenate(parts).ravel() for parts in zip(*accepted, strict=True))
    return weights / weights.sum(), values


def _panels(activation: Callable[[Tensor], Tensor], low: np.ndarray, high: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return weights and values ``(panels, nodes)`` of Gauss-Legendre quadrature on intervals."""
    nodes, weights = np.polynomial.legendre.leggauss(_NODES)
    half = ((high - low) / 2)[:, None]
    z = (low + high)[:, None] / 2 + half * nodes
    given = torch.from_numpy(z.ravel())
    with torch.no_grad():
        found = activation(given.clone())  # an activation may work in place
    if not isinstance(found, Tensor) or found.shape != given.shape:
        seen = tuple(found.shape) if isinstance(found, Tensor) else type(found).__name__
        raise ArgumentError(f"activation must return a tensor of shape {tuple(given.shape)} as given, got {seen}")
    values = found.double().numpy(force=True).reshape(z.shape)
    if not np.isfinite(values).all():
        at = z[~np.isfinite(values)][0]
        raise ArgumentError(f"activation must be finite, got {values[~np.isfinite(values)][0]} at z = {at:.3g}")
    return half * weights * np.exp(-(z**2) / 2) / math.sqrt(2 * math.pi), values
