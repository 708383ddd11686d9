"""Layers and classifiers of a simplex ETF against linear ones, and a transformer with such layers: time and memory."""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch
from torch import Tensor, nn

from benchmarks._timing import Row, at_most, extra_memory, leaner, megabytes, race
from tightframe.frames import SimplexETF
from tightframe.nn import ETFLinear, SimplexETFClassifier
from tightframe.surgery import etf_transformer_, parameter_report

TITLE = "Simplex ETF against trained weights: batch 256, float32"
TINY = {"K": 5, "d": 8, "width": 64, "batch": 32, "blocks": 1, "rounds": 1}


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
    mine, theirs = (((side(x) - exact).norm() / exact.norm()).item() for side in (layer, linear))
    timed, name = race(lambda: layer(x), lambda: linear(x), rounds), f"implicit product, {width}"
    return [
        timed.faster(f"{name}; peer: nn.Linear", 2),
        at_most(1e-6, f"{name}: off the dense float64", mine, f"{mine:.1e}", f"{theirs:.1e}"),
    ]


def step(layer: nn.Module, x: Tensor) -> Callable[[], None]:
    """Return forward and backward through a layer in the middle of a network."""
    x = x.clone().requires_grad_()
    grad = torch.ones_like(layer(x))

    def call() -> None:
        layer.zero_grad(set_to_none=True)
        x.grad = None
        layer(x).backward(grad)

    return call


def steps(layer: nn.Module, name: str, batch: int, rounds: int, least: float | None = None) -> Row:
    """Compare forward and backward with those of a trained ``nn.Linear`` of the same size."""
    trained, x = nn.Linear(layer.in_features, layer.out_features), draw(batch, layer.in_features)
    name = f"forward and backward, {layer.in_features} to {layer.out_features}, {name}; peer: trained nn.Linear"
    return race(step(layer, x), step(trained, x), rounds).faster(name, least)


class Step:
    """Forward, backward and AdamW of a pre-LN encoder; ``locked`` names what is locked, "" for nothing."""

    def __init__(self, locked: str, width: int, blocks: int, batch: int) -> None:
        torch.manual_seed(0)
        layer = nn.TransformerEncoderLayer(
            width, 4, 4 * width, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
        )
        self.model = nn.TransformerEncoder(layer, blocks, enable_nested_tensor=False)
        if locked:
            etf_transformer_(self.model, locked)
        self.optimizer = torch.optim.AdamW(p for p in self.model.parameters() if p.requires_grad)
        self.inputs = torch.randn(batch, 64, width)

    def __call__(self) -> None:
        self.optimizer.zero_grad(set_to_none=True)
        self.model(self.inputs).square().mean().backward()
        self.optimizer.step()


def three_steps(locked: str, width: int, blocks: int, batch: int) -> Callable[[], Step]:
    """Return a call that makes gradients, optimiser state and activations, all of which count to its peak."""
    step = Step(locked, width, blocks, batch)

    def call() -> Step:
        for _ in range(3):
            step()
        return step

    return call


def peak(locked: str, *size: int) -> float:
    return extra_memory(three_steps, (locked, 16, 1, 1), (locked, *size))


def transformer(locked: str, trained: float, rounds: int, width: int, blocks: int, batch: int) -> list[Row]:
    """Compare a training step with one that trains all weights, and the saving with what the report computes."""
    size = (width, blocks, batch)
    sides = [Step(which, *size) for which in (locked, "")]
    name = f"transformer, width {width}, {blocks} blocks, {batch} x 64 tokens, {locked} locked; peer: trained"
    timed = race(*sides, rounds).costlier(f"step of a {name}")
    mine, theirs = (parameter_report(side.model, side.optimizer).optimizer_bytes for side in sides)
    saved, computed = theirs - mine, parameter_report(sides[0].model, "adam").optimizer_bytes_saved
    text = f"{saved:,} bytes saved, {computed:,} computed"
    return [
        timed,
        at_most(0, f"AdamW state of a {name}", abs(saved - computed), megabytes(mine), megabytes(theirs), text),
        leaner(f"peak beside the weights of a {name}", peak(locked, *size), trained),
    ]


def run(
    K: int = 1000, d: int = 2048, width: int = 1024, batch: int = 256, blocks: int = 4, rounds: int = 9
) -> list[Row]:
    implicit = ETFLinear(width, width, kind="canonical", storage="implicit")
    rows = [
        *logits(K, d, batch, rounds),
        *products(width, batch, rounds),
        steps(ETFLinear(width, width), "dense and locked", batch, rounds, 1.2),
        steps(ETFLinear(width, 4 * width), "dense and locked", batch, rounds),
        steps(ETFLinear(4 * width, width), "dense and locked", batch, rounds),
        steps(implicit, "implicit", batch, rounds),
    ]
    size = (width // 4, blocks, batch // 16)
    trained = peak("", *size)
    for locked in ("w1", "w2", "both"):
        rows += transformer(locked, trained, rounds, *size)
    return rows
