"""Collapse metrics of samples, which need a second look once the class means are known."""

from __future__ import annotations

from collections.abc import Iterable
from functools import cached_property
from typing import TYPE_CHECKING, TypeVar

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from tightframe.errors import (
    ArgumentError,
    EmptyDataError,
    ShapeError,
    as_labels,
    as_tensor,
    check_features,
    check_finite,
    check_label_range,
    check_labels,
)
from tightframe.moments import ClassMoments

if TYPE_CHECKING:
    from tightframe.functional.registry import Row

T = TypeVar("T")


class Judge:
    """Judge samples by class means and class vectors, batch by batch.

    Numbers that every batch needs from the means and the class vectors are computed once, at the first use.

    Args:
        moments: Moments of the *training* features, also when the samples are not; None if no row needs means.
        weight: Class vectors ``(K, d)``; None if no row needs them.

    Example:
        >>> from tightframe.functional.registry import select
        >>> moments = ClassMoments.from_samples(torch.tensor([[0.0], [4.0]]), torch.tensor([0, 1]), 2)
        >>> rows = select(["ncc.accuracy"], {"means", "samples"})
        >>> Judge(moments).look(rows, torch.tensor([[1.0], [1.5]]), torch.tensor([0, 1]))
        {'ncc.accuracy': tensor([1., 0.], dtype=torch.float64)}
    """

    def __init__(self, moments: ClassMoments | None, weight: Tensor | None = None) -> None:
        self._moments = moments
        self._weight = weight

    def look(
        self,
        rows: Iterable[Row],
        features: Tensor,
        labels: Tensor | None = None,
        logits: Tensor | None = None,
        decision: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """Return the value of every sample, for each row of the registry that looks at samples.

        Args:
            rows: Rows that :func:`tightframe.functional.registry.select` returned; rows that need no samples are
                skipped.
            features: Inputs of the classifier ``(B, d)``, finite.
            labels: Labels ``(B,)`` in 0..K-1; None if no row needs them.
            logits: Outputs of the network ``(B, K)``, finite; None if no row needs them.
            decision: Classes ``(B,)`` of the largest logits, if the logits were not kept.

        Returns:
            From the id of the row to ``(B,)`` float64 values.

        Raises:
            DtypeError, ShapeError, LabelError, NonFiniteError: if a tensor is not as above.
            ArgumentError: if a row needs moments, class vectors or logits that are not given.
        """
        look = Look(self, features, labels, logits, decision)
        return {
            row.id: row.metric.function(look, **row.options)
            for row in rows
            if "samples" in row.metric.needs and row.metric.function is not None
        }

    @property
    def moments(self) -> ClassMoments:
        """Moments that the samples are judged by."""
        return _given(self._moments, "moments")

    @cached_property
    def weight(self) -> Tensor:
        """Class vectors ``(K, d)``, K >= 2, in float64."""
        weight, expected = _given(self._weight, "weight"), (max(self.moments.num_classes, 2), self.moments.dim)
        if weight.shape != expected:
            raise ShapeError(f"weight must have shape (K, d) = {expected}, got {tuple(weight.shape)}")
        check_finite(weight, "weight")
        return weight.detach().double()

    @cached_property
    def origin(self) -> Tensor:
        """Mean of the class means ``(d,)``."""
        return self.moments.global_mean()

    @cached_property
    def centers(self) -> tuple[Tensor, Tensor, Tensor]:
        """Present classes ``(K',)``, their means less the global mean ``(K', d)``, half of their squares ``(K',)``."""
        classes = self.moments.present.nonzero().squeeze(1)
        centers = self.moments.mean[classes] - self.origin
        return classes, centers, centers.square().sum(dim=1) / 2

    @cached_property
    def directions(self) -> Tensor:
        """Class vectors less their mean, normalised ``(K, d)``; those of absent classes too."""
        rows = self.weight - self.weight.mean(dim=0)
        return rows / torch.linalg.vector_norm(rows, dim=1, keepdim=True)


class Look:
    """One batch, with numbers that several rows need, computed once. Rows of samples are functions of a look.

    Args:
        judge: Judge that holds class means and class vectors.
        features: Features ``(B, d)``.
        labels: Labels ``(B,)``, None if no function reads them.
        logits: Logits ``(B, K)``, None if no function reads them.
        decision: Classes ``(B,)`` of the largest logits, if the logits were not kept.
    """

    def __init__(
        self,
        judge: Judge,
        features: Tensor,
        labels: Tensor | None = None,
        logits: Tensor | None = None,
        decision: Tensor | None = None,
    ) -> None:
        features = as_tensor(features, "features").detach()
        check_features(features)
        check_finite(features)
        if labels is not None:
            labels = as_labels(labels)
            check_labels(labels, features)
        self.judge, self.features = judge, features
        self._labels, self._logits, self._decision = labels, logits, decision

    @property
    def _num_classes(self) -> int:
        moments = self.judge._moments
        return _given(self._logits, "logits").shape[-1] if moments is None else moments.num_classes

    @cached_property
    def labels(self) -> Tensor:
        """Labels ``(B,)`` int64, in 0..K-1."""
        labels = _given(self._labels, "labels")
        check_label_range(labels, self._num_classes)
        return labels

    @cached_property
    def logits(self) -> Tensor:
        """Logits ``(B, K)``, finite."""
        logits, expected = as_tensor(_given(self._logits, "logits"), "logits"), (len(self.features), self._num_classes)
        if logits.shape != expected:
            raise ShapeError(f"logits must have shape (B, K) = {expected}, got {tuple(logits.shape)}")
        check_finite(logits, "logits")
        return logits.detach()

    @cached_property
    def centered(self) -> Tensor:
        """Features less the mean of the class means ``(B, d)``, in float64."""
        check_features(self.features, self.judge.moments.dim)
        return self.features.double() - self.judge.origin

    @cached_property
    def nearest(self) -> Tensor:
        """Class whose mean is nearest ``(B,)``, see :func:`nearest_class_center`."""
        classes, centers, half_squares = self.judge.centers
        return classes[_products(self.centered, centers).sub_(half_squares).max(dim=1).indices]

    @cached_property
    def decision(self) -> Tensor:
        """Class of the largest logit ``(B,)``."""
        return self.logits.argmax(dim=1) if self._decision is None else self._decision

    @property
    def decision_without_bias(self) -> Tensor:
        """Class of the largest product with a class vector ``(B,)``."""
        return (self.features.double() @ self.judge.weight.T).argmax(dim=1)


def agreement(look: Look, one: str, other: str, *, wanted: bool = True) -> Tensor:
    """Whether two classes of a sample, attributes of the look, are equal, or whether they differ."""
    return ((getattr(look, one) == getattr(look, other)) == wanted).double()


def entropy(look: Look) -> Tensor:
    """Cross-entropy: minus the log of the probability that the network gives the label."""
    return cross_entropy(look.logits.double(), look.labels, reduction="none")


def margin(look: Look, weighting: str = "class") -> Tensor:
    """Cosine margin, see :func:`cosine_margins`."""
    centered = look.centered
    if weighting != "class":
        centered = look.features.double() - look.judge.moments.global_mean(weighting)
    cosines = _products(centered, look.judge.directions).div_(torch.linalg.vector_norm(centered, dim=1, keepdim=True))
    own = look.labels.unsqueeze(1)
    mine = cosines.gather(1, own).squeeze(1)
    return mine - cosines.scatter_(1, own, -torch.inf).amax(dim=1)


def _products(samples: Tensor, vectors: Tensor) -> Tensor:
    """Return the products of samples with vectors ``(B, K)``, transposed where this is faster."""
    few = 16 * len(vectors) < len(samples)
    return (vectors @ samples.T).T if few else samples @ vectors.T


def nearest_class_center(features: Tensor, moments: ClassMoments) -> Tensor:
    r"""Return for each sample the class whose mean is nearest, :math:`\arg\min_k\lVert h-\mu_k\rVert`.

    Distances are compared in float64 around the global mean, so a common offset of the features costs no digits.

    Args:
        features: Features ``(B, d)``, finite.
        moments: Moments of the training features; absent classes are never chosen.

    Returns:
        ``(B,)`` class indices; of equally near classes the first.

    Raises:
        EmptyDataError: if the moments have seen no sample.

    Example:
        >>> moments = ClassMoments.from_samples(torch.tensor([[0.0], [4.0]]), torch.tensor([0, 1]), 2)
        >>> nearest_class_center(torch.tensor([[1.0], [3.0]]), moments)
        tensor([0, 1])
    """
    return Look(Judge(moments), features).nearest


def ncc_accuracy(features: Tensor, labels: Tensor, moments: ClassMoments) -> Tensor:
    """Share of samples whose nearest class mean is that of their label (Galanti, György & Hutter 2022).

    Args:
        features: Features ``(B, d)``.
        labels: Labels ``(B,)`` in 0..K-1.
        moments: Moments of the *training* features, also when the samples are not.

    Returns:
        A number in [0, 1].
    """
    return agreement(_some(Look(Judge(moments), features, labels)), "nearest", "labels").mean()


def nc4_agreement(features: Tensor, logits: Tensor, moments: ClassMoments) -> Tensor:
    """Share of samples on which the network decides as the nearest class mean does (Papyan, Han & Donoho 2020, fig. 7).

    The decision of the network is its largest logit, bias included. One minus this number is the mismatch that some
    papers plot.

    Args:
        features: Inputs of the classifier ``(B, d)``.
        logits: Outputs of the network ``(B, K)``.
        moments: Moments of the training features.

    Returns:
        A number in [0, 1]; 1 at collapse.
    """
    return agreement(_some(Look(Judge(moments), features, logits=logits)), "nearest", "decision").mean()


def cosine_margins(
    features: Tensor, labels: Tensor, moments: ClassMoments, weight: Tensor, *, weighting: str = "class"
) -> Tensor:
    r"""Cosine margin of every sample (Markou, Ajanthan & Gould 2024, section 4); sorted they are its curve P_CM.

    .. math:: \cos(h-\mu_G,\,w_y-\bar w)-\max_{j\ne y}\cos(h-\mu_G,\,w_j-\bar w)

    Args:
        features: Inputs of the classifier ``(B, d)``.
        labels: Labels ``(B,)`` in 0..K-1.
        moments: Moments whose global mean centres the features.
        weight: Rows of the classifier ``(K, d)``, K >= 2.
        weighting: Global mean, ``"class"`` or, as in the published code, ``"sample"``.

    Returns:
        ``(B,)`` float64 in [-2, 2]; K/(K - 1) at collapse; nan for a sample at the global mean.
    """
    return margin(_some(Look(Judge(moments, weight), features, labels)), weighting)


def numerical_rank(features: Tensor, labels: Tensor, num_classes: int) -> Tensor:
    r"""Numerical rank of the uncentred features of a class, averaged over classes (Markou, Ajanthan & Gould 2024).

    .. math:: \operatorname{mean}_k\,(\lVert H_k\rVert_*/\lVert H_k\rVert_F)^2

    Args:
        features: Features ``(B, d)``.
        labels: Labels ``(B,)`` in 0..K-1.
        num_classes: Number of classes K.

    Returns:
        A number in [1, min(B, d)]; 1 at collapse. Absent classes are left out; nan if a class has only zero features.
    """
    _some(Look(Judge(None), features, labels))
    check_label_range(labels, num_classes)
    ranks = []
    for k in labels.unique():
        singular_values = torch.linalg.svdvals(features[labels == k].detach().double())
        ranks.append((singular_values.sum() / torch.linalg.vector_norm(singular_values)).square())
    return torch.stack(ranks).mean()


def _some(look: Look) -> Look:
    if not len(look.features):
        raise EmptyDataError("features must hold at least one sample, got none")
    return look


def _given(value: T | None, name: str) -> T:
    if value is None:
        raise ArgumentError(f"{name} must be given for these metrics, got None")
    return value
