"""Free samples: no inputs but their own numbers, for models whose features are parameters."""

from __future__ import annotations

import torch

from tightframe.data.base import ClassificationData, DataSource, TensorSamples
from tightframe.errors import check_positive


class FreeSamples(DataSource):
    """N = K n samples whose input is their own index: the data of an unconstrained-feature model.

    A backbone such as :class:`tightframe.training.FreeFeatures` looks up a trained feature for each index. Samples of a
    class are neighbours. There is nothing to generalise to: the test part is the training part, and none is set aside.

    Args:
        num_classes: K.
        samples_per_class: n, the same for all classes.

    Raises:
        ArgumentError: if an argument is not a positive integer.

    Example:
        >>> data = FreeSamples(num_classes=3, samples_per_class=2).load()
        >>> data.train[3]
        (tensor(3), tensor(1))
        >>> data.class_counts
        tensor([2, 2, 2])
    """

    def __init__(self, num_classes: int, samples_per_class: int) -> None:
        check_positive("num_classes", num_classes)
        check_positive("samples_per_class", samples_per_class)
        self.num_classes = num_classes
        self.samples_per_class = samples_per_class

    def load(self) -> ClassificationData:
        """Return the samples as one TensorDataset of ``(0-d int64 index, int64 label)``."""
        labels = torch.arange(self.num_classes, device="cpu").repeat_interleave(self.samples_per_class)
        samples = TensorSamples(torch.arange(len(labels), device="cpu"), labels)
        return ClassificationData.of(samples, None, samples, labels, [str(k) for k in range(self.num_classes)])
