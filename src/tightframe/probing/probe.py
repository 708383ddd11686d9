"""Probe: capture inputs or outputs of layers of a running model."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from tightframe.errors import ArgumentError, ShapeError, check_choice
from tightframe.probing.names import is_inside, linear_maps, match_layers, takes_channels_first
from tightframe.probing.pooling import POOLINGS, pool

TAPS = ("input", "pre", "post")

Starts = Callable[[nn.Module, Any], None]
Ends = Callable[[nn.Module, Any, Any], None]


_UNWATCHED: list[nn.Module] = []  # modules that are called to find out what they are


@contextlib.contextmanager
def unwatched(module: nn.Module) -> Iterator[None]:
    """Call a module without counting the call as part of a forward pass."""
    _UNWATCHED.append(module)
    try:
        yield
    finally:
        _UNWATCHED.pop()


@contextlib.contextmanager
def hooked(modules: Iterable[nn.Module], starts: Starts | None, ends: Ends | None) -> Iterator[None]:
    """Call back whenever one of the modules starts and ends, as long as the ``with`` block lasts.

    Args:
        modules: Modules of one model.
        starts: Function of the module and its first argument.
        ends: Function of the module, its first argument, and its output.
    """

    def before(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if starts is not None and not _UNWATCHED:
            starts(module, first_value(args, kwargs))

    def after(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        if ends is not None and not _UNWATCHED:
            ends(module, first_value(args, kwargs), output)

    handles = []
    try:
        for module in modules:
            if starts is not None:
                handles.append(module.register_forward_pre_hook(before, with_kwargs=True))
            if ends is not None:
                handles.append(module.register_forward_hook(after, with_kwargs=True))
        yield
    finally:
        for handle in handles:
            handle.remove()


def first_value(args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    """Return the first argument of a call; None if there is none."""
    return args[0] if args else next(iter(kwargs.values()), None)


def first_result(output: Any) -> Any:
    """Return the output of a module, or the first of several."""
    return output[0] if isinstance(output, tuple | list) and output else output


class Probe:
    """Captures features of named layers, as long as the ``with`` block lasts.

    The *tap* is the place where a layer's features are read:

    - ``"input"``: the input of the layer. If the layer runs several times in a forward pass, the last input counts.
    - ``"pre"``: its output, before normalisation and activation.
    - ``"post"``: the input of the named layer that runs next, after normalisation and activation; for the last layer,
      its output. In a network with branches, such as shortcuts, name layers that run one after the other.

    With the last two a layer has a place in the order of execution: it must run once in a forward pass, and with
    ``"post"`` none may lie inside another.

    Hooks work on any model, but hooks added after ``torch.compile`` never fire: probe the module first, then compile.
    ``nn.MultiheadAttention`` reads the weight of its ``out_proj`` and never calls it, so nothing is captured there.

    Args:
        model: Module whose layers take and return tensors with the samples as first dimension; of several arguments or
            results the first is taken.
        layers: Dotted names of its modules, or patterns as in :func:`match_layers`; None for all :func:`linear_maps`
            that run in the first forward pass.
        tap: Place of the features, see above.
        pooling: Way to turn tokens ``(B, T, d)`` and maps ``(B, C, H, W)`` into one vector per sample: ``"flatten"``
            takes all numbers, ``"mean"`` the mean over tokens or pixels, ``"cls"`` the first token, ``"mask"`` the mean
            of the tokens that :attr:`mask` keeps; None flattens maps and refuses tokens. The features of a convolution
            are dimension 1, those of a linear layer the last, and those of other modules the last of three dimensions
            and dimension 1 of more.

    Attributes:
        mask: Mask ``(B, T)`` of the next forward pass, for ``pooling="mask"``.

    Raises:
        ArgumentError: if an option is unknown, if a name is not a module of the model (the message lists similar
            names), if layers lie inside each other, or, in the forward pass, if a layer runs twice.

    Example:
        >>> import torch
        >>> model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
        >>> with Probe(model, ["2"]) as probe:
        ...     _ = model(torch.ones(5, 4))
        ...     print(probe.take()["2"].shape)
        torch.Size([5, 8])
    """

    def __init__(
        self,
        model: nn.Module,
        layers: Sequence[str] | None,
        *,
        tap: str = "input",
        pooling: str | None = "flatten",
    ) -> None:
        check_choice("tap", tap, TAPS)
        if pooling is not None:
            check_choice("pooling", pooling, POOLINGS)
        names = linear_maps(model) if layers is None else match_layers(model, layers)
        self._modules = {name: model.get_submodule(name) for name in names}
        if tap == "post":
            _check_apart(names)
        self.tap = tap
        self.pooling = pooling
        self.mask: Tensor | None = None
        self._any = layers is None
        self._captured: dict[str, tuple[Tensor, int]] = {}
        self._finished: tuple[str, Tensor] | None = None  # the layer that ran last, and what it returned
        self._final: str | None = None  # the layer that runs last of all
        self._hooks = contextlib.ExitStack()

    def __enter__(self) -> Probe:
        self.forget()
        names = {module: name for name, module in self._modules.items()}

        def starts(module: nn.Module, value: Any) -> None:
            if self.tap == "input":
                self._capture(names[module], module, value)
            elif self._finished is not None:
                self._capture(self._finished[0], module, value)
                self._finished = None

        def ends(module: nn.Module, given: Any, output: Any) -> None:
            self._after(names[module], module, first_result(output))

        taps_before, taps_after = self.tap != "pre", self.tap != "input"
        self._hooks.enter_context(hooked(names, starts if taps_before else None, ends if taps_after else None))
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._hooks.close()

    def forget(self) -> None:
        """Forget a forward pass that was not taken."""
        self._captured, self._finished = {}, None

    def _after(self, name: str, module: nn.Module, value: Any) -> None:
        if name in self._captured:
            raise ArgumentError(
                f"layer {name!r} ran twice in one forward pass, so tap={self.tap!r} cannot tell its place in the "
                "order; name layers that run once, and call take() after every forward pass"
            )
        # The next module may change an output in place, as nn.ReLU(inplace=True) does, so a copy is kept. With "post"
        # only the output of the last layer is needed; the first forward pass shows which layer that is.
        if self.tap == "pre":
            self._capture(name, module, value, copy=True)
        elif isinstance(value, Tensor) and self._final in (None, name):
            self._finished = name, value.detach().clone()
        else:
            self._finished = name, value

    def _capture(self, name: str, module: nn.Module, value: Any, copy: bool = False) -> None:
        if not isinstance(value, Tensor):
            raise ArgumentError(
                f"layer {name!r} must give a tensor at tap={self.tap!r}, got {type(value).__name__}; name a layer "
                "inside of it"
            )
        try:
            features = pool(value.detach(), self.pooling, self.mask, channels_first=takes_channels_first(module))
        except (ArgumentError, ShapeError) as error:
            raise type(error)(f"layer {name!r}: {error}") from None
        shared = features.untyped_storage().data_ptr() == value.untyped_storage().data_ptr()
        if shared and (copy or features.is_inference()):  # its in-place changes are not counted
            features = features.clone()
        self._captured[name] = features, version(features)

    def take(self) -> dict[str, Tensor]:
        """Return the features of each layer in the last forward pass, one row per sample, in order of execution.

        Raises:
            ArgumentError: if a layer did not run, or one changed what was captured in place.
        """
        if self._finished is not None:
            name, value = self._finished
            self._final, self._finished = name, None
            self._capture(name, self._modules[name], value)
        if self._any and self._captured:
            self._modules = {name: self._modules[name] for name in self._captured}
            self._any = False
        missing = [name for name in self._modules if name not in self._captured]
        if missing or (self._any and not self._modules):
            raise ArgumentError(
                f"layers {missing} captured nothing in this forward pass: they did not run, or torch.compile came "
                "before the probe"
            )
        captured, self._captured = self._captured, {}
        changed = [name for name, (features, before) in captured.items() if version(features) != before]
        if changed:
            raise ArgumentError(
                f"features of layers {changed} at tap={self.tap!r} were changed in place after their capture; use "
                "tap='pre', or replace the operation by one that is not in place"
            )
        return {name: features for name, (features, _) in captured.items()}


def version(tensor: Tensor) -> int:
    """Return the number of in-place changes of a tensor, if they are counted."""
    return -1 if tensor.is_inference() else tensor._version


def _check_apart(names: list[str]) -> None:
    for outer in names:
        inside = [name for name in names if is_inside(name, outer)]
        if inside:
            raise ArgumentError(
                f"layers of tap='post' must not lie inside each other, got {inside[0]!r} inside {outer!r}; "
                "leave one out"
            )
