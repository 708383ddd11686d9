"""Measure the collapse of a model's layers in one pass over labelled data."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from tightframe import functional as F
from tightframe._checks import EmptyDataError
from tightframe.functional import ClassMoments
from tightframe.nn import Classifier
from tightframe.probing.classifier import find_classifier, num_outputs
from tightframe.probing.names import match_layers, trains_matrix
from tightframe.probing.nearest import NearestCenters
from tightframe.probing.passes import Forward, Held, logits_of, moments_on, run
from tightframe.probing.probe import Probe
from tightframe.records import Records

FEATURES = "features"


@dataclass
class Measurement:
    """What one pass over some data left behind.

    Args:
        moments: of each layer, by name.
        held: features, logits and labels of the classifier's layer, as far as they were held.
        held_layers: features of the other layers and labels, as far as they were held.
    """

    moments: dict[str, ClassMoments]
    held: Held = field(default_factory=Held)
    held_layers: Held = field(default_factory=Held)

    def second_look(self) -> tuple[Tensor, Tensor, Tensor] | None:
        """Return held features ``(N, d)``, logits ``(N, K)`` and labels ``(N,)``, or None."""
        batches = self.held.batches
        if not batches:
            return None
        features = torch.cat([h for batch in batches for h in batch.features.values()])
        logits = torch.cat([batch.outputs for batch in batches if batch.outputs is not None])
        return features, logits, torch.cat([batch.labels for batch in batches])

    def ncc_errors(self, train: Mapping[str, ClassMoments]) -> dict[str, float]:
        """Return the nearest-class-centre error of each layer beside the classifier's; empty if they were not held.

        Args:
            train: moments of the training features of these layers.
        """
        nearest = NearestCenters(train)
        for batch in self.held_layers.batches:
            nearest.add(batch.features, batch.labels)
        return nearest.errors


def gather(
    model: nn.Module,
    batches: Iterable[Any],
    layers: Sequence[str],
    num_classes: int,
    *,
    scatter: bool = True,
    hold_bytes: int = 0,
    ignore_index: int | None = None,
    forward: Forward | None = None,
) -> Measurement:
    """Run the model over batches once, in eval mode and without gradients, and gather the moments of every layer.

    Args:
        model: any module; its training mode is restored afterwards.
        batches: of ``(inputs, labels)``, moved to the device of the model's parameters.
        layers: dotted names of modules whose inputs are measured, or patterns as in :func:`match_layers`; the last one
            is taken for the classifier. The input of a :class:`tightframe.nn.Classifier` is measured as its class
            vectors meet it, that is after its normalisation if it has one.
        num_classes: K.
        scatter: gather the pooled scatter too.
        hold_bytes: keep features, logits and labels of the last layer as long as they take no more bytes, and, within
            as many once more, the features of the others; 0 keeps none.
        ignore_index: label whose samples are left out.
        forward: how to run the model on a batch's inputs; ``model(inputs)`` by default.

    Raises:
        EmptyDataError: if there is no batch.
        ArgumentError, LabelError, NonFiniteError, ShapeError: if a layer, a label or a feature is wrong.
    """
    last = layers[-1]
    classifier = model.get_submodule(last)
    moments: dict[str, ClassMoments] = {}
    held, held_layers = Held(hold_bytes), Held(hold_bytes)

    def each(features: dict[str, Tensor], labels: Tensor, output: Any) -> None:
        if isinstance(classifier, Classifier):
            features[last] = classifier.prepare(features[last])
        update(moments, features, labels, num_classes, scatter=scatter, ignore_index=ignore_index)
        wanted = None if ignore_index is None else labels != ignore_index
        h = features.pop(last)
        if held.complete:
            held.add({last: h}, labels, logits_of(output, num_classes).float(), wanted)
        if features:
            held_layers.add(features, labels, wanted=wanted)

    run(model, batches, Probe(model, layers), each, forward=forward)
    if not moments:
        raise EmptyDataError("batches must hold at least one (inputs, labels) pair, got none")
    return Measurement(moments, held, held_layers)


def update(
    moments: dict[str, ClassMoments],
    features: Mapping[str, Tensor],
    labels: Tensor,
    num_classes: int,
    *,
    scatter: bool,
    ignore_index: int | None = None,
) -> None:
    """Fold the features of a batch into the moments of their layers, which the first batch makes."""
    for name, h in features.items():
        if name not in moments:
            moments[name] = ClassMoments(num_classes, h.shape[1], scatter=scatter, device=h.device)
        moments[name].update(h, labels, ignore_index)


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
        layers: dotted names of modules whose inputs to measure, or patterns as in :func:`match_layers`; None for the
            classifier's, reported as ``features``.
        num_classes: K; None takes it from the classifier.
        scatter: gather ``(d, d)`` scatters, which ``nc1.pinv`` and ``vci`` need.
        preset: see :func:`tightframe.functional.collapse_metrics`.
        hold_bytes: memory for the features of the classifier's layer, which metrics with a second look at the samples
            need (``nc4.agreement``, ``ncc.accuracy``, ``cosine_margin``), and as much again for those of the other
            layers (``ncc.error``); without it they are left out.
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
    wanted = [classifier_name] if layers is None else match_layers(model, layers)
    names = [*(name for name in wanted if name != classifier_name), classifier_name]
    num_classes = num_classes or num_outputs(classifier)
    measured = gather(
        model, loader, names, num_classes, scatter=scatter, hold_bytes=hold_bytes, ignore_index=ignore_index
    )
    errors = measured.ncc_errors(measured.moments) if preset is None else {}
    records = Records()
    for name, moments in measured.moments.items():
        if name not in wanted:
            continue
        is_classifier = name == classifier_name
        values = layer_metrics(moments, classifier if is_classifier else None, preset=preset)
        look = measured.second_look() if is_classifier and preset is None else None
        if look is not None:
            values |= sample_metrics(*look, moments, classifier)
        if name in errors:
            values["ncc.error"] = errors[name]
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
    if classifier is not None and weight is not None and preset is None and not trains_matrix(classifier):
        values |= F.frame_metrics(moments, weight.detach())
    return {metric: value.item() for metric, value in values.items()}


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
    moments = moments_on(moments, features.device)
    values = {
        "ncc.accuracy": F.ncc_accuracy(features, labels, moments),
        "nc4.agreement": F.nc4_agreement(features, logits, moments),
    }
    weight = getattr(classifier, "weight", None)
    if weight is not None:
        margins = F.cosine_margins(features, labels, moments, weight.detach().to(features.device))
        values["cosine_margin"] = margins.mean()
    return {metric: value.item() for metric, value in values.items()}
