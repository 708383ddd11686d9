from __future__ import annotations

import math
from itertools import combinations

import mpmath
import numpy as np
import pytest
import torch

from tightframe.errors import ArgumentError
from tightframe.functional import (
    between_class_rank,
    bias_collapse,
    cdnv,
    gnc2,
    nc0,
    nc1,
    nc2_equiangularity,
    nc2_equinorm,
    nc2_etf_gap,
    nc2_gram,
    nc2_max_angle,
    nc2_min_separation,
    nc3_alignment,
    nc3_distance,
    nc3_gram,
    nc5,
    vci,
)
from tightframe.moments import ClassMoments

from ..problems import (
    HARD,
    as_float32,
    collapsed,
    draw,
    isotropic,
    merged,
    nc1_trace,
    rotation,
    scattered,
    simplex,
)
from .literal import OF_MOMENTS, OF_VECTORS, RANDOM, Literal

NAN, INF = float("nan"), float("inf")
WEIGHTINGS = ("class", "sample")


@pytest.mark.parametrize("data", RANDOM)
def test_metrics_of_vectors_are_their_formulas(data):
    problem = RANDOM[data]()
    A = Literal(problem).A
    W = draw(*A.shape, seed=5)
    for name, (metric, literal) in OF_VECTORS.items():
        if name.endswith("variance") and len(A) == 2:
            continue  # one pair has no variance: its logarithm is -inf or rounding
        for vectors, plain in ((problem.moments(), A), (W, W.numpy())):
            assert metric(vectors).item() == pytest.approx(literal(plain), rel=1e-11, abs=1e-13, nan_ok=True), name


@pytest.mark.parametrize("weighting", WEIGHTINGS)
@pytest.mark.parametrize("data", RANDOM)
def test_metrics_of_moments_are_their_formulas(data, weighting):
    problem = RANDOM[data]()
    oracle = Literal(problem, weighting)
    W, b = draw(9, problem.features.shape[1], seed=7)[: problem.num_classes], draw(problem.num_classes, seed=8)
    for name, (metric, literal) in OF_MOMENTS.items():
        found = metric(problem.moments(), W, b, weighting)
        wanted = literal(oracle, W.numpy()[oracle.classes], b.numpy()[oracle.classes])
        assert found.item() == pytest.approx(wanted, rel=1e-10, abs=1e-13), name


def test_every_metric_returns_a_scalar_of_float64_without_gradient():
    problem = as_float32(RANDOM["imbalanced"]())
    moments = problem.moments()
    W, b = torch.randn(4, 9, requires_grad=True), torch.randn(4, requires_grad=True)
    values = [metric(moments) for metric, _ in OF_VECTORS.values()]
    values += [metric(W) for metric, _ in OF_VECTORS.values()]
    values += [metric(moments, W, b, "class") for metric, _ in OF_MOMENTS.values()]
    values.append(nc0(W))
    assert {(v.shape, v.dtype, v.requires_grad) for v in values} == {(torch.Size(), torch.float64, False)}


def test_metrics_leave_the_moments_alone():
    problem = RANDOM["absent classes"]()
    moments, W, b = problem.moments(), draw(6, 7), draw(6)
    assert moments.count.sum() == 40
    before = moments.packed.clone(), W.clone()
    for metric, _ in OF_MOMENTS.values():
        metric(moments, W, b, "class")
    for metric, _ in OF_VECTORS.values():
        metric(moments)
        metric(W)
    assert torch.equal(moments.packed, before[0])
    assert torch.equal(W, before[1])


# ---------------------------------------------------------------- known geometry


def test_nc1_of_two_classes_by_hand():
    # Σ_W = diag(1, 0) / 2 + diag(0, 1) / 2 over the classes, means ∓(2, 0): Σ_B = diag(4, 0), Σ_T = diag(4.5, 0.5).
    h = torch.tensor([[-3.0, 0.0], [-1.0, 0.0], [2.0, 1.0], [2.0, -1.0]])
    moments = ClassMoments.from_samples(h, torch.tensor([0, 0, 1, 1]), 2, scatter=True)
    found = [nc1(moments, "pinv_sum"), nc1(moments), nc1(moments, "ratio"), between_class_rank(moments)]
    found += [cdnv(moments), cdnv(moments, power=2), vci(moments)]
    wanted = [0.5 / 4, 0.5 / 4 / 2, 1 / 4, 1, 1 / 16, 1 / 256, 1 - 4 / 4.5]
    assert [value.item() for value in found] == pytest.approx(wanted, rel=1e-14)


@pytest.mark.parametrize(("K", "d"), [(2, 1), (3, 2), (5, 4), (4, 9), (10, 12)])
@pytest.mark.parametrize("offset", [0.0, 100.0])
def test_isotropic_clouds_about_a_simplex(K, d, offset):
    sigma, radius = 0.5, 3.0
    moments = isotropic(K, d, sigma, radius, offset).moments()
    eigenvalue = radius**2 / (K - 1)
    assert nc1(moments).item() == pytest.approx((K - 1) * sigma**2 / eigenvalue / K, rel=1e-10)
    assert nc1(moments, "pinv_sum").item() == pytest.approx((K - 1) * sigma**2 / eigenvalue, rel=1e-10)
    assert nc1(moments, "ratio").item() == pytest.approx(d * sigma**2 / radius**2, rel=1e-10)
    assert between_class_rank(moments).item() == K - 1
    assert cdnv(moments).item() == pytest.approx(d * sigma**2 / (2 * K / (K - 1) * radius**2), rel=1e-10)
    for variant in ("bound", "rank"):
        assert vci(moments, variant).item() == pytest.approx(sigma**2 / (eigenvalue + sigma**2), rel=1e-10)


@pytest.mark.parametrize(("K", "d"), [(2, 1), (2, 5), (3, 2), (5, 4), (5, 5), (10, 64), (100, 99)])
@pytest.mark.parametrize("scale", [1e-6, 1.0, 3.7e5])
def test_a_simplex_etf_of_any_scale(K, d, scale):
    M = scale * simplex(K, d)
    tolerance = {"abs": 1e-12}
    for metric in (nc2_equinorm, nc2_equiangularity, nc2_max_angle, nc2_gram, nc2_etf_gap):
        assert metric(M).item() == pytest.approx(0, **tolerance)
    edge = math.sqrt(2 * K / (K - 1))
    assert nc2_min_separation(M).item() == pytest.approx(edge, **tolerance)
    assert gnc2(M).item() == pytest.approx(-math.log(edge), **tolerance)
    assert gnc2(M, "log", "variance").item() == pytest.approx(0, **tolerance)
    assert gnc2(M, "riesz").item() == pytest.approx(-(d - 2) * math.log(edge), abs=1e-10)
    assert nc0(M).item() == pytest.approx(0, abs=1e-12 * scale)


@pytest.mark.parametrize("n", [1, 5])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_exact_collapse(n, dtype):
    problem = collapsed(n=n)
    moments = ClassMoments.from_samples(problem.features.to(dtype), problem.labels, 4, scatter=True)
    W = 0.3 * problem.features[:4]
    for value in (nc1(moments), nc1(moments, "pinv_sum"), nc1(moments, "ratio"), cdnv(moments), cdnv(moments, power=2)):
        assert value.item() == 0
    zeros = [vci(moments), vci(moments, "rank"), nc3_distance(moments, W), nc3_distance(moments, W, "norm")]
    zeros += [nc3_gram(moments, W), nc3_alignment(moments, W), nc3_alignment(moments, W, "variance"), nc0(W)]
    zeros += [bias_collapse(moments, W)]
    zeros += [metric(moments) for metric in (nc2_equinorm, nc2_equiangularity, nc2_max_angle, nc2_gram, nc2_etf_gap)]
    assert [z.item() for z in zeros] == pytest.approx([0] * len(zeros), abs=1e-14)
    assert between_class_rank(moments).item() == 3
    bias = torch.tensor([3.0, 4.0, 0.0, 0.0])
    assert bias_collapse(moments, W, bias).item() == pytest.approx(5, rel=1e-14)


@pytest.mark.parametrize("K", [2, 3, 8])
def test_orthonormal_vectors(K):
    gap = 1 / math.sqrt(K - 1) - 1 / math.sqrt(K)
    wanted = {
        nc2_equinorm: 0,
        nc2_equiangularity: 0,
        nc2_max_angle: 1 / (K - 1),
        nc2_gram: math.sqrt(1 / K + (K - 1) * gap**2),
        nc2_etf_gap: 1 / math.sqrt(K),
        nc2_min_separation: math.sqrt(2),
        gnc2: -math.log(2) / 2,
        nc0: math.sqrt(K),
    }
    assert {metric: metric(torch.eye(K, K + 2)).item() for metric in wanted} == pytest.approx(
        wanted, rel=1e-13, abs=1e-15
    )


def test_an_orthoplex():
    # Six vectors ±e_i: 3 of 15 pairs are opposite, the others orthogonal.
    M = torch.cat([torch.eye(3), -torch.eye(3)])
    assert nc2_equiangularity(M).item() == pytest.approx(math.sqrt(3 / 15 * 12 / 15), rel=1e-14)
    assert nc2_max_angle(M).item() == pytest.approx((3 * 0.8 + 12 * 0.2) / 15, rel=1e-14)
    assert math.isnan(nc2_etf_gap(M).item())  # d = 3 < K - 1 = 5
    assert nc0(M).item() == 0
    assert gnc2(M, "riesz").item() == pytest.approx(math.log((3 / 2 + 12 / math.sqrt(2)) / 15), rel=1e-13)


def test_opposite_and_equal_extremes():
    W, moments = collapsed().features[:4], collapsed().moments()
    half = torch.cat([W[:2], -W[2:]])
    found = [nc3_distance(moments, -W), nc3_distance(moments, -W, "norm"), nc3_gram(moments, -W)]
    found += [nc3_alignment(moments, -W), nc3_alignment(moments, half), nc3_alignment(moments, half, "variance")]
    assert [value.item() for value in found] == pytest.approx([4, 2, 2, 2, 1, 4 / 3], rel=1e-14)


def test_outliers_orthogonal_and_parallel():
    moments = ClassMoments.from_samples(torch.tensor([[3.0, 0.0, 0.0], [0.0, -2.0, 0.0]]), torch.tensor([0, 1]), 3)
    assert nc5(moments, torch.tensor([0.0, 0.0, 5.0])).item() == 0
    assert nc5(moments, torch.tensor([0.0, 7.0, 0.0])).item() == 0.5
    assert nc5(moments, torch.tensor([1.0, 1.0, 0.0])).item() == pytest.approx(math.sqrt(0.5), rel=1e-14)
    assert math.isnan(nc5(moments, torch.zeros(3)).item())
    moments.update(torch.zeros(1, 3), torch.tensor([2]))
    assert math.isnan(nc5(moments, torch.ones(3)).item())


# ---------------------------------------------------------------- where the literature's code goes wrong


@pytest.mark.parametrize("weighting", WEIGHTINGS)
@pytest.mark.parametrize("name", HARD)
def test_nc1_of_float32_features_in_hard_cases(name, weighting):
    problem = HARD[name]()
    moments = problem.moments()
    wanted = nc1_trace(problem, weighting)
    assert between_class_rank(moments, weighting=weighting).item() == problem.rank
    assert nc1(moments, "pinv_sum", weighting=weighting).item() == pytest.approx(wanted, rel=1e-6)
    present = len(problem.merged)
    assert nc1(moments, weighting=weighting).item() == pytest.approx(wanted / present, rel=1e-6)


def test_nc1_of_many_classes_in_many_dimensions():
    problem = as_float32(scattered(draw(100, 2048), [5] * 100, 0.3))
    moments = problem.moments()
    assert between_class_rank(moments).item() == 99
    assert nc1(moments, "pinv_sum").item() == pytest.approx(nc1_trace(problem), rel=1e-6)


@pytest.mark.parametrize(("K", "d", "n", "sigma"), [(5, 16, 4000, 1.0), (4, 3, 300, 10.0), (3, 4, 4000, 100.0)])
@pytest.mark.parametrize("offset", [0.0, 1e4])
def test_classes_with_the_same_samples_add_no_direction(K, d, n, sigma, offset):
    problem = merged(K, d, n, sigma, offset)
    moments = problem.moments()
    assert between_class_rank(moments).item() == problem.rank == K - 2
    assert nc1(moments, "pinv_sum").item() == pytest.approx(nc1_trace(problem), rel=1e-6)


def test_classes_with_the_same_samples_add_no_direction_however_often_the_moments_are_read():
    problem = merged()
    moments = ClassMoments(5, 16, scatter=True)
    for h, y in zip(problem.features.split(3), problem.labels.split(3), strict=True):
        moments.update(h, y)
        assert moments.count.sum() > 0
    assert between_class_rank(moments).item() == 3


@pytest.mark.parametrize("gap", [1e-4, 1e-8, 1e-13])
@pytest.mark.parametrize("n", [1, 6])
def test_classes_however_near_each_other_add_a_direction(gap, n):
    means = draw(5, 8)
    means[4] = means[3] + gap * draw(8, seed=1)
    problem = scattered(means, [n] * 5, 1e-2 * gap)
    assert between_class_rank(problem.moments()).item() == 4
    assert nc1(problem.moments(), "pinv_sum").item() == pytest.approx(nc1_trace(problem), rel=1e-14 / gap + 1e-9)


def test_means_on_a_line_have_rank_one():
    means = torch.tensor([[0.0], [1.0], [3.0], [7.0]], dtype=torch.float64) * torch.tensor([1.0, -2.0, 0.5]).double()
    labels = torch.arange(4).repeat_interleave(6)
    noise = torch.cat([torch.eye(3), -torch.eye(3)]).double()
    moments = ClassMoments.from_samples(1000 + means[labels] + noise.repeat(4, 1), labels, 4, scatter=True)
    for weighting in WEIGHTINGS:
        assert between_class_rank(moments, weighting=weighting).item() == 1
    along = 21 / 4  # squared length of one step along the line
    variance = np.var([0, 1, 3, 7])
    assert nc1(moments, "pinv_sum").item() == pytest.approx((1 / 3) / (along * variance), rel=1e-10)


@pytest.mark.parametrize("seed", range(20))
def test_nc1_is_never_negative_where_noise_is_orthogonal_to_the_means(seed):
    # The noise sums to zero within each class and lies across the span of the means; true value 0.
    step = 10 * draw(30, 5, seed=seed)
    noise = torch.stack([step, -step], dim=1).flatten(0, 1)
    labels = torch.arange(3).repeat_interleave(20)
    features = torch.cat([draw(3, 3, seed=seed + 50)[labels], noise], dim=1) @ rotation(8, seed)
    moments = ClassMoments.from_samples(features, labels, 3, scatter=True)
    for variant in ("pinv", "pinv_sum"):
        value = nc1(moments, variant).item()
        assert value >= 0
        assert value == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize("d", [8, 512, 4096])
@pytest.mark.parametrize("spread", [1.0, 1e-2])
def test_riesz_energy_far_out_of_the_range_of_floating_point(d, spread):
    M = draw(6, d, seed=d)
    if spread < 1:  # directions crowd together and the energy overflows instead
        M = M[:1] + spread * M
    with mpmath.workdps(40):
        rows = [[mpmath.mpf(x) for x in row] for row in M.tolist()]
        norms = [mpmath.sqrt(mpmath.fdot(r, r)) for r in rows]
        kernel = []
        for i, j in combinations(range(6), 2):
            gaps = [a / norms[i] - b / norms[j] for a, b in zip(rows[i], rows[j], strict=True)]
            kernel.append(mpmath.sqrt(mpmath.fdot(gaps, gaps)) ** -(d - 2))
        mean = mpmath.fsum(kernel) / len(kernel)
        variance = mpmath.fsum((x - mean) ** 2 for x in kernel) / len(kernel)
        wanted = float(mpmath.log(mean)), float(mpmath.log(variance))
    if d == 4096:
        assert float(mean) in (0.0, INF)
    assert gnc2(M, "riesz").item() == pytest.approx(wanted[0], rel=1e-10)
    assert gnc2(M, "riesz", "variance").item() == pytest.approx(wanted[1], rel=1e-9)


@pytest.mark.parametrize(("K", "d"), [(3, 2), (4, 6), (6, 5)])
def test_no_rotated_simplex_is_nearer_than_the_etf_gap(K, d):
    M = draw(K, d, seed=K) + 0.2
    gap = nc2_etf_gap(M).item()
    norm = torch.linalg.matrix_norm(M)
    best = INF
    U, _, Vt = torch.linalg.svd(simplex(K, d).T @ M)
    for seed in range(200):
        turn = rotation(d, seed)
        if seed % 2:  # half of them near the optimum
            turn = torch.linalg.qr(U @ Vt + 10.0 ** -(1 + seed % 7) * turn)[0]
            turn = turn * (turn * (U @ Vt)).sum(dim=0).sign()
        etf = simplex(K, d) @ turn
        scale = (etf * M).sum() / etf.square().sum()
        best = min(best, (torch.linalg.matrix_norm(M - scale * etf) / norm).item())
    assert gap <= best + 1e-14
    assert best == pytest.approx(gap, rel=1e-5)


def test_the_etf_gap_is_right_down_to_rounding():
    noise = draw(5, 8)
    for size in (1e-4, 1e-8, 1e-12):
        M = 1e3 * (simplex(5, 8) + size * noise)
        assert nc2_etf_gap(M).item() == pytest.approx(etf_gap_to_first_order(noise, size), rel=1e-3, abs=1e-15)


def test_the_squared_etf_distance_is_right_down_to_rounding():
    M = simplex(5, 7)
    for size in (1e-2, 1e-5, 1e-9):
        noisy = M + size * draw(5, 7, seed=3)
        gap, distance = nc2_etf_gap(noisy).item(), nc2_etf_gap(noisy, "squared").item()
        assert distance == pytest.approx(2 - 2 * math.sqrt(1 - gap**2), abs=1e-15)
        assert distance == pytest.approx(gap**2, rel=1e-3)
    with pytest.raises(ArgumentError, match="variant"):
        nc2_etf_gap(M, "absolute")


def etf_gap_to_first_order(noise, size):
    """Distance from the tangent space of scaled and rotated simplices: for M = E + ε Z it is ε ‖(1 - P) Z‖ / ‖E‖."""
    E = simplex(5, 8)
    tangents = [E]
    for i, j in combinations(range(8), 2):
        generator = torch.zeros(8, 8, dtype=torch.float64)
        generator[i, j], generator[j, i] = 1, -1
        tangents.append(E @ generator)
    basis = torch.stack([t.flatten() for t in tangents], dim=1)
    U, S, _ = torch.linalg.svd(basis, full_matrices=False)
    U = U[:, S > 1e-10]
    rest = noise.flatten() - U @ (U.T @ noise.flatten())
    return (size * rest.norm() / E.norm()).item()
