"""The check of a matrix of class distances."""

from __future__ import annotations

import torch
from torch import Tensor

from tightframe.errors import ArgumentError, DtypeError, ShapeError


def check_distances(distances: Tensor, at_least: int = 1, name: str = "distances") -> None:
    """Check distances between classes: symmetric, finite, zero on the diagonal and positive everywhere else.

    Args:
        distances: Distances ``(K, K)``, floating point, in any unit.
        at_least: Smallest number of classes K.
        name: Name of the argument, for the error.

    Raises:
        DtypeError: if ``distances`` is not a floating-point tensor.
        ShapeError: if it is not square, or K is smaller than ``at_least``.
        ArgumentError: if a value is wrong; the message names the pair of classes.

    Example:
        >>> check_distances(torch.tensor([[0.0, 1.0], [1.0, 0.0]]), at_least=2)
        >>> check_distances(torch.zeros(2, 2))
        Traceback (most recent call last):
        ...
        tightframe.errors.ArgumentError: distances must be positive between different classes, got 0.0 for classes \
0 and 1; merge the two, or make their distance positive
    """
    if not isinstance(distances, Tensor) or not distances.is_floating_point():
        seen = distances.dtype if isinstance(distances, Tensor) else type(distances).__name__
        raise DtypeError(f"{name} must be a floating-point tensor, got {seen}; use torch.as_tensor(…).double()")
    if distances.ndim != 2 or distances.shape[0] != distances.shape[1] or len(distances) < at_least:
        raise ShapeError(f"{name} must have shape (K, K) with K >= {at_least}, got {tuple(distances.shape)}")
    _refuse(
        ~torch.isfinite(distances),
        distances,
        f"{name} must be finite",
        "classes without a common ancestor have no distance",
    )
    _refuse(
        distances < 0,
        distances,
        f"{name} must not be negative",
        "negate similarities or subtract them from their maximum",
    )
    diagonal = torch.diag_embed(distances.diagonal() != 0)
    _refuse(diagonal, distances, f"{name} must be exactly zero on the diagonal", f"use {name}.fill_diagonal_(0)")
    zero = distances == 0
    zero.fill_diagonal_(False)
    _refuse(
        zero,
        distances,
        f"{name} must be positive between different classes",
        "merge the two, or make their distance positive",
    )
    _refuse(distances != distances.T, distances, f"{name} must be symmetric", f"use ({name} + {name}.T) / 2")


def _refuse(wrong: Tensor, distances: Tensor, expected: str, fix: str) -> None:
    if bool(wrong.any()):
        a, b = divmod(int(wrong.flatten().to(torch.uint8).argmax()), len(wrong))
        there, back = distances[a, b].item(), distances[b, a].item()
        seen = f"{there}" if str(there) == str(back) else f"{there} and back {back}"
        raise ArgumentError(f"{expected}, got {seen} for classes {a} and {b}; {fix}")
