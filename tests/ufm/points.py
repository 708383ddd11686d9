"""Points of the models, at random and at their minima, for tests of certificates."""

import math

import torch

from tightframe.ufm import (
    ULPM,
    CrossEntropyUFM,
    LayerPeeled,
    MaxMargin,
    MeanSquaredUFM,
    ReLUImbalanced,
)
from tightframe.ufm.solution import Solution


def generator(seed):
    return torch.Generator().manual_seed(seed)


def draw(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=generator(seed))


def rotation(d, seed=0):
    return torch.linalg.qr(draw(d, d, seed=seed))[0]


def centering(K):
    return torch.eye(K, dtype=torch.float64) - 1 / K


def at(problem, W, H, bias=None):
    return Solution(problem, W, H, bias, math.nan, False, "a test's")


def penalised(kind, counts, d, **options):
    return kind(counts, d, **({"weight_decay": 0.03, "feature_decay": 0.01} | options))


def random_point(problem, seed, scale=1.0, rows="samples"):
    R = problem.num_samples if rows == "samples" else problem.num_classes
    W, H = scale * draw(problem.num_classes, problem.dim, seed=seed), scale * draw(R, problem.dim, seed=seed + 1)
    if isinstance(problem, ReLUImbalanced):
        H = H.relu()
    has_bias = getattr(problem, "bias_decay", None) is not None
    return at(problem, W, H, draw(problem.num_classes, seed=seed + 2) if has_bias else None)


ONE_LAYER = [
    penalised(CrossEntropyUFM, (4, 4, 4), 3),
    penalised(CrossEntropyUFM, (5, 3, 1), 2, bias_decay=0.1),
    penalised(CrossEntropyUFM, (5, 3, 1), 4, bias_decay=0.0),
    penalised(CrossEntropyUFM, (2, 3, 1, 2), 7, sample_weights=(1.0, 0.5, 2.0, 1.0)),
    penalised(MeanSquaredUFM, (4, 4, 4), 3),
    penalised(MeanSquaredUFM, (5, 3, 1), 2, bias_decay=0.1),
    penalised(MeanSquaredUFM, (5, 3, 1), 4, bias_decay=0.0),
    penalised(MeanSquaredUFM, (2, 3, 1, 2), 7, sample_weights=(1.0, 0.5, 2.0, 1.0)),
    penalised(ReLUImbalanced, (6, 3, 2, 1), 5),
    LayerPeeled((4, 3, 1), 4, weight_budget=1.0, feature_budget=2.0),
    LayerPeeled((4, 3, 1), 4, weight_budget=1.0, feature_budget=2.0, sample_weights=(0.1, 0.1, 0.6)),
]


MINIMA = [
    penalised(CrossEntropyUFM, (6,) * 4, 3, weight_decay=5e-3, feature_decay=2e-3),
    penalised(CrossEntropyUFM, (6,) * 4, 9, weight_decay=5e-3, feature_decay=2e-3, bias_decay=0.1),
    penalised(CrossEntropyUFM, (6,) * 4, 5, weight_decay=5e-3, feature_decay=2e-3, bias_decay=0.0),
    penalised(CrossEntropyUFM, (6,) * 4, 5, weight_decay=1.0, feature_decay=1.0),
    penalised(MeanSquaredUFM, (6,) * 4, 4, weight_decay=5e-3, feature_decay=2e-3),
    penalised(MeanSquaredUFM, (6,) * 4, 5, weight_decay=5e-3, feature_decay=2e-3, bias_decay=0.03),
    penalised(MeanSquaredUFM, (6,) * 4, 3, weight_decay=5e-3, feature_decay=2e-3, bias_decay=0.0),
    penalised(MeanSquaredUFM, (20, 10, 4, 1), 4, weight_decay=5e-3, feature_decay=2e-3),
    penalised(ReLUImbalanced, (20, 10, 4, 1), 5, weight_decay=5e-3, feature_decay=2e-3),
    penalised(ReLUImbalanced, (30, 10, 2, 1), 5, weight_decay=2e-2, feature_decay=2e-2),
    LayerPeeled((6,) * 4, 3, weight_budget=1.0, feature_budget=5.0),
    LayerPeeled((20,) * 5 + (10,) * 5, 10, weight_budget=1.0, feature_budget=5.0),
    LayerPeeled((400,) * 5 + (20,) * 5, 10, weight_budget=1.0, feature_budget=5.0),
    MaxMargin((6,) * 4, 3),
    MaxMargin((40, 10, 3, 1), 5),
    ULPM((6,) * 4, 3),
    ULPM((40, 10, 3, 1), 5),
]


def second_derivative(value, W, H, bias, witness):
    t = torch.zeros((), dtype=torch.float64, requires_grad=True)
    f = value(W + t * witness.dW, H + t * witness.dH, bias)
    (slope,) = torch.autograd.grad(f, t, create_graph=True)
    (curvature,) = torch.autograd.grad(slope, t)
    return slope.item(), curvature.item()
