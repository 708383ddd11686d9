"""Shared parts of the closed forms: the numbers that decide, the point they return, a root finder."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from tightframe.errors import DimensionError
from tightframe.ufm.duality import best_bias, descent_of_fit, dual_bound, slope_norm
from tightframe.ufm.objective import class_weights, counts_of, factorise, feature_prices, objective
from tightframe.ufm.problems import CrossEntropyUFM, MeanSquaredUFM, Problem, ReLUImbalanced
from tightframe.ufm.solution import Solution

WithBias = CrossEntropyUFM | MeanSquaredUFM


def sigma_of(problem: CrossEntropyUFM | MeanSquaredUFM | ReLUImbalanced) -> float:
    """Return σ = √(λ_W λ_H), the price of a unit of nuclear norm."""
    return math.sqrt(problem.weight_decay * problem.feature_decay)


def strengths_of(problem: Problem) -> Tensor:
    """Return ω_k √n_k ``(K,)``: the pull of class k where samples share a feature; what σ is compared with."""
    return class_weights(problem) / counts_of(problem).sqrt()


def uniform_weight(problem: WithBias) -> float | None:
    """Return the weight of a sample if all samples have the same, else None."""
    if problem.sample_weights is None:
        return 1 / problem.num_samples
    return problem.sample_weights[0] if len(set(problem.sample_weights)) == 1 else None


def centering(num_classes: int) -> Tensor:
    """Return P = I - 11ᵀ/K."""
    return torch.eye(num_classes, dtype=torch.float64) - 1 / num_classes


def bias_for(problem: WithBias, Z: Tensor) -> Tensor | None:
    """Return the bias ``(K,)`` that is optimal for logits Z ``(K, K)``, or None where the model has none."""
    if problem.bias_decay is None:
        return None
    return best_bias(problem, Z, torch.arange(len(Z)), class_weights(problem))


def zero_sigma(problem: WithBias) -> float:
    """Return the σ from which W = H = 0 is optimal: the operator norm of the fit's slope there, at the best bias."""
    Z = torch.zeros(problem.num_classes, problem.num_classes, dtype=torch.float64)
    bias = bias_for(problem, Z)
    slope = descent_of_fit(problem, Z if bias is None else Z + bias, torch.arange(len(Z)), class_weights(problem))
    return slope_norm(problem, slope, feature_prices(problem))


def require_dim(problem: Problem, needed: int, what: str) -> None:
    """Raise :class:`DimensionError` unless d is at least ``needed``, of which ``what`` says why."""
    if problem.dim < needed:
        raise DimensionError(
            f"dim must be at least {needed} for {what} of K = {problem.num_classes} classes, got d = {problem.dim}; "
            "the closed form needs that many dimensions: widen the features, or solve the problem numerically"
        )


def point(
    problem: WithBias, Z: Tensor, bias: Tensor | None, facts: Mapping[str, float], *, exact: bool, reason: str
) -> Solution:
    """Return the cheapest factors of logits Z ``(K, K)`` with the objective there, and its bound if not ``exact``."""
    W, H = factorise(problem, Z)
    return measured(problem, W, H, bias, facts, exact=exact, reason=reason)


def measured(
    problem: WithBias | ReLUImbalanced,
    W: Tensor,
    H: Tensor,
    bias: Tensor | None,
    facts: Mapping[str, float],
    *,
    exact: bool,
    reason: str,
) -> Solution:
    """Return a point with its objective, its norms, and its bound if not ``exact``."""
    loss = objective(problem, W, H, bias).item()
    return Solution(
        problem,
        W,
        H,
        bias,
        loss,
        exact,
        reason,
        lower_bound=loss if exact else dual_bound(problem, W, H, bias),
        facts={**facts, **norms(problem, W, H)},
    )


def norms(problem: Problem, W: Tensor, H: Tensor) -> dict[str, float]:
    """Return ``‖W‖²`` and ``‖H‖²``, the latter over all samples."""
    squares = (feature_prices(problem) * H.square().sum(dim=1)).sum()
    return {"squared_norm_W": W.square().sum().item(), "squared_norm_H": squares.item()}


def bisect(function: Callable[[float], float], low: float, high: float) -> float:
    """Return where an increasing function that is negative at ``low`` and positive at ``high`` changes sign."""
    while True:
        middle = low + (high - low) / 2
        if not low < middle < high:
            return middle
        if function(middle) < 0:
            low = middle
        else:
            high = middle
