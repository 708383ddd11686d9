import math

import pytest
import torch

from tests.ufm.points import (
    ONE_LAYER,
    at,
    draw,
    random_point,
    rotation,
    second_derivative,
)
from tightframe.ufm import (
    CrossEntropyUFM,
    LayerPeeled,
    MeanSquaredUFM,
    ReLUImbalanced,
    closed_form,
)
from tightframe.ufm.certify import certify, nonnegative_norm
from tightframe.ufm.problem import objective

# Saddles -------------------------------------------------------------------------------------------------------------


def partial_minimum(K, n, d, lw, lh, kept):
    """Only the first two classes' features and an ETF of them: zero elsewhere, stationary for the squared error."""
    problem = MeanSquaredUFM((n,) * K, d, lw, lh)
    t = 1 - K * math.sqrt(n * lw * lh)
    W = torch.zeros(K, d, dtype=torch.float64)
    W[:kept, :kept] = math.sqrt(t * math.sqrt(n * lh / lw)) * torch.eye(kept, dtype=torch.float64)
    return problem, W, math.sqrt(lw / (n * lh)) * W


@pytest.mark.parametrize("kept", [0, 1, 2, 3])
def test_saddles_of_missing_classes_have_a_witness_of_exact_curvature(kept):
    K, d = 4, 4
    problem, W, H = partial_minimum(K, 3, d, 0.02, 0.01, kept)
    R = rotation(d, seed=kept)
    W, H = W @ R, H @ R
    certificate = certify(problem, at(problem, W, H))
    assert certificate.stationarity < 1e-15
    assert certificate.balance < 1e-15
    assert not certificate.is_global()
    witness = certificate.witness
    slope, curvature = second_derivative(lambda *x: objective(problem, *x), W, H, None, witness)
    assert witness.curvature == pytest.approx(2 * (certificate.sigma - certificate.operator_norm), abs=1e-15)
    assert curvature == pytest.approx(witness.curvature, abs=1e-12)
    assert slope == pytest.approx(0, abs=1e-12)
    assert witness.slope == pytest.approx(0, abs=1e-12)
    assert "curvature" in certificate.explanation
    step = 0.1
    assert objective(problem, W + step * witness.dW, H + step * witness.dH) < certificate.loss


@pytest.mark.parametrize("problem", [p for p in ONE_LAYER if isinstance(p, CrossEntropyUFM | MeanSquaredUFM)], ids=str)
@pytest.mark.parametrize("rows", ["samples", "classes"])
def test_curvature_of_any_witness_is_the_second_derivative(problem, rows):
    seen = 0
    for seed in range(10):
        point = random_point(problem, 10 * seed, 0.3, rows=rows)
        W, H, bias = point.W, point.H, point.bias
        unused = seed % 2 == 0
        if unused:  # a direction of feature space that nothing uses
            a = draw(problem.dim, seed=seed)
            a = a / a.norm()
            W, H = W - torch.outer(W @ a, a), H - torch.outer(H @ a, a)
        certificate = certify(problem, at(problem, W, H, bias))
        if certificate.witness is None:
            assert not unused or certificate.operator_norm <= certificate.sigma
            continue
        seen += 1
        slope, curvature = second_derivative(lambda *x: objective(problem, *x), W, H, bias, certificate.witness)
        assert slope == pytest.approx(certificate.witness.slope, abs=1e-12)
        assert slope <= 1e-12
        assert curvature == pytest.approx(certificate.witness.curvature, abs=1e-12)
        assert curvature < 0
        if unused:
            wanted = 2 * (certificate.sigma - certificate.operator_norm)
            assert curvature == pytest.approx(wanted, abs=1e-12)
    assert seen >= 5


def test_witness_with_a_relu_keeps_features_nonnegative_and_leads_down():
    problem = ReLUImbalanced((12, 9, 4), 5, 0.02, 0.02)
    solution = closed_form(problem)
    H, W = solution.H.clone(), solution.W.clone()
    W[:, H[1] > 0] = 0
    H[1] = 0
    certificate = certify(problem, at(problem, W, H))
    witness = certificate.witness
    assert (witness.dH >= 0).all()
    slope, curvature = second_derivative(lambda *x: objective(problem, *x), W, H, None, witness)
    assert slope == pytest.approx(0, abs=1e-12)
    assert curvature == pytest.approx(witness.curvature, abs=1e-12)
    assert curvature == pytest.approx(2 * (certificate.sigma - certificate.facts["operator_norm.lower"]), abs=1e-12)


def test_a_layer_peeled_saddle_has_a_way_down_within_its_budgets():
    K, d = 4, 4
    problem = LayerPeeled((3,) * K, d, weight_budget=1.0, feature_budget=2.0)
    # Classes in pairs: logits of rank 2, critical by symmetry.
    pairs = torch.kron(torch.eye(2), torch.tensor([[1.0, -1.0], [-1.0, 1.0]])).double()
    U, S, Vh = torch.linalg.svd(pairs)
    S[2:] = 0
    W = (Vh.T * S.sqrt()) @ rotation(d)
    H = (U * S.sqrt()) @ rotation(d)
    W, H = W * math.sqrt(K / W.square().sum()), H * math.sqrt(2 * K / H.square().sum())
    certificate = certify(problem, at(problem, W, H))
    assert certificate.violation < 1e-15
    assert certificate.stationarity < 1e-14
    assert not certificate.is_global(1e-3)
    witness = certificate.witness
    assert witness.curvature == pytest.approx(2 * (certificate.sigma - certificate.operator_norm), abs=1e-14)

    def on_budgets(W, H, bias):
        W, H = W * (K / W.square().sum()).sqrt(), H * (2 * K / H.square().sum()).sqrt()
        return objective(problem, W, H)

    slope, curvature = second_derivative(on_budgets, W, H, None, witness)
    assert slope == pytest.approx(0, abs=1e-12)
    assert curvature == pytest.approx(witness.curvature, abs=1e-12)


# Budgets -------------------------------------------------------------------------------------------------------------


def test_broken_budgets_are_named_and_never_certified():
    problem = LayerPeeled((6,) * 4, 3, weight_budget=1.0, feature_budget=5.0)
    best = closed_form(problem)
    over = certify(problem, at(problem, best.W * math.sqrt(1.02), best.H))
    assert over.violation == pytest.approx(0.02, rel=1e-9)
    assert over.facts["feature_budget.used"] == pytest.approx(1, rel=1e-12)
    assert not over.is_global()
    assert over.loss < best.loss
    assert "breaks a constraint by 0.02" in over.explanation
    under = certify(problem, at(problem, best.W * math.sqrt(0.98), best.H))
    assert under.violation == 0
    assert not under.is_global(1e-4)


# Nonnegative features ------------------------------------------------------------------------------------------------


def best_over_nonnegative(M):
    """Copositive maximum of vᵀMv by all supports: at it, the support's own top eigenvector is positive."""
    best, R = 0.0, len(M)
    for mask in range(1, 2**R):
        support = [i for i in range(R) if mask >> i & 1]
        values, vectors = torch.linalg.eigh(M[support][:, support])
        for value, vector in zip(values, vectors.T, strict=True):
            if (vector >= -1e-12).all() or (vector <= 1e-12).all():
                best = max(best, value.item())
    return math.sqrt(best)


def test_nonnegative_norm_brackets_the_copositive_maximum():
    exact = 0
    for seed in range(20):
        K, counts = 4, (2, 2, 1, 2)
        labels = torch.arange(K).repeat_interleave(torch.tensor(counts))
        Q = (draw(7, K, seed=seed) * (0.3 if seed % 2 else 2.0)).softmax(dim=1)
        slope = torch.nn.functional.one_hot(labels, K) - Q
        lower, upper = nonnegative_norm(slope, labels)
        wanted = best_over_nonnegative(slope @ slope.T)
        assert lower <= wanted * (1 + 1e-12)
        assert wanted <= upper * (1 + 1e-12)
        across = (slope @ slope.T)[labels.unsqueeze(1) != labels]
        if (across <= 0).all():
            exact += 1
            assert lower == pytest.approx(wanted, rel=1e-12)
            assert upper == pytest.approx(wanted, rel=1e-12)
        else:
            assert upper >= lower
    assert 5 < exact < 55


def test_relu_bound_is_tighter_than_the_linear_models():
    problem = ReLUImbalanced((12, 9, 4), 5, 0.02, 0.02)
    linear = CrossEntropyUFM((12, 9, 4), 5, 0.02, 0.02)
    point = random_point(problem, 3)
    assert certify(problem, point).lower_bound > certify(linear, point).lower_bound
    negative = at(problem, point.W, point.H - 0.5)
    assert certify(problem, negative).violation == pytest.approx(0.5, abs=1e-12)


def test_a_feature_near_zero_that_wants_to_fall_is_nearly_stationary():
    problem = ReLUImbalanced((12, 9, 4), 5, 0.02, 0.02)
    solution = closed_form(problem)
    assert certify(problem, solution).stationarity < 1e-14
    for tiny in (1e-3, 1e-6):
        H = solution.H + tiny * (solution.H == 0)
        assert certify(problem, at(problem, solution.W, H)).stationarity < tiny
    down = certify(problem, at(problem, solution.W, 0.5 * solution.H))
    assert down.stationarity > 1e-2
