"""Linear algebra that several rooms share: Helmert basis, polar factor, Haar draws, norms of stated precision."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from tightframe.errors import ArgumentError, DeviceError, check_positive

BLOCK = 2**20  # entries of a matrix of all pairs that are held at a time: eight megabytes


def helmert_rows(index: Tensor, n: int, *, dtype: torch.dtype = torch.float64) -> Tensor:
    """Return the rows ``index (B,)``, whose values are not checked, of :func:`helmert_basis` as ``(B, n - 1)``."""
    column = torch.arange(n - 1, device=index.device)
    below, diagonal = _helmert_entries(n, dtype, index.device)
    index = index.unsqueeze(-1)
    return torch.where(column < index, below, torch.where(column == index, diagonal, 0.0))


def helmert_basis(n: int, *, dtype: torch.dtype = torch.float64, device: torch.device | str | None = None) -> Tensor:
    r"""Return an orthonormal basis ``(n, n - 1)`` of the vectors of :math:`\mathbb{R}^n` that sum to zero.

    Column :math:`j = 1, \dots, n - 1` weighs entry j against the :math:`m = n - j` entries after it,

    .. math:: q_j = (0, \dots, 0, m, -1, \dots, -1) / \sqrt{m (m + 1)}.

    Args:
        n: Length of the vectors, n >= 1.
        dtype: Floating-point type of the result.
        device: Device of the result.

    Raises:
        ArgumentError: if n is not an integer >= 1.

    Example:
        >>> Q = helmert_basis(3)
        >>> torch.allclose(Q.T @ Q, torch.eye(2, dtype=torch.float64))
        True
        >>> Q.sum(dim=0).abs().max().item() < 1e-15
        True
    """
    check_positive("n", n)
    return helmert_rows(torch.arange(n, device=device), n, dtype=dtype)


def helmert_product(x: Tensor) -> Tensor:
    """Return ``x @ Q.T`` of shape ``(…, n)`` for ``x (…, n - 1)`` and ``Q = helmert_basis(n)``, without forming Q.

    A row of Q is constant left of its diagonal, so the product is one cumulative sum: O(n) a vector.

    Args:
        x: Coordinates in the basis, floating point.

    Example:
        >>> x = torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64)
        >>> torch.allclose(helmert_product(x), helmert_basis(4) @ x)
        True
    """
    below, diagonal = _helmert_entries(x.shape[-1] + 1, x.dtype, x.device)
    product = F.pad((x * below).cumsum_(dim=-1), (1, 0))
    product[..., :-1].addcmul_(x, diagonal)
    return product


def helmert_coordinates(x: Tensor) -> Tensor:
    """Return ``x @ Q`` of shape ``(…, n - 1)`` for ``x (…, n)`` and ``Q = helmert_basis(n)``, without forming Q.

    These are the coordinates of ``x - x.mean(-1)``, which :func:`helmert_product` gives back. O(n) a vector.

    Args:
        x: Vectors ``(…, n)``, floating point, n >= 1.

    Example:
        >>> x = torch.tensor([1.0, 2.0, 6.0], dtype=torch.float64)
        >>> helmert_product(helmert_coordinates(x))
        tensor([-2.0000, -1.0000,  3.0000], dtype=torch.float64)
    """
    n = x.shape[-1]
    below, diagonal = _helmert_entries(n, x.dtype, x.device)
    # The mean of equal entries may differ from them by rounding; from their difference, zero, it cannot.
    kept = x[..., :-1] - x[..., -1:]
    kept = kept.sub_(kept.sum(dim=-1, keepdim=True) / n)
    # What follows an entry of a vector that sums to zero is minus what came up to it.
    before = kept.cumsum(dim=-1).mul_(below)
    return kept.mul_(diagonal).sub_(before)


def _helmert_entries(n: int, dtype: torch.dtype, device: torch.device) -> tuple[Tensor, Tensor]:
    """Return, for each column, its value below the diagonal and on it, both ``(n - 1,)``."""
    m = torch.arange(n - 1, 0, -1, dtype=dtype, device=device)
    return -((m * (m + 1)).rsqrt()), (m / (m + 1)).sqrt()


def haar_orthonormal(rows: int, cols: int, generator: torch.Generator) -> Tensor:
    """Draw a matrix ``(rows, cols)`` with orthonormal columns, uniformly (Haar), in float64 on the CPU.

    It is the Q of a Gaussian matrix's QR, each column signed so that the diagonal of R is positive: without the signs
    the law would be the factorisation's, not Haar's (Mezzadri, Notices of the AMS 54, 2007).

    Args:
        rows: Length of the columns.
        cols: Number of columns, at most ``rows``.
        generator: Source of the draw, on the CPU.

    Raises:
        ArgumentError: if ``rows`` or ``cols`` is not a positive integer, or ``cols > rows``.
        DeviceError: if the generator is not on the CPU.

    Example:
        >>> Q = haar_orthonormal(5, 3, torch.Generator().manual_seed(0))
        >>> torch.allclose(Q.T @ Q, torch.eye(3, dtype=torch.float64))
        True
    """
    check_positive("rows", rows)
    check_positive("cols", cols)
    if cols > rows:
        raise ArgumentError(f"cols must be at most rows = {rows} for the columns to be orthonormal, got {cols}")
    if generator.device.type != "cpu":
        raise DeviceError(f"generator must be on the CPU, got {generator.device}; pass torch.Generator(device='cpu')")
    gaussian = torch.randn(rows, cols, dtype=torch.float64, device="cpu", generator=generator)
    q, r = torch.linalg.qr(gaussian)
    return q * r.diagonal().sign()


def at_least_float32(x: Tensor) -> Tensor:
    """Return ``x``, widened to float32 if it is of half precision."""
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


def outside_autocast(device: torch.device) -> contextlib.AbstractContextManager[object]:
    """Return a context in which autocast lowers no precision on ``device``."""
    if torch.amp.is_autocast_available(device.type):
        return torch.autocast(device.type, enabled=False)
    return contextlib.nullcontext()


def reciprocal_norm(x: Tensor) -> Tensor:
    """Return ``1 / ‖x‖`` over the last dimension, kept as size 1; where ``x = 0`` it is 0 and so is its gradient.

    Thus ``x * reciprocal_norm(x)`` has unit length, and a zero vector stays zero with zero gradient.

    Example:
        >>> x = torch.tensor([[3.0, 4.0], [0.0, 0.0]])
        >>> (x * reciprocal_norm(x)).tolist()
        [[0.6..., 0.8...], [0.0, 0.0]]
    """
    norm = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
    zero = norm == 0
    return torch.where(zero, 0.0, 1.0 / torch.where(zero, 1.0, norm))


def scale_to_one(x: Tensor) -> float:
    """Return the power of two that brings the largest entry of ``x`` into [1/2, 1); a product with it rounds nothing.

    Example:
        >>> scale_to_one(torch.tensor([3.0, -5.0]))
        0.125
    """
    low, high = torch.aminmax(x) if x.numel() else (x.sum(), x.sum())
    return 2.0 ** min(-math.frexp(max(-low.item(), high.item()))[1], 1000)  # as far as float64 reaches


def pair_sq_distances(points: Tensor) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Yield the squared Euclidean distances between the rows of ``points (n, d)``, each pair once, block by block.

    One matrix product gives the distances of a block. For two points so close, compared with their spread, that the
    product cancels, the difference itself is squared. So every distance has about ten right digits in float64. Beside
    the points and a copy of them only a few blocks are held.

    Yields:
        Indices of the rows on either side, which broadcast, and the squared distances.

    Example:
        >>> points = torch.tensor([[0.0, 0.0], [3.0, 4.0], [3.0, 0.0]], dtype=torch.float64)
        >>> [squares for _, _, squares in pair_sq_distances(points)]
        [tensor([25.,  9., 16.], dtype=torch.float64)]
    """
    n, dim = points.shape
    centered = points - points.mean(dim=0)
    squares = torch.linalg.vecdot(centered, centered)
    index = torch.arange(n, device=points.device)
    height = max(1, min(256, BLOCK // n))
    for start in range(0, n, height):
        rows, rest = index[start : start + height], index[start + height :]
        sums = squares[start : start + height].unsqueeze(1) + squares[start:]
        block = torch.addmm(sums, centered[start : start + height], centered[start:].T, alpha=-2)
        near = (block < sums.mul_(1e-5)).triu_(diagonal=1).nonzero()
        for first in range(0, len(near), max(1, BLOCK // dim)):
            i, j = near[first : first + max(1, BLOCK // dim)].T
            block[i, j] = (points[start + i] - points[start + j]).square_().sum(dim=1)
        if len(rows) > 1:
            i, j = torch.triu_indices(len(rows), len(rows), 1, device=points.device)
            yield start + i, start + j, block[i, j]
        if len(rest):
            yield rows.unsqueeze(1), rest, block[:, len(rows) :]


def pooled_var_mean(parts: Iterable[Tensor]) -> tuple[Tensor, Tensor]:
    """Return variance (population) and mean of all entries of some tensors, at least one, by Chan's rule.

    Example:
        >>> pooled_var_mean([torch.tensor([1.0, 2.0]), torch.tensor([6.0])])
        (tensor(4.6667), tensor(3.))
    """
    count, squares, mean = 0, torch.zeros(()), torch.zeros(())
    for part in parts:
        variance, center = torch.var_mean(part, correction=0)
        share = part.numel() / (count + part.numel())
        squares = squares + part.numel() * variance + count * share * (center - mean).square()
        mean = mean + share * (center - mean)
        count += part.numel()
    return squares / count, mean
