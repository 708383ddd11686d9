"""Losses as modules: of features and class vectors, or of logits alone."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import final

import torch
from torch import Tensor, nn

from tightframe.errors import ArgumentError, ShapeError, check_choice, check_features, check_labels
from tightframe.functional.losses import (
    FORMS,
    check_counts_positive,
    check_tau,
    dot_regression,
    length_weights,
    length_weights_from_counts,
    logit_adjusted_cross_entropy,
)
from tightframe.linalg import at_least_float32, reciprocal_norm
from tightframe.nn.classifiers import Classifier

BALANCING = ("none", "batch", "global")


class FeatureLoss(nn.Module, ABC):
    """A loss of features and class vectors; any other loss is an ordinary module of ``(logits, labels)``."""

    @abstractmethod
    def forward(self, features: Tensor, labels: Tensor, classifier: Classifier) -> Tensor:
        """Return the loss, 0-d.

        Args:
            features: ``(B, d)``, the input of the classifier.
            labels: ``(B,)`` integers in 0..K-1.
            classifier: gives the class vectors.
        """


@final
class DotRegressionLoss(FeatureLoss):
    """Dot regression to the classifier's vectors (Yang et al., NeurIPS 2022, arXiv 2203.09081).

    What is published as one method has three parts, separate here: the fixed frame is the classifier's, the squared
    loss is ``form``, and the class balance is ``balancing``; their default is ``balancing="batch"``. Only the rows of
    the batch's labels are read, so the memory is O(B d) whatever K is, apart from K lengths when balancing.

    Mixup is ``lam * loss(h, y_a, classifier) + (1 - lam) * loss(h, y_b, classifier)``. The published code takes the
    lengths of both terms from y_a; y_b being a permutation of y_a, they are the same.

    Args:
        form: ``"published"``, ``"paper"`` (with E_H = 1) or ``"plain"``, as in ``functional.losses.dot_regression``.
        balancing: lengths of the targets from the batch's counts, from ``class_counts`` (``"global"``), or all 1.
        class_counts: K counts of the training set; for ``"global"`` only.
        normalize: divide features by their norm first, as in the published networks for small images; a zero feature
            then has zero gradient. Without it, the published form divides by a constant norm instead, as in their
            ImageNet network.
        reg: weight >= 0 of the mean norm of the features as they come in (theirs for ImageNet-LT is 0.01).

    Raises:
        ArgumentError: if an option is outside its range, or ``class_counts`` is given without need or missing.

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
        if isinstance(reg, bool) or not 0 <= reg < float("inf"):
            raise ArgumentError(f"reg must be finite and >= 0, got {reg!r}")
        self.form = form
        self.balancing = balancing
        self.normalize = normalize
        self.reg = reg
        counts = None if class_counts is None else torch.as_tensor(class_counts)
        if counts is not None:
            length_weights_from_counts(counts.cpu())
        # Integers, because casting a module to half precision would round anything else.
        self.register_buffer("class_counts", counts, persistent=False)

    def forward(self, features: Tensor, labels: Tensor, classifier: Classifier) -> Tensor:
        """Return the loss, 0-d, in float32 or better.

        Args:
            features: ``(B, d)``, the input of the classifier.
            labels: ``(B,)`` integers in 0..K-1; their values are checked on the CPU only.
            classifier: gives the class vectors.

        Raises:
            DtypeError, ShapeError, DeviceError: if features, labels, counts and classifier do not fit each other.
            LabelError: if a label is out of range (on the CPU).
        """
        check_features(features, classifier.in_features)
        check_labels(labels, features)
        features = at_least_float32(features)
        targets = classifier.class_vectors(labels)
        lengths = self._lengths(labels, classifier.out_features)
        if lengths is not None:
            targets = targets * lengths[labels.long()].to(features.dtype).unsqueeze(1)
        unit = features * reciprocal_norm(features) if self.normalize else features
        loss = dot_regression(unit, targets, form=self.form)
        if self.reg:
            loss = loss + self.reg * torch.linalg.vector_norm(features, dim=1).mean()
        return loss

    def _lengths(self, labels: Tensor, num_classes: int) -> Tensor | None:
        if self.balancing == "none":
            return None
        if self.class_counts is None:
            return length_weights(labels, num_classes)
        if self.class_counts.numel() != num_classes:
            raise ShapeError(
                f"class_counts must have K = {num_classes} entries for this classifier, got {self.class_counts.numel()}"
            )
        return length_weights_from_counts(self.class_counts)

    def extra_repr(self) -> str:
        """Return the options for ``repr``."""
        return f"form={self.form!r}, balancing={self.balancing!r}, normalize={self.normalize}, reg={self.reg:g}"


@final
class LogitAdjustedCrossEntropy(nn.Module):
    """Cross-entropy of ``logits + tau * log(prior)`` (Menon et al., ICLR 2021, arXiv 2007.07314).

    Args:
        class_counts: K counts >= 1 of the training set; not part of the state.
        tau: strength, finite and >= 0; 0 is plain cross-entropy.

    Raises:
        ArgumentError: if a class is absent (count 0) or an argument is out of range.
        DtypeError, ShapeError: if the counts are not one row of integers.

    Example:
        >>> loss = LogitAdjustedCrossEntropy([3, 1])
        >>> round(loss(torch.zeros(1, 2), torch.tensor([1])).exp().item(), 4)
        4.0
    """

    class_counts: Tensor

    def __init__(self, class_counts: Sequence[int] | Tensor, tau: float = 1.0) -> None:
        super().__init__()
        check_tau(tau)
        counts = torch.as_tensor(class_counts)
        check_counts_positive(counts.cpu())
        self.tau = tau
        # Integers, because casting a module to half precision would round anything else.
        self.register_buffer("class_counts", counts, persistent=False)

    def forward(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Return the loss, 0-d, of logits ``(B, K)`` and labels ``(B,)``; errors as in the function it calls."""
        return logit_adjusted_cross_entropy(logits, labels, self.class_counts, self.tau)

    def extra_repr(self) -> str:
        """Return the options for ``repr``."""
        return f"num_classes={self.class_counts.numel()}, tau={self.tau:g}"
