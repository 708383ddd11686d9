from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest
import torch

from tightframe.errors import ArgumentError, DimensionError
from tightframe.ufm import ULPM, MaxMargin
from tightframe.ufm.margin import (
    etf_flow_scale,
    margin_certificate,
    max_margin_form,
    step_geometry,
    unregularised_form,
)

from ..brute import labels_of
from .comparison import assert_close, centering

# Largest margin ------------------------------------------------------------------------------------------------------


def spectral(counts):
    """Return V, Λ of P diag(n) P = V Λ² Vᵀ on the vectors of zero sum."""
    P = centering(len(counts)).numpy()
    values, V = np.linalg.eigh(P @ np.diag(counts) @ P)
    return torch.from_numpy(V[:, 1:].copy()), torch.from_numpy(np.sqrt(values[1:]))


@pytest.mark.parametrize("counts", [(1, 1), (7, 2), (4, 4, 4), (12, 12, 3, 3), (100, 30, 9, 3, 1)])
def test_geometry_is_the_printed_one(counts):
    K = len(counts)
    solution, (V, S) = max_margin_form(MaxMargin(counts, K)), spectral(counts)
    P = centering(K)
    assert solution.exact
    assert_close(solution.logits, P)
    assert_close(solution.gram_W, (V * S) @ V.T, atol=1e-11)
    assert_close(solution.gram_H, P @ (V / S) @ V.T @ P, atol=1e-11)
    assert solution.loss == pytest.approx(S.sum().item(), rel=1e-13)
    assert solution.facts["dual_value"] == pytest.approx(solution.loss, rel=1e-13)
    assert solution.facts["max_normalised_margin"] == pytest.approx(1 / (2 * S.sum().item()), rel=1e-13)


def test_dual_certificate_holds_on_random_profiles():
    """From the definition, sample by sample on small profiles: norm 1, zero sums, signs, and the value."""
    generator = np.random.default_rng(0)
    for _ in range(500):
        K = int(generator.integers(2, 13))
        counts = tuple(int(n) for n in np.ceil(10 ** generator.uniform(0, 4, K)))
        B = margin_certificate(MaxMargin(counts, K)).numpy()
        n = np.array(counts, dtype=float)
        assert np.abs(B.sum(axis=0)).max() < 1e-12
        assert (B - np.diag(np.diag(B))).max() <= 0
        assert B[~np.eye(K, dtype=bool)].max() < 0
        singular = np.linalg.svd(B * np.sqrt(n), compute_uv=False)
        assert np.abs(singular[:-1] - 1).max() < 1e-9
        value = -(n * (B.sum(axis=0) - np.diag(B))).sum()
        nuclear = np.linalg.svd(np.sqrt(n)[:, None] * (np.eye(K) - 1 / K), compute_uv=False).sum()
        assert abs(value - nuclear) < 1e-9 * nuclear


def test_multipliers_bound_every_separator():
    """Weak duality at random separators, from their margins alone."""
    counts, generator = (5, 2, 1), torch.Generator().manual_seed(0)
    problem = MaxMargin(counts, 4)
    best, labels = max_margin_form(problem), labels_of(problem)
    for step in np.geomspace(1e-6, 1, 200):
        W, H = best.W, best.H[labels]
        W = W + step * torch.randn(W.shape, generator=generator, dtype=torch.float64)
        H = H + step * torch.randn(H.shape, generator=generator, dtype=torch.float64)
        Z = H @ W.T
        own = Z.gather(1, labels.unsqueeze(1))
        margin = (own - Z).masked_fill(torch.eye(3, dtype=torch.bool)[labels], math.inf).min().item()
        if margin > 0:
            assert (W.square().sum() + H.square().sum()).item() / 2 / margin >= best.lower_bound - 1e-12


@pytest.mark.parametrize(("K", "n"), [(2, 1), (5, 4), (10, 3)])
def test_balanced_value_is_the_printed_one(K, n):
    solution = max_margin_form(MaxMargin((n,) * K, K - 1))
    assert solution.loss == pytest.approx((K - 1) * math.sqrt(n), rel=1e-13)
    assert_close(solution.gram_W, math.sqrt(n) * centering(K))


@pytest.mark.parametrize(("R", "rho", "K", "m"), [(10, 0.5, 4, 1), (3, 0.3, 10, 2), (100, 0.75, 8, 1), (5, 0.25, 4, 7)])
def test_step_tables(R, rho, K, m):
    minority = round(rho * K)
    solution = max_margin_form(MaxMargin((R * m,) * (K - minority) + (m,) * minority, K))
    step = step_geometry(R, rho, K, m)
    for name, gram in (("w", solution.gram_W), ("h", solution.gram_H)):
        assert step[f"{name}_majority"] == pytest.approx(gram[0, 0].item(), abs=1e-12)
        assert step[f"{name}_minority"] == pytest.approx(gram[-1, -1].item(), abs=1e-12)
        assert step[f"{name}_majority_pair"] == pytest.approx(gram[0, 1].item(), abs=1e-12)
        assert step[f"{name}_cross"] == pytest.approx(gram[0, -1].item(), abs=1e-12)
        if minority > 1:
            assert step[f"{name}_minority_pair"] == pytest.approx(gram[-1, -2].item(), abs=1e-12)
        else:
            assert f"{name}_minority_pair" not in step
    values = [step["singular_value_majority"]] * (K - minority - 1) + [step["singular_value_minority"]] * (minority - 1)
    found = sorted([*values, step["singular_value_between"]])
    assert found == pytest.approx(sorted(spectral(solution.problem.counts)[1].tolist()), abs=1e-12)


def test_step_tables_by_hand():
    R, rho, K, q = 9.0, 0.4, 5, math.sqrt(3)
    A, B, mu = 3, 2, 9 * 0.4 + 0.6
    step = step_geometry(R, rho, K, 3)
    printed = {
        "w_majority": q * (3 * (1 - 1 / A) + math.sqrt(mu) * rho / A),
        "w_minority": q * (1 - 1 / B + math.sqrt(mu) * (1 - rho) / B),
        "w_majority_pair": q * (-3 / A + math.sqrt(mu) * rho / A),
        "w_minority_pair": q * (-1 / B + math.sqrt(mu) * (1 - rho) / B),
        "h_majority": ((1 - 1 / A) / 3 + rho / (A * math.sqrt(mu))) / q,
        "h_minority": (1 - 1 / B + (1 - rho) / (B * math.sqrt(mu))) / q,
        "h_majority_pair": (-1 / (A * 3) + rho / (A * math.sqrt(mu))) / q,
        "h_minority_pair": (-1 / B + (1 - rho) / (B * math.sqrt(mu))) / q,
        "w_cross": -q * math.sqrt(mu) / K,
        "h_cross": -1 / (q * K * math.sqrt(mu)),
    }
    assert {name: step[name] for name in printed} == pytest.approx(printed, abs=1e-14)


def test_minority_class_vectors_meet_only_in_the_limit():
    cosines = [(s := step_geometry(10.0**e, 0.5, 4))["w_minority_pair"] / s["w_minority"] for e in range(0, 17, 2)]
    assert all(a < b < 1 for a, b in pairwise(cosines))
    assert cosines[-1] > 0.999


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"ratio": 0.5}, "ratio must be finite and >= 1, got 0.5"),
        ({"rho": 0.3}, r"rho must make rho \* K one of 1, ..., 3 for K = 4, got rho = 0.3"),
        ({"rho": 1.0}, "rho must make"),
        ({"minority_count": 0.0}, "minority_count must be finite and > 0"),
        ({"num_classes": 1}, "num_classes must be an integer >= 2, got 1"),
    ],
)
def test_step_arguments(arguments, message):
    with pytest.raises(ArgumentError, match=message):
        step_geometry(**{"ratio": 2.0, "rho": 0.5, "num_classes": 4, **arguments})


@pytest.mark.parametrize(
    "form", [lambda d: max_margin_form(MaxMargin((3, 2, 1), d)), lambda d: unregularised_form(ULPM((3, 2, 1), d))]
)
def test_too_few_dimensions(form):
    assert form(2).loss > 0
    with pytest.raises(
        DimensionError, match="dim must be at least 2 for the SELI geometry of K = 3 classes, got d = 1"
    ):
        form(1)


# Without regulariser -------------------------------------------------------------------------------------------------


def test_unregularised_form_is_the_direction():
    problem = ULPM((5, 3, 1), 2)
    solution, wanted = unregularised_form(problem), max_margin_form(MaxMargin((5, 3, 1), 2))
    assert torch.equal(solution.W, wanted.W)
    assert torch.equal(solution.H, wanted.H)
    assert (solution.exact, solution.lower_bound) == (False, 0.0)
    assert solution.loss == pytest.approx(9 * math.log1p(2 / math.e), rel=1e-14)
    # Along the direction the loss goes to 0.
    labels = labels_of(problem)
    losses = [torch.nn.functional.cross_entropy(s * solution.logits[labels], labels, reduction="sum") for s in (10, 30)]
    assert losses[0] < math.log(2) < solution.loss
    assert losses[1] < 1e-11


def runge_kutta(slope, x, t, steps):
    h = t / steps
    for _ in range(steps):
        k1 = slope(x)
        k2 = slope([a + h / 2 * b for a, b in zip(x, k1, strict=True)])
        k3 = slope([a + h / 2 * b for a, b in zip(x, k2, strict=True)])
        k4 = slope([a + h * b for a, b in zip(x, k3, strict=True)])
        x = [a + h / 6 * (p + 2 * q + 2 * r + s) for a, p, q, r, s in zip(x, k1, k2, k3, k4, strict=True)]
    return x


@pytest.mark.parametrize(("K", "n", "start", "t"), [(3, 2, 0.5, 2.0), (4, 3, 1.0, 1.5), (2, 1, 0.1, 3.0)])
def test_flow_scale_is_that_of_the_whole_flow(K, n, start, t):
    problem = ULPM((n,) * K, K)
    seed = unregularised_form(problem)
    labels, root = labels_of(problem), math.sqrt(start)
    targets = torch.eye(K, dtype=torch.float64)[labels]

    def slope(point):
        W, H = point
        A = targets - (H @ W.T).softmax(dim=1)
        return [A.T @ H, A @ W]

    W, H = runge_kutta(slope, [root * seed.W, root * seed.H[labels]], t, 1000)
    a = etf_flow_scale(problem, torch.tensor(t), start)
    assert_close(H @ W.T, a * centering(K)[labels], atol=1e-9)


def test_flow_scale_satisfies_its_equation():
    K, n, start = 5, 4, 0.7
    problem = ULPM((n,) * K, K)
    times = torch.logspace(-2, 12, 15, dtype=torch.float64)
    h = 1e-4
    before, at, after = (etf_flow_scale(problem, times * (1 + s), start) for s in (-h, 0.0, h))
    wanted = 2 * math.sqrt(n) * K * at / (at.exp() + K - 1)
    torch.testing.assert_close((after - before) / (2 * h * times), wanted, rtol=1e-6, atol=0)
    late = torch.tensor([1e100, 1e200], dtype=torch.float64)
    scales = etf_flow_scale(problem, late, start)
    loss = K * n * torch.log1p((K - 1) * torch.exp(-scales))
    assert_close(loss * 2 * late * scales / ((K - 1) * math.sqrt(n)), torch.ones(2, dtype=torch.float64), atol=0.01)
    assert etf_flow_scale(problem, torch.zeros(2, 3), start).tolist() == [[start] * 3] * 2


@pytest.mark.parametrize(
    ("counts", "times", "start", "message"),
    [
        ((3, 2), [1.0], 1.0, r"counts must be equal .*got \(3, 2\)"),
        ((3, 3), [1.0, -1.0], 1.0, "times must be finite and >= 0, got -1.0"),
        ((3, 3), [1.0, math.nan], 1.0, "times must be finite and >= 0, got nan"),
        ((3, 3), [1.0, math.inf], 1.0, "times must be finite and >= 0, got 1.0 to inf"),
        ((3, 3), [1.0], 0.0, "start must be finite and > 0, got 0.0"),
    ],
)
def test_flow_arguments(counts, times, start, message):
    with pytest.raises(ArgumentError, match=message):
        etf_flow_scale(ULPM(counts, 2), torch.tensor(times), start)
