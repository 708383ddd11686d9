"""ETFLinear: products without a matrix against the dense one, and a step with a locked weight against a trained one."""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch
from torch import Tensor, nn

from benchmarks._timing import Row, one_thread, race, report
from tightframe.nn import ETFLinear

KIND = "canonical"


def draw(batch: int, width: int) -> Tensor:
    return torch.randn(batch, width, generator=torch.Generator().manual_seed(0))


def step(layer: nn.Module, x: Tensor) -> Callable[[], None]:
    """Return forward and backward through a layer in the middle of a network."""
    x = x.clone().requires_grad_()
    grad = torch.ones_like(layer(x))

    def call() -> None:
        layer.zero_grad(set_to_none=True)
        x.grad = None
        layer(x).backward(grad)

    return call


def products(storage: str, width: int, batch: int, rounds: int, at_least: float | None = None) -> list[Row]:
    """Compare a product without a matrix with that of the same layer exported to ``nn.Linear``."""
    x = draw(batch, width)
    layer = ETFLinear(width, width, kind=KIND, storage=storage)
    linear = layer.export()
    with torch.no_grad():
        timed = race(lambda: layer(x), lambda: linear(x), rounds)
        exact = copy.deepcopy(layer).double().export()(x.double())
        mine, theirs = (((side(x) - exact).norm() / exact.norm()).item() for side in (layer, linear))
    errors = f"{mine:.1e}", f"{theirs:.1e}"
    return [
        timed.faster(f"{storage} product, {width}; peer: nn.Linear", at_least),
        Row(f"{storage} product, {width}: off the dense float64", *errors, errors[0], "<= 1e-6", mine <= 1e-6),
    ]


def steps(layer: nn.Module, name: str, batch: int, rounds: int, at_least: float | None = None) -> Row:
    """Compare forward and backward with those of a trained ``nn.Linear`` of the same size."""
    trained = nn.Linear(layer.in_features, layer.out_features)
    x = draw(batch, layer.in_features)
    return race(step(layer, x), step(trained, x), rounds).faster(f"{name}; peer: trained nn.Linear", at_least)


def run(width: int = 1024, batch: int = 256, rounds: int = 7) -> list[Row]:
    first = width
    rows = products("implicit", first, batch, rounds, at_least=2)
    locked = "forward and backward, {}, dense and locked"
    rows.append(steps(ETFLinear(first, first), locked.format(first), batch, rounds, at_least=1.2))
    rows.append(steps(ETFLinear(first, 4 * first), locked.format(f"{first} to {4 * first}"), batch, rounds))
    rows.append(steps(ETFLinear(4 * first, first), locked.format(f"{4 * first} to {first}"), batch, rounds))
    layer = ETFLinear(first, first, kind=KIND, storage="implicit")
    rows.append(steps(layer, f"forward and backward, {first}, implicit", batch, rounds))
    return rows


TINY = {"width": 8, "batch": 4, "rounds": 1}


def main() -> None:
    one_thread()
    report("ETFLinear: batch 256, float32", run())


if __name__ == "__main__":
    main()
