from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tightframe.errors import ArgumentError, DeviceError, DtypeError, NonFiniteError, ShapeError
from tightframe.functional import (
    between_class_rank,
    bias_collapse,
    cdnv,
    collapse_metrics,
    frame_metrics,
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
    collapsed,
    draw,
    law,
    rotation,
    scattered,
)
from .literal import OF_MOMENTS, OF_VECTORS, RANDOM

NAN, INF = float("nan"), float("inf")
WEIGHTINGS = ("class", "sample")


def one_class(n):
    return ClassMoments.from_samples(draw(n, 3), torch.ones(n).long(), 3, scatter=True)


@pytest.mark.parametrize("moments", [one_class(0), one_class(1), one_class(5)], ids=["no", "one", "five"])
def test_fewer_than_two_classes_give_nan(moments):
    W = draw(3, 3)
    values = [nc1(moments, v) for v in ("pinv", "pinv_sum", "ratio")] + [vci(moments, v) for v in ("bound", "rank")]
    values += [between_class_rank(moments), cdnv(moments)] + [metric(moments) for metric, _ in OF_VECTORS.values()]
    values += [nc3_distance(moments, W, v) for v in ("squared", "norm")]
    values += [
        bias_collapse(moments, W),
        nc3_gram(moments, W),
        *(nc3_alignment(moments, W, v) for v in ("mean", "variance")),
    ]
    assert all(math.isnan(v.item()) for v in values)
    assert {(v.shape, v.dtype) for v in values} == {(torch.Size(), torch.float64)}


@pytest.mark.parametrize("rows", [0, 1])
def test_fewer_than_two_vectors_give_nan(rows):
    assert all(math.isnan(metric(draw(rows, 4)).item()) for metric, _ in OF_VECTORS.values())


def test_all_means_coincide():
    h = torch.tensor([[0.0, 1.0], [2.0, 1.0], [1.0, 0.0], [1.0, 2.0]])
    moments, W = ClassMoments.from_samples(h, torch.tensor([0, 0, 1, 1]), 2, scatter=True), draw(2, 2)
    undefined = [nc1(moments, variant) for variant in ("pinv", "pinv_sum", "ratio")] + [vci(moments, "rank")]
    of_vectors = nc2_equinorm, nc2_equiangularity, nc2_max_angle, nc2_gram, nc2_etf_gap, nc2_min_separation, gnc2
    undefined += [metric(moments) for metric in of_vectors]
    undefined += [metric(moments, W) for metric in (nc3_distance, nc3_gram, nc3_alignment)]
    assert all(value.isnan() for value in undefined)
    assert [metric(moments).item() for metric in (between_class_rank, cdnv, vci)] == [0, INF, 1]


def test_two_of_three_means_coincide():
    h = torch.tensor([[0.0, 0.0], [0.0, 0.0], [4.0, 0.0], [0.0, 1.0], [0.0, -1.0]])
    collapsed_pair = ClassMoments.from_samples(h[:3], torch.arange(3), 3, scatter=True)
    assert math.isnan(cdnv(collapsed_pair).item())
    spread_pair = ClassMoments.from_samples(h[1:], torch.tensor([0, 2, 1, 1]), 3, scatter=True)
    assert cdnv(spread_pair).item() == INF
    assert nc1(collapsed_pair).item() == 0
    assert vci(spread_pair, "rank").item() == pytest.approx(0, abs=1e-14)
    assert vci(spread_pair).item() == pytest.approx(0.5, rel=1e-14)  # one direction explained of a possible two


def test_zero_vectors():
    M = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.0, 0.0]])
    for metric in (nc2_equiangularity, nc2_max_angle, nc2_min_separation, gnc2):
        assert math.isnan(metric(M).item())
    for kernel, statistic in (("riesz", "mean"), ("log", "variance"), ("riesz", "variance")):
        assert math.isnan(gnc2(M, kernel, statistic).item())
    assert nc2_equinorm(M).item() == pytest.approx(math.sqrt(1 / 3) / (2 / 3), rel=1e-14)
    for metric in (nc2_equinorm, nc2_gram, nc2_etf_gap):
        assert math.isfinite(metric(M).item())
        assert math.isnan(metric(torch.zeros(3, 2)).item())
    assert nc0(torch.zeros(3, 2)).item() == 0
    moments = collapsed().moments()
    for metric in (nc3_distance, nc3_gram, nc3_alignment):
        assert math.isnan(metric(moments, torch.zeros(4, 6)).item())


@pytest.mark.parametrize("kernel", ["log", "riesz"])
@pytest.mark.parametrize("statistic", ["mean", "variance"])
def test_energy_of_coinciding_directions_is_infinite(kernel, statistic):
    M = torch.tensor([[1.0, 2.0, 3.0], [2.0, 4.0, 6.0], [1.0, 0.0, 0.0]])
    assert nc2_min_separation(M).item() == 0
    assert gnc2(M, kernel, statistic).item() == INF
    assert gnc2(M[:, :2], kernel, statistic).item() == INF  # where the Riesz exponent d - 2 is zero
    assert math.isnan(gnc2(torch.cat([M, torch.zeros(1, 3)]), kernel, statistic).item())


def test_absent_classes_are_left_out():
    problem = scattered(draw(3, 6), [9, 5, 7], 0.5)
    place = torch.tensor([4, 1, 2])
    W, b = draw(6, 6), draw(6)
    sparse = ClassMoments.from_samples(problem.features, place[problem.labels], 6, scatter=True)
    dense, rows, bias = problem.moments(), W[place], b[place]
    for name, (metric, _) in OF_MOMENTS.items():
        if name != "nc5":
            found, wanted = metric(sparse, W, b, "class"), metric(dense, rows, bias, "class")
            assert found.item() == pytest.approx(wanted.item(), rel=1e-12), name
    for metric, _ in OF_VECTORS.values():
        assert metric(sparse).item() == pytest.approx(metric(dense).item(), rel=1e-12)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda m, W: nc1(m, "svd"), "variant must be one of"),
        (lambda m, W: vci(m, "pinv"), "variant must be one of"),
        (lambda m, W: nc3_distance(m, W, "l1"), "variant must be one of"),
        *(
            (lambda m, W, f=f: f(m, weighting="batch"), "weighting must be one of 'class', 'sample', got 'batch'")
            for f in (nc1, vci, between_class_rank)
        ),
        *(
            (lambda m, W, f=f: f(m, W, weighting="batch"), "weighting must be one of")
            for f in (nc3_distance, nc3_gram, nc3_alignment, bias_collapse)
        ),
        (lambda m, W: gnc2(W, "gauss"), "kernel must be one of"),
        (lambda m, W: gnc2(W, "log", "median"), "statistic must be one of"),
        (lambda m, W: nc3_alignment(m, W, "median"), "statistic must be one of"),
        *((lambda m, W, p=p: cdnv(m, power=p), "power must be an integer >= 1") for p in (0, 1.0, True)),
    ],
)
def test_unknown_choices(call, message):
    with pytest.raises(ArgumentError, match=message):
        call(collapsed().moments(), draw(4, 6))


def test_scatter_is_asked_for_where_it_is_needed():
    moments = collapsed().moments(scatter=False)
    for call in (lambda: nc1(moments), lambda: nc1(moments, "pinv_sum"), lambda: vci(moments)):
        with pytest.raises(ArgumentError, match="hold no scatter"):
            call()
    assert nc1(moments, "ratio").item() == 0
    assert between_class_rank(moments).item() == 3


def test_bad_vectors():
    metrics = [("weight", nc0), *(("vectors", metric) for metric, _ in OF_VECTORS.values())]
    for name, metric in metrics:
        with pytest.raises(DtypeError, match=rf"{name} must be a floating-point tensor, got torch\.int64"):
            metric(torch.eye(3).long())
        with pytest.raises(ShapeError, match=f"{name} must have shape"):
            metric(torch.ones(3))
        with pytest.raises(NonFiniteError, match=f"{name} must be finite"):
            metric(torch.tensor([[1.0, NAN], [0.0, 1.0]]))


BAD_WEIGHTS = [
    *((torch.ones(s), ShapeError, r"\(K, d\) = \(4, 6\), got") for s in ((5, 6), (4, 5), (24,), (4, 6, 1))),
    (torch.ones(4, 6, device="meta"), DeviceError, "weight is on meta and the moments on cpu"),
    (torch.ones(4, 6).long(), DtypeError, "weight must be a floating-point"),
    (torch.full((4, 6), INF), NonFiniteError, "weight must be finite"),
]


@pytest.mark.parametrize(("weight", "error", "message"), BAD_WEIGHTS)
@pytest.mark.parametrize("metric", [nc3_distance, nc3_gram, nc3_alignment, bias_collapse])
def test_bad_weights(metric, weight, error, message):
    with pytest.raises(error, match=message):
        metric(collapsed().moments(), weight)


@pytest.mark.parametrize("shape", [(5,), (6, 1), ()])
def test_bad_outlier_means(shape):
    with pytest.raises(ShapeError, match=r"outlier_mean must have shape \(d,\) = \(6,\)"):
        nc5(collapsed().moments(), torch.ones(shape))


@pytest.mark.parametrize("convert", [torch.Tensor.numpy, torch.Tensor.tolist, torch.nn.Parameter])
def test_weights_come_in_arrays_lists_and_parameters(convert):
    problem, W, b = RANDOM["balanced"](), draw(5, 8), draw(5)
    moments = problem.moments()
    for metric in (metric for metric, _ in OF_VECTORS.values()):
        assert metric(convert(W)).item() == pytest.approx(metric(W).item(), nan_ok=True)
    for name, (metric, _) in OF_MOMENTS.items():
        found = metric(moments, convert(W), convert(b), "class")
        assert not found.requires_grad
        assert found.item() == metric(moments, W, b, "class").item(), name
    wanted = collapse_metrics(moments, W, b) | frame_metrics(moments, W)
    assert collapse_metrics(moments, convert(W), convert(b)) | frame_metrics(moments, convert(W)) == wanted
    assert nc5(moments, convert(W)[0]) == nc5(moments, W[0])


@pytest.mark.parametrize("shape", [(4, 1), (1, 4), (5,), (1,)])
def test_a_bias_of_another_shape_is_refused(shape):
    with pytest.raises(ShapeError, match="bias"):
        bias_collapse(collapsed().moments(), draw(4, 6), torch.ones(shape))


def test_metrics_follow_the_moments_however_they_change():
    problem = RANDOM["imbalanced"]()
    parts = list(zip(problem.features.split(9), problem.labels.split(9), strict=True))
    moments, fresh = (ClassMoments(4, 9, scatter=True) for _ in range(2))
    twin = ClassMoments(4, 9, scatter=True, packed=moments.packed)

    def update_without_gradients(h, y):
        with torch.inference_mode():
            moments.update(h, y)

    changes = [
        moments.update,
        twin.update,
        update_without_gradients,
        lambda h, y: moments.merge(ClassMoments.from_samples(h, y, 4)),
    ]
    for i, (h, y) in enumerate(parts):
        changes[i % 4](h, y)
        fresh.update(h, y)
        for metric in (nc1, vci, between_class_rank):
            alone = ClassMoments(4, 9, scatter=True, packed=fresh.packed.clone())
            assert metric(moments).item() == pytest.approx(metric(alone).item(), rel=1e-10, nan_ok=True)
    with torch.inference_mode():
        inference = problem.moments()
        assert nc1(inference).item() == pytest.approx(nc1(moments).item(), rel=1e-10)


# ---------------------------------------------------------------- laws

CLASSES = st.integers(2, 6)
DIMS = st.integers(1, 7)
SEEDS = st.integers(0, 10**6)


def drawn(seed, K, d):
    counts = [1 + (seed // (k + 1)) % 7 for k in range(K)]
    return scattered(draw(K, d, seed=seed), counts, 0.5, seed=seed)


@law
@given(SEEDS, CLASSES, DIMS, st.integers(-3, 3))
def test_rotation_scale_and_relabelling_change_nothing(seed, K, d, exponent):
    problem = drawn(seed, K, d)
    turn, scale = rotation(d, seed), 10.0**exponent
    names = torch.randperm(K, generator=torch.Generator().manual_seed(seed))
    W, b = draw(K, d, seed=seed + 3), draw(K, seed=seed + 4)
    twin_W, twin_b = torch.empty_like(W), torch.empty_like(b)
    twin_W[names], twin_b[names] = scale * W @ turn, scale**2 * b
    moments = problem.moments()
    twin = ClassMoments.from_samples(scale * problem.features @ turn, names[problem.labels], K, scatter=True)
    rtol = {"rel": 1e-7, "abs": 1e-9, "nan_ok": True}
    for name, (metric, _) in OF_VECTORS.items():
        if "variance" not in name:
            assert metric(twin).item() == pytest.approx(metric(moments).item(), **rtol), name
            assert metric(twin_W).item() == pytest.approx(metric(W).item(), **rtol), name
    for name, (metric, _) in OF_MOMENTS.items():
        if name == "nc5":
            continue
        degree = {"bias collapse": 2, "bias collapse, no bias": 2, "cdnv, power 2": -2}.get(name, 0)
        for weighting in WEIGHTINGS:
            wanted = metric(moments, W, b, weighting).item() * scale**degree
            assert metric(twin, twin_W, twin_b, weighting).item() == pytest.approx(wanted, **rtol), name
    assert nc0(twin_W).item() == pytest.approx(scale * nc0(W).item(), **rtol)


@law
@given(SEEDS, CLASSES, DIMS)
def test_documented_ranges(seed, K, d):
    problem = drawn(seed, K, d)
    moments, W = problem.moments(), draw(K, d, seed=seed + 3)
    slack = 1e-12
    for vectors in (moments, W):
        for metric, top in ((nc2_equiangularity, 1), (nc2_max_angle, 2), (nc2_gram, 2), (nc2_min_separation, 2)):
            assert -slack <= metric(vectors).item() <= top + slack
        assert nc2_equinorm(vectors).item() >= 0
        gap = nc2_etf_gap(vectors).item()
        assert (0 <= gap <= 1 + slack) if d >= K - 1 else math.isnan(gap)
    for weighting in WEIGHTINGS:
        rank = between_class_rank(moments, weighting=weighting).item()
        assert rank == min(K - 1, d)
        assert -1e-9 <= vci(moments, weighting=weighting).item() <= 1
        assert 0 <= nc3_distance(moments, W, weighting=weighting).item() <= 4 + slack
        assert 0 <= nc3_gram(moments, W, weighting=weighting).item() <= 2 + slack
        assert -slack <= nc3_alignment(moments, W, weighting=weighting).item() <= 2 + slack
        for variant in ("pinv", "pinv_sum", "ratio"):
            assert nc1(moments, variant, weighting=weighting).item() >= 0
    assert cdnv(moments).item() >= 0
    assert 0 <= nc5(moments, W[0]).item() <= 1 + slack


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_results_lie_where_the_input_lies():
    problem = RANDOM["absent classes"]()
    moments = ClassMoments.from_samples(problem.features.cuda(), problem.labels.cuda(), 6, scatter=True)
    W, b = draw(6, 7).cuda(), draw(6).cuda()
    for name, (metric, _) in OF_MOMENTS.items():
        assert metric(moments, W, b, "class").device.type == "cuda", name
    for name, (metric, _) in OF_VECTORS.items():
        assert metric(W).device.type == "cuda", name
