"""Collapse metrics of features of every precision, size and number."""

from __future__ import annotations

import pytest
import torch

from tightframe.functional import ClassMoments, between_class_rank, frame_alignment, nc1

from ..problems import draw

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
