"""Lower bounds of a model's minimum from any point of it, by convex duality: what makes a solution certain.

With rows of H, of weights ω and prices c (:func:`tightframe.ufm.objective.row_weights`), A = diag(ω)(E - Q) is minus
the slope of the fit. Any A that the fit's conjugate admits, with ‖diag(1/√c) A‖_op <= σ, bounds the minimum from
below; at a global minimum the bound is the minimum.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from tightframe.errors import ArgumentError
from tightframe.ufm.objective import objective, row_weights
from tightframe.ufm.problems import CrossEntropyUFM, LayerPeeled, MeanSquaredUFM, Problem, ReLUImbalanced
from tightframe.ufm.solution import labels_of_rows

WithBias = CrossEntropyUFM | MeanSquaredUFM
OneLayer = CrossEntropyUFM | MeanSquaredUFM | ReLUImbalanced | LayerPeeled

_POLISHING = 3  # steps once the value is as low as rounding lets it be
_BALANCED = 1e-12  # share of the weights by which classes may miss their counts once a free bias is optimal


def dual_bound(problem: Problem, W: Tensor, H: Tensor, bias: Tensor | None = None) -> float:
    r"""Return a lower bound of the minimum of a one-layer model, from any point; from a global minimum, that minimum.

    With :math:`s = \min(1, \sigma / \lVert \mathrm{diag}(c)^{-1/2} A\rVert_{op})`, the cross-entropy's bound is

    .. math:: D = \sum_i \omega_i\, \mathrm{Ent}\bigl((1-s)\, e_{y_i} + s\, q_i\bigr)
        - \tfrac{s^2}{2\lambda_b} \lVert A^\top 1\rVert^2,

    the squared error's :math:`s\langle A, E\rangle - \tfrac{s^2}{2}\sum_i \lVert a_i\rVert^2/\omega_i -
    \tfrac{s^2}{2\lambda_b}\lVert A^\top 1\rVert^2` at the best s allowed. A bias is first made optimal for the logits.
    Under budgets it is the bound of Frank and Wolfe, with :math:`s = 1` and
    :math:`K\sqrt{E_W E_H}\,\lVert\mathrm{diag}(c)^{-1/2} A\rVert_{op}` subtracted. It is never below 0, which bounds
    every fit, and holds for all d.

    Args:
        problem: :class:`CrossEntropyUFM`, :class:`MeanSquaredUFM`, :class:`LayerPeeled`, or :class:`ReLUImbalanced`, of
            which the operator norm is one over nonnegative vectors (an upper bound of it, exact at the minimum).
        W: ``(K, d)``; need not be critical, nor keep a budget.
        H: ``(K, d)`` or ``(N, d)``, class by class.
        bias: ``(K,)``; ignored except as a start, since the bound has a best one of its own.

    Raises:
        ArgumentError: if the problem is of another kind.
        ShapeError: if H has neither K nor N rows.

    Example:
        >>> from tightframe.ufm.problems import CrossEntropyUFM
        >>> problem = CrossEntropyUFM((3, 2), dim=2, weight_decay=1.0, feature_decay=1.0)
        >>> zero = torch.zeros(2, 2, dtype=torch.float64)
        >>> round(dual_bound(problem, zero, zero) - math.log(2), 12)  # so much decay leaves nothing
        0.0
    """
    if not isinstance(problem, OneLayer):
        raise ArgumentError(
            f"problem must have one layer and a convex fit for a dual bound, got {type(problem).__name__}"
        )
    weights, prices = row_weights(problem, H)
    return logits_bound(problem, H @ W.T, labels_of_rows(problem, H), weights, prices, bias)


def duality_gap(problem: Problem, W: Tensor, H: Tensor, bias: Tensor | None = None) -> float:
    """Return objective minus :func:`dual_bound`: the point is at most that far above the minimum.

    Under budgets that the point does not keep, the objective is no value of the model and the gap may be negative.
    """
    return objective(problem, W, H, bias).item() - dual_bound(problem, W, H, bias)


def logits_bound(
    problem: OneLayer, Z: Tensor, labels: Tensor, weights: Tensor, prices: Tensor, bias: Tensor | None = None
) -> float:
    """Return :func:`dual_bound` from logits without bias Z ``(R, K)``, with label, weight and price of each row."""
    decay = None
    if isinstance(problem, WithBias) and problem.bias_decay is not None:
        decay = problem.bias_decay
        bias = best_bias(problem, Z, labels, weights, bias)
        Z = Z + bias
    A = descent_of_fit(problem, Z, labels, weights)
    excess = A.sum(dim=0)
    if decay == 0 and excess.abs().sum() > _BALANCED * weights.sum():
        return 0.0
    unbalance = excess.square().sum().item() / (2 * decay) if decay else 0.0
    norm = slope_norm(problem, A, prices)
    if isinstance(problem, LayerPeeled):
        return max(0.0, _entropy(Z, labels, weights, 1.0) - nuclear_budget(problem) * norm)
    sigma = math.sqrt(problem.weight_decay * problem.feature_decay)
    largest = sigma / norm if norm > 0 else math.inf
    if isinstance(problem, MeanSquaredUFM):
        linear = A.gather(1, labels.unsqueeze(1)).sum().item()
        square = (A.square().sum(dim=1) / weights).sum().item() / 2 + unbalance
        s = max(-largest, min(largest, linear / (2 * square))) if square > 0 else 0.0
        return max(0.0, s * linear - s * s * square)
    s = min(1.0, largest)
    return max(0.0, _entropy(Z, labels, weights, s) - s * s * unbalance)


def nuclear_budget(problem: LayerPeeled) -> float:
    """Return ``K √(E_W E_H)``, the radius of the ball of nuclear norm that both budgets together are."""
    return problem.num_classes * math.sqrt(problem.weight_budget * problem.feature_budget)


def descent_of_fit(problem: Problem, logits: Tensor, labels: Tensor, weights: Tensor) -> Tensor:
    """Return A ``(R, K)``, minus the gradient of the fit by the logits: diag(ω)(E - Q), or diag(ω)(E - Z)."""
    if isinstance(problem, MeanSquaredUFM):
        return weights.unsqueeze(1) * (F.one_hot(labels, logits.shape[1]).to(logits) - logits)
    own = labels.unsqueeze(1)
    A = log_probabilities(logits, labels)[1].exp_().mul_(-weights.unsqueeze(1)).scatter_(1, own, 0.0)
    return A.scatter_(1, own, -A.sum(dim=1, keepdim=True))


def log_probabilities(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Return the cross-entropies ``(R,)``, to the last digit however small, and log Q ``(R, K)``."""
    own = labels.unsqueeze(1)
    differences = logits - logits.gather(1, own)
    others = differences.scatter(1, own, -torch.inf).logsumexp(dim=1)
    losses = F.softplus(others, threshold=40.0)
    return losses, differences.sub_(losses.unsqueeze(1))


def slope_norm(problem: Problem, A: Tensor, prices: Tensor) -> float:
    """Return ‖diag(1/√c) A‖_op; where features are nonnegative, an upper bound of what nonnegative vectors see of it.

    Of a symmetric M, max vᵀMv over nonnegative unit v is at most the largest eigenvalue of M, and of M without its
    negative entries.
    """
    scaled = A / prices.sqrt().unsqueeze(1)
    top = _top_eigenvalue(scaled.T @ scaled if len(scaled) >= scaled.shape[1] else scaled @ scaled.T)
    if isinstance(problem, ReLUImbalanced):
        top = min(top, _top_eigenvalue((scaled @ scaled.T).clamp_(min=0)))
    return math.sqrt(max(top, 0.0))


def best_bias(
    problem: WithBias,
    Z: Tensor,
    labels: Tensor,
    weights: Tensor,
    start: Tensor | None = None,
    max_iterations: int = 100,
) -> Tensor:
    """Return the bias ``(K,)`` that is optimal for logits Z ``(R, K)``; of cross-entropy, by Newton's method."""
    decay = float(problem.bias_decay or 0.0)
    if isinstance(problem, MeanSquaredUFM):
        return descent_of_fit(problem, Z, labels, weights).sum(dim=0) / (weights.sum() + decay)
    shares = torch.zeros(Z.shape[1], dtype=Z.dtype).index_add_(0, labels, weights).clamp_min(1e-300).log()
    starts = [torch.zeros_like(shares), shares] + ([] if start is None else [start])
    value, b = min(((_bias_value(Z + b, labels, weights, b, decay), b) for b in starts), key=lambda pair: pair[0])
    polishing = 0
    for _ in range(max_iterations):
        log_q = log_probabilities(Z + b, labels)[1]
        down = descent_of_fit(problem, Z + b, labels, weights).sum(dim=0) - decay * b
        if polishing == _POLISHING or down.abs().sum() <= 1e-15 * weights.sum():
            break
        steps = _newton_step(log_q.exp(), weights, down, decay)
        if decay == 0:  # scaling to the right shares lowers the fit even where probabilities are too small for Newton
            steps.append(shares - (log_q + weights.log().unsqueeze(1)).logsumexp(dim=0))
        noise = 1e-15 * abs(value)
        moves = (b + step / 2**halved for step in steps for halved in range(30))
        tried = ((_bias_value(Z + new, labels, weights, new, decay), new) for new in moves)
        lower = next((pair for pair in tried if pair[0] <= value + noise), None)
        if lower is None:
            break
        # Where the value no longer tells, Newton's steps still square the error of the slope.
        polishing += lower[0] >= value - noise
        value, b = lower
    return b - b.mean()


def _newton_step(Q: Tensor, weights: Tensor, down: Tensor, decay: float) -> list[Tensor]:
    curvature = torch.diag(weights @ Q + decay) - Q.T @ (weights.unsqueeze(1) * Q)
    # The fit does not see a common shift of the bias, which the sum fixes.
    curvature += curvature.diagonal().mean() / len(curvature)
    step, info = torch.linalg.solve_ex(curvature, down)
    return [] if info.item() or not bool(step.isfinite().all()) else [step]


def _bias_value(logits: Tensor, labels: Tensor, weights: Tensor, b: Tensor, decay: float) -> float:
    return (weights @ log_probabilities(logits, labels)[0] + decay / 2 * b.square().sum()).item()


def _entropy(logits: Tensor, labels: Tensor, weights: Tensor, s: float) -> float:
    """Return Σ ω Ent((1 - s) e_y + s q), without the cancellation of 1 - q_y."""
    losses, log_q = log_probabilities(logits, labels)
    missed = -s * torch.expm1(-losses)
    log_q += math.log(s) if s > 0 else -torch.inf
    others = torch.special.entr(log_q.exp_().scatter_(1, labels.unsqueeze(1), 0.0)).sum(dim=1)
    own = -(1 - missed) * torch.log1p(-missed)
    return (weights @ (others + own.where(missed < 1, 0.0))).item()


def _top_eigenvalue(symmetric: Tensor) -> float:
    return torch.linalg.eigvalsh(symmetric)[-1].item()
