"""TreeIndex: a tree as tensors; sums over the leaves below each node and along the path to each leaf, on batches."""

from __future__ import annotations

import hashlib
from typing import final

import numpy as np
import torch
from torch import Tensor, nn

from tightframe.errors import ArgumentError
from tightframe.hierarchy import Tree
from tightframe.linalg import at_least_float32


@final
class TreeIndex(nn.Module):
    """A tree as int64 buffers, which move with a module and which no cast changes.

    Nodes stand in level order here: the root, its children, their children, and so on. The buffers are not part of the
    state. A fingerprint of the tree is, so that the state of another tree does not load.

    Args:
        tree: Tree of at least two classes.
        device: Device of the buffers; None is PyTorch's default.

    Attributes:
        order: ``(N,)`` number in the tree of the node at each place.
        parents: ``(N,)`` place of its parent; 0 for the root.
        sources: ``(N,)`` class of a leaf that is one, and K for every other node.
        families: ``(N - 1,)`` number of the set of siblings of the node at place i + 1.
        paths: ``(K, H)`` places on the path to each class, from below the root; 0 after a leaf that ends early.
        leaves: ``(K,)`` number in the tree of each class's leaf.
        depth: ``(K,)`` its depth.
        sizes: Number of nodes at each of the H + 1 depths.
        num_nodes: Number of nodes N, with the root.
        num_classes: Number of classes K.
        fingerprint: Number that trees of other nodes or classes do not have.

    Raises:
        ArgumentError: if ``tree`` is not a tree, or has one class only.

    Example:
        >>> index = TreeIndex(Tree.from_nested({"E": ["A", "B"], "F": ["C", "D"]}))
        >>> index.order.tolist(), index.sizes
        ([0, 1, 4, 2, 3, 5, 6], (1, 2, 4))
        >>> index.paths.tolist()
        [[1, 3], [1, 4], [2, 5], [2, 6]]
    """

    order: Tensor
    parents: Tensor
    sources: Tensor
    families: Tensor
    paths: Tensor
    leaves: Tensor
    depth: Tensor

    def __init__(self, tree: Tree, device: torch.device | str | None = None) -> None:
        super().__init__()
        if not isinstance(tree, Tree):
            raise ArgumentError(f"tree must be a tightframe.Tree, got {type(tree).__name__}; see Tree.from_nested")
        if tree.num_classes < 2:
            raise ArgumentError(f"tree must have at least two classes, got {tree.num_classes}")
        order = np.argsort(tree.depth, kind="stable")  # preorder within a level, so siblings stand together
        place = np.argsort(order)
        parents = place[np.maximum(tree.parents[order], 0)]
        at = place[tree.classes]
        sources = np.full(len(order), tree.num_classes)
        sources[at] = np.arange(tree.num_classes)
        depth = tree.depth[tree.classes]
        paths = np.zeros((tree.num_classes, depth.max()), dtype=np.int64)
        for level in range(depth.max(), 0, -1):
            there = depth >= level
            paths[there, level - 1] = at[there]
            at = np.where(there, parents[at], at)
        arrays = {"order": order, "parents": parents, "sources": sources, "paths": paths, "leaves": tree.classes}
        arrays |= {"families": np.unique(parents[1:], return_inverse=True)[1], "depth": depth}
        for name, values in arrays.items():
            self.register_buffer(name, torch.as_tensor(values.astype(np.int64), device=device), persistent=False)
        self.num_nodes, self.num_classes = len(order), tree.num_classes
        self.sizes = tuple(np.bincount(tree.depth).tolist())
        numbers = np.concatenate([tree.parents, tree.classes]).astype("<i8").tobytes()
        self.fingerprint = int.from_bytes(hashlib.sha256(numbers).digest()[:7], "big")

    def get_extra_state(self) -> Tensor:
        """Return the fingerprint, for the state."""
        return torch.tensor(self.fingerprint, device="cpu")

    def set_extra_state(self, state: Tensor) -> None:
        """Raise :class:`ArgumentError` if the state belongs to another tree."""
        if int(state) != self.fingerprint:
            raise ArgumentError("the state must be of the same tree, got that of another; build this with its tree")

    def extra_repr(self) -> str:
        """Return the sizes for ``repr``."""
        return f"num_classes={self.num_classes}, nodes={self.num_nodes}"


def edge_log_probabilities(logits: Tensor, index: TreeIndex) -> Tensor:
    r"""Return the logarithm of the probability of each node given its parent, from one softmax over leaves or nodes.

    The probability of a node is the sum of :math:`\mathrm{softmax}(z)` over the leaves below it, or over it and all
    nodes below. The sums go up level by level, O(B N). Two numbers are kept of a node: the largest logit below it, and
    the logarithm of the sum of all relative to it. Only logits are subtracted from each other, so the result is as
    exact at logits of 10,000 as it is at 1.

    Args:
        logits: Logits ``(B, K)`` of the classes, or ``(B, N)`` of all nodes by their number in the tree.
        index: Index of the tree.

    Returns:
        ``(B, N)`` in level order, 0 for the root, in float32 or better.

    Example:
        >>> index = TreeIndex(Tree.from_nested({"E": ["A", "B"], "F": ["C", "D"]}))
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
        logits: Logits ``(B, N - 1)`` of all nodes but the root, by their number in the tree less one.
        index: Index of the tree.

    Returns:
        ``(B, N)`` in level order, 0 for the root, in float32 or better.

    Example:
        >>> index = TreeIndex(Tree.from_nested({"E": ["A", "B"], "F": ["C", "D", "G"]}))
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
    """Sum ``values (B, N)`` in level order along the path of each class, from below the root: ``(B, K)``.

    The value of the root must be 0: it stands for the levels that a path does not reach.

    Example:
        >>> index = TreeIndex(Tree.from_nested({"E": ["A", "B"], "F": ["C", "D"]}))
        >>> path_sums(torch.tensor([[0.0, 10.0, 20.0, 1.0, 2.0, 3.0, 4.0]]), index)
        tensor([[11., 12., 23., 24.]])
    """
    total = values[:, index.paths[:, 0]]
    for places in index.paths.unbind(1)[1:]:
        total = total + values[:, places]
    return total
