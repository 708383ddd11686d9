"""The network of the figures, the digits that it is trained on, and the loop that trains networks and models."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from tightframe.data import Digits
from tightframe.errors import check_positive, check_range

NUM_CLASSES = 10


@dataclass(frozen=True)
class Shape:
    """Parts of a network.

    Args:
        width: Width of every hidden layer; that of the last one is d.
        depth: Number of hidden layers.
        batch_norm: Whether each linear map of the body is followed by batch normalisation.
        relu: Whether the features are behind a ReLU, as those of the other hidden layers are.
        head: Number of linear layers after the body, without bias.
    """

    width: int = 64
    depth: int = 3
    batch_norm: bool = True
    relu: bool = True
    head: int = 1


class Network(nn.Module):
    """A multilayer perceptron for digits: a body, and a head of linear layers without bias; float32 until it is cast.

    Args:
        shape: Parts of the network.
        inputs: Dimension of the inputs.
        seed: Seed of its start, PyTorch's default one.
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
            outputs = [shape.width] * (shape.head - 1) + [NUM_CLASSES]
            self.head = nn.Sequential(*(nn.Linear(shape.width, width, bias=False) for width in outputs))
        self.body = nn.Sequential(*(layers if shape.relu else layers[:-1]))

    def forward(self, x: Tensor) -> Tensor:
        """Return logits ``(N, K)``."""
        return self.head(self.body(x))

    @torch.no_grad()
    def point(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return W ``(K, d)`` and H ``(N, d)`` in float64, as the loss of a step on all of ``x`` sees them."""
        *inner, last = self.head
        return last.weight.double().clone(), nn.Sequential(*inner)(self.body(x)).double()


@torch.no_grad()
def he_start_(network: Network) -> None:
    """Scale the start as He et al. 2015 do: a variance of 2/fan-in before a ReLU, 1/fan-in in the head, no biases."""
    for layer in network.modules():
        if isinstance(layer, nn.Linear):
            layer.weight *= math.sqrt(3 if layer.bias is None else 6)  # PyTorch's is 1/(3 fan-in)
            if layer.bias is not None:
                layer.bias.zero_()


def digits(counts: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Return images ``(N, 64)`` and labels, class by class, of the training part of digits.

    Args:
        counts: Samples of each class, at most 139, the size of the smallest class.

    Raises:
        ArgumentError: if there are not so many.
    """
    data = Digits().load()
    smallest = int(data.class_counts.min())
    check_positive("counts", min(counts))
    check_range("counts", max(counts), max(counts) <= smallest, f"at most {smallest}, the digits of each class")
    images, labels = data.train[:]
    kept = torch.cat([(labels == k).nonzero().flatten()[:count] for k, count in enumerate(counts)])
    return images[kept], labels[kept]


def descent(
    objective: Callable[[], Tensor], optimizer: torch.optim.Optimizer, steps: int, cosine: bool = False
) -> Iterator[int]:
    """Minimise an objective of the optimizer's parameters, and yield how many steps were made: 0, 1, ..., ``steps``.

    Args:
        objective: Function that is minimised.
        optimizer: Any optimizer; it may call the objective several times a step.
        steps: Number of steps.
        cosine: Whether the learning rate falls to 0 as a cosine.
    """

    def closure() -> Any:
        optimizer.zero_grad()
        value = objective()
        value.backward()
        return value

    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, max(1, steps)) if cosine else None
    yield 0
    for step in range(1, steps + 1):
        optimizer.step(closure)
        if schedule is not None:
            schedule.step()
        yield step


class TimedDescent(torch.optim.Optimizer):
    """Gradient descent with steps of length c/L at a loss L, for which decades of time cost alike.

    ``time`` is the sum of the steps and ``loss`` the loss there. c grows by 5 % until a step does not lower the loss;
    that step is undone and c halved.
    """

    def __init__(self, parameters: Any) -> None:
        super().__init__(parameters, {})
        self.time, self.pace, self.loss = 0.0, 0.1, 0.0

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Make a step, or undo it."""
        parameters = self.param_groups[0]["params"]
        self.loss = self.loss or closure().item()
        size, before = self.pace / self.loss, [parameter.detach().clone() for parameter in parameters]
        with torch.no_grad():
            for parameter in parameters:
                parameter.sub_(parameter.grad, alpha=size)
        loss = closure().item()
        if loss < self.loss:
            self.time, self.pace, self.loss = self.time + size, 1.05 * self.pace, loss
            return
        self.pace /= 2
        with torch.no_grad():
            for parameter, old in zip(parameters, before, strict=True):
                parameter.copy_(old)
        closure()
