"""The nearest simplex ETF in closed form against the published way: a trust region, and a declarative node.

Markou, Ajanthan & Gould (NeurIPS 2024, arXiv 2411.01248) look for U ``(d, K)`` with UᵀU = I that minimises

    ‖H - U M‖² + δ/2 ‖U - U₀‖²,    M = J / √(K-1),

where H ``(d, K)`` are the normalised class means and J takes the mean off every row. The ETF does not see the mean of
the rows of U, and our form leaves it out.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import pymanopt
import torch
import torch.nn.functional as F
from pymanopt.manifolds import Stiefel
from pymanopt.optimizers import TrustRegions
from torch import Tensor, nn

from benchmarks._timing import Call, Row, at_most, extra_memory, leaner, race, training_step
from tightframe.frames import nearest_simplex_etf
from tightframe.nn import LinearClassifier, NearestETFClassifier
from tightframe.nn.classifiers import Classifier
from tightframe.training import FreeFeatures, ResNet

Array = np.ndarray[Any, np.dtype[Any]]
DELTA = 1e-3
ITERATIONS = 30
GRADIENT_NORM = 1e-6


class Problem(NamedTuple):
    """A solve in the course of a training: class means ``(K, d)``, and U ``(d, K)`` and the ETF of the step before."""

    means: Tensor
    previous: Tensor
    frame: Tensor

    def solve(self, delta: float = DELTA, **options: Any) -> Tensor:
        """Return our ETF ``(K, d)``."""
        proximal = delta * (len(self.means) - 1) / 2  # δ as this function counts it
        return nearest_simplex_etf(self.means, previous=self.frame, proximal=proximal, **options).frame


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
    previous = orthonormal(frame, lift).to(dtype)
    return Problem((means + step * change).to(dtype), previous, frame_of(previous))


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


Size = tuple[int, int, torch.dtype, float, int, float | None]  # d, K, dtype, decay of singular values, rounds, target
SIZES: tuple[Size, ...] = (
    (512, 10, torch.float64, 0.0, 15, None),
    (512, 100, torch.float64, 0.0, 15, 50),
    (512, 100, torch.float64, 1.0, 5, None),
    (2048, 100, torch.float64, 0.0, 5, None),
    (2048, 1000, torch.float32, 0.0, 2, 20),
)
TINY: dict[str, dict[str, Any]] = {
    "nearest": {
        "sizes": ((16, 4, torch.float64, 0.0, 1, 50), (16, 4, torch.float32, 1.0, 1, None)),
        "d": 16,
        "classes": (4,),
        "large": (20, 5),
        "images": (8, 8, 4),
        "free": ((12, 6, 3),),
        "rounds": 1,
    }
}


def solve(d: int, K: int, dtype: torch.dtype, decay: float, rounds: int, target: float | None) -> Row:
    task = problem(d, K, decay=decay, dtype=dtype)
    H, start = normalized(task.means).numpy(), task.previous.numpy()
    ours = partial(task.solve, gradient="none")
    kind = f"{dtype}".removeprefix("torch.") + (", singular values about 1/k" if decay else "")
    name = f"{d} x {K}, {kind}; peer: trust region"
    return race(ours, lambda: trust_region(H, start), rounds).faster(name, target)


def cotangent(d: int, K: int, dtype: torch.dtype) -> Tensor:
    """Draw a derivative of the loss by the ETF ``(K, d)``; it leaves the last dimension alone, as the means do."""
    drawn = torch.randn(K, d, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    drawn[:, -1] = 0
    return drawn.to(dtype)


def backwards(d: int, K: int, dtype: torch.dtype) -> tuple[Callable[[], Tensor], Callable[[], Tensor]]:
    """Return what gives the derivative by the normalised means, ``(K, d)``, ours and the published."""
    task = problem(d, K, apart=True, dtype=dtype)
    H, grad = normalized(task.means), cotangent(d, K, dtype)
    means = H.T.contiguous().requires_grad_()
    frame = task._replace(means=means).solve()
    U = orthonormal(frame.detach(), torch.eye(d, dtype=dtype)[-1])
    by_U = math.sqrt(K / (K - 1)) * (grad - grad.mean(dim=0)).T

    def ours() -> Tensor:
        return torch.autograd.grad(frame, means, grad, retain_graph=True)[0]

    def theirs() -> Tensor:
        by_H = literal_node(H, U, task.previous, by_U)
        return (by_H - (by_H * H).sum() * H).T  # ours is the derivative through the normalisation

    return ours, theirs


def derivative(d: int, K: int, rounds: int) -> list[Row]:
    """Compare the two derivatives in float64, relative to the largest entry, and their times."""
    mine, theirs = (call() for call in backwards(d, K, torch.float64))
    value = ((mine - theirs).abs().max() / theirs.abs().max()).item()
    largest = (f"{side.abs().max():.6f}" for side in (mine, theirs))
    rows = [at_most(1e-10, f"greatest entry and difference, {d} x {K}, float64", value, *largest)]
    for kind, targets in (("float64", {20: 300.0, 50: 2000.0}), ("float32", {})):
        timed = race(*backwards(d, K, getattr(torch, kind)), rounds)
        rows.append(timed.faster(f"backward, {d} x {K}, {kind}; peer: declarative node", targets.get(K)))
    return rows


def whole(d: int, K: int) -> Callable[[], Tensor]:
    """Return our forward and backward pass in float32."""
    task, grad = problem(d, K, dtype=torch.float32), cotangent(d, K, torch.float32)
    task.means.requires_grad_()
    return lambda: torch.autograd.grad(task.solve(), task.means, grad)[0]


def memory(large: tuple[int, int]) -> Row:
    """Return the peak of both of our passes, at a size where the peer's Jacobian alone takes 4 TB."""
    peak = extra_memory(whole, (16, 4), large)
    return leaner("peak extra memory, float32, {} x {}, both passes; peer: 200 MB".format(*large), peak, 200e6, 1)


def step(backbone: nn.Module, classifier: Classifier, inputs: Tensor, labels: Tensor) -> Call:
    parameters = [*backbone.parameters(), *classifier.parameters()]
    optimizer = torch.optim.SGD(parameters, lr=1e-3, momentum=0.9)
    return training_step(lambda: F.cross_entropy(classifier(backbone(inputs), labels), labels), optimizer)


def against_linear(
    name: str,
    backbone: Callable[[], nn.Module],
    inputs: Tensor,
    K: int,
    rounds: int,
    targets: Sequence[float | None] = (None, None),
) -> list[Row]:
    """Compare a training step that follows the class means with that of a learned linear classifier."""
    labels, d = torch.arange(len(inputs)) % K, backbone().out_features
    linear = step(backbone(), LinearClassifier(d, K), inputs, labels)
    rows = []
    for gradient, target in zip(("none", "exact"), targets, strict=True):
        follower = NearestETFClassifier(d, K, proximal=DELTA * (K - 1) / 2, gradient=gradient)
        timed = race(step(backbone(), follower, inputs, labels), linear, rounds)
        rows.append(timed.costlier(f"step, {name}, K = {K}, gradient {gradient}; peer: LinearClassifier", target))
    return rows


def nearest(
    sizes: Sequence[Size] = SIZES,
    d: int = 512,
    classes: Sequence[int] = (10, 20, 50),
    large: tuple[int, int] = (2048, 1000),
    images: tuple[int, int, int] = (128, 32, 100),
    free: Sequence[tuple[int, int, int]] = ((1000, 512, 10), (5000, 1024, 100)),
    rounds: int = 6,
) -> list[Row]:
    """Nearest simplex ETF, d x K, delta = 1e-3: solve, derivative, training step."""
    rows = [solve(*size) for size in sizes]
    for K in classes:
        rows += derivative(d, K, rounds)
    rows.append(memory(large))
    batch, side, K = images
    pixels = torch.randn(batch, 3, side, side, generator=torch.Generator().manual_seed(0))
    name = f"ResNet-18, {batch} images of {side} x {side}"
    rows += against_linear(name, partial(ResNet, 18, in_channels=3), pixels, K, rounds, (1.15, 1.3))
    for N, d, K in free:
        name = f"free features {N} x {d}"
        rows += against_linear(name, partial(FreeFeatures, N, d), torch.arange(N), K, rounds)
    return rows
