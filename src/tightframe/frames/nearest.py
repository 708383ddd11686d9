"""The simplex ETF nearest to given class means: a polar factor, with its exact derivative."""

from __future__ import annotations

import math
from typing import Any, final

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from tightframe.errors import (
    ArgumentError,
    DeviceError,
    DimensionError,
    DtypeError,
    ShapeError,
    check_choice,
    check_finite,
    check_range,
)
from tightframe.frames.operator import MatrixFrame
from tightframe.linalg import at_least_float32, helmert_coordinates, helmert_product

GRADIENTS = ("exact", "none")

# Smallest over largest singular value down to which the Gram matrix gives the polar factor, and gives every digit.
_CONDITION, _EXACT = 1e-3, 1e-1
_INDEPENDENT = 1e-6  # sine of the angle below which a direction adds nothing to those already taken


@final
class NearestETF(MatrixFrame):
    """A simplex ETF, and how it fits the class means that it is nearest to; :func:`nearest_simplex_etf` makes it.

    Attributes:
        frame: ``(…, K, d)`` unit class vectors.
        alignment: ``(…)`` cosine between centred means and frame as vectors of K d numbers, in [0, 1] without proximal
            term; 1 exactly at an ETF, nan if all means are equal. The squared distance of the two, each of Frobenius
            norm 1, is ``2 - 2 * alignment`` (the "ETF distance" of Markou, Ajanthan & Gould 2024).
        smallest_singular_value: ``(…)`` float64, of the matrix whose polar factor is taken, scaled so that all are
            ``1 + proximal`` at the ETF; the derivative grows as its inverse.
        rank: ``(…)`` int64 in 0..K-1, number of directions that this matrix determines.
    """

    def __init__(self, frame: Tensor, alignment: Tensor, smallest_singular_value: Tensor, rank: Tensor) -> None:
        self._set(frame)
        self.alignment = alignment
        self.smallest_singular_value = smallest_singular_value
        self.rank = rank

    def _facts(self) -> dict[str, Any]:
        names = ("alignment", "smallest_singular_value", "rank")
        return super()._facts() | {name: getattr(self, name).tolist() for name in names}


def nearest_simplex_etf(
    class_means: Tensor, *, previous: Tensor | None = None, proximal: float = 0.0, gradient: str = "exact"
) -> NearestETF:
    r"""Return the simplex ETF nearest to class means, up to their common offset and scale.

    The problem of Markou, Ajanthan & Gould (NeurIPS 2024, arXiv 2411.01248, eq. 9),

    .. math:: \min_{U^\top U = I} \lVert \tilde H - U \tilde M\rVert_F^2 + \tfrac\delta2 \lVert U - U_0\rVert_F^2,

    is orthogonal Procrustes: with the Helmert basis Q ``(K, K-1)`` and the normalised means
    :math:`\tilde H = M J / \lVert M J\rVert_F` its frame is :math:`\sqrt{K/(K-1)}\, Q V` for the polar factor V of
    :math:`\sqrt{K-1}\, Q^\top \tilde H + \delta_{rel} V_0`, where :math:`V_0` belongs to ``previous``. This reduced
    form has no null direction and needs d >= K - 1 only; its proximal term is :math:`(U - U_0) J`, the part of
    :math:`U - U_0` that the classifier sees. Everything is computed in float64, by the eigenvectors of the
    Gram matrix if these are accurate, otherwise by a singular value decomposition.

    Directions that the means do not determine (singular values below ``max(K - 1, d) * eps * largest``, eps of the
    dtype of the means) are taken from ``previous`` as far as these are free, then from a fixed random draw. They carry
    no gradient.

    Args:
        class_means: Means ``(…, K, d)``, floating point, finite, K >= 2, d >= K - 1; half precision is widened.
        previous: Frame of the step before, ``(…, K, d)`` or ``(K, d)``. It is a constant, whatever ``gradient`` says,
            and it is not checked to be an ETF.
        proximal: Pull :math:`\delta_{rel} \ge 0` towards ``previous`` in units of the pull of means that are an
            ETF. The paper's absolute :math:`\delta` is ``proximal = delta * (K - 1) / 2``.
        gradient: Word ``"exact"`` for the derivative of the frame (the alignment has none), or ``"none"`` for a
            constant. The exact derivative exists once: differentiating it again raises a ``RuntimeError``.

    Returns:
        A frame with facts; frame and alignment have the dtype of the means, but at least float32.

    Raises:
        DtypeError, ShapeError, DeviceError: if a tensor is not as above, or two do not fit each other.
        DimensionError: if d < K - 1.
        NonFiniteError: if the means or ``previous`` are not finite.
        ArgumentError: if ``gradient`` is unknown, or ``proximal`` negative, infinite or without ``previous``.

    Example:
        >>> means = torch.tensor([[2.0, 0.0], [0.0, 1.0], [-1.0, -1.0]], dtype=torch.float64)
        >>> nearest = nearest_simplex_etf(means)
        >>> nearest.frame @ nearest.frame.T
        tensor([[ 1.0000, -0.5000, -0.5000],
                [-0.5000,  1.0000, -0.5000],
                [-0.5000, -0.5000,  1.0000]], dtype=torch.float64)
        >>> round(nearest.alignment.item(), 3), nearest.rank.item()
        (0.966, 2)
    """
    check_choice("gradient", gradient, GRADIENTS)
    _check_means("class_means", class_means)
    check_range("proximal", proximal, proximal >= 0, ">= 0")
    if proximal and previous is None:
        raise ArgumentError(
            f"proximal = {proximal} needs previous, the frame of the step before, got None; pass it, or 0"
        )
    means = at_least_float32(class_means if gradient == "exact" else class_means.detach())
    num_classes, dim = means.shape[-2:]
    tolerance = max(num_classes - 1, dim) * torch.finfo(means.dtype).eps

    if previous is not None:
        _check_previous(previous, class_means)
        previous = previous.detach().expand_as(means)
    outcome: tuple[Tensor, ...] = _Nearest.apply(means, previous, proximal, tolerance)
    return NearestETF(*outcome)


class _Nearest(torch.autograd.Function):
    """The solve and its derivative; every constant factor is where the equations have it.

    Q V of the reduced form is computed as the ``(K, d)`` polar factor of the centred means, whose rows sum to zero as
    those of Q V do: the basis is needed only if directions are undetermined.
    """

    @staticmethod
    def forward(
        ctx: Any, means: Tensor, previous: Tensor | None, proximal: float, tolerance: float
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        num_classes = means.shape[-2]
        radius = math.sqrt(num_classes / (num_classes - 1))
        A = _centered(means)
        # Divided by the largest entry, so that no square over- or underflows.
        largest = torch.maximum(A.amax(dim=(-2, -1), keepdim=True), -A.amin(dim=(-2, -1), keepdim=True))
        largest = largest.where(largest > 0, 1.0)
        norm = torch.linalg.matrix_norm(A.div_(largest), keepdim=True)
        scale = (math.sqrt(num_classes - 1) / norm).where(norm > 0, 0.0)
        pulled = A.mul_(scale)
        anchor = previous.double() if proximal and previous is not None else None
        pull = proximal / radius
        if anchor is not None:
            pulled = A.add(anchor, alpha=pull)
            pulled.sub_(pulled.mean(dim=-2, keepdim=True))
        V, Q, s = _polar(pulled, previous, tolerance)
        total = s.sum(dim=-1)
        if anchor is not None:
            total = total - pull * torch.linalg.vecdot(anchor.flatten(-2), V.flatten(-2))
        alignment = (total / (num_classes - 1)).clamp(max=1).where(norm[..., 0, 0] > 0, torch.nan)
        known = _determined(s, tolerance)

        ctx.save_for_backward(V, Q, s, scale.mul_(radius).div_(largest), anchor, None if anchor is None else A)
        ctx.pull = pull
        ctx.known = None if bool(known.all()) else known
        frame = (V * radius).to(means.dtype)
        results = frame, alignment.to(means.dtype), s[..., 0].clone(), known.sum(dim=-1)
        ctx.mark_non_differentiable(*results[1:])
        return results

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor, *_: Tensor) -> tuple[Tensor, None, None, None]:
        V, Q, s, scale, anchor, A = ctx.saved_tensors
        grad_A = _polar_vjp(grad.double(), V, Q, s, ctx.known)
        if anchor is not None:
            # The polar factor does not see the scale of A, but the pull fixes it: the norm of the means counts.
            share = torch.linalg.vecdot(anchor.flatten(-2), grad_A.flatten(-2)).mul_(ctx.pull / s.shape[-1])
            grad_A.addcmul_(A, share[..., None, None])
        return grad_A.mul_(scale).to(grad.dtype), None, None, None


def _polar_vjp(grad: Tensor, V: Tensor, Q: Tensor, s: Tensor, known: Tensor | None) -> Tensor:
    """Return the derivative by A of the polar factor V of A = S V, S = Q diag(s) Qᵀ, applied to ``grad (…, K, d)``.

    The rotation Ω within the rows of V solves ΩS + SΩ = dA Vᵀ - V dAᵀ, and what leaves their span is
    S⁻¹ dA (I - VᵀV). This is the transpose of dA -> dV. An eigenvector that is not known does not follow A.
    """
    inverse, sums = 1 / s, s.unsqueeze(-1) + s.unsqueeze(-2)
    if known is not None:
        inverse = inverse.where(known, 0.0)
        sums = sums.where(known.unsqueeze(-1) | known.unsqueeze(-2), torch.inf)
    turned = Q.mT @ (V @ grad.mT) @ Q
    within = torch.addcdiv(turned.mT * inverse.unsqueeze(-1), turned - turned.mT, sums)
    return ((Q * inverse.unsqueeze(-2)) @ Q.mT @ grad).sub_(Q @ within @ Q.mT @ V)


def _polar(A: Tensor, previous: Tensor | None, tolerance: float) -> tuple[Tensor, Tensor, Tensor]:
    """Return the polar factor ``(…, K, d)`` of A = S V, whose columns sum to zero as those of A do.

    Beside it, the eigenvectors Q ``(…, K, K - 1)`` of S that sum to zero and their eigenvalues, rising.
    """
    eigenvalues, Q = torch.linalg.eigh(A @ A.mT)
    # The first is of the vector of ones, which is exactly 0.
    eigenvalues, Q = eigenvalues[..., 1:], Q[..., 1:]
    ratio = eigenvalues[..., 0] / eigenvalues[..., -1]  # nan where A is zero
    if not bool((ratio > max(_CONDITION, tolerance) ** 2).all()):
        return _polar_by_svd(A, previous, tolerance)
    Q.sub_(Q.mean(dim=-2, keepdim=True))
    V = (Q * eigenvalues.rsqrt().unsqueeze(-2)) @ Q.mT @ A
    # Squaring the condition number costs digits.
    exact = bool((ratio > _EXACT**2).all())
    return V if exact else _orthonormal(V), Q, eigenvalues.sqrt()


def _polar_by_svd(A: Tensor, previous: Tensor | None, tolerance: float) -> tuple[Tensor, Tensor, Tensor]:
    U, s, R = torch.linalg.svd(helmert_coordinates(A.mT).mT, full_matrices=False)
    V = U @ R
    rank = _determined(s.flip(-1), tolerance).sum(dim=-1)
    for index in (rank < s.shape[-1]).nonzero():
        i = tuple(index.tolist())
        anchor = None if previous is None else helmert_coordinates(previous[i].double().mT).mT
        V[i] = _completed(U[i], R[i], int(rank[i]), anchor)
    return helmert_product(V.mT).mT.contiguous(), helmert_product(U.mT).mT.flip(-1), s.flip(-1)


def _orthonormal(V: Tensor) -> Tensor:
    """Return V with rows whose error from orthonormal is squared: one step of Newton-Schulz."""
    step = (V @ V.mT).mul_(-0.5)
    step.diagonal(dim1=-2, dim2=-1).add_(1.5)
    return step @ V


def _completed(Q: Tensor, R: Tensor, rank: int, anchor: Tensor | None) -> Tensor:
    """Return the polar factor ``(n, d)`` of a matrix of low rank with singular vectors Q ``(n, n)`` and R ``(n, d)``.

    Directions that the matrix leaves open come from the anchor: the nearest orthonormal ones that are orthogonal to the
    known ones. Those that the anchor leaves open, too, come from a fixed draw.
    """
    V, taken, free = Q[:, :rank] @ R[:rank], R[:rank], Q[:, rank:]
    for source in (anchor, None):
        if source is None:
            draw = torch.randn(R.shape, dtype=R.dtype, device="cpu", generator=torch.Generator("cpu").manual_seed(0))
            source = draw.to(R.device)
        wanted = free.mT @ source
        wanted = wanted - wanted @ taken.mT @ taken
        left, size, right = torch.linalg.svd(wanted, full_matrices=False)
        kept = int((size > _INDEPENDENT).sum())
        V = V + free @ left[:, :kept] @ right[:kept]
        taken = torch.cat([taken, right[:kept]])
        free = free @ left[:, kept:]
    return _orthonormal(V)  # a direction that is small in its source is inexact


def _determined(singular_values: Tensor, tolerance: float) -> Tensor:
    return singular_values > tolerance * singular_values[..., -1:]


def _centered(vectors: Tensor) -> Tensor:
    """Return ``(…, K, d)`` less the mean over K, as a float64 copy; exactly zero where all K are equal."""
    vectors = vectors.to(torch.float64, copy=True)
    vectors.sub_(vectors[..., -1:, :].clone())
    return vectors.sub_(vectors.mean(dim=-2, keepdim=True))


def _check_means(name: str, means: Tensor) -> None:
    if not isinstance(means, Tensor) or not means.is_floating_point():
        seen = means.dtype if isinstance(means, Tensor) else type(means).__name__
        raise DtypeError(f"{name} must be a floating-point tensor, got {seen}; convert with {name}.float()")
    if means.ndim < 2 or means.shape[-2] < 2:
        raise ShapeError(f"{name} must have shape (…, K, d) with K >= 2, got {tuple(means.shape)}")
    num_classes, dim = means.shape[-2:]
    if dim < num_classes - 1:
        raise DimensionError(
            f"{name} of K = {num_classes} classes must have d >= K - 1 = {num_classes - 1}, got d = {dim}: no simplex "
            "ETF fits; widen the features, or use a general frame for more classes than dimensions"
        )
    check_finite(means, name)


def _check_previous(previous: Tensor, means: Tensor) -> None:
    if isinstance(previous, Tensor) and previous.device != means.device:
        raise DeviceError(f"previous is on {previous.device} and class_means on {means.device}; move one with .to()")
    _check_means("previous", previous)
    if previous.shape not in (means.shape, means.shape[-2:]):
        raise ShapeError(f"previous must have shape {tuple(means.shape)} as class_means, got {tuple(previous.shape)}")
