"""Classifiers over fixed frames whose cosines follow a hierarchy of the classes."""

from __future__ import annotations

from typing import Any, final

import torch
from torch import Tensor

from tightframe.errors import check_positive
from tightframe.frames.gram import GramFrame, frame_of_gram
from tightframe.frames.hierarchical import HierarchyAwareFrame, hierarchy_aware_frame, suggest_gamma
from tightframe.frames.operator import MatrixFrame
from tightframe.hierarchy import check_distances
from tightframe.nn.fixed import FixedClassifier


class _FoundClassifier(FixedClassifier):
    """A fixed classifier over a frame that was looked for, with what was found out about it as buffers."""

    gram: Tensor
    error: Tensor
    violations: Tensor

    def __init__(
        self, found: GramFrame | HierarchyAwareFrame, scale: float, learn_scale: bool, normalize: bool
    ) -> None:
        super().__init__(MatrixFrame(found.frame), scale, learn_scale, normalize)
        self.register_buffer("gram", found.gram)
        for name, value in zip(found._fields[2:], found[2:], strict=True):  # numbers, after frame and gram
            self.register_buffer(name, found.gram.new_tensor(value, dtype=torch.float64))


@final
class HierarchyAwareClassifier(_FoundClassifier):
    r"""A fixed frame whose cosines fall with the distance of the classes (HAFrame: Liang & Davis, ICCV 2023).

    :math:`z = s\, W x` of features as they are, without bias. The published head has s = 1, so that a confident softmax
    needs long features, and is trained by :class:`~tightframe.nn.CosineGramLoss`; in front of it,
    :class:`~tightframe.nn.FeatureTransform` is the published end of the backbone. Class vectors, their cosines and what
    is known of them are buffers and come back from a state bit for bit.

    At maximum separation the frame spans K - 1 dimensions: with ``dim = K`` features may hide in the one left over, so
    measure their alignment in the span, or take ``dim = K - 1``.

    Args:
        dim: feature dimension d >= 1; below K - 1 the cosines are approximate, see ``error``.
        distances: ``(K, K)`` of the classes, such as ``Tree.distances()``.
        gamma: how fast the cosines fall, > 0; None is :func:`~tightframe.frames.suggest_gamma`.
        asymptote: ``"max-separation"``, ``"grid"`` or a number, see
            :func:`~tightframe.frames.hierarchical.hierarchy_aware_frame`.
        repair: ``"raise"``, ``"shrink"``, ``"clip"`` or ``"nearest"``, for cosines that no vectors have; see there.
        seed: of the orientation, >= 0; the frame depends on nothing else.
        scale: positive factor of the logits.
        learn_scale: train the scale, as the parameter ``log_scale``.
        normalize: divide features by their norm; a scale of 10 or more is needed then.
        device: where the buffers lie; None is PyTorch's default.
        dtype: their type; None is PyTorch's default. The frame is computed in float64.

    Attributes:
        gram: ``(K, K)`` cosines that the frame aims at.
        asymptote: the s of these cosines, 0-d.
        gamma: γ, 0-d.
        error: largest difference of a cosine from the one asked for, 0-d.
        violations: share of order relations broken, 0-d.

    Raises:
        ArgumentError, DtypeError, ShapeError: if the distances are none, no vectors have such cosines and
            ``repair="raise"``, or an argument is outside its range.

    Example:
        >>> distances = torch.tensor([[0.0, 1.0, 2.0], [1.0, 0.0, 2.0], [2.0, 2.0, 0.0]])
        >>> classifier = HierarchyAwareClassifier(2, distances, gamma=1.0)
        >>> z = classifier(classifier.weight[0])
        >>> bool(z[0] > z[1] > z[2])
        True
    """

    asymptote: Tensor
    gamma: Tensor

    def __init__(
        self,
        dim: int,
        distances: Tensor,
        *,
        gamma: float | None = 1.0,
        asymptote: str | float = "max-separation",
        repair: str = "raise",
        seed: int = 0,
        scale: float = 1.0,
        learn_scale: bool = False,
        normalize: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        check_positive("dim", dim)
        found = hierarchy_aware_frame(
            distances,
            dim,
            gamma=suggest_gamma(distances) if gamma is None else gamma,
            asymptote=asymptote,
            repair=repair,
            **_drawn(seed, device, dtype),
        )
        super().__init__(found, scale, learn_scale, normalize)


@final
class BarzDenzlerClassifier(_FoundClassifier):
    r"""A fixed frame with cosines :math:`1 - D / \max D` (Barz & Denzler, WACV 2019, arXiv 1809.09924).

    Logits are s times the cosines of features and class vectors: train it with :class:`~tightframe.nn.CorrelationLoss`.

    Args:
        dim: feature dimension d >= 1; below K the cosines may be approximate.
        distances: ``(K, K)`` of the classes, such as ``Tree.distances()``.
        repair: ``"raise"``, ``"shrink"``, ``"clip"`` or ``"nearest"``, for cosines that no vectors have; see
            :func:`~tightframe.frames.gram.frame_of_gram`. Distances of a tree need none.
        seed: of the orientation, >= 0; the frame depends on nothing else.
        scale: positive factor of the logits.
        learn_scale: train the scale, as the parameter ``log_scale``.
        normalize: divide features by their norm.
        device: where the buffers lie; None is PyTorch's default.
        dtype: their type; None is PyTorch's default. The frame is computed in float64.

    Attributes:
        gram: ``(K, K)`` cosines that the frame aims at.
        error: largest difference of a cosine from the one asked for, 0-d.
        violations: share of order relations broken, 0-d.

    Raises:
        ArgumentError, DtypeError, ShapeError: if the distances are none, no vectors have such cosines and
            ``repair="raise"``, or an argument is outside its range.

    Example:
        >>> distances = torch.tensor([[0.0, 1.0, 2.0], [1.0, 0.0, 2.0], [2.0, 2.0, 0.0]])
        >>> weight = BarzDenzlerClassifier(3, distances, dtype=torch.float64).weight
        >>> torch.allclose(weight @ weight.T, 1 - distances.double() / 2)
        True
    """

    def __init__(
        self,
        dim: int,
        distances: Tensor,
        *,
        repair: str = "raise",
        seed: int = 0,
        scale: float = 1.0,
        learn_scale: bool = False,
        normalize: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        check_positive("dim", dim)
        check_distances(distances)
        wide = distances.detach().double()
        found = frame_of_gram(1 - wide / wide.max(), dim, repair=repair, **_drawn(seed, device, dtype))
        super().__init__(found, scale, learn_scale, normalize)


def _drawn(seed: int, device: torch.device | str | None, dtype: torch.dtype | None) -> dict[str, Any]:
    """Return how a frame is drawn and where it lies, as arguments of the functions that find it."""
    check_positive("seed", seed, 0)
    generator = torch.Generator(device="cpu").manual_seed(seed)
    device = torch.get_default_device() if device is None else device
    return {"generator": generator, "device": device, "dtype": dtype}
