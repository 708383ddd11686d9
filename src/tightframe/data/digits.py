"""Scikit-learn's handwritten digits: 1797 real 8x8 images that are on every machine."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional
from torch.utils.data import TensorDataset

from tightframe.data.base import (
    ClassificationData,
    DataSource,
    check_fraction,
    check_imbalance,
    long_tailed_counts,
    stratified_split,
)
from tightframe.errors import check_positive, require_extra


class Digits(DataSource):
    """The digits 0 to 9 as float32 images in [0, 1], with a balanced or long-tailed training part.

    The smallest class of the training part sets n_0, and :func:`~tightframe.data.base.long_tailed_counts` the class
    sizes in label order; ``imbalance=1`` is therefore exactly balanced. Each class keeps its first samples in shuffled
    order, so with the same seed a longer tail is a subset of a shorter one. Validation and test keep all their samples
    (10 nearly equal classes) and do not depend on ``imbalance``.

    Args:
        imbalance: smallest over largest training class, in (0, 1].
        validation_fraction: share of the samples beside the test part that is set aside, in [0, 1).
        test_fraction: share of all samples, in (0, 1).
        flatten: Whether inputs are ``(64,)`` instead of ``(1, 8, 8)``.
        seed: Seed of the split; fixed by default so that all runs of a comparison share it.

    Raises:
        ArgumentError: if an argument lies outside its range, or (from :meth:`load`) a part would miss a class.

    Example:
        >>> data = Digits(imbalance=0.1).load()
        >>> data.class_counts
        tensor([139, 107,  83,  64,  49,  38,  29,  23,  17,  13])
    """

    def __init__(
        self,
        imbalance: float = 1.0,
        validation_fraction: float = 0.0,
        test_fraction: float = 0.2,
        flatten: bool = True,
        seed: int = 0,
    ) -> None:
        check_imbalance(imbalance)
        check_fraction("validation_fraction", validation_fraction)
        check_fraction("test_fraction", test_fraction, zero=False)
        check_positive("seed", seed, minimum=0)
        self.imbalance = imbalance
        self.validation_fraction = validation_fraction
        self.test_fraction = test_fraction
        self.flatten = flatten
        self.seed = seed

    def load(self) -> ClassificationData:
        """Return the parts as TensorDatasets of ``(float32 image, int64 label)``."""
        bunch = require_extra("sklearn.datasets", "cli").load_digits()
        images = torch.tensor(bunch.images / bunch.images.max(), dtype=torch.float32, device="cpu")
        images = images.flatten(1) if self.flatten else images.unsqueeze(1)
        labels = torch.tensor(bunch.target, dtype=torch.int64, device="cpu")

        train, test = stratified_split(labels, self.test_fraction, self.seed)
        validation = None
        if self.validation_fraction:
            rest, part = stratified_split(labels[train], self.validation_fraction, self.seed)
            train, validation = train[rest], train[part]
        smallest = int(labels[train].bincount().min())
        counts = long_tailed_counts(10, smallest, self.imbalance)
        train = _first_of_each_class(train, labels, counts)
        return ClassificationData(
            train=TensorDataset(images[train], labels[train]),
            validation=None if validation is None else TensorDataset(images[validation], labels[validation]),
            test=TensorDataset(images[test], labels[test]),
            num_classes=10,
            class_names=tuple(str(name) for name in bunch.target_names),
            class_counts=counts,
        )


def _first_of_each_class(indices: Tensor, labels: Tensor, counts: Tensor) -> Tensor:
    """Return the ``indices``, in their order, without those beyond the first ``counts[k]`` of each class k."""
    own = labels[indices]
    rank = functional.one_hot(own, len(counts)).cumsum(0).gather(1, own.unsqueeze(1)).squeeze(1)
    return indices[rank <= counts[own]]
