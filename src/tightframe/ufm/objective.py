"""The objectives, and the reduction of the one-layer linear models to a convex problem in the logits.

A model whose fit is convex has a minimum where all samples of a class share their feature (Jensen), so that H has one
row a class. With ``c_k`` the price of that row, Z = H Wᵀ ``(K, K)`` and Y = diag(√c) Z,

    min over W, H  of  F(H Wᵀ) + λ_W/2 ‖W‖² + λ_H/2 Σ c_k ‖h_k‖²   =   min over Y  of  F(diag(1/√c) Y) + σ ‖Y‖_*

with σ = √(λ_W λ_H), as soon as d is at least the rank of an optimal Y.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from tightframe.errors import ArgumentError, ShapeError
from tightframe.ufm.problems import (
    ULPM,
    CrossEntropyUFM,
    DeepUFM,
    LayerPeeled,
    MaxMargin,
    MeanSquaredUFM,
    Problem,
    ReLUImbalanced,
)
from tightframe.ufm.solution import labels_of_rows

Penalised = CrossEntropyUFM | MeanSquaredUFM | ReLUImbalanced


def counts_of(problem: Problem) -> Tensor:
    """Return ``n_k`` as float64 ``(K,)``."""
    return torch.tensor(problem.counts, dtype=torch.float64)


def class_weights(problem: Problem) -> Tensor:
    """Return ``n_k ω_k`` ``(K,)``: what the mean fit of a class weighs."""
    counts = counts_of(problem)
    if isinstance(problem, ULPM | MaxMargin):
        return counts
    weights = getattr(problem, "sample_weights", None)
    return counts / counts.sum() if weights is None else counts * torch.tensor(weights, dtype=torch.float64)


def feature_prices(problem: Problem) -> Tensor:
    """Return ``c_k`` ``(K,)``: what ‖h_k‖² counts where all samples of class k share that feature."""
    counts = counts_of(problem)
    return torch.ones_like(counts) if isinstance(problem, LayerPeeled) else counts


def row_weights(problem: Problem, H: Tensor) -> tuple[Tensor, Tensor]:
    """Return the weight of each row of H in the fit, and its price, ``(R,)`` each, for H ``(K, d)`` or ``(N, d)``."""
    weights, prices = class_weights(problem), feature_prices(problem)
    if len(H) == problem.num_classes:
        return weights, prices
    if len(H) != problem.num_samples:
        raise ShapeError(
            f"H must have a row for each of K = {problem.num_classes} classes or N = {problem.num_samples} samples, "
            f"got {len(H)}"
        )
    labels, counts = labels_of_rows(problem, H), counts_of(problem)
    return (weights / counts)[labels], (prices / counts)[labels]


def fit(problem: Problem, logits: Tensor, labels: Tensor, weights: Tensor) -> Tensor:
    """Return the weighted sum of losses of logits ``(R, K)``, a 0-d tensor."""
    if isinstance(problem, MeanSquaredUFM) or (isinstance(problem, DeepUFM) and problem.loss == "mse"):
        targets = F.one_hot(labels, problem.num_classes).to(logits)
        return (weights * (logits - targets).square().sum(dim=1)).sum() / 2
    return (weights * F.cross_entropy(logits, labels, reduction="none")).sum()


def objective(problem: Problem, W: Tensor, H: Tensor, bias: Tensor | None = None) -> Tensor:
    """Return the objective of a one-layer model at a point, a 0-d tensor, differentiable.

    Args:
        problem: any but :class:`DeepUFM`, whose factors are several, and :class:`MaxMargin`, which has no fit. Of a
            :class:`LayerPeeled` it is the fit alone, whether the budgets are kept or not.
        W: ``(K, d)``.
        H: ``(K, d)`` or ``(N, d)``, class by class.
        bias: ``(K,)`` where the problem has one.
    """
    if isinstance(problem, DeepUFM | MaxMargin):
        raise ArgumentError(f"problem must be a one-layer model with a fit, got {type(problem).__name__}")
    weights, prices = row_weights(problem, H)
    logits = H @ W.T if bias is None else H @ W.T + bias
    value = fit(problem, logits, labels_of_rows(problem, H), weights)
    if isinstance(problem, CrossEntropyUFM | MeanSquaredUFM | ReLUImbalanced):
        value = value + problem.weight_decay / 2 * W.square().sum()
        value = value + problem.feature_decay / 2 * (prices * H.square().sum(dim=1)).sum()
    if bias is not None and isinstance(problem, CrossEntropyUFM | MeanSquaredUFM):
        value = value + (problem.bias_decay or 0.0) / 2 * bias.square().sum()
    return value


def split(problem: Problem) -> float:
    """Return ‖W‖² / Σ c_k ‖h_k‖² at every minimum: λ_H/λ_W, the ratio of the budgets, or 1."""
    if isinstance(problem, LayerPeeled):
        return problem.weight_budget / problem.feature_budget
    if isinstance(problem, CrossEntropyUFM | MeanSquaredUFM | ReLUImbalanced):
        return problem.feature_decay / problem.weight_decay
    return 1.0


def factorise(problem: Problem, Z: Tensor) -> tuple[Tensor, Tensor]:
    """Return W ``(K, d)`` and H ``(K, d)`` with H Wᵀ = Z that cost the least: half the squared norms are ‖Y‖_*.

    Args:
        problem: Model, which decides d, the prices and how the norm is split.
        Z: logits without bias ``(K, K)``, row k those of class k; its rank must be at most d.
    """
    root = feature_prices(problem).sqrt().unsqueeze(1)
    U, S, Vh = torch.linalg.svd(root * Z)
    # The square root would turn the rounding error of a zero into an eighth digit.
    S = S.where(len(S) * torch.finfo(S.dtype).eps * S[0] < S, 0)
    rank = min(problem.dim, len(S))
    if rank < len(S) and S[rank] > 1e-8 * S[0]:
        raise ShapeError(f"Z must have rank at most d = {problem.dim}, got singular values {S.tolist()}")
    shares, ratio = S[:rank].sqrt(), split(problem) ** 0.25
    W, H = (torch.zeros(len(S), problem.dim, dtype=torch.float64) for _ in range(2))
    W[:, :rank] = ratio * Vh[:rank].T * shares
    H[:, :rank] = U[:, :rank] * shares / (ratio * root)
    return W, H
