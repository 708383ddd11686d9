"""What every matrix of class distances must be."""

from __future__ import annotations

import torch
from torch import Tensor

from tightframe.errors import ArgumentError, DtypeError, ShapeError


def check_distances(distances: Tensor, num_classes: int | None = None) -> None:
    """Check distances between classes: symmetric, finite, zero on the diagonal and positive everywhere else.

    Args:
        distances: ``(K, K)`` floating point, in any unit.
        num_classes: K; None is any.

    Raises:
        DtypeError: if they are no floating-point tensor.
        ShapeError: if they are not square, hold no class, or not ``num_classes``.
        ArgumentError: if a value is wrong; the message names the pair of classes.

    Example:
        >>> check_distances(torch.tensor([[0.0, 1.0], [1.0, 0.0]]), num_classes=2)
        >>> check_distances(torch.zeros(2, 2))
        Traceback (most recent call last):
        ...
        tightframe.errors.ArgumentError: distances must be positive between different classes, got 0.0 for classes \
0 and 1; merge the two or set them apart
    """
    if not isinstance(distances, Tensor) or not distances.is_floating_point():
        seen = distances.dtype if isinstance(distances, Tensor) else type(distances).__name__
        raise DtypeError(f"distances must be a floating-point tensor, got {seen}; use torch.as_tensor(…).double()")
    if distances.ndim != 2 or distances.shape[0] != distances.shape[1] or not len(distances):
        raise ShapeError(f"distances must have shape (K, K), got {tuple(distances.shape)}")
    if num_classes is not None and len(distances) != num_classes:
        raise ShapeError(f"distances must have shape (K, K) = ({num_classes}, {num_classes}), got {len(distances)}")
    _refuse(~torch.isfinite(distances), distances, "be finite", "classes without a common ancestor have no distance")
    _refuse(distances < 0, distances, "not be negative", "negate similarities or subtract them from their maximum")
    diagonal = torch.diag_embed(distances.diagonal() != 0)
    _refuse(diagonal, distances, "be exactly zero on the diagonal", "use distances.fill_diagonal_(0)")
    zero = distances == 0
    zero.fill_diagonal_(False)
    _refuse(zero, distances, "be positive between different classes", "merge the two or set them apart")
    _refuse(distances != distances.T, distances, "be the same both ways", "use (distances + distances.T) / 2")


def _refuse(wrong: Tensor, distances: Tensor, expected: str, fix: str) -> None:
    if bool(wrong.any()):
        a, b = divmod(int(wrong.flatten().to(torch.uint8).argmax()), len(wrong))
        there, back = distances[a, b].item(), distances[b, a].item()
        seen = f"{there}" if str(there) == str(back) else f"{there} and back {back}"
        raise ArgumentError(f"distances must {expected}, got {seen} for classes {a} and {b}; {fix}")
