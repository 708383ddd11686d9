"""Scikit-learn's handwritten digits: 1797 real 8x8 images that are on every machine."""

from __future__ import annotations

from dataclasses import replace
from typing import cast

import torch
from torch import Tensor
from torch.nn import functional

from tightframe.data.base import (
    ClassificationData,
    HoldOutSource,
    TensorSamples,
    check_fraction,
    check_imbalance,
    long_tailed_counts,
    stratified_split,
)
from tightframe.errors import require_extra


class Digits(HoldOutSource):
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
        check_fraction("test_fraction", test_fraction, zero=False)
        super().__init__(validation_fraction, seed)
        self.imbalance = imbalance
        self.test_fraction = test_fraction
        self.flatten = flatten

    def _read(self) -> ClassificationData:
        bunch = require_extra("sklearn.datasets", "cli").load_digits()
        images = torch.tensor(bunch.images / bunch.images.max(), dtype=torch.float32, device="cpu")
        images = images.flatten(1) if self.flatten else images.unsqueeze(1)
        samples = TensorSamples(images, torch.tensor(bunch.target, dtype=torch.int64, device="cpu"))
        train, test = map(samples.subset, stratified_split(samples.labels, self.test_fraction, self.seed))
        return ClassificationData.of(train, None, test, train.labels, [str(name) for name in bunch.target_names])

    def load(self) -> ClassificationData:
        """Return the parts as TensorDatasets of ``(float32 image, int64 label)``."""
        data = super().load()
        counts = long_tailed_counts(10, int(data.class_counts.min()), self.imbalance)
        train = cast(TensorSamples, data.train)
        return replace(data, train=train.subset(_first_of_each_class(train.labels, counts)), class_counts=counts)


def _first_of_each_class(labels: Tensor, counts: Tensor) -> Tensor:
    """Return where the first ``counts[k]`` samples of each class k are, in order."""
    rank = functional.one_hot(labels, len(counts)).cumsum(0).gather(1, labels.unsqueeze(1)).squeeze(1)
    return (rank <= counts[labels]).nonzero().squeeze(1)
