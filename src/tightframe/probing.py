"""Look inside a model while it runs: find its classifier, capture inputs of layers, measure collapse in one pass."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from tightframe import functional as F
from tightframe._checks import ArgumentError, EmptyDataError, ShapeError
from tightframe.functional import ClassMoments
from tightframe.nn import Classifier
from tightframe.records import Records

FEATURES = "features"


def find_classifier(model: nn.Module) -> str:
    """Return the dotted name of the model's classifier: its last :class:`tightframe.nn.Classifier` or ``nn.Linear``.

    Raises:
        ArgumentError: if there is neither; name the layer yourself then.

    Example:
        >>> find_classifier(nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3)))
        '2'
    """
    named = list(model.named_modules())
    for kinds in (Classifier, nn.Linear):
        names = [name for name, module in named if isinstance(module, kinds)]
        if names:
            return names[-1]
    raise ArgumentError("model has neither a tightframe classifier nor an nn.Linear; name the layer to measure")


def num_outputs(classifier: nn.Module) -> int:
    """Return K of a classifier, its ``out_features``.

    Raises:
        ArgumentError: if it has none.
    """
    size = getattr(classifier, "out_features", None)
    if not isinstance(size, int):
        raise ArgumentError(f"{type(classifier).__name__} has no integer out_features; pass num_classes=K")
    return size


class Probe:
    """Captures what goes into named modules, as long as the ``with`` block lasts.

    Forward pre-hooks work on any model, but hooks added after ``torch.compile`` never fire: probe the module first and
    compile then.

    Args:
        model: any module.
        layers: dotted names of modules of it.

    Raises:
        ArgumentError: if a name is no module of the model; the message lists the names near it.

    Example:
        >>> model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
        >>> with Probe(model, ["2"]) as probe:
        ...     _ = model(torch.ones(5, 4))
        ...     print(probe.take()["2"].shape)
        torch.Size([5, 8])
    """

    def __init__(self, model: nn.Module, layers: Sequence[str]) -> None:
        modules = dict(model.named_modules())
        for name in layers:
            if name not in modules:
                known = ", ".join(repr(n) for n in modules if n)[:300]
                raise ArgumentError(f"layers must name modules of the model, got {name!r}; it has {known}")
        self._modules = {name: modules[name] for name in layers}
        self._captured: dict[str, Tensor] = {}
        self._handles: list[Any] = []

    def __enter__(self) -> Probe:
        for name, module in self._modules.items():
            self._handles.append(module.register_forward_pre_hook(self._hook(name), with_kwargs=True))
        return self

    def __exit__(self, *exc_info: object) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    def _hook(self, name: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            value = args[0] if args else next(iter(kwargs.values()))
            self._captured[name] = value.detach()

        return hook

    def take(self) -> dict[str, Tensor]:
        """Return what the last forward pass put into each layer, one row a sample, and forget it.

        Raises:
            ArgumentError: if a layer did not run.
        """
        missing = [name for name in self._modules if name not in self._captured]
        if missing:
            raise ArgumentError(
                f"layers {missing} captured nothing in this forward pass: they did not run, or torch.compile came "
                "before the probe"
            )
        captured, self._captured = self._captured, {}
        return {name: value.flatten(start_dim=1) for name, value in captured.items()}


@dataclass
class Measurement:
    """What one pass over some data left behind.

    Args:
        moments: of each layer, by name.
        held: features, logits and labels of the classifier's layer, or empty if they were not to be held.
    """

    moments: dict[str, ClassMoments]
    held: list[tuple[Tensor, Tensor, Tensor]] = field(default_factory=list)

    def second_look(self) -> tuple[Tensor, Tensor, Tensor] | None:
        """Return held features ``(N, d)``, logits ``(N, K)`` and labels ``(N,)``, or None."""
        if not self.held:
            return None
        features, logits, labels = zip(*self.held, strict=True)
        return torch.cat(features), torch.cat(logits), torch.cat(labels)


def gather(
    model: nn.Module,
    batches: Iterable[Any],
    layers: Sequence[str],
    num_classes: int,
    *,
    scatter: bool = True,
    hold_bytes: int = 0,
    ignore_index: int | None = None,
    forward: Callable[[nn.Module, Any], Any] | None = None,
) -> Measurement:
    """Run the model over batches once, in eval mode and without gradients, and gather the moments of every layer.

    Args:
        model: any module; its training mode is restored afterwards.
        batches: of ``(inputs, labels)``, moved to the device of the model's parameters.
        layers: dotted names of modules whose inputs are measured; the last one is taken for the classifier. The input
            of a :class:`tightframe.nn.Classifier` is measured as its class vectors meet it, that is after its
            normalisation if it has one.
        num_classes: K.
        scatter: gather the pooled scatter too.
        hold_bytes: keep features, logits and labels of the last layer as long as they take no more bytes; 0 keeps none.
        ignore_index: label whose samples are left out.
        forward: how to run the model on a batch's inputs; ``model(inputs)`` by default.

    Raises:
        EmptyDataError: if there is no batch.
        ArgumentError, LabelError, NonFiniteError, ShapeError: if a layer, a label or a feature is wrong.
    """
    classifier = model.get_submodule(layers[-1])
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    moments: dict[str, ClassMoments] = {}
    held: list[tuple[Tensor, Tensor, Tensor]] = []
    held_bytes = 0
    with _evaluating(model), torch.no_grad(), Probe(model, layers) as probe:
        for batch in batches:
            inputs, labels = _to(batch[0], device), _to(batch[1], device)
            output = model(inputs) if forward is None else forward(model, inputs)
            features = probe.take()
            if isinstance(classifier, Classifier):
                features[layers[-1]] = classifier.prepare(features[layers[-1]])
            for name, h in features.items():
                if name not in moments:
                    moments[name] = ClassMoments(num_classes, h.shape[1], scatter=scatter, device=h.device)
                moments[name].update(h, labels, ignore_index)
            if hold_bytes:
                kept = (features[layers[-1]].cpu(), _logits(output, num_classes).float().cpu(), labels.cpu())
                if ignore_index is not None:
                    wanted = kept[2] != ignore_index
                    kept = (kept[0][wanted], kept[1][wanted], kept[2][wanted])
                held_bytes += sum(t.numel() * t.element_size() for t in kept)
                held = [*held, kept] if held_bytes <= hold_bytes else []
                hold_bytes = hold_bytes if held else 0
    if not moments:
        raise EmptyDataError("batches must hold at least one (inputs, labels) pair, got none")
    return Measurement(moments, held)


def measure(
    model: nn.Module,
    loader: Iterable[Any],
    *,
    layers: Sequence[str] | None = None,
    num_classes: int | None = None,
    scatter: bool = True,
    preset: str | None = None,
    hold_bytes: int = 2**28,
    ignore_index: int | None = None,
    split: str = "train",
) -> Records:
    """Measure the collapse of a model's layers in one pass over labelled data.

    Args:
        model: any module that maps inputs to logits ``(B, K)``.
        loader: of ``(inputs, labels)`` batches.
        layers: dotted names of modules whose inputs to measure; None for the classifier's, reported as ``features``.
        num_classes: K; None takes it from the classifier.
        scatter: gather ``(d, d)`` scatters, which ``nc1.pinv`` and ``vci`` need.
        preset: see :func:`tightframe.functional.collapse_metrics`.
        hold_bytes: memory for the features of the classifier's layer, which metrics with a second look at the samples
            need (``nc4.agreement``, ``ncc.accuracy``, ``cosine_margin``); without it they are left out.
        ignore_index: label whose samples are left out.
        split: recorded beside every value.

    Returns:
        One row a layer and metric.

    Example:
        >>> model = nn.Linear(2, 2, bias=False)
        >>> _ = nn.init.eye_(model.weight)
        >>> data = [(torch.tensor([[1.0, 0.0], [0.0, 1.0]]), torch.tensor([0, 1]))]
        >>> measure(model, data).value("nc4.agreement")
        1.0
    """
    classifier_name = find_classifier(model)
    classifier = model.get_submodule(classifier_name)
    names = [*dict.fromkeys(name for name in layers or () if name != classifier_name), classifier_name]
    num_classes = num_classes or num_outputs(classifier)
    measured = gather(
        model, loader, names, num_classes, scatter=scatter, hold_bytes=hold_bytes, ignore_index=ignore_index
    )
    wanted = {classifier_name} if layers is None else set(layers)
    records = Records()
    for name, moments in measured.moments.items():
        if name not in wanted:
            continue
        is_classifier = name == classifier_name
        values = layer_metrics(moments, classifier if is_classifier else None, preset=preset)
        look = measured.second_look() if is_classifier and preset is None else None
        if look is not None:
            values |= sample_metrics(*look, moments, classifier)
        layer = FEATURES if is_classifier and layers is None else name
        for metric, value in values.items():
            records.add(metric, value, split=split, layer=layer)
    return records


def layer_metrics(
    moments: ClassMoments, classifier: nn.Module | None = None, *, preset: str | None = None
) -> dict[str, float]:
    """Return the collapse metrics of one layer by id; with the classifier if the layer is its input.

    Class vectors that nobody trains are a frame that the means should come to: with them there are those of
    :func:`tightframe.functional.frame_metrics` too, unless a preset names others.
    """
    weight, bias = getattr(classifier, "weight", None), getattr(classifier, "bias", None)
    values = F.collapse_metrics(moments, weight, None if bias is None else bias.detach(), preset=preset)
    if classifier is not None and weight is not None and preset is None and not _trains_vectors(classifier):
        values |= F.frame_metrics(moments, weight.detach())
    return {metric: value.item() for metric, value in values.items()}


def _trains_vectors(classifier: nn.Module) -> bool:
    """Return whether a matrix of it is trained; a bias or a scale may be, over a frame that stands still."""
    return any(p.requires_grad and p.ndim > 1 for p in classifier.parameters())


def sample_metrics(
    features: Tensor, logits: Tensor, labels: Tensor, moments: ClassMoments, classifier: nn.Module | None = None
) -> dict[str, float]:
    """Return the metrics that look at samples a second time, with the moments of the *training* features.

    Args:
        features: ``(N, d)`` inputs of the classifier.
        logits: ``(N, K)`` its outputs.
        labels: ``(N,)``.
        moments: of the training features, on any device.
        classifier: for the cosine margin; left out if None or without ``weight``.
    """
    moments = ClassMoments(
        moments.num_classes, moments.dim, scatter=moments.has_scatter, packed=moments.packed.to(features.device)
    )
    values = {
        "ncc.accuracy": F.ncc_accuracy(features, labels, moments),
        "nc4.agreement": F.nc4_agreement(features, logits, moments),
    }
    weight = getattr(classifier, "weight", None)
    if weight is not None:
        margins = F.cosine_margins(features, labels, moments, weight.detach().to(features.device))
        values["cosine_margin"] = margins.mean()
    return {metric: value.item() for metric, value in values.items()}


@contextlib.contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    """Switch every module to eval mode, and each back to its own mode."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


def _to(value: Any, device: torch.device) -> Any:
    return value.to(device, non_blocking=True) if hasattr(value, "to") else value


def _logits(output: Any, num_classes: int) -> Tensor:
    logits = getattr(output, "logits", output)
    if not isinstance(logits, Tensor) or logits.ndim != 2 or logits.shape[1] != num_classes:
        seen = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        raise ShapeError(f"the model's output must be logits (B, K = {num_classes}), got {seen}; pass hold_bytes=0")
    return logits.detach()
