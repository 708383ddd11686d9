"""The data of a source, and the two splitting rules that several sources share."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset, TensorDataset

from tightframe.errors import (
    ArgumentError,
    DtypeError,
    ShapeError,
    check_positive,
    require_extra,
)

StrPath = str | os.PathLike[str]


@dataclass(frozen=True)
class ClassificationData:
    """The parts of a classification problem and its classes.

    Args:
        train: map-style dataset of ``(input, label)``, labels in 0..K-1.
        validation: the same, or None if nothing was set aside.
        test: the same.
        num_classes: K.
        class_names: K names; label k is ``class_names[k]``.
        class_counts: ``(K,)`` int64, training samples of each class; 0 for a class that only other parts have.
        paths: K paths from the root of a hierarchy, root excluded, down to the class, or None without a hierarchy.
            A node is its whole path, so two nodes may end in the same name.

    Raises:
        ShapeError: if ``class_names``, ``class_counts`` or ``paths`` do not have K entries.
        DtypeError: if ``class_counts`` is not int64.
    """

    train: Dataset[Any]
    validation: Dataset[Any] | None
    test: Dataset[Any]
    num_classes: int
    class_names: tuple[str, ...]
    class_counts: Tensor
    paths: tuple[tuple[str, ...], ...] | None = None

    def __post_init__(self) -> None:
        check_positive("num_classes", self.num_classes)
        if self.class_counts.dtype != torch.int64:
            raise DtypeError(f"class_counts must be int64, got {self.class_counts.dtype}; convert with .long()")
        if tuple(self.class_counts.shape) != (self.num_classes,):
            raise ShapeError(
                f"class_counts must have shape (K,) = ({self.num_classes},), got {tuple(self.class_counts.shape)}"
            )
        for name, values in (("class_names", self.class_names), ("paths", self.paths)):
            if values is not None and len(values) != self.num_classes:
                raise ShapeError(f"{name} must have K = {self.num_classes} entries, got {len(values)}")

    @classmethod
    def of(
        cls,
        train: Dataset[Any],
        validation: Dataset[Any] | None,
        test: Dataset[Any],
        labels: Tensor,
        class_names: Sequence[str],
        paths: tuple[tuple[str, ...], ...] | None = None,
    ) -> ClassificationData:
        """Return the parts with the number of classes and their counts, from their names and the training labels."""
        names = tuple(class_names)
        counts = labels.bincount(minlength=len(names))
        return cls(train, validation, test, len(names), names, counts, paths)


class DataSource(ABC):
    """A cheap description of data: the constructor checks and keeps its arguments, :meth:`load` does the work."""

    @abstractmethod
    def load(self) -> ClassificationData:
        """Read the data; equal descriptions give equal data in equal order."""


class TensorSamples(TensorDataset):
    """Inputs ``(N, ...)`` and int64 labels ``(N,)`` in memory."""

    @property
    def labels(self) -> Tensor:
        """Labels ``(N,)``."""
        return self.tensors[1]

    def subset(self, indices: Tensor) -> TensorSamples:
        """Return the samples at ``indices``."""
        return TensorSamples(*(tensor[indices] for tensor in self.tensors))


class HoldOutSource(DataSource):
    """A source that sets a share of its training part aside for validation.

    Args:
        validation_fraction: Share of each class for validation, in [0, 1).
        seed: Seed of that split, >= 0.

    Raises:
        ArgumentError: if an argument lies outside its range, or (from :meth:`load`) a part would miss a class.
    """

    def __init__(self, validation_fraction: float, seed: int) -> None:
        check_fraction("validation_fraction", validation_fraction)
        check_positive("seed", seed, minimum=0)
        self.validation_fraction = validation_fraction
        self.seed = seed

    @abstractmethod
    def _read(self) -> ClassificationData:
        """Return the whole training part, which has ``labels`` and ``subset(indices)``, and the others."""

    def load(self) -> ClassificationData:
        """Read the parts, and set the validation part aside; equal descriptions give equal data in equal order."""
        data = self._read()
        if not self.validation_fraction:
            return data
        whole: Any = data.train
        rest, held_out = stratified_split(whole.labels, self.validation_fraction, self.seed)
        counts = whole.labels[rest].bincount(minlength=data.num_classes)
        return replace(data, train=whole.subset(rest), validation=whole.subset(held_out), class_counts=counts)


def differing(one: Sequence[Any], other: Sequence[Any], shown: int = 5) -> str:
    """Say how many entries are in one of two sequences alone, and name the first; "" if there are none.

    Example:
        >>> differing("abc", "bcd")
        '2 are in one alone: a, d'
    """
    alone = sorted(set(one) ^ set(other))
    names = ", ".join(map(str, alone[:shown])) + (", ..." if len(alone) > shown else "")
    return f"{len(alone)} are in one alone: {names}" if alone else ""


def check_fraction(name: str, value: float, zero: bool = True) -> None:
    """Raise :class:`ArgumentError` unless ``value`` lies in [0, 1), or in (0, 1) where ``zero`` is not allowed."""
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if not number or not 0 <= value < 1 or (value == 0 and not zero):
        raise ArgumentError(f"{name} must be a fraction in {'[' if zero else '('}0, 1), got {value!r}")


def check_imbalance(imbalance: float) -> None:
    """Raise :class:`ArgumentError` unless ``imbalance`` lies in (0, 1]."""
    if isinstance(imbalance, bool) or not isinstance(imbalance, int | float) or not 0 < imbalance <= 1:
        raise ArgumentError(
            f"imbalance must be the ratio smallest/largest class in (0, 1], 1 is balanced, got {imbalance!r}"
        )


def long_tailed_counts(num_classes: int, largest: int, imbalance: float) -> Tensor:
    """Return the class sizes of an exponential long tail, in label order.

    ``n_k = max(1, int(largest * imbalance ** (k / (K - 1))))``: the protocol of Yang et al., NeurIPS 2022 ("Inducing
    neural collapse in imbalanced learning"). The floor of one sample is ours, so that no class vanishes.

    Args:
        num_classes: K, at least 1.
        largest: n_0, the size of class 0, at least 1.
        imbalance: n_{K-1} / n_0 in (0, 1]; 1 is balanced.

    Returns:
        ``(K,)`` int64, never increasing.

    Raises:
        ArgumentError: if an argument lies outside its range.

    Example:
        >>> long_tailed_counts(5, 100, 0.01)
        tensor([100,  31,  10,   3,   1])
    """
    check_positive("num_classes", num_classes)
    check_positive("largest", largest)
    check_imbalance(imbalance)
    last = max(num_classes - 1, 1)
    counts = [max(1, int(largest * imbalance ** (k / last))) for k in range(num_classes)]
    return torch.tensor(counts, device="cpu")


def stratified_split(labels: Tensor, fraction: float, seed: int) -> tuple[Tensor, Tensor]:
    """Split samples at random into two parts with the same class shares.

    Args:
        labels: ``(N,)`` integers.
        fraction: share of the second part, in (0, 1).
        seed: Seed of the shuffle, >= 0; the same seed gives the same split.

    Returns:
        ``(rest, part)``: int64 indices into ``labels``, each in shuffled order.

    Raises:
        ArgumentError: if ``fraction`` or ``seed`` lies outside its range, or a part would miss a class.
        ShapeError: if ``labels`` is not one-dimensional.

    Example:
        >>> import torch
        >>> labels = torch.tensor([0] * 8 + [1] * 4)
        >>> rest, part = stratified_split(labels, 0.25, seed=0)
        >>> labels[rest].bincount(), labels[part].bincount()
        (tensor([6, 3]), tensor([2, 1]))
    """
    check_fraction("fraction", fraction, zero=False)
    check_positive("seed", seed, minimum=0)
    if labels.ndim != 1:
        raise ShapeError(f"labels must have shape (N,), got {tuple(labels.shape)}")
    selection = require_extra("sklearn.model_selection", "cli")
    try:
        rest, part = selection.train_test_split(
            range(len(labels)), test_size=fraction, random_state=seed, stratify=labels.numpy()
        )
    except ValueError as error:
        raise ArgumentError(f"fraction={fraction} leaves a part without some class: {error}") from error
    return torch.tensor(rest, device="cpu"), torch.tensor(part, device="cpu")
