"""Small networks on balanced digits, trained on all samples at once, with and without weight decay."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from tightframe.ufm.duality import log_probabilities
from torch import Tensor, nn

from tightframe.data import Digits
from tightframe.errors import check_positive, check_range

NUM_CLASSES = 10


@dataclass(frozen=True)
class Shape:
    """What a network is built of.

    Args:
        width: of every hidden layer; the last one is d.
        depth: number of hidden layers.
        batch_norm: whether each linear map but the classifier is followed by one.
        relu: whether the features are behind a ReLU, as those of the other hidden layers are.
    """

    width: int = 64
    depth: int = 3
    batch_norm: bool = True
    relu: bool = True


class Network(nn.Module):
    """Features of a multilayer perceptron, and a classifier without bias; float32 until it is cast.

    Args:
        shape: of it.
        inputs: their dimension.
        seed: of the draw, torch's default one.
    """

    def __init__(self, shape: Shape, inputs: int, seed: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            for width in [inputs] + [shape.width] * (shape.depth - 1):
                layers.append(nn.Linear(width, shape.width))
                layers += [nn.BatchNorm1d(shape.width)] if shape.batch_norm else []
                layers.append(nn.ReLU())
            self.classifier = nn.Linear(shape.width, NUM_CLASSES, bias=False)
        self.body = nn.Sequential(*(layers if shape.relu else layers[:-1]))

    def forward(self, x: Tensor) -> Tensor:
        """Return logits ``(N, K)``."""
        return self.classifier(self.body(x))

    def point(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return W ``(K, d)`` and H ``(N, d)`` in float64, as the loss of a step on all of ``x`` sees them."""
        with torch.no_grad():
            return self.classifier.weight.detach().double().clone(), self.body(x).double()


def balanced_digits(per_class: int = 139) -> tuple[Tensor, Tensor]:
    """Return images ``(10 per_class, 64)`` and labels, class by class, of the training part of digits.

    Args:
        per_class: at most 139, the size of the smallest class.

    Raises:
        ArgumentError: if there are not so many.
    """
    data = Digits().load()
    check_positive("per_class", per_class)
    smallest = int(data.class_counts.min())
    check_range("per_class", per_class, per_class <= smallest, f"at most {smallest}, the digits of each class")
    images, labels = data.train.tensors  # type: ignore[attr-defined]
    kept = torch.cat([(labels == k).nonzero().flatten()[:per_class] for k in range(NUM_CLASSES)])
    return images[kept], labels[kept]


def decayed(
    network: Network, images: Tensor, labels: Tensor, decay: float, steps: int, marks: Sequence[int] = ()
) -> Iterator[int]:
    """Descend along the mean of cross-entropies with weight decay on every parameter; yield after each marked step.

    SGD with momentum 0.9; the learning rate falls from 0.2 to 0 as a cosine.

    Args:
        network: trained in place.
        images: ``(N, 64)``.
        labels: ``(N,)``.
        decay: of ``torch.optim.SGD``.
        steps: in all; the last one is always marked.
        marks: numbers of steps.
    """
    optimizer = torch.optim.SGD(network.parameters(), lr=0.2, momentum=0.9, weight_decay=decay)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, max(1, steps))
    if 0 in marks:
        yield 0
    for step in range(1, steps + 1):
        optimizer.zero_grad()
        F.cross_entropy(network(images), labels).backward()
        optimizer.step()
        schedule.step()
        if step in marks or step == steps:
            yield step


def unregularised(
    network: Network, images: Tensor, labels: Tensor, times: Sequence[float], max_steps: int = 40_000
) -> Iterator[tuple[float, float]]:
    """Descend along the sum of cross-entropies, and yield time and loss when each of the times has been reached.

    A step is c/L long and the time is the sum of the steps, so that decades of time cost alike. c grows by 5 % until a
    step does not lower the loss, which is then undone and c halved.

    Args:
        network: trained in place; its float64 copy reaches losses that float32 cannot tell from zero.
        images: ``(N, 64)``, of the network's dtype.
        labels: ``(N,)``.
        times: increasing.
        max_steps: tried at most, even if no time is reached.
    """
    parameters = list(network.parameters())

    def slope() -> tuple[float, tuple[Tensor, ...]]:
        loss = log_probabilities(network(images), labels)[0].sum()
        return loss.item(), torch.autograd.grad(loss, parameters)

    waiting = list(times)
    time, pace, (loss, gradient) = 0.0, 0.1, slope()
    for _ in range(max_steps):
        size, before = pace / loss, [parameter.detach().clone() for parameter in parameters]
        with torch.no_grad():
            for parameter, direction in zip(parameters, gradient, strict=True):
                parameter.sub_(direction, alpha=size)
        new_loss, new_gradient = slope()
        if new_loss < loss:
            time, pace, loss, gradient = time + size, 1.05 * pace, new_loss, new_gradient
        else:
            pace /= 2
            with torch.no_grad():
                for parameter, old in zip(parameters, before, strict=True):
                    parameter.copy_(old)
        if time >= waiting[0]:
            while waiting and time >= waiting[0]:
                waiting.pop(0)
            yield time, loss
        if not waiting:
            return
