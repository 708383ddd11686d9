"""Losses that use a hierarchy of the classes."""

from __future__ import annotations

import math
from typing import final

import torch
import torch.nn.functional as F
from torch import Tensor

from tightframe.errors import ArgumentError, check_choice, check_positive, check_range
from tightframe.hierarchy import Tree, check_distances
from tightframe.hierarchy.index import TreeIndex, below_root, edge_log_probabilities
from tightframe.linalg import at_least_float32, outside_autocast, reciprocal_norm
from tightframe.nn.classifiers import Classifier
from tightframe.nn.hierarchical_classifiers import HierCOSClassifier, NodeClassifier
from tightframe.nn.losses import FeatureLoss, Loss, check_batch

SCHEDULES = ("constant", "falling", "rising")


@final
class SoftLabelLoss(Loss):
    r"""Divergence from label distributions that forgive near mistakes (Bertinetto et al., CVPR 2020, arXiv 1912.09393).

    Mean over the samples of :math:`\mathrm{KL}(q_y \Vert \mathrm{softmax}(z))` with
    :math:`q_{yc} \propto \exp(-\beta D_{yc} / \max D)`. The published code divides by K as well. As beta grows this
    becomes cross-entropy.

    Args:
        distances: Distances ``(K, K)`` of K >= 2 classes; not part of the state.
        beta: Sharpness, finite and > 0; the paper has 4 to 30. Large is nearly cross-entropy, and 4 costs accuracy for
            milder mistakes.

    Raises:
        ArgumentError, DtypeError, ShapeError: if ``distances`` is not a valid distance matrix, or ``beta`` is out of
            range.

    Example:
        >>> loss = SoftLabelLoss(torch.tensor([[0.0, 1.0], [1.0, 0.0]]), beta=50.0)
        >>> round(loss(torch.zeros(1, 2), torch.tensor([0])).exp().item(), 6)
        2.0
    """

    distances: Tensor

    def __init__(self, distances: Tensor, beta: float) -> None:
        super().__init__()
        check_distances(distances, at_least=2)
        check_range("beta", beta, beta > 0, "> 0")
        self.beta = beta
        self._rate = beta / float(distances.max())
        self.register_buffer("distances", distances.detach().clone(), persistent=False)

    def forward(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Return the loss, 0-d and >= 0, in float32 or better.

        Args:
            logits: Logits ``(B, K)``, floating point.
            labels: Labels ``(B,)``, integers in 0..K-1; their values are checked on the CPU only.

        Raises:
            DtypeError, ShapeError, DeviceError, LabelError: if logits and labels are not as above.
        """
        check_batch(logits, labels, len(self.distances))
        wide = at_least_float32(logits)
        targets = F.log_softmax(-self._rate * self.distances[labels.long()].to(wide.dtype), dim=1)
        return F.kl_div(F.log_softmax(wide, dim=1), targets, reduction="batchmean", log_target=True)


@final
class HXELoss(Loss):
    r"""Mean hierarchical cross-entropy (Bertinetto et al., CVPR 2020, arXiv 1912.09393).

    .. math:: -\sum_{v \in \mathrm{path}(y),\, v \neq \mathrm{root}} \lambda_v \log\frac{p(v)}{p(\mathrm{parent}(v))},
              \qquad \lambda_v = e^{-\alpha\,\mathrm{depth}(v)} / Z

    with p the softmax over the classes, p(v) its sum over those below v, and Z the sum of :math:`e^{-\alpha\,
    \mathrm{depth}}` over all nodes, the root too. With alpha = 0 it is cross-entropy divided by the number of nodes.
    After a :class:`~tightframe.nn.ConditionalSoftmaxClassifier` it is the loss of YOLO9000 with these weights.

    Args:
        tree: Tree over the classes.
        alpha: Decay, finite and >= 0; the paper has 0.1 to 0.6. More gives the coarse levels more weight.

    Raises:
        ArgumentError: if ``alpha`` is out of range, or ``tree`` is not a tree of at least two classes.

    Example:
        >>> loss = HXELoss(Tree.from_nested({"E": ["A", "B"], "F": ["C", "D"]}), alpha=0.0)
        >>> round(7 * loss(torch.tensor([[2.0, 1.0, 0.0, -1.0]]), torch.tensor([1])).item(), 4)
        1.4402
    """

    def __init__(self, tree: Tree, alpha: float) -> None:
        super().__init__()
        check_range("alpha", alpha, alpha >= 0, ">= 0")
        self.alpha = alpha
        self.tree = TreeIndex(tree)

    def forward(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Return the loss, 0-d, in float32 or better; it is exact at logits of any size.

        Args:
            logits: Logits ``(B, K)``, floating point.
            labels: Labels ``(B,)``, integers in 0..K-1; their values are checked on the CPU only.

        Raises:
            DtypeError, ShapeError, DeviceError, LabelError: if logits and labels are not as above.
        """
        check_batch(logits, labels, self.tree.num_classes)
        edges = _path_values(edge_log_probabilities(logits, self.tree), labels, self.tree)
        # The smallest exponents come out as 0, and none overflows, whatever alpha is.
        decay = [math.exp(-self.alpha * level) for level in range(len(self.tree.sizes))]
        total = sum(size * share for size, share in zip(self.tree.sizes, decay, strict=True))
        with outside_autocast(edges.device):
            return -(edges @ edges.new_tensor([share / total for share in decay[1:]])).mean()


@final
class HACELoss(FeatureLoss):
    r"""Mean hierarchy-aware cross-entropy (HACE).

    .. math:: -\sum_v T_{vy} \log P(v)

    P(v) is the softmax over all nodes, summed over v and everything below it. Along the path from the leaf upward T is
    :math:`d (1 - d)^i`, and the root takes the remainder. There is no floor under P(v): the floor of the released code
    removes the gradient of a confident mistake.

    With a :class:`~tightframe.nn.NodeClassifier` all nodes take part, with any other classifier the leaves alone. On
    the leaves it is an unnormalised :class:`HXELoss` whose edges weigh :math:`1 - (1 - d)^{i+1}`; with d = 1 that is
    cross-entropy.

    Args:
        tree: Tree over the classes.
        d_il: Share d of the leaf, in (0, 1]; the released code has 0.2, 0.5 and 0.7.

    Raises:
        ArgumentError: if ``d_il`` is out of range, or ``tree`` is not a tree of at least two classes.

    Example:
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
        self.tree = TreeIndex(tree)

    def forward(self, features: Tensor, labels: Tensor, classifier: Classifier) -> Tensor:
        """Return the loss, 0-d; arguments and errors as in :class:`FeatureLoss`. The classifier must have this tree."""
        index = self.tree
        if isinstance(classifier, NodeClassifier):
            _check_tree(index, classifier.tree)
            logits = classifier.node_logits(features)
            check_batch(logits, labels, index.num_classes, index.num_nodes)
        else:
            logits = classifier(features)
            check_batch(logits, labels, index.num_classes)
        edges = _path_values(edge_log_probabilities(logits, index), labels, index)
        height = index.depth[labels.long()].unsqueeze(1) - torch.arange(edges.shape[1], device=edges.device)
        # Below its leaf a path has edges of value 0 and height 0.
        weight = 1 - (1 - self.d_il) ** height.clamp_min(0).to(edges.dtype)
        return -(weight * edges).sum(dim=1).mean()


@final
class HierCOSLoss(FeatureLoss):
    r"""Loss of Hier-COS on the coordinates o of a :class:`~tightframe.nn.HierCOSClassifier`, one a node but the root.

    .. math:: \mathrm{KL}(q_y \Vert \mathrm{softmax}\lvert o\rvert) + \alpha L_\mathrm{reg}

    On the path of y, of length L, :math:`q_\ell \propto \exp(2 / (L - \ell + 1))`. :math:`L_\mathrm{reg}` adds up over
    the levels the mean of :math:`\lVert \mathrm{onehot} - \lvert o_\ell\rvert / \lVert o_\ell\rVert_2\rVert_1` over the
    samples whose path reaches the level, and the mean of :math:`\lVert o_\ell\rVert_1` over the others. It does not
    depend on the signs of o.

    Args:
        tree: Tree over the classes.
        alpha: Weight of what lies off the path, finite and >= 0; the released code has 0.1 to 1e-5, less for more
            classes.

    Raises:
        ArgumentError: if ``alpha`` is out of range, or ``tree`` is not a tree of at least two classes.

    Example:
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
        self.tree = TreeIndex(tree)

    def forward(self, features: Tensor, labels: Tensor, classifier: Classifier) -> Tensor:
        """Return the loss, 0-d; arguments and errors as in :class:`FeatureLoss`. The classifier must have this tree."""
        if not isinstance(classifier, HierCOSClassifier):
            raise ArgumentError(
                f"classifier must be a HierCOSClassifier for HierCOSLoss, got {type(classifier).__name__}"
            )
        _check_tree(self.tree, classifier.tree)
        index, coordinates = self.tree, classifier.coordinates(features)
        check_batch(coordinates, labels, index.num_classes, index.num_nodes - 1)
        sizes = below_root(coordinates.abs(), index)
        left = index.depth[labels.long()].unsqueeze(1) - torch.arange(index.paths.shape[1], device=sizes.device)
        reached = left > 0
        target = F.softmax(torch.where(reached, 2 / left.clamp_min(1).to(sizes.dtype), -torch.inf), dim=1)
        edges = _path_values(F.pad(F.log_softmax(sizes, dim=1), (1, 0)), labels, index)
        divergence = (torch.special.xlogy(target, target) - target * edges).sum(dim=1).mean()
        return divergence + self.alpha * self._off_path(sizes, labels, reached) if self.alpha else divergence

    def _off_path(self, sizes: Tensor, labels: Tensor, reached: Tensor) -> Tensor:
        """Return L_reg of ``|o| (B, N - 1)`` in level order; ``reached (B, H)`` tells which levels a path has."""
        levels = sizes.split(self.tree.sizes[1:], dim=1)
        units = [level * reciprocal_norm(level) for level in levels]
        own = _path_values(F.pad(torch.cat(units, dim=1), (1, 0)), labels, self.tree)
        # The share of the own node is at most 1, so its distance to 1 needs no absolute value.
        inside = torch.stack([unit.sum(dim=1) for unit in units], dim=1) + 1 - 2 * own
        outside = torch.stack([level.sum(dim=1) for level in levels], dim=1)
        count = reached.sum(dim=0)
        rest = reached.shape[0] - count
        inside = torch.where(reached, inside, 0.0).sum(dim=0) / count.clamp_min(1)
        outside = torch.where(reached, 0.0, outside).sum(dim=0) / rest.clamp_min(1)
        return (inside + outside).sum()


@final
class CosineGramLoss(FeatureLoss):
    r"""Cross-entropy and the angles to all class vectors, :math:`\beta\,\mathrm{CE} + \alpha\,\mathrm{aux}` (HAFrame).

    .. math:: \mathrm{aux} = \frac{1}{B} \sum_i \sum_c (\cos(w_c, x_i) - \cos(w_c, w_{y_i}))^2

    with the classifier's own class vectors, whichever classifier that is, as one matrix product. It is 0 exactly if
    each feature points along its class vector. Without it cross-entropy turns features away from the vectors of any
    frame but a simplex ETF. A zero feature has cosine 0 to every class, and no gradient from the second term.

    By ``"constant"`` alpha stays, and beta is 1 - alpha up to alpha = 1, and 1 above it. By ``"rising"`` alpha is t/T
    after t of T epochs, at most 1; by ``"falling"`` it is 1 - t/T; beta is 1 - alpha. Tell it the epoch by
    :meth:`set_epoch`.

    Args:
        alpha: Weight of the second term, finite and >= 0, for ``"constant"`` alone; published are 0.4 and 0.5.
        schedule: Word ``"constant"``, ``"falling"`` or ``"rising"``.
        epochs: Number T >= 0 of epochs of the training, for the other two.

    Attributes:
        weights: Weights (beta, alpha) at this epoch; not part of the state.

    Raises:
        ArgumentError: if an argument is out of range, missing or not used.

    Example:
        >>> from tightframe.nn import FrameClassifier
        >>> loss = CosineGramLoss(alpha=0.5)
        >>> h = torch.tensor([[0.0, 3.0]])
        >>> round(loss(h, torch.tensor([0]), FrameClassifier(torch.eye(2), normalize=False)).item(), 4)
        2.5243
    """

    weights: tuple[float, float]

    def __init__(self, alpha: float | None = None, *, schedule: str = "constant", epochs: int | None = None) -> None:
        super().__init__()
        check_choice("schedule", schedule, SCHEDULES)
        if (alpha is None) != (epochs is not None) or (alpha is None) == (schedule == "constant"):
            needed, other = ("alpha", "epochs") if schedule == "constant" else ("epochs", "alpha")
            raise ArgumentError(
                f"{needed} must be given and {other} left out with schedule={schedule!r}, "
                f"got alpha={alpha!r} and epochs={epochs!r}"
            )
        if alpha is not None:
            check_range("alpha", alpha, alpha >= 0, ">= 0")
        if epochs is not None:
            check_positive("epochs", epochs, 0)
        self.alpha = alpha
        self.schedule = schedule
        self.epochs = epochs
        self.set_epoch(0)

    def set_epoch(self, epoch: int) -> None:
        """Set the weights of an epoch >= 0."""
        check_positive("epoch", epoch, 0)
        share = min(epoch / self.epochs, 1.0) if self.epochs else 1.0
        alpha = self.alpha if self.alpha is not None else share if self.schedule == "rising" else 1 - share
        self.weights = (1 - alpha if alpha <= 1 else 1.0, alpha)

    def forward(self, features: Tensor, labels: Tensor, classifier: Classifier) -> Tensor:
        """Return the loss, 0-d; arguments and errors as in :class:`FeatureLoss`."""
        check_batch(features, labels, classifier.out_features, classifier.in_features, "features")
        prepared = at_least_float32(classifier.prepare(features))
        with outside_autocast(features.device):
            unit, rows = (x * reciprocal_norm(x) for x in (prepared, classifier.weight.to(prepared.dtype)))
            # cos(w_c, x) - cos(w_c, w_y) is one inner product with w_c.
            angles = ((unit - rows[labels.long()]) @ rows.T).square().sum(dim=1).mean()
        beta, alpha = self.weights
        return beta * _cross_entropy(features, labels, classifier) + alpha * angles if beta else alpha * angles


@final
class CorrelationLoss(FeatureLoss):
    r"""Mean of :math:`1 - \cos(x_i, w_{y_i})` (Barz & Denzler, WACV 2019, arXiv 1809.09924).

    It reads the batch's class vectors alone, so no feature is pushed away from any. A zero feature costs 1, with
    gradient 0. Cross-entropy of the classifier's own logits may be added; the paper learns another layer for that.

    Args:
        ce_weight: Weight of cross-entropy, finite and >= 0; the paper has 0 and 0.1.

    Raises:
        ArgumentError: if it is out of range.

    Example:
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
        """Return the loss, 0-d; arguments and errors as in :class:`FeatureLoss`."""
        check_batch(features, labels, classifier.out_features, classifier.in_features, "features")
        prepared = at_least_float32(classifier.prepare(features))
        targets = classifier.class_vectors(labels).to(prepared.dtype)
        cosines = (prepared * reciprocal_norm(prepared) * (targets * reciprocal_norm(targets))).sum(dim=1)
        loss = (1 - cosines).mean()
        if self.ce_weight:
            loss = loss + self.ce_weight * _cross_entropy(features, labels, classifier)
        return loss


def _cross_entropy(features: Tensor, labels: Tensor, classifier: Classifier) -> Tensor:
    return F.cross_entropy(at_least_float32(classifier(features)), labels.long())


def _path_values(values: Tensor, labels: Tensor, index: TreeIndex) -> Tensor:
    """Return the values ``(B, H)`` on the path of each label, of ``values (B, N)`` in level order, root 0."""
    return values.gather(1, index.paths[labels.long()])


def _check_tree(mine: TreeIndex, theirs: TreeIndex) -> None:
    if mine.fingerprint != theirs.fingerprint:
        raise ArgumentError("classifier must have the tree of the loss, got another one; build both with the same")
