"""The hierarchy-aware frame in closed form against the published search, and the tree's recursion against both."""

from __future__ import annotations

import random
from typing import Any

import torch
from torch import Tensor

from benchmarks._timing import Row, one_thread, race, report
from tightframe.frames import hierarchy_aware_frame, max_separation_asymptote, tree_max_separation
from tightframe.hierarchy import Tree
from tightframe.linalg import haar_orthonormal

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


def run(K: int = 1000, rounds: int = 2, cheap_rounds: int = 9) -> list[Row]:
    tree = random_tree(K)
    D = tree.distances()

    def ours() -> Tensor:
        return hierarchy_aware_frame(D, gamma=GAMMA, dtype=torch.float64).frame

    def halved() -> Tensor:
        return hierarchy_aware_frame(D, gamma=GAMMA, asymptote="grid", dtype=torch.float64).frame

    def recursion() -> float:
        return tree_max_separation(tree, GAMMA)

    def dense() -> float:
        return max_separation_asymptote(D, GAMMA)

    theirs, same = searched(D, vectors=False), halved()
    apart = (same @ same.T - theirs @ theirs.T).abs().max().item()
    off = abs(recursion() - dense()) / abs(dense())
    found = hierarchy_aware_frame(D, K - 1, gamma=GAMMA, dtype=torch.float64)
    gap = found.error
    name = f"K = {K}"
    grid = f"{name}, frame; peer: grid of 100"
    return [
        race(ours, lambda: searched(D, True), rounds).faster(f"{grid} eigendecompositions", 50),
        race(ours, lambda: searched(D, False), rounds).faster(f"{grid} sets of eigenvalues"),
        race(halved, lambda: searched(D, False), rounds).faster(f"{grid} sets of eigenvalues, ours: same grid, halved"),
        Row(f"{name}, largest difference of cosines on the grid", "-", "-", f"{apart:.1e}", "<= 1e-10", apart <= 1e-10),
        race(recursion, dense, cheap_rounds).faster(f"{name}, asymptote by the tree; peer: by the matrix"),
        Row(f"{name}, relative difference of the two", "-", "-", f"{off:.1e}", "<= 1e-09", off <= 1e-9),
        Row(f"{name}, error of the cosines, d = K - 1", f"{gap:.1e}", "-", "-", "<= 1e-12", gap <= 1e-12),
    ]


TINY: dict[str, Any] = {"K": 12, "rounds": 1, "cheap_rounds": 1}


def main() -> None:
    one_thread()
    report("Hierarchy-aware frame of a random tree, float64", run())


if __name__ == "__main__":
    main()
