"""Logits of a canonical simplex ETF against a linear layer of its size."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from benchmarks._timing import Row, one_thread, race, report
from tightframe.frames import SimplexETF
from tightframe.nn import SimplexETFClassifier


def sides(K: int, d: int) -> dict[str, Callable[[Tensor], Tensor]]:
    return {
        "SimplexETF, canonical": SimplexETF(K, d, orientation="canonical").logits,
        "SimplexETFClassifier, canonical": SimplexETFClassifier(d, K, orientation="canonical", normalize=False),
        "SimplexETFClassifier, canonical, normalised": SimplexETFClassifier(d, K, orientation="canonical"),
    }


def parameters(side: object) -> int:
    return sum(p.numel() for p in side.parameters()) if isinstance(side, nn.Module) else 0


def run(K: int = 1000, d: int = 2048, batch: int = 256, rounds: int = 15) -> list[Row]:
    features = torch.randn(batch, d, generator=torch.Generator().manual_seed(0))
    linear = nn.Linear(d, K)
    rows = []
    with torch.no_grad():
        linear.weight.copy_(SimplexETF(K, d, orientation="canonical").as_matrix())
        linear.bias.zero_()
        for name, side in sides(K, d).items():
            if "normalised" not in name:  # the two sides mean the same
                torch.testing.assert_close(side(features), linear(features), rtol=1e-3, atol=1e-3)
            result = race(lambda side=side: side(features), lambda: linear(features), rounds)
            rows.append(result.faster(f"{name}; peer: nn.Linear", at_least=10))
    mine, theirs = parameters(sides(K, d)["SimplexETFClassifier, canonical"]), parameters(linear)
    return [*rows, Row("parameters", str(mine), str(theirs), "-", "0", mine == 0)]


TINY = {"K": 5, "d": 8, "batch": 4, "rounds": 1}


def main() -> None:
    one_thread()
    report("Canonical ETF logits: K = 1000, d = 2048, batch 256, float32", run())


if __name__ == "__main__":
    main()
