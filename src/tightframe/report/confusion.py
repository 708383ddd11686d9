"""Where in the hierarchy the mistakes of each run are: where they meet, and which class was taken for which."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tightframe.hierarchy import Tree
from tightframe.runs import RunDirectory

Ints = NDArray[np.int64]

MAX_GROUPS = 250
MOST_FREQUENT = 10


@dataclass(frozen=True)
class Groups:
    """Rows and columns of the heat map in the order of the tree: classes, or nodes of one level if these are too many.

    Args:
        nodes: ``(G,)`` node of each group.
        of_class: ``(K,)`` group of each class.
        level: depth of the nodes, where not every group is one class.
        blocks: Name, first group and number of groups of each child of the root; none if each is one group.
    """

    nodes: Ints
    of_class: Ints
    level: int | None
    blocks: tuple[tuple[str, int, int], ...]


@dataclass(frozen=True)
class RunMistakes:
    """Mistakes of one run in its last evaluation, its seeds added up.

    Args:
        run: name of the run.
        seeds: Seeds that have a file.
        epochs: completed epochs at the earliest and the latest of these evaluations.
        samples: Number of samples evaluated.
        nodes: ``(M, 3)`` node, mistakes whose label and prediction meet there, and mistakes that meet there or below.
        depths: Mistakes that meet at each depth of the tree.
        cells: ``(C, 3)`` group of the label, other group of the prediction, and samples.
        totals: ``(G,)`` samples by group of the label.
        frequent: Label, prediction, samples, all samples of the label and meeting node of the commonest mistakes.
    """

    run: str
    seeds: list[int]
    epochs: tuple[int, int]
    samples: int
    nodes: Ints
    depths: Ints
    cells: Ints
    totals: Ints
    frequent: list[tuple[str, str, int, int, str]]


@dataclass(frozen=True)
class Confusions:
    """Mistakes as the page shows them.

    Args:
        split: the split evaluated.
        groups: Names of the groups of the heat map; empty if the tree has no level with 2 to 250 of them.
        level: Depth of the groups, as in :class:`Groups`.
        blocks: Blocks of groups, as in :class:`Groups`.
        runs: one a run that has files.
    """

    split: str
    groups: list[str]
    level: int | None
    blocks: tuple[tuple[str, int, int], ...]
    runs: list[RunMistakes]


def gather_confusions(directory: RunDirectory, split: str) -> Confusions | None:
    """Add up the seeds' files of each run on a split; None without a tree or files.

    Files that cannot be read, or that know of more classes than the tree, are left out.
    """
    tree = directory.tree
    if tree is None:
        return None
    groups = tree_groups(tree) or Groups(np.zeros(0, int), np.zeros(tree.num_classes, int), None, ())
    found = [_of_run(directory, run, split, tree, groups) for run in directory.runs]
    runs = [each for each in found if each is not None]
    label_of = {node: label for label, node in enumerate(tree.classes.tolist())}
    names = [
        directory.class_name(label_of[node]) if node in label_of else tree.names[node] for node in groups.nodes.tolist()
    ]
    return Confusions(split, names, groups.level, groups.blocks, runs) if runs else None


def _of_run(directory: RunDirectory, run: str, split: str, tree: Tree, groups: Groups) -> RunMistakes | None:
    known = [(t.seed, t.load_confusion(split)) for t in directory.trainings if t.run == run]
    read = {seed: c for seed, c in known if c is not None and (c.pairs < tree.num_classes).all()}
    if not read:
        return None
    pairs, counts = (np.concatenate([getattr(c, name).numpy() for c in read.values()]) for name in ("pairs", "counts"))
    pairs, counts = added_up(pairs, counts)
    epochs = [c.epoch for c in read.values()]
    here = meetings(tree, pairs, counts)
    in_all = sums_below(tree, here)
    some = np.flatnonzero(in_all)
    nodes, depths = np.stack([some, here[some], in_all[some]], axis=1), _sums(tree.depth, here, 0)[:-1]
    cells, totals = grouped(groups, pairs, counts)
    frequent = [
        (directory.class_name(label), directory.class_name(prediction), count, of, tree.names[node])
        for label, prediction, count, of, node in most_frequent(tree, pairs, counts)
    ]
    ends = (min(epochs), max(epochs))
    return RunMistakes(run, list(read), ends, int(counts.sum()), nodes, depths, cells, totals, frequent)


def meetings(tree: Tree, pairs: Ints, counts: Ints) -> Ints:
    """Return how many samples' label and prediction differ and meet at each node ``(N,)``."""
    wrong = pairs[:, 0] != pairs[:, 1]
    return _sums(lowest_common_ancestors(tree, pairs[wrong]), counts[wrong], len(tree.names))


def grouped(groups: Groups, pairs: Ints, counts: Ints) -> tuple[Ints, Ints]:
    """Return ``(C, 3)`` label's group, prediction's other group and samples; and the samples of groups ``(G,)``."""
    pairs, counts = added_up(groups.of_class[pairs], counts)
    cells = np.column_stack([pairs, counts])
    return cells[pairs[:, 0] != pairs[:, 1]], _sums(pairs[:, 0], counts, len(groups.nodes))


def most_frequent(tree: Tree, pairs: Ints, counts: Ints) -> list[tuple[int, int, int, int, int]]:
    """Return label, prediction, samples, all samples of the label and meeting node of the commonest mistakes."""
    wrong = np.flatnonzero(pairs[:, 0] != pairs[:, 1])
    chosen = wrong[np.argsort(-counts[wrong], kind="stable")][:MOST_FREQUENT]
    labels, predictions = pairs[chosen].T
    of_label = _sums(pairs[:, 0], counts, tree.num_classes)[labels]
    columns = (labels, predictions, counts[chosen], of_label, lowest_common_ancestors(tree, pairs[chosen]))
    return list(zip(*(column.tolist() for column in columns), strict=True))


def lowest_common_ancestors(tree: Tree, pairs: Ints) -> Ints:
    """Return the node ``(P,)`` at which the two classes of each pair ``(P, 2)`` meet: O(P depth).

    Example:
        >>> tree = Tree.from_nested({"E": ["A", "B"], "F": ["C", "D"]})
        >>> lowest_common_ancestors(tree, np.array([[0, 0], [0, 1], [1, 3]])).tolist()
        [2, 1, 0]
    """
    one, other = tree.classes[pairs].T
    while (one != other).any():
        # A node follows its parent, so of two different ones the higher number is not on the way from the other up.
        low, high = np.minimum(one, other), np.maximum(one, other)
        one, other = low, np.where(low == high, low, tree.parents[high])
    return one


def tree_groups(tree: Tree, limit: int = MAX_GROUPS) -> Groups | None:
    """Return the groups of the deepest level of at most ``limit`` of them; None if that is the root alone.

    Example:
        >>> tree = Tree.from_nested({"E": ["A", "B"], "F": ["C", "D"]})
        >>> tree_groups(tree, limit=3).of_class.tolist()
        [0, 0, 1, 1]
    """
    leaf = np.zeros(len(tree.names), dtype=bool)
    leaf[tree.classes] = True
    deepest = int(tree.depth.max())
    sizes = [int((tree.depth == level).sum() + (leaf & (tree.depth < level)).sum()) for level in range(deepest + 1)]
    level = max((level for level, size in enumerate(sizes) if size <= limit), default=0)
    if sizes[level] < 2:
        return None
    nodes, of_class = np.unique(_ancestors(tree, tree.classes, level), return_inverse=True)
    children, first, counts = np.unique(_ancestors(tree, nodes, 1), return_index=True, return_counts=True)
    blocks = zip((tree.names[child] for child in children), first.tolist(), counts.tolist(), strict=True)
    return Groups(
        nodes,
        of_class,
        level if len(nodes) < tree.num_classes else None,
        tuple(blocks) if counts.max() > 1 else (),
    )


def _ancestors(tree: Tree, nodes: Ints, level: int) -> Ints:
    """Return of each node its ancestor at a depth, or itself where it is less deep."""
    while (tree.depth[nodes] > level).any():
        nodes = np.where(tree.depth[nodes] > level, tree.parents[nodes], nodes)
    return nodes


def added_up(pairs: Ints, counts: Ints) -> tuple[Ints, Ints]:
    """Return each pair once, in order, with the sum of its counts."""
    size = int(pairs.max(initial=0)) + 1
    codes, place = np.unique(pairs[:, 0] * size + pairs[:, 1], return_inverse=True)
    return np.stack([codes // size, codes % size], axis=1), _sums(place, counts, len(codes))


def _sums(index: Ints, counts: Ints, size: int) -> Ints:
    """Return the sum of the counts at each index ``(size,)``."""
    return np.bincount(index, counts, size).astype(np.int64)


def sums_below(tree: Tree, counts: Ints) -> Ints:
    """Return the sum of the counts of each node and all nodes below it ``(N,)``."""
    sums = counts.copy()
    for node in range(len(sums) - 1, 0, -1):
        sums[tree.parents[node]] += sums[node]
    return sums
