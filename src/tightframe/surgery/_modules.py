"""Checks that every operation makes first: which module a name means, and whether it may be changed in place."""

from __future__ import annotations

import difflib

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from tightframe.errors import ArgumentError, DeviceError, DtypeError
from tightframe.nn import ETFLinear, LinearClassifier
from tightframe.probing.names import CONVOLUTIONS

_WRAPPERS = {
    "DataParallel": "work on model.module, before it is wrapped",
    "DistributedDataParallel": "work on model.module, before it is wrapped",
    "FullyShardedDataParallel": "work on the model before it is sharded",
    "FSDPModule": "work on the model before it is sharded",
    "OptimizedModule": "work on model._orig_mod, and compile that afterwards",
}


def is_conv1d(module: nn.Module) -> bool:
    """Return whether it is Hugging Face's ``Conv1D``, a linear layer whose weight is ``(in, out)``."""
    weight = getattr(module, "weight", None)
    return type(module).__name__ == "Conv1D" and isinstance(weight, Tensor) and weight.ndim == 2


def find_module(model: nn.Module, name: str) -> nn.Module:
    """Return the module of that dotted name, ``""`` for the model itself.

    Raises:
        ArgumentError: if there is none; the message has names like it.
    """
    modules = dict(model.named_modules(remove_duplicate=False))
    if name in modules:
        return modules[name]
    names = [other for other in modules if other]
    near = difflib.get_close_matches(name, names, n=3) or names[:10]
    raise ArgumentError(f"the model has no module {name!r}; near it are {', '.join(map(repr, near))}")


def refuse_wrapped(model: nn.Module, name: str = "") -> None:
    """Raise :class:`ArgumentError` if the model, or a module on the way to ``name``, is another one's wrapper."""
    path = name.split(".") if name else []
    for depth in range(len(path) + 1):
        at = ".".join(path[:depth])
        module = model.get_submodule(at)
        for kind in type(module).__mro__:
            if kind.__name__ in _WRAPPERS:
                place = f"module {at!r}" if at else "the model"
                raise ArgumentError(f"{place} is wrapped by {kind.__name__}; {_WRAPPERS[kind.__name__]}")


def matrix_of(module: nn.Module, name: str) -> Tensor:
    """Return the weight of a linear map as ``(out, in)``: the ``in`` of a kernel is its whole patch.

    Raises:
        ArgumentError: if the module is no such layer, or its weight is not a parameter that lies there as it is.
        DeviceError: if the weight has no values yet.
        DtypeError: if it is not floating point.
    """
    if isinstance(module, ETFLinear):
        raise ArgumentError(f"layer {name!r} is an ETFLinear, whose weight is fixed as it is")
    transposed = is_conv1d(module)
    if not transposed and not isinstance(module, (nn.Linear, LinearClassifier, *CONVOLUTIONS)):
        raise ArgumentError(
            f"layer {name!r} must be an nn.Linear, a convolution, a LinearClassifier or Hugging Face's Conv1D, got "
            f"{type(module).__name__}"
        )
    if getattr(module, "groups", 1) != 1:
        raise ArgumentError(f"layer {name!r} must not be grouped, got groups={module.groups}: it is several maps")
    weight = module._parameters.get("weight")
    if weight is None or torch.nn.utils.parametrize.is_parametrized(module, "weight"):
        raise ArgumentError(
            f"the weight of layer {name!r} is computed by a parametrization (or weight norm, or pruning); remove that "
            "first"
        )
    if is_lazy(weight) or weight.is_meta:
        raise DeviceError(f"the weight of layer {name!r} has no values yet; load them, or run the model once, first")
    if not weight.is_floating_point():
        raise DtypeError(f"the weight of layer {name!r} must be floating point, got {weight.dtype}: it is quantised")
    if type(weight) is not nn.Parameter:
        raise DtypeError(
            f"the weight of layer {name!r} must be a plain tensor, got {type(weight).__name__}: quantised and "
            "sharded tensors cannot be overwritten"
        )
    return weight.detach().T if transposed else weight.detach().flatten(start_dim=1)


@torch.no_grad()
def overwrite(module: nn.Module, matrix: Tensor) -> None:
    """Write a matrix ``(out, in)`` into the weight of a linear map."""
    weight = module.get_parameter("weight")
    weight.copy_(matrix.T if is_conv1d(module) else matrix.reshape(weight.shape))


def refuse_tied(model: nn.Module, name: str) -> None:
    """Raise :class:`ArgumentError` if another name of the model means the memory of this module's weight, or part."""
    own = f"{name}.weight" if name else "weight"
    tensors = [
        *model.named_parameters(remove_duplicate=False),
        *model.named_buffers(remove_duplicate=False),
    ]
    weight = model.get_submodule(name).get_parameter("weight")
    start, end = _memory(weight)
    for other, tensor in tensors:
        if other == own or tensor.device != weight.device:
            continue
        other_start, other_end = _memory(tensor)
        if other_start < end and start < other_end:
            raise ArgumentError(
                f"{own} is tied: {other} is the same memory and would change with it; untie them first, such as by "
                f"giving one a copy: module.weight = nn.Parameter(module.weight.detach().clone())"
            )


def _memory(tensor: Tensor) -> tuple[int, int]:
    """Return first address and end of what a tensor spans, empty where it has no memory of that kind."""
    if is_lazy(tensor) or tensor.layout != torch.strided or tensor.is_meta or tensor.numel() == 0:
        return 0, 0
    span = 1 + sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
    return tensor.data_ptr(), tensor.data_ptr() + span * tensor.element_size()
