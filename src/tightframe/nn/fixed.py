"""Classifiers over a fixed frame: a simplex ETF, or any other."""

from __future__ import annotations

from typing import Any, final

import torch
from torch import Tensor, nn

from tightframe.errors import check_positive
from tightframe.frames.operator import Frame, MatrixFrame, as_frame
from tightframe.frames.simplex import SimplexETF
from tightframe.nn.classifiers import ScaledClassifier, like_linear


class FixedClassifier(ScaledClassifier):
    """A scaled classifier over a frame that is never trained; the matrix of a frame that stores one is a buffer."""

    class_matrix: Tensor
    _anchor: Tensor

    def __init__(self, frame: Frame, scale: float, learn_scale: bool, normalize: bool) -> None:
        # Without a parameter or buffer the module would not know its device and dtype.
        anchor = torch.empty(0, dtype=frame.dtype, device=frame.device)
        super().__init__(frame.dim, frame.num_classes, scale, learn_scale, normalize, anchor)
        self._implicit = None if frame.stored else frame
        self.register_buffer("class_matrix", frame.as_matrix().detach().clone() if frame.stored else None)
        self.register_buffer("_anchor", anchor, persistent=False)

    @property
    def frame(self) -> Frame:
        """The class vectors as a frame, in the dtype and on the device of this module."""
        if self._implicit is None:
            return MatrixFrame(self.class_matrix)
        return self._implicit.to(dtype=self._anchor.dtype, device=self._anchor.device)


@final
class SimplexETFClassifier(FixedClassifier):
    r"""A fixed simplex ETF as classifier, with no trainable parameter unless the scale is learned.

    :math:`z = s\, W h / \lVert h\rVert` (Yang et al., NeurIPS 2022, arXiv 2203.09081), W as in :class:`SimplexETF`. A
    zero feature has zero logits, and zero gradient when features are normalised. The Haar matrix is the buffer
    ``class_matrix``: a state restores it bit for bit, whatever the seed. The canonical orientation stores nothing, so
    the state of the other orientation fails to load, with a missing or an unexpected key. A module cast to half
    precision rounds a Haar frame; autocast does not.

    Args:
        dim: Feature dimension d >= K - 1.
        num_classes: Number of classes K >= 2.
        orientation: Word ``"haar"`` (random, from the seed) or ``"canonical"`` (on the first coordinates; O(K + d)
            work).
        seed: Seed of the Haar draw, >= 0; the frame depends on nothing else.
        scale: Positive factor of the logits. With cross-entropy on normalised features choose 10 or more: cosines
            alone cannot make a confident softmax.
        learn_scale: Whether to train the scale, as the parameter ``log_scale``.
        normalize: Whether to divide features by their norm.
        device: Device of the buffer; None is PyTorch's default.
        dtype: Type of the buffer; None is PyTorch's default.

    Raises:
        ArgumentError: if an argument is outside its range.
        DimensionError: if d < K - 1.

    Example:
        >>> classifier = SimplexETFClassifier(4, 3, orientation="canonical")
        >>> classifier(torch.tensor([[1.0, 0.0, 0.0, 0.0], [0.0, 0.0, 0.0, 9.0]])).argmax(dim=1).tolist()[0]
        0
        >>> sum(p.numel() for p in classifier.parameters()), len(classifier.state_dict())
        (0, 0)
    """

    def __init__(
        self,
        dim: int,
        num_classes: int,
        *,
        orientation: str = "haar",
        seed: int = 0,
        scale: float = 1.0,
        learn_scale: bool = False,
        normalize: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        check_positive("seed", seed, 0)
        generator = torch.Generator(device="cpu").manual_seed(seed)
        frame = SimplexETF(num_classes, dim, orientation=orientation, generator=generator, dtype=dtype, device=device)
        super().__init__(frame, scale, learn_scale, normalize)
        self.orientation = orientation

    @classmethod
    def from_linear(cls, linear: nn.Linear, **options: Any) -> SimplexETFClassifier:
        """Return a classifier of the sizes, device and dtype of ``linear``; its weight and bias are not used.

        Args:
            linear: Classifier to replace.
            options: Further arguments of the constructor, for example ``seed``.
        """
        return cls(**like_linear(linear), **options)

    def extra_repr(self) -> str:
        """Return sizes and options for ``repr``."""
        return f"{super().extra_repr()}, orientation={self.orientation!r}"


@final
class FrameClassifier(FixedClassifier):
    """Any fixed frame as classifier, with no trainable parameter unless the scale is learned.

    The matrix of a frame that stores one becomes the buffer ``class_matrix``, a copy; other frames store nothing. A
    zero feature has zero logits, and zero gradient when features are normalised.

    Args:
        frame: Frame, or its matrix ``(K, d)``; lengths of its rows are kept.
        scale: Positive factor of the logits; about 10 or more for cross-entropy on normalised features.
        learn_scale: Whether to train the scale, as the parameter ``log_scale``.
        normalize: Whether to divide features by their norm.
        device: Device of the buffer; None is that of the frame.
        dtype: Type of the buffer; None is PyTorch's default, whatever the type of the frame.

    Raises:
        ArgumentError: if the scale is not a finite number > 0.
        DtypeError, ShapeError: if the matrix is not floating point and two-dimensional.

    Example:
        >>> FrameClassifier(torch.eye(3), scale=2.0)(torch.tensor([0.0, 5.0, 0.0])).tolist()
        [0.0, 2.0, 0.0]
        >>> from tightframe.frames import hierarchy_aware_frame
        >>> distances = torch.tensor([[0.0, 1.0, 2.0], [1.0, 0.0, 2.0], [2.0, 2.0, 0.0]])
        >>> classifier = FrameClassifier(hierarchy_aware_frame(distances, dim=2), normalize=False)
        >>> z = classifier(classifier.weight[0])
        >>> bool(z[0] > z[1] > z[2])
        True
    """

    def __init__(
        self,
        frame: Frame | Tensor,
        *,
        scale: float = 1.0,
        learn_scale: bool = False,
        normalize: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        frame = as_frame(frame).to(dtype=dtype or torch.get_default_dtype(), device=device)
        super().__init__(frame, scale, learn_scale, normalize)
