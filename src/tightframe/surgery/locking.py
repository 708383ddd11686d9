"""Lock layers of a model: overwrite a weight with a fixed simplex, and remove that from the optimizer."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from tightframe.errors import ArgumentError, DimensionError, check_choice, check_finite, check_positive
from tightframe.frames import control_weight, nearest_simplex_etf, nearest_simplex_weight, simplex_etf, simplex_weight
from tightframe.frames.layers import CONTROL_KINDS, check_gain, num_vertices
from tightframe.nn import variance_preserving_gain
from tightframe.probing import find_classifier
from tightframe.probing.names import match_layers, trains_matrix
from tightframe.surgery._modules import find_module, matrix_of, overwrite, refuse_tied, refuse_wrapped

LOCK_KINDS = ("aligned", "haar", "canonical", "class-rank", *CONTROL_KINDS)
_ROUNDING = 1e-10  # relative, of the float64 constructions in wide layers
GAINS = ("unit", "match-init", "variance-preserving")

Activation = str | Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Lock:
    """Record of a layer that was locked.

    Args:
        name: Name of the layer.
        kind: Kind of the fixed weight.
        shape: Shape of the weight as the layer holds it.
        gain: Length of the vertices; for a control, that of the simplex of the same Frobenius norm.
        distance: Frobenius norm of the change of the weight, relative to that of the weight before; 0 if it was already
            this simplex up to rounding and was left as it is.
        freed: Number of parameters that were trained before and are not any more.
    """

    name: str
    kind: str
    shape: tuple[int, ...]
    gain: float
    distance: float
    freed: int

    @property
    def changed(self) -> bool:
        """Whether the layer was not locked before as it is now."""
        return self.distance > 0 or self.freed > 0


@dataclass(frozen=True)
class Fix:
    """Values of a fixed weight, the same wherever layers are locked; it checks itself.

    Args:
        kind: ``"aligned"``, the simplex nearest to the present weight in Frobenius norm
            (:func:`~tightframe.frames.nearest_simplex_weight`); a drawn one, ``"haar"``, ``"canonical"`` or
            ``"class-rank"``; or a control, ``"orthogonal"`` or ``"gaussian"``, which is no simplex.
        gain: Length of the vertices: a number > 0; ``"unit"``; ``"match-init"`` for the Frobenius norm of the present
            weight; ``"variance-preserving"``, see :func:`~tightframe.nn.variance_preserving_gain`. None is the best for
            an aligned one, and variance-preserving otherwise.
        activation: Activation before the layer, for the variance-preserving gain alone: ``"relu"``, ``"gelu"``,
            ``"silu"`` or any function of each entry.
        seed: Seed of the draw, >= 0; where several layers are locked, each has a draw of its own.
        num_classes: Number of classes for ``kind="class-rank"``; a classifier is of that rank anyway.

    Raises:
        ArgumentError: if an argument is outside its range.
    """

    kind: str = "aligned"
    gain: str | float | None = None
    activation: Activation = "relu"
    seed: int = 0
    num_classes: int | None = None

    def __post_init__(self) -> None:
        """Check what can be checked without a layer."""
        check_choice("kind", self.kind, LOCK_KINDS)
        check_positive("seed", self.seed, 0)
        if isinstance(self.gain, str):
            check_choice("gain", self.gain, GAINS)
        elif self.gain is not None:
            check_gain(self.gain)
        if self.gain == "variance-preserving" or (self.gain is None and self.kind != "aligned"):
            variance_preserving_gain(self.activation)

    def for_classes(self, num_classes: int) -> Fix:
        """Return it with the number of classes of the data, where the kind depends on that."""
        return replace(self, num_classes=num_classes) if self.kind == "class-rank" else self


def as_fix(kind: str | Fix, options: Mapping[str, Any]) -> Fix:
    """Return the :class:`Fix` of a kind and further fields; a Fix is returned as it is, and takes no further ones."""
    if not isinstance(kind, Fix):
        return Fix(kind, **options)
    if options:
        raise ArgumentError(f"{', '.join(options)} must be fields of the Fix; got them beside one")
    return kind


def lock_to_etf(
    model: nn.Module,
    name: str,
    kind: str | Fix = "aligned",
    *,
    classifier: bool | None = None,
    optimizer: torch.optim.Optimizer | None = None,
    **options: Any,
) -> Lock:
    r"""Overwrite the weight of a layer with a fixed simplex ETF, in place, and train it no more.

    The module stays what it was, and so do the keys of the state: it is the weight that gets other values and needs no
    gradient. Its gradient is dropped, so that no optimiser moves it, whatever its momentum and weight decay. Bias and
    normalisation are trained on. A network with batch norm then needs
    :func:`~tightframe.surgery.reestimate_batch_norm`.

    Locking once more with the same arguments changes nothing, and an aligned lock of a simplex of any kind leaves it
    what it is; :attr:`Lock.changed` tells. That a layer is locked is in its ``requires_grad`` alone, which no state
    holds: after loading one into a new model, lock again.

    Hidden layers become full-width simplexes of min(out, in) vertices (Liu 2024, arXiv 2412.00884, as reconstructed;
    see :func:`~tightframe.frames.simplex_weight`). A classifier becomes one whose K rows are the vertices, for which
    d >= K - 1 is needed.

    Args:
        model: Any module.
        name: Dotted name of an ``nn.Linear``, a :class:`~tightframe.nn.LinearClassifier`, a ``Conv1D`` of Hugging Face,
            or an ungrouped convolution, whose kernel is taken for a matrix ``(out, in * positions)``.
        kind: Kind of the fixed weight, see :class:`Fix`, or a :class:`Fix` itself.
        classifier: Whether the rows are class vectors; None asks :func:`tightframe.find_classifier`.
        optimizer: Optimizer that trains the layer: the weight leaves its groups, which stay in number, and its state is
            dropped. A state of the optimizer from before the lock then fits no more, and one from after it fits an
            optimizer that lost the same.
        options: Further fields of :class:`Fix`: ``gain``, ``activation``, ``seed``, ``num_classes``.

    Raises:
        ArgumentError: if an argument is outside its range, there is no such layer, or its weight is tied, wrapped,
            parametrized or zero (aligned); nothing is changed after any error.
        DimensionError: if there is no such simplex in these sizes.
        DtypeError, DeviceError, NonFiniteError: if the weight is quantised, has no values, or is not finite.

    Example:
        >>> model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
        >>> lock = lock_to_etf(model, "0")
        >>> lock.shape, lock.freed, lock.changed, lock_to_etf(model, "0").changed
        ((8, 4), 32, True, False)
        >>> [key for key, p in model.named_parameters() if p.requires_grad]
        ['0.bias', '2.weight', '2.bias']
    """
    fix = as_fix(kind, options)
    check_optimizer(optimizer)
    layer = lockable(model, name, fix, classifier)
    matrix = layer.matrix
    wide = matrix.cpu().double() if matrix.device.type == "mps" else matrix.double()  # MPS has no float64
    values, length = _values(wide, fix, layer)
    fixed = values.to(matrix.dtype).to(matrix.device)
    norm = _norm(wide)
    distance = _norm(fixed.to(wide) - wide) / norm if norm else math.inf
    module = find_module(model, name)
    if distance <= max(4 * torch.finfo(matrix.dtype).eps, _ROUNDING):
        distance = 0.0
    else:
        overwrite(module, fixed)
    weight = module.get_parameter("weight")
    freed = _fix(weight, optimizer)
    return Lock(name, fix.kind, tuple(weight.shape), length, distance, freed)


def lock_beyond(
    model: nn.Module,
    layers: Sequence[str],
    depth: int,
    kind: str | Fix = "aligned",
    *,
    inclusive: bool = False,
    min_trainable: int = 1,
    keep: Sequence[str] = (),
    optimizer: torch.optim.Optimizer | None = None,
    **options: Any,
) -> list[Lock]:
    """Lock those of the layers 1..L beyond a depth whose weights are still trained, each with a draw of its own.

    Args:
        model: Any module.
        layers: Names of its linear maps in order of execution, as in :attr:`~tightframe.probing.LayerCurves.layers`.
        depth: Last layer to keep, 1..L, such as :func:`~tightframe.probing.effective_depth`.
        kind: Kind of the fixed weights or a :class:`~tightframe.surgery.Fix`, as in
            :func:`~tightframe.surgery.lock_to_etf`.
        inclusive: Whether to lock that one too.
        min_trainable: Number of first layers that are kept whatever the depth, >= 1.
        keep: Names or patterns of layers that are not locked wherever they are, such as a classifier of more than
            d + 1 classes, for which there is no simplex ETF.
        optimizer: Optimizer, as in :func:`~tightframe.surgery.lock_to_etf`.
        options: Further fields of :class:`~tightframe.surgery.Fix`.

    Raises:
        ArgumentError: if the depth is no layer, if ``keep`` names no module, or as in
            :func:`~tightframe.surgery.lock_to_etf`; what was locked before the layer at fault stays so.

    Example:
        >>> model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 3))
        >>> [lock.name for lock in lock_beyond(model, ["0", "2", "4"], depth=1)]
        ['2', '4']
    """
    check_positive("depth", depth)
    check_positive("min_trainable", min_trainable)
    fix = as_fix(kind, options)
    if depth > len(layers):
        raise ArgumentError(f"depth must be one of the layers 1..{len(layers)}, got {depth}")
    beyond = trained_beyond(model, layers, max(depth - inclusive, min_trainable), keep)
    return [lock_to_etf(model, name, replace(fix, seed=fix.seed + i), optimizer=optimizer) for i, name in beyond]


def trained_beyond(
    model: nn.Module, layers: Sequence[str], boundary: int, keep: Sequence[str]
) -> list[tuple[int, str]]:
    """Return index and name of the layers beyond the first ones that train a matrix and are not to be kept."""
    kept = match_layers(model, keep, "keep")
    beyond = list(enumerate(layers))[boundary:]
    return [(i, name) for i, name in beyond if name not in kept and trains_matrix(find_module(model, name))]


class _Lockable(NamedTuple):
    """Weight of a layer as a matrix ``(out, in)``, whether its rows are class vectors, and number of its vertices."""

    matrix: Tensor
    classifier: bool
    vertices: int


def lockable(model: nn.Module, name: str, fix: Fix, classifier: bool | None = None) -> _Lockable:
    """Return the weight of a layer; the arguments and errors are those of :func:`lock_to_etf`."""
    if classifier is None:
        classifier = _is_classifier(model, name)
    module = find_module(model, name)
    refuse_wrapped(model, name)
    matrix = matrix_of(module, name)
    refuse_tied(model, name)
    check_finite(matrix, f"weight of layer {name!r}")
    vertices = matrix if classifier or matrix.shape[0] < matrix.shape[1] else matrix.T
    if fix.kind == "aligned" and fix.gain is None and bool((vertices == vertices[:1]).all()):
        raise ArgumentError(
            f"the weight of layer {name!r} must have vertices that differ, got all of them equal: the nearest simplex "
            "has gain 0; pass gain=1.0 to take any simplex of that gain"
        )
    if fix.gain == "match-init" and not bool(matrix.any()):
        raise ArgumentError(f"the weight of layer {name!r} must not be zero for gain='match-init'; pass a number")
    return _Lockable(matrix, classifier, _num_vertices(name, matrix, fix, classifier))


def check_optimizer(optimizer: torch.optim.Optimizer | None) -> None:
    """Raise :class:`ArgumentError` unless parameters can be removed from an optimizer; there may be none."""
    if optimizer is None:
        return
    if not isinstance(optimizer, torch.optim.Optimizer):
        raise ArgumentError(f"optimizer must be a torch.optim.Optimizer, got {type(optimizer).__name__}")
    if any(kind.__name__ in ("LBFGS", "ZeroRedundancyOptimizer") for kind in type(optimizer).__mro__):
        raise ArgumentError(
            f"cannot remove a parameter from {type(optimizer).__name__}, which keeps all of them in one tensor; lock "
            "first and build the optimizer of the parameters that still need gradients"
        )


def _is_classifier(model: nn.Module, name: str) -> bool:
    try:
        return find_classifier(model) == name
    except ArgumentError:
        return False


def _num_vertices(name: str, W: Tensor, fix: Fix, classifier: bool) -> int:
    out_features, in_features = W.shape
    if not classifier:
        kind = "haar" if fix.kind == "aligned" else fix.kind
        return num_vertices(*W.shape, kind=kind, num_classes=fix.num_classes)
    if in_features < out_features - 1:
        raise DimensionError(
            f"classifier {name!r} needs d >= K - 1 for a simplex ETF, got d = {in_features} and K = {out_features}; "
            "widen its input, keep it trainable, or pass classifier=False to make its columns the vertices"
        )
    if fix.num_classes not in (None, out_features):
        raise ArgumentError(f"num_classes must be K = {out_features} for classifier {name!r}, got {fix.num_classes!r}")
    return num_vertices(out_features, in_features, kind="classifier")


def _values(W: Tensor, fix: Fix, layer: _Lockable) -> tuple[Tensor, float]:
    """Return the fixed weight in place of W, and its gain."""
    if fix.kind == "aligned" and fix.gain is None:
        fixed = _nearest(W, None, layer.classifier)
        return fixed, _norm(fixed) / math.sqrt(layer.vertices)
    if fix.gain is None or fix.gain == "variance-preserving":
        length = variance_preserving_gain(fix.activation)
    elif fix.gain == "match-init":
        length = _norm(W) / math.sqrt(layer.vertices)
    else:
        length = 1.0 if fix.gain == "unit" else float(fix.gain)
    if fix.kind == "aligned":
        return _nearest(W, length, layer.classifier), length
    return length * _unit(W, fix, layer), length


def _nearest(W: Tensor, length: float | None, classifier: bool) -> Tensor:
    """Return the simplex nearest to W, of the best gain if ``length`` is None."""
    if not classifier:
        return nearest_simplex_weight(W, gain=length)
    nearest = nearest_simplex_etf(W, gradient="none")
    return nearest.frame * ((W * nearest.frame).sum() / W.shape[0] if length is None else length)


def _unit(W: Tensor, fix: Fix, layer: _Lockable) -> Tensor:
    """Return a drawn weight of the shape of W whose vertices have length 1, or a control of the same norm."""
    options: dict[str, Any] = {
        "generator": torch.Generator(device="cpu").manual_seed(fix.seed),
        "dtype": torch.float64,
        "device": "cpu",
    }
    if fix.kind in CONTROL_KINDS:
        drawn = control_weight(*W.shape, kind=fix.kind, **options)
        return drawn * (
            math.sqrt(layer.vertices) / _norm(drawn)
        )  # a classifier has more vertices than it has dimensions
    if layer.classifier:
        return simplex_etf(*W.shape, orientation="canonical" if fix.kind == "canonical" else "haar", **options)
    return simplex_weight(*W.shape, kind=fix.kind, num_classes=fix.num_classes, **options)


def _fix(weight: Tensor, optimizer: torch.optim.Optimizer | None) -> int:
    """Train a parameter no more, and return how many numbers that frees."""
    freed = weight.numel() if weight.requires_grad else 0
    weight.requires_grad_(False)
    weight.grad = None
    if optimizer is not None:
        for group in optimizer.param_groups:
            kept = [index for index, parameter in enumerate(group["params"]) if parameter is not weight]
            for key in {"params", "param_names"} & group.keys():
                group[key][:] = [group[key][index] for index in kept]  # schedulers and wrappers hold the same lists
        optimizer.state.pop(weight, None)
    return freed


def _norm(W: Tensor) -> float:
    return float(torch.linalg.matrix_norm(W))
