import math

import pytest
import torch

from tests.ufm.points import (
    at,
    centering,
    draw,
    rotation,
    second_derivative,
)
from tightframe.ufm import (
    ULPM,
    MaxMargin,
)
from tightframe.ufm.certify import certify
from tightframe.ufm.problem import objective

# Margins -------------------------------------------------------------------------------------------------------------


def test_balanced_margin_by_hand():
    K, n, d = 5, 4, 4
    W = torch.linalg.eigh(centering(K))[1][:, 1:] @ rotation(d)
    for problem in (ULPM((n,) * K, d), MaxMargin((n,) * K, d)):
        W1, H1 = n**0.25 * W, n**-0.25 * W
        certificate = certify(problem, at(problem, W1, H1))
        assert certificate.loss == pytest.approx((K - 1) * math.sqrt(n), rel=1e-12)
        assert certificate.relative_gap < 1e-12
        assert certificate.stationarity < 1e-15
        assert certificate.balance < 1e-14
        assert certificate.facts["dual.softmax"] == pytest.approx((K - 1) * math.sqrt(n), rel=1e-12)
        for factor in (3.0, 40.0):  # late in a flow: all but the ratios of the multipliers is gone
            late = certify(problem, at(problem, factor * W1, factor * H1))
            assert late.loss == pytest.approx(certificate.loss, rel=1e-12)
            assert late.facts["kkt.softmax"] < 1e-15
            assert late.violation == (0 if isinstance(problem, ULPM) else pytest.approx(factor**2 - 1, rel=1e-12))


@pytest.mark.parametrize("problem", [ULPM((9, 4, 2), 3), MaxMargin((9, 4, 2), 3)], ids=str)
def test_margins_of_random_separating_points_are_never_above_the_bound(problem):
    seen = 0
    for seed in range(300):
        W = draw(3, 3, seed=seed)
        H = W if seed % 2 else W.repeat_interleave(torch.tensor(problem.counts), dim=0)
        H = H + 0.3 * draw(*H.shape, seed=seed + 1000)
        certificate = certify(problem, at(problem, W, H))
        if certificate.loss == math.inf:
            assert certificate.facts["margin"] <= 0
            continue
        seen += 1
        assert certificate.loss >= certificate.lower_bound
        assert certificate.facts["dual.softmax"] <= certificate.facts["dual.simplex_encoding"] * (1 + 1e-12)
        assert not certificate.is_global(1e-3)
    assert seen > 50


def test_a_point_that_does_not_separate_is_refused_with_the_reason():
    W = torch.eye(3, dtype=torch.float64)
    H = W.clone()
    H[2] = torch.tensor([1.0, 0.0, 0.5])
    certificate = certify(ULPM((2, 2, 2), 3), at(None, W, H))
    assert certificate.loss == math.inf
    assert certificate.gap == math.inf
    assert not certificate.is_global(1e9)
    assert "refused" in certificate.explanation
    assert "row 2 of H, of class 2, has a margin of -0.5 against class 0" in certificate.explanation
    assert certificate.lower_bound > 0


def test_flow_of_the_unregularised_model_has_a_gap_that_falls_and_a_witness_at_saddles():
    K, n, d = 4, 2, 4
    problem = ULPM((n,) * K, d)
    pairs = torch.kron(torch.eye(2), torch.tensor([[1.0, -1.0], [-1.0, 1.0]])).double()
    U, S, Vh = torch.linalg.svd(pairs)
    S[2:] = 0
    W, H = 1.3 * n**0.25 * Vh.T * S.sqrt(), 1.3 * n**-0.25 * U * S.sqrt()
    saddle = certify(problem, at(problem, W, H))
    assert saddle.stationarity < 1e-15  # critical on its sphere, and yet
    assert saddle.relative_gap > 0.01
    # each of the K classes has margin m/2 to those of the other pair
    witness = saddle.witness

    def on_sphere(W2, H2, bias):
        size = (W2.square().sum() + n * H2.square().sum()).sqrt()
        radius = (W.square().sum() + n * H.square().sum()).sqrt()
        return objective(problem, W2 * radius / size, H2 * radius / size)

    slope, curvature = second_derivative(on_sphere, W, H, None, witness)
    assert slope == pytest.approx(0, abs=1e-12)
    assert curvature == pytest.approx(witness.curvature, rel=1e-10)
    assert curvature == pytest.approx(2 * (saddle.sigma - saddle.operator_norm), rel=1e-10)
