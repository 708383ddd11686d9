"""The published way to the nearest simplex ETF: a trust region on the Stiefel manifold, and a declarative node.

Markou, Ajanthan & Gould (NeurIPS 2024, arXiv 2411.01248) look for U ``(d, K)`` with UᵀU = I that minimises

    ‖H - U M‖² + δ/2 ‖U - U₀‖²,    M = J / √(K-1),

where H ``(d, K)`` are the normalised class means and J takes the mean off every row. The ETF does not see the mean of
the rows of U, and our form leaves it out.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
import pymanopt
import torch
import torch.nn.functional as F
from pymanopt.manifolds import Stiefel
from pymanopt.optimizers import TrustRegions
from torch import Tensor

from tightframe.frames import nearest_simplex_etf
from tightframe.nn import ClassMeanTracker

Array = np.ndarray[Any, np.dtype[Any]]
DELTA = 1e-3
ITERATIONS = 30
GRADIENT_NORM = 1e-6


class Problem(NamedTuple):
    """A solve in the course of a training: class means ``(K, d)``, and U ``(d, K)`` of the step before."""

    means: Tensor
    previous: Tensor

    @property
    def proximal(self) -> float:
        """δ as :func:`nearest_simplex_etf` counts it."""
        return DELTA * (len(self.means) - 1) / 2


def problem(d: int, K: int, *, apart: bool = False, decay: float = 0.0, dtype: torch.dtype = torch.float64) -> Problem:
    """Draw means, of K singular values about k to the minus ``decay``, and what was nearest to them a step ago.

    With ``apart`` the means leave the last dimension alone, and the mean of the rows of U lies there. So it stays where
    it is, and the published problem is ours to the last digit, gradient included; else it has to give way, and what
    is nearest differs by a trifle of the order of δ.
    """
    generator = torch.Generator().manual_seed(0)
    means, change = torch.randn(2, K, d, dtype=torch.float64, generator=generator)
    means *= torch.arange(1, K + 1).unsqueeze(1) ** -decay
    if apart:
        means[:, -1] = change[:, -1] = 0
    frame = nearest_simplex_etf(means).frame
    lift = torch.eye(d, dtype=torch.float64)[-1] if apart else torch.linalg.svd(frame.T, full_matrices=False).U[:, -1]
    step = 0.05 * torch.linalg.matrix_norm(means) / torch.linalg.matrix_norm(change)
    return Problem((means + step * change).to(dtype), orthonormal(frame, lift).to(dtype))


def orthonormal(frame: Tensor, lift: Tensor) -> Tensor:
    """Return U ``(d, K)`` of an ETF ``(K, d)``, the mean of the rows along the unit vector ``lift (d,)``."""
    K = len(frame)
    return frame.T * math.sqrt((K - 1) / K) + lift.unsqueeze(1) / math.sqrt(K)


def frame_of(U: Tensor) -> Tensor:
    """Return the ETF ``(K, d)`` of U ``(d, K)``."""
    K = U.shape[1]
    return (_centered(U).T * math.sqrt(K / (K - 1))).contiguous()


def normalized(means: Tensor) -> Tensor:
    """Return H ``(d, K)`` of class means ``(K, d)``."""
    centered = _centered(means.T)
    return (centered / torch.linalg.matrix_norm(centered)).contiguous()


class SameTypeStiefel(Stiefel):
    """A Stiefel manifold on which float32 stays float32; on that of pymanopt steps start from zeros in float64."""

    def zero_vector(self, point: Array) -> Array:
        return np.zeros_like(point)

    @property
    def typical_dist(self) -> float:
        return math.sqrt(self._p)


def objective(H: Array, U: Array, previous: Array, delta: float = DELTA) -> Any:
    """Return what is minimised."""
    fit = H - _centered(U) / math.sqrt(H.shape[1] - 1)
    away = U - previous
    return np.vdot(fit, fit) + 0.5 * delta * np.vdot(away, away)


def trust_region(H: Array, previous: Array, delta: float = DELTA) -> Array:
    """Return U by the published solve, which starts from ``previous``."""
    K = H.shape[1]
    manifold = SameTypeStiefel(*H.shape, retraction="qr")
    pull = 2 / math.sqrt(K - 1) * _centered(H)

    @pymanopt.function.numpy(manifold)
    def cost(U: Array) -> Any:
        return objective(H, U, previous, delta)

    @pymanopt.function.numpy(manifold)
    def gradient(U: Array) -> Array:
        return 2 / (K - 1) * _centered(U) - pull + delta * (U - previous)

    @pymanopt.function.numpy(manifold)
    def hessian(U: Array, step: Array) -> Array:
        return 2 / (K - 1) * _centered(step) + delta * step

    task = pymanopt.Problem(manifold, cost, euclidean_gradient=gradient, euclidean_hessian=hessian)
    solver = TrustRegions(max_iterations=ITERATIONS, min_gradient_norm=GRADIENT_NORM, verbosity=0)
    return solver.run(task, initial_point=previous).point


class TrustRegionClassifier:
    """NearestETFClassifier, gradient "none", as far as training goes, with the published solve in it."""

    def __init__(self, dim: int, num_classes: int) -> None:
        self.tracker = ClassMeanTracker(num_classes, dim)
        self.U: Array | None = None

    def __call__(self, features: Tensor, labels: Tensor) -> Tensor:
        prepared = 5 * F.normalize(features, dim=-1)
        means, center = self.tracker(prepared.detach(), labels)
        H = normalized(means).numpy()
        if self.U is None:  # the published first step: a solve of its own, then one that is held to it
            self.U = trust_region(H, np.eye(*H.shape), delta=0.0)
        self.U = trust_region(H, self.U)
        self.weight = frame_of(torch.from_numpy(self.U))
        return F.linear(prepared, self.weight, -self.weight @ center)


def literal_node(H: Tensor, U: Tensor, previous: Tensor, cotangent: Tensor, delta: float = DELTA) -> Tensor:
    """Return the derivative by H ``(d, K)`` of the solution U, applied to ``cotangent (d, K)``, as published.

    The Hessian of the Lagrangian has d equal blocks, so that one Cholesky factor serves all. The Jacobian of the
    K(K+1)/2 constraints by the d K numbers of U is held in full, and so is what the inverse Hessian makes of it.
    """
    d, K = U.shape
    gradient = 2 / (K - 1) * _centered(U) - 2 / math.sqrt(K - 1) * _centered(H) + delta * (U - previous)
    multipliers = gradient.T @ U
    block = 2 / (K - 1) * _centered(torch.eye(K, dtype=U.dtype)) - 0.5 * (multipliers + multipliers.T)
    block.diagonal().add_(delta)
    factor = torch.linalg.cholesky(block)
    A = constraint_jacobian(U)
    w = -torch.cholesky_solve(cotangent.T, factor).T
    T = torch.cholesky_solve(A.view(-1, K).T, factor).T.reshape(len(A), d * K)
    A = A.view(len(A), d * K)
    q = -torch.cholesky_solve(A @ w.reshape(-1, 1), torch.linalg.cholesky(A @ T.T))
    return -2 / math.sqrt(K - 1) * _centered(w + (T.T @ q).view(d, K))


def constraint_jacobian(U: Tensor) -> Tensor:
    """Return the derivative ``(K (K + 1) / 2, d, K)`` of the upper triangle of UᵀU by U."""
    d, K = U.shape
    i, j = torch.triu_indices(K, K)
    rows = torch.arange(len(i))
    A = U.new_zeros(len(i), d, K)
    A[rows, :, i] = U[:, j].T
    A[rows, :, j] += U[:, i].T
    return A


def _centered(columns: Any) -> Any:
    """Return ``columns @ J`` of an array or a tensor."""
    return columns - columns.mean(-1)[:, None]
