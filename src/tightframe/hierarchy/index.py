"""Sums over the leaves below each node of a tree, and along the path to each leaf, on batches of numbers."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tightframe.errors import ArgumentError
from tightframe.hierarchy import Tree
from tightframe.linalg import at_least_float32


class TreeIndex(NamedTuple):
    """A tree as index tensors, all int64. Nodes stand in level order here: the root, its children, theirs, and so on.

    Attributes:
        order: ``(N,)`` number in the tree of the node at each place.
        parents: ``(N,)`` place of its parent; 0 for the root.
        sources: ``(N,)`` class of a leaf that is one, and K for every other node.
        families: ``(N - 1,)`` which set of siblings the node at place i + 1 belongs to.
        paths: ``(K, H)`` places on the path to each class, from below the root; 0 after a leaf that ends early.
        leaves: ``(K,)`` number in the tree of each class's leaf.
        depth: ``(K,)`` its depth.
        sizes: number of nodes at each of the H + 1 depths.
    """

    order: Tensor
    parents: Tensor
    sources: Tensor
    families: Tensor
    paths: Tensor
    leaves: Tensor
    depth: Tensor
    sizes: tuple[int, ...]

    @property
    def num_nodes(self) -> int:
        """N, with the root."""
        return self.order.shape[0]

    @property
    def num_classes(self) -> int:
        """K."""
        return self.depth.shape[0]


def tree_index(tree: Tree | TreeIndex, device: torch.device | str | None = None) -> TreeIndex:
    """Return a tree as index tensors on a device; what is that already is returned as it is.

    Args:
        tree: of at least two classes.
        device: None is PyTorch's default.

    Raises:
        ArgumentError: if ``tree`` is no tree, or has one class only.

    Example:
        >>> index = tree_index(Tree.from_nested({"E": ["A", "B"], "F": ["C", "D"]}))
        >>> index.order.tolist(), index.sizes
        ([0, 1, 4, 2, 3, 5, 6], (1, 2, 4))
        >>> index.paths.tolist()
        [[1, 3], [1, 4], [2, 5], [2, 6]]
    """
    if isinstance(tree, TreeIndex):
        return tree
    if not isinstance(tree, Tree):
        raise ArgumentError(f"tree must be a tightframe.Tree, got {type(tree).__name__}; see Tree.from_nested")
    if tree.num_classes < 2:
        raise ArgumentError(f"tree must have at least two classes, got {tree.num_classes}")
    order, parents, sources, families, paths = (torch.as_tensor(a, device=device) for a in _level_order(tree))
    leaves = torch.as_tensor(tree.classes, device=device)
    depth = torch.as_tensor(tree.depth[tree.classes], device=device)
    return TreeIndex(order, parents, sources, families, paths, leaves, depth, tuple(np.bincount(tree.depth).tolist()))


def _level_order(tree: Tree) -> list[NDArray[np.int64]]:
    """Return the first five attributes of :class:`TreeIndex`."""
    order = np.argsort(tree.depth, kind="stable")  # preorder within a level, so siblings stand together
    place = np.empty_like(order)
    place[order] = np.arange(len(order))
    parents = place[np.maximum(tree.parents[order], 0)]
    at = place[tree.classes]
    sources = np.full(len(order), tree.num_classes)
    sources[at] = np.arange(tree.num_classes)
    _, families = np.unique(parents[1:], return_inverse=True)
    depth = tree.depth[tree.classes]
    paths = np.zeros((tree.num_classes, depth.max()), dtype=np.int64)
    for level in range(depth.max(), 0, -1):
        there = depth >= level
        paths[there, level - 1] = at[there]
        at = np.where(there, parents[at], at)
    return [array.astype(np.int64) for array in (order, parents, sources, families, paths)]


def edge_log_probabilities(logits: Tensor, index: TreeIndex) -> Tensor:
    r"""Return the logarithm of the probability of each node given its parent, from one softmax over leaves or nodes.

    The probability of a node is the sum of :math:`\mathrm{softmax}(z)` over the leaves below it, or over it and all
    nodes below. The sums go up level by level, O(B N). What is kept of a node is the largest logit below it and, apart
    from that, the logarithm of the sum of the others against it: only logits are subtracted from each other, so the
    result is as exact at logits of 10,000 as it is at 1.

    Args:
        logits: ``(B, K)`` of the classes, or ``(B, N)`` of all nodes by their number in the tree.
        index: of the tree.

    Returns:
        ``(B, N)`` in level order, 0 for the root, in float32 or better.

    Example:
        >>> index = tree_index(Tree.from_nested({"E": ["A", "B"], "F": ["C", "D"]}))
        >>> edge_log_probabilities(torch.tensor([[1.0, 1.0, 1.0, 1.0]]).log(), index).exp()
        tensor([[1.0000, 0.5000, 0.5000, 0.5000, 0.5000, 0.5000, 0.5000]])
    """
    logits = at_least_float32(logits)
    if logits.shape[1] == index.num_nodes:
        top, rest = logits.detach()[:, index.order], (logits - logits.detach())[:, index.order]
    else:
        absent = logits.new_full((logits.shape[0], 1), -torch.inf)
        top = torch.cat([logits.detach(), absent], dim=1)[:, index.sources]
        # Zero by value, the logit by gradient.
        rest = torch.cat([logits - logits.detach(), torch.zeros_like(absent)], dim=1)[:, index.sources]
    tops, rests = list(top.split(index.sizes, dim=1)), list(rest.split(index.sizes, dim=1))
    parents = index.parents.split(index.sizes)
    edges = []
    start = index.num_nodes - index.sizes[-1]
    for level in range(len(index.sizes) - 1, 0, -1):
        start -= index.sizes[level - 1]
        above = parents[level] - start
        shape = above.expand(logits.shape[0], -1)
        highest = tops[level - 1].scatter_reduce(1, shape, tops[level], "amax")
        part = tops[level] - highest[:, above] + rests[level]
        own = (tops[level - 1] - highest + rests[level - 1]).exp()
        total = own.index_add(1, above, part.exp()).log()
        edges.append(part - total[:, above])
        tops[level - 1], rests[level - 1] = highest, total
    return torch.cat([torch.zeros_like(tops[0]), *reversed(edges)], dim=1)


def sibling_log_softmax(logits: Tensor, index: TreeIndex) -> Tensor:
    """Return the log-softmax of one logit a node over each set of siblings.

    Args:
        logits: ``(B, N - 1)`` of all nodes but the root, by their number in the tree less one.
        index: of the tree.

    Returns:
        ``(B, N)`` in level order, 0 for the root, in float32 or better.

    Example:
        >>> index = tree_index(Tree.from_nested({"E": ["A", "B"], "F": ["C", "D", "G"]}))
        >>> sibling_log_softmax(torch.zeros(1, 7), index).exp()
        tensor([[1.0000, 0.5000, 0.5000, 0.5000, 0.5000, 0.3333, 0.3333, 0.3333]])
    """
    values = below_root(at_least_float32(logits), index)
    families = index.families
    empty = values.new_zeros(values.shape[0], index.num_nodes - index.num_classes)
    shape = families.expand(values.shape[0], -1)
    highest = (empty - torch.inf).scatter_reduce(1, shape, values.detach(), "amax")
    part = values - highest[:, families]
    total = empty.index_add(1, families, part.exp()).log()
    return torch.cat([values.new_zeros(values.shape[0], 1), part - total[:, families]], dim=1)


def below_root(values: Tensor, index: TreeIndex) -> Tensor:
    """Return ``values (B, N - 1)`` of all nodes but the root in level order, given by number in the tree less one."""
    return values[:, index.order[1:] - 1]


def path_sums(values: Tensor, index: TreeIndex) -> Tensor:
    """Return the sum of each class's path from below the root ``(B, K)``, of ``values (B, N)`` in level order.

    The value of the root must be 0: it stands for the levels that a path does not reach.

    Example:
        >>> index = tree_index(Tree.from_nested({"E": ["A", "B"], "F": ["C", "D"]}))
        >>> path_sums(torch.tensor([[0.0, 10.0, 20.0, 1.0, 2.0, 3.0, 4.0]]), index)
        tensor([[11., 12., 23., 24.]])
    """
    total = values[:, index.paths[:, 0]]
    for places in index.paths.unbind(1)[1:]:
        total = total + values[:, places]
    return total
