"""ETFLinear: a linear layer whose weight is a fixed simplex, with or without a matrix."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tightframe.errors import ArgumentError, check_choice, check_last_dimension, check_positive
from tightframe.frames.layers import (
    CONTROL_KINDS,
    StructuredSimplex,
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
STORAGES = ("dense", "seeded", "implicit", "structured")
_ONLY_KIND = {"implicit": "canonical", "structured": "haar"}


@final
class ETFLinear(nn.Linear):
    r"""``x @ W.T + b`` with a fixed simplex W ``(out_features, in_features)`` and a trainable bias.

    The constructions are those of :func:`~tightframe.frames.simplex_weight` (after Zhu et al., NeurIPS 2021, and Liu,
    arXiv 2412.00884): the k = min(out, in) columns or rows of W are vertices of length ``gain``, and only what all
    inputs (or outputs) have in common is lost. It is an ``nn.Linear``, and :attr:`weight` is always the W that the
    layer multiplies with, since ``nn.TransformerEncoderLayer`` in eval mode reads it and goes past :meth:`forward`.

    ``storage`` decides where W is:

    - ``"dense"``: in the parameter ``weight``, which needs no gradient and gets none, so that no optimiser moves it,
      whatever its momentum and decay and even if ``requires_grad_()`` is called on the whole model. State and keys are
      those of ``nn.Linear``, and W comes back from a state bit for bit, whatever the seed. It is not a buffer:
      distributed training would send buffers at every step, and sharding and loading know ``weight`` as a parameter.
    - ``"seeded"``: the same tensor as a buffer that is not in the state: it is drawn again when one is loaded.
    - ``"implicit"``, for ``kind="canonical"``: nowhere. The product is a mean and a subtraction.
    - ``"structured"``, for ``kind="haar"``: as :class:`~tightframe.frames.layers.StructuredSimplex`, a fast transform
      in place of the Haar draw, with O(n) numbers. What it multiplies with is a simplex exactly, in any sizes.

    The last three need the constructor's arguments to come back. Their state holds ``checksum``, and loading one that
    another seed, kind or gain has made, or another version of PyTorch with other random numbers, raises the
    ``RuntimeError`` of ``load_state_dict``; rounding that differs between machines passes. Reading :attr:`weight` of
    the last two builds it.

    A fixed W saves its gradient, the state of its optimiser and a third of the products of a training step; inference
    costs what it did, except for implicit and structured products.

    Code that starts every ``nn.Linear`` anew in place spoils a stored W; :meth:`reset_parameters` brings it back.

    Under autocast dense and seeded products are those of ``nn.Linear``, in the lower precision; implicit and structured
    ones are computed in float32 or better and keep the dtype of the input. A module cast to half precision rounds W.

    Args:
        in_features: >= 2 (``"classifier"``: >= out_features - 1).
        out_features: >= 2.
        bias: whether to learn a bias; it starts as that of ``nn.Linear``.
        kind: ``"haar"``, ``"canonical"``, ``"classifier"`` or ``"class-rank"`` as in
            :func:`~tightframe.frames.simplex_weight`, or a control that is no simplex, ``"orthogonal"`` or
            ``"gaussian"`` of :func:`~tightframe.frames.control_weight`. ``"aligned"`` is for :meth:`from_linear`.
        gain: length of the vertices: a number > 0; ``"unit"``; ``"match-init"`` for the Frobenius norm that a new
            ``nn.Linear`` has on average; or ``"variance-preserving"`` for
            :func:`~tightframe.nn.variance_preserving_gain` whatever the sizes: of independent inputs act(z), z standard
            normal, the outputs then have variance 1 where ``out <= in``, and in / out where ``out > in``.
        activation: what stands before the layer, for the variance-preserving gain alone.
        learn_scale: train the gain, as the parameter ``log_scale``; what is stored is then the simplex of gain 1, under
            the name ``simplex``.
        storage: one of the four.
        seed: of the draw, >= 0; W depends on it, the kind, the sizes and the gain alone.
        num_classes: for ``kind="class-rank"``.
        device: where the tensors lie; None is PyTorch's default.
        dtype: their type; None is PyTorch's default.

    Attributes:
        gain: the gain as a number, where ``log_scale`` starts if it is learned.

    Raises:
        ArgumentError: if an argument is outside its range, or kind and storage do not fit.
        DimensionError: if there is no such simplex in these sizes.

    Example:
        >>> layer = ETFLinear(3, 4, kind="canonical", gain="unit", bias=False)
        >>> implicit = ETFLinear(3, 4, kind="canonical", gain="unit", bias=False, storage="implicit")
        >>> x = torch.tensor([1.0, 2.0, 6.0])
        >>> torch.allclose(layer(x), implicit(x)), list(layer.state_dict()), list(implicit.state_dict())
        (True, ['weight'], ['checksum'])
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
        if kind != _ONLY_KIND.get(storage, kind):
            raise ArgumentError(f"storage={storage!r} needs kind={_ONLY_KIND[storage]!r}, got {kind!r}")
        vertices = num_vertices(out_features, in_features, kind=kind, num_classes=num_classes)
        self.in_features = in_features
        self.out_features = out_features
        self.kind = kind
        self.gain = _gain(gain, activation, out_features, vertices)
        self.storage = storage
        self.seed = seed
        self.num_classes = num_classes
        self._matrix = None if storage in _ONLY_KIND else "simplex" if learn_scale else "weight"
        like = torch.empty(0, device=device, dtype=dtype)
        self.register_parameter("bias", nn.Parameter(like.new_empty(out_features)) if bias else None)
        self.register_parameter("log_scale", nn.Parameter(like.new_empty(())) if learn_scale else None)
        for name, value in self._draw().items():
            tensor = value.to(device=like.device, dtype=like.dtype if value.is_floating_point() else value.dtype)
            if storage == "dense":
                self.register_parameter(name, nn.Parameter(tensor, requires_grad=False))
            else:
                self.register_buffer(name, tensor, persistent=name == "checksum")
        self._start()

    @classmethod
    def from_linear(
        cls, linear: nn.Linear, *, kind: str = "haar", gain: str | float | None = None, **options: Any
    ) -> ETFLinear:
        """Return a layer of the sizes, device, dtype and mode of ``linear``, with a copy of its bias.

        Args:
            linear: the layer to replace.
            kind: as above, or ``"aligned"``: the simplex nearest to ``linear.weight``, by
                :func:`~tightframe.frames.nearest_simplex_weight`, in dense storage.
            gain: as above, except that ``"match-init"`` takes the Frobenius norm of ``linear.weight``. None is the best
                gain of an aligned one, and variance-preserving otherwise.
            options: further arguments of the constructor, such as ``seed`` or ``storage``.

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
        return self.gain if self.log_scale is None else at_least_float32(self.log_scale).exp()

    def forward(self, input: Tensor) -> Tensor:
        """Return ``input @ weight.T + bias``, ``(…, out_features)``.

        Args:
            input: ``(…, in_features)`` floating point; for dense and seeded storage of the layer's dtype, or any under
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
            product = self._product(input, self._buffers) * self.scale
            return (product if self.bias is None else product + self.bias).to(input.dtype)

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Draw the bias anew, and bring back simplex and gain; an aligned simplex stays what it is."""
        if self.kind != "aligned":
            self._restore()
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
        basis = torch.eye(self.in_features, device=self._like.device, dtype=self._like.dtype)
        with outside_autocast(basis.device):
            weight = self._product(basis, self._buffers).T * self.scale
        return weight.to(basis.dtype).contiguous()

    def _product(self, x: Tensor, tensors: Mapping[str, Any]) -> Tensor:
        """Return the product of ``x (…, in)`` with what is stored, among the given tensors of :meth:`_draw`."""
        if self._matrix is not None:
            return F.linear(x, tensors[self._matrix])
        if self.storage == "implicit":
            return canonical_product(x, self.out_features)
        blocks = tuple(tensor for name, tensor in tensors.items() if name.startswith("_block"))
        return StructuredSimplex(tensors["_signs"], tensors["_order"], blocks).product(x)

    def _draw(self) -> dict[str, Tensor]:
        """Return what is stored beside bias and scale, on the CPU, in float64 if floating point."""
        sizes = self.out_features, self.in_features
        generator = torch.Generator(device="cpu").manual_seed(self.seed)
        gain = self.gain if self.log_scale is None else 1.0
        drawn = {"_like": torch.empty(0, dtype=torch.float64, device="cpu")}  # tells dtype and device of the layer
        if self.storage == "structured":
            signs, order, blocks = StructuredSimplex.draw(*sizes, generator)
            drawn |= {"_signs": signs, "_order": order, **{f"_block{j}": block for j, block in enumerate(blocks)}}
        elif self._matrix is not None:
            options: dict[str, Any] = {"generator": generator, "dtype": torch.float64, "device": "cpu"}
            if self.kind in CONTROL_KINDS:
                matrix = control_weight(*sizes, kind=self.kind, gain=gain, **options)
            else:
                matrix = simplex_weight(*sizes, kind=self.kind, num_classes=self.num_classes, gain=gain, **options)
            drawn = {self._matrix: matrix}
        if self.storage == "dense":
            return drawn
        probe, other = (torch.arange(1.0, n + 1, dtype=torch.float64, device="cpu").cos() for n in reversed(sizes))
        seen = (self._product(probe, drawn) @ other) * (1.0 if self._matrix else gain)
        # As the bits of a number, in integers, which no cast of the module rounds.
        return {**drawn, "checksum": seen.view(torch.int64)}

    @torch.no_grad()
    def _restore(self, device: torch.device | None = None) -> None:
        """Put what :meth:`_draw` gives back into its places; a place on meta is made on ``device``, if there is one."""
        for name, value in self._draw().items():
            place = getattr(self, name)
            if place.is_meta and device is not None:
                self._buffers[name] = place = torch.empty_like(place, device=device)
            place.copy_(value)

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

    def _load_from_state_dict(self, state_dict: Any, prefix: str, local_metadata: Any, *args: Any) -> None:
        key, errors = f"{prefix}checksum", args[-1]
        loaded: Tensor | None = None if self.storage == "dense" else state_dict.get(key)
        if loaded is not None:
            state_dict[key] = loaded.clone()  # the state that it comes from stays as it is, even where it is assigned
        super()._load_from_state_dict(state_dict, prefix, local_metadata, *args)
        if self.storage == "dense":
            return
        assigned = local_metadata.get("assign_to_params_buffers", False)
        self._restore(loaded.device if loaded is not None and assigned else None)
        if loaded is not None and not _same(loaded, self.checksum):
            errors.append(
                f"{key} differs: seed, kind or gain of the layer that was saved was another than {self.extra_repr()}, "
                f"seed={self.seed}, or torch {torch.__version__} draws other numbers; build the layer as the saved one "
                "was, and save storage='dense' to depend on no draw"
            )


def _same(loaded: Tensor, own: Tensor) -> bool:
    """Return whether two checksums are of one draw, up to rounding."""
    if loaded.shape != own.shape or loaded.is_meta or own.is_meta:
        return True  # PyTorch complains of the shape, and there is nothing to compare on meta
    if loaded.dtype != own.dtype:
        return False
    return math.isclose(*(tensor.view(torch.float64).item() for tensor in (loaded, own)), rel_tol=1e-6)


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
