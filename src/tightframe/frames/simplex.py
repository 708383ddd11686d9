"""The simplex equiangular tight frame: K unit vectors with pairwise cosine -1/(K-1), with or without a matrix."""

from __future__ import annotations

import copy
import math
from typing import final

import torch
from torch import Tensor

from tightframe.errors import DimensionError, check_choice, check_positive
from tightframe.frames.operator import Frame, MatrixFrame
from tightframe.linalg import haar_orthonormal, helmert_product, helmert_rows

ORIENTATIONS = ("canonical", "haar")


@final
class SimplexETF(Frame):
    r"""A simplex ETF whose canonical orientation is never stored.

    The Gram matrix is :math:`\frac{K}{K-1} (I - \frac{1}{K} \mathbf{1}\mathbf{1}^\top)` (Papyan, Han & Donoho, PNAS
    2020). ``"canonical"`` puts the class vectors on the first coordinates:

    .. math:: W = \sqrt{\tfrac{K}{K-1}}\, (I - \tfrac{1}{K} \mathbf{1}\mathbf{1}^\top) [I_K\; 0] \quad (d \ge K),
        \qquad W = \sqrt{\tfrac{K}{K-1}}\, Q \quad (d = K - 1),

    with the Helmert basis Q, which makes the second the recursive simplex of Kasarla et al. (NeurIPS 2022). Logits of N
    features take O(N (K + d)) time and no further memory. ``"haar"`` is :math:`\sqrt{K/(K-1)}\, Q R^\top` with R
    ``(d, K - 1)`` orthonormal and uniformly drawn. It stores W: R is hardly smaller, and W gives the logits in one
    matrix product.

    Args:
        num_classes: Number of classes K >= 2.
        dim: Feature dimension d >= K - 1.
        orientation: Word ``"haar"`` or ``"canonical"``.
        generator: Source of the Haar draw, on the CPU; None is a new one with seed 0, so equal calls give equal
            frames. The draw is in float64 and then cast: it depends on neither dtype nor device. A canonical frame
            draws nothing.
        dtype: Floating-point type of the matrix and of the rows; None is PyTorch's default.
        device: Device of these; None is PyTorch's default.

    Raises:
        ArgumentError: if an argument is outside its range.
        DimensionError: if d < K - 1.
        DeviceError: if the generator is not on the CPU.

    Example:
        >>> frame = SimplexETF(3, 4, orientation="canonical", dtype=torch.float64)
        >>> h = torch.tensor([3.0, 0.0, 0.0, 7.0], dtype=torch.float64)
        >>> torch.allclose(frame.logits(h), 1.5**0.5 * torch.tensor([2.0, -1.0, -1.0], dtype=torch.float64))
        True
    """

    def __init__(
        self,
        num_classes: int,
        dim: int,
        *,
        orientation: str = "haar",
        generator: torch.Generator | None = None,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ) -> None:
        check_positive("num_classes", num_classes, 2)
        check_positive("dim", dim)
        check_choice("orientation", orientation, ORIENTATIONS)
        if dim < num_classes - 1:
            raise DimensionError(
                f"a simplex of num_classes K = {num_classes} needs dim >= K - 1 = {num_classes - 1}, got dim = {dim}; "
                "widen the features, or use a general frame for more classes than dimensions"
            )
        dtype = torch.get_default_dtype() if dtype is None else dtype
        device = torch.get_default_device() if device is None else torch.device(device)
        super().__init__(num_classes, dim, dtype, device)
        self.orientation = orientation
        self.stored = orientation == "haar"
        self._radius = math.sqrt(num_classes / (num_classes - 1))
        self._dense: MatrixFrame | None = None
        if orientation == "haar":
            if generator is None:
                generator = torch.Generator(device="cpu").manual_seed(0)
            draw = haar_orthonormal(dim, num_classes - 1, generator)
            matrix = (self._radius * helmert_product(draw)).T
            self._dense = MatrixFrame(matrix.to(device=device, dtype=dtype).contiguous())

    def _logits(self, features: Tensor) -> Tensor:
        if self._dense is not None:
            return self._dense._logits(features)
        if self.dim < self.num_classes:
            return helmert_product(features) * self._radius
        kept = features[..., : self.num_classes]
        return (kept - kept.mean(dim=-1, keepdim=True)) * self._radius

    def _rows(self, index: Tensor) -> Tensor:
        if self._dense is not None:
            return self._dense._rows(index)
        if self.dim < self.num_classes:
            work = torch.promote_types(self.dtype, torch.float32)
            return (helmert_rows(index, self.num_classes, dtype=work) * self._radius).to(self.dtype)
        off = -self._radius / self.num_classes
        rows = torch.zeros(index.numel(), self.dim, dtype=self.dtype, device=index.device)
        rows[:, : self.num_classes] = off
        return rows.scatter_(1, index.unsqueeze(1), self._radius + off)

    @property
    def gram(self) -> Tensor:
        """The inner products ``(K, K)``: 1 on the diagonal and -1/(K-1) elsewhere, exactly."""
        shape = (self.num_classes, self.num_classes)
        gram = torch.full(shape, -1 / (self.num_classes - 1), dtype=self.dtype, device=self.device)
        return gram.fill_diagonal_(1.0)

    def as_matrix(self) -> Tensor:
        """Return W ``(K, d)``; a canonical frame builds it at each call."""
        if self._dense is not None:
            return self._dense.as_matrix()
        return self._rows(torch.arange(self.num_classes, device=self.device))

    def to(self, *, dtype: torch.dtype | None = None, device: torch.device | str | None = None) -> SimplexETF:
        """Return the same frame in another dtype or on another device."""
        frame = copy.copy(self)
        frame.dtype = self.dtype if dtype is None else dtype
        frame.device = self.device if device is None else torch.device(device)
        if self._dense is not None:
            frame._dense = self._dense.to(device=frame.device, dtype=frame.dtype)
        return frame


def simplex_etf(
    num_classes: int,
    dim: int,
    *,
    orientation: str = "haar",
    generator: torch.Generator | None = None,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
) -> Tensor:
    """Return the matrix W ``(K, d)`` of a simplex ETF; formulas, arguments and errors are those of :class:`SimplexETF`.

    Example:
        >>> W = simplex_etf(4, 8, dtype=torch.float64)
        >>> gram = torch.full((4, 4), -1 / 3, dtype=torch.float64).fill_diagonal_(1)
        >>> torch.allclose(W @ W.T, gram)
        True
    """
    frame = SimplexETF(num_classes, dim, orientation=orientation, generator=generator, dtype=dtype, device=device)
    return frame.as_matrix()
