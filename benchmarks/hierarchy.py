"""The hierarchy-aware frame against the published search and the tree's recursion, and the cosine-Gram loss."""

from __future__ import annotations

import random
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks._timing import Row, at_most, race
from tightframe.frames import hierarchy_aware_frame, max_separation_asymptote, tree_max_separation
from tightframe.hierarchy import Tree
from tightframe.linalg import haar_orthonormal
from tightframe.nn import CosineGramLoss, FrameClassifier

TITLE = "Hierarchy-aware frame of a random tree, float64; cosine-Gram loss, d = 1000, batch 256, float32"
TINY: dict[str, Any] = {"K": 12, "d": 4, "batch": 3, "rounds": 1}
GAMMA = 2.0


def random_tree(K: int) -> Tree:
    """Return a tree of K classes that grew by merging two to four random nodes at a time."""
    draw = random.Random(0)
    parents, tops = [-1] * K, list(range(K))
    while len(tops) > 1:
        for _ in range(min(len(tops), draw.randrange(2, 5))):
            parents[tops.pop(draw.randrange(len(tops)))] = len(parents)
        tops.append(len(parents))
        parents.append(-1)
    return Tree(parents, classes=range(K))


def searched(distances: Tensor, vectors: bool) -> Tensor:
    """Return W at the lowest of 100 asymptotes without negative eigenvalue; ``vectors`` decomposes, as published."""
    K = len(distances)
    E = torch.exp(-GAMMA * distances / distances.max())
    lowest = 0.0
    for s in torch.linspace(-1 / (K - 1), -1, 100, dtype=torch.float64).tolist():
        G = (1 - s) * E + s
        values = torch.linalg.eigh(G).eigenvalues if vectors else torch.linalg.eigvalsh(G)
        if values[0] >= -1e-6:
            lowest = min(lowest, s)
    values, Q = torch.linalg.eigh((1 - lowest) * E + lowest)
    return Q * values.clamp(min=0).sqrt() @ haar_orthonormal(K, K, torch.Generator().manual_seed(0)).T


def frames(K: int, rounds: int) -> list[Row]:
    tree = random_tree(K)
    D = tree.distances()
    frame = partial(hierarchy_aware_frame, D, gamma=GAMMA, dtype=torch.float64)
    halved = partial(frame, asymptote="grid")
    recursion, dense = partial(tree_max_separation, tree, GAMMA), partial(max_separation_asymptote, D, GAMMA)
    eigenvalues = partial(searched, D, vectors=False)
    theirs, same = eigenvalues(), halved().frame
    apart = (same @ same.T - theirs @ theirs.T).abs().max().item()
    off = abs(recursion() - dense()) / abs(dense())
    grid, sets = f"K = {K}, frame; peer: grid of 100", "sets of eigenvalues"
    return [
        race(frame, partial(searched, D, vectors=True), rounds).faster(f"{grid} eigendecompositions", 50),
        race(frame, eigenvalues, rounds).faster(f"{grid} {sets}"),
        race(halved, eigenvalues, rounds).faster(f"{grid} {sets}, ours: same grid, halved"),
        at_most(1e-10, f"K = {K}, largest difference of cosines on the grid", apart),
        race(recursion, dense, 5 * rounds).faster(f"K = {K}, asymptote by the tree; peer: by the matrix"),
        at_most(1e-9, f"K = {K}, relative difference of the two", off),
        at_most(1e-12, f"K = {K}, error of the cosines, d = K - 1", frame(K - 1).error),
    ]


def loop(features: Tensor, labels: Tensor, weight: Tensor, gram: Tensor) -> Tensor:
    """Return the cosine-Gram loss by one cosine similarity a class."""
    loss = features.new_zeros(())
    for c in range(weight.shape[0]):
        cosine = F.cosine_similarity(features, weight[c].unsqueeze(0), dim=1)
        loss = loss + (cosine - gram[labels, c]).square().mean()
    return loss


def gradient(loss: Callable[[Tensor], Tensor], features: Tensor) -> tuple[Tensor, Tensor]:
    features = features.detach().requires_grad_()
    value = loss(features)
    return value.detach(), torch.autograd.grad(value, features)[0]


def cosine_gram(K: int, d: int, batch: int, rounds: int) -> list[Row]:
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(batch, d, generator=generator)
    labels = torch.randint(K, (batch,), generator=generator)
    weight = F.normalize(torch.randn(K, d, generator=generator))
    gram = weight @ weight.T
    # At alpha = 1 cross-entropy has weight 0.
    ours = partial(CosineGramLoss(1.0), labels=labels, classifier=FrameClassifier(weight, normalize=False))
    peer = partial(loop, labels=labels, weight=weight, gram=gram)
    exact = gradient(partial(loop, labels=labels, weight=weight.double(), gram=gram.double()), features.double())
    gap = max(((a - b).norm() / b.norm()).item() for a, b in zip(gradient(ours, features), exact, strict=True))
    name, sides = f"CosineGramLoss, K = {K}", (partial(gradient, side, features) for side in (ours, peer))
    return [
        race(*sides, rounds).faster(f"{name}, forward and backward; peer: loop over classes", 100),
        at_most(1e-6, f"{name}, value and gradient off the float64 loop", gap),
    ]


def run(K: int = 1000, d: int = 1000, batch: int = 256, rounds: int = 2) -> list[Row]:
    return frames(K, rounds) + cosine_gram(K, d, batch, 2 * rounds)
