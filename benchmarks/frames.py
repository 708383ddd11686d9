"""Frames and the layers made of them: simplex ETFs against trained weights, hierarchy-aware frames and losses."""

from __future__ import annotations

import copy
import random
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks._timing import Call, Row, at_most, distance, megabytes, race, training_step
from tightframe.frames import SimplexETF, hierarchy_aware_frame, max_separation_asymptote, tree_max_separation
from tightframe.hierarchy import Tree
from tightframe.linalg import haar_orthonormal
from tightframe.nn import CosineGramLoss, ETFLinear, FrameClassifier, SimplexETFClassifier
from tightframe.surgery import etf_transformer_, parameter_report

TINY: dict[str, dict[str, Any]] = {
    "etf": {"K": 5, "d": 8, "width": 64, "batch": 32, "blocks": 1, "rounds": 1},
    "hierarchy": {"K": 12, "d": 4, "batch": 3, "rounds": 1},
}
GAMMA = 2.0


def draw(batch: int, width: int) -> Tensor:
    return torch.randn(batch, width, generator=torch.Generator().manual_seed(0))


@torch.no_grad()
def logits(K: int, d: int, batch: int, rounds: int) -> list[Row]:
    """Compare the logits of a canonical simplex ETF with those of a linear layer of its size."""
    features, linear, frame = draw(batch, d), nn.Linear(d, K), SimplexETF(K, d, orientation="canonical")
    linear.weight.copy_(frame.as_matrix())
    linear.bias.zero_()
    plain = SimplexETFClassifier(d, K, orientation="canonical", normalize=False)
    sides: dict[str, Callable[[Tensor], Tensor]] = {
        "SimplexETF, canonical": frame.logits,
        "SimplexETFClassifier, canonical": plain,
        "SimplexETFClassifier, canonical, normalised": SimplexETFClassifier(d, K, orientation="canonical"),
    }
    rows = []
    for name, side in sides.items():
        if "normalised" not in name:  # the two sides mean the same
            torch.testing.assert_close(side(features), linear(features), rtol=1e-3, atol=1e-3)
        timed = race(lambda side=side: side(features), lambda: linear(features), rounds)
        rows.append(timed.faster(f"logits, K = {K}, d = {d}, {name}; peer: nn.Linear", 10))
    mine, theirs = (sum(p.numel() for p in side.parameters()) for side in (plain, linear))
    return [*rows, at_most(0, "parameters", mine, str(mine), str(theirs), str(mine))]


@torch.no_grad()
def products(width: int, batch: int, rounds: int) -> list[Row]:
    """Compare a product without a matrix with that of the same layer exported to ``nn.Linear``."""
    x = draw(batch, width)
    layer = ETFLinear(width, width, kind="canonical", storage="implicit")
    linear, exact = layer.export(), copy.deepcopy(layer).double().export()(x.double())
    mine, theirs = (distance(side(x), exact) for side in (layer, linear))
    timed, name = race(lambda: layer(x), lambda: linear(x), rounds), f"implicit product, {width}"
    return [
        timed.faster(f"{name}; peer: nn.Linear", 2),
        at_most(1e-6, f"{name}: off the dense float64", mine, f"{mine:.1e}", f"{theirs:.1e}"),
    ]


def step(layer: nn.Module, x: Tensor) -> Call:
    """Return forward and backward through a layer in the middle of a network."""
    leaves = [x.clone().requires_grad_(), *(p for p in layer.parameters() if p.requires_grad)]
    grad = torch.ones_like(layer(x))
    return lambda: torch.autograd.grad(layer(leaves[0]), leaves, grad)


def steps(layer: nn.Module, name: str, batch: int, rounds: int, least: float | None = None) -> Row:
    """Compare forward and backward with those of a trained ``nn.Linear`` of the same size."""
    trained, x = nn.Linear(layer.in_features, layer.out_features), draw(batch, layer.in_features)
    name = f"forward and backward, {layer.in_features} to {layer.out_features}, {name}; peer: trained nn.Linear"
    return race(step(layer, x), step(trained, x), rounds).faster(name, least)


def encoder(locked: str, width: int, blocks: int, batch: int) -> tuple[nn.Module, torch.optim.Optimizer, Call]:
    """Return a pre-LN encoder, AdamW and a step of it; ``locked`` names locked layers, "" for none."""
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(
        width, 4, 4 * width, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
    )
    model = nn.TransformerEncoder(layer, blocks, enable_nested_tensor=False)
    if locked:
        etf_transformer_(model, locked)
    optimizer = torch.optim.AdamW(p for p in model.parameters() if p.requires_grad)
    inputs = torch.randn(batch, 64, width)
    return model, optimizer, training_step(lambda: model(inputs).square().mean(), optimizer)


def transformer(locked: str, rounds: int, width: int, blocks: int, batch: int) -> list[Row]:
    """Compare a training step with one that trains all weights, and the saving with that of the report."""
    (model, optimizer, ours), (all_trained, adamw, peer) = (
        encoder(which, width, blocks, batch) for which in (locked, "")
    )
    name = f"transformer, width {width}, {blocks} blocks, {batch} x 64 tokens, {locked} locked; peer: trained"
    timed = race(ours, peer, rounds).costlier(f"step of a {name}")
    mine, theirs = (parameter_report(*side).optimizer_bytes for side in ((model, optimizer), (all_trained, adamw)))
    saved, computed = theirs - mine, parameter_report(model, "adam").optimizer_bytes_saved
    text = f"{saved:,} bytes saved, {computed:,} computed"
    sizes = megabytes(mine), megabytes(theirs)
    return [timed, at_most(0, f"AdamW state of a {name}", abs(saved - computed), *sizes, text)]


def etf(
    K: int = 1000, d: int = 2048, width: int = 1024, batch: int = 256, blocks: int = 4, rounds: int = 9
) -> list[Row]:
    """Simplex ETF against trained weights: batch 256, float32."""
    implicit = ETFLinear(width, width, kind="canonical", storage="implicit")
    rows = [
        *logits(K, d, batch, rounds),
        *products(width, batch, rounds),
        steps(ETFLinear(width, width), "dense and locked", batch, rounds, 1.2),
        steps(ETFLinear(width, 4 * width), "dense and locked", batch, rounds),
        steps(ETFLinear(4 * width, width), "dense and locked", batch, rounds),
        steps(implicit, "implicit", batch, rounds),
    ]
    for locked in ("w1", "w2", "both"):
        rows += transformer(locked, rounds, width // 4, blocks, batch // 16)
    return rows


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


def tree_frames(K: int, rounds: int) -> list[Row]:
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
    gap = max(distance(a, b) for a, b in zip(gradient(ours, features), exact, strict=True))
    name, sides = f"CosineGramLoss, K = {K}", (partial(gradient, side, features) for side in (ours, peer))
    return [
        race(*sides, rounds).faster(f"{name}, forward and backward; peer: loop over classes", 100),
        at_most(1e-6, f"{name}, value and gradient off the float64 loop", gap),
    ]


def hierarchy(K: int = 1000, d: int = 1000, batch: int = 256, rounds: int = 2) -> list[Row]:
    """Hierarchy-aware frame of a random tree, float64; cosine-Gram loss, d = 1000, batch 256, float32."""
    return tree_frames(K, rounds) + cosine_gram(K, d, batch, 2 * rounds)
