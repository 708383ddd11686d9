"""Hierarchical losses word by word, one sample at a time, in fifty digits; and trees to try them on."""

from __future__ import annotations

import math

import mpmath
import numpy as np
import torch

from tightframe.hierarchy import Tree

mpmath.mp.dps = 50

TEST_TREE = Tree.from_nested({"E": ["A", "B"], "F": ["C", "D"]})
UNBALANCED = Tree.from_nested({"E": ["A", "B"], "C": None})
UNARY = Tree.from_nested({"x": {"y": {"z": ["A", "B", "C"]}}, "D": None, "w": ["E"]})


def random_tree(seed, num_nodes=12):
    rng = np.random.default_rng(seed)
    parents = [-1, *(int(rng.integers(0, i)) for i in range(1, num_nodes))]
    leaves = sorted(set(range(num_nodes)) - set(parents))
    if len(leaves) < 2:
        return random_tree(seed + 1000, num_nodes)
    return Tree(parents, classes=rng.permutation(leaves).tolist())


TREES = [TEST_TREE, UNBALANCED, UNARY, *(random_tree(seed) for seed in range(12))]


def path(tree, label):
    """Return the nodes from below the root to a class."""
    nodes = [int(tree.classes[label])]
    while tree.parents[nodes[0]] > 0:
        nodes.insert(0, int(tree.parents[nodes[0]]))
    return [node for node in nodes if node]


def below(tree, node):
    """Return a node and all its descendants."""
    return [node, *(d for child in np.flatnonzero(tree.parents == node) for d in below(tree, int(child)))]


def classes_below(tree, node):
    nodes = below(tree, node)
    return [k for k in range(tree.num_classes) if tree.classes[k] in nodes]


def log_softmax(logits):
    exact = [mpmath.mpf(z) for z in logits]
    total = mpmath.log(mpmath.fsum(mpmath.exp(z) for z in exact))
    return [z - total for z in exact]


def log_sum(values):
    return mpmath.log(mpmath.fsum(mpmath.exp(v) for v in values))


def hxe(tree, logits, label, alpha):
    log_p = log_softmax(logits)
    z = mpmath.fsum(mpmath.exp(-alpha * int(d)) for d in tree.depth)
    loss = mpmath.mpf(0)
    for node in path(tree, label):
        of_node = log_sum(log_p[k] for k in classes_below(tree, node))
        of_parent = log_sum(log_p[k] for k in classes_below(tree, tree.parents[node]))
        loss -= mpmath.exp(-alpha * int(tree.depth[node])) / z * (of_node - of_parent)
    return loss


def hxe_gradient(tree, logits, label, alpha):
    z = mpmath.fsum(mpmath.exp(-alpha * int(d)) for d in tree.depth)
    gradient = [mpmath.mpf(0)] * tree.num_classes
    for node in path(tree, label):
        weight = mpmath.exp(-alpha * int(tree.depth[node])) / z
        for sign, top in ((-1, node), (1, tree.parents[node])):
            inside = classes_below(tree, top)
            for k, log_p in zip(inside, log_softmax([logits[k] for k in inside]), strict=True):
                gradient[k] += sign * weight * mpmath.exp(log_p)
    return gradient


def hace(tree, logits, label, d_il):
    """``logits`` of all nodes, or of the classes alone, the others then having none."""
    names = range(len(tree.parents)) if len(logits) == len(tree.parents) else tree.classes
    log_p = dict(zip((int(n) for n in names), log_softmax(logits), strict=True))
    loss, share = mpmath.mpf(0), mpmath.mpf(1)
    for node in reversed(path(tree, label)):
        loss -= share * d_il * log_sum(log_p[v] for v in below(tree, node) if v in log_p)
        share *= 1 - d_il
    return loss  # the root takes the remaining share, and log P(root) = 0


def hier_cos(tree, coordinates, labels, alpha):
    """The whole batch, since its means are over parts of it."""
    divergence = mpmath.mpf(0)
    for o, y in zip(coordinates, labels, strict=True):
        nodes = path(tree, y)
        log_p = log_softmax([abs(v) for v in o])
        q = [mpmath.exp(v) for v in log_softmax([mpmath.mpf(2) / (len(nodes) - i) for i in range(len(nodes))])]
        divergence += mpmath.fsum(a * (mpmath.log(a) - log_p[v - 1]) for a, v in zip(q, nodes, strict=True))
    reg = mpmath.mpf(0)
    for level in range(1, int(tree.depth.max()) + 1):
        inside, outside = [], []
        for o, y in zip(coordinates, labels, strict=True):
            nodes = [v for v in range(len(tree.parents)) if tree.depth[v] == level]
            sizes = [abs(o[v - 1]) for v in nodes]
            if tree.depth[tree.classes[y]] < level:
                outside.append(sum(sizes))
                continue
            norm = math.sqrt(sum(s * s for s in sizes))
            inside.append(sum(abs((v in path(tree, y)) - s / norm) for v, s in zip(nodes, sizes, strict=True)))
        reg += sum(sum(part) / len(part) for part in (inside, outside) if part)
    return divergence / len(labels) + alpha * reg


def batch(tree, size=5, width=None, seed=0, spread=3.0):
    generator = torch.Generator().manual_seed(seed)
    width = tree.num_classes if width is None else width
    values = spread * torch.randn(size, width, dtype=torch.float64, generator=generator)
    return values, torch.randint(tree.num_classes, (size,), generator=generator)


def mean(function, tree, values, labels, option):
    rows = zip(values.tolist(), labels.tolist(), strict=True)
    return float(mpmath.fsum(function(tree, z, y, option) for z, y in rows) / len(labels))
