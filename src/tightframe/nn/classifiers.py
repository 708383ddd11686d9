"""Classifiers: the last map from features to logits, over a fixed frame or over learned class vectors."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import Any, final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tightframe.errors import ArgumentError, check_positive, check_range
from tightframe.frames.operator import Frame, MatrixFrame
from tightframe.linalg import at_least_float32, reciprocal_norm


class Classifier(nn.Module, ABC):
    """A map from features ``(…, d)`` to logits ``(…, K)`` by one class vector a class.

    Attributes:
        in_features: Feature dimension d.
        out_features: Number of classes K.
        weight: Class vectors ``(K, d)`` as the product uses them; built on demand if they are not stored.
        bias: ``(K,)``, or None.
    """

    in_features: int
    out_features: int
    weight: Tensor
    bias: Tensor | None

    @abstractmethod
    def forward(self, features: Tensor, labels: Tensor | None = None) -> Tensor:
        """Return logits ``(…, K)`` of features ``(…, d)``.

        ``labels`` are those of a training batch. A classifier that follows the features reads them; the others do not.
        """

    @property
    def frame(self) -> Frame:
        """The class vectors as a frame."""
        return MatrixFrame(self.weight)

    def prepare(self, features: Tensor) -> Tensor:
        """Return features ``(…, d)`` as the class vectors meet them; collapse is measured on these."""
        return features

    def class_vectors(self, labels: Tensor) -> Tensor:
        """Return the rows ``(B, d)`` of :attr:`weight` for labels ``(B,)``; errors as in :meth:`Frame.rows`.

        No other row is read.
        """
        return self.frame.rows(labels)

    def export(self) -> nn.Linear:
        """Return an ``nn.Linear`` with the same argmax on every feature of unit length; its parameters are copies.

        Raises:
            ArgumentError: if no ``nn.Linear`` has it.
        """
        raise ArgumentError(
            f"{type(self).__name__} cannot be exported: no nn.Linear has the same argmax; use the classifier itself"
        )

    def project_(self) -> None:
        """Bring the parameters back to their constraint, if they have one; call it after each step of the optimiser."""

    def diagnostics(self) -> dict[str, Tensor]:
        """Return values to log at a training step, 0-d each; empty for a fixed classifier."""
        return {}

    def extra_repr(self) -> str:
        """Return the sizes for ``repr``."""
        return f"in_features={self.in_features}, out_features={self.out_features}"


@final
class LinearClassifier(Classifier):
    """The ordinary learned classifier, ``features @ weight.T + bias``.

    Parameters, their initial values and the keys of the state are those of ``nn.Linear``; autocast treats it the same.

    Args:
        dim: Feature dimension d >= 1.
        num_classes: Number of classes K >= 1.
        bias: Whether to learn a bias.
        device: Device of the parameters; None is PyTorch's default.
        dtype: Type of the parameters; None is PyTorch's default.

    Raises:
        ArgumentError: if a size is not a positive integer.

    Example:
        >>> LinearClassifier(4, 3)(torch.ones(2, 4)).shape
        torch.Size([2, 3])
    """

    def __init__(
        self,
        dim: int,
        num_classes: int,
        bias: bool = True,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        check_positive("dim", dim)
        check_positive("num_classes", num_classes)
        linear = nn.Linear(dim, num_classes, bias=bias, device=device, dtype=dtype)
        self.in_features = dim
        self.out_features = num_classes
        self.weight = linear.weight
        self.register_parameter("bias", linear.bias)

    @classmethod
    def from_linear(cls, linear: nn.Linear) -> LinearClassifier:
        """Return a classifier with copies of the parameters of ``linear``."""
        _check_linear(linear)
        sizes = linear.in_features, linear.out_features, linear.bias is not None
        classifier = cls(*sizes, device=linear.weight.device, dtype=linear.weight.dtype)
        classifier.load_state_dict(linear.state_dict())
        return classifier

    def forward(self, features: Tensor, labels: Tensor | None = None) -> Tensor:
        """Return logits ``(…, K)`` of features ``(…, d)``."""
        return F.linear(features, self.weight, self.bias)

    def export(self) -> nn.Linear:
        """Return an ``nn.Linear`` with copies of the parameters: the same logits."""
        return linear_of(self.weight, self.bias)


class ScaledClassifier(Classifier):
    """Logits ``scale * unit(h) @ W.T``, or ``scale * h @ W.T``, for the rows W of :attr:`frame`.

    The product, the norm and the scale are computed in float32 or better, autocast or not, and the logits have the
    dtype of the features.
    """

    log_scale: nn.Parameter | None

    def __init__(
        self, dim: int, num_classes: int, scale: float, learn_scale: bool, normalize: bool, like: Tensor
    ) -> None:
        super().__init__()
        check_range("scale", scale, scale > 0, "> 0")
        self.in_features = dim
        self.out_features = num_classes
        self.normalize = normalize
        self._fixed_scale = float(scale)
        self.register_parameter("bias", None)
        start = nn.Parameter(like.new_tensor(math.log(scale))) if learn_scale else None
        self.register_parameter("log_scale", start)

    @property
    @abstractmethod
    def frame(self) -> Frame:
        """The class vectors as a frame."""

    @property
    def scale(self) -> float | Tensor:
        """Factor of the logits: a number, or ``exp(log_scale)`` if it is learned, always positive."""
        return self._fixed_scale if self.log_scale is None else at_least_float32(self.log_scale).exp()

    @property
    def weight(self) -> Tensor:  # type: ignore[override]  # computed here, a parameter elsewhere
        """The class vectors ``(K, d)``, without the scale."""
        return self.frame.as_matrix()

    def prepare(self, features: Tensor) -> Tensor:
        """Return the features ``(…, d)``, at unit length if ``normalize``, in float32 or better."""
        wide = at_least_float32(features)
        return wide * reciprocal_norm(wide) if self.normalize else wide

    def forward(self, features: Tensor, labels: Tensor | None = None) -> Tensor:
        """Return logits ``(…, K)`` of features ``(…, d)``; errors as in :meth:`Frame.logits`."""
        wide = at_least_float32(features)
        logits = self.frame.logits(wide)
        factor = reciprocal_norm(wide) * self.scale if self.normalize else self.scale
        return (logits * factor).to(features.dtype)

    def export(self) -> nn.Linear:
        """Return an ``nn.Linear`` without bias whose weight is ``scale * weight``.

        With ``normalize=False`` its logits are those of this classifier. With ``normalize=True`` they are so on
        features of unit length. On any other feature they have the feature's norm as a factor: the argmax is the same,
        the confidence is not.
        """
        return linear_of((self.weight * self.scale).to(self.weight.dtype), None)

    def extra_repr(self) -> str:
        """Return sizes and options for ``repr``."""
        scale = "learned" if self.log_scale is not None else f"{self._fixed_scale:g}"
        return f"{super().extra_repr()}, scale={scale}, normalize={self.normalize}"


@final
class NormalizedLinear(ScaledClassifier):
    r"""Learned class vectors of unit length on features of unit length: :math:`z_k = s \cos(h, w_k)`.

    The learned counterpart of a fixed frame (NormFace: Wang et al., ACM MM 2017). The parameter is ``vectors``
    ``(K, d)`` of any length, :attr:`weight` their directions. A zero feature or vector has zero logits and zero
    gradient.

    With ``projected``, :meth:`project_` brings the vectors themselves to unit length after every step of the optimiser,
    and their gradient is not projected: the learned baseline of Markou, Ajanthan & Gould (NeurIPS 2024).

    Args:
        dim: Feature dimension d >= 1.
        num_classes: Number of classes K >= 1.
        scale: Positive factor of the cosines; cosines alone cannot make a confident softmax.
        learn_scale: Whether to train the scale, as the parameter ``log_scale``.
        projected: Whether to keep the vectors at unit length instead of dividing by their length.
        device: Device of the parameters; None is PyTorch's default.
        dtype: Type of the parameters; None is PyTorch's default.

    Raises:
        ArgumentError: if an argument is outside its range.

    Example:
        >>> classifier = NormalizedLinear(4, 3, scale=1.0)
        >>> bool((classifier(torch.randn(2, 4)).abs() <= 1.0001).all())
        True
    """

    def __init__(
        self,
        dim: int,
        num_classes: int,
        *,
        scale: float = 16.0,
        learn_scale: bool = False,
        projected: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        check_positive("dim", dim)
        check_positive("num_classes", num_classes)
        # The directions of Gaussian vectors are uniform; this variance makes the lengths about 1.
        vectors = torch.randn(num_classes, dim, device=device, dtype=dtype) / math.sqrt(dim)
        super().__init__(dim, num_classes, scale, learn_scale, True, vectors)
        self.vectors = nn.Parameter(vectors)
        self.projected = projected
        self.project_()

    @classmethod
    def from_linear(cls, linear: nn.Linear, **options: Any) -> NormalizedLinear:
        """Return a classifier that starts at the directions of ``linear.weight``; its bias is not used.

        Args:
            linear: Classifier to replace.
            options: Further arguments of the constructor, for example ``scale``.
        """
        classifier = cls(**like_linear(linear), **options)
        with torch.no_grad():
            classifier.vectors.copy_(linear.weight)
        classifier.project_()
        return classifier

    @torch.no_grad()
    def project_(self) -> None:
        """Divide the vectors by their lengths if ``projected``."""
        if self.projected:
            self.vectors.copy_(_unit(self.vectors))

    @property
    def frame(self) -> Frame:
        """The unit class vectors as a frame; gradients flow through it."""
        return MatrixFrame(self._directions(self.vectors))

    def class_vectors(self, labels: Tensor) -> Tensor:
        """Return the unit class vectors ``(B, d)`` of labels ``(B,)``; errors as in :meth:`Frame.rows`."""
        return self._directions(MatrixFrame(self.vectors).rows(labels))

    def _directions(self, vectors: Tensor) -> Tensor:
        return vectors if self.projected else _unit(vectors)


def _unit(vectors: Tensor) -> Tensor:
    """Return the vectors divided by their norms, zero where they are zero."""
    wide = at_least_float32(vectors)
    return (wide * reciprocal_norm(wide)).to(vectors.dtype)


def _check_linear(linear: nn.Linear) -> None:
    if not isinstance(linear, nn.Linear):
        raise ArgumentError(
            f"linear must be an nn.Linear, got {type(linear).__name__}; call the constructor with its sizes"
        )


def like_linear(linear: nn.Linear) -> dict[str, Any]:
    """Return sizes, device and dtype of ``linear`` as arguments of a classifier."""
    _check_linear(linear)
    sizes = {"dim": linear.in_features, "num_classes": linear.out_features}
    return {**sizes, "device": linear.weight.device, "dtype": linear.weight.dtype}


def linear_of(weight: Tensor, bias: Tensor | None) -> nn.Linear:
    """Return an ``nn.Linear`` that holds copies; nothing is drawn."""
    linear = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None, device="meta", dtype=weight.dtype)
    linear.weight = nn.Parameter(weight.detach().clone())
    if bias is not None:
        linear.bias = nn.Parameter(bias.detach().clone())
    return linear
