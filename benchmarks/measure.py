"""``tightframe.measure`` against the bare work that it cannot avoid: a forward pass, or the products of features."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import nn

from benchmarks._timing import Row, batches_of, race, samples
from benchmarks.moments import Batches, bare_products
from tightframe import measure
from tightframe.data import Digits
from tightframe.training import MLP, ResNet

TITLE = "measure"
TINY: dict[str, Any] = {"images": 10, "size": (40, 8, 4), "rounds": 1}


def forward(model: nn.Module, batches: Batches) -> None:
    """Make the forward pass and nothing else."""
    with torch.no_grad():
        for inputs, _ in batches:
            model(inputs)


def products(model: nn.Linear, batches: Batches, precision: torch.dtype) -> None:
    """Compute scatter and logits, and the singular values of K class means, for which the weight stands in."""
    d, weight = model.in_features, model.weight.detach().to(precision)
    bare_products(batches, d)
    for h, _ in batches:
        h.to(precision) @ weight.T
    torch.linalg.svd(model.weight.detach().double(), full_matrices=False)


def run(images: int = 500, size: tuple[int, int, int] = (50_000, 512, 1000), rounds: int = 5) -> list[Row]:
    torch.manual_seed(0)
    resnet = nn.Sequential(ResNet(18, 3, small_images=True), nn.Linear(512, 10)).eval()
    pictures = batches_of(torch.randn(images, 3, 32, 32), torch.arange(images) % 10, 100)
    mlp = nn.Sequential(MLP(64, [256, 128], relu_last=False), nn.Linear(128, 10)).eval()
    data = Digits().load()
    digits = [batch for part in (data.train, data.test) for batch in batches_of(*part[:], 512)]
    rows = [
        race(lambda: measure(resnet, pictures), lambda: forward(resnet, pictures), rounds).costlier(
            f"ResNet-18, {images} images of 32 x 32; peer: forward pass", 1.1
        ),
        race(lambda: measure(mlp, digits), lambda: forward(mlp, digits), 4 * rounds).costlier(
            "MLP, all digits; peer: forward pass", 3
        ),
    ]
    N, d, K = size
    linear, batches = nn.Linear(d, K), batches_of(*samples(N, d, K), 512)
    name = f"features {N} x {d}, K = {K}; peer: float64 XᵀX and SVD of the means"
    # Nearest means are found in float64, for which products with the class vectors cost twice those of the model.
    for precision, limit in ((torch.float64, 2.5), (torch.float32, None)):
        bare = partial(products, linear, batches, precision)
        timed = race(lambda: measure(linear, batches, hold_bytes=2**30), bare, rounds)
        rows.append(timed.costlier(f"{name}, {precision} logits".replace("torch.", ""), limit))
    return rows
