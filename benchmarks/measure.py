"""``tightframe.measure`` against the bare work that it cannot avoid: a forward pass, or the products of features."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks._timing import Row, one_thread, race, report
from tightframe import measure
from tightframe.data import Digits
from tightframe.training import MLP, ResNet

Batches = list[tuple[Tensor, Tensor]]


def batches_of(inputs: Tensor, labels: Tensor, size: int) -> Batches:
    """Return copies, as a loader gives them."""
    return [(x.clone(), y.clone()) for x, y in zip(inputs.split(size), labels.split(size), strict=True)]


def against_forward(name: str, model: nn.Module, batches: Batches, at_most: float, rounds: int) -> Row:
    def bare() -> None:
        with torch.no_grad():
            for inputs, _ in batches:
                model(inputs)

    return race(lambda: measure(model.eval(), batches), bare, rounds).costlier(f"{name}; peer: forward pass", at_most)


def resnet(images: int, rounds: int) -> Row:
    torch.manual_seed(0)
    model = nn.Sequential(ResNet(18, 3, small_images=True), nn.Linear(512, 10))
    data = batches_of(torch.randn(images, 3, 32, 32), torch.arange(images) % 10, 100)
    return against_forward(f"ResNet-18, {images} images of 32 x 32", model, data, 1.1, rounds)


def digits(rounds: int) -> Row:
    torch.manual_seed(0)
    data = Digits().load()
    parts = [part[:] for part in (data.train, data.test)]
    inputs, labels = (torch.cat(tensors) for tensors in zip(*parts, strict=True))
    model = nn.Sequential(MLP(64, [256, 128], relu_last=False), nn.Linear(128, 10))
    return against_forward(f"MLP, all {len(labels)} digits", model, batches_of(inputs, labels, 512), 3, rounds)


def features(N: int, d: int, K: int, rounds: int) -> list[Row]:
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(N) % K
    means = torch.randn(K, d, generator=generator)
    batches = batches_of(means[labels] + torch.randn(N, d, generator=generator), labels, 512)
    torch.manual_seed(0)
    model = nn.Linear(d, K)

    def bare(precision: torch.dtype) -> None:
        products = torch.zeros(d, d, dtype=torch.float64)
        weight = model.weight.to(precision)
        with torch.no_grad():
            for h, _ in batches:
                wide = h.double()
                products.addmm_(wide.T, wide)
                h.to(precision) @ weight.T
        torch.linalg.svd(means.double(), full_matrices=False)

    rows = []
    # Nearest means are found in float64, for which products with the class vectors cost twice those of the model.
    for precision, limit in ((torch.float64, 2.5), (torch.float32, None)):
        race_ = race(lambda: measure(model, batches, hold_bytes=2**30), partial(bare, precision), rounds)
        name = str(precision).removeprefix("torch.")
        rows.append(
            race_.costlier(f"features {N} x {d}, K = {K}; peer: float64 XᵀX and SVD of the means, {name} logits", limit)
        )
    return rows


def run(images: int = 500, samples: tuple[int, int, int] = (50_000, 512, 1000), rounds: int = 5) -> list[Row]:
    return [resnet(images, rounds), digits(4 * rounds), *features(*samples, rounds)]


TINY: dict[str, Any] = {"images": 10, "samples": (40, 8, 4), "rounds": 1}


def main() -> None:
    one_thread()
    report("measure", run())


if __name__ == "__main__":
    main()
