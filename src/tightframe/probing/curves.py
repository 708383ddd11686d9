"""Layer curves: nearest-class-centre error, CDNV and NC1 of every layer of a network."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from tightframe import functional as F
from tightframe._checks import ArgumentError, EmptyDataError, ShapeError, check_finite, check_positive
from tightframe.functional import ClassMoments
from tightframe.probing.classifier import find_classifier, num_outputs
from tightframe.probing.collapse import update
from tightframe.probing.nearest import NearestCenters
from tightframe.probing.passes import Forward, Held, logits_of, run
from tightframe.probing.probe import Probe
from tightframe.records import Records


@dataclass(frozen=True)
class LayerCurves:
    """Separability and collapse of the layers 1..L of a network, in order of execution.

    Args:
        moments: of each layer's features, by name.
        ncc_error: share of samples whose nearest class centre is not that of their label; nan if not asked for.
        ncc_mismatch: share on which the network decides otherwise than the nearest class centre; nan also if the model
            does not return logits ``(B, K)``.
        cdnv: see :func:`tightframe.functional.cdnv`.
        nc1: see :func:`tightframe.functional.nc1`: ``"pinv"`` if the moments hold scatters, else ``"ratio"``.
        split: what the data were.
    """

    moments: Mapping[str, ClassMoments]
    ncc_error: tuple[float, ...]
    ncc_mismatch: tuple[float, ...]
    cdnv: tuple[float, ...]
    nc1: tuple[float, ...]
    split: str

    @property
    def layers(self) -> tuple[str, ...]:
        """Names of the layers."""
        return tuple(self.moments)

    @property
    def dims(self) -> tuple[int, ...]:
        """Feature dimension d of each layer."""
        return tuple(moments.dim for moments in self.moments.values())

    @property
    def records(self) -> Records:
        """One row a layer and metric: ``ncc.error``, ``ncc.mismatch``, ``cdnv``, ``nc1.pinv`` or ``nc1.ratio``.

        What was not asked for is left out.
        """
        scatter = any(moments.has_scatter for moments in self.moments.values())
        columns = {
            "ncc.error": self.ncc_error,
            "ncc.mismatch": self.ncc_mismatch,
            "cdnv": self.cdnv,
            "nc1.pinv" if scatter else "nc1.ratio": self.nc1,
        }
        records = Records()
        for i, layer in enumerate(self.layers):
            for metric, values in columns.items():
                if not (metric.startswith("ncc.") and math.isnan(values[i])):
                    records.add(metric, values[i], split=self.split, layer=layer)
        return records


def probe_layers(
    model: nn.Module,
    loader: Iterable[Any],
    *,
    layers: Sequence[str] | None = None,
    tap: str = "post",
    pooling: str | None = None,
    mask_of: Callable[[Any], Tensor] | None = None,
    num_classes: int | None = None,
    scatter: bool = False,
    ncc: bool = True,
    hold_bytes: int = 2**28,
    moments: Mapping[str, ClassMoments] | None = None,
    split: str = "train",
    forward: Forward | None = None,
) -> LayerCurves:
    r"""Measure nearest-class-centre error, CDNV and NC1 of every layer, in eval mode at one snapshot of the weights.

    .. math:: \mathrm{err}_i = P\bigl[\arg\min_k \lVert h_i(x) - \mu_{i,k}\rVert \ne y(x)\bigr]

    with :math:`h_i` the representation of layer i and :math:`\mu_{i,k}` its class means over the *training* samples
    (Galanti, Galanti & Ben-Shaul 2022; the mismatch with the network's own decision is Ben-Shaul & Dekel's, 2022).

    The class means of all layers come from one pass. The nearest of them is then asked for in a second pass, or without
    one if the features of all samples fit into ``hold_bytes``; the memory needed otherwise is that of one batch and of
    the moments, two float64 matrices ``(K, d)`` a layer, whatever N is. For data that are not the training data, hand
    over the training ``moments``, and one pass does.

    Args:
        model: any module; its modes are restored afterwards.
        loader: of ``(inputs, labels)`` batches, the same samples at every pass: without augmentation, and not dropping
            the last of a shuffled epoch.
        layers: dotted names of modules, or patterns as in :func:`match_layers`; None for all :func:`linear_maps`
            that run, or those of ``moments``. The order is that of execution.
        tap: where the representation of a layer is read, see :class:`Probe`: ``"post"``, as the next layer receives it
            (of the last layer: its output), ``"pre"``, as the layer returns it, or ``"input"``.
        pooling: how tokens and maps become one vector, see :class:`Probe`; by default maps are flattened and tokens
            refused.
        mask_of: from a batch to the mask ``(B, T)`` of its tokens, for ``pooling="mask"`` alone.
        num_classes: K; None takes it from the classifier.
        scatter: gather ``(d, d)`` scatters, for ``nc1.pinv`` in place of ``nc1.ratio``.
        ncc: whether to look for the nearest class centres at all.
        hold_bytes: see above; 0 always passes twice.
        moments: of the training features, as in the :attr:`LayerCurves.moments` of an earlier call with the same tap
            and pooling.
        split: recorded beside every value.
        forward: how to run the model on a batch's inputs; ``model(inputs)`` by default.

    Raises:
        EmptyDataError: if there is no batch.
        ArgumentError: if an option is wrong, if a layer did not run, or ran twice, if a second pass is needed and the
            loader is an iterator, or gives another number of samples.
        LabelError, NonFiniteError, ShapeError: if a label or a feature is wrong.

    Example:
        >>> model = nn.Sequential(nn.Linear(1, 2, bias=False), nn.ReLU(), nn.Linear(2, 2, bias=False))
        >>> with torch.no_grad():
        ...     _ = model[0].weight.copy_(torch.tensor([[1.0], [-1.0]]))
        ...     _ = model[2].weight.copy_(torch.eye(2))
        >>> data = [(torch.tensor([[1.0], [3.0], [-1.0], [-3.0]]), torch.tensor([0, 0, 1, 1]))]
        >>> curves = probe_layers(model, data)
        >>> curves.layers, curves.ncc_error, curves.cdnv
        (('0', '2'), (0.0, 0.0), (0.125, 0.125))
        >>> curves = probe_layers(model, [(x, y.flip(0)) for x, y in data], moments=curves.moments, split="test")
        >>> curves.ncc_error
        (1.0, 1.0)
    """
    if (mask_of is not None) != (pooling == "mask"):
        raise ArgumentError(f"mask_of and pooling='mask' go together, got mask_of={mask_of!r} and pooling={pooling!r}")
    for name, value in (("layers", layers), ("moments", moments)):
        if value is not None and not value:
            raise ArgumentError(f"{name} must name at least one layer, got none; pass None for all")
    if num_classes is None:
        known = None if moments is None else next(iter(moments.values())).num_classes
        num_classes = known or num_outputs(model.get_submodule(find_classifier(model)))
    check_positive("num_classes", num_classes)
    probe = Probe(model, list(moments) if layers is None and moments else layers, tap=tap, pooling=pooling)
    own: dict[str, ClassMoments] = {}
    centers = NearestCenters(moments or own)
    held = Held(hold_bytes if ncc and moments is None else 0)

    def first(features: dict[str, Tensor], labels: Tensor, output: Any) -> None:
        _check_batch(features, labels, moments)
        update(own, features, labels, num_classes, scatter=scatter)
        if ncc and moments is not None:
            second(features, labels, output)
        elif ncc:
            held.add(features, labels, _decisions(output, num_classes))
            if not held.complete and isinstance(loader, Iterator):
                raise ArgumentError(
                    f"loader must give its batches twice, as they take more than hold_bytes={hold_bytes}, got an "
                    f"iterator ({type(loader).__name__}); pass a DataLoader or a list, or ncc=False"
                )

    def second(features: dict[str, Tensor], labels: Tensor, output: Any) -> None:
        centers.add(features, labels, _decisions(output, num_classes))

    run(model, loader, probe, first, forward=forward, mask_of=mask_of)
    if not own:
        raise EmptyDataError("loader must hold at least one (inputs, labels) batch, got none")
    if ncc and moments is None:
        for batch in held.batches:
            centers.add(*batch)
        if not held.complete:
            run(model, loader, probe, second, forward=forward, mask_of=mask_of)
        _check_samples(centers, own)
    return _curves(own, centers, split)


def _check_batch(features: Mapping[str, Tensor], labels: Tensor, moments: Mapping[str, ClassMoments] | None) -> None:
    for name, h in features.items():
        if isinstance(labels, Tensor) and labels.ndim and len(h) != len(labels):
            raise ShapeError(
                f"layer {name!r} must give one row a sample, {len(labels)} as there are labels, got {len(h)}; "
                "samples must be the first dimension"
            )
        if moments is not None and name not in moments:
            raise ArgumentError(f"moments must hold those of layer {name!r}, got those of {list(moments)}")


def _check_samples(centers: NearestCenters, moments: Mapping[str, ClassMoments]) -> None:
    samples = int(next(iter(moments.values())).count.sum())
    if centers.samples != samples:
        raise ArgumentError(
            f"loader must give the same samples at every pass, got {samples} and then {centers.samples}; pass a "
            "DataLoader or a list"
        )


def _decisions(output: Any, num_classes: int) -> Tensor | None:
    """Return the class ``(B,)`` that the network decides for, or None if its output is not logits."""
    try:
        logits = logits_of(output, num_classes)
    except ShapeError:
        return None
    check_finite(logits, "logits")
    return logits.argmax(dim=1)


def _curves(moments: Mapping[str, ClassMoments], centers: NearestCenters, split: str) -> LayerCurves:
    def along(values: Mapping[str, float]) -> tuple[float, ...]:
        return tuple(values.get(name, torch.nan) for name in moments)

    cdnv, nc1 = {}, {}
    for name, of_layer in moments.items():
        cdnv[name] = F.cdnv(of_layer).item()
        nc1[name] = F.nc1(of_layer, "pinv" if of_layer.has_scatter else "ratio").item()
    return LayerCurves(moments, along(centers.errors), along(centers.mismatches), along(cdnv), along(nc1), split)
