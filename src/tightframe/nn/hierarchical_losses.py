"""Losses that know a hierarchy of the classes, as modules."""

from __future__ import annotations

from typing import final

import torch.nn.functional as F
from torch import Tensor, nn

from tightframe.errors import ArgumentError, check_features, check_labels, check_positive, check_range
from tightframe.functional.hierarchical import (
    check_soft_labels,
    correlation_loss,
    cosine_gram,
    cosine_gram_weights,
    hace,
    hier_cos,
    hxe,
    soft_label_divergence,
)
from tightframe.hierarchy import Tree
from tightframe.hierarchy.buffers import TreeBuffers
from tightframe.linalg import at_least_float32
from tightframe.nn.classifiers import Classifier
from tightframe.nn.hierarchical_classifiers import HierCOSClassifier, NodeClassifier
from tightframe.nn.losses import FeatureLoss


@final
class SoftLabelLoss(nn.Module):
    r"""Divergence from label distributions that forgive near mistakes (Bertinetto et al., CVPR 2020).

    See :func:`~tightframe.functional.hierarchical.soft_label_loss`.

    Args:
        distances: ``(K, K)`` of the classes; not part of the state.
        beta: finite and > 0: large is nearly cross-entropy, and 4 costs accuracy for milder mistakes.

    Raises:
        ArgumentError, DtypeError, ShapeError: if the distances are none, or ``beta`` is out of range.

    Example:
        >>> import torch
        >>> loss = SoftLabelLoss(torch.tensor([[0.0, 1.0], [1.0, 0.0]]), beta=50.0)
        >>> round(loss(torch.zeros(1, 2), torch.tensor([0])).exp().item(), 6)
        2.0
    """

    distances: Tensor

    def __init__(self, distances: Tensor, beta: float) -> None:
        super().__init__()
        check_soft_labels(distances, beta)
        self.beta = beta
        self._rate = beta / float(distances.max())
        self.register_buffer("distances", distances.detach().clone(), persistent=False)

    def forward(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Return the loss, 0-d, of logits ``(B, K)`` and labels ``(B,)``; errors as in the function."""
        return soft_label_divergence(logits, labels, self.distances, self._rate)

    def extra_repr(self) -> str:
        """Return the options for ``repr``."""
        return f"num_classes={len(self.distances)}, beta={self.beta:g}"


@final
class HXELoss(nn.Module):
    """Hierarchical cross-entropy (Bertinetto et al., CVPR 2020), see :func:`~tightframe.functional.hierarchical.hxe`.

    After a :class:`~tightframe.nn.ConditionalSoftmaxClassifier` it is the loss of YOLO9000 with these weights.

    Args:
        tree: of the classes.
        alpha: finite and >= 0; the paper has 0.1 to 0.6.

    Raises:
        ArgumentError: if ``alpha`` is out of range, or ``tree`` no tree of at least two classes.

    Example:
        >>> import torch
        >>> loss = HXELoss(Tree.from_nested({"E": ["A", "B"], "F": ["C", "D"]}), alpha=0.0)
        >>> round(7 * loss(torch.tensor([[2.0, 1.0, 0.0, -1.0]]), torch.tensor([1])).item(), 4)
        1.4402
    """

    def __init__(self, tree: Tree, alpha: float) -> None:
        super().__init__()
        check_range("alpha", alpha, alpha >= 0, ">= 0")
        self.alpha = alpha
        self.tree = TreeBuffers(tree)

    def forward(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Return the loss, 0-d, of logits ``(B, K)`` and labels ``(B,)``; errors as in the function."""
        return hxe(logits, labels, self.tree.index, self.alpha)

    def extra_repr(self) -> str:
        """Return the options for ``repr``."""
        return f"alpha={self.alpha:g}"


@final
class HACELoss(FeatureLoss):
    """Hierarchy-aware cross-entropy, see :func:`~tightframe.functional.hierarchical.hace`.

    With a :class:`~tightframe.nn.NodeClassifier` all nodes take part; with any other classifier the leaves alone.

    Args:
        tree: of the classes.
        d_il: share of the leaf in (0, 1]; the released code has 0.2, 0.5 and 0.7.

    Raises:
        ArgumentError: if ``d_il`` is out of range, or ``tree`` no tree of at least two classes.

    Example:
        >>> import torch
        >>> from tightframe.nn import FrameClassifier
        >>> loss = HACELoss(Tree.from_nested({"E": ["A", "B"], "F": ["C", "D"]}), d_il=1.0)
        >>> classifier = FrameClassifier(torch.eye(4), normalize=False)
        >>> round(loss(torch.tensor([[2.0, 1.0, 0.0, -1.0]]), torch.tensor([1]), classifier).item(), 4)
        1.4402
    """

    def __init__(self, tree: Tree, d_il: float) -> None:
        super().__init__()
        check_range("d_il", d_il, 0 < d_il <= 1, "in (0, 1]")
        self.d_il = d_il
        self.tree = TreeBuffers(tree)

    def forward(self, features: Tensor, labels: Tensor, classifier: Classifier) -> Tensor:
        """Return the loss, 0-d, in float32 or better.

        Args:
            features: ``(B, d)``, the input of the classifier.
            labels: ``(B,)`` integers in 0..K-1; their values are checked on the CPU only.
            classifier: gives the logits.

        Raises:
            ArgumentError: if the classifier has another tree.
            DtypeError, ShapeError, DeviceError, LabelError: as the function.
        """
        if not isinstance(classifier, NodeClassifier):
            return hace(classifier(features), labels, self.tree.index, self.d_il)
        _check_tree(self.tree, classifier.tree)
        return hace(classifier.node_logits(features), labels, self.tree.index, self.d_il)

    def extra_repr(self) -> str:
        """Return the options for ``repr``."""
        return f"d_il={self.d_il:g}"


@final
class HierCOSLoss(FeatureLoss):
    """The loss of Hier-COS, see :func:`~tightframe.functional.hierarchical.hier_cos`.

    Args:
        tree: of the classes.
        alpha: finite and >= 0, weight of what lies off the path; the released code has 0.1 to 1e-5, less the more
            classes.

    Raises:
        ArgumentError: if ``alpha`` is out of range, or ``tree`` no tree of at least two classes.

    Example:
        >>> import torch
        >>> from tightframe.nn import HierCOSClassifier
        >>> tree = Tree.from_nested({"root": ["A", "B"]})
        >>> loss = HierCOSLoss(tree, alpha=0.0)
        >>> round(loss(torch.zeros(1, 2), torch.tensor([1]), HierCOSClassifier(2, tree)).exp().item(), 6)
        2.0
    """

    def __init__(self, tree: Tree, alpha: float) -> None:
        super().__init__()
        check_range("alpha", alpha, alpha >= 0, ">= 0")
        self.alpha = alpha
        self.tree = TreeBuffers(tree)

    def forward(self, features: Tensor, labels: Tensor, classifier: Classifier) -> Tensor:
        """Return the loss, 0-d, in float32 or better.

        Args:
            features: ``(B, d)``, the input of the classifier.
            labels: ``(B,)`` integers in 0..K-1; their values are checked on the CPU only.
            classifier: a :class:`~tightframe.nn.HierCOSClassifier` of the same tree.

        Raises:
            ArgumentError: if it is another, or has another tree.
            DtypeError, ShapeError, DeviceError, LabelError: as the function.
        """
        if not isinstance(classifier, HierCOSClassifier):
            raise ArgumentError(
                f"classifier must be a HierCOSClassifier for HierCOSLoss, got {type(classifier).__name__}"
            )
        _check_tree(self.tree, classifier.tree)
        return hier_cos(classifier.coordinates(features), labels, self.tree.index, self.alpha)

    def extra_repr(self) -> str:
        """Return the options for ``repr``."""
        return f"alpha={self.alpha:g}"


@final
class CosineGramLoss(FeatureLoss):
    r"""Cross-entropy and the angles to all class vectors, :math:`\beta\,\mathrm{CE} + \alpha\,\mathrm{aux}` (HAFrame).

    The second term is :func:`~tightframe.functional.hierarchical.cosine_gram` against the classifier's own class
    vectors, whichever classifier that is. Without it cross-entropy pushes features off the vectors of any frame but a
    simplex ETF. Weights and schedules are those of
    :func:`~tightframe.functional.hierarchical.cosine_gram_weights`; tell the epoch by :meth:`set_epoch`.

    Args:
        alpha: weight for ``"constant"`` alone; published are 0.4 and 0.5.
        schedule: ``"constant"``, ``"falling"``, ``"rising"``, ``"wave"``, ``"rising-wave"`` or ``"falling-wave"``.
        epochs: of the training, >= 0, for all others but ``"wave"``.
        period: of a wave in epochs, >= 1.

    Attributes:
        epoch: how many epochs are done; not part of the state.

    Raises:
        ArgumentError: if an argument is out of range, missing or not used.

    Example:
        >>> import torch
        >>> from tightframe.nn import FrameClassifier
        >>> loss = CosineGramLoss(alpha=0.5)
        >>> h = torch.tensor([[0.0, 3.0]])
        >>> round(loss(h, torch.tensor([0]), FrameClassifier(torch.eye(2), normalize=False)).item(), 4)
        2.5243
    """

    def __init__(
        self,
        alpha: float | None = None,
        *,
        schedule: str = "constant",
        epochs: int | None = None,
        period: int | None = None,
    ) -> None:
        super().__init__()
        self._options = {"alpha": alpha, "epochs": epochs, "period": period}
        self.schedule = schedule
        self.epoch = 0
        self.weights = cosine_gram_weights(schedule, 0, alpha=alpha, epochs=epochs, period=period)

    def set_epoch(self, epoch: int) -> None:
        """Take the weights of an epoch >= 0."""
        check_positive("epoch", epoch, 0)
        self.epoch = epoch
        self.weights = cosine_gram_weights(self.schedule, epoch, **self._options)  # type: ignore[arg-type]

    def forward(self, features: Tensor, labels: Tensor, classifier: Classifier) -> Tensor:
        """Return the loss, 0-d, in float32 or better.

        Args:
            features: ``(B, d)``, the input of the classifier.
            labels: ``(B,)`` integers in 0..K-1; their values are checked on the CPU only.
            classifier: gives logits and class vectors.

        Raises:
            DtypeError, ShapeError, DeviceError, LabelError: if features, labels and classifier do not fit each other.
        """
        beta, alpha = self.weights
        angles = cosine_gram(classifier.prepare(features), labels, classifier.weight)
        return beta * _cross_entropy(features, labels, classifier) + alpha * angles

    def extra_repr(self) -> str:
        """Return the options for ``repr``."""
        given = ", ".join(f"{name}={value:g}" for name, value in self._options.items() if value is not None)
        return f"schedule={self.schedule!r}, {given}"


@final
class CorrelationLoss(FeatureLoss):
    r"""One minus the cosine of a feature to its class vector (Barz & Denzler, WACV 2019, arXiv 1809.09924).

    It reads the batch's class vectors alone, so no feature is pushed away from any. Cross-entropy of the classifier's
    own logits may be added; the paper learns another layer for that.

    Args:
        ce_weight: weight of cross-entropy, finite and >= 0; the paper has 0 and 0.1.

    Raises:
        ArgumentError: if it is out of range.

    Example:
        >>> import torch
        >>> from tightframe.nn import FrameClassifier
        >>> loss = CorrelationLoss()
        >>> round(loss(torch.tensor([[3.0, 4.0]]), torch.tensor([0]), FrameClassifier(torch.eye(2))).item(), 6)
        0.4
    """

    def __init__(self, ce_weight: float = 0.0) -> None:
        super().__init__()
        check_range("ce_weight", ce_weight, ce_weight >= 0, ">= 0")
        self.ce_weight = ce_weight

    def forward(self, features: Tensor, labels: Tensor, classifier: Classifier) -> Tensor:
        """Return the loss, 0-d, in float32 or better.

        Args:
            features: ``(B, d)``, the input of the classifier.
            labels: ``(B,)`` integers in 0..K-1; their values are checked on the CPU only.
            classifier: gives the class vectors, and logits if cross-entropy is added.

        Raises:
            DtypeError, ShapeError, DeviceError, LabelError: if features, labels and classifier do not fit each other.
        """
        check_features(features, classifier.in_features)
        check_labels(labels, features)
        loss = correlation_loss(classifier.prepare(features), classifier.class_vectors(labels))
        if self.ce_weight:
            loss = loss + self.ce_weight * _cross_entropy(features, labels, classifier)
        return loss

    def extra_repr(self) -> str:
        """Return the options for ``repr``."""
        return f"ce_weight={self.ce_weight:g}"


def _cross_entropy(features: Tensor, labels: Tensor, classifier: Classifier) -> Tensor:
    return F.cross_entropy(at_least_float32(classifier(features)), labels.long())


def _check_tree(mine: TreeBuffers, theirs: TreeBuffers) -> None:
    if mine.fingerprint != theirs.fingerprint:
        raise ArgumentError("classifier must have the tree of the loss, got another one; build both with the same")
