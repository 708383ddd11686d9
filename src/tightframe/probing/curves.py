"""Layer curves (nearest-class-centre error, CDNV and NC1 of every layer of a network) and its effective depth."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

from torch import nn

from tightframe.errors import ArgumentError, EmptyDataError, check_choice, check_positive
from tightframe.files import html_table
from tightframe.moments import ClassMoments
from tightframe.probing.batches import Reading
from tightframe.probing.engine import OWN, Engine
from tightframe.probing.split import Place
from tightframe.records import Records


@dataclass(frozen=True, repr=False)
class LayerCurves:
    """Separability and collapse of the layers 1..L of a network, in order of execution.

    Args:
        moments: Class moments of each layer's features, by name.
        ncc_error: Share of samples whose nearest class centre is not that of their label; nan if not asked for.
        ncc_mismatch: Share on which the network decides otherwise than the nearest class centre; nan also if the model
            does not return logits ``(B, K)``.
        cdnv: Values of :func:`tightframe.functional.cdnv`.
        nc1: Values of :func:`tightframe.functional.nc1`, ``"pinv"`` if the moments hold scatters, else ``"ratio"``.
        split: Name of the data.
        tap: Place where the layers were read.
    """

    moments: Mapping[str, ClassMoments]
    ncc_error: tuple[float, ...]
    ncc_mismatch: tuple[float, ...]
    cdnv: tuple[float, ...]
    nc1: tuple[float, ...]
    split: str
    tap: str = "post"

    def __repr__(self) -> str:
        return f"LayerCurves({len(self.moments)} layers, split={self.split!r}, tap={self.tap!r})"

    def _repr_html_(self) -> str:
        head = ["layer", "d", *(field.name for field in fields(self)[1:5])]
        columns = self.layers, self.dims, self.ncc_error, self.ncc_mismatch, self.cdnv, self.nc1
        rows = ([name, *(f"{value:.4g}" for value in values)] for name, *values in zip(*columns, strict=True))
        return html_table(head, rows)

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
        """One row per layer and metric: ``ncc.error``, ``ncc.mismatch``, ``cdnv``, ``nc1.pinv`` or ``nc1.ratio``."""
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
    num_classes: int | None = None,
    scatter: bool = False,
    ncc: bool = True,
    moments: Mapping[str, ClassMoments] | None = None,
    split: str = "train",
    **options: Any,
) -> LayerCurves:
    r"""Measure nearest-class-centre error, CDNV and NC1 of every layer, in eval mode at one snapshot of the weights.

    .. math:: \mathrm{err}_i = P\bigl[\arg\min_k \lVert h_i(x) - \mu_{i,k}\rVert \ne y(x)\bigr]

    with :math:`h_i` the representation of layer i and :math:`\mu_{i,k}` its class means over the *training* samples
    (Galanti, Galanti & Ben-Shaul 2022; the mismatch with the network's own decision is Ben-Shaul & Dekel's, 2022).

    The class means of all layers come from one pass. The nearest of them is found afterwards, for features held in
    ``hold_bytes`` of memory, else in a temporary file of ``spill_bytes``, else in a second pass. A second pass needs
    the memory of one batch and of the moments, two float64 matrices ``(K, d)`` per layer, for any N. For data other
    than the training data pass the training ``moments``; then one pass is enough.

    Args:
        model: Module; its modes are restored afterwards.
        loader: Loader of ``(inputs, labels)`` batches that gives the same samples at every pass: without augmentation,
            and without dropping the last batch of a shuffled epoch.
        layers: Dotted names of modules, or patterns as in :func:`match_layers`; None for all :func:`linear_maps` that
            run, or the layers of ``moments``. The order is that of execution.
        tap: Place where the representation of a layer is read, see :class:`Probe`: ``"post"``, as the next layer
            receives it (for the last layer: its output), ``"pre"``, as the layer returns it, or ``"input"``.
        pooling: Way to turn tokens and maps into one vector, see :class:`Probe`; None flattens maps and refuses tokens.
        num_classes: Number of classes K; None for the number of logits.
        scatter: Whether to gather ``(d, d)`` scatters, for ``nc1.pinv`` in place of ``nc1.ratio``.
        ncc: Whether to look for the nearest class centres at all.
        moments: Class moments of the training features, as in the :attr:`LayerCurves.moments` of an earlier call with
            the same tap and pooling.
        split: Name recorded beside every value.
        options: Further arguments of :class:`tightframe.probing.Engine`: ``mask_of``, ``forward``, ``logits``,
            ``hold_bytes``, ``spill_bytes``, ``max_batches``, ``all_ranks``.

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
    nc1 = "nc1.pinv" if scatter else "nc1.ratio"
    engine = Engine(
        model,
        classifier=False,
        layers=list(moments) if layers is None and moments else layers,
        tap=tap,
        pooling=pooling,
        num_classes=num_classes,
        scatter=scatter,
        preset=[*(["ncc.error", "ncc.mismatch"] if ncc else []), "cdnv", nc1],
        **options,
    )
    reference = None if moments is None else {Place(name, tap): of_layer for name, of_layer in moments.items()}
    (measured,) = engine.measure({split: loader}, OWN if reference is None else reference)

    def along(metric: str) -> tuple[float, ...]:
        return tuple(values.get(metric, math.nan) for values in measured.values.values())

    found = {place.layer: of_layer for place, of_layer in measured.moments.items()}
    return LayerCurves(
        found, along("ncc.error"), along("ncc.mismatch"), along("cdnv"), along(nc1), split=split, tap=tap
    )


def effective_depth(curve: Sequence[float], epsilon: float = 0.01, mode: str = "suffix") -> int | None:
    r"""Return the ε-effective depth of a network (Galanti, Galanti & Ben-Shaul 2022, arXiv 2202.09028).

    .. math:: \min\{i : \mathrm{err}_i \le \varepsilon\} \quad(\text{first}), \qquad
        \min\{i : \mathrm{err}_j \le \varepsilon \;\forall j \ge i\} \quad(\text{suffix})

    A curve may rise from one layer to the next, above all if layers are fixed. A model may be cut, or its
    layers locked, where the *suffix* begins.

    Args:
        curve: Nearest-class-centre error of the layers 1..L in order of execution, such as
            :attr:`LayerCurves.ncc_error`. A layer whose error is nan does not pass.
        epsilon: Largest error ε that passes, in [0, 1).
        mode: Rule, ``"suffix"`` or ``"first"``.

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
