r"""The losses of the models on a table of rows: value, slope, curvature, best bias and conjugate, each written once.

A row of logits belongs to a class, counts with a weight ω in the fit, and its feature's square has a price c. Slope and
curvature are read off the *shares* of a row: the probabilities Q for cross-entropy, Z - E for the squared error.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

_POLISHING = 3  # steps once the value is as low as rounding lets it be


@dataclass(frozen=True)
class Rows:
    """A table of R rows of logits ``(R, M)``.

    Args:
        own: Column of the own logit of each row ``(R,)``; its class, where columns are classes.
        weights: Weight ω of each row in the fit ``(R,)``.
        prices: Price c of each row ``(R,)``, the factor of ‖h‖² in Σ c ‖h‖².
        times: Number of equal logits for which each entry stands ``(R, M)``, 1 for the own; None is 1 everywhere.
    """

    own: Tensor
    weights: Tensor
    prices: Tensor
    times: Tensor | None = None

    @property
    def column(self) -> Tensor:
        """Own columns as an index ``(R, 1)``."""
        return self.own.unsqueeze(1)

    @property
    def roots(self) -> Tensor:
        """√c ``(R, 1)``."""
        return self.prices.sqrt().unsqueeze(1)


class CrossEntropy:
    r"""``log(1 + Σ_j exp(z_j - z_own))`` of a row, to the last digit however small it is."""

    squared = False

    def log_shares(self, rows: Rows, logits: Tensor) -> tuple[Tensor, Tensor]:
        """Return the losses ``(R,)`` and log Q ``(R, M)``, of equal logits together."""
        losses, differences = self._losses(rows, logits)
        return losses, differences.sub_(losses.unsqueeze(1))

    def shares(self, rows: Rows, logits: Tensor) -> tuple[Tensor, Tensor]:
        """Return the losses ``(R,)`` and the shares ``(R, M)``."""
        losses, log_q = self.log_shares(rows, logits)
        return losses, log_q.exp()

    def fit(self, rows: Rows, logits: Tensor) -> Tensor:
        """Return the weighted sum of the losses, 0-d and differentiable."""
        return rows.weights @ self._losses(rows, logits)[0]

    def _losses(self, rows: Rows, logits: Tensor) -> tuple[Tensor, Tensor]:
        """Return the losses ``(R,)``, and the logits less the own ``(R, M)``."""
        if rows.times is not None:
            logits = logits + rows.times.log()
        differences = logits - logits.gather(1, rows.column)
        others = differences.scatter(1, rows.column, -torch.inf).logsumexp(dim=1)
        return torch.nn.functional.softplus(others, threshold=40.0), differences

    def slope(self, rows: Rows, shares: Tensor) -> Tensor:
        """Return the gradient of the fit by the logits ``(R, M)``."""
        slope = (rows.weights.unsqueeze(1) * shares).scatter_(1, rows.column, 0.0)
        return slope.scatter_(1, rows.column, -slope.sum(dim=1, keepdim=True))

    def curved(self, rows: Rows, shares: Tensor, move: Tensor) -> Tensor:
        """Return the Hessian of the fit by the logits, applied to ``move (R, M)``."""
        # The Hessian sees differences from the own logit alone: thus nothing cancels where its share is almost 1.
        change = (move - move.gather(1, rows.column)).mul_(shares)
        change.addcmul_(shares, change.sum(dim=1, keepdim=True), value=-1)
        return change.mul_(rows.weights.unsqueeze(1))

    def curvatures(self, rows: Rows, shares: Tensor) -> Tensor:
        """Return the diagonal of the Hessian ``(R, M)``, without its part of rank one in each row."""
        return rows.weights.unsqueeze(1) * shares

    def balance(self, rows: Rows, shares: Tensor) -> Tensor:
        """Return the nearest shares whose slope sums to zero over the rows, as under a free bias that is optimal.

        What a column has too much of is taken from all its rows in proportion, and given, in the same rows, to the
        columns that have too little: rows stay probabilities, however much the weights differ.
        """
        excess = -self.slope(rows, shares).sum(dim=0)  # > 0 where a column has too little
        column = (rows.weights.unsqueeze(1) * shares).sum(dim=0)
        much, little = (-excess).clamp(min=0), excess.clamp(min=0)
        taken = shares * (much / column.clamp(min=torch.finfo(column.dtype).tiny)).clamp(max=1.0)
        if not bool(little.sum() > 0):
            return shares
        return shares - taken + taken.sum(dim=1, keepdim=True) * (little / little.sum())

    def dual(self, rows: Rows, shares: Tensor, largest: float, unbalance: float) -> float:
        """Return the dual value at the best multiple s <= ``largest`` of minus the slope, less s² ``unbalance``.

        That is Σ ω Ent((1 - s) e_y + s q) - s² ``unbalance``, without the cancellation of 1 - q_y.
        """
        s = min(1.0, largest)
        others = s * shares.scatter(1, rows.column, 0.0)
        missed = others.sum(dim=1)
        own = -(1 - missed) * torch.log1p(-missed)
        entropies = torch.special.entr(others).sum(dim=1) + own.where(missed < 1, 0.0)
        return (rows.weights @ entropies).item() - s * s * unbalance

    def best_bias(self, rows: Rows, Z: Tensor, decay: float, start: Tensor | None = None) -> Tensor:
        """Return the bias ``(K,)`` that is optimal for logits Z ``(R, K)``, by Newton's method."""

        def value(bias: Tensor) -> float:
            losses, _ = self.log_shares(rows, Z + bias)
            return (rows.weights @ losses + decay / 2 * bias.square().sum()).item()

        prior = torch.zeros(Z.shape[1], dtype=Z.dtype).index_add_(0, rows.own, rows.weights).clamp_min(1e-300).log()
        starts = [torch.zeros_like(prior), prior] + ([] if start is None else [start])
        lowest, b = min(((value(bias), bias) for bias in starts), key=lambda pair: pair[0])
        polishing = 0
        for _ in range(100):
            log_q = self.log_shares(rows, Z + b)[1]
            Q = log_q.exp()
            down = -self.slope(rows, Q).sum(dim=0) - decay * b
            if polishing == _POLISHING or down.abs().sum() <= 1e-15 * rows.weights.sum():
                break
            steps = _newton_step(Q, rows.weights, down, decay)
            if decay == 0:  # scaling to the right shares lowers the fit even where Q is too small for Newton's method
                steps.append(prior - (log_q + rows.weights.log().unsqueeze(1)).logsumexp(dim=0))
            noise = 1e-15 * abs(lowest)
            moves = (b + step / 2**halved for step in steps for halved in range(30))
            lower = next((pair for pair in ((value(new), new) for new in moves) if pair[0] <= lowest + noise), None)
            if lower is None:
                break
            # Where the value no longer tells, Newton's steps still square the error of the slope.
            polishing += lower[0] >= lowest - noise
            lowest, b = lower
        return b - b.mean()


class SquaredError:
    """Half the squared distance of a row of logits from its one-hot target."""

    squared = True

    def shares(self, rows: Rows, logits: Tensor) -> tuple[Tensor, Tensor]:
        """Return the losses ``(R,)`` and the shares ``(R, M)``."""
        off = logits - torch.zeros_like(logits).scatter_(1, rows.column, 1.0)
        return (self._times(rows) * off.square()).sum(dim=1) / 2, off

    def fit(self, rows: Rows, logits: Tensor) -> Tensor:
        """Return the weighted sum of the losses, 0-d and differentiable."""
        return rows.weights @ self.shares(rows, logits)[0]

    def slope(self, rows: Rows, shares: Tensor) -> Tensor:
        """Return the gradient of the fit by the logits ``(R, M)``."""
        return rows.weights.unsqueeze(1) * self._times(rows) * shares

    def curved(self, rows: Rows, shares: Tensor, move: Tensor) -> Tensor:
        """Return the Hessian of the fit by the logits, applied to ``move (R, M)``."""
        return self.slope(rows, move)

    def curvatures(self, rows: Rows, shares: Tensor) -> Tensor:
        """Return the diagonal of the Hessian ``(R, M)``."""
        return self.slope(rows, torch.ones_like(shares))

    def balance(self, rows: Rows, shares: Tensor) -> Tensor:
        """Return the nearest shares whose slope sums to zero over the rows, as under a free bias that is optimal."""
        return shares - self.slope(rows, shares).sum(dim=0) / rows.weights.sum()

    def dual(self, rows: Rows, shares: Tensor, largest: float, unbalance: float) -> float:
        """Return the dual value at the best multiple s <= ``largest`` of minus the slope, less s² ``unbalance``."""
        A = -self.slope(rows, shares)
        linear = A.gather(1, rows.column).sum().item()
        square = (A.square().sum(dim=1) / rows.weights).sum().item() / 2 + unbalance
        s = max(-largest, min(largest, linear / (2 * square))) if square > 0 else 0.0
        return s * linear - s * s * square

    def best_bias(self, rows: Rows, Z: Tensor, decay: float, start: Tensor | None = None) -> Tensor:
        """Return the bias ``(K,)`` that is optimal for logits Z ``(R, K)``."""
        return -self.slope(rows, self.shares(rows, Z)[1]).sum(dim=0) / (rows.weights.sum() + decay)

    def _times(self, rows: Rows) -> Tensor | float:
        return 1.0 if rows.times is None else rows.times


Loss = CrossEntropy | SquaredError


def _newton_step(Q: Tensor, weights: Tensor, down: Tensor, decay: float) -> list[Tensor]:
    curvature = torch.diag(weights @ Q + decay) - Q.T @ (weights.unsqueeze(1) * Q)
    # The fit does not see a common shift of the bias, which the sum fixes.
    curvature += curvature.diagonal().mean() / len(curvature)
    step, info = torch.linalg.solve_ex(curvature, down)
    return [] if info.item() or not bool(step.isfinite().all()) else [step]
