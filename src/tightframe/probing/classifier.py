"""The classifier of a model: found by evidence in the first forward pass, read in every one."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from tightframe.errors import ArgumentError, Notice, ShapeError, check_finite
from tightframe.nn import Classifier
from tightframe.probing.batches import call
from tightframe.probing.evidence import Head, Seen, channels_last, decide, evidence, is_linear
from tightframe.probing.names import match_layers
from tightframe.probing.passes import evaluating, logits_of
from tightframe.probing.probe import first_result, hooked, version

MAPS_KEPT = 4  # candidates with maps or tokens whose values are kept in a forward pass, as they may be large


class HeadWatch:
    """Reads the classifier's input in every forward pass, and finds the classifier in the first.

    Args:
        model: Module that holds the classifier.
        classifier: Dotted name, module, or ``(weight, bias)``; None to find it by evidence.
        features: Name or module whose output goes into the map ``(weight, bias)``.
    """

    def __init__(
        self,
        model: nn.Module,
        classifier: str | nn.Module | Sequence[Any] | None = None,
        features: str | nn.Module | None = None,
    ) -> None:
        self._model = model
        self._seen: list[Seen] = []
        self._hooks = contextlib.ExitStack()
        self.head: Head | None = None
        self.name: str | None = None  # of the module that is watched; None: all
        self.found = classifier is None  # by evidence, which must still hold in later passes
        given = isinstance(classifier, Sequence) and not isinstance(classifier, str)
        if given != (features is not None):
            raise ArgumentError(
                "classifier=(weight, bias) and features=, the module whose output it receives, go together, got "
                f"classifier={type(classifier).__name__} and features={features!r}"
            )
        if given:
            parts = [None if p is None else torch.as_tensor(p).detach() for p in classifier]  # type: ignore[union-attr]
            shapes = [None if part is None else tuple(part.shape) for part in parts]
            if len(parts) != 2 or len(shapes[0] or ()) != 2 or shapes[1] not in (None, shapes[0][:1]):  # type: ignore[index]
                raise ShapeError(f"classifier must be (weight (K, d), bias (K,) or None), got shapes {shapes}")
            self.head = Head("", matrix=(parts[0], parts[1]))  # type: ignore[arg-type]  # its shape is known
            self.name = name_of(model, features, "features")
        elif classifier is not None:
            self.name = name_of(model, classifier, "classifier")  # type: ignore[arg-type]

    @contextlib.contextmanager
    def watching(self) -> Iterator[None]:
        """Watch as long as the ``with`` block lasts."""
        self._seen, self._first = [], True
        modules = dict(self._model.named_modules()) if self.name is None else {self.name: self._module()}
        self._names = {module: name for name, module in modules.items()}
        with self._hooks:
            self._hooks.enter_context(hooked(self._names, None, self._ends))
            yield

    def forget(self) -> None:
        """Forget a forward pass that was not read."""
        self._seen = []

    @property
    def state(self) -> tuple[str, str, bool] | None:
        """Result of the search, for ranks without data."""
        return None if self.head is None else (self.name or "", self.head.reading, self.head.log)

    @state.setter
    def state(self, state: tuple[str, str, bool] | None) -> None:
        if state is not None and self.head is None:
            self.name, reading, log = state
            self.head = Head(self.name, self._module(), reading, log=log)

    def _module(self) -> nn.Module:
        return self._model.get_submodule(self.name or "")

    def _ends(self, module: nn.Module, given: Any, output: Any) -> None:
        gave = first_result(output)
        gave = getattr(gave, "logits", gave)
        if not (_is_batch(given) and _is_batch(gave)):
            return
        if gave.ndim > 2 and self.name is None:
            if not is_linear(module):
                return
            large = [seen for seen in self._seen if seen.gave.ndim > 2]
            if len(large) >= MAPS_KEPT:
                self._seen = [seen for seen in self._seen if seen is not large[0]]
        # The next module may change this output in place, and it is compared later.
        gave = gave.detach().clone() if self._first or gave.ndim == 2 else gave.detach()
        given = given.detach().clone() if given.is_inference() else given.detach()
        self._seen.append(Seen(self._names[module], module, given, version(given), gave))

    def read(self, logits: Tensor | None) -> tuple[str, Tensor]:
        """Return the tap and the features, ``(B, d)`` or ``(B, ..., d)``, of the last forward pass; forget them.

        A classifier that was found earlier is compared with the logits again, because exits or experts may take turns.

        Args:
            logits: Logits of the model; None if it gives none.

        Raises:
            ArgumentError: if no classifier is found, or it did not run.
        """
        seen, self._seen = self._seen, []
        first, self._first = self._first, False
        check = first or self.found
        if self.name is None and logits is not None:
            self.head = decide(seen, logits)
            self.name = self.head.name
            check = False
            self._hooks.close()  # those of the other modules
            self._hooks.enter_context(hooked([self._module()], None, self._ends))
        seen = [item for item in seen if item.name == self.name]
        if not seen:
            raise ArgumentError(
                f"module {self.name!r} gave no tensor (B, ...) in this forward pass, or did not run; name another with "
                "classifier= or features="
            )
        item = seen[-1]
        check = check and (item.gave.ndim == 2 or first)
        if self.head is not None and self.head.matrix is not None:
            return "input", self._given_to(self.head.matrix[0], item)
        if check and logits is not None:
            check_finite(logits, "the model's output")
        needed = logits is not None and (self.head is None or (check and self.found))
        gap, reading, log = evidence(item, logits) if needed else (0.0, "whole", False)  # type: ignore[arg-type]
        if self.head is None:
            self.head = Head(item.name, item.module, reading, log=log and gap <= 1)
            if gap > 1:
                warnings.warn(
                    f"classifier {item.name!r} does not give the model's output: it is off by {gap:.2g} times the "
                    "rounding of the outputs; accuracy and NC4 are those of the output",
                    Notice,
                    stacklevel=2,
                )
        elif gap > 1:
            raise ArgumentError(
                f"classifier {item.name!r} gave the model's output before and does not now: it is off by {gap:.2g} "
                "times the rounding of the outputs; name the classifier with classifier=..."
            )
        features = self.head.features(item, logits)
        if first:
            self.head.check_weights(item)
        return self.head.tap(item), features

    def _given_to(self, weight: Tensor, item: Seen) -> Tensor:
        h = channels_last(item.module, item.gave)
        if h.shape[-1] != weight.shape[1]:
            h = item.gave.flatten(1)
        if h.shape[-1] != weight.shape[1]:
            raise ShapeError(
                f"features={self.name!r} must give vectors of the classifier's width d = {weight.shape[1]}, got "
                f"{tuple(item.gave.shape)}"
            )
        return h


def name_of(model: nn.Module, module: str | nn.Module | None, argument: str) -> str:
    """Return the dotted name of one module of a model, given by its name or as a module.

    Raises:
        ArgumentError: if it is not in the model, or if a pattern names several.
    """
    if isinstance(module, str):
        names = match_layers(model, [module], argument)
        if len(names) > 1:
            raise ArgumentError(f"{argument} must name one module, got {module!r}, which names {names}")
        return names[0]
    for name, other in model.named_modules():
        if other is module:
            return name
    raise ArgumentError(f"{argument} must be a module of the model, got another {type(module).__name__}")


def _is_batch(value: Any) -> bool:
    return isinstance(value, Tensor) and value.ndim >= 2 and value.is_floating_point()


def find_classifier(model: nn.Module, inputs: Any = None) -> str:
    """Return the dotted name of the model's classifier.

    With inputs it is the module whose output on them is the model's. Without inputs it is the one that the model names
    (:class:`tightframe.nn.Classifier`, ``get_classifier()`` of timm, ``get_output_embeddings()`` of Hugging Face), else
    the last ``nn.Linear`` in the order of registration, which may be another layer: pass inputs to be sure.

    Args:
        model: Module that holds the classifier.
        inputs: Batch of its inputs, a tensor or a mapping of keyword arguments.

    Raises:
        ArgumentError: if there is none; name the layer yourself then.

    Example:
        >>> model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
        >>> find_classifier(model), find_classifier(model, torch.ones(2, 4))
        ('2', '2')
    """
    if inputs is not None:
        watch = HeadWatch(model)
        with evaluating(model), torch.no_grad(), watch.watching():
            watch.read(logits_of(call(model, inputs)))
        return watch.name or ""
    names = {module: name for name, module in model.named_modules()}
    found = [name for module, name in names.items() if isinstance(module, Classifier)]
    for accessor in ("get_classifier", "get_output_embeddings"):
        said = getattr(model, accessor, None)
        module = said() if callable(said) else None
        if not found and isinstance(module, nn.Module) and module in names and is_linear(module):
            found = [names[module]]
    found = found or [name for module, name in names.items() if isinstance(module, nn.Linear)]
    if not found:
        raise ArgumentError("model has neither a tightframe classifier nor an nn.Linear; name the layer to measure")
    return found[-1]
