"""Bounds of collapse in networks that end in several linear layers, computed from a trained network's own tensors."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from tightframe.errors import ArgumentError
from tightframe.moments import ClassMoments
from tightframe.ufm.trained import checked_layers


@dataclass(frozen=True)
class Bound:
    """A measured quantity beside its bound.

    Args:
        measured: Value of the network.
        bound: Bound of it: at least ``measured``, for cosines at most; infinite (of cosines ``-inf``) where the bound
            says nothing, nan where it does not apply.
        reason: why it says nothing or does not apply; else empty.
    """

    measured: float
    bound: float
    reason: str = ""


@dataclass(frozen=True)
class HeadCertificate:
    r"""Facts that :func:`certify_head` proves of the last linear layers of a network.

    Args:
        nc1: :math:`\sum_i\lVert z_i-\mu_{y_i}\rVert^2 / \sum_k n_k\lVert\mu_k-\bar\mu\rVert^2` of the last features.
        nc1_a_priori: the same, with a bound made of training error, imbalance and norms alone.
        nc2: condition number of the class means ``(d, K)``.
        nc3: smallest cosine of a class mean with its class vector.
        conditioning: condition number of the last matrix.
        cosines: Cosine of each class ``(K,)``.
        cosine_bounds: Bound for each class ``(K,)``; nan where refused.
        training_error: :math:`\varepsilon_1 = \lVert Z_L - Y\rVert_F`, against one-hot targets.
        imbalance: :math:`\varepsilon_2`, the largest :math:`\lVert W_{l+1}^\top W_{l+1} - W_l W_l^\top\rVert_{op}`.
        rank: r of the bound of NC1, the singular values of the last matrix that it counts on.
    """

    nc1: Bound
    nc1_a_priori: Bound
    nc2: Bound
    nc3: Bound
    conditioning: Bound
    cosines: Tensor = field(repr=False)
    cosine_bounds: Tensor = field(repr=False)
    training_error: float
    imbalance: float
    rank: int


def certify_head(
    matrices: Sequence[Tensor], inputs: Tensor, labels: Tensor, *, biases: Sequence[Tensor | None] | None = None
) -> HeadCertificate:
    r"""Return bounds of collapse in a head of at least two linear layers, beside what is measured.

    The argument is that of Jacot et al. 2024 (arXiv 2410.04887): where neighbouring matrices are balanced, what a
    matrix does not see is small already. With features :math:`Z = W_{L-1} Z_{L-2}`, logits :math:`Z_L = W_L Z`, A the
    average over each class, J that over all samples and C = I - A, :math:`s_i` the singular values of :math:`W_L` and M
    class means, the constants are computed from the network:

    .. math::
        \mathrm{NC1} &\le s_1^2 \min_{r \le K} \frac{(\lVert Z_L C\rVert/s_r)^2
            + (\varepsilon_2 + s_{r+1}^2)\lVert Z_{L-2} C\rVert^2}{\lVert Z_L (A - J)\rVert^2} \\
        \kappa(M) &\le \kappa(W_L) \frac{\sqrt{(1+e)^2 + \varepsilon_2 s_K^2 \lVert M_{L-2}\rVert_{op}^2}}{1-e},
            \qquad e = \lVert M_L - I\rVert_{op} < 1 \\
        \cos(\mu_k, w_k) &\ge \frac{(M_L)_{kk}}{\lVert w_k\rVert
            \sqrt{((1+e_k)/s_K)^2 + \varepsilon_2 \lVert\mu_k^{L-2}\rVert^2}},
            \qquad e_k = \lVert M_L e_k - e_k\rVert < 1 \\
        \kappa(W_L) &\le \Bigl(\frac{s_1(A_h)^2 + \delta}{s_K(A_h)^2 - \delta}\Bigr)^{1/(2 L_2)},
            \qquad \delta = \tfrac{L_2(L_2-1)}2\, r^{2(L_2-1)} \varepsilon_2

    with :math:`A_h` the product of all :math:`L_2` matrices and, in :math:`\delta`, r the largest of their norms.
    Outside :math:`\delta`, :math:`\varepsilon_2` is that of the last two matrices alone. The first and the last hold
    for every loss and with biases; those of NC2 and NC3 need a head without biases whose logits are near one-hot
    targets, as squared error makes them.

    Args:
        matrices: :math:`L_2 \ge 2` weights in the order in which they act, each ``(out, in)`` as in ``nn.Linear``; the
            last is ``(K, d)``.
        inputs: Inputs of the first ``(N, d_in)``.
        labels: ``(N,)`` in 0..K-1, every class at least once.
        biases: one for each matrix, or None for a head without.

    Raises:
        ArgumentError: if there are fewer than two matrices.
        ShapeError, DtypeError, DeviceError, LabelError, NonFiniteError: if the tensors do not fit each other.
        EmptyDataError: if a class has no sample.

    Example:
        >>> eye = torch.eye(3, dtype=torch.float64)
        >>> head = certify_head([eye, eye], eye.repeat(2, 1), torch.arange(3).repeat(2))
        >>> head.nc1, round(head.nc2.bound, 12), round(head.nc3.bound, 12)
        (Bound(measured=0.0, bound=0.0, reason=''), 1.0, 1.0)
    """
    if isinstance(matrices, Tensor) or len(matrices) < 2:
        seen = "a tensor" if isinstance(matrices, Tensor) else len(matrices)
        raise ArgumentError(f"matrices must be at least two weights, the last that of the classifier, got {seen}")
    given = [None] * len(matrices) if biases is None else biases
    if len(given) != len(matrices):
        raise ArgumentError(f"biases must be one for each of {len(matrices)} matrices, got {len(given)}")
    inputs, labels, matrices, biases = checked_layers(
        ("inputs", inputs),
        labels,
        {f"matrices[{index}]": matrix for index, matrix in enumerate(matrices)},
        {f"biases[{index}]": bias for index, bias in enumerate(given)},
    )
    last, num_classes = matrices[-1], len(matrices[-1])
    activations = [inputs]
    for matrix, bias in zip(matrices, biases, strict=True):
        image = activations[-1] @ matrix.T
        activations.append(image if bias is None else image + bias)
    logits = activations[-1]
    # What enters the last matrix but one, what enters the last, and the logits.
    moments = [ClassMoments.from_samples(x, labels, num_classes, scatter=False) for x in activations[-3:]]
    targets = torch.nn.functional.one_hot(labels, num_classes).to(logits)
    has_bias = any(bias is not None for bias in biases)
    singular_values = torch.linalg.svdvals(last)
    if len(singular_values) < num_classes:
        singular_values = torch.cat([singular_values, singular_values.new_zeros(num_classes - len(singular_values))])
    imbalances = [_imbalance(upper, lower) for lower, upper in itertools.pairwise(matrices)]
    error = torch.linalg.matrix_norm(logits - targets).item()
    nc1, rank = _nc1(moments, singular_values, imbalances[-1])
    cosines, cosine_bounds = _cosines(last, moments, singular_values, imbalances[-1], has_bias)
    return HeadCertificate(
        nc1=nc1,
        nc1_a_priori=_nc1_a_priori(nc1.measured, moments, singular_values, imbalances[-1], error),
        nc2=_nc2(moments, singular_values, imbalances[-1], has_bias),
        nc3=_nc3(cosines, cosine_bounds, has_bias),
        conditioning=_conditioning(matrices, singular_values, max(imbalances)),
        cosines=cosines,
        cosine_bounds=cosine_bounds,
        training_error=error,
        imbalance=max(imbalances),
        rank=rank,
    )


def _nc1(moments: Sequence[ClassMoments], s: Tensor, imbalance: float) -> tuple[Bound, int]:
    entering, features, logits = moments
    measured = (features.trace.sum() / _between(features)).item()
    noise, between = logits.trace.sum().sqrt().item(), _between(logits).item()
    least, rank = _tail(s, noise, imbalance, entering.trace.sum().item())
    if between == 0:
        return Bound(measured, math.inf, "all class means of the logits coincide"), rank
    if least == math.inf:
        return Bound(measured, math.inf, "the last matrix is zero"), rank
    return Bound(measured, s[0].item() ** 2 * least / between), rank


def _nc1_a_priori(measured: float, moments: Sequence[ClassMoments], s: Tensor, imbalance: float, error: float) -> Bound:
    counts = moments[0].count
    # Norm of the targets less their mean over samples; √(n (K - 1)) if balanced.
    spread = (counts.sum() - counts.square().sum() / counts.sum()).sqrt().item()
    if error >= spread:
        reason = f"training error {error:.3g} is not below {spread:.3g}, the norm of the centred targets"
        return Bound(measured, math.inf, reason)
    least, _ = _tail(s, error, imbalance, moments[0].trace.sum().item())
    return Bound(measured, s[0].item() ** 2 * least / (spread - error) ** 2)


def _tail(s: Tensor, noise: float, imbalance: float, scatter: float) -> tuple[float, int]:
    """Return min over r with s_r > 0 of (noise/s_r)² + (imbalance + s_{r+1}²) scatter, and that r."""
    best, rank = math.inf, 0
    values = [*s.tolist(), 0.0]
    for r in range(1, len(s) + 1):
        if values[r - 1] <= len(s) * torch.finfo(s.dtype).eps * values[0]:
            break
        value = (noise / values[r - 1]) ** 2 + (imbalance + values[r] ** 2) * scatter
        if value < best:
            best, rank = value, r
    return best, rank


def _nc2(moments: Sequence[ClassMoments], s: Tensor, imbalance: float, has_bias: bool) -> Bound:
    entering, features, logits = (part.mean for part in moments)
    measured = _condition(features)
    if has_bias:
        return Bound(measured, math.nan, _BIASED)
    e = torch.linalg.matrix_norm(logits - torch.eye(len(logits), dtype=torch.float64), ord=2).item()
    if e >= 1:
        return Bound(measured, math.inf, f"class-mean logits are {e:.3g} >= 1 away from the one-hot targets")
    if s[-1] == 0:
        return Bound(measured, math.inf, "the last matrix has rank below K")
    outside = imbalance * s[-1] ** 2 * torch.linalg.matrix_norm(entering, ord=2) ** 2
    return Bound(measured, (s[0] / s[-1]).item() * math.sqrt((1 + e) ** 2 + outside.item()) / (1 - e))


def _cosines(
    last: Tensor, moments: Sequence[ClassMoments], s: Tensor, imbalance: float, has_bias: bool
) -> tuple[Tensor, Tensor]:
    entering, features, logits = (part.mean for part in moments)
    lengths = torch.linalg.vector_norm(last, dim=1)
    cosines = torch.linalg.vecdot(features, last) / (lengths * torch.linalg.vector_norm(features, dim=1))
    errors = torch.linalg.vector_norm(logits - torch.eye(len(logits), dtype=torch.float64), dim=1)
    longest = ((1 + errors) / s[-1]).square() + imbalance * entering.square().sum(dim=1)
    bounds = logits.diagonal() / (lengths * longest.sqrt())
    # From an error of 1 on the own logit may be negative, and a longer mean would then raise the cosine.
    return cosines, bounds.where((errors < 1) & (not has_bias), math.nan)


def _nc3(cosines: Tensor, bounds: Tensor, has_bias: bool) -> Bound:
    measured = cosines.min().item()
    if has_bias:
        return Bound(measured, math.nan, _BIASED)
    refused = bounds.isnan().nonzero().flatten().tolist()
    if refused:
        classes = ", ".join(map(str, refused[:5])) + (", ..." if len(refused) > 5 else "")
        reason = f"class-mean logits of {len(refused)} classes ({classes}) are 1 or more away from their target"
        return Bound(measured, math.nan, reason)
    return Bound(measured, bounds.min().item())


_BIASED = "the head has biases, so that its logits are no product of matrices and means"


def _conditioning(matrices: Sequence[Tensor], s: Tensor, imbalance: float) -> Bound:
    depth, product = len(matrices), matrices[0]
    for matrix in matrices[1:]:
        product = matrix @ product
    norm = max(torch.linalg.matrix_norm(matrix, ord=2).item() for matrix in matrices)
    delta = depth * (depth - 1) / 2 * norm ** (2 * (depth - 1)) * imbalance
    spectrum = torch.linalg.svdvals(product)
    largest = spectrum[0].item() ** 2
    smallest = spectrum[-1].item() ** 2 if len(spectrum) == len(product) else 0.0
    measured = (s[0] / s[-1]).item()
    if smallest <= delta:
        reason = f"squared smallest singular value {smallest:.3g} of the head is not above its imbalance {delta:.3g}"
        return Bound(measured, math.inf, reason)
    return Bound(measured, ((largest + delta) / (smallest - delta)) ** (1 / (2 * depth)))


def _between(moments: ClassMoments) -> Tensor:
    return (moments.count * moments.centered_means("sample").square().sum(dim=1)).sum()


def _condition(means: Tensor) -> float:
    if means.shape[1] < means.shape[0]:
        return math.inf
    s = torch.linalg.svdvals(means)
    return (s[0] / s[-1]).item()


def _imbalance(upper: Tensor, lower: Tensor) -> float:
    return torch.linalg.matrix_norm(upper.T @ upper - lower @ lower.T, ord=2).item()
