"""probe_layers against the bare forward pass of the same networks, and its memory against the number of samples."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks._timing import Row, extra_memory, megabytes, one_thread, race, report
from tightframe.probing import LayerCurves, probe_layers

TARGET = 1.5
DEPTH = 12


class Transformer(nn.Module):
    """Blocks over the tokens of an input of that many rows; the prediction is made of their mean."""

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


class Case:
    """A network of twelve layers, data for it, and how to probe it."""

    def __init__(self, kind: str, width: int, K: int, N: int, batch: int) -> None:
        torch.manual_seed(0)
        shape = {"mlp": (width,), "transformer": (16, width)}.get(kind, (1, 8, 8))
        self.model = {"mlp": mlp, "transformer": Transformer}.get(kind, cnn)(width, K).eval()
        inputs, labels = torch.randn(N, *shape), torch.randint(K, (N,))
        # Copies, as a loader gives them. It frees what they are copies of, so that the allocator does not hand every
        # block back to the system, as it does in a process that has never freed a large one.
        self.batches = [(x.clone(), y.clone()) for x, y in zip(inputs.split(batch), labels.split(batch), strict=True)]
        self.options: dict[str, Any] = {"num_classes": K}
        if kind != "mlp":
            self.options["pooling"] = "mean" if kind == "transformer" else kind.split()[1]
        if kind == "transformer":
            self.options["layers"] = ["blocks.layers.*", "head"]

    def bare(self) -> None:
        with torch.no_grad():
            for inputs, _ in self.batches:
                self.model(inputs)

    def probe(self, **options: Any) -> LayerCurves:
        return probe_layers(self.model, self.batches, **self.options, **options)


def times(kind: str, width: int, K: int, N: int, batch: int, rounds: int) -> list[Row]:
    case = Case(kind, width, K, N, batch)
    name = f"{kind}, width {width}, K = {K}"
    first = race(lambda: case.probe(ncc=False), case.bare, rounds).costlier(f"{name}: moments, one pass", TARGET)
    both = race(lambda: case.probe(hold_bytes=0), case.bare, rounds).costlier(f"{name}: with the second look")
    return [first, both]


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


def memory(N: int) -> list[Row]:
    rows = []
    for ncc, name in ((False, "one pass"), (True, "with the second look")):
        few, many = (extra_memory(probing, (256, ncc), (n, ncc)) for n in (N, 4 * N))
        grown = many - few
        held = 4 * 3 * N * DEPTH * 256  # what the features of the 3 N samples more would take
        cell = f"{grown / 2**20:+.1f} MiB of {megabytes(held)}"
        row_name = f"peak extra memory, mlp, width 256, N = {4 * N}; peer: N = {N}, {name}"
        rows.append(
            Row(row_name, megabytes(many), megabytes(few), cell, "<= 2 % of the features", grown <= 0.02 * held)
        )
    return rows


def run(cases: tuple[tuple[str, int, int, int, int], ...], rounds: int = 9) -> list[Row]:
    return [row for case in cases for row in times(*case, rounds)]


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
TINY = {"cases": (("mlp", 8, 3, 60, 16), ("transformer", 8, 3, 30, 16), ("cnn flatten", 2, 3, 30, 16)), "rounds": 1}


def main() -> None:
    one_thread()
    report("probe_layers: 12 layers, batches of 256; peer: bare forward pass", run(CASES) + memory(16384))


if __name__ == "__main__":
    main()
