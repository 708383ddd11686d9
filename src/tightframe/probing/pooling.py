"""One feature vector per sample, from token features and convolution maps."""

from __future__ import annotations

import torch
from torch import Tensor

from tightframe.errors import ArgumentError, ShapeError

POOLINGS = ("flatten", "mean", "cls", "mask")


def pool(value: Tensor, pooling: str | None, mask: Tensor | None, *, channels_first: bool | None) -> Tensor:
    """Return features ``(B, d)`` of an input or output of a layer; ``(B, d)`` is returned as it is.

    Args:
        value: Vectors ``(B, d)``, tokens ``(B, T, d)`` or maps ``(B, C, H, W)`` or ``(B, H, W, C)``, of any number of
            dimensions.
        pooling: Kind of pooling, ``"flatten"``: all numbers of a sample; ``"mean"``: their mean over tokens or pixels;
            ``"cls"``: the first token; ``"mask"``: the mean over the tokens that the mask keeps; None: flatten maps,
            refuse tokens.
        mask: Mask ``(B, T)`` for ``"mask"``; a token is kept if its entry is not zero.
        channels_first: Whether the features are dimension 1 rather than the last; None: if there are more than three.

    Raises:
        ArgumentError: if the pooling does not apply.
        ShapeError: if there is nothing to pool over, or the mask does not fit.
    """
    if value.ndim < 2:
        raise ShapeError(f"a layer's features must have shape (B, d) or more dimensions, got {tuple(value.shape)}")
    if value.ndim == 2:
        return value
    if channels_first is None:
        channels_first = value.ndim > 3
    tokens = value.ndim == 3 and not channels_first
    precision = torch.promote_types(value.dtype, torch.float32)  # means are not rounded to half precision
    if pooling == "flatten" or (pooling is None and not tokens):
        return value.flatten(start_dim=1)
    if pooling == "mean":
        positions = range(2, value.ndim) if channels_first else range(1, value.ndim - 1)
        return value.mean(dim=list(positions), dtype=precision)
    if not tokens:
        raise ArgumentError(
            f"pooling={pooling!r} is for tokens (B, T, d), got maps {tuple(value.shape)}; pass pooling='flatten' or "
            "'mean', or leave such layers out"
        )
    if pooling == "cls":
        return value[:, 0].contiguous()  # or it would keep all tokens in memory
    if pooling is None:
        raise ArgumentError(
            f"tokens (B, T, d) = {tuple(value.shape)} need a pooling: pass 'cls', 'mean' or 'mask' (or 'flatten')"
        )
    if mask is None or mask.shape != value.shape[:2]:
        seen = None if mask is None else tuple(mask.shape)
        raise ShapeError(f"pooling='mask' needs a mask of shape (B, T) = {tuple(value.shape[:2])}, got {seen}")
    kept = (mask != 0).unsqueeze(2)
    return value.where(kept, 0).sum(dim=1, dtype=precision) / kept.sum(dim=1)
