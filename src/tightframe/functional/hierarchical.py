"""Losses that know a hierarchy of the classes, as pure functions."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from tightframe.errors import (
    ArgumentError,
    DeviceError,
    ShapeError,
    check_choice,
    check_features,
    check_label_range,
    check_labels,
    check_positive,
    check_range,
)
from tightframe.hierarchy import Tree, check_distances
from tightframe.hierarchy.index import TreeIndex, below_root, edge_log_probabilities, tree_index
from tightframe.linalg import at_least_float32, outside_autocast, reciprocal_norm

SCHEDULES = ("constant", "falling", "rising", "wave", "rising-wave", "falling-wave")


def soft_labels(distances: Tensor, beta: float) -> Tensor:
    r"""Return label distributions that forgive near mistakes (Bertinetto et al., CVPR 2020, arXiv 1912.09393).

    :math:`q_{yc} \propto \exp(-\beta D_{yc} / \max D)`; as beta grows they become one-hot.

    Args:
        distances: ``(K, K)`` of the classes.
        beta: finite and > 0; the paper has 4 to 30.

    Returns:
        ``(K, K)`` float64, row y the distribution of label y.

    Raises:
        ArgumentError: if ``beta`` is out of range.
        ArgumentError, DtypeError, ShapeError: as :func:`tightframe.hierarchy.check_distances`, or if K = 1.

    Example:
        >>> D = torch.tensor([[0.0, 1.0], [1.0, 0.0]])
        >>> soft_labels(D, beta=math.log(3))[0]
        tensor([0.7500, 0.2500], dtype=torch.float64)
    """
    check_soft_labels(distances, beta)
    return F.softmax(-beta * distances.double() / distances.double().max(), dim=1)


def soft_label_loss(logits: Tensor, labels: Tensor, distances: Tensor, beta: float) -> Tensor:
    r"""Return the mean of :math:`\mathrm{KL}(q_y \Vert \mathrm{softmax}(z))` for the :func:`soft_labels` q.

    The mean is over the samples: the published code divides by K as well. As beta grows this becomes cross-entropy.

    Args:
        logits: ``(B, K)``; computed in float32 or better.
        labels: ``(B,)`` integers in 0..K-1; their values are checked on the CPU only.
        distances: ``(K, K)`` of the classes.
        beta: finite and > 0.

    Returns:
        a 0-d tensor, >= 0; nan for an empty batch, as every loss here.

    Raises:
        ArgumentError: if ``beta`` is out of range, or as :func:`soft_labels`.
        DtypeError, ShapeError, DeviceError, LabelError: if logits and labels are not as above.

    Example:
        >>> D = torch.tensor([[0.0, 1.0], [1.0, 0.0]])
        >>> round(soft_label_loss(torch.zeros(1, 2), torch.tensor([0]), D, beta=50.0).exp().item(), 6)
        2.0
    """
    check_soft_labels(distances, beta)
    return soft_label_divergence(logits, labels, distances, beta / float(distances.max()))


def soft_label_divergence(logits: Tensor, labels: Tensor, distances: Tensor, rate: float) -> Tensor:
    """Return :func:`soft_label_loss` for ``rate = beta / max D``, without a look at the distances as a whole."""
    check_batch(logits, labels, len(distances))
    wide = at_least_float32(logits)
    targets = F.log_softmax(-rate * distances.to(wide.device)[labels.long()].to(wide.dtype), dim=1)
    return F.kl_div(F.log_softmax(wide, dim=1), targets, reduction="batchmean", log_target=True)


def check_soft_labels(distances: Tensor, beta: float) -> None:
    """Check distances ``(K, K)`` of K >= 2 classes and the beta of their soft labels."""
    check_distances(distances)
    if len(distances) < 2:
        raise ShapeError(f"distances must be of at least two classes, got shape {tuple(distances.shape)}")
    check_range("beta", beta, beta > 0, "> 0")


def hxe(logits: Tensor, labels: Tensor, tree: Tree | TreeIndex, alpha: float) -> Tensor:
    r"""Return the mean hierarchical cross-entropy (Bertinetto et al., CVPR 2020, arXiv 1912.09393).

    .. math:: -\sum_{v \in \mathrm{path}(y),\, v \neq \mathrm{root}} \lambda_v \log\frac{p(v)}{p(\mathrm{parent}(v))},
              \qquad \lambda_v = e^{-\alpha\,\mathrm{depth}(v)} / Z

    with p the softmax over the classes, p(v) its sum over those below v, and Z the sum of :math:`e^{-\alpha\,
    \mathrm{depth}}` over all nodes, the root too. With alpha = 0 it is cross-entropy divided by the number of nodes.

    Args:
        logits: ``(B, K)``; computed in float32 or better, exactly so at logits of any size.
        labels: ``(B,)`` integers in 0..K-1; their values are checked on the CPU only.
        tree: of the classes, or its :func:`~tightframe.hierarchy.index.tree_index` on the device of the logits.
        alpha: finite and >= 0; the paper has 0.1 to 0.6. More weighs the coarse levels more.

    Returns:
        a 0-d tensor.

    Raises:
        ArgumentError: if ``alpha`` is out of range, or ``tree`` no tree.
        DtypeError, ShapeError, DeviceError, LabelError: if logits and labels are not as above.

    Example:
        >>> tree = Tree.from_nested({"E": ["A", "B"], "F": ["C", "D"]})
        >>> loss = hxe(torch.tensor([[2.0, 1.0, 0.0, -1.0]]), torch.tensor([1]), tree, alpha=0.0)
        >>> round(7 * loss.item(), 4)
        1.4402
    """
    check_range("alpha", alpha, alpha >= 0, ">= 0")
    index = tree_index(tree, logits.device)
    check_batch(logits, labels, index.num_classes)
    edges = _path_values(edge_log_probabilities(logits, index), labels, index)
    # Of the smallest exponents none overflows, whatever alpha is.
    decay = [math.exp(-alpha * level) for level in range(len(index.sizes))]
    total = sum(size * share for size, share in zip(index.sizes, decay, strict=True))
    return -(edges @ edges.new_tensor([share / total for share in decay[1:]])).mean()


def hace(logits: Tensor, labels: Tensor, tree: Tree | TreeIndex, d_il: float) -> Tensor:
    r"""Return the mean hierarchy-aware cross-entropy (HACE).

    .. math:: -\sum_v T_{vy} \log P(v)

    P(v) is the softmax over all nodes summed over v and everything below it. Along the path from the leaf upward T is
    :math:`d (1 - d)^i`, and the root takes the remainder. There is no floor under P(v), which the released code has and
    which silences the gradient of a confident mistake. With logits of the leaves alone it is an unnormalised
    :func:`hxe` whose edges weigh :math:`1 - (1 - d)^{i+1}`; with d = 1 that is cross-entropy.

    Args:
        logits: ``(B, N)`` of all nodes by their number in the tree, or ``(B, K)`` of the classes alone.
        labels: ``(B,)`` integers in 0..K-1; their values are checked on the CPU only.
        tree: of the classes, or its :func:`~tightframe.hierarchy.index.tree_index` on the device of the logits.
        d_il: share d of the leaf, in (0, 1]; the released code has 0.2, 0.5 and 0.7.

    Returns:
        a 0-d tensor.

    Raises:
        ArgumentError: if ``d_il`` is out of range, or ``tree`` no tree.
        DtypeError, ShapeError, DeviceError, LabelError: if logits and labels are not as above.

    Example:
        >>> tree = Tree.from_nested({"E": ["A", "B"], "F": ["C", "D"]})
        >>> round(hace(torch.tensor([[2.0, 1.0, 0.0, -1.0]]), torch.tensor([1]), tree, d_il=1.0).item(), 4)
        1.4402
    """
    check_range("d_il", d_il, 0 < d_il <= 1, "in (0, 1]")
    index = tree_index(tree, logits.device)
    check_features(logits, name="logits")
    if logits.shape[1] != index.num_nodes:
        _check_width(logits, index.num_classes, f"K = {index.num_classes} or N = {index.num_nodes}")
    check_batch(logits, labels, index.num_classes, width=logits.shape[1])
    edges = _path_values(edge_log_probabilities(logits, index), labels, index)
    height = (index.depth[labels.long()].unsqueeze(1) - torch.arange(edges.shape[1], device=edges.device)).clamp_min(0)
    # Below its leaf a path has edges of value 0 and height 0.
    weight = 1 - (1 - d_il) ** height.to(edges.dtype)
    return -(weight * edges).sum(dim=1).mean()


def hier_cos(coordinates: Tensor, labels: Tensor, tree: Tree | TreeIndex, alpha: float) -> Tensor:
    r"""Return the loss of Hier-COS on coordinates o, one for each node but the root.

    .. math:: \mathrm{KL}(q_y \Vert \mathrm{softmax}\lvert o\rvert) + \alpha L_\mathrm{reg}

    On the path of y, of length L, :math:`q_\ell \propto \exp(2 / (L - \ell + 1))`. :math:`L_\mathrm{reg}` adds up over
    the levels the mean of :math:`\lVert \mathrm{onehot} - \lvert o_\ell\rvert / \lVert o_\ell\rVert_2\rVert_1` over the
    samples whose path reaches the level, and the mean of :math:`\lVert o_\ell\rVert_1` over the others. It sees no
    sign: measure features of this loss by ``|o|``.

    Args:
        coordinates: ``(B, N - 1)`` of all nodes but the root, by their number in the tree less one; computed in float32
            or better.
        labels: ``(B,)`` integers in 0..K-1; their values are checked on the CPU only.
        tree: of the classes, or its :func:`~tightframe.hierarchy.index.tree_index` on the device of the coordinates.
        alpha: finite and >= 0; the released code has 0.1 to 1e-5.

    Returns:
        a 0-d tensor.

    Raises:
        ArgumentError: if ``alpha`` is out of range, or ``tree`` no tree.
        DtypeError, ShapeError, DeviceError, LabelError: if coordinates and labels are not as above.

    Example:
        >>> tree = Tree.from_nested({"root": ["A", "B"]})
        >>> round(hier_cos(torch.tensor([[0.0, 0.0]]), torch.tensor([1]), tree, alpha=0.0).exp().item(), 6)
        2.0
    """
    check_range("alpha", alpha, alpha >= 0, ">= 0")
    index = tree_index(tree, coordinates.device)
    check_batch(coordinates, labels, index.num_classes, width=index.num_nodes - 1, name="coordinates")
    sizes = below_root(at_least_float32(coordinates).abs(), index)
    left = index.depth[labels.long()].unsqueeze(1) - torch.arange(index.paths.shape[1], device=sizes.device)
    reached = left > 0
    exponent = torch.where(reached, 2 / left.clamp_min(1).to(sizes.dtype), -torch.inf)
    target = F.softmax(exponent, dim=1)
    edges = _path_values(F.pad(F.log_softmax(sizes, dim=1), (1, 0)), labels, index)
    divergence = (torch.special.xlogy(target, target) - target * edges).sum(dim=1).mean()
    return divergence + alpha * _off_path(sizes, labels, reached, index) if alpha else divergence


def _off_path(sizes: Tensor, labels: Tensor, reached: Tensor, index: TreeIndex) -> Tensor:
    """Return L_reg of ``|o| (B, N - 1)`` in level order; ``reached (B, H)`` tells which levels a path has."""
    levels = sizes.split(index.sizes[1:], dim=1)
    units = [level * reciprocal_norm(level) for level in levels]
    own = _path_values(F.pad(torch.cat(units, dim=1), (1, 0)), labels, index)
    # The share of the own node is at most 1, so its distance to 1 needs no absolute value.
    inside = torch.stack([unit.sum(dim=1) for unit in units], dim=1) + 1 - 2 * own
    outside = torch.stack([level.sum(dim=1) for level in levels], dim=1)
    count = reached.sum(dim=0)
    rest = reached.shape[0] - count
    inside = torch.where(reached, inside, 0.0).sum(dim=0) / count.clamp_min(1)
    outside = torch.where(reached, 0.0, outside).sum(dim=0) / rest.clamp_min(1)
    return (inside + outside).sum()


def cosine_gram(features: Tensor, labels: Tensor, weight: Tensor, gram: Tensor | None = None) -> Tensor:
    r"""Return how far features are from the angles that their class vectors have to all the others (HAFrame).

    .. math:: \frac{1}{B} \sum_i \sum_c (\cos(w_c, x_i) - G_{y_i c})^2

    as one matrix product. With the cosines of ``weight`` itself it is 0 exactly where each feature points along its
    class vector. A zero feature has cosine 0 to every class, and gradient 0.

    Args:
        features: ``(B, d)``; computed in float32 or better, autocast or not.
        labels: ``(B,)`` integers in 0..K-1; their values are checked on the CPU only.
        weight: ``(K, d)`` class vectors of any lengths.
        gram: G ``(K, K)``, wanted cosines; None is those of ``weight``.

    Returns:
        a 0-d tensor.

    Raises:
        DtypeError, ShapeError, DeviceError, LabelError: if an argument is not as above, or not where the others are.

    Example:
        >>> cosine_gram(torch.tensor([[0.0, 3.0]]), torch.tensor([0]), torch.eye(2)).item()
        2.0
    """
    check_features(weight, name="weight")
    check_features(features, weight.shape[1])
    _check_place(weight, features, "weight")
    check_batch(features, labels, weight.shape[0], width=weight.shape[1], name="features")
    labels = labels.long()
    with outside_autocast(features.device):
        features = at_least_float32(features)
        unit, rows = (x * reciprocal_norm(x) for x in (features, weight.to(features.dtype)))
        if gram is None:
            # cos(w_c, x) - cos(w_c, w_y) is one inner product with w_c.
            gaps = (unit - rows[labels]) @ rows.T
        else:
            if gram.shape != (weight.shape[0], weight.shape[0]):
                expected = (weight.shape[0], weight.shape[0])
                raise ShapeError(f"gram must have shape (K, K) = {expected}, got {tuple(gram.shape)}")
            _check_place(gram, features, "gram")
            gaps = unit @ rows.T - gram.to(features.dtype)[labels]
        return gaps.square().sum(dim=1).mean()


def cosine_gram_weights(
    schedule: str, epoch: int = 0, *, alpha: float | None = None, epochs: int | None = None, period: int | None = None
) -> tuple[float, float]:
    r"""Return the weights (beta, alpha) of cross-entropy and :func:`cosine_gram` at an epoch.

    With t of T epochs done, at most T, and :math:`u = \frac{1}{2}(1 - \cos(2\pi t/p))`, alpha is

    - ``"constant"``: ``alpha``, and beta is 1 - alpha up to alpha = 1, and 1 above it;
    - ``"falling"``: 1 - t/T; ``"rising"``: t/T; ``"wave"``: u; ``"rising-wave"``: u t/T; ``"falling-wave"``: 1 - u t/T;
      and beta is 1 - alpha.

    Without any epochs, T = 0, all are done: t/T is 1.

    Args:
        schedule: one of these.
        epoch: t >= 0.
        alpha: finite and >= 0; for ``"constant"`` alone.
        epochs: T >= 0, for all others but ``"wave"``.
        period: p >= 1 epochs, for the three waves.

    Raises:
        ArgumentError: if an argument is out of range, missing or not used.

    Example:
        >>> cosine_gram_weights("constant", alpha=0.25), cosine_gram_weights("rising", 3, epochs=4)
        ((0.75, 0.25), (0.25, 0.75))
    """
    check_choice("schedule", schedule, SCHEDULES)
    check_positive("epoch", epoch, 0)
    _check_needed("alpha", alpha, schedule, schedule == "constant")
    _check_needed("epochs", epochs, schedule, schedule not in ("constant", "wave"))
    _check_needed("period", period, schedule, schedule.endswith("wave"))
    if alpha is not None:
        check_range("alpha", alpha, alpha >= 0, ">= 0")
        return (1 - alpha if alpha <= 1 else 1.0), float(alpha)
    share = wave = 1.0
    if epochs is not None:
        check_positive("epochs", epochs, 0)
        share = min(epoch / epochs, 1.0) if epochs else 1.0
    if period is not None:
        check_positive("period", period)
        wave = (1 - math.cos(2 * math.pi * epoch / period)) / 2
    weight = share * wave if schedule in ("rising", "wave", "rising-wave") else 1 - share * wave
    return 1 - weight, weight


def correlation_loss(features: Tensor, targets: Tensor) -> Tensor:
    r"""Return the mean of :math:`1 - \cos(x_i, w_{y_i})` (Barz & Denzler, WACV 2019, arXiv 1809.09924).

    A zero feature costs 1, with gradient 0. Computed in float32 or better.

    Args:
        features: ``(B, d)``.
        targets: ``(B, d)`` the class vector of each sample's label, of any length.

    Returns:
        a 0-d tensor.

    Raises:
        DtypeError, ShapeError: if features or targets are not floating point ``(B, d)`` of one shape.
        DeviceError: if they lie on different devices.

    Example:
        >>> round(correlation_loss(torch.tensor([[3.0, 4.0]]), torch.tensor([[2.0, 0.0]])).item(), 6)
        0.4
    """
    check_features(features)
    check_features(targets, features.shape[1], "targets")
    if features.shape != targets.shape:
        raise ShapeError(f"targets must have the shape of features {tuple(features.shape)}, got {tuple(targets.shape)}")
    _check_place(targets, features, "targets")
    features = at_least_float32(features)
    targets = targets.to(features.dtype)
    cosines = (features * reciprocal_norm(features) * (targets * reciprocal_norm(targets))).sum(dim=1)
    return (1 - cosines).mean()


def check_batch(
    values: Tensor, labels: Tensor, num_classes: int, *, width: int | None = None, name: str = "logits"
) -> None:
    """Check ``values (B, width)``, K wide if nothing is said, and labels beside them; labels are read on the CPU."""
    check_features(values, name=name)
    _check_width(values, num_classes if width is None else width, name=name)
    check_labels(labels, values)
    if labels.device.type == "cpu" and not torch.compiler.is_compiling():
        check_label_range(labels, num_classes)


def _check_width(values: Tensor, width: int, wanted: str = "", name: str = "logits") -> None:
    if values.shape[1] != width:
        raise ShapeError(f"{name} must have width {wanted or width}, got {values.shape[1]}")


def _check_place(values: Tensor, features: Tensor, name: str) -> None:
    if values.device != features.device:
        raise DeviceError(f"{name} is on {values.device} and features on {features.device}; move one with .to(device)")


def _check_needed(name: str, value: float | None, schedule: str, needed: bool) -> None:
    if (value is not None) != needed:
        verb = "be given" if needed else "be left out"
        raise ArgumentError(f"{name} must {verb} with schedule={schedule!r}, got {value!r}")


def _path_values(values: Tensor, labels: Tensor, index: TreeIndex) -> Tensor:
    """Return the values ``(B, H)`` on the path of each label, of ``values (B, N)`` in level order, root 0."""
    return values.gather(1, index.paths[labels.long()])
