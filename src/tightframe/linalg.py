"""Linear algebra that several rooms share: Helmert basis, polar factor, Haar draws, norms of stated precision."""

from __future__ import annotations

import contextlib

import torch
import torch.nn.functional as F
from torch import Tensor

from tightframe._checks import ArgumentError, DeviceError, check_positive


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
        n: length of the vectors, n >= 1.
        dtype: floating-point type of the result.
        device: where to put it.

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
        x: coordinates in the basis, floating point.

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
        x: floating point, n >= 1.

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
        rows: length of the columns.
        cols: how many, at most ``rows``.
        generator: source of the draw, on the CPU.

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


def pairwise_sq_distances(points: Tensor) -> Tensor:
    """Return the squared Euclidean distances ``(n, n)`` between the rows of ``points (n, d)``.

    One matrix product gives them all. Where two points lie so close, compared with their spread, that the product
    cancels, the difference itself is squared, so every distance is right to about ten digits in float64.

    Example:
        >>> pairwise_sq_distances(torch.tensor([[0.0, 0.0], [3.0, 4.0]], dtype=torch.float64))
        tensor([[ 0., 25.],
                [25.,  0.]], dtype=torch.float64)
    """
    centered = points - points.mean(dim=0)
    squares = centered.square().sum(dim=1)
    sums = squares.unsqueeze(1) + squares
    distances = torch.addmm(sums, centered, centered.T, alpha=-2).fill_diagonal_(torch.inf)
    i, j = (distances < 1e-5 * sums).triu_(diagonal=1).nonzero(as_tuple=True)
    distances.fill_diagonal_(0)
    for start in range(0, i.numel(), 4096):
        first, second = i[start : start + 4096], j[start : start + 4096]
        exact = (points[first] - points[second]).square().sum(dim=1)
        distances[first, second] = exact
        distances[second, first] = exact
    return distances
