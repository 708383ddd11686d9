"""Collapse metrics that look at the samples a second time, once the class means are known."""

from __future__ import annotations

import torch
from torch import Tensor

from tightframe._checks import (
    EmptyDataError,
    ShapeError,
    check_features,
    check_finite,
    check_label_range,
    check_labels,
)
from tightframe.functional.moments import ClassMoments


def nearest_class_center(features: Tensor, moments: ClassMoments) -> Tensor:
    r"""Return for each sample the class whose mean is nearest, :math:`\arg\min_k\lVert h-\mu_k\rVert`.

    Distances are compared in float64 around the global mean, so a common offset of the features costs no digits.

    Args:
        features: ``(B, d)``, finite.
        moments: of the training features; absent classes are never chosen.

    Returns:
        ``(B,)`` class indices; of equally near classes the first.

    Raises:
        EmptyDataError: if the moments have seen no sample.

    Example:
        >>> moments = ClassMoments.from_samples(torch.tensor([[0.0], [4.0]]), torch.tensor([0, 1]), 2)
        >>> nearest_class_center(torch.tensor([[1.0], [3.0]]), moments)
        tensor([0, 1])
    """
    check_features(features, moments.dim)
    check_finite(features)
    classes = moments.present.nonzero().squeeze(1)
    origin = moments.global_mean()
    centers = moments.mean[classes] - origin
    scores = (features.detach().double() - origin) @ centers.T - centers.square().sum(dim=1) / 2
    return classes[scores.argmax(dim=1)]


def ncc_accuracy(features: Tensor, labels: Tensor, moments: ClassMoments) -> Tensor:
    """Share of samples whose nearest class mean is that of their label (Galanti, György & Hutter 2022).

    Args:
        features: ``(B, d)``.
        labels: ``(B,)`` in 0..K-1.
        moments: of the *training* features, also when the samples are not.

    Returns:
        A number in [0, 1].
    """
    _check_samples(features, labels, moments.num_classes)
    return (nearest_class_center(features, moments) == labels).double().mean()


def nc4_agreement(features: Tensor, logits: Tensor, moments: ClassMoments) -> Tensor:
    """Share of samples on which the network decides as the nearest class mean does (Papyan, Han & Donoho 2020, fig. 7).

    The network speaks through its logits, bias included. One minus this is the mismatch that some papers plot.

    Args:
        features: ``(B, d)`` inputs of the classifier.
        logits: ``(B, K)`` its outputs.
        moments: of the training features.

    Returns:
        A number in [0, 1]; 1 at collapse.
    """
    if logits.shape != (features.shape[0], moments.num_classes):
        expected = (features.shape[0], moments.num_classes)
        raise ShapeError(f"logits must have shape (B, K) = {expected}, got {tuple(logits.shape)}")
    if not features.shape[0]:
        raise EmptyDataError("features must hold at least one sample, got none")
    check_finite(logits, "logits")
    return (nearest_class_center(features, moments) == logits.argmax(dim=1)).double().mean()


def cosine_margins(features: Tensor, labels: Tensor, moments: ClassMoments, weight: Tensor) -> Tensor:
    r"""Cosine margin of every sample (Markou, Ajanthan & Gould 2024, section 4); sorted they are its curve P_CM.

    .. math:: \cos(h-\mu_G,\,w_y-\bar w)-\max_{j\ne y}\cos(h-\mu_G,\,w_j-\bar w)

    Args:
        features: ``(B, d)`` inputs of the classifier.
        labels: ``(B,)`` in 0..K-1.
        moments: whose global mean (class weighting) centres the features.
        weight: ``(K, d)`` rows of the classifier, K >= 2.

    Returns:
        ``(B,)`` float64 in [-2, 2]; K/(K - 1) at collapse; nan where a sample lies at the global mean.
    """
    _check_samples(features, labels, moments.num_classes)
    check_features(features, moments.dim)
    if weight.shape != (moments.num_classes, moments.dim) or moments.num_classes < 2:
        expected = (max(moments.num_classes, 2), moments.dim)
        raise ShapeError(f"weight must have shape (K, d) = {expected}, got {tuple(weight.shape)}")
    rows = weight.detach().double()
    rows = rows - rows.mean(dim=0)
    rows = rows / torch.linalg.vector_norm(rows, dim=1, keepdim=True)
    centered = features.detach().double() - moments.global_mean()
    cosines = centered @ rows.T / torch.linalg.vector_norm(centered, dim=1, keepdim=True)
    own = labels.long().unsqueeze(1)
    rivals = cosines.scatter(1, own, -torch.inf).amax(dim=1)
    return cosines.gather(1, own).squeeze(1) - rivals


def numerical_rank(features: Tensor, labels: Tensor, num_classes: int) -> Tensor:
    r"""Numerical rank of the uncentred features of a class, averaged over classes (Markou, Ajanthan & Gould 2024).

    .. math:: \operatorname{mean}_k\,(\lVert H_k\rVert_*/\lVert H_k\rVert_F)^2

    Args:
        features: ``(B, d)``.
        labels: ``(B,)`` in 0..K-1.
        num_classes: K.

    Returns:
        A number in [1, min(B, d)]; 1 at collapse. Absent classes are left out; nan if a class has only zero features.
    """
    _check_samples(features, labels, num_classes)
    ranks = []
    for k in labels.unique():
        singular_values = torch.linalg.svdvals(features[labels == k].detach().double())
        ranks.append((singular_values.sum() / torch.linalg.vector_norm(singular_values)).square())
    return torch.stack(ranks).mean()


def _check_samples(features: Tensor, labels: Tensor, num_classes: int) -> None:
    check_features(features)
    check_labels(labels, features)
    check_label_range(labels, num_classes)
    check_finite(features)
    if not features.shape[0]:
        raise EmptyDataError("features must hold at least one sample, got none")
