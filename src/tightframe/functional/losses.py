"""Losses as pure functions: dot regression with its length weights, and logit-adjusted cross-entropy."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from tightframe.errors import (
    ArgumentError,
    DeviceError,
    DtypeError,
    ShapeError,
    check_choice,
    check_features,
    check_label_range,
    check_positive,
)
from tightframe.linalg import at_least_float32

FORMS = ("published", "paper", "plain")

# The floor of a feature's norm in the published form, part of its definition.
NORM_FLOOR = 1e-8


def dot_regression(
    features: Tensor, targets: Tensor, *, form: str = "published", feature_energy: float = 1.0
) -> Tensor:
    r"""Return the mean dot-regression loss, which pulls each feature to its own class vector and pushes from none.

    With target :math:`m = r_y w_y` of length :math:`\sqrt{E_W}` (Yang et al., NeurIPS 2022, arXiv 2203.09081), a sample
    costs

    - ``"published"``, as in the released code: :math:`\frac{1}{2} (m^\top h - \lVert m\rVert s)^2 / s` with
      :math:`s = \max(\lVert h\rVert, 10^{-8})`;
    - ``"paper"``: :math:`\frac{1}{2 b} (m^\top h - b)^2` with :math:`b = \sqrt{E_W E_H}`;
    - ``"plain"``: :math:`-m^\top h`.

    s and the length of m are constants to the gradient. Both squared forms are :math:`\frac{1}{2}(\cos - 1)^2` for unit
    features and targets, with gradient :math:`-(1 - \cos) w_y` in the feature. A zero feature costs about 0 in the
    published form, with gradient :math:`-\lVert m\rVert m`. A zero target is nan in the paper form. Sums are in float32
    or better.

    Args:
        features: ``(B, d)``; the loss of an empty batch is nan, as for cross-entropy.
        targets: ``(B, d)`` the class vector of each sample's label, times its length weight if there is one.
        form: which of the three.
        feature_energy: :math:`E_H > 0`, the squared norm the features are asked to have; the paper form alone uses it.

    Returns:
        a 0-d tensor.

    Raises:
        ArgumentError: if ``form`` is unknown or ``feature_energy`` is not positive.
        DtypeError, ShapeError: if features or targets are not floating point ``(B, d)`` of one shape.
        DeviceError: if they lie on different devices.

    Example:
        >>> h = torch.tensor([[0.6, 0.8]])
        >>> round(dot_regression(h, torch.tensor([[1.0, 0.0]])).item(), 6)
        0.08
    """
    check_choice("form", form, FORMS)
    if not feature_energy > 0:
        raise ArgumentError(f"feature_energy must be > 0, got {feature_energy!r}")
    _check_targets(features, targets)
    features, targets = at_least_float32(features), at_least_float32(targets)
    dot = (features * targets).sum(dim=1)
    if form == "plain":
        return -dot.mean()
    length = torch.linalg.vector_norm(targets.detach(), dim=1)
    if form == "paper":
        bound = length * feature_energy**0.5
        return ((dot - bound).square() / bound).mean() / 2
    norm = torch.linalg.vector_norm(features.detach(), dim=1).clamp_min(NORM_FLOOR)
    return ((dot - length * norm).square() / norm).mean() / 2


def length_weights(labels: Tensor, num_classes: int) -> Tensor:
    r"""Return the lengths that balance the classes of one batch, from its labels.

    :math:`r_c = \sqrt{(B / P) / n_c}` for the P classes present and 1 for the others (Yang et al., NeurIPS 2022). With
    targets :math:`r_y w_y`, unit class vectors and unit features, the published dot regression becomes the mean over
    the present classes of the class mean of :math:`\frac{1}{2}(\cos - 1)^2`.

    Args:
        labels: ``(B,)`` integers in 0..K-1; their values are checked on the CPU only.
        num_classes: K >= 1.

    Returns:
        ``(K,)`` float64.

    Raises:
        ArgumentError: if ``num_classes`` is not a positive integer.
        DtypeError, ShapeError: if the labels are not integers ``(B,)``.
        LabelError: if a label is out of range (on the CPU).

    Example:
        >>> [round(r, 4) for r in length_weights(torch.tensor([0, 0, 0, 2]), 3).square().tolist()]
        [0.6667, 1.0, 2.0]
    """
    check_positive("num_classes", num_classes)
    _check_integers("labels", labels, "(B,)")
    if _readable(labels):
        check_label_range(labels, num_classes)
    count = torch.zeros(num_classes, dtype=torch.int64, device=labels.device)
    return _balance(count.index_add_(0, labels.long(), torch.ones_like(labels, dtype=torch.int64)))


def length_weights_from_counts(class_counts: Tensor) -> Tensor:
    r"""Return the lengths that balance the classes of a data set, from its counts.

    :math:`r_c = \sqrt{(N / P) / n_c}` for the P classes present and 1 for the others; P = K in the usual case.

    Args:
        class_counts: ``(K,)`` integers >= 0, samples of each class; their values are checked on the CPU only.

    Returns:
        ``(K,)`` float64.

    Raises:
        ArgumentError: if a count is negative (on the CPU).
        DtypeError, ShapeError: if the counts are not integers ``(K,)``.

    Example:
        >>> [round(r, 4) for r in length_weights_from_counts(torch.tensor([8, 2])).square().tolist()]
        [0.625, 2.5]
    """
    _check_integers("class_counts", class_counts, "(K,)")
    if _readable(class_counts) and bool((class_counts < 0).any()):
        raise ArgumentError(f"class_counts must be >= 0, got {int(class_counts.min())}")
    return _balance(class_counts)


def logit_adjusted_cross_entropy(logits: Tensor, labels: Tensor, class_counts: Tensor, tau: float = 1.0) -> Tensor:
    r"""Return the mean cross-entropy of ``logits + tau * log(prior)`` (Menon et al., ICLR 2021, arXiv 2007.07314).

    The prior :math:`\pi_c = n_c / N` is added in training only: predict from the logits themselves. With tau = 0 it is
    plain cross-entropy. An absent class has no finite adjustment, so every count must be positive.

    Args:
        logits: ``(B, K)`` floating point; computed in float32 or better.
        labels: ``(B,)`` integers, or class probabilities ``(B, K)``, as for ``torch.nn.functional.cross_entropy``.
        class_counts: ``(K,)`` integers >= 1, training samples of each class; values are checked on the CPU only.
        tau: strength, finite and >= 0.

    Returns:
        a 0-d tensor.

    Raises:
        ArgumentError: if a count is not positive (on the CPU), or tau is out of range.
        DtypeError, ShapeError: if the counts are not integers ``(K,)``, or the logits not floating point ``(B, K)``.

    Example:
        >>> loss = logit_adjusted_cross_entropy(torch.zeros(1, 2), torch.tensor([1]), torch.tensor([3, 1]))
        >>> round(loss.exp().item(), 4)
        4.0
    """
    check_tau(tau)
    check_counts_positive(class_counts)
    check_features(logits, class_counts.shape[0], "logits")
    wide = at_least_float32(logits)
    count = class_counts.to(wide.dtype)
    return F.cross_entropy(wide + tau * (count / count.sum()).log(), labels)


def check_tau(tau: float) -> None:
    """Raise :class:`ArgumentError` unless ``tau`` is finite and >= 0."""
    if isinstance(tau, bool) or not 0 <= tau < float("inf"):
        raise ArgumentError(f"tau must be finite and >= 0, got {tau!r}")


def check_counts_positive(class_counts: Tensor) -> None:
    """Check that ``class_counts`` are integers ``(K,)``, and on the CPU that they are positive."""
    _check_integers("class_counts", class_counts, "(K,)")
    if _readable(class_counts) and bool((class_counts < 1).any()):
        absent = (class_counts < 1).nonzero().flatten().tolist()
        raise ArgumentError(
            f"class_counts must be >= 1, got {int(class_counts[absent[0]])} for class {absent[0]} "
            f"({len(absent)} such classes); leave absent classes out of the problem"
        )


def _balance(count: Tensor) -> Tensor:
    present = count > 0
    mean = count.sum().double() / present.sum()
    return torch.where(present, (mean / count).sqrt(), 1.0)


def _readable(values: Tensor) -> bool:
    """Return whether looking at values neither stalls an accelerator nor breaks a compiled graph."""
    return values.device.type == "cpu" and not torch.compiler.is_compiling()


def _check_integers(name: str, values: Tensor, shape: str) -> None:
    if values.dtype not in (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64):
        raise DtypeError(f"{name} must be an integer tensor, got {values.dtype}; convert with {name}.long()")
    if values.ndim != 1:
        raise ShapeError(f"{name} must have shape {shape}, got {tuple(values.shape)}")


def _check_targets(features: Tensor, targets: Tensor) -> None:
    check_features(features)
    check_features(targets, features.shape[1], "targets")
    if features.shape != targets.shape:
        raise ShapeError(
            f"targets must have the shape of features {tuple(features.shape)}, got {tuple(targets.shape)}; "
            "gather one class vector a sample"
        )
    if features.device != targets.device:
        raise DeviceError(
            f"targets are on {targets.device} and features on {features.device}; move one with .to(device)"
        )
