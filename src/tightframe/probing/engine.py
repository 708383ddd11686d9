"""The measuring loop: every path from a model to moments and metrics goes through it."""

from __future__ import annotations

import contextlib
import itertools
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from operator import itemgetter
from typing import Any, Literal

import torch
from torch import Tensor, nn

from tightframe.errors import ArgumentError, EmptyDataError, Notice, ShapeError, check_positive
from tightframe.functional import registry
from tightframe.moments import ClassMoments
from tightframe.probing.batches import Forward, Reading, call, labels_of, split_batch
from tightframe.probing.classifier import HeadWatch
from tightframe.probing.names import trains_matrix
from tightframe.probing.passes import Logits, evaluating, logits_of, shown
from tightframe.probing.probe import Probe
from tightframe.probing.split import FEATURES, Looked, Measured, Place, Split, together

OWN = "own"


class Engine:
    """Measures one model: the classifier is found once, then any number of splits is measured.

    Args:
        model: Module that maps inputs to logits ``(B, K)``, or ``(B, ..., K)``.
        classifier: Dotted name of the classifier, the module itself, or ``(weight (K, d), bias (K,) or None)`` together
            with ``features``. None finds it by evidence in the first batch: the module whose output, for the input it
            received, is the model's. False measures ``layers`` alone.
        features: Module, or its name, whose output goes into the map ``(weight, bias)``.
        layers: Dotted names of further modules to measure, or patterns as in :func:`match_layers`; None for all linear
            maps that run.
        tap: Place where the features of ``layers`` are read, see :class:`Probe`.
        pooling: Way to turn tokens and maps into vectors there, see :class:`Probe`.
        mask_of: Function from a batch to the mask ``(B, T)`` of its tokens, for ``pooling="mask"``.
        forward: Function of the model and the inputs of a batch, in place of a plain call.
        logits: Key, index or function that finds the logits in the model's output.
        num_classes: Number of classes K; None for the number of logits.
        scatter: Whether to gather ``(d, d)`` scatters, which ``nc1.pinv`` and ``vci`` need.
        preset: Metrics to compute, see :func:`tightframe.functional.collapse_metrics`; None for ``default`` at the
            classifier's input and ``layer`` at other layers.
        ignore_index: Label whose samples are left out, such as padding.
        hold_bytes: Memory for features that are looked at twice, once the class means are known.
        spill_bytes: Size of a temporary file for them when they take more memory; beyond it the data are read again.
        max_batches: Number of batches to read of each split; needed for loaders that never end.
        all_ranks: Whether the loaders of all ranks of ``torch.distributed`` make up the split; then all must measure.
        on_batch: Function of the name of a split and of what one of its batches gave.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        classifier: str | nn.Module | Sequence[Any] | Literal[False] | None = None,
        features: str | nn.Module | None = None,
        layers: Sequence[str] | None = (),
        tap: str = "input",
        pooling: str | None = "flatten",
        mask_of: Callable[[Any], Tensor] | None = None,
        forward: Forward | None = None,
        logits: Logits | None = None,
        num_classes: int | None = None,
        scatter: bool = True,
        preset: registry.Preset | None = None,
        ignore_index: int | None = None,
        hold_bytes: int = 2**28,
        spill_bytes: int = 2**32,
        max_batches: int | None = None,
        all_ranks: bool = False,
        on_batch: Callable[[str, Looked], None] | None = None,
    ) -> None:
        if (mask_of is not None) != (pooling == "mask"):
            raise ArgumentError(
                f"mask_of and pooling='mask' go together, got mask_of={mask_of!r} and pooling={pooling!r}"
            )
        if max_batches is not None:
            check_positive("max_batches", max_batches)
        self._rows, self._layer_rows = ("default", "layer") if preset is None else (preset, preset)
        registry.select(self._rows, ())  # an unknown one is an error before any work
        if isinstance(model, torch.jit.ScriptModule):
            raise ArgumentError(
                "model must be a module whose layers can be watched, got a scripted or traced one; measure the module "
                "it was made from"
            )
        self.model = model
        self.mask_of = mask_of
        self.forward = forward
        self.num_classes = num_classes
        self.scatter = scatter
        self.ignore_index = ignore_index
        self.hold_bytes = hold_bytes
        self.spill_bytes = spill_bytes
        self.max_batches = max_batches
        self.all_ranks = all_ranks
        self.on_batch = on_batch
        self._logits = logits
        self.watch = None if classifier is False else HeadWatch(model, classifier, features)
        self.tap = tap
        self.probe = None if layers is not None and not layers else Probe(model, layers, tap=tap, pooling=pooling)

    @property
    def device(self) -> torch.device:
        """Device of the model."""
        first = next(itertools.chain(self.model.parameters(), self.model.buffers()), None)
        return torch.device("cpu") if first is None else first.device

    @contextlib.contextmanager
    def watching(self) -> Iterator[None]:
        """Watch the model for :meth:`look`, as long as the ``with`` block lasts."""
        with self.probe or contextlib.nullcontext(), self.watch.watching() if self.watch else contextlib.nullcontext():
            yield

    def forget(self) -> None:
        """Forget a forward pass that was not looked at."""
        if self.probe is not None:
            self.probe.forget()
        if self.watch is not None:
            self.watch.forget()

    def look(self, labels: Any, output: Any) -> Looked:
        """Return features, labels and logits of the last forward pass, one row a sample.

        Args:
            labels: Labels ``(B,)``, or ``(B, ...)`` if every position has one.
            output: Output of the model.
        """
        labels = labels_of(labels, self.device)
        if labels.ndim == 2 and labels.shape[1] == 1 and getattr(output, "ndim", 0) == 2:
            labels = labels.squeeze(1)
        if labels.ndim > 1 and labels.shape == getattr(output, "shape", None):
            raise ShapeError(
                f"labels must have shape (B,) = ({len(labels)},), got {tuple(labels.shape)}, that of the logits; pass "
                "class indices, such as argmax(dim=1) of one-hot labels"
            )
        logits = self._read_logits(output, labels)
        features = {} if self.probe is None else {Place(n, self.tap): h for n, h in self.probe.take().items()}
        if self.watch is not None:
            tap, h = self.watch.read(logits)
            if self.tap == "input" and self.watch.head is not None:
                features.pop(Place(self.watch.head.name, "input"), None)  # the same as "features"
            features[Place(FEATURES, tap)] = h.flatten(0, -2) if h.shape[:-1] == labels.shape else h
            logits = logits if self.watch.head is None or logits is None else self.watch.head.logits(logits)
        if logits is not None:
            logits = logits.flatten(0, -2)
        labels = labels.flatten()
        for place, h in features.items():
            if h.ndim != 2 or len(h) != len(labels):
                raise ShapeError(
                    f"layer {place.layer!r} must give one row per sample, {len(labels)} like the labels, got "
                    f"{len(h)}; samples must be the first dimension"
                )
        looked = Looked(features, labels, logits)
        if self.ignore_index is not None:
            wanted = labels != self.ignore_index
            looked = looked.each(lambda tensor: tensor[wanted])
        # Without float64 on the device, all that follows is on the CPU.
        return looked.each(Tensor.cpu) if labels.device.type == "mps" else looked

    def _read_logits(self, output: Any, labels: Tensor) -> Tensor | None:
        try:
            logits = logits_of(output, self._logits)
            if logits.shape[:-1] != labels.shape and logits.ndim > 2 and logits.shape[2:] == labels.shape[1:]:
                logits = logits.movedim(1, -1)
            if logits.shape[-1] == 1:
                raise ShapeError(
                    "the model's output is one logit z per sample; measure it as two classes, with logits=lambda z: "
                    "torch.cat([0 * z, z], 1), classifier=(weight, bias), whose first rows are zero, and features="
                )
            expected = (*labels.shape, self.num_classes or logits.shape[-1])
            if logits.shape != expected:
                raise ShapeError(
                    f"the model's output must be logits of shape {expected} for labels {tuple(labels.shape)} and "
                    f"K = {expected[-1]}, got {tuple(logits.shape)}; pass logits=, which finds them in the output"
                )
        except ShapeError as error:
            if self.watch is None:
                return None
            if self.watch.found:
                raise
            warnings.warn(f"accuracy and NC4 are left out: {error}", Notice, stacklevel=2)
            return None
        self.num_classes = logits.shape[-1]
        return logits

    def passes(self, reading: Reading, each: Callable[[Looked], None]) -> None:
        """Read a loader once, run the model on its batches, and call ``each`` with the result."""
        # Random numbers come back last, when the workers of the loader have ended.
        with reading.undisturbed(), evaluating(self.model), torch.no_grad(), self.watching():
            for batch, kept in shown(reading.batches(self.device), len(reading) or None, "measuring"):
                if self.probe is not None and self.mask_of is not None:
                    mask = self.mask_of(batch)
                    if not bool((mask != 0).any(dim=-1).all()):
                        raise ArgumentError("mask_of must keep at least one token of every sample, got none of some")
                    self.probe.mask = mask.to(self.device)
                inputs, labels = split_batch(batch)
                if getattr(labels, "shape", (1,))[:1] == (0,):
                    continue
                output = call(self.model, inputs) if self.forward is None else self.forward(self.model, inputs)
                looked = self.look(labels, output)
                del batch, inputs, labels, output
                if kept is not None:
                    looked = looked.each(itemgetter(slice(max(kept, 0))))
                each(looked)
                del looked

    def weights(self) -> tuple[Tensor | None, Tensor | None]:
        """Return weight and bias of the classifier as they are now; None without one."""
        return (None, None) if self.watch is None or self.watch.head is None else self.watch.head.weights()

    def rows_at(self, place: Place, logits: bool) -> list[registry.Row]:
        """Return the metrics that can be computed at a place, with logits or without."""
        have = {"means", "samples"} | ({"scatter"} if self.scatter else set()) | ({"logits"} if logits else set())
        if place.layer != FEATURES or self.watch is None:
            return registry.select(self._layer_rows, have)
        head = self.watch.head
        fixed = head is not None and head.module is not None and not trains_matrix(head.module)
        have |= {"weight", "bias"} | ({"frame"} if fixed else set())
        rows = registry.select(self._rows, have)
        if not isinstance(self._rows, str):  # a list of ids
            for row in registry.select(self._rows, registry.NEEDS):
                if row not in rows:
                    needs = ", ".join(sorted(row.metric.needs - have))
                    warnings.warn(f"{row.id} is left out, as it needs {needs}", Notice, stacklevel=2)
        return rows

    def measure(
        self,
        data: Mapping[str, Iterable[Any] | Reading],
        reference: str | Mapping[Place, ClassMoments] | None = None,
    ) -> Iterator[Measured]:
        """Measure splits, first the one whose means judge the others.

        Args:
            data: Loaders, or their :class:`Reading`, by the name of the split.
            reference: Name of the split whose class means judge samples, ``"own"`` for the means of each split itself,
                or moments by place. None leaves out the metrics that need such means.

        Raises:
            EmptyDataError: if a split has no batch.
        """
        if not data:
            raise EmptyDataError("data must have at least one split, got none")
        names = list(data)
        if isinstance(reference, str) and reference != OWN:
            names.sort(key=lambda name: name != reference)
        known = reference if isinstance(reference, Mapping) else None
        for name in names:
            loader = data[name]
            reading = loader if isinstance(loader, Reading) else Reading(loader, self.max_batches)
            split = Split(self, name, reading, known, own=reference in (OWN, name))
            together(partial(self.passes, reading, split.add), self.all_ranks)
            if self.all_ranks:
                split.reduce()
            together(split.look_again, self.all_ranks)
            if self.all_ranks:
                split.reduce_sums()
            measured = split.result()
            if reference == name:
                known = measured.moments
            yield measured
