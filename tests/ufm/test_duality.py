"""The dual bound is below every minimum, from any point, and equal to it at the minimum."""

import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from tests.ufm.brute import labels_of, minimise, value
from tightframe.errors import ArgumentError, ShapeError
from tightframe.ufm import ULPM, CrossEntropyUFM, LayerPeeled, MeanSquaredUFM, ReLUImbalanced, closed_form
from tightframe.ufm.bound import (
    best_bias,
    descent,
    dual_bound,
    duality_gap,
)

COUNTS, WEIGHTS = (4, 3, 1), (0.2, 0.05, 0.4)
PENALISED = [
    kind(COUNTS, 3, 0.03, 0.015, weights, bias_decay)
    for kind in (CrossEntropyUFM, MeanSquaredUFM)
    for weights in (None, WEIGHTS)
    for bias_decay in (None, 0.0, 0.02)
]
NAMES = [f"{type(p).__name__[:4]}-{'weighted' if p.sample_weights else 'mean'}-{p.bias_decay}" for p in PENALISED]


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def points(problem, seed):
    """Return random W, H of samples and of classes, and bias, of sizes from tiny to huge."""
    scale = 10.0 ** (seed % 5 - 2)
    bias = None if getattr(problem, "bias_decay", None) is None else scale * draw(3, seed=seed + 3)
    W, features = scale * draw(3, problem.dim, seed=seed), [draw(r, problem.dim, seed=seed + 1) for r in (8, 3)]
    if isinstance(problem, ReLUImbalanced):
        features = [H.abs() for H in features]
    return [(W, scale * H, bias) for H in features]


@pytest.mark.parametrize("problem", PENALISED, ids=NAMES)
def test_bound_is_below_the_minimum_anywhere_and_the_minimum_there(problem):
    found = minimise(problem, starts=1, iterations=500)
    for seed in range(10):
        for W, H, bias in points(problem, seed):
            bound = dual_bound(problem, W, H, bias)
            assert 0 <= bound <= found.loss + 1e-12
            if len(H) == 8:
                gap = duality_gap(problem, W, H, bias)
                assert gap == pytest.approx(value(problem, H, (W,), bias).item() - bound, rel=1e-12)
    assert dual_bound(problem, found.classifier, found.H, found.bias) == pytest.approx(found.loss, abs=1e-7)


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("bias_decay", [None, 0.3])
def test_cross_entropy_bound_is_the_formula(seed, bias_decay):
    problem = CrossEntropyUFM(COUNTS, 3, 0.3, 0.2, WEIGHTS, bias_decay)
    W, H, bias = points(problem, 5 * seed + 2)[0]
    y = labels_of(problem)
    omega, Z = torch.tensor(WEIGHTS, dtype=torch.float64)[y], H @ W.T
    if bias_decay is not None:
        bias = best_bias(problem, problem.rows(8), Z)
        Z = Z + bias
    Q, E = Z.softmax(dim=1), F.one_hot(y, 3).double()
    G = omega.diag() @ (E - Q)
    s = min(1, math.sqrt(0.06) / torch.linalg.matrix_norm(G, 2).item())
    mixed = (1 - s) * E + s * Q
    wanted = -(omega @ torch.special.xlogy(mixed, mixed).sum(dim=1)).item()
    if bias_decay is not None:
        wanted -= s**2 * G.sum(dim=0).square().sum().item() / (2 * bias_decay)
    assert dual_bound(problem, W, H, bias) == pytest.approx(wanted, abs=1e-13)


@pytest.mark.parametrize("seed", range(6))
def test_squared_bound_is_the_formula_at_the_best_scale(seed):
    problem = MeanSquaredUFM(COUNTS, 3, 0.05, 0.02, WEIGHTS)
    W, H, _ = points(problem, 5 * seed + 1)[0]
    y = labels_of(problem)
    omega, E = torch.tensor(WEIGHTS, dtype=torch.float64)[y].unsqueeze(1), F.one_hot(y, 3).double()
    A = omega * (E - H @ W.T)
    largest = math.sqrt(0.001) / torch.linalg.matrix_norm(A, 2).item()
    scales = torch.linspace(0, largest, 20001, dtype=torch.float64)
    values = scales * (A * E).sum() - scales**2 / 2 * (A.square() / omega).sum()
    assert dual_bound(problem, W, H) == pytest.approx(values.max().item(), abs=1e-8)
    assert dual_bound(problem, W, H) >= values.max().item() - 1e-14


def test_bound_under_budgets_is_that_of_frank_and_wolfe():
    problem = LayerPeeled(COUNTS, 3, 1.3, 0.7)
    for seed in range(10):
        for W, H, _ in points(problem, seed):
            Z = (H @ W.T).requires_grad_()
            rows = labels_of(problem) if len(H) == 8 else torch.arange(3)
            omega = torch.full((8,), 1 / 8).double() if len(H) == 8 else torch.tensor(COUNTS).double() / 8
            prices = 1 / torch.tensor(COUNTS).double()[rows] if len(H) == 8 else torch.ones(3).double()
            loss = omega @ F.cross_entropy(Z, rows, reduction="none")
            (slope,) = torch.autograd.grad(loss, Z)
            radius = 3 * math.sqrt(1.3 * 0.7)
            gap = (slope * Z).sum() + radius * torch.linalg.matrix_norm(slope / prices.sqrt().unsqueeze(1), 2)
            bound = dual_bound(problem, W, H)
            assert bound == pytest.approx(max(0.0, (loss - gap).item()), abs=1e-11)
    assert problem.radius == pytest.approx(radius)


@pytest.mark.parametrize("counts", [(4, 3, 1), (40, 10, 1)])
def test_nonnegative_features_have_a_bound_of_their_own(counts):
    problem = ReLUImbalanced(counts, 6, 0.01, 0.02)
    best = closed_form(problem)
    assert dual_bound(problem, best.W, best.H) == pytest.approx(best.loss, rel=1e-12)
    rows = best.H.repeat_interleave(torch.tensor(counts), dim=0)
    assert dual_bound(problem, best.W, rows) == pytest.approx(best.loss, rel=1e-12)
    # Features of any sign could do better, by the bound that does not know of the constraint.
    wide = CrossEntropyUFM(counts, 6, 0.01, 0.02)
    assert dual_bound(wide, best.W, best.H) < best.loss - 1e-4
    for seed in range(15):
        W = 10.0 ** (seed % 3 - 1) * draw(3, 6, seed=seed)
        assert dual_bound(problem, W, draw(3, 6, seed=seed + 1).abs()) <= best.loss + 1e-13


@pytest.mark.parametrize("problem", PENALISED, ids=NAMES)
def test_invariances(problem):
    W, H, bias = points(problem, 2)[1]
    bound = dual_bound(problem, W, H, bias)
    R = torch.linalg.qr(draw(3, 3, seed=9))[0]
    assert dual_bound(problem, W @ R, H @ R, bias) == pytest.approx(bound, abs=1e-13)
    order = [2, 0, 1]
    moved = replace(
        problem,
        counts=tuple(COUNTS[k] for k in order),
        sample_weights=None if problem.sample_weights is None else tuple(WEIGHTS[k] for k in order),
    )
    b = None if bias is None else bias[order]
    assert dual_bound(moved, W[order], H[order], b) == pytest.approx(bound, abs=1e-13)
    # Mean or sum: all weights and penalties times N.
    N = sum(COUNTS)
    weights = (1.0,) * 3 if problem.sample_weights is None else tuple(N * w for w in WEIGHTS)
    decay = None if problem.bias_decay is None else N * problem.bias_decay
    summed = replace(problem, weight_decay=N * 0.03, feature_decay=N * 0.015, sample_weights=weights, bias_decay=decay)
    assert dual_bound(summed, W, H, bias) == pytest.approx(N * bound, abs=1e-12)


def test_small_cross_entropies_keep_their_digits():
    logits = torch.tensor([[60.0, 0.0, -3.0], [0.0, 700.0, 0.0], [0.0, 0.0, -900.0]], dtype=torch.float64)
    problem = ULPM((1, 1, 1), 3)
    losses, log_q = problem.criterion.log_shares(problem.rows(), logits)
    wanted = [math.exp(-60) * (1 + math.exp(-3)), 2 * math.exp(-700), 900 + math.log(2)]
    assert losses.tolist() == pytest.approx(wanted, rel=1e-13)
    assert log_q[0].tolist() == pytest.approx([-wanted[0], -60, -63], rel=1e-13)
    A = descent(problem, problem.rows(), logits)
    assert A[0, 0].item() == pytest.approx(wanted[0], rel=1e-13)
    assert A.sum(dim=1).abs().max() < 1e-15


@pytest.mark.parametrize("bias_decay", [0.0, 1e-8, 0.1])
@pytest.mark.parametrize("kind", [CrossEntropyUFM, MeanSquaredUFM])
@pytest.mark.parametrize("scale", [0.0, 1.0, 30.0])
def test_best_bias_is_stationary(kind, bias_decay, scale):
    problem = kind((5, 2, 1, 1), 4, 0.1, 0.1, None, bias_decay)
    Z, rows = scale * draw(9, 4, seed=4), problem.rows(9)
    for start in (None, torch.tensor([40.0, -60.0, 0.0, 20.0], dtype=torch.float64)):
        b = best_bias(problem, rows, Z, start)
        unbalanced = descent(problem, rows, Z + b).sum(dim=0) - bias_decay * b
        assert unbalanced.abs().max() < 1e-13


def test_a_free_bias_alone_learns_the_prior():
    problem = CrossEntropyUFM((6, 3, 1), 3, 9.0, 9.0, None, 0.0)
    zero = torch.zeros(3, 3, dtype=torch.float64)
    entropy = -sum(n / 10 * math.log(n / 10) for n in (6, 3, 1))
    assert dual_bound(problem, zero, zero, torch.zeros(3).double()) == pytest.approx(entropy, abs=1e-14)


def test_errors():
    zero = torch.zeros(3, 3, dtype=torch.float64)
    with pytest.raises(ArgumentError, match=r"problem must have one layer and a convex fit.*ULPM"):
        dual_bound(ULPM((1, 1, 1), 3), zero, zero)
    with pytest.raises(ShapeError, match="H must have a row for each of K = 3 classes or N = 8 samples, got 5"):
        dual_bound(PENALISED[0], zero, torch.zeros(5, 3, dtype=torch.float64))
