"""NearestETFClassifier: the simplex ETF nearest to the class means, while these are learned."""

from __future__ import annotations

from typing import Any, final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tightframe.errors import check_choice, check_last_dimension, check_positive, check_range
from tightframe.frames.nearest import GRADIENTS, nearest_simplex_etf
from tightframe.frames.simplex import SimplexETF
from tightframe.linalg import at_least_float32, outside_autocast, reciprocal_norm
from tightframe.nn.classifiers import Classifier, like_linear, linear_of
from tightframe.nn.tracking import ClassMeanTracker

_DIAGNOSTICS = ("etf.drift", "etf.alignment", "etf.smallest_singular_value", "etf.rank")


@final
class NearestETFClassifier(Classifier):
    r"""A simplex ETF that follows the features (Markou, Ajanthan & Gould, NeurIPS 2024, arXiv 2411.01248).

    Logits are :math:`W \hat h + b` of features :math:`\hat h = \tau h / \lVert h\rVert`. W is the simplex ETF nearest
    to the tracked class means of :math:`\hat h` and :math:`b = -W \bar h` with their tracked global mean: nothing here
    is a parameter. Called with the labels of a training batch, ``classifier(features, labels)``, it first updates the
    means with the batch. Without labels, in eval mode or once frozen it does not, so evaluation depends on the state
    alone. Before the first batch W is a Haar frame and b is zero.

    Args:
        dim: Feature dimension d >= K - 1.
        num_classes: Number of classes K >= 2.
        scale: Length :math:`\tau` of the features; the paper has 5.
        proximal: Pull towards the W before, as in :func:`~tightframe.frames.nearest.nearest_simplex_etf`; not used
            for the first W. The paper's absolute :math:`\delta = 10^{-3}` is ``proximal = 1e-3 * (K - 1) / 2``.
        momentum: Momentum of the tracked means, see :class:`ClassMeanTracker`; None is the paper's growing window.
        gradient: Word ``"none"``, or ``"exact"`` to differentiate W and b by the features of the batch too, in the
            logits; a :class:`~tightframe.nn.FeatureLoss` takes W as constant.
        update_every: Number of batches from one solve to the next; the means are tracked at each batch.
        freeze_after: Number of batches after which W and b stay; 1 keeps the W of the first batch. None is never.
        seed: Seed of the first W, >= 0.
        device: Device of the state; None is PyTorch's default.
        dtype: Type of W and b; None is PyTorch's default. The tracked means and the solve are float64.

    Attributes:
        tracker: The :class:`ClassMeanTracker`.
        batches: Number of training batches so far.

    Raises:
        ArgumentError: if an argument is outside its range.
        DimensionError: if d < K - 1.

    Example:
        >>> classifier = NearestETFClassifier(4, 3)
        >>> features, labels = torch.eye(4)[:3], torch.arange(3)
        >>> classifier(features, labels).argmax(dim=1)
        tensor([0, 1, 2])
        >>> {name: round(value.item(), 2) for name, value in classifier.diagnostics().items() if "drift" not in name}
        {'etf.alignment': 1.0, 'etf.smallest_singular_value': 1.0, 'etf.rank': 2}
        >>> sum(p.numel() for p in classifier.parameters())
        0
    """

    weight: Tensor
    bias: Tensor

    def __init__(
        self,
        dim: int,
        num_classes: int,
        *,
        scale: float = 5.0,
        proximal: float = 0.0,
        momentum: float | None = None,
        gradient: str = "none",
        update_every: int = 1,
        freeze_after: int | None = None,
        seed: int = 0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        check_range("scale", scale, scale > 0, "> 0")
        check_range("proximal", proximal, proximal >= 0, ">= 0")
        check_choice("gradient", gradient, GRADIENTS)
        check_positive("update_every", update_every)
        if freeze_after is not None:
            check_positive("freeze_after", freeze_after)
        check_positive("seed", seed, 0)
        generator = torch.Generator(device="cpu").manual_seed(seed)
        start = SimplexETF(num_classes, dim, generator=generator, dtype=dtype, device=device).as_matrix()
        self.in_features = dim
        self.out_features = num_classes
        self.scale = float(scale)
        self.proximal = float(proximal)
        self.gradient = gradient
        self.update_every = update_every
        self.freeze_after = freeze_after
        self.register_buffer("weight", start)
        self.register_buffer("bias", start.new_zeros(num_classes))
        self.tracker = ClassMeanTracker(num_classes, dim, momentum=momentum, device=device)
        self.batches = 0
        self._frozen = False
        self._diagnostics: dict[str, Tensor] = {}

    @property
    def frozen(self) -> bool:
        """Whether W and b stay as they are."""
        return self._frozen or (self.freeze_after is not None and self.batches >= self.freeze_after)

    def freeze(self) -> None:
        """Keep W and b from now on; the state remembers it."""
        self._frozen = True

    @classmethod
    def from_linear(cls, linear: nn.Linear, **options: Any) -> NearestETFClassifier:
        """Return a classifier of the sizes, device and dtype of ``linear``; its weight and bias are not used.

        Args:
            linear: Classifier to replace.
            options: Further arguments of the constructor, for example ``scale``.
        """
        return cls(**like_linear(linear), **options)

    def prepare(self, features: Tensor) -> Tensor:
        """Return the features ``(…, d)`` at length ``scale``, in float32 or better; zero stays zero."""
        wide = at_least_float32(features)
        return wide * (reciprocal_norm(wide) * self.scale)

    def forward(self, features: Tensor, labels: Tensor | None = None) -> Tensor:
        """Return logits ``(…, K)`` of features ``(…, d)``, after an update if they are a training batch.

        Args:
            features: Features ``(B, d)`` with labels, ``(…, d)`` without.
            labels: Labels ``(B,)`` in 0..K-1 of a training batch; None leaves W as it is.

        Raises:
            DtypeError, ShapeError: if the features are not as above.
            DeviceError, LabelError, NonFiniteError, EmptyDataError: as in :class:`ClassMeanTracker`; nothing has
                changed then.
        """
        check_last_dimension(features, self.in_features)
        with outside_autocast(features.device):
            prepared = self.prepare(features)
            weight, bias = self.weight, self.bias
            if labels is not None and self.training:
                # Not compiled: a guard on the number of batches would recompile at each. Not a decorator: it would
                # import dynamo, which takes as long as torch itself, with this file.
                weight, bias = torch.compiler.disable(NearestETFClassifier._follow)(self, prepared, labels)
            logits = F.linear(prepared, weight.to(prepared.dtype), bias.to(prepared.dtype))
        return logits.to(features.dtype)

    def _follow(self, features: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Update with a batch unless frozen, and return W and b, with their gradients if these are exact."""
        if self.frozen:
            return self._rest()
        exact = self.gradient == "exact" and torch.is_grad_enabled()
        with torch.set_grad_enabled(exact):
            class_means, global_mean = self.tracker(features, labels)
            due = self.batches % self.update_every == 0
            weight, bias = self._solve(class_means, global_mean) if due else self._rest()
        self.batches += 1
        return weight, bias

    def _rest(self) -> tuple[Tensor, Tensor]:
        if self._diagnostics:
            self._diagnostics["etf.drift"] = self.weight.new_zeros(())
        return self.weight, self.bias

    def _solve(self, class_means: Tensor, global_mean: Tensor) -> tuple[Tensor, Tensor]:
        nearest = nearest_simplex_etf(
            class_means,
            previous=self.weight,
            proximal=self.proximal if self.batches else 0.0,
            gradient=self.gradient,
        )
        weight = nearest.frame.to(self.weight.dtype)
        bias = -(nearest.frame @ global_mean).to(self.weight.dtype)
        moved = torch.linalg.vector_norm(weight.detach() - self.weight) / torch.linalg.vector_norm(self.weight)
        found = (moved, nearest.alignment, nearest.smallest_singular_value, nearest.rank)
        self._diagnostics = dict(zip(_DIAGNOSTICS, found, strict=True))
        # New tensors rather than new values: a graph may still need the old ones.
        self.weight, self.bias = weight.detach(), bias.detach()
        return weight, bias

    def diagnostics(self) -> dict[str, Tensor]:
        """Return the facts of the last solve, empty before the first.

        ``etf.drift`` is the distance that W moved with the last batch, divided by its norm; the others are those of
        :class:`~tightframe.frames.nearest.NearestETF`.
        """
        return dict(self._diagnostics)

    def get_extra_state(self) -> Tensor:
        """Return the number of batches, whether it is frozen and the diagnostics, for the state.

        Before the first batch the diagnostics are zeros, so that all states have one shape and can be averaged.
        """
        found = [value.item() for value in self._diagnostics.values()] or [0.0] * len(_DIAGNOSTICS)
        return torch.tensor([self.batches, self._frozen, *found], dtype=torch.float64, device="cpu")

    def set_extra_state(self, state: Tensor) -> None:
        """Restore them from a state."""
        self.batches, self._frozen = int(state[0]), bool(state[1])
        found = state[2:].to(self.weight.device).unbind() if self.batches else ()
        self._diagnostics = dict(zip(_DIAGNOSTICS, found, strict=False))

    def export(self) -> nn.Linear:
        """Return an ``nn.Linear`` whose logits on features of unit length are those of this classifier.

        Call it with ``torch.nn.functional.normalize(features, dim=-1)``: on features of another length the bias has
        another weight.
        """
        return linear_of(self.weight * self.scale, self.bias)

    def extra_repr(self) -> str:
        """Return sizes and options for ``repr``."""
        options = ("scale", "proximal", "gradient", "update_every", "freeze_after", "frozen")
        return ", ".join([super().extra_repr(), *(f"{name}={getattr(self, name)!r}" for name in options)])
