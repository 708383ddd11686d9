"""Measure the collapse of a model: from its loaders, or while it runs in a loop of the user's."""

from __future__ import annotations

import contextlib
import warnings
from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tightframe.errors import ArgumentError, Notice, as_labels, as_tensor, check_choice, check_features
from tightframe.moments import ClassMoments
from tightframe.probing.batches import Forward
from tightframe.probing.engine import OWN, Engine
from tightframe.probing.evidence import Head
from tightframe.probing.probe import hooked
from tightframe.probing.split import FEATURES, Measured, Place, Split
from tightframe.records import Records

TRAIN = "train"
Reference = str | ClassMoments | Mapping[tuple[str, str], ClassMoments]


def measure(
    model: nn.Module | Tensor | Any,
    data: Iterable[Any] | Mapping[str, Iterable[Any]],
    *,
    classifier: str | nn.Module | Sequence[Any] | Literal[False] | None = None,
    layers: Sequence[str] | None = (),
    forward: Forward | None = None,
    reference: Reference | None = None,
    split: str = TRAIN,
    run: str = "",
    seed: int = 0,
    epoch: int = 0,
    step: int = 0,
    **options: Any,
) -> Records:
    """Measure the collapse of a model, in eval mode and in one pass over each split.

    Samples are judged by the class means of *training* features: nearest class mean, NC4 and cosine margin of a test
    split take the means of ``train``. A lone test split has no such means, so these metrics are left out with a notice.

    Loaders are read as they are, with their own samplers, workers and collate. Random numbers and modes are left as
    they were. A batch is ``(inputs, labels, ...)``, or a mapping with one of the keys ``labels``, ``label``,
    ``targets``, ``target`` and ``y``, whose other values are passed by keyword if the model's ``forward`` takes their
    names.

    Args:
        model: Module that maps inputs to logits ``(B, K)``; or features ``(N, d)``, with their labels ``(N,)`` as
            ``data``, and perhaps ``classifier=(weight, bias)`` or a linear layer.
        data: Loader of one split, or a mapping from the names of splits to loaders.
        classifier: Dotted name of the classifier, the module, or ``(weight (K, d), bias (K,) or None)`` together with
            ``features``. None finds it by evidence; False measures ``layers`` alone.
        layers: Dotted names of further modules to measure, or patterns as in :func:`match_layers`; None for all linear
            maps that run.
        forward: Function of the model and the inputs of a batch, in place of a plain call.
        reference: Name of the split whose class means judge samples (``train``), moments of the classifier's input,
            moments by ``(layer, tap)``, or ``"own"`` for the means of each split itself.
        split: Name of a lone loader's split.
        run: Name written into every row.
        seed: Seed written into every row.
        epoch: Epoch written into every row.
        step: Step written into every row.
        options: Further arguments of :class:`tightframe.probing.Engine`: ``preset``, ``num_classes``, ``features``,
            ``logits``, ``tap``, ``pooling``, ``mask_of``, ``scatter``, ``ignore_index``, ``hold_bytes``,
            ``spill_bytes``, ``max_batches``, ``all_ranks``.

    Returns:
        One row per split, place and metric. The classifier's input is called ``features``.

    Raises:
        EmptyDataError: if a split has no batch.
        ArgumentError: if no classifier is found, or an option is wrong.
        LabelError, NonFiniteError, ShapeError, DtypeError: if a label, a feature or an output is wrong.

    Example:
        >>> model = nn.Linear(2, 2, bias=False)
        >>> _ = nn.init.eye_(model.weight)
        >>> data = [(torch.tensor([[1.0, 0.0], [0.0, 1.0]]), torch.tensor([0, 1]))]
        >>> measure(model, {"train": data, "test": data}).value("nc4.agreement", split="test")
        1.0
    """
    if isinstance(model, Mapping):
        raise ArgumentError(
            "model must be a module or the features (N, d) of one split, got a mapping; call measure once per split"
        )
    if not isinstance(model, nn.Module):
        if isinstance(classifier, nn.Module):
            classifier = Head(FEATURES, classifier).weights()
        elif isinstance(classifier, Tensor):
            classifier = classifier, None
        labels = as_labels(data)
        data = [(as_tensor(model, "model"), labels)]
        model = nn.Sequential(OrderedDict({FEATURES: nn.Identity()}))
        if classifier:
            options |= {"features": FEATURES, "logits": partial(_logits, classifier)}
        else:
            layers, classifier = [FEATURES], False
            options["num_classes"] = options.get("num_classes") or (int(labels.max()) + 1 if len(labels) else 1)
    splits = dict(data) if isinstance(data, Mapping) else {split: data}
    engine = Engine(model, classifier=classifier, layers=layers, forward=forward, **options)
    records = Records()
    for measured in engine.measure(splits, reference_of(reference, list(splits))):
        record(records, measured, run=run, seed=seed, epoch=epoch, step=step)
    return records


def _logits(classifier: Any, features: Tensor) -> Tensor:
    weight, bias = (None if part is None else as_tensor(part, "classifier").to(features) for part in classifier)
    check_features(features, weight.shape[1])  # type: ignore[union-attr]  # the engine refuses a classifier without one
    return F.linear(features, weight, bias)  # type: ignore[arg-type]


def record(records: Records, measured: Measured, **columns: Any) -> None:
    """Append one row for each place and metric of a split."""
    for place, values in measured.values.items():
        for metric, value in values.items():
            records.add(metric, value, split=measured.split, layer=place.layer, tap=place.tap, **columns)


def reference_of(wanted: Reference | None, splits: Sequence[str]) -> str | Mapping[Place, ClassMoments] | None:
    """Return the reference that samples are judged by: a split, ``"own"``, moments by place, or None.

    Raises:
        ArgumentError: if it is none of these.
    """
    if isinstance(wanted, ClassMoments):
        return {Place(FEATURES, tap): wanted for tap in ("input", "prepared")}
    if isinstance(wanted, Mapping):
        if bad := [place for place in wanted if not (isinstance(place, tuple) and len(place) == 2)]:
            raise ArgumentError(f"reference must have keys (layer, tap), such as ('features', 'input'), got {bad[0]!r}")
        return {Place(*place): moments for place, moments in wanted.items()}
    if wanted is not None:
        check_choice("reference", wanted, (*splits, OWN))
        return wanted
    if TRAIN in splits:
        return TRAIN
    warnings.warn(
        f"no split {TRAIN!r} in {list(splits)}, so there are no training means to judge samples by: nearest-mean "
        "accuracy, NC4 and cosine margin are left out; pass {'train': ..., 'test': ...}, reference=moments, or "
        "reference='own'",
        Notice,
        stacklevel=3,
    )
    return None


class watch:  # noqa: N801  # used as a word: `with tf.watch(model) as seen`
    """Measure a model while it runs in a loop of the user's.

    Args:
        model: Module that maps inputs to logits ``(B, K)``, in eval mode.
        split: Name of the split that the loop goes over.
        reference: Moments as in :func:`measure`; None takes the means of this split itself if it is ``train``.
        options: Further arguments of :class:`tightframe.probing.Engine`, such as ``preset`` and ``layers``.

    Attributes:
        records: One row per place and metric, after the ``with`` block has ended.
        moments: Class moments by ``(layer, tap)``, for the ``reference`` of another split.

    Example:
        >>> model = nn.Linear(2, 2)
        >>> with watch(model, split="train") as seen:
        ...     for x, y in [(torch.eye(2), torch.tensor([0, 1]))]:
        ...         logits = model(x)
        ...         seen.add(y)
        >>> seen.records.value("nc1.ratio")
        0.0
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        split: str = TRAIN,
        reference: Reference | None = None,
        **options: Any,
    ) -> None:
        self.records = Records()
        self.moments: Mapping[Place, ClassMoments] = {}
        self._engine = Engine(model, **options)
        found = reference_of(reference, [split])
        known = found if isinstance(found, Mapping) else None
        self._split = Split(self._engine, split, None, known, own=isinstance(found, str))
        self._output: Any = None
        self._first = True
        self._hooks = contextlib.ExitStack()

    def __enter__(self) -> watch:
        def ends(module: nn.Module, given: Any, output: Any) -> None:
            self._output = (output,)

        self._hooks.enter_context(hooked([self._engine.model], lambda *_: self._engine.forget(), ends))
        self._hooks.enter_context(self._engine.watching())
        return self

    def add(self, labels: Any) -> None:
        """Add the forward pass that the model has just made, with its labels ``(B,)``.

        Raises:
            ArgumentError: if the model has not run since the last call.
        """
        if self._output is None:
            raise ArgumentError("add(labels) must follow a forward pass of the model, got none since the last call")
        if self._first and self._engine.model.training:
            warnings.warn(
                "the model is in training mode, so dropout and batch norm change its features; call model.eval() first",
                Notice,
                stacklevel=2,
            )
        (output,), self._output = self._output, None
        with torch.inference_mode(False), torch.no_grad():
            self._split.add(self._engine.look(labels, output))
        self._first = False

    def __exit__(self, kind: type[BaseException] | None, *exc_info: object) -> None:
        self._hooks.close()
        if kind is None:
            self._split.look_again()
            measured = self._split.result()
            self.moments = measured.moments
            record(self.records, measured)
