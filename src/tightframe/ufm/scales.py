"""The best scale of logits of a given shape in a deep model: one number, with a fold and a zero solution."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

_GRID = 512  # points, in the logarithm of the scale, between which a root or a maximum is sought
_PASSES, _PARTS = 10, 32  # 32^10 parts are all that float64 can tell apart


class BestScale(NamedTuple):
    """The scale at which logits of a given shape cost the least, and what decides it.

    Attributes:
        value: the best scale α >= 0.
        loss: objective there; log K at α = 0.
        stationary: all scales > 0 at which the objective is stationary, rising. Below the fold these are a maximum and
            a minimum, of one layer the minimum alone; above it there is none.
        fold: scale of the fold, where the two meet; 0 of one layer.
        fold_decay: decay λ of the fold; at larger ones nothing but zero is stationary.
        zero_decay: decay λ from which the zero solution is as good as the best scale; at most ``fold_decay``.
    """

    value: float
    loss: float
    stationary: tuple[float, ...]
    fold: float
    fold_decay: float
    zero_decay: float


@dataclass(frozen=True)
class Ray:
    r"""The objective along αS, :math:`\mathrm{CE}(\alpha S) + \lambda\tfrac F2\, c\,(\alpha\sqrt n)^{2/F}`.

    Args:
        margins: ``(R, K - 1)``, own logit less each other, > 0, of the kinds of classes at scale 1.
        weights: ``(R,)`` share of the classes that are of each kind.
        cost: c.
        count: n, samples of a class.
        num_factors: F >= 2.
    """

    margins: Tensor
    weights: Tensor
    cost: float
    count: int
    num_factors: int

    @property
    def exponent(self) -> float:
        """2/F."""
        return 2 / self.num_factors

    @property
    def price(self) -> float:
        """Cost of scale 1 at decay 1."""
        return self.cost / self.exponent * self.count ** (1 / self.num_factors)

    @property
    def log_classes(self) -> float:
        """Log K, the loss of zero logits."""
        return math.log(self.margins.shape[1] + 1)

    def fit(self, u: Tensor) -> Tensor:
        """Return the cross-entropy at the scales exp(u), of the shape of u."""
        return F.softplus(torch.logsumexp(self._exponents(u), dim=-1)) @ self.weights

    def log_slope(self, u: Tensor) -> Tensor:
        """Return the logarithm of minus the derivative of the fit by the scale, at exp(u)."""
        exponents = self._exponents(u)
        wrong = F.softplus(torch.logsumexp(exponents, dim=-1))
        rates = torch.logsumexp(exponents + self.margins.log(), dim=-1) - wrong
        return torch.logsumexp(rates + self.weights.log(), dim=-1)

    def best(self, decay: float) -> BestScale:
        """Return the best scale at a decay λ of every factor."""
        fold, fold_decay = self._fold()
        stationary = self._stationary(decay, fold) if decay < fold_decay else ()
        value, loss = 0.0, self.log_classes
        for scale in stationary:
            here = self.loss(scale, decay)
            if here < loss:
                value, loss = scale, here
        return BestScale(value, loss, stationary, fold, fold_decay, self._zero_decay(fold_decay))

    def loss(self, scale: float, decay: float) -> float:
        """Return the objective at a scale > 0."""
        fit = self.fit(torch.tensor(scale, dtype=torch.float64).log()).item()
        return float(fit + decay * self.price * scale**self.exponent)

    def _exponents(self, u: Tensor) -> Tensor:
        return -u.exp()[..., None, None] * self.margins

    def _log_decay(self, u: Tensor) -> Tensor:
        """Return the logarithm of the decay at which the scale exp(u) is stationary."""
        return self.log_slope(u) + (1 - self.exponent) * u - math.log(self.price * self.exponent)

    def _log_decay_of_zero(self, u: Tensor) -> Tensor:
        """Return the logarithm of the decay at which the scale exp(u) is as good as zero."""
        return (self.log_classes - self.fit(u)).log() - self.exponent * u - math.log(self.price)

    def _fold(self) -> tuple[float, float]:
        if self.exponent == 1:
            flat = torch.tensor(-math.inf, dtype=torch.float64)
            return 0.0, math.exp(self.log_slope(flat).item() - math.log(self.price))
        u, height = _maximum(self._log_decay, self._grid())
        return math.exp(u), math.exp(height)

    def _zero_decay(self, fold_decay: float) -> float:
        return fold_decay if self.exponent == 1 else math.exp(_maximum(self._log_decay_of_zero, self._grid())[1])

    def _grid(self) -> Tensor:
        """Return logarithms of scales from where all classes are alike to where each is told from the others."""
        low, high = 1e-3 / self.margins.max().item(), (50 + self.log_classes) / self.margins.min().item()
        return torch.linspace(math.log(low), math.log(high), _GRID, dtype=torch.float64)

    def _stationary(self, decay: float, fold: float) -> tuple[float, ...]:
        def excess(u: Tensor) -> Tensor:
            return self._log_decay(u) - math.log(decay)

        low, high = (end.item() for end in self._grid()[[0, -1]])
        while excess(torch.tensor(high, dtype=torch.float64)) > 0:
            high += 1
        # Of one layer the fit's slope hardly changes below this, so a root there is no root but rounding.
        lowest = -40.0 if self.exponent == 1 else -math.inf
        while low > lowest and (excess(torch.tensor(low, dtype=torch.float64)) > 0) == (self.exponent < 1):
            low -= 1
        grid = torch.linspace(low, high, _GRID, dtype=torch.float64)
        if fold > 0:  # between the two roots, however close these are
            grid = torch.cat([grid, torch.tensor([math.log(fold)], dtype=torch.float64)]).sort().values
        above = excess(grid) > 0
        changes = (above[1:] != above[:-1]).nonzero()[:, 0].tolist()
        return tuple(math.exp(root(excess, grid[i].item(), grid[i + 1].item())) for i in changes)


def root(function: Callable[[Tensor], Tensor], low: float, high: float) -> float:
    """Return where a function of points ``(G,)`` first changes its sign between two numbers, by ever finer grids."""
    for _ in range(_PASSES):
        points = torch.linspace(low, high, _PARTS + 1, dtype=torch.float64)
        above = function(points) > 0
        changed = (above != above[0]).nonzero()
        if len(changed) == 0:  # nothing is left between the two but rounding
            break
        low, high = points[changed[0] - 1].item(), points[changed[0]].item()
    return (low + high) / 2


def _maximum(function: Callable[[Tensor], Tensor], grid: Tensor) -> tuple[float, float]:
    """Return where a function is largest, and how large: next to its largest value on the grid, by its derivative."""

    def derivative(u: Tensor) -> Tensor:
        u = u.requires_grad_()
        return torch.autograd.grad(function(u).sum(), u)[0]

    best = int(function(grid).argmax())
    low, high = grid[max(best - 1, 0)].item(), grid[min(best + 1, len(grid) - 1)].item()
    with torch.enable_grad():
        u = root(derivative, low, high)
    return u, function(torch.tensor(u, dtype=torch.float64)).item()
