import math
from dataclasses import replace

import pytest
import torch

from tests.ufm.points import (
    at,
    centering,
    draw,
)
from tightframe.errors import ArgumentError
from tightframe.ufm import (
    DeepUFM,
    closed_form,
)
from tightframe.ufm.certify import certify
from tightframe.ufm.deep import deep_objective

# Deep ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "problem",
    [
        DeepUFM((3,) * 4, 5, (0.01, 0.02, 0.005), loss="mse"),
        DeepUFM((3,) * 4, 5, (0.01, 0.02, 0.005, 0.01), loss="mse"),
        DeepUFM((8, 4, 2), 4, (0.01, 0.02, 0.005), loss="mse"),
    ],
    ids=str,
)
def test_deep_squared_error_at_its_closed_form(problem):
    solution = closed_form(problem)
    certificate = certify(problem, solution)
    assert certificate.stationarity < 1e-12
    assert certificate.balance < 1e-12
    assert certificate.is_global()
    assert "no convex dual" in certificate.explanation
    factors = (1.1 * solution.factors[0], *solution.factors[1:])
    moved = certify(problem, replace(solution, factors=factors))
    assert moved.gap > 1e-5
    assert moved.stationarity > 1e-4
    assert moved.balance > 1e-4


@pytest.mark.parametrize("scale_factor", [0.97, 1.03])
@pytest.mark.parametrize("repeated", [False, True])
def test_deep_collapse_is_called_stable_on_the_right_side_of_its_threshold(scale_factor, repeated):
    K, L, n, d = 6, 4, 2, 6
    alpha = scale_factor * K * (L - 1) / (L + 1)
    decay = alpha ** ((L - 1) / (L + 1)) / (n ** (1 / (L + 1)) * (math.exp(alpha) + K - 1))
    problem = DeepUFM((n,) * K, d, (decay,) * (L + 1))
    share = (alpha * math.sqrt(n)) ** (1 / (L + 1))
    P = centering(K)
    H, matrices = share / math.sqrt(n) * P, [share * P] * L
    if repeated:
        H = H.repeat_interleave(n, dim=0)
    solution = replace(at(problem, P, H), factors=(H, *matrices))
    certificate = certify(problem, solution)
    assert certificate.stationarity < 1e-14
    assert certificate.balance < 1e-14
    assert certificate.facts["dnc.scale"] == pytest.approx(alpha, rel=1e-12)
    assert ("stable" in certificate.explanation) == (scale_factor > 1)
    assert certificate.loss > certificate.lower_bound > 0
    # by brute force: a mode that is symmetric, with zero rows and zero diagonal
    lowest = _lowest_curvature(problem, [H, *matrices]) if not repeated else math.nan
    assert repeated or (lowest < -1e-9) == (scale_factor < 1)


def _lowest_curvature(problem, factors):
    shapes = [factor.shape for factor in factors]
    flat = torch.cat([factor.flatten() for factor in factors])

    def value(x):
        parts = x.split([shape.numel() for shape in shapes])
        return deep_objective(problem, [part.view(shape) for part, shape in zip(parts, shapes, strict=True)])

    return torch.linalg.eigvalsh(torch.autograd.functional.hessian(value, flat))[0].item()


@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize("loss", ["mse", "cross-entropy"])
def test_deep_stationarity_and_bound_at_random_points(relu, loss):
    problem = DeepUFM((3, 3, 3), 4, (0.02, 0.01, 0.03), loss=loss, relu=relu)
    for seed in range(20):
        factors = [0.7 * draw(*shape, seed=10 * seed + i) for i, shape in enumerate([(9, 4), (4, 4), (3, 4)])]
        certificate = certify(problem, replace(at(problem, factors[2], factors[0]), factors=tuple(factors)))
        leaves = [factor.clone().requires_grad_() for factor in factors]
        gradients = torch.autograd.grad(deep_objective(problem, leaves), leaves)
        wanted = math.sqrt(sum(g.square().sum().item() for g in gradients))
        assert certificate.stationarity == pytest.approx(wanted, rel=1e-12)
        assert certificate.loss >= certificate.lower_bound > 0
        assert math.isnan(certificate.operator_norm)
        assert certificate.witness is None


def test_a_deep_model_whose_minimum_is_unknown_has_no_gap():
    problem = DeepUFM((3, 2), 4, (0.02, 0.01, 0.03))
    factors = (draw(2, 4), draw(4, 4), draw(2, 4))
    certificate = certify(problem, replace(at(problem, factors[2], factors[0]), factors=factors))
    assert certificate.gap == math.inf
    assert not certificate.is_global(1e9)
    assert certificate.explanation.startswith("not bounded")
    with pytest.raises(ArgumentError, match="factors"):
        certify(problem, at(problem, factors[2], factors[0]))
