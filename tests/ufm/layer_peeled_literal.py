"""Layer-peeled problems by their classes and budgets, and descent in all their variables."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from tightframe.ufm import LayerPeeled


def peeled(counts, dim, feature_budget, weight_budget, weights=None):
    budgets = {"feature_budget": feature_budget, "weight_budget": weight_budget}
    return LayerPeeled(counts, dim, sample_weights=weights, **budgets)


def of_groups(majority, minority, ratio, feature_budget=5.0, weight_budget=1.0, dim=None):
    """Return a problem of class weights R and 1, in samples of one each."""
    weights = (float(ratio),) * majority + (1.0,) * minority
    K = majority + minority
    return peeled((1,) * K, dim or K, feature_budget, weight_budget, weights)


def descend(counts, feature_budget, weight_budget, dim, weights=None, seed=0):
    """Return loss, W and class means of the model of N free features, by L-BFGS from a random start."""
    counts = torch.tensor(counts)
    K, N = len(counts), int(counts.sum())
    labels = torch.arange(K).repeat_interleave(counts)
    per_sample = torch.tensor([1 / N] * K if weights is None else weights, dtype=torch.float64)[labels]
    generator = torch.Generator().manual_seed(seed)
    raw = [torch.randn(rows, dim, dtype=torch.float64, generator=generator).requires_grad_() for rows in (K, N)]

    def point():
        W, H = raw
        squares = (H.square().sum(dim=1) / counts[labels]).sum()
        return W * (K * weight_budget / W.square().sum()).sqrt(), H * (K * feature_budget / squares).sqrt()

    def loss():
        W, H = point()
        return (per_sample * F.cross_entropy(H @ W.T, labels, reduction="none")).sum()

    optimizer = torch.optim.LBFGS(
        raw, max_iter=3000, tolerance_grad=1e-13, tolerance_change=0, history_size=30, line_search_fn="strong_wolfe"
    )

    def closure():
        optimizer.zero_grad()
        value = loss()
        value.backward()
        return value

    optimizer.step(closure)
    W, H = (x.detach() for x in point())
    means = torch.zeros(K, dim, dtype=torch.float64).index_add_(0, labels, H) / counts.unsqueeze(1)
    return loss().item(), W, means
