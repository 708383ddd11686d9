"""Collapse metrics of features of every precision, size and number."""

from __future__ import annotations

import mpmath
import pytest
import torch

from tightframe.functional import (
    between_class_rank,
    frame_alignment,
    frame_metrics,
    nc1,
    nc3_alignment,
    vci,
)
from tightframe.moments import ClassMoments

from ..problems import Problem, collapsed, draw, scattered
from .literal import OF_MOMENTS, OF_VECTORS, RANDOM

DTYPES = [torch.float64, torch.float32, torch.float16, torch.bfloat16]


def of_rank_8(n, offset):
    """Twenty classes in eight of 64 dimensions, far from the origin, each of n samples."""
    labels = torch.arange(20).repeat_interleave(n)
    plane = torch.linalg.qr(draw(64, 8)).Q
    within = 0.3 * draw(20, n, 8, seed=2)
    coordinates = draw(20, 8, seed=1).unsqueeze(1) + within - within.mean(dim=1, keepdim=True)
    return offset * draw(64, seed=3) + coordinates.flatten(0, 1) @ plane.T, labels


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("n", "offset"), [(2, 0), (30, 0), (30, 3), (400, 0)])
def test_the_rounding_of_features_is_no_direction_of_their_means(dtype, n, offset):
    features, labels = of_rank_8(n, offset)
    wanted = nc1(ClassMoments.from_samples(features, labels, 20)).item()
    moments = ClassMoments.from_samples(features.to(dtype), labels, 20)
    for weighting in ("class", "sample"):
        assert between_class_rank(moments, weighting=weighting).item() == 8
    assert nc1(moments).item() == pytest.approx(wanted, rel=0.02)


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_gap_that_many_samples_resolve_counts_though_it_is_below_epsilon(dtype):
    # Three classes on integers that every type holds; two of them differ by 1/4, of a size of 64 and more.
    steps = torch.arange(-8.0, 9.0).repeat(40)
    samples = torch.stack([64 + steps, torch.zeros_like(steps), steps.roll(1)], dim=1)
    features = torch.cat([samples, samples, samples.roll(1, 1)])
    features[: len(steps) // 4, 0] += 1
    moments = ClassMoments.from_samples(features.to(dtype), torch.arange(3).repeat_interleave(len(steps)), 3)
    assert between_class_rank(moments).item() == 2


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_mean_at_right_angles_to_the_span_of_a_frame_has_no_angle_there(dtype):
    turn = torch.linalg.qr(draw(8, 8)).Q
    features = (draw(40, 6, seed=1) + 3) @ turn[:6]
    features[:20] += turn[6]
    moments = ClassMoments.from_samples(features.to(dtype), torch.arange(2).repeat_interleave(20), 2)
    found = frame_alignment(moments, torch.stack([turn[6], turn[7]]), in_span=True)
    assert found.tolist() == [pytest.approx(1, abs=0.01), pytest.approx(torch.nan, nan_ok=True)]


# ---------------------------------------------------------------- near collapse


@mpmath.workdps(100)
def exact_vci(problem, weighting, variant):
    h = mpmath.matrix(problem.features.tolist())
    member = [[k for k, y in enumerate(problem.labels.tolist()) if y == c] for c in range(problem.num_classes)]
    mean = [sum((h[i, :] for i in rows), mpmath.zeros(1, h.cols)) / len(rows) for rows in member]
    within = sum(
        (z.T * z for rows, m in zip(member, mean, strict=True) for z in (h[i, :] - m for i in rows)), 0 * h.T * h
    )
    share = [mpmath.mpf(1) / len(member) if weighting == "class" else mpmath.mpf(len(rows)) / h.rows for rows in member]
    origin = sum((s * m for s, m in zip(share, mean, strict=True)), mpmath.zeros(1, h.cols))
    between = sum(((m - origin).T * (m - origin) for m in mean), 0 * within) / len(mean)
    values, vectors = mpmath.eigsy(within / h.rows + between)
    values, tiny = list(values), mpmath.mpf(10) ** -80
    explained = [
        (vectors[:, j].T * between * vectors[:, j])[0] / value
        for j, value in enumerate(values)
        if value > tiny * max(values)
    ]
    of_means = list(mpmath.eigsy(between, eigvals_only=True))
    rank = sum(value > tiny * max(of_means) for value in of_means)
    return float(1 - mpmath.fsum(explained) / (rank if variant == "rank" else min(h.cols, len(mean) - 1)))


def in_a_plane(sigma):
    """Four classes near a line of a space, samples in a plane that holds the line."""
    problem = scattered(draw(4, 2) * torch.tensor([1.0, 0.0]), [4, 3, 5, 2], sigma)
    return Problem(
        problem.features @ torch.tensor([[1.0, 0, 2, 0], [0, 1, 0, 1]]).double(), problem.labels, 4, (0, 1, 2, 3)
    )


@pytest.mark.parametrize(("variant", "weighting"), [("bound", "class"), ("rank", "sample")])
@pytest.mark.parametrize("sigma", [1.0, 2.0**-24, 2.0**-40])
@pytest.mark.parametrize(
    "make",
    [
        lambda sigma: scattered(draw(3, 5), [9, 4, 6], sigma),
        lambda sigma: scattered(draw(7, 3), [4] * 7, sigma),
        lambda sigma: scattered(draw(3, 5) * torch.tensor([1, 1e-1, 1e-2, 1e-3, 1e-4]), [9, 4, 6], 1e-3 * sigma),
        in_a_plane,
    ],
    ids=["d > K", "K > d", "means of several scales", "in a plane"],
)
def test_vci_keeps_its_digits_near_collapse(make, sigma, weighting, variant):
    problem = make(sigma)
    wanted = exact_vci(problem, weighting, variant)
    assert vci(problem.moments(), variant, weighting=weighting).item() == pytest.approx(wanted, rel=1e-8, abs=1e-30)


def test_vci_is_zero_where_samples_vary_in_directions_of_their_own_alone():
    features = torch.zeros(4, 5)
    features[:, 0] = torch.tensor([2.0, 2.0, -2.0, -2.0])
    features[:, 3] = torch.tensor([1.0, -1.0, 1.0, -1.0])
    moments = ClassMoments.from_samples(features, torch.tensor([0, 0, 1, 1]), 2)
    assert vci(moments).item() == pytest.approx(0, abs=1e-30)


@pytest.mark.parametrize("size", [1e-3, 1e-8, 1e-14])
def test_alignment_keeps_its_digits_near_collapse(size):
    moments, noise = collapsed().moments(), draw(4, 6)
    weight = moments.centered_means() + size * noise
    with mpmath.workdps(60):
        gaps = []
        for w, a in zip(weight.tolist(), moments.centered_means().tolist(), strict=True):
            w, a = mpmath.matrix(w), mpmath.matrix(a)
            gaps.append(1 - (w.T * a)[0] / (mpmath.norm(w) * mpmath.norm(a)))
        wanted = float(mpmath.fsum(gaps) / 4)
    assert nc3_alignment(moments, weight).item() == pytest.approx(wanted, rel=max(1e-12, 1e-14 / size))


# ---------------------------------------------------------------- size and number


def all_metrics(problem, scale=1.0):
    """Return every metric of scaled features and classifier by name; those with a unit in that unit."""
    features, W, b = problem.features * scale, draw(problem.num_classes, problem.features.shape[1], seed=5), draw(9)
    moments = ClassMoments.from_samples(features, problem.labels, problem.num_classes)
    unit = {"cdnv, power 2": scale**-2, "bias collapse": scale**2, "bias collapse, no bias": scale**2}
    values = {name: metric(moments) for name, (metric, _) in OF_VECTORS.items()}
    values |= {f"{name} of W": metric(W * scale) for name, (metric, _) in OF_VECTORS.items()}
    for name, (metric, _) in OF_MOMENTS.items():
        found = metric(moments, W * scale, b[: problem.num_classes] * scale**2, "sample")
        values[name] = found / unit.get(name, 1)
    return {name: value.item() for name, value in (values | frame_metrics(moments, W * scale)).items()}


@pytest.mark.parametrize("data", ["absent classes", "K > d"])
@pytest.mark.parametrize("exponent", [-300, 300])
def test_features_and_weights_of_any_size(data, exponent):
    problem = RANDOM[data]()
    found = all_metrics(problem, 2.0**exponent)
    assert found == pytest.approx(all_metrics(problem), rel=1e-12, abs=1e-15, nan_ok=True)


@pytest.mark.parametrize("data", ["absent classes", "K > d"])
def test_all_pairs_block_by_block(data, monkeypatch):
    problem = RANDOM[data]()
    wanted = all_metrics(problem)
    for module in ("tightframe.linalg", "tightframe.functional.geometry"):
        monkeypatch.setattr(f"{module}.BLOCK", 2 * problem.num_classes)
    assert all_metrics(problem) == pytest.approx(wanted, rel=1e-11, abs=1e-14, nan_ok=True)
