"""Lock a layer of a model: overwrite its weight with a fixed simplex, and take that from the optimiser."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from tightframe.errors import ArgumentError, DimensionError, check_choice, check_finite, check_positive
from tightframe.frames import control_weight, nearest_simplex_etf, nearest_simplex_weight, simplex_etf, simplex_weight
from tightframe.frames.layers import CONTROL_KINDS, check_gain, num_vertices
from tightframe.nn import variance_preserving_gain
from tightframe.probing import find_classifier
from tightframe.surgery._modules import find_module, matrix_of, overwrite, refuse_tied, refuse_wrapped

LOCK_KINDS = ("aligned", "haar", "canonical", "class-rank", *CONTROL_KINDS)
_ROUNDING = 1e-10  # relative, of the float64 constructions in wide layers
GAINS = ("unit", "match-init", "variance-preserving")

Activation = str | Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Lock:
    """What locking a layer did.

    Args:
        name: of the layer.
        kind: of the fixed weight.
        shape: of the weight as the layer holds it.
        gain: length of the vertices; for a control, that of the simplex of the same Frobenius norm.
        distance: Frobenius norm of the change of the weight, relative to that of the weight before; 0 if it was already
            this simplex up to rounding and was left as it is.
        freed: parameters that were trained before and are not any more.
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


def lock_to_etf(
    model: nn.Module,
    name: str,
    kind: str = "aligned",
    *,
    gain: str | float | None = None,
    activation: Activation = "relu",
    seed: int = 0,
    num_classes: int | None = None,
    classifier: bool | None = None,
    optimizer: torch.optim.Optimizer | None = None,
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
        model: any module.
        name: dotted name of an ``nn.Linear``, a :class:`~tightframe.nn.LinearClassifier`, a ``Conv1D`` of Hugging Face,
            or an ungrouped convolution, whose kernel is taken for a matrix ``(out, in * positions)``.
        kind: ``"aligned"``, the simplex nearest to the present weight in Frobenius norm
            (:func:`~tightframe.frames.nearest_simplex_weight`); a drawn one, ``"haar"``, ``"canonical"`` or
            ``"class-rank"``; or a control, ``"orthogonal"`` or ``"gaussian"``, which is no simplex.
        gain: length of the vertices: a number > 0; ``"unit"``; ``"match-init"`` for the Frobenius norm of the present
            weight; ``"variance-preserving"``, see :func:`~tightframe.nn.variance_preserving_gain`. None is the best for
            an aligned one, and variance-preserving otherwise.
        activation: what stands before the layer, for the variance-preserving gain alone.
        seed: of the draw, >= 0.
        num_classes: for ``kind="class-rank"``; a classifier is of that rank anyway.
        classifier: whether the rows are class vectors; None asks :func:`tightframe.find_classifier`.
        optimizer: one that trains the layer: the weight leaves its groups, which stay in number, and its state is
            dropped. A state of the optimiser from before the lock then fits no more, and one from after it fits an
            optimiser that lost the same.

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
    check_lock_options(kind, gain, activation, seed)
    if optimizer is not None:
        check_optimizer(optimizer)
    if classifier is None:
        classifier = _is_classifier(model, name)
    matrix = lockable(model, name, kind, gain, classifier)
    wide = matrix.cpu().double() if matrix.device.type == "mps" else matrix.double()  # MPS has no float64
    vertices = _num_vertices(name, wide, kind, num_classes, classifier)
    if kind == "aligned" and gain is None:
        fixed = _nearest(wide, None, classifier)
        length = _norm(fixed) / math.sqrt(vertices)
    else:
        length = _length(gain, activation, wide, vertices)
        fixed = (
            _nearest(wide, length, classifier)
            if kind == "aligned"
            else length * _unit(wide, kind, vertices, seed, num_classes, classifier)
        )
    fixed = fixed.to(matrix.dtype).to(matrix.device)
    norm = _norm(wide)
    distance = _norm(fixed.to(wide) - wide) / norm if norm else math.inf
    module = find_module(model, name)
    if distance <= max(4 * torch.finfo(matrix.dtype).eps, _ROUNDING):
        distance = 0.0
    else:
        overwrite(module, fixed)
    weight = module.get_parameter("weight")
    freed = _fix(weight, optimizer)
    return Lock(name, kind, tuple(weight.shape), length, distance, freed)


def check_lock_options(
    kind: str = "aligned", gain: str | float | None = None, activation: Activation = "relu", seed: int = 0
) -> None:
    """Raise :class:`ArgumentError` where :func:`lock_to_etf` would for these arguments, whatever the layer."""
    check_choice("kind", kind, LOCK_KINDS)
    check_positive("seed", seed, 0)
    if isinstance(gain, str):
        check_choice("gain", gain, GAINS)
    elif gain is not None:
        check_gain(gain)
    if gain == "variance-preserving" or (gain is None and kind != "aligned"):
        variance_preserving_gain(activation)


def lockable(model: nn.Module, name: str, kind: str, gain: str | float | None, classifier: bool) -> Tensor:
    """Return the weight of a layer as a matrix ``(out, in)``; errors as in :func:`lock_to_etf`."""
    module = find_module(model, name)
    refuse_wrapped(model, name)
    matrix = matrix_of(module, name)
    refuse_tied(model, name)
    check_finite(matrix, f"weight of layer {name!r}")
    vertices = matrix if classifier or matrix.shape[0] < matrix.shape[1] else matrix.T
    if kind == "aligned" and gain is None and bool((vertices == vertices[:1]).all()):
        raise ArgumentError(
            f"the weight of layer {name!r} must have vertices that differ, got all of them equal: the nearest simplex "
            "has gain 0; pass gain=1.0 to take any simplex of that gain"
        )
    if gain == "match-init" and not bool(matrix.any()):
        raise ArgumentError(f"the weight of layer {name!r} must not be zero for gain='match-init'; pass a number")
    return matrix


def check_optimizer(optimizer: torch.optim.Optimizer) -> None:
    """Raise :class:`ArgumentError` unless tensors can leave this optimiser."""
    if not isinstance(optimizer, torch.optim.Optimizer):
        raise ArgumentError(f"optimizer must be a torch.optim.Optimizer, got {type(optimizer).__name__}")
    if any(kind.__name__ in ("LBFGS", "ZeroRedundancyOptimizer") for kind in type(optimizer).__mro__):
        raise ArgumentError(
            f"no tensor can leave a {type(optimizer).__name__}, which keeps all of them in one; lock first and build "
            "the optimiser of the parameters that still need gradients"
        )


def _is_classifier(model: nn.Module, name: str) -> bool:
    try:
        return find_classifier(model) == name
    except ArgumentError:
        return False


def _num_vertices(name: str, W: Tensor, kind: str, num_classes: int | None, classifier: bool) -> int:
    out_features, in_features = W.shape
    if not classifier:
        return num_vertices(*W.shape, kind="haar" if kind == "aligned" else kind, num_classes=num_classes)
    if in_features < out_features - 1:
        raise DimensionError(
            f"classifier {name!r} needs d >= K - 1 for a simplex ETF, got d = {in_features} and K = {out_features}; "
            "widen its input, keep it trainable, or pass classifier=False to make its columns the vertices"
        )
    if num_classes not in (None, out_features):
        raise ArgumentError(f"num_classes must be K = {out_features} for classifier {name!r}, got {num_classes!r}")
    return num_vertices(out_features, in_features, kind="classifier")


def _length(gain: str | float | None, activation: Activation, W: Tensor, vertices: int) -> float:
    if gain is None or gain == "variance-preserving":
        return variance_preserving_gain(activation)
    if not isinstance(gain, str):
        return float(gain)
    if gain == "unit":
        return 1.0
    return _norm(W) / math.sqrt(vertices)


def _nearest(W: Tensor, length: float | None, classifier: bool) -> Tensor:
    """Return the simplex nearest to W, of the best gain if ``length`` is None."""
    if not classifier:
        return nearest_simplex_weight(W, gain=length)
    nearest = nearest_simplex_etf(W, gradient="none")
    return nearest.frame * ((W * nearest.frame).sum() / W.shape[0] if length is None else length)


def _unit(W: Tensor, kind: str, vertices: int, seed: int, num_classes: int | None, classifier: bool) -> Tensor:
    """Return a drawn weight of the shape of W whose vertices have length 1, or a control of the same norm."""
    options: dict[str, Any] = {
        "generator": torch.Generator(device="cpu").manual_seed(seed),
        "dtype": torch.float64,
        "device": "cpu",
    }
    if kind in CONTROL_KINDS:
        drawn = control_weight(*W.shape, kind=kind, **options)
        return drawn * (math.sqrt(vertices) / _norm(drawn))  # a classifier has more vertices than it has dimensions
    if classifier:
        return simplex_etf(*W.shape, orientation="canonical" if kind == "canonical" else "haar", **options)
    return simplex_weight(*W.shape, kind=kind, num_classes=num_classes, **options)


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
