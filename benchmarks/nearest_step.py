"""What NearestETFClassifier adds to a training step, against a learned linear classifier."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks._timing import Row, one_thread, race, report
from tightframe.nn import LinearClassifier, NearestETFClassifier
from tightframe.nn.classifiers import Classifier
from tightframe.training import FreeFeatures, ResNet

TARGETS = {"none": 1.15, "exact": 1.3}


def training_step(backbone: nn.Module, classifier: Classifier, inputs: Tensor, labels: Tensor) -> Callable[[], None]:
    parameters = [*backbone.parameters(), *classifier.parameters()]
    optimizer = torch.optim.SGD(parameters, lr=1e-3, momentum=0.9)

    def call() -> None:
        loss = F.cross_entropy(classifier(backbone(inputs), labels), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return call


def compare(
    name: str,
    make_backbone: Callable[[], nn.Module],
    inputs: Tensor,
    K: int,
    rounds: int,
    targets: dict[str, float] | None = None,
) -> list[Row]:
    labels = torch.arange(len(inputs)) % K
    d = make_backbone().out_features
    linear = training_step(make_backbone(), LinearClassifier(d, K), inputs, labels)
    rows = []
    for gradient in ("none", "exact"):
        follower = NearestETFClassifier(d, K, proximal=1e-3 * (K - 1) / 2, gradient=gradient)
        timed = race(training_step(make_backbone(), follower, inputs, labels), linear, rounds)
        rows.append(timed.costlier(f"{name}, gradient {gradient}", (targets or {}).get(gradient)))
    return rows


def run(
    size: int = 32,
    batch: int = 128,
    K: int = 100,
    free: Sequence[tuple[int, int, int]] = ((1000, 512, 10), (5000, 1024, 100)),
    rounds: int = 7,
) -> list[Row]:
    images = torch.randn(batch, 3, size, size, generator=torch.Generator().manual_seed(0))
    name = f"ResNet-18, {batch} images of {size} x {size}, K = {K}"
    rows = compare(name, lambda: ResNet(18, in_channels=3), images, K, rounds, TARGETS)
    for N, d, classes in free:
        name = f"free features {N} x {d}, K = {classes}"
        rows += compare(name, lambda N=N, d=d: FreeFeatures(N, d), torch.arange(N), classes, rounds)
    return rows


TINY: dict[str, Any] = {"size": 8, "batch": 8, "K": 4, "free": ((12, 6, 3),), "rounds": 1}


def main() -> None:
    one_thread()
    report("A training step with NearestETFClassifier; peer: LinearClassifier", run())


if __name__ == "__main__":
    main()
