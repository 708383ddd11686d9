"""probe_layers against the bare forward pass of the same networks, and its memory against the number of samples."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks._timing import Row, batches_of, extra_memory, leaner, race
from benchmarks.measure import forward
from tightframe.probing import LayerCurves, probe_layers

TITLE = "probe_layers: 12 layers, batches of 256; peer: bare forward pass"
DEPTH = 12
CASES = tuple(
    (kind, width, K, N, 256)
    for kind, width, N in (
        ("mlp", 256, 4096),
        ("mlp", 512, 2048),
        ("mlp", 1024, 1024),
        ("transformer", 128, 512),
        ("cnn mean", 32, 1024),
        ("cnn flatten", 32, 1024),
    )
    for K in (10, 100)
)
TINY: dict[str, Any] = {
    "cases": (("mlp", 8, 3, 60, 16), ("transformer", 8, 3, 30, 16), ("cnn flatten", 2, 3, 30, 16)),
    "N": 256,
    "rounds": 1,
}


class Transformer(nn.Module):
    """Blocks over the tokens of an input; the prediction is made of their mean."""

    def __init__(self, width: int, num_classes: int) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(width, 4, 4 * width, dropout=0.0, batch_first=True, norm_first=True)
        self.blocks = nn.TransformerEncoder(layer, DEPTH - 1, enable_nested_tensor=False)
        self.head = nn.Linear(width, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.blocks(x).mean(dim=1))


def mlp(width: int, num_classes: int) -> nn.Sequential:
    layers = [m for _ in range(DEPTH - 1) for m in (nn.Linear(width, width), nn.ReLU())]
    return nn.Sequential(*layers, nn.Linear(width, num_classes))


def cnn(width: int, num_classes: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for i in range(DEPTH - 1):
        layers += [nn.Conv2d(width if i else 1, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, num_classes))


def network(kind: str, width: int, K: int) -> tuple[nn.Module, tuple[int, ...], dict[str, Any]]:
    """Return a network of twelve layers, the shape of its input, and how to probe it."""
    if kind == "mlp":
        return mlp(width, K), (width,), {}
    if kind == "transformer":
        return Transformer(width, K), (16, width), {"pooling": "mean", "layers": ["blocks.layers.*", "head"]}
    return cnn(width, K), (1, 8, 8), {"pooling": kind.split()[1]}


def times(kind: str, width: int, K: int, N: int, batch: int, rounds: int) -> list[Row]:
    torch.manual_seed(0)
    model, shape, options = network(kind, width, K)
    batches = batches_of(torch.randn(N, *shape), torch.randint(K, (N,)), batch)
    bare = partial(forward, model.eval(), batches)
    probe, name = partial(probe_layers, model, batches, num_classes=K, **options), f"{kind}, width {width}, K = {K}"
    return [
        race(partial(probe, ncc=False), bare, rounds).costlier(f"{name}: moments, one pass", 1.5),
        race(partial(probe, hold_bytes=0), bare, rounds).costlier(f"{name}: with the second look"),
    ]


def probing(N: int, ncc: bool) -> Callable[[], LayerCurves]:
    """Return a call that probes N samples, made while it runs, so that the data themselves take no memory."""
    K, width, batch = 10, 256, 256
    model = mlp(width, K).eval()

    class Stream:
        def __iter__(self) -> Any:
            generator = torch.Generator().manual_seed(0)
            for _ in range(N // batch):
                labels = torch.randint(K, (batch,), generator=generator)
                yield torch.randn(batch, width, generator=generator), labels

    return lambda: probe_layers(model, Stream(), ncc=ncc, hold_bytes=0)


def run(cases: Sequence[tuple[str, int, int, int, int]] = CASES, N: int = 16384, rounds: int = 9) -> list[Row]:
    rows = [row for case in cases for row in times(*case, rounds)]
    for ncc, name in ((False, "one pass"), (True, "with the second look")):
        few, many = (extra_memory(probing, (256, ncc), (n, ncc)) for n in (N, 4 * N))
        held = 4 * 3 * N * DEPTH * 256  # what the features of the 3 N samples more would take
        name = f"growth of the peak, mlp, width 256, N = {N} to {4 * N}, {name}; peer: the features themselves"
        rows.append(leaner(name, many - few, held, 0.02))
    return rows
