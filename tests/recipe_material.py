"""A small recipe and data for it, which the tests of configurations share."""

from dataclasses import replace

import numpy as np
import torch
from torch.utils.data import TensorDataset

from tightframe.config import Method, Part, Recipe
from tightframe.data import ClassificationData
from tightframe.files import write_yaml

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


def tiny_recipe(folder):
    """Write a recipe with a hierarchy over forty features, trained in a moment; return its path."""
    generator = np.random.default_rng(0)
    labels = np.arange(40) % 4
    features = (np.eye(4)[labels] + 0.3 * generator.standard_normal((40, 4))).astype(np.float32)
    np.savez(folder / "features.npz", features=features, labels=labels)
    (folder / "tree.tsv").write_text("root\ta\nroot\tb\na\t0\na\t1\nb\t2\nb\t3\n")
    recipe = {
        "data": {"name": "FeatureFiles", "args": {"train": ["features.npz"], "test": ["features.npz"]}},
        "backbone": {"name": "MLP", "args": {"widths": [4]}},
        "methods": {"learned": {"classifier": {"name": "LinearClassifier"}}},
        "optimizer": {"name": "SGD", "args": {"lr": 0.1}},
        "hierarchy": "tree.tsv",
        "epochs": 2,
        "trainer": {"enable_progress_bar": False},
        "batch_size": 20,
    }
    write_yaml(folder / "recipe.yaml", recipe)
    return folder / "recipe.yaml"
