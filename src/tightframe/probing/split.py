"""One split of the data being measured: moments of every place, and what samples give."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from tightframe._checks import ArgumentError, EmptyDataError, TightframeError
from tightframe.functional import ClassMoments, registry
from tightframe.functional.samples import Judge
from tightframe.probing.batches import Reading
from tightframe.probing.held import Held

if TYPE_CHECKING:
    from tightframe.probing.engine import Engine

FEATURES = "features"
T = TypeVar("T")


class Place(NamedTuple):
    """Where features are read.

    Args:
        layer: dotted name of a module, or ``features`` for the classifier's input.
        tap: ``input``, ``prepared``, ``pre`` or ``post``.
    """

    layer: str
    tap: str


class Looked(NamedTuple):
    """What one batch gave: features ``(B, d)`` by place, labels ``(B,)``, and logits ``(B, K)`` if there are any."""

    features: dict[Place, Tensor]
    labels: Tensor
    logits: Tensor | None

    def first(self, size: int) -> Looked:
        """Return the first samples alone."""
        features = {place: h[:size] for place, h in self.features.items()}
        return Looked(features, self.labels[:size], None if self.logits is None else self.logits[:size])


@dataclass(frozen=True)
class Measured:
    """What one split gave.

    Args:
        split: its name.
        moments: class moments of every place.
        values: metrics of every place by id.
    """

    split: str
    moments: dict[Place, ClassMoments]
    values: dict[Place, dict[str, float]]


class Split:
    """Moments, and sums over samples, of one split.

    Args:
        engine: engine that runs the model.
        name: name of the split.
        reading: its batches; None where they are added by hand.
        reference: moments by place that samples are judged by; None if there are none.
        own: whether they are judged by the moments of this split itself, after a second look.
    """

    def __init__(
        self,
        engine: Engine,
        name: str,
        reading: Reading | None = None,
        reference: Mapping[Place, ClassMoments] | None = None,
        own: bool = False,
    ) -> None:
        self.engine = engine
        self.name = name
        self._reading = reading
        self._quiet = False  # whether the batches have been seen before
        self.moments: dict[Place, ClassMoments] = {}
        self._reference = reference
        self._own = own
        self._samples = 0
        self._logits = False
        self._rows: dict[Place, list[registry.Row]] = {}
        self._judges: dict[Place, Judge] = {}
        self._sums: dict[Place, dict[str, Tensor]] = {}
        self._held = Held(engine.hold_bytes, engine.spill_bytes)

    def add(self, looked: Looked) -> None:
        """Fold in what one batch gave."""
        features, labels, logits = looked
        for place, h in features.items():
            if place not in self.moments:
                self._begin(place, h.shape[1], h.device, logits is not None)
            moments = self.moments[place]
            moments.update(h.to(moments.device), labels.to(moments.device))
        if self.engine.on_batch is not None and not self._quiet:
            self.engine.on_batch(self.name, looked)
        if not len(labels):
            return
        self._samples += len(labels)
        decision = None if logits is None else logits.argmax(dim=1)
        for place, h in features.items():
            self._judge(Judge(None), place, h, labels, logits=logits)
            if self._reference is not None and self._with_means(place):
                self._judge(self._judged_by(self._reference, place, h), place, h, labels, decision=decision)
        if self._own:
            kept: dict[Any, Tensor] = {place: h for place, h in features.items() if self._with_means(place)}
            if kept:
                self._held.add(kept | {"labels": labels} | ({} if decision is None else {"decision": decision}))
            if not self._held.complete and (self._reading is None or self._reading.once):
                kind = "none" if self._reading is None else type(self._reading.loader).__name__
                raise ArgumentError(
                    "loader must give its batches twice, as their features take more than hold_bytes="
                    f"{self.engine.hold_bytes} and spill_bytes={self.engine.spill_bytes}, got {kind}; pass a "
                    "DataLoader or a list, or raise one of the two"
                )

    def _begin(self, place: Place, dim: int, device: torch.device, logits: bool) -> None:
        if self._reference is not None and place not in self._reference:
            raise ArgumentError(f"moments must hold those of layer {place.layer!r}, got those of {[*self._reference]}")
        num_classes = self.engine.num_classes
        if num_classes is None:
            raise ArgumentError("num_classes must be given for a model that does not return logits (B, K), got None")
        device = torch.device("cpu") if device.type == "mps" else device  # which has no float64
        self.moments[place] = ClassMoments(num_classes, dim, scatter=self.engine.scatter, device=device)
        self._rows[place] = self.engine.rows_at(place, logits)
        self._logits = logits

    def _with_means(self, place: Place) -> list[registry.Row]:
        return [row for row in self._rows[place] if {"samples", "means"} <= row.metric.needs]

    def _judged_by(self, moments: Mapping[Place, ClassMoments], place: Place, h: Tensor) -> Judge:
        if place not in self._judges:
            weight = self.engine.weights()[0] if place.layer == FEATURES else None
            device = h.device if h.device.type != "mps" else torch.device("cpu")
            self._judges[place] = Judge(
                moments_on(moments[place], device), None if weight is None else weight.to(device)
            )
        return self._judges[place]

    def _judge(self, judge: Judge, place: Place, h: Tensor, labels: Tensor, **given: Tensor | None) -> None:
        rows = self._with_means(place)
        if "logits" in given:
            rows = [row for row in self._rows[place] if "samples" in row.metric.needs and row not in rows]
        if rows:
            sums = self._sums.setdefault(place, {})
            for metric, values in judge.look(rows, h, labels, **given).items():
                sums[metric] = sums.get(metric, 0) + values.sum()

    def reduce(self) -> None:
        """Merge the moments of all ranks, one without data included."""
        watch = self.engine.watch
        mine = {place: moments.dim for place, moments in self.moments.items()}
        facts = gathered((mine, self.engine.num_classes, self._logits, None if watch is None else watch.state))
        dims, num_classes, logits, head = next((fact for fact in facts if fact[0]), facts[0])
        if dims and not mine:
            self.engine.num_classes = num_classes
            if watch is not None:
                watch.state = head
        for place, dim in dims.items():
            if place not in self.moments:
                self._begin(place, dim, self.engine.device, logits)
            self.moments[place].all_reduce_()

    def reduce_sums(self) -> None:
        """Add what samples gave on all ranks."""
        judged = self._own or self._reference is not None
        rows = [
            (place, row.id)
            for place in self.moments
            for row in self._rows[place]
            if "samples" in row.metric.needs and (judged or "means" not in row.metric.needs)
        ]
        packed = [float(self._sums.get(place, {}).get(metric, 0.0)) for place, metric in rows]
        device = next((moments.device for moments in self.moments.values()), None)
        sums = torch.tensor([*packed, self._samples], dtype=torch.float64, device=device)
        dist.all_reduce(sums)
        self._samples = int(sums[-1])
        for (place, metric), value in zip(rows, sums, strict=False):
            self._sums.setdefault(place, {})[metric] = value

    def read(self) -> None:
        """Fold in the batches of the loader."""
        if self._reading is not None:
            self.engine.passes(self._reading, self.add)

    def look_again(self) -> None:
        """Judge samples by the means of this split itself, which are known now: those held, or read once more."""
        if self._held.complete:
            for batch in self._held:
                labels, decision = batch.pop("labels"), batch.pop("decision", None)
                for place, h in batch.items():
                    self._judge(self._judged_by(self.moments, place, h), place, h, labels, decision=decision)
            self._held.close()
            return
        again = Split(self.engine, self.name, self._reading, self.moments)
        again._quiet = True
        again.read()
        if again._samples != self._samples:
            raise ArgumentError(
                f"loader must give the same samples at every pass, got {self._samples} and then {again._samples}; pass "
                "a DataLoader or a list"
            )
        self._sums = again._sums

    def result(self) -> Measured:
        """Return the metrics of every place.

        Raises:
            EmptyDataError: if there was no batch.
        """
        if not self.moments:
            raise EmptyDataError(f"split {self.name!r} must hold at least one (inputs, labels) batch, got none")
        values = {}
        for place, moments in self.moments.items():
            weight, bias = self.engine.weights() if place.layer == FEATURES else (None, None)
            weight, bias = (None if part is None else part.to(moments.device) for part in (weight, bias))
            found = registry.evaluate(self._rows[place], moments, weight=weight, bias=bias, frame=weight)
            found |= {metric: total / self._samples for metric, total in self._sums.get(place, {}).items()}
            order = [row.id for row in self._rows[place] if row.id in found]
            values[place] = {metric: found[metric].item() for metric in order}
        return Measured(self.name, self.moments, values)


def gathered(value: Any) -> list[Any]:
    """Return what every rank has."""
    values: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(values, value)
    return values


def together(work: Callable[[], T], all_ranks: bool = True) -> T:
    """Return what some work gives; on all ranks it fails on all or on none, lest some wait for one that has failed."""
    if not all_ranks:
        return work()
    error: Exception | None = None
    try:
        result = work()
    except Exception as caught:
        error = caught
    said = gathered(None if error is None else f"{type(error).__name__}: {error}")
    if error is not None:
        raise error
    for rank, text in enumerate(said):
        if text is not None:
            raise TightframeError(f"measuring failed on rank {rank}: {text}")
    return result


def moments_on(moments: ClassMoments, device: torch.device) -> ClassMoments:
    """Return moments on a device; on their own they share memory."""
    return ClassMoments(moments.num_classes, moments.dim, scatter=moments.has_scatter, packed=moments.packed.to(device))
