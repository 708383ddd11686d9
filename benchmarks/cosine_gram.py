"""The cosine-Gram loss as one matrix product against a loop over the classes."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks._timing import Row, one_thread, race, report
from tightframe.nn import CosineGramLoss, FrameClassifier


def loop(features: Tensor, labels: Tensor, weight: Tensor, gram: Tensor) -> Tensor:
    """Return the same by one cosine similarity a class."""
    loss = features.new_zeros(())
    for c in range(weight.shape[0]):
        cosine = F.cosine_similarity(features, weight[c].unsqueeze(0), dim=1)
        loss = loss + (cosine - gram[labels, c]).square().mean()
    return loss


def gradient(loss: Callable[[Tensor], Tensor], features: Tensor) -> tuple[Tensor, Tensor]:
    features = features.detach().requires_grad_()
    value = loss(features)
    value.backward()
    assert features.grad is not None
    return value.detach(), features.grad


def run(K: int = 1000, d: int = 1000, batch: int = 256, rounds: int = 5) -> list[Row]:
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(batch, d, generator=generator)
    labels = torch.randint(K, (batch,), generator=generator)
    weight = F.normalize(torch.randn(K, d, generator=generator))
    gram = weight @ weight.T
    # At alpha = 1 cross-entropy has weight 0.
    loss, classifier = CosineGramLoss(1.0), FrameClassifier(weight, normalize=False)
    ours = partial(loss, labels=labels, classifier=classifier)
    peer = lambda x: loop(x, labels, weight, gram)  # noqa: E731
    rows = []
    exact = gradient(lambda x: loop(x, labels, weight.double(), gram.double()), features.double())
    name = "CosineGramLoss, one matrix product"
    result = race(lambda: gradient(ours, features), lambda: gradient(peer, features), rounds)
    rows.append(result.faster(f"{name}; forward and backward; peer: loop over classes", at_least=100))
    gap = max(((a - b).norm() / b.norm()).item() for a, b in zip(gradient(ours, features), exact, strict=True))
    text = f"{gap:.1e} off the float64 loop"
    rows.append(Row(f"{name}: value and gradient", "-", "-", text, "<= 1e-6", gap <= 1e-6))
    return rows


TINY = {"K": 5, "d": 4, "batch": 3, "rounds": 1}


def main() -> None:
    one_thread()
    report("Cosine-Gram loss: K = 1000, d = 1000, batch 256, float32", run())


if __name__ == "__main__":
    main()
