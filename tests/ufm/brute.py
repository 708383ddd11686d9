"""Minima by brute force: every sample has its feature, L-BFGS from random starts, no theory.

Nothing here comes from the package but the problems' own numbers.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor

from tightframe.ufm import CrossEntropyUFM, DeepUFM, MeanSquaredUFM, ReLUImbalanced


@dataclass(frozen=True)
class Found:
    """The lowest point found: features ``(N, d)``, matrices towards the output, bias, and their logits ``(N, K)``."""

    loss: float
    H: Tensor
    matrices: tuple[Tensor, ...]
    bias: Tensor | None
    logits: Tensor

    @property
    def classifier(self) -> Tensor:
        return self.matrices[-1]


@cache
def labels_of(problem) -> Tensor:
    return torch.tensor([k for k, n in enumerate(problem.counts) for _ in range(n)])


@cache
def weights_of(problem) -> Tensor:
    N = sum(problem.counts)
    weights = getattr(problem, "sample_weights", None)
    return torch.tensor([1 / N if weights is None else weights[k] for k in labels_of(problem)], dtype=torch.float64)


def decays_of(problem) -> tuple[float, ...]:
    """Return the decays of features, then matrices."""
    return problem.decays if isinstance(problem, DeepUFM) else (problem.feature_decay, problem.weight_decay)


def logits_of(problem, H: Tensor, matrices, bias: Tensor | None = None) -> Tensor:
    x = H
    for index, M in enumerate(matrices):
        x = (x.clamp(min=0) if index and getattr(problem, "relu", False) else x) @ M.T
    return x if bias is None else x + bias


def value(problem, H: Tensor, matrices, bias: Tensor | None = None) -> Tensor:
    """Return the objective at features ``(N, d)``, as the problem's docstring has it."""
    y, omega = labels_of(problem), weights_of(problem)
    logits = logits_of(problem, H, matrices, bias)
    if isinstance(problem, MeanSquaredUFM) or getattr(problem, "loss", "") == "mse":
        losses = ((logits - F.one_hot(y, len(problem.counts))) ** 2).sum(dim=1) / 2
    else:
        losses = -logits.log_softmax(dim=1)[torch.arange(len(y)), y]
    total = omega @ losses
    for decay, part in zip(decays_of(problem), (H, *matrices), strict=True):
        total = total + decay / 2 * (part * part).sum()
    if bias is not None:
        total = total + (problem.bias_decay or 0.0) / 2 * (bias * bias).sum()
    return total


def minimise(problem, starts: int = 4, seed: int = 0, iterations: int = 2000, width: int | None = None) -> Found:
    """Return the lowest of ``starts`` runs of L-BFGS; ``width`` replaces d."""
    generator = torch.Generator().manual_seed(seed)
    return min(
        (_run(problem, generator, iterations, width or problem.dim) for _ in range(starts)), key=lambda f: f.loss
    )


def _run(problem, generator: torch.Generator, iterations: int, d: int) -> Found:
    K, layers = len(problem.counts), len(decays_of(problem)) - 1
    shapes = [(sum(problem.counts), d), *[(d, d)] * (layers - 1), (K, d)]
    leaves = [torch.randn(s, generator=generator, dtype=torch.float64).requires_grad_() for s in shapes]
    if isinstance(problem, CrossEntropyUFM | MeanSquaredUFM) and problem.bias_decay is not None:
        leaves.append(torch.randn(K, generator=generator, dtype=torch.float64).requires_grad_())

    def parts():
        H = leaves[0] ** 2 if isinstance(problem, ReLUImbalanced) else leaves[0]
        return H, tuple(leaves[1 : layers + 1]), leaves[layers + 1] if len(leaves) > layers + 1 else None

    optimiser = torch.optim.LBFGS(
        leaves,
        max_iter=iterations,
        max_eval=2 * iterations,
        history_size=30,
        tolerance_grad=1e-13,
        tolerance_change=1e-17,
        line_search_fn="strong_wolfe",
    )

    def closure():
        optimiser.zero_grad()
        loss = value(problem, *parts())
        loss.backward()
        return loss

    optimiser.step(closure)
    with torch.no_grad():
        H, matrices, bias = (x for x in parts())
        loss = value(problem, H, matrices, bias).item()
        return Found(loss, H, matrices, bias, logits_of(problem, H, matrices, bias))
