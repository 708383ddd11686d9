"""ETFLinear: a linear layer whose weight is a fixed simplex, with or without a matrix."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tightframe.errors import ArgumentError, check_choice, check_last_dimension, check_positive
from tightframe.frames.layers import (
    CONTROL_KINDS,
    canonical_product,
    check_gain,
    control_weight,
    nearest_simplex_weight,
    num_vertices,
    simplex_weight,
)
from tightframe.linalg import at_least_float32, outside_autocast
from tightframe.nn.classifiers import like_linear, linear_of
from tightframe.nn.gain import variance_preserving_gain

GAINS = ("variance-preserving", "unit", "match-init")
STORAGES = ("dense", "implicit")


@final
class ETFLinear(nn.Linear):
    r"""``x @ W.T + b`` with a fixed simplex W ``(out_features, in_features)`` and a trainable bias.

    The constructions are those of :func:`~tightframe.frames.simplex_weight` (after Zhu et al., NeurIPS 2021, and Liu,
    arXiv 2412.00884): the k = min(out, in) columns or rows of W are vertices of length ``gain``, and only what all
    inputs (or outputs) have in common is lost. It is an ``nn.Linear``, and :attr:`weight` is always the W that the
    layer multiplies with, since ``nn.TransformerEncoderLayer`` in eval mode reads it and goes past :meth:`forward`.

    ``storage`` decides where W is:

    - ``"dense"``: in the parameter ``weight``, which needs no gradient and gets none, so that no optimizer moves it,
      whatever its momentum and decay and even if ``requires_grad_()`` is called on the whole model. State and keys are
      those of ``nn.Linear``, and W comes back from a state bit for bit, whatever the seed. It is not a buffer:
      distributed training would send buffers at every step, and sharding and loading know ``weight`` as a parameter.
    - ``"implicit"``, for ``kind="canonical"``: nowhere. The product is a mean and a subtraction, the state holds the
      gain as ``length``, and reading :attr:`weight` builds W.

    A fixed W saves its gradient, the state of its optimizer and a third of the products of a training step; inference
    costs what it did, except for implicit products.

    Code that initialises every ``nn.Linear`` in place spoils a stored W; :meth:`reset_parameters` restores it.

    Under autocast dense products are those of ``nn.Linear``, in the lower precision; implicit ones are computed in
    float32 or better and keep the dtype of the input. A module cast to half precision rounds W.

    Args:
        in_features: Number of inputs, >= 2 (``"classifier"``: >= out_features - 1).
        out_features: Number of outputs, >= 2.
        bias: Whether to learn a bias; it starts as that of ``nn.Linear``.
        kind: Kind of W: ``"haar"``, ``"canonical"``, ``"classifier"`` or ``"class-rank"`` as in
            :func:`~tightframe.frames.simplex_weight`, or a control that is no simplex, ``"orthogonal"`` or
            ``"gaussian"`` of :func:`~tightframe.frames.control_weight`. ``"aligned"`` is for :meth:`from_linear`.
        gain: Length of the vertices: a number > 0; ``"unit"``; ``"match-init"`` for the Frobenius norm that a new
            ``nn.Linear`` has on average; or ``"variance-preserving"`` for
            :func:`~tightframe.nn.variance_preserving_gain` whatever the sizes: of independent inputs act(z), z standard
            normal, the outputs then have variance 1 where ``out <= in``, and in / out where ``out > in``.
        activation: Activation before the layer, for the variance-preserving gain alone.
        learn_scale: Whether to train the gain, as the parameter ``log_scale``; the stored matrix is then the simplex of
            gain 1, under the name ``simplex``.
        storage: Storage of W, one of the two.
        seed: Seed of the draw, >= 0; W depends on it, the kind, the sizes and the gain alone.
        num_classes: Number of classes for ``kind="class-rank"``.
        device: Device of the tensors; None is PyTorch's default.
        dtype: Type of the tensors; None is PyTorch's default.

    Attributes:
        gain: Gain as a number, where ``log_scale`` starts if it is learned.

    Raises:
        ArgumentError: if an argument is outside its range, or kind and storage do not fit.
        DimensionError: if there is no such simplex in these sizes.

    Example:
        >>> layer = ETFLinear(3, 4, kind="canonical", gain="unit", bias=False)
        >>> implicit = ETFLinear(3, 4, kind="canonical", gain="unit", bias=False, storage="implicit")
        >>> x = torch.tensor([1.0, 2.0, 6.0])
        >>> torch.allclose(layer(x), implicit(x)), list(layer.state_dict()), list(implicit.state_dict())
        (True, ['weight'], ['length'])
        >>> [name for name, p in ETFLinear(3, 4).named_parameters() if p.requires_grad]
        ['bias']
    """

    log_scale: nn.Parameter | None

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        *,
        kind: str = "haar",
        gain: str | float = "variance-preserving",
        activation: str | Callable[[Tensor], Tensor] = "relu",
        learn_scale: bool = False,
        storage: str = "dense",
        seed: int = 0,
        num_classes: int | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        nn.Module.__init__(self)  # that of nn.Linear would draw a weight
        check_choice("storage", storage, STORAGES)
        check_positive("seed", seed, 0)
        if kind == "aligned":
            raise ArgumentError("kind='aligned' needs a weight to align with; use ETFLinear.from_linear")
        if storage == "implicit" and kind != "canonical":
            raise ArgumentError(f"storage='implicit' needs kind='canonical', got {kind!r}")
        vertices = num_vertices(out_features, in_features, kind=kind, num_classes=num_classes)
        self.in_features = in_features
        self.out_features = out_features
        self.kind = kind
        self.gain = _gain(gain, activation, out_features, vertices)
        self.storage = storage
        self.seed = seed
        self.num_classes = num_classes
        self._matrix = None if storage == "implicit" else "simplex" if learn_scale else "weight"
        like = torch.empty(0, device=device, dtype=dtype)
        self.register_parameter("bias", nn.Parameter(like.new_empty(out_features)) if bias else None)
        self.register_parameter("log_scale", nn.Parameter(like.new_empty(())) if learn_scale else None)
        if self._matrix is None:
            self.register_buffer("length", like.new_tensor(self.gain))
        else:
            self.register_parameter(self._matrix, nn.Parameter(self._draw().to(like), requires_grad=False))
        self._start()

    @classmethod
    def from_linear(
        cls, linear: nn.Linear, *, kind: str = "haar", gain: str | float | None = None, **options: Any
    ) -> ETFLinear:
        """Return a layer of the sizes, device, dtype and mode of ``linear``, with a copy of its bias.

        Args:
            linear: Layer to replace.
            kind: Kind as above, or ``"aligned"``: the simplex nearest to ``linear.weight``, by
                :func:`~tightframe.frames.nearest_simplex_weight`, in dense storage.
            gain: Gain as above, except that ``"match-init"`` takes the Frobenius norm of ``linear.weight``. None is
                the best gain of an aligned one, and variance-preserving otherwise.
            options: Further arguments of the constructor, such as ``seed`` or ``storage``.

        Raises:
            ArgumentError, DimensionError: as above, or if ``linear`` is not one, or its weight gives no gain.
            NonFiniteError: if the weight to align with is not finite.
        """
        like = like_linear(linear)
        out_features, in_features = like.pop("num_classes"), like.pop("dim")
        weight = linear.weight.detach()
        aligned, best = kind == "aligned", gain is None
        if aligned and options.get("storage", "dense") != "dense":
            raise ArgumentError(f"kind='aligned' needs storage='dense', got {options['storage']!r}")
        kind = "canonical" if aligned else kind  # the cheapest to build, to be overwritten
        if gain == "match-init":
            vertices = num_vertices(out_features, in_features, kind=kind, num_classes=options.get("num_classes"))
            gain = float(torch.linalg.matrix_norm(weight.double())) / math.sqrt(vertices)
        elif gain is None:
            gain = "unit" if aligned else "variance-preserving"
        layer = cls(in_features, out_features, linear.bias is not None, kind=kind, gain=gain, **like, **options)
        with torch.no_grad():
            if aligned:
                layer._align(nearest_simplex_weight(weight, gain=None if best else layer.gain))
            if linear.bias is not None:
                layer.bias.copy_(linear.bias)
        return layer.train(linear.training)

    @property
    def scale(self) -> float | Tensor:
        """The gain as the product uses it: a number, or ``exp(log_scale)`` while it is learned, always positive."""
        if self.log_scale is not None:
            return at_least_float32(self.log_scale).exp()
        return self.gain if self._matrix is not None else at_least_float32(self.length)

    def forward(self, input: Tensor) -> Tensor:
        """Return ``input @ weight.T + bias``, ``(…, out_features)``.

        Args:
            input: ``(…, in_features)`` floating point; for dense storage of the layer's dtype, or any under
                autocast.

        Raises:
            DtypeError: if the input is not floating point.
            ShapeError: if its last dimension is not ``in_features``.
        """
        check_last_dimension(input, self.in_features, "input")
        if self._matrix == "weight":
            return F.linear(input, self.weight.detach(), self.bias)
        if self._matrix is not None:
            product = F.linear(input, self.simplex.detach()) * self.scale
            return product if self.bias is None else product + self.bias.to(product.dtype)
        with outside_autocast(input.device):
            product = canonical_product(input, self.out_features) * self.scale
            return (product if self.bias is None else product + self.bias).to(input.dtype)

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Draw a new bias, and restore simplex and gain; an aligned simplex stays what it is."""
        if self._matrix is None:
            self.length.fill_(self.gain)
        elif self.kind != "aligned":
            getattr(self, self._matrix).copy_(self._draw())
        self._start()

    def export(self) -> nn.Linear:
        """Return an ``nn.Linear`` with copies of :attr:`weight` and bias: the same map, with nothing fixed."""
        return linear_of(self.weight, self.bias)

    def extra_repr(self) -> str:
        """Return sizes and options for ``repr``."""
        gain = f"{self.gain:.4g}" if self.log_scale is None else "learned"
        return f"{super().extra_repr()}, kind={self.kind!r}, gain={gain}, storage={self.storage!r}"

    def __getattr__(self, name: str) -> Any:
        # Called for what is found nowhere else: the weight, where it is not stored as it is.
        if name == "weight" and self.__dict__.get("_matrix", "weight") != "weight":
            return self._weight()
        return super().__getattr__(name)

    def _weight(self) -> Tensor:
        if self._matrix is not None:
            return (self.simplex * self.scale).to(self.simplex.dtype)
        basis = torch.eye(self.in_features, device=self.length.device, dtype=self.length.dtype)
        with outside_autocast(basis.device):
            weight = canonical_product(basis, self.out_features).T * self.scale
        return weight.to(basis.dtype).contiguous()

    def _draw(self) -> Tensor:
        """Return the matrix that is stored, float64 on the CPU."""
        sizes = self.out_features, self.in_features
        options: dict[str, Any] = {
            "generator": torch.Generator(device="cpu").manual_seed(self.seed),
            "gain": self.gain if self.log_scale is None else 1.0,
            "dtype": torch.float64,
            "device": "cpu",
        }
        if self.kind in CONTROL_KINDS:
            return control_weight(*sizes, kind=self.kind, **options)
        return simplex_weight(*sizes, kind=self.kind, num_classes=self.num_classes, **options)

    @torch.no_grad()
    def _start(self) -> None:
        if self.log_scale is not None:
            self.log_scale.fill_(math.log(self.gain))
        if self.bias is not None:
            bound = 1 / math.sqrt(self.in_features)
            nn.init.uniform_(self.bias, -bound, bound)

    def _align(self, weight: Tensor) -> None:
        self.kind = "aligned"
        self.gain = float(torch.linalg.matrix_norm(weight.double())) / math.sqrt(min(weight.shape))
        if self.log_scale is None:
            self.weight.copy_(weight)
        else:
            self.simplex.copy_(weight / self.gain)
            self.log_scale.fill_(math.log(self.gain))


def _gain(gain: str | float, activation: str | Callable[[Tensor], Tensor], out_features: int, vertices: int) -> float:
    if not isinstance(gain, str):
        check_gain(gain)
        return float(gain)
    check_choice("gain", gain, GAINS)
    if gain == "unit":
        return 1.0
    if gain == "match-init":  # entries of a new nn.Linear have variance 1 / (3 in_features)
        return math.sqrt(out_features / (3 * vertices))
    return variance_preserving_gain(activation)
