"""The nearest simplex ETF as its paper writes it, by other means than the package: full SVD, dense node, 80 digits."""

from __future__ import annotations

import math

import mpmath as mp
import torch
from torch import Tensor

from ..problems import draw, rotation

DIGITS = 80


def centering(K: int) -> Tensor:
    return torch.eye(K, dtype=torch.float64) - 1 / K


def zero_sum(K: int) -> Tensor:
    """An orthonormal basis ``(K, K-1)`` of the vectors that sum to zero, other than Helmert's."""
    return torch.linalg.svd(centering(K)).U[:, : K - 1]


def simplex_gram(K: int) -> Tensor:
    return K / (K - 1) * centering(K)


def means_of(spectrum: list[float], d: int, seed: int = 0) -> Tensor:
    """Class means ``(K, d)`` whose centred matrix has this spectrum of K - 1 singular values."""
    n = len(spectrum)
    scaled = rotation(n, seed) * torch.tensor(spectrum, dtype=torch.float64)
    return zero_sum(n + 1) @ scaled @ rotation(d, seed + 1)[:n]


def random_frames(count: int, K: int, d: int, seed: int = 0) -> Tensor:
    V = torch.linalg.qr(draw(count, d, K - 1, seed=seed))[0].mT
    return math.sqrt(K / (K - 1)) * zero_sum(K) @ V


def normalized(means: Tensor) -> Tensor:
    H = centering(means.shape[0]) @ means
    return H / H.norm()


def objective(means: Tensor, frames: Tensor, previous: Tensor | None = None, delta: float = 0.0) -> Tensor:
    """‖H̃ - U M̃‖² + δ/2 ‖(U - U_0) J‖² of frames ``(…, K, d)``, where U M̃ = Wᵀ / √K and (U - U_0) J = (W - W_0)ᵀ / s."""
    K = means.shape[0]
    value = (normalized(means) - frames / math.sqrt(K)).square().sum(dim=(-2, -1))
    if previous is not None:
        value = value + delta / 2 * (K - 1) / K * (frames - previous).square().sum(dim=(-2, -1))
    return value


def pulled(means: Tensor, previous: Tensor | None = None, delta: float = 0.0) -> Tensor:
    """The matrix ``(K-1, d)`` c H̃ + δ U_0 in the basis of zero sums, c = 2 / √(K-1)."""
    K = means.shape[0]
    A = 2 / math.sqrt(K - 1) * zero_sum(K).T @ normalized(means)
    return A if previous is None else A + delta * math.sqrt((K - 1) / K) * zero_sum(K).T @ previous


def by_svd(means: Tensor, previous: Tensor | None = None, delta: float = 0.0) -> Tensor:
    """The frame by a singular value decomposition that autograd goes through."""
    K = means.shape[0]
    P, _, R = torch.linalg.svd(pulled(means, previous, delta), full_matrices=False)
    return math.sqrt(K / (K - 1)) * zero_sum(K) @ P @ R


def exactly(x: Tensor) -> mp.matrix:
    return mp.matrix(x.tolist())


def in_many_digits(means: mp.matrix, previous: mp.matrix | None = None, proximal: float = 0.0) -> mp.matrix:
    """The frame in :data:`DIGITS` digits, by the eigenvectors of a Gram matrix that then loses none that count."""
    K = means.rows
    Q = mp.matrix(K, K - 1)
    for j in range(K - 1):
        after = K - 1 - j
        Q[j, j] = mp.sqrt(mp.mpf(after) / (after + 1))
        for i in range(j + 1, K):
            Q[i, j] = -1 / mp.sqrt(mp.mpf(after) * (after + 1))
    A = Q.T * means
    A *= mp.sqrt(K - 1) / mp.norm(A)
    if previous is not None:
        A += mp.mpf(proximal) * mp.sqrt(mp.mpf(K - 1) / K) * (Q.T * previous)
    values, E = mp.eigsy(A * A.T)
    root = E * mp.diag([1 / mp.sqrt(value) for value in values]) * E.T
    return mp.sqrt(mp.mpf(K) / (K - 1)) * (Q * root * A)


def slope_in_many_digits(
    means: Tensor, grad: Tensor, direction: Tensor, previous: Tensor | None = None, proximal: float = 0.0
) -> float:
    """d⟨grad, W⟩ along a direction of the means, by a central difference of a step of 1e-30."""
    with mp.workdps(DIGITS):
        x, v, weights = exactly(means), exactly(direction), exactly(grad)
        anchor = None if previous is None else exactly(previous)
        h = mp.mpf(10) ** -30
        ahead, behind = (in_many_digits(x + sign * h * v, anchor, proximal) for sign in (1, -1))
        return float(mp.fsum(w * (a - b) for w, a, b in zip(weights, ahead, behind, strict=True)) / (2 * h))


def distance_from_exact(frame: Tensor, means: Tensor, previous: Tensor | None = None, proximal: float = 0.0) -> float:
    with mp.workdps(DIGITS):
        wanted = in_many_digits(exactly(means), None if previous is None else exactly(previous), proximal)
        return float(mp.norm(exactly(frame) - wanted))
