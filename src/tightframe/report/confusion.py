"""Where in the hierarchy the mistakes of each run are: where they meet, and which class was taken for which."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

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
class RunConfusion:
    """Mistakes of one run in its last evaluation, its seeds added up.

    Args:
        run: name of the run.
        seeds: Seeds that have a file.
        epochs: completed epochs at the earliest and the latest of these evaluations.
        pairs: ``(P, 2)`` label and prediction, no pair twice, in the order of labels and predictions.
        counts: ``(P,)`` samples of each.
    """

    run: str
    seeds: tuple[int, ...]
    epochs: tuple[int, int]
    pairs: Ints
    counts: Ints

    @property
    def samples(self) -> int:
        """Number of samples evaluated, over all seeds."""
        return int(self.counts.sum())

    @property
    def wrong(self) -> NDArray[np.bool_]:
        """``(P,)`` which pairs are mistakes."""
        return self.pairs[:, 0] != self.pairs[:, 1]

    def meeting(self, tree: Tree) -> Ints:
        """Return how many samples' label and prediction differ and meet at each node ``(N,)``."""
        wrong = self.wrong
        return _sums(lowest_common_ancestors(tree, self.pairs[wrong]), self.counts[wrong], len(tree.names))

    def grouped(self, groups: Groups) -> tuple[Ints, Ints]:
        """Return ``(C, 3)`` label's group, prediction's other group and samples; and the samples of groups ``(G,)``."""
        pairs, counts = _added_up(groups.of_class[self.pairs], self.counts)
        cells = np.column_stack([pairs, counts])
        return cells[pairs[:, 0] != pairs[:, 1]], _sums(pairs[:, 0], counts, len(groups.nodes))

    def most_frequent(self, tree: Tree) -> list[tuple[int, int, int, int, int]]:
        """Return label, prediction, samples, all samples of the label and meeting node of the commonest mistakes."""
        chosen = np.flatnonzero(self.wrong)
        chosen = chosen[np.argsort(-self.counts[chosen], kind="stable")][:MOST_FREQUENT]
        of_label = _sums(self.pairs[:, 0], self.counts, tree.num_classes)
        labels, predictions = self.pairs[chosen].T
        meeting = lowest_common_ancestors(tree, self.pairs[chosen])
        columns = (labels, predictions, self.counts[chosen], of_label[labels], meeting)
        return list(zip(*(column.tolist() for column in columns), strict=True))


@dataclass(frozen=True)
class Confusions:
    """Mistakes as the page shows them.

    Args:
        tree: hierarchy of the classes.
        split: the split evaluated.
        groups: Groups of the heat map; None if the tree has no level with 2 to 250 of them.
        runs: one a run that has files.
    """

    tree: Tree
    split: str
    groups: Groups | None
    runs: list[RunConfusion]


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


def gather_confusions(directory: RunDirectory, split: str) -> Confusions | None:
    """Add up the seeds' files of each run on a split; None without a tree or files.

    Files that cannot be read, or that know of more classes than the tree, are left out.
    """
    tree = directory.tree
    if tree is None:
        return None
    found = [_add_up(directory, run, split, tree.num_classes) for run in directory.runs]
    runs = [run for run in found if run is not None]
    return Confusions(tree, split, tree_groups(tree), runs) if runs else None


def _add_up(directory: RunDirectory, run: str, split: str, num_classes: int) -> RunConfusion | None:
    known = [(t.seed, t.load_confusion(split)) for t in directory.trainings if t.run == run]
    read = [(seed, c) for seed, c in known if c is not None and (c.pairs < num_classes).all()]
    if not read:
        return None
    pairs, counts = (np.concatenate([getattr(c, name).numpy() for _, c in read]) for name in ("pairs", "counts"))
    epochs = [c.epoch for _, c in read]
    return RunConfusion(run, tuple(seed for seed, _ in read), (min(epochs), max(epochs)), *_added_up(pairs, counts))


def _added_up(pairs: Ints, counts: Ints) -> tuple[Ints, Ints]:
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


def confusion_data(confusions: Confusions, directory: RunDirectory) -> dict[str, Any]:
    """Return what the page's script draws, as plain JSON; cells are sparse."""
    tree, groups = confusions.tree, confusions.groups
    class_of = {int(node): label for label, node in enumerate(tree.classes)}

    def name(node: int) -> str:
        return directory.class_name(class_of[node]) if node in class_of else tree.names[node]

    return {
        "split": confusions.split,
        "runs": [_run(run, groups, directory, tree) for run in confusions.runs],
        "groups": [] if groups is None else [name(node) for node in groups.nodes.tolist()],
        "blocks": [] if groups is None else groups.blocks,
    }


def _run(run: RunConfusion, groups: Groups | None, directory: RunDirectory, tree: Tree) -> dict[str, Any]:
    here = run.meeting(tree)
    in_all = sums_below(tree, here)
    some = np.flatnonzero(in_all)
    cells, totals = (np.zeros((0, 3), dtype=np.int64), np.zeros(0)) if groups is None else run.grouped(groups)
    return {
        "seeds": run.seeds,
        "epochs": run.epochs,
        "samples": run.samples,
        "nodes": np.stack([some, here[some], in_all[some]], axis=1).tolist(),
        "depths": _sums(tree.depth, here, 0)[:-1].tolist(),
        "rows": cells[:, 0].tolist(),
        "columns": cells[:, 1].tolist(),
        "counts": cells[:, 2].tolist(),
        "totals": totals.tolist(),
        "frequent": [
            [directory.class_name(label), directory.class_name(prediction), count, of, tree.names[node]]
            for label, prediction, count, of, node in run.most_frequent(tree)
        ],
    }
