"""One split of the data being measured: moments of every place, and sums over samples."""

from __future__ import annotations

import warnings
from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from tightframe.errors import ArgumentError, EmptyDataError, Notice, ShapeError, TightframeError
from tightframe.functional import registry
from tightframe.functional.samples import Judge
from tightframe.moments import ClassMoments
from tightframe.probing.batches import Reading
from tightframe.probing.held import Held

if TYPE_CHECKING:
    from tightframe.probing.engine import Engine

FEATURES = "features"
T = TypeVar("T")


class Place(NamedTuple):
    """Where features are read.

    Args:
        layer: Dotted name of a module, or ``features`` for the classifier's input.
        tap: Tap ``input``, ``prepared``, ``pre`` or ``post``.
    """

    layer: str
    tap: str


class Looked(NamedTuple):
    """Tensors of one batch: features ``(B, d)`` by place, labels ``(B,)``, and logits ``(B, K)`` if there are any."""

    features: dict[Place, Tensor]
    labels: Tensor
    logits: Tensor | None

    def each(self, function: Callable[[Tensor], Tensor]) -> Looked:
        """Return the function of every tensor."""
        features = {place: function(h) for place, h in self.features.items()}
        return Looked(features, function(self.labels), None if self.logits is None else function(self.logits))


@dataclass(frozen=True)
class Measured:
    """Result of one split.

    Args:
        split: Name of the split.
        moments: Class moments of every place.
        values: Metrics of every place by id.
    """

    split: str
    moments: dict[Place, ClassMoments]
    values: dict[Place, dict[str, float]]


class Split:
    """Moments and sums over samples of one split.

    Args:
        engine: Engine that runs the model.
        name: Name of the split.
        reading: Batches of the split; None if they are added by hand.
        reference: Moments by place that samples are judged by; None if there are none.
        own: Whether samples are judged by the moments of this split itself, after a second look.
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
        self._with_means: dict[Place, list[registry.Row]] = {}  # of those of samples
        self._without_means: dict[Place, list[registry.Row]] = {}
        self._judges: dict[Place, Judge] = {}
        self._sums: dict[Place, dict[str, Tensor]] = defaultdict(dict)
        self._held = Held(engine.hold_bytes, engine.spill_bytes)

    def add(self, looked: Looked) -> None:
        """Add one batch."""
        features, labels, logits = looked
        for place, h in features.items():
            if place not in self.moments:
                self._begin(place, h.shape[1], h.device, logits is not None)
            self.moments[place].update(h, labels)
        if self.engine.on_batch is not None and not self._quiet:
            self.engine.on_batch(self.name, looked)
        if not len(labels):
            return
        self._samples += len(labels)
        for place, h in features.items():
            self._judge(place, h, labels, self._reference, self._without_means[place], logits=logits)
        if self._own:
            kept: dict[Any, Tensor] = {place: h for place, h in features.items() if self._with_means[place]}
            if kept:
                decision = {} if logits is None else {"decision": logits.argmax(dim=1)}
                self._held.add(kept | {"labels": labels} | decision)
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
        known = None if self._reference is None else self._reference[place]
        if known is not None and (known.num_classes, known.dim) != (num_classes, dim):
            raise ShapeError(
                f"reference moments must be of K = {num_classes} classes and width d = {dim} for layer "
                f"{place.layer!r}, got K = {known.num_classes} and d = {known.dim}"
            )
        self.moments[place] = ClassMoments(num_classes, dim, scatter=self.engine.scatter, device=device)
        rows = self._rows[place] = self.engine.rows_at(place, logits)
        of_samples = [row for row in rows if "samples" in row.metric.needs]
        self._with_means[place] = [row for row in of_samples if "means" in row.metric.needs]
        self._without_means[place] = [row for row in of_samples if "means" not in row.metric.needs]
        self._logits = logits

    def _judge(
        self,
        place: Place,
        h: Tensor,
        labels: Tensor,
        moments: Mapping[Place, ClassMoments] | None,
        others: list[registry.Row],
        **given: Tensor | None,
    ) -> None:
        """Add up the values of samples: of the rows that need class means, if there are moments, and of others."""
        rows = others if moments is None else [*self._with_means[place], *others]
        if not rows:
            return
        if place not in self._judges:
            weight = self.engine.weights()[0] if moments is not None and place.layer == FEATURES else None
            weight = None if weight is None else weight.to(h.device)
            self._judges[place] = Judge(None if moments is None else moments_on(moments[place], h.device), weight)
        for metric, values in self._judges[place].look(rows, h, labels, **given).items():
            self._sums[place][metric] = self._sums[place].get(metric, 0) + values.sum()

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
        self.moments = {place: self.moments[place] for place in dims}  # sums are added in this order on every rank

    def reduce_sums(self) -> None:
        """Add the sums of all ranks."""
        judged = self._own or self._reference is not None
        rows = [
            (place, row.id)
            for place in self.moments
            for row in self._rows[place]
            if "samples" in row.metric.needs and (judged or "means" not in row.metric.needs)
        ]
        packed = [float(self._sums[place].get(metric, 0.0)) for place, metric in rows]
        device = next((moments.device for moments in self.moments.values()), None)
        sums = torch.tensor([*packed, self._samples], dtype=torch.float64, device=device)
        dist.all_reduce(sums)
        self._samples = int(sums[-1])
        for (place, metric), value in zip(rows, sums, strict=False):
            self._sums[place][metric] = value

    def look_again(self) -> None:
        """Judge samples by the means of this split itself, which are known now: from memory, or in one more pass."""
        if self._held.complete:
            self._judges = {}  # those of the first look know no means
            for batch in self._held:
                labels, decision = batch.pop("labels"), batch.pop("decision", None)
                for place, h in batch.items():
                    self._judge(place, h, labels, self.moments, [], decision=decision)
            self._held.close()
            return
        again = Split(self.engine, self.name, self._reading, self.moments)
        again._quiet = True
        self.engine.passes(self._reading, again.add)  # type: ignore[arg-type]  # add() has refused a second look at none
        if again._samples != self._samples:
            raise ArgumentError(
                f"loader must give the same samples at every pass, got {self._samples} and then {again._samples}; pass "
                "a DataLoader or a list"
            )
        for place, moments in ({} if self.engine.all_ranks else again.moments).items():
            before = self.moments[place].mean
            if (moments.mean - before).abs().amax() > 1e-3 * before.abs().amax():
                warnings.warn(
                    "the loader gave other samples at its second pass, as random augmentation does: they are judged by "
                    "the means of the first pass; raise hold_bytes or spill_bytes to read it once",
                    Notice,
                    stacklevel=2,
                )
                break
        self._sums = again._sums

    def result(self) -> Measured:
        """Return the metrics of every place.

        Raises:
            EmptyDataError: if there was no batch.
        """
        if not self._samples:
            raise EmptyDataError(f"split {self.name!r} must hold at least one sample that is not ignored, got none")
        values = {}
        for place, moments in self.moments.items():
            weight, bias = self.engine.weights() if place.layer == FEATURES else (None, None)
            weight, bias = (None if part is None else part.to(moments.device) for part in (weight, bias))
            found = registry.evaluate(self._rows[place], moments, weight=weight, bias=bias, frame=weight)
            found |= {metric: total / self._samples for metric, total in self._sums[place].items()}
            order = [row.id for row in self._rows[place] if row.id in found]
            values[place] = {metric: found[metric].item() for metric in order}
        return Measured(self.name, self.moments, values)


def gathered(value: Any) -> list[Any]:
    """Return the values of all ranks."""
    values: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(values, value)
    return values


def together(work: Callable[[], T], all_ranks: bool = True) -> T:
    """Return the result of some work. With ``all_ranks`` it fails on every rank or on none, so that no rank waits."""
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
    """Return moments on a device; the same object if they are there."""
    if moments.device == device:
        return moments
    return ClassMoments(moments.num_classes, moments.dim, scatter=moments.has_scatter, packed=moments.packed.to(device))
