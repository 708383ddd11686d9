"""A small recipe and data for it, which the tests of configurations share."""

from dataclasses import replace

import torch
from torch.utils.data import TensorDataset

from tightframe.config import Method, Part, Recipe
from tightframe.data import ClassificationData

K = 5


def data(shape=(3, 4, 2), validation=True):
    labels = torch.arange(40) % K
    part = TensorDataset(torch.rand(40, *shape), labels)
    names = tuple("abcde")
    return ClassificationData(part, part if validation else None, part, K, names, labels.bincount())


def recipe(**changes):
    plain = Recipe(
        data=Part("Digits"),
        backbone=Part("MLP", {"widths": [8, 6]}),
        methods={"learned": Method(Part("LinearClassifier"))},
        optimizer=Part("SGD", {"lr": 0.1}),
        epochs=2,
        batch_size=16,
    )
    return replace(plain, **changes)
