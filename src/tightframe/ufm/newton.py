"""Newton's method for a convex fit with a nuclear-norm penalty: quadratic once it knows the rank, which it finds.

At Y = U S Vᵀ of rank r the norm is smooth among matrices of rank r. With M = Uᵀ dY V, zero where both indices are
beyond r, and τ the singular values of the fit's slope there (at most σ at the minimum), penalty and curvature of the
manifold together have the Hessian

    M_ij  ->  (σ M_ij - τ_ij M_ji) / (s_i + s_j),      τ_ij = σ inside, τ_i or τ_j at its rim.

It is solved for by conjugate gradients, preconditioned by the curvature of the fit alone or, where that of the norm
rules, by the pairs of entries (i, j) and (j, i).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from tightframe.ufm.grouped import Grouped, Point

_NEW = 1e-3  # of the largest singular value: what a direction that enters is taken to have
_NOISE = 1e-13  # share of the largest singular value below which one is none
_ROUNDING = 1e-14  # relative error of an objective
_STIFF, _STIFF_WITH_BIAS = 12.0, 4.0  # mean curvature of the norm over the fit's from which on its pairs precondition
_MOST_PRODUCTS = 300  # of conjugate gradients in one step


@dataclass(frozen=True)
class Penalty:
    """The penalty beside the fit: σ‖Y‖_* and half of ``bias_decay`` times ‖b‖², or no bias if that is None."""

    sigma: float
    bias_decay: float | None = None


@dataclass(frozen=True)
class Iterate:
    """A point with the singular value decomposition of its Ŷ, what the fit is there, and the objective.

    ``gap`` is a bound of how far the objective is above the minimum, up to what a bias contributes.
    """

    point: Point
    U: Tensor
    S: Tensor
    V: Tensor
    fit: float
    shares: Tensor
    norm: float
    value: float
    gap: float = math.inf

    @property
    def rank(self) -> int:
        """How many singular values of Ŷ are not zero."""
        return int((self.S > 0).sum())


@dataclass(frozen=True)
class Outcome:
    """Where Newton's method stopped, after how many steps and products with the Hessian, and why."""

    last: Iterate
    iterations: int
    products: int
    reason: str


def newton(
    grouped: Grouped,
    penalty: Penalty,
    start: Point,
    tolerance: float,
    max_iterations: int = 100,
    done: Callable[[Iterate], bool] | None = None,
) -> Outcome:
    """Minimise fit plus penalty from a start until the gap's estimate is below ``tolerance`` times the objective.

    Args:
        grouped: the fit.
        penalty: Penalty beside the fit.
        start: Start of the iteration, of any rank.
        tolerance: relative.
        max_iterations: steps at most.
        done: asked, once the estimate says so, whether it is true; if not, the tolerance is divided by ten.
    """
    current = _decomposed(grouped, penalty, start)
    products = 0
    for iteration in range(max_iterations + 1):
        slope = grouped.slope(current.shares)
        current = replace(current, gap=_estimated_gap(grouped, penalty, current, slope))
        if not math.isfinite(current.value):
            return Outcome(current, iteration, products, "the objective is not finite")
        if current.gap <= tolerance * abs(current.value):
            if done is None or done(current):
                return Outcome(current, iteration, products, "converged")
            tolerance /= 10
        if iteration == max_iterations:
            break
        model = _Model(grouped, penalty, current, slope)
        move, used = model.minimiser(min(0.1, math.sqrt(max(current.gap, 0.0) / abs(current.value))))
        products += used
        trial = model.line_search(move)
        if trial is None:
            return Outcome(current, iteration, products, "no step lowers the objective")
        current = trial
    return Outcome(current, max_iterations, products, "no more iterations")


def _decomposed(grouped: Grouped, penalty: Penalty, point: Point) -> Iterate:
    packed = point.packed.clone()
    packed[:, :-2] = grouped.centred(point.Y)
    point = Point(packed)
    U, S, Vh = torch.linalg.svd(point.Y)
    S = _without_noise(S, point.alpha)
    return _balanced(grouped, penalty, _evaluated(grouped, penalty, point, U, S, Vh.T))


def _without_noise(S: Tensor, alpha: Tensor) -> Tensor:
    smallest = _NOISE * torch.maximum(S.max(), alpha.max())
    return torch.where(smallest < S, S, 0.0)


def _balanced(grouped: Grouped, penalty: Penalty, current: Iterate) -> Iterate:
    """Return the iterate with the best bias for its logits."""
    if penalty.bias_decay is None:
        return current
    packed = current.point.packed.clone()
    packed[:, -1] = grouped.best_bias(current.point)
    return _evaluated(grouped, penalty, Point(packed), current.U, current.S, current.V)


def _evaluated(grouped: Grouped, penalty: Penalty, point: Point, U: Tensor, S: Tensor, V: Tensor) -> Iterate:
    fit, shares = grouped.shares(grouped.logits(point))
    norm = (S.sum() + (grouped.sizes - 1) @ point.alpha).item()
    bias = (penalty.bias_decay or 0.0) / 2 * (grouped.sizes @ point.bias.square()).item()
    return Iterate(point, U, S, V, fit, shares, norm, fit + penalty.sigma * norm + bias)


def _estimated_gap(grouped: Grouped, penalty: Penalty, current: Iterate, slope: Point) -> float:
    top = torch.linalg.eigvalsh(slope.Y @ slope.Y.T)[-1].clamp_min(0).sqrt()
    siblings = (slope.alpha.abs() / (grouped.sizes - 1)).where(grouped.sizes > 1, 0.0).max()
    largest = max(top.item(), siblings.item())
    inner = -((slope.Y * current.point.Y).sum() + slope.alpha @ current.point.alpha).item()
    # By convexity the minimum Y* is below by at most σ‖Y‖ - <A, Y> + (‖A‖ - σ) ‖Y*‖, and σ‖Y*‖ by the objective here.
    missing = abs(penalty.sigma * current.norm - inner) + max(0.0, largest / penalty.sigma - 1) * abs(current.value)
    if penalty.bias_decay is None:
        return missing
    unbalanced = slope.bias + penalty.bias_decay * grouped.sizes * current.point.bias
    return missing + (unbalanced.abs() @ (current.point.bias.abs() + 1)).item()


class _Model:
    """The quadratic model of the objective about an iterate."""

    def __init__(self, grouped: Grouped, penalty: Penalty, current: Iterate, slope: Point) -> None:
        self.grouped, self.penalty, self.current, self.shares = grouped, penalty, current, current.shares
        self.U, self.V, S, rank = current.U.clone(), current.V.clone(), current.S, current.rank
        size, sigma = len(S), penalty.sigma
        tau = torch.full_like(S, sigma)
        self.rank, floor = rank, S
        if rank < size:
            left, beyond, right = torch.linalg.svd(-self.U[:, rank:].T @ slope.Y @ self.V[:, rank:])
            self.U[:, rank:] = self.U[:, rank:] @ left
            self.V[:, rank:] = self.V[:, rank:] @ right.T
            # Where the slope is steeper than σ, a new direction lowers the objective.
            self.rank += int((beyond > sigma * (1 + 1e-12)).sum())
            floor = S.clone()
            floor[rank : self.rank] = _NEW * S[0] if rank else 1.0
            tau[self.rank :] = beyond[self.rank - rank :]
        inside = torch.ones(size, size, dtype=S.dtype)
        inside[self.rank :, self.rank :] = 0
        sums = (floor.unsqueeze(1) + floor).where(inside > 0, 1.0)
        self.straight = sigma * inside / sums
        self.crossed = torch.minimum(tau.unsqueeze(1), tau) * inside / sums
        # Of logits, whose rows a common shift leaves alone, the last right vector is never met.
        out = size if not grouped.criterion.squared and self.rank == size - 1 else self.rank
        self.kernel = self.U[:, out:].contiguous(), self.V[:, out:].contiguous()

        active = (grouped.sizes > 1) & ((current.point.alpha > 0) | (-slope.alpha > sigma * (grouped.sizes - 1)))
        has_bias = torch.full_like(active, penalty.bias_decay is not None)
        self.free = torch.stack([active, has_bias], dim=1).to(S)
        self.bias_decay = (penalty.bias_decay or 0.0) * grouped.sizes
        self.gradient = slope.packed.clone()
        self.gradient[:, :-2] = self._tangent(slope.Y) + sigma * self.U[:, : self.rank] @ self.V[:, : self.rank].T
        self.gradient[:, -2] += sigma * (grouped.sizes - 1)
        self.gradient[:, -1] += self.bias_decay * current.point.bias
        self.gradient[:, -2:] *= self.free
        self._precondition(grouped.curvatures(self.shares))

    def _precondition(self, rows: Tensor) -> None:
        sizes, scale = self.grouped.sizes, self.grouped.scale
        sibling, own = rows[:, :-1].diagonal(), rows[:, -1]
        merged = own + sibling * (sizes > 1)
        # The logits of a group's siblings and its own are those of its Ŷ_gg and α_g, if both are free.
        apart = self.free[:, 0]
        within = (1 / own / sizes.square() + self.grouped.others.square() / sibling).lerp(1 / merged, 1 - apart)
        self.inverse = 1 / (rows[:, :-1] * scale.square())
        self.inverse.diagonal().copy_(within / scale.diagonal().square())
        self.coupling = apart * self.grouped.root * (1 / own / sizes - self.grouped.others / sibling) / scale.diagonal()
        self.inverse_alpha = apart * self.grouped.root.square() * (1 / own + 1 / sibling)
        between = rows[:, :-1].clone()
        between.diagonal().copy_(merged)
        if not self.grouped.criterion.squared:
            between -= between.square() / self.grouped.rows.weights.unsqueeze(1)
        columns = between.sum(dim=0) + self.bias_decay
        self.inverse_bias = (1 / columns).where((self.free[:, 1] > 0) & (columns > 0), 0.0)
        # The fit's curvature in the basis of the singular vectors, where that of the norm couples pairs of entries.
        seen = self.U.square().T @ (between * scale.square()) @ self.V.square()
        share = self.straight.sum() / (self.straight > 0).sum() / seen.mean()
        self.by_pairs = bool(share > (_STIFF if self.penalty.bias_decay is None else _STIFF_WITH_BIAS))
        if self.by_pairs:
            seen += self.straight
            inside = self.straight > 0
            determinant = (seen * seen.T - self.crossed.square()).where(inside, 1.0)
            self.pairs = inside * seen.T / determinant, inside * self.crossed / determinant

    def _tangent(self, Y: Tensor) -> Tensor:
        left, right = self.kernel
        return Y - left @ (left.T @ Y @ right) @ right.T if left.shape[1] else Y

    def product(self, move: Tensor) -> Tensor:
        """Return the Hessian applied to a move ``(G, G + 2)``."""
        grouped = self.grouped
        image = grouped.curved(self.shares, Point(move)).packed
        M = self.U.T @ move[:, :-2] @ self.V
        image[:, :-2] = self._tangent(image[:, :-2]) + self.U @ (self.straight * M - self.crossed * M.T) @ self.V.T
        image[:, -1] += self.bias_decay * move[:, -1]
        image[:, -2:] *= self.free
        return image

    def preconditioned(self, residual: Tensor) -> Tensor:
        """Return a residual times the inverse of the fit's curvature, or of all of it by pairs where the norm rules."""
        image = torch.empty_like(residual)
        Y, alpha = residual[:, :-2], residual[:, -2]
        image[:, -2] = self.inverse_alpha * alpha
        image[:, -1] = self.inverse_bias * residual[:, -1]
        if self.by_pairs:
            M = self.U.T @ Y @ self.V
            image[:, :-2] = self.U @ (self.pairs[0] * M + self.pairs[1] * M.T) @ self.V.T
            return image
        image[:, -2] += self.coupling * Y.diagonal()
        moved = Y * self.inverse
        moved.diagonal().addcmul_(self.coupling, alpha)
        # Twice, for what is taken away may be far larger than what is left.
        image[:, :-2] = self._tangent(self.grouped.centred(self.grouped.centred(moved)))
        return image

    def minimiser(self, accuracy: float) -> tuple[Tensor, int]:
        """Return the move to the model's minimum, by conjugate gradients, and how many products it took."""
        move, residual = torch.zeros_like(self.gradient), -self.gradient
        direction = image = self.preconditioned(residual)
        square = first = torch.linalg.vecdot(residual.flatten(), image.flatten()).item()
        for used in range(_MOST_PRODUCTS):
            if square <= accuracy**2 * first or square <= 0:
                return move, used
            product = self.product(direction)
            curvature = torch.linalg.vecdot(direction.flatten(), product.flatten()).item()
            if curvature <= 0:
                return (move if used else direction), used
            move = move.add(direction, alpha=square / curvature)
            residual.sub_(product, alpha=square / curvature)
            image = self.preconditioned(residual)
            previous, square = square, torch.linalg.vecdot(residual.flatten(), image.flatten()).item()
            direction = image.add(direction, alpha=square / previous)
        return move, _MOST_PRODUCTS

    def line_search(self, move: Tensor) -> Iterate | None:
        """Return the first point along a move, halved again and again, that is lower enough; None if none is."""
        slope = torch.linalg.vecdot(self.gradient.flatten(), move.flatten()).item()
        if not math.isfinite(slope):
            return None
        M = self.U.T @ move[:, :-2] @ self.V
        current, step = self.current, 1.0
        while step > 1e-9:
            trial = self._moved(move, M, step)
            if trial.value <= current.value + 1e-4 * step * slope + _ROUNDING * abs(current.value):
                return _balanced(self.grouped, self.penalty, trial)
            step /= 2
        return None

    def _moved(self, move: Tensor, M: Tensor, step: float) -> Iterate:
        P, S, Qh = torch.linalg.svd(torch.diag(self.current.S) + step * M)
        # A singular value whose two vectors point apart has passed through zero, where its direction leaves.
        turned = (P * Qh.T).sum(dim=0) < 0
        S = S.where(~turned, 0.0)
        S[self.rank :] = 0
        S, order = S.sort(descending=True)
        U, V = self.U @ P[:, order], self.V @ Qh.T[:, order]
        packed = self.current.point.packed + step * move
        packed[:, -2].clamp_(min=0)
        S = _without_noise(S, packed[:, -2])
        packed[:, :-2] = (U * S) @ V.T
        return _evaluated(self.grouped, self.penalty, Point(packed), U, S, V)
