"""The convex problem in the logits, with classes of the same count and weight merged: they may share all they have.

A convex objective that a permutation leaves alone has a minimum that it leaves alone. Over the permutations within G
groups of ``m_g`` equal classes such a Y is, block by block, α_g C ⊕ Ŷ_gh 11ᵀ/√(m_g m_h) with C the centering, and

    ‖Y‖_* = ‖Ŷ‖_* + Σ (m_g - 1) |α_g|.

A row of logits then has G + 1 different entries: those of the other groups, of the siblings in its own, and its own.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from tightframe.ufm.bound import best_bias
from tightframe.ufm.losses import Rows
from tightframe.ufm.problem import Problem


@dataclass(frozen=True)
class Point:
    """Ŷ ``(G, G)``, α and bias ``(G,)`` as the columns of one matrix ``(G, G + 2)``, which makes it a vector space."""

    packed: Tensor

    @property
    def Y(self) -> Tensor:  # noqa: N802 - the literature's letter
        """Ŷ ``(G, G)``."""
        return self.packed[:, :-2]

    @property
    def alpha(self) -> Tensor:
        """α ``(G,)``."""
        return self.packed[:, -2]

    @property
    def bias(self) -> Tensor:
        """Bias ``(G,)``."""
        return self.packed[:, -1]


class Grouped:
    """The fit of a model as a function of grouped logits, its slope and its curvature.

    Args:
        problem: a model whose fit is convex.

    Attributes:
        group: the group of each class ``(K,)``.
        sizes: ``m_g`` ``(G,)``.
    """

    def __init__(self, problem: Problem) -> None:
        self.problem, self.criterion = problem, problem.criterion
        pairs = torch.stack([problem.class_weights, problem.prices], dim=1)
        unique, self.group, sizes = torch.unique(pairs, dim=0, return_inverse=True, return_counts=True)
        self.sizes = sizes.to(unique)
        self.root = unique[:, 1].sqrt()
        spread = self.sizes.sqrt()
        self.scale = 1 / (self.root * spread).unsqueeze(1) / spread
        self.spread = spread / spread.norm()
        self.others = 1 - 1 / self.sizes
        times = self.sizes.expand(len(sizes), -1).clone()
        times.diagonal().sub_(1)
        times = torch.cat([times, torch.ones(len(sizes), 1, dtype=times.dtype)], dim=1)
        own = torch.full((len(sizes),), len(sizes))
        self.rows = Rows(own, unique[:, 0] * self.sizes, unique[:, 1], times)

    def logits(self, point: Point) -> Tensor:
        """Return the different logits ``(G, G + 1)`` of each group, those of its own class last."""
        between = torch.addcmul(point.bias, point.Y, self.scale)
        within = point.alpha / self.root
        own = between.diagonal() + within * self.others
        between.diagonal().sub_(within / self.sizes)
        return torch.cat([between, own.unsqueeze(1)], dim=1)

    def centred(self, Y: Tensor) -> Tensor:
        """Return Ŷ without what adds the same to all logits of a row, if the fit does not see that."""
        return Y if self.criterion.squared else torch.addr(Y, Y @ self.spread, self.spread, alpha=-1)

    def pulled_back(self, slope: Tensor) -> Point:
        """Return the adjoint of :meth:`logits` applied to ``slope (G, G + 1)``."""
        between, own = slope[:, :-1].clone(), slope[:, -1]
        alpha = (own * self.others - between.diagonal() / self.sizes) / self.root
        between.diagonal().add_(own)
        bias = between.sum(dim=0)
        return Point(torch.cat([between.mul_(self.scale), alpha.unsqueeze(1), bias.unsqueeze(1)], dim=1))

    def shares(self, logits: Tensor) -> tuple[float, Tensor]:
        """Return the fit and the shares ``(G, G + 1)`` of :mod:`tightframe.ufm.losses`."""
        losses, shares = self.criterion.shares(self.rows, logits)
        return (self.rows.weights @ losses).item(), shares

    def slope(self, shares: Tensor) -> Point:
        """Return the gradient of the fit by a point, from the shares there."""
        return self.pulled_back(self.criterion.slope(self.rows, shares))

    def curved(self, shares: Tensor, move: Point) -> Point:
        """Return the Hessian of the fit by a point, from the shares there, applied to ``move``."""
        return self.pulled_back(self.criterion.curved(self.rows, shares, self.logits(move)))

    def curvatures(self, shares: Tensor) -> Tensor:
        """Return the diagonal of the Hessian by the logits ``(G, G + 1)``, without its part of rank one in each row."""
        rows = self.criterion.curvatures(self.rows, shares)
        return rows.clamp(min=1e-14 * rows.max().item())

    def best_bias(self, point: Point) -> Tensor:
        """Return the bias ``(G,)`` that is optimal for the other logits of a point, where the model has one."""
        Z, bias = self.unfold(point)
        best = best_bias(self.problem, self.problem.rows(), Z, bias)
        if best is None:
            return point.bias
        return torch.zeros_like(point.bias).index_add_(0, self.group, best) / self.sizes

    def unfold(self, point: Point) -> tuple[Tensor, Tensor]:
        """Return logits without bias Z ``(K, K)`` and the bias ``(K,)`` of all classes."""
        within = (point.alpha / self.root)[self.group]
        Z = (point.Y * self.scale)[self.group][:, self.group]
        same = self.group.unsqueeze(1) == self.group
        Z = Z - same * (within / self.sizes[self.group]).unsqueeze(1)
        return Z + within.diag(), point.bias[self.group]

    def fold(self, Z: Tensor, bias: Tensor | None = None) -> Point:
        """Return the mean over all permutations of logits without bias Z ``(K, K)`` and of the bias."""
        member = torch.nn.functional.one_hot(self.group, len(self.sizes)).to(Z)
        Y = member.T @ Z @ member * (self.root.unsqueeze(1) / self.sizes.sqrt().unsqueeze(1) / self.sizes.sqrt())
        trace = (member.T @ Z.diagonal()) * self.root
        alpha = ((trace - Y.diagonal()) / (self.sizes - 1)).where(self.sizes > 1, 0.0)
        mean = torch.zeros_like(alpha) if bias is None else member.T @ bias / self.sizes
        return Point(torch.cat([Y, alpha.unsqueeze(1), mean.unsqueeze(1)], dim=1))
