"""Lower bounds of a model's minimum from any point of it, by convex duality: what makes a solution certain.

With rows of H, of weights ω and prices c (:meth:`tightframe.ufm.problem.Problem.rows`), A = diag(ω)(E - Q) is minus the
slope of the fit. Any A that the fit's conjugate admits, with ‖diag(1/√c) A‖_op <= σ, bounds the minimum from below; at
a global minimum the bound is the minimum.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from tightframe.errors import ArgumentError
from tightframe.ufm.losses import Rows
from tightframe.ufm.problem import Problem, double, objective


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
        >>> from tightframe.ufm import CrossEntropyUFM
        >>> problem = CrossEntropyUFM((3, 2), dim=2, weight_decay=1.0, feature_decay=1.0)
        >>> zero = torch.zeros(2, 2, dtype=torch.float64)
        >>> round(dual_bound(problem, zero, zero) - math.log(2), 12)  # so much decay leaves nothing
        0.0
    """
    if not problem.convex:
        raise ArgumentError(
            f"problem must have one layer and a convex fit for a dual bound, got {type(problem).__name__}"
        )
    W, H = double(W, "W"), double(H, "H")
    return logits_bound(problem, problem.rows(len(H)), H @ W.T, None if bias is None else double(bias, "bias"))


def duality_gap(problem: Problem, W: Tensor, H: Tensor, bias: Tensor | None = None) -> float:
    """Return objective minus :func:`dual_bound`: the point is at most that far above the minimum.

    Under budgets that the point does not keep, the objective is no value of the model and the gap may be negative.
    """
    return objective(problem, W, H, bias).item() - dual_bound(problem, W, H, bias)


def logits_bound(problem: Problem, rows: Rows, Z: Tensor, bias: Tensor | None = None) -> float:
    """Return :func:`dual_bound` from logits without bias Z ``(R, K)``."""
    decay = problem.bias_decay
    best = best_bias(problem, rows, Z, bias)
    criterion = problem.criterion
    shares = criterion.shares(rows, Z if best is None else Z + best)[1]
    if decay == 0:
        shares = criterion.balance(rows, shares)
    A = -criterion.slope(rows, shares)
    unbalance = A.sum(dim=0).square().sum().item() / (2 * decay) if decay else 0.0
    norm = slope_norm(problem, rows, A)
    if problem.radius is not None:
        return max(0.0, criterion.dual(rows, shares, 1.0, 0.0) - problem.radius * norm)
    largest = problem.sigma / norm if norm > 0 else math.inf
    return max(0.0, criterion.dual(rows, shares, largest, unbalance))


def descent(problem: Problem, rows: Rows, logits: Tensor) -> Tensor:
    """Return A ``(R, K)``, minus the gradient of the fit by the logits: diag(ω)(E - Q), or diag(ω)(E - Z)."""
    return -problem.criterion.slope(rows, problem.criterion.shares(rows, logits)[1])


def best_bias(problem: Problem, rows: Rows, Z: Tensor, start: Tensor | None = None) -> Tensor | None:
    """Return the bias ``(K,)`` that is optimal for logits Z ``(R, K)``, or None where the model has none."""
    if problem.bias_decay is None:
        return None
    return problem.criterion.best_bias(rows, Z, float(problem.bias_decay), start)


def slope_norm(problem: Problem, rows: Rows, A: Tensor) -> float:
    """Return ‖diag(1/√c) A‖_op; where features are nonnegative, an upper bound of what nonnegative vectors see of it.

    Of a symmetric M, max vᵀMv over nonnegative unit v is at most the largest eigenvalue of M, and of M without its
    negative entries.
    """
    scaled = A / rows.roots
    top = _top_eigenvalue(scaled.T @ scaled if len(scaled) >= scaled.shape[1] else scaled @ scaled.T)
    if problem.nonnegative:
        top = min(top, _top_eigenvalue((scaled @ scaled.T).clamp_(min=0)))
    return math.sqrt(max(top, 0.0))


def zero_sigma(problem: Problem) -> float:
    """Return the σ from which W = H = 0 is optimal: the operator norm of the fit's slope there, at the best bias."""
    rows, Z = problem.rows(), torch.zeros(problem.num_classes, problem.num_classes, dtype=torch.float64)
    bias = best_bias(problem, rows, Z)
    return slope_norm(problem, rows, descent(problem, rows, Z if bias is None else Z + bias))


def _top_eigenvalue(symmetric: Tensor) -> float:
    return torch.linalg.eigvalsh(symmetric)[-1].item()
