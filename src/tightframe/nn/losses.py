"""Losses of features and class vectors, or of logits alone."""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tightframe.errors import (
    ArgumentError,
    DtypeError,
    ShapeError,
    check_choice,
    check_features,
    check_label_range,
    check_labels,
    check_range,
)
from tightframe.linalg import at_least_float32, reciprocal_norm
from tightframe.nn.classifiers import Classifier

FORMS = ("published", "paper", "plain")
BALANCING = ("none", "batch", "global")

# The smallest norm of a feature in the published form, part of its definition.
NORM_FLOOR = 1e-8


class Loss(nn.Module):
    """A module that shows its options."""

    def extra_repr(self) -> str:
        """Return the options for ``repr``: the arguments that are numbers or words."""
        options = {name: getattr(self, name, None) for name in inspect.signature(type(self)).parameters}
        return ", ".join(f"{name}={value!r}" for name, value in options.items() if isinstance(value, int | float | str))


class FeatureLoss(Loss, ABC):
    """A loss of features and class vectors; any other loss is an ordinary module of ``(logits, labels)``."""

    @abstractmethod
    def forward(self, features: Tensor, labels: Tensor, classifier: Classifier) -> Tensor:
        """Return the loss, 0-d, in float32 or better; nan for an empty batch, as for cross-entropy.

        Args:
            features: Input of the classifier ``(B, d)``.
            labels: Labels ``(B,)``, integers in 0..K-1; their values are checked on the CPU only.
            classifier: Classifier that gives the class vectors, and the logits if the loss has them.

        Raises:
            DtypeError, ShapeError, DeviceError: if features, labels and classifier do not fit each other.
            LabelError: if a label is out of range (on the CPU).
            ArgumentError: if the loss cannot be computed with this classifier.
        """


@final
class DotRegressionLoss(FeatureLoss):
    r"""Mean dot regression, which pulls each feature to its own class vector and pushes it from none.

    With target :math:`m = r_y w_y` (Yang et al., NeurIPS 2022, arXiv 2203.09081), a sample costs

    - ``"published"``, as in the released code: :math:`\frac{1}{2} (m^\top h - \lVert m\rVert s)^2 / s` with
      :math:`s = \max(\lVert h\rVert, 10^{-8})`;
    - ``"paper"``: :math:`\frac{1}{2 b} (m^\top h - b)^2` with :math:`b = \lVert m\rVert`, the paper's
      :math:`\sqrt{E_W E_H}` at :math:`E_H = 1`;
    - ``"plain"``: :math:`-m^\top h`.

    s and the length of m are constants to the gradient. Both squared forms are :math:`\frac{1}{2}(\cos - 1)^2` for unit
    features and targets, with gradient :math:`-(1 - \cos) w_y` in the feature. A zero feature costs about 0 in the
    published form, with gradient :math:`-\lVert m\rVert m`. A zero target is nan in the paper form.

    The lengths :math:`r_c = \sqrt{(B / P) / n_c}`, for the P classes present and 1 for the others, balance the classes:
    the published form then becomes the mean over the present classes of the class mean of
    :math:`\frac{1}{2}(\cos - 1)^2`. The method published as one has three parts, separate here: the fixed frame is the
    classifier's, the squared loss is ``form``, and the class balance is ``balancing``, there ``"batch"``. Only the rows
    of the batch's labels are read, so the memory is O(B d) whatever K is, apart from K lengths when balancing.

    Mixup is ``lam * loss(h, y_a, classifier) + (1 - lam) * loss(h, y_b, classifier)``. The published code takes the
    lengths of both terms from y_a; they are the same, because y_b is a permutation of y_a.

    Args:
        form: Word ``"published"``, ``"paper"`` or ``"plain"``.
        balancing: Source of the lengths: the counts of the batch (``"batch"``), ``class_counts`` (``"global"``), or
            ``"none"``, which makes all of them 1.
        class_counts: K counts >= 0 of the training set, for ``"global"`` only; not part of the state.
        normalize: Whether to divide features by their norm first, as in the published networks for small images; a
            zero feature then has zero gradient. Without it, the published form divides by a constant norm instead, as
            in their ImageNet network.
        reg: Weight >= 0 of the mean norm of the features as they come in (theirs for ImageNet-LT is 0.01).

    Raises:
        ArgumentError: if an option or a count is outside its range, or ``class_counts`` is missing or not needed.
        DtypeError, ShapeError: if the counts are not one row of integers.

    Example:
        >>> from tightframe.nn import FrameClassifier
        >>> loss = DotRegressionLoss()
        >>> h = torch.tensor([[3.0, 4.0]])
        >>> round(loss(h, torch.tensor([0]), FrameClassifier(torch.eye(2))).item(), 6)
        0.08
    """

    class_counts: Tensor | None

    def __init__(
        self,
        *,
        form: str = "published",
        balancing: str = "none",
        class_counts: Sequence[int] | Tensor | None = None,
        normalize: bool = True,
        reg: float = 0.0,
    ) -> None:
        super().__init__()
        check_choice("form", form, FORMS)
        check_choice("balancing", balancing, BALANCING)
        if (class_counts is not None) != (balancing == "global"):
            raise ArgumentError(
                f"class_counts must be given exactly with balancing='global', got balancing={balancing!r} "
                f"and class_counts={class_counts!r}"
            )
        check_range("reg", reg, reg >= 0, ">= 0")
        self.form = form
        self.balancing = balancing
        self.normalize = normalize
        self.reg = reg
        counts = None if class_counts is None else _checked_counts(class_counts, 0)
        self.register_buffer("class_counts", counts, persistent=False)

    def forward(self, features: Tensor, labels: Tensor, classifier: Classifier) -> Tensor:
        """Return the loss, 0-d; arguments and errors as in :class:`FeatureLoss`."""
        check_batch(features, labels, classifier.out_features, classifier.in_features, "features")
        features = at_least_float32(features)
        targets = classifier.class_vectors(labels)
        if self.balancing != "none":
            lengths = self._lengths(labels.long(), classifier.out_features)
            targets = targets * lengths[labels.long()].to(features.dtype).unsqueeze(1)
        unit = features * reciprocal_norm(features) if self.normalize else features
        loss = self._regression(unit, at_least_float32(targets))
        if self.reg:
            loss = loss + self.reg * torch.linalg.vector_norm(features, dim=1).mean()
        return loss

    def _lengths(self, labels: Tensor, num_classes: int) -> Tensor:
        """Return the lengths ``(K,)`` of the targets in float64."""
        count = self.class_counts
        if count is None:
            count = torch.zeros(num_classes, dtype=torch.int64, device=labels.device)
            count = count.index_add_(0, labels, torch.ones_like(labels))
        elif count.numel() != num_classes:
            raise ShapeError(
                f"class_counts must have K = {num_classes} entries for this classifier, got {count.numel()}"
            )
        present = count > 0
        mean = count.sum().double() / present.sum()
        return torch.where(present, (mean / count).sqrt(), 1.0)

    def _regression(self, features: Tensor, targets: Tensor) -> Tensor:
        dot = (features * targets).sum(dim=1)
        if self.form == "plain":
            return -dot.mean()
        length = torch.linalg.vector_norm(targets.detach(), dim=1)
        if self.form == "paper":
            return ((dot - length).square() / length).mean() / 2
        norm = torch.linalg.vector_norm(features.detach(), dim=1).clamp_min(NORM_FLOOR)
        return ((dot - length * norm).square() / norm).mean() / 2


@final
class LogitAdjustedCrossEntropy(Loss):
    r"""Mean cross-entropy of ``logits + tau * log(prior)`` (Menon et al., ICLR 2021, arXiv 2007.07314).

    The prior :math:`\pi_c = n_c / N` is added in training only: predict from the logits themselves.

    Args:
        class_counts: K counts >= 1 of the training set; not part of the state. For 0 no finite adjustment exists.
        tau: Strength, finite and >= 0; 0 is plain cross-entropy.

    Raises:
        ArgumentError: if a class is absent (count 0) or ``tau`` is out of range.
        DtypeError, ShapeError: if the counts are not one row of integers.

    Example:
        >>> loss = LogitAdjustedCrossEntropy([3, 1])
        >>> round(loss(torch.zeros(1, 2), torch.tensor([1])).exp().item(), 4)
        4.0
    """

    class_counts: Tensor

    def __init__(self, class_counts: Sequence[int] | Tensor, tau: float = 1.0) -> None:
        super().__init__()
        check_range("tau", tau, tau >= 0, ">= 0")
        self.tau = tau
        self.register_buffer("class_counts", _checked_counts(class_counts, 1), persistent=False)

    def forward(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Return the loss, 0-d, in float32 or better.

        Args:
            logits: Logits ``(B, K)``, floating point.
            labels: Labels ``(B,)``, or probabilities ``(B, K)``, as for ``torch.nn.functional.cross_entropy``.

        Raises:
            DtypeError, ShapeError: if the logits are not as above.
        """
        check_features(logits, self.class_counts.numel(), "logits")
        wide = at_least_float32(logits)
        count = self.class_counts.to(wide.dtype)
        return F.cross_entropy(wide + self.tau * (count / count.sum()).log(), labels)


def check_batch(
    values: Tensor, labels: Tensor, num_classes: int, width: int | None = None, name: str = "logits"
) -> None:
    """Check ``values (B, width)``, by default K wide, and the labels beside them, whose values are read on the CPU."""
    check_features(values, num_classes if width is None else width, name)
    check_labels(labels, values)
    # Elsewhere a look at the values stalls the accelerator, or breaks the compiled graph.
    if labels.device.type == "cpu" and not torch.compiler.is_compiling():
        check_label_range(labels, num_classes)


def _checked_counts(class_counts: Sequence[int] | Tensor, at_least: int) -> Tensor:
    """Return counts ``(K,)`` as integers, because a cast of the module to half precision rounds anything else."""
    counts = torch.as_tensor(class_counts)
    if counts.dtype not in (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64):
        raise DtypeError(f"class_counts must be integers, got {counts.dtype}; round them")
    if counts.ndim != 1:
        raise ShapeError(f"class_counts must have shape (K,), got {tuple(counts.shape)}")
    wrong = (counts < at_least).nonzero().flatten().tolist()
    if wrong:
        raise ArgumentError(
            f"class_counts must be >= {at_least}, got {int(counts[wrong[0]])} for class {wrong[0]} "
            f"({len(wrong)} such classes); correct them, or leave absent classes out of the problem"
        )
    return counts
