"""Cut a model off: stop as soon as a representation exists, and finish with a classifier of it."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Callable, Container, Mapping, Sequence
from typing import Any, NoReturn, final

import torch
from torch import Tensor, nn

from tightframe.errors import ArgumentError, ShapeError, check_choice
from tightframe.probing import linear_maps, match_layers
from tightframe.probing.passes import evaluating, restored_modes
from tightframe.probing.probe import first_result, first_value, hooked
from tightframe.surgery._modules import find_module, refuse_wrapped


class _Reached(BaseException):  # no error, and no `except Exception` of a model may catch it
    """Carries the representation, its one argument, out of a model that need not run further."""


@final
class _CutOff(nn.Module):
    """Stands where a module was that is not needed any more, with nothing in it."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.name = name
        self.missed = False  # whether anybody asked for what was in it

    def forward(self, *args: Any, **kwargs: Any) -> NoReturn:
        """Raise: nothing is left to run."""
        raise ArgumentError(self._message())

    def __getattr__(self, name: str) -> Any:
        if not name.startswith("__"):
            self.__dict__["missed"] = True
        raise AttributeError(f"no {name!r}: {self._message()}" if "name" in self.__dict__ else name)

    def _message(self) -> str:
        return (
            f"{self.name!r} was cut off, since the model did not need it in eval mode on the sample; truncate with a "
            "sample on which it does"
        )

    def extra_repr(self) -> str:
        """Return the name for ``repr``."""
        return repr(self.name)


def _stop_before(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> NoReturn:
    """End the pass with what goes into the module: a forward pre-hook."""
    raise _Reached(first_value(args, kwargs))


def _stop_after(module: nn.Module, args: tuple[Any, ...], output: Any) -> NoReturn:
    """End the pass with what comes out of the module: a forward hook."""
    raise _Reached(_tensor(output))


@final
class TruncatedModel(nn.Module):
    """A model up to some representation, and a classifier of it: what :func:`truncate` returns.

    Args:
        trunk: Rest of the model.
        classifier: Map from the representation to logits.
        stops: Whether the trunk has a hook that ends its pass early; else its output is the representation.
    """

    def __init__(self, trunk: nn.Module, classifier: nn.Module, stops: bool) -> None:
        super().__init__()
        self.trunk = trunk
        self.classifier = classifier
        self.stops = stops
        self.training = trunk.training

    def representation(self, *args: Any, **kwargs: Any) -> Tensor:
        """Return what the classifier gets, for the arguments of the model."""
        if not self.stops:
            return _tensor(self.trunk(*args, **kwargs))
        try:
            self.trunk(*args, **kwargs)
        except _Reached as reached:
            return reached.args[0]
        raise ArgumentError("the model ran to its end without the layer to stop at; truncate with a sample like this")

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Return the logits of the classifier, for the arguments of the model."""
        return self.classifier(self.representation(*args, **kwargs))


def truncate(
    model: nn.Module,
    layer: str,
    classifier: nn.Module,
    sample: Any,
    *,
    tap: str = "post",
    layers: Sequence[str] | None = None,
) -> TruncatedModel:
    r"""Return a copy of a model that stops as soon as a representation exists, and ends with a classifier of it.

    What does not run until then is not in the copy: neither its time nor its parameters are spent. The end of an
    ``nn.Sequential`` is cut off; any other model is left by an exception from a hook, and modules that did not run
    become empty ones. A module that ran before the stop is kept whole, and so are parameters that a module holds itself
    which was running then.

    The copy has the names of the model, behind ``trunk.``, and of the classifier, behind ``classifier.``. It can be
    moved, trained, pickled, copied and have its state saved; to load a state, truncate a model of the same kind first.
    What a model needs in training mode only, such as an auxiliary classifier, is cut off, and asking for it is an
    error.

    ``torch.compile`` works on it, also with ``fullgraph=True``: the exception is traced away (PyTorch 2.13).

    Args:
        model: any module; it stays what it is and shares nothing with the copy.
        layer: dotted name of a module that runs once.
        classifier: Map from the representation to logits, such as that of
            :func:`~tightframe.surgery.nearest_class_mean_linear`. It gets the representation as it is: for maps or
            tokens begin it with what makes vectors of them, as in ``nn.Sequential(nn.Flatten(), linear)``.
        sample: an input like those to come: a tensor, a tuple of positional or a mapping of keyword arguments. The
            model runs on it twice in eval mode, on the device where both must lie.
        tap: ``"pre"`` for the output of the layer, ``"post"`` for what goes into the one of ``layers`` that runs next;
            after the last there is none, and its output is the representation. As for :class:`tightframe.Probe`.
        layers: names or patterns, as in :func:`~tightframe.probing.match_layers`; None for all
            :func:`~tightframe.probing.linear_maps`. Those by which the representation was found to be a good one.

    Raises:
        ArgumentError: if an argument is outside its range, the layer does not run or runs several times, or the model
            is wrapped, compiled or truncated already.
        ShapeError: if the classifier cannot take the representation.

    Example:
        >>> model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 3))
        >>> truncate(model, "0", nn.Linear(8, 3), torch.ones(1, 4))
        TruncatedModel(
          (trunk): Sequential(
            (0): Linear(in_features=4, out_features=8, bias=True)
            (1): ReLU()
          )
          (classifier): Linear(in_features=8, out_features=3, bias=True)
        )
    """
    check_choice("tap", tap, ("pre", "post"))
    if not layer:
        raise ArgumentError("layer must name a module inside the model, got ''")
    find_module(model, layer)
    _refuse_compiled(model)
    names = linear_maps(model) if layers is None else match_layers(model, layers)
    watch = _Watch(model, layer, tap, {model.get_submodule(name) for name in names}, sample)
    unneeded = watch.unneeded()
    while True:
        trunk, stops, empty = _copy_without(model, watch, layer, unneeded)
        truncated = TruncatedModel(trunk, classifier, stops)
        try:
            _check(truncated, sample, watch.representation, layer)
        except Exception:
            # A model may use what is in a module without running the module: nothing shows that but a failure.
            missed = {module for module, placeholder in empty.items() if placeholder.missed}
            if not missed:
                raise
            unneeded = {module: name for module, name in unneeded.items() if module not in missed}
        else:
            return truncated


def _refuse_compiled(model: nn.Module) -> None:
    for name, part in model.named_modules():
        refuse_wrapped(model, name)
        if part._compiled_call_impl is not None:
            raise ArgumentError(f"module {name!r} is compiled, so that hooks never fire; truncate first, then compile")
        if isinstance(part, TruncatedModel):
            raise ArgumentError(f"module {name!r} is truncated already; truncate the whole model again")


class _Watch:
    """A forward pass in eval mode: what ran until the stop, and what was running there.

    Args:
        model: Model to run.
        layer: Name of the layer.
        tap: Place of the representation, ``"pre"`` or ``"post"``.
        layers: Modules before which to stop.
        sample: Input of the model.

    Raises:
        ArgumentError: if the layer does not run, or the stop is at a module that runs several times.
    """

    def __init__(self, model: nn.Module, layer: str, tap: str, layers: Container[nn.Module], sample: Any) -> None:
        self._model = model
        self._layer = model.get_submodule(layer)
        self._layers = layers if tap == "post" else ()
        self._stack: list[tuple[nn.Module, int]] = []  # what is running, the model first, and how many each has called
        self._started: Counter[nn.Module] = Counter()
        self._ended: Counter[nn.Module] = Counter()
        self.before: nn.Module | None = None  # where to stop, if not after the layer
        self.running: dict[nn.Module, int] = {}  # the stack at the stop
        self.representation = torch.empty(0)
        with hooked(list(model.modules()), self._starts, self._ends), evaluating(model):
            _call(model, sample)
        runs = self._started[self._layer]
        if not self.running or runs != 1:
            raise ArgumentError(f"layer {layer!r} must run once in a forward pass, it ran {runs} times")
        if self.before is not None and self.started[self.before]:
            raise ArgumentError(f"what runs after layer {layer!r} ran before it too: stop elsewhere, or tap='pre'")
        self.by_itself = all(
            map(_is_sequential, self.running)
        )  # whether it ends once ends of nn.Sequential are cut off

    def _stop(self, representation: Tensor) -> None:
        self.representation = representation.detach().clone()
        self.running = dict(self._stack)
        self.started, self.ended = self._started.copy(), self._ended.copy()

    def _starts(self, module: nn.Module, value: Any) -> None:
        if self.running and self.before is None and module is not self._layer and module in self._layers:
            self.before = module
            self._stop(value)
        if self._stack:
            caller, called = self._stack.pop()
            self._stack.append((caller, called + 1))
        self._stack.append((module, 0))
        self._started[module] += 1

    def _ends(self, module: nn.Module, given: Any, output: Any) -> None:
        while self._stack.pop()[0] is not module:  # one that an exception ended, which the model caught
            pass
        self._ended[module] += 1
        if module is self._layer and not self.running:
            self._stop(_tensor(output))

    def ran(self, module: nn.Module) -> bool:
        """Return whether it ran to its end before the stop."""
        return 0 < self.started[module] == self.ended[module]

    def unneeded(self) -> dict[nn.Module, str]:
        """Return the largest modules of which nothing ran, and their names."""
        found: dict[nn.Module, str] = {}

        def visit(module: nn.Module, prefix: str) -> None:
            for key, child in module.named_children():
                if self.ran(child):
                    continue
                if child is not self.before and any(
                    self.started[part] or part is self.before for part in child.modules()
                ):
                    visit(child, f"{prefix}{key}.")
                else:
                    found[child] = prefix + key

        visit(self._model, "")
        return found


def _copy_without(
    model: nn.Module, watch: _Watch, layer: str, unneeded: Mapping[nn.Module, str]
) -> tuple[nn.Module, bool, dict[nn.Module, _CutOff]]:
    """Return a copy in which these modules are empty, whether a hook stops it, and what stands for what."""
    empty = {module: _CutOff(name) for module, name in unneeded.items()}
    memo: dict[int, Any] = {id(module): placeholder for module, placeholder in empty.items()}
    trunk = copy.deepcopy(model, memo)
    stop = watch.before
    if not watch.by_itself and stop is not None:
        memo[id(stop)].register_forward_pre_hook(_stop_before, with_kwargs=True)
    elif not watch.by_itself:
        trunk.get_submodule(layer).register_forward_hook(_stop_after)
    for module, called in watch.running.items():
        if isinstance(module, nn.TransformerEncoder):
            memo[id(module)].use_nested_tensor = False  # it would turn nested tensors back at its end, never reached
        if _is_sequential(module):
            for key, child in list(module._modules.items())[called:]:
                if watch.by_itself or child is not stop:
                    del memo[id(module)]._modules[key]
    return trunk, not watch.by_itself, empty


def _check(truncated: TruncatedModel, sample: Any, expected: Tensor, layer: str) -> None:
    """Check that the copy computes the representation that the model has, and that the classifier takes it."""
    with restored_modes(truncated):
        truncated.eval()
        found = _call(truncated.representation, sample)
        if found.shape != expected.shape or not _close(found, expected):
            raise ArgumentError(
                f"the representation after {layer!r} changes when the rest is cut off: the model uses modules without "
                "running them, or is random in eval mode"
            )
        try:
            _call(truncated.classifier, found)
        except Exception as error:
            raise ShapeError(
                f"classifier does not take the representation after {layer!r}, {tuple(found.shape)}: {error}"
            ) from error


def _close(found: Tensor, expected: Tensor) -> bool:
    """Return whether two tensors agree up to what another order of the sums may change in half precision."""
    found, expected = (torch.nan_to_num(tensor.to(torch.float32)) for tensor in (found, expected))
    return bool((found - expected).norm() <= 1e-2 * expected.norm())


def _call(function: Callable[..., Any], sample: Any) -> Any:
    """Call a model, without gradients, with what a sample says."""
    with torch.no_grad():
        if isinstance(sample, Mapping):
            return function(**sample)
        return function(*sample) if isinstance(sample, tuple) else function(sample)


def _tensor(output: Any) -> Tensor:
    """Return the tensor that a module returned, or returned first of several."""
    value = first_result(output)
    if not isinstance(value, Tensor):
        raise ArgumentError(
            f"a layer must return a tensor, or a tuple that begins with one, got {type(output).__name__}"
        )
    return value


def _is_sequential(module: nn.Module) -> bool:
    return type(module).forward is nn.Sequential.forward
