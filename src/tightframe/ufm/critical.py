"""Critical points of products H Wᵀ: slope, stationarity, balance, and where negative curvature leads away from one.

All in the coordinates Y = diag(√c) Z and H̃ = diag(√c) H, in which a row costs its square and nothing else, so that
Y = H̃ Wᵀ and the slope by Y is that by Z over √c.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from tightframe.errors import ShapeError
from tightframe.ufm.bound import descent
from tightframe.ufm.certificate import Witness
from tightframe.ufm.losses import Rows
from tightframe.ufm.problem import Problem, double

_ROUNDING = 1e-9  # share of σ below which a curvature is none: at a minimum it is 0
_UNUSED = 1e-7  # share of a factor's norm that it may have in a direction that counts as tangent to its sphere


@dataclass(frozen=True)
class Point:
    """A point of a one-layer model, and the slope of the fit there.

    Args:
        problem: Model of the point.
        W: Class vectors ``(K, d)``.
        H: H̃, features times the square root of their price ``(R, d)``.
        bias: ``(K,)`` or None.
        rows: Table of its rows.
        logits: ``(R, K)``.
    """

    problem: Problem
    W: Tensor
    H: Tensor
    bias: Tensor | None
    rows: Rows
    logits: Tensor

    @classmethod
    def of(cls, problem: Problem, W: Tensor, H: Tensor, bias: Tensor | None) -> Point:
        """Return the point; a missing bias is zero.

        Raises:
            ShapeError: if the tensors are not those of the problem.
        """
        has_bias = problem.bias_decay is not None
        W, H = double(W, "W"), double(H, "H")
        bias = None if bias is None else double(bias, "bias")
        _check_shapes(problem, W, H, bias, has_bias)
        if bias is None and has_bias:
            bias = torch.zeros(problem.num_classes, dtype=torch.float64)
        rows = problem.rows(len(H))
        return cls(problem, W, rows.roots * H, bias, rows, H @ W.T if bias is None else H @ W.T + bias)

    @cached_property
    def descent(self) -> Tensor:
        """Minus the slope by the logits, A ``(R, K)``."""
        return descent(self.problem, self.rows, self.logits)

    @property
    def slope(self) -> Tensor:
        """Minus the slope by Y ``(R, K)``."""
        return self.descent / self.rows.roots

    @property
    def unweighted(self) -> Tensor:
        """H itself ``(R, d)``."""
        return self.H / self.rows.roots

    def gradients(self, weight_decay: float, feature_decay: float) -> tuple[Tensor, Tensor]:
        """Return the gradients of fit plus penalties by W and H̃."""
        slope = self.slope
        return weight_decay * self.W - slope.T @ self.H, feature_decay * self.H - slope @ self.W

    def bias_gradient(self) -> Tensor:
        """Return the gradient by the bias ``(K,)``; empty where there is none."""
        if self.bias is None:
            return torch.zeros(0, dtype=torch.float64)
        return (self.problem.bias_decay or 0.0) * self.bias - self.descent.sum(dim=0)

    def balance(self, weight_decay: float, feature_decay: float) -> float:
        """Return the Frobenius norm of ``λ_W WᵀW - λ_H H̃ᵀH̃``; of its diagonal where features are nonnegative."""
        difference = weight_decay * self.W.T @ self.W - feature_decay * self.H.T @ self.H
        # A coordinate of a feature that may not fall below 0 is only critical if it is not 0.
        if self.problem.nonnegative:
            difference = difference.diagonal()
        return torch.linalg.vector_norm(difference).item()

    def curvature_of_fit(self, direction: Tensor) -> float:
        """Return the second derivative of the fit along a direction of logits ``(R, K)``."""
        criterion = self.problem.criterion
        _, shares = criterion.shares(self.rows, self.logits)
        return (direction * criterion.curved(self.rows, shares, direction)).sum().item()


def top_pair(slope: Tensor) -> tuple[float, Tensor, Tensor]:
    """Return the operator norm τ of ``(R, K)`` with unit vectors v ``(R,)`` and u ``(K,)`` for which vᵀ slope u = τ."""
    if len(slope) >= slope.shape[1]:
        u = torch.linalg.eigh(slope.T @ slope).eigenvectors[:, -1]
        image = slope @ u
        tau = torch.linalg.vector_norm(image)
        return tau.item(), image / tau if tau > 0 else image, u
    tau, u, v = top_pair(slope.T)
    return tau, v, u


def find_witness(point: Point, weight_decay: float, feature_decay: float, *, tangent: bool = False) -> Witness | None:
    r"""Return the direction in which a strict saddle falls if the objective curves down along it, else None.

    With the top singular pair (v, u) of minus the slope by Y and a unit a that W and H use least,

    .. math:: \Delta W = (\lambda_H/\lambda_W)^{1/4} u a^\top, \qquad
        \Delta \tilde H = (\lambda_W/\lambda_H)^{1/4} v a^\top.

    If W a = 0 and H a = 0 the slope along it is 0 and the curvature :math:`2(\sigma - \tau)`, whether the point is
    critical or not; else both are computed as they are.

    Args:
        point: Point of the model.
        weight_decay: :math:`\lambda_W`, or a multiplier.
        feature_decay: :math:`\lambda_H`, or a multiplier.
        tangent: Whether the direction must leave the norms of W and H as they are, to first order.
    """
    if not (weight_decay > 0 and feature_decay > 0):
        return None
    _, v, u = top_pair(point.slope)
    a = _least_used(point, weight_decay, feature_decay)
    used = [(torch.linalg.vector_norm(M @ a), torch.linalg.matrix_norm(M)) for M in (point.W, point.H)]
    if tangent and any(part > _UNUSED * whole for part, whole in used):
        return None
    return witness_along(point, weight_decay, feature_decay, v, u, a)


def witness_along(
    point: Point, weight_decay: float, feature_decay: float, v: Tensor, u: Tensor, a: Tensor, *, keep_sign: bool = False
) -> Witness | None:
    """Return the witness of directions v ``(R,)``, u ``(K,)`` and a ``(d,)`` if its curvature is negative, else None.

    It points downhill, unless ``keep_sign``.
    """
    ratio = (feature_decay / weight_decay) ** 0.25
    dW, dH = ratio * torch.outer(u, a), torch.outer(v, a) / ratio
    gradient_W, gradient_H = point.gradients(weight_decay, feature_decay)
    slope = ((gradient_W * dW).sum() + (gradient_H * dH).sum()).item()
    first = (point.H @ dW.T + dH @ point.W.T) / point.rows.roots
    pull = (v @ point.slope @ u).item()
    sigma = math.sqrt(weight_decay) * math.sqrt(feature_decay)
    curvature = 2 * (sigma - pull) + point.curvature_of_fit(first)
    if not curvature < -_ROUNDING * sigma:
        return None
    sign = -1.0 if slope > 0 and not keep_sign else 1.0
    return Witness(sign * dW, sign * dH / point.rows.roots, sign * slope, curvature)


def _least_used(point: Point, weight_decay: float, feature_decay: float) -> Tensor:
    """Return the unit vector ``(d,)`` in which W and H̃, as the penalties weigh them, are smallest."""
    stacked = torch.cat([math.sqrt(weight_decay) * point.W, math.sqrt(feature_decay) * point.H])
    # Many samples only count by their triangle, which keeps the small singular values that a Gram matrix loses.
    if len(stacked) > 2 * stacked.shape[1]:
        stacked = torch.linalg.qr(stacked, mode="r").R
    return torch.linalg.svd(stacked, full_matrices=True).Vh[-1]


def _check_shapes(problem: Problem, W: Tensor, H: Tensor, bias: Tensor | None, has_bias: bool) -> None:
    K, d = problem.num_classes, problem.dim
    if W.shape != (K, d):
        raise ShapeError(f"W must have shape (K, d) = {(K, d)} of the problem, got {tuple(W.shape)}")
    if H.ndim != 2 or H.shape[1] != d:
        raise ShapeError(f"H must have shape (K, d) or (N, d) with d = {d} of the problem, got {tuple(H.shape)}")
    if bias is not None and not has_bias:
        raise ShapeError(f"bias must be None, as {type(problem).__name__} has none here; set bias_decay for a bias")
    if bias is not None and bias.shape != (K,):
        raise ShapeError(f"bias must have shape (K,) = ({K},), got {tuple(bias.shape)}")
