"""Layer curves (nearest-class-centre error, CDNV and NC1 of every layer of a network) and its effective depth."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from tightframe.errors import ArgumentError, EmptyDataError, check_choice, check_positive
from tightframe.moments import ClassMoments
from tightframe.probing.batches import Forward, Reading
from tightframe.probing.engine import OWN, Engine
from tightframe.probing.split import Place
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
        tap: where the layers were read.
    """

    moments: Mapping[str, ClassMoments]
    ncc_error: tuple[float, ...]
    ncc_mismatch: tuple[float, ...]
    cdnv: tuple[float, ...]
    nc1: tuple[float, ...]
    split: str
    tap: str = "post"

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
                    records.add(metric, values[i], split=self.split, layer=layer, tap=self.tap)
        return records


def probe_layers(
    model: nn.Module,
    loader: Iterable[Any] | Reading,
    *,
    layers: Sequence[str] | None = None,
    tap: str = "post",
    pooling: str | None = None,
    mask_of: Callable[[Any], Tensor] | None = None,
    num_classes: int | None = None,
    scatter: bool = False,
    ncc: bool = True,
    hold_bytes: int = 2**28,
    spill_bytes: int = 2**32,
    moments: Mapping[str, ClassMoments] | None = None,
    split: str = "train",
    forward: Forward | None = None,
    all_ranks: bool = False,
) -> LayerCurves:
    r"""Measure nearest-class-centre error, CDNV and NC1 of every layer, in eval mode at one snapshot of the weights.

    .. math:: \mathrm{err}_i = P\bigl[\arg\min_k \lVert h_i(x) - \mu_{i,k}\rVert \ne y(x)\bigr]

    with :math:`h_i` the representation of layer i and :math:`\mu_{i,k}` its class means over the *training* samples
    (Galanti, Galanti & Ben-Shaul 2022; the mismatch with the network's own decision is Ben-Shaul & Dekel's, 2022).

    The class means of all layers come from one pass. The nearest of them is found afterwards, for features held in
    ``hold_bytes`` of memory, else in a temporary file of ``spill_bytes``, else in a second pass; the memory needed then
    is that of one batch and of the moments, two float64 matrices ``(K, d)`` a layer, whatever N is. For data that are
    not the training data, pass the training ``moments``, and one pass does.

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
        num_classes: K; None for the number of logits.
        scatter: gather ``(d, d)`` scatters, for ``nc1.pinv`` in place of ``nc1.ratio``.
        ncc: whether to look for the nearest class centres at all.
        hold_bytes: memory for features that are looked at twice.
        spill_bytes: size of a temporary file for them once they take more; 0 passes twice instead.
        moments: of the training features, as in the :attr:`LayerCurves.moments` of an earlier call with the same tap
            and pooling.
        split: recorded beside every value.
        forward: how to run the model on a batch's inputs; ``model(inputs)`` by default.
        all_ranks: whether the loaders of all ranks of ``torch.distributed`` make up the split.

    Raises:
        EmptyDataError: if there is no batch.
        ArgumentError: if an option is wrong, if a layer did not run, or ran twice, if a second pass is needed and the
            loader is an iterator, or gives another number of samples.
        LabelError, NonFiniteError, ShapeError: if a label or a feature is wrong.

    Example:
        >>> import torch
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
    for name, value in (("layers", layers), ("moments", moments)):
        if value is not None and not value:
            raise ArgumentError(f"{name} must name at least one layer, got none; pass None for all")
    if moments is not None:
        num_classes = num_classes or next(iter(moments.values())).num_classes
    if num_classes is not None:
        check_positive("num_classes", num_classes)
    engine = Engine(
        model,
        classifier=False,
        layers=list(moments) if layers is None and moments else layers,
        tap=tap,
        pooling=pooling,
        mask_of=mask_of,
        forward=forward,
        num_classes=num_classes,
        scatter=scatter,
        layer_rows=(["ncc.error", "ncc.mismatch"] if ncc else []) + ["cdnv", "nc1.pinv" if scatter else "nc1.ratio"],
        hold_bytes=hold_bytes,
        spill_bytes=spill_bytes,
        all_ranks=all_ranks,
    )
    reference = None if moments is None else {Place(name, tap): of_layer for name, of_layer in moments.items()}
    (measured,) = engine.measure({split: loader}, OWN if reference is None else reference)

    def along(metric: str) -> tuple[float, ...]:
        return tuple(values.get(metric, math.nan) for values in measured.values.values())

    found = {place.layer: of_layer for place, of_layer in measured.moments.items()}
    return LayerCurves(
        found,
        along("ncc.error"),
        along("ncc.mismatch"),
        along("cdnv"),
        along("nc1.pinv" if scatter else "nc1.ratio"),
        split,
        tap,
    )


def effective_depth(curve: Sequence[float], epsilon: float = 0.01, mode: str = "suffix") -> int | None:
    r"""Return the ε-effective depth of a network (Galanti, Galanti & Ben-Shaul 2022, arXiv 2202.09028).

    .. math:: \min\{i : \mathrm{err}_i \le \varepsilon\} \quad(\text{first}), \qquad
        \min\{i : \mathrm{err}_j \le \varepsilon \;\forall j \ge i\} \quad(\text{suffix})

    Curves need not fall from layer to layer, least of all where layers are fixed: a model may be cut, or its layers
    locked, where the *suffix* begins.

    Args:
        curve: nearest-class-centre error of the layers 1..L in order of execution, such as
            :attr:`LayerCurves.ncc_error`. A layer whose error is nan does not pass.
        epsilon: ε in [0, 1).
        mode: ``"suffix"`` or ``"first"``.

    Returns:
        The layer, counted from 1, or None if no layer (``"suffix"``: not the last one) has an error of at most ε.

    Raises:
        EmptyDataError: if the curve is empty.
        ArgumentError: if ε or the mode is outside its range.

    Example:
        >>> curve = [0.3, 0.005, 0.04, 0.0, 0.0]
        >>> effective_depth(curve), effective_depth(curve, mode="first"), effective_depth(curve[:3])
        (4, 2, None)
    """
    check_choice("mode", mode, ("suffix", "first"))
    if not 0 <= epsilon < 1:
        raise ArgumentError(f"epsilon must lie in [0, 1), got {epsilon!r}")
    passes = [bool(error <= epsilon) for error in curve]
    if not passes:
        raise EmptyDataError("curve must hold the error of at least one layer, got none")
    if mode == "first":
        return passes.index(True) + 1 if True in passes else None
    failed = max((i for i, passed in enumerate(passes, start=1) if not passed), default=0)
    return failed + 1 if failed < len(passes) else None
