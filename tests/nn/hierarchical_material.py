from __future__ import annotations

import torch

from tightframe.hierarchy import Tree

K, D = 5, 8  # as in test_classifiers; and D is N - 1 here
TREE = Tree.from_nested({"root": {"x": {"y": ["A", "B"], "C": None}, "z": ["D", "E"]}})
OTHER = Tree.from_nested({"root": {"x": {"y": ["A", "B"]}, "C": None, "z": ["D", "E"]}})  # of the same sizes
RELABELLED = Tree(TREE.parents, TREE.names, TREE.classes[::-1].copy())
DISTANCES = TREE.distances()


def material(size=6, dim=D, dtype=torch.float64):
    generator = torch.Generator().manual_seed(4)
    features = torch.randn(size, dim, dtype=torch.float64, generator=generator).to(dtype)
    return features, torch.randint(K, (size,), generator=generator)


def by_number(names, tree=TREE):
    """Return the numbers of nodes given by name."""
    return [tree.names.index(name) for name in names]
