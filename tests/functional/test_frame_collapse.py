from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.problems import collapsed, draw, law, rotation, scattered, simplex
from tightframe import functional as F
from tightframe.errors import ArgumentError, DtypeError, NonFiniteError, ShapeError
from tightframe.moments import ClassMoments


def moments_of(*means):
    """One sample a class."""
    features = torch.tensor(means, dtype=torch.float64)
    return ClassMoments.from_samples(features, torch.arange(len(means)), len(means))


def literal(means, frame, in_span):
    """Return cosine errors, duality and alignments, one number after the other."""
    means, frame = means.numpy(), frame.double().numpy()
    if in_span:
        means = means @ np.linalg.pinv(frame, rcond=1e-6) @ frame

    def cosine(a, b):
        return a @ b / np.linalg.norm(a) / np.linalg.norm(b)

    K = len(frame)
    errors = [cosine(means[i], means[j]) - cosine(frame[i], frame[j]) for i in range(K) for j in range(i + 1, K)]
    duality = sum(
        np.sum((w / np.sqrt(np.sum(frame**2)) - m / np.sqrt(np.sum(means**2))) ** 2)
        for w, m in zip(frame, means, strict=True)
    )
    return errors, duality, [cosine(w, m) for w, m in zip(frame, means, strict=True)]


@law
@given(st.integers(0, 10**6), st.integers(2, 6), st.integers(1, 7), st.booleans())
def test_metrics_are_their_formulas(seed, K, d, in_span):
    frame = draw(K, d, seed=seed)
    moments = scattered(draw(K, d, seed=seed + 1), [1 + k for k in range(K)], 0.5, seed, offset=2.0).moments()
    errors, duality, alignments = literal(moments.mean, frame, in_span)
    near = {"rel": 1e-8, "abs": 1e-9}
    assert F.frame_cosine_error(moments, frame, in_span=in_span).item() == pytest.approx(
        np.mean(np.abs(errors)), **near
    )
    assert F.frame_cosine_error(moments, frame, "std", in_span=in_span).item() == pytest.approx(np.std(errors), **near)
    assert F.frame_duality(moments, frame, in_span=in_span).item() == pytest.approx(duality, **near)
    assert F.frame_alignment(moments, frame, in_span=in_span).tolist() == pytest.approx(alignments, **near)
    projected = moments.mean.numpy() @ np.linalg.pinv(frame.numpy(), rcond=1e-6) @ frame.numpy()
    outside = np.sum((moments.mean.numpy() - projected) ** 2) / np.sum(moments.mean.numpy() ** 2)
    assert F.outside_span(moments, frame).item() == pytest.approx(outside, **near)


def test_the_share_of_features_outside_is_that_of_the_samples():
    problem = scattered(draw(3, 6), [5, 2, 9], 0.7, offset=1.0)
    frame = draw(3, 6, seed=4)
    features = problem.features.numpy()
    projected = features @ np.linalg.pinv(frame.numpy()) @ frame.numpy()
    wanted = np.sum((features - projected) ** 2) / np.sum(features**2)
    found = F.outside_span(problem.moments(), frame, "features").item()
    assert found == pytest.approx(wanted, rel=1e-10)
    assert found != pytest.approx(F.outside_span(problem.moments(), frame).item(), rel=1e-3)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("turn", [False, True])
def test_at_collapse(dtype, turn):
    frame = simplex(5, 5) @ rotation(5) if turn else simplex(5, 5)
    frame = frame.to(dtype)
    moments = ClassMoments.from_samples(7 * frame.double(), torch.arange(5), 5, scatter=True)
    exact = 1e-12 if dtype == torch.float64 else 1e-6
    for name, value in F.frame_metrics(moments, frame).items():
        assert value.shape == ()
        assert value.dtype == torch.float64
        assert value.item() == pytest.approx(1 if "alignment" in name else 0, abs=exact), name


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_features_that_hide_where_no_logit_sees_them(dtype):
    # The simplex of four in four dimensions leaves one direction, along which all means share an offset.
    frame = simplex(4, 4).double() @ rotation(4)
    unused = torch.linalg.svd(frame)[2][3]
    moments = ClassMoments.from_samples(frame + 2 * unused, torch.arange(4), 4, scatter=True)
    values = F.frame_metrics(moments, frame.to(dtype))
    rounding = 4 * torch.finfo(dtype).eps
    assert values["frame.alignment"].item() == pytest.approx(1 / math.sqrt(5), abs=10 * rounding)
    assert values["frame.alignment.span"].item() == pytest.approx(1, abs=10 * rounding)
    assert values["frame.cosine_error"].item() == pytest.approx((4 - 1 / 3) / 5 + 1 / 3, abs=10 * rounding)
    assert values["frame.cosine_error.span"].item() == pytest.approx(0, abs=10 * rounding)
    assert values["frame.duality"].item() == pytest.approx(2 - 2 / math.sqrt(5), abs=10 * rounding)
    assert values["frame.duality.span"].item() == pytest.approx(0, abs=10 * rounding)
    assert values["frame.outside.means"].item() == pytest.approx(0.8, abs=10 * rounding)
    assert values["frame.outside.features"].item() == pytest.approx(0.8, abs=10 * rounding)


def test_absent_classes_are_left_out_of_all_but_the_span():
    frame = torch.eye(3, dtype=torch.float64)
    features = torch.tensor([[1.0, 0.0, 1.0], [0.0, 0.0, 2.0]])
    moments = ClassMoments.from_samples(features, torch.tensor([0, 2]), 3)
    assert F.frame_alignment(moments, frame).tolist() == pytest.approx([math.sqrt(0.5), 1])
    assert F.frame_cosine_error(moments, frame).item() == pytest.approx(math.sqrt(0.5))
    # The second axis is the absent class's, and still one that a logit sees.
    assert F.outside_span(ClassMoments.from_samples(features.roll(1, 1), torch.tensor([0, 2]), 3), frame).item() == 0


def test_limits_are_nan():
    frame = torch.eye(2)
    one = ClassMoments.from_samples(torch.ones(1, 2), torch.tensor([0]), 2)
    assert F.frame_cosine_error(one, frame).isnan()
    assert F.frame_cosine_error(one, frame, "std").isnan()
    assert F.frame_duality(one, frame).isnan()
    empty = ClassMoments(2, 2, scatter=True)
    values = F.frame_metrics(empty, frame)
    assert all(value.isnan() for value in values.values())
    zero = moments_of((0.0, 0.0), (0.0, 3.0))
    assert F.frame_alignment(zero, frame).isnan().tolist() == [True, False]
    assert F.frame_cosine_error(zero, frame).isnan()


def test_a_mean_at_right_angles_to_the_span_has_no_direction_in_it():
    turn = rotation(3)
    frame = torch.tensor([[1.0, 0, 0], [-1.0, 0, 0]], dtype=torch.float64) @ turn
    features = torch.tensor([[0.0, 5, 1], [-2.0, 1, 0]], dtype=torch.float64) @ turn
    moments = ClassMoments.from_samples(features, torch.tensor([0, 1]), 2)
    alignment = F.frame_alignment(moments, frame, in_span=True)
    assert alignment[0].isnan()
    assert alignment[1].item() == pytest.approx(1, rel=1e-12)


@pytest.mark.parametrize(("size", "outside"), [(1e-8, 0.5), (1e-4, 0.0)])
def test_which_directions_the_span_holds(size, outside):
    frame = torch.diag(torch.tensor([1.0, size], dtype=torch.float64)) @ rotation(2)
    moments = moments_of(*rotation(2).tolist())
    assert F.outside_span(moments, frame).item() == pytest.approx(outside, abs=1e-14)


@pytest.mark.parametrize(
    ("frame", "error", "message"),
    [
        (torch.ones(6, 4), ShapeError, r"must have shape \(K, d\) = \(4, 6\), got \(6, 4\)"),
        (torch.ones(4, 6).long(), DtypeError, "floating-point"),
        (torch.full((4, 6), torch.nan), NonFiniteError, "finite"),
    ],
)
@pytest.mark.parametrize(
    "call", [F.frame_cosine_error, F.frame_duality, F.frame_alignment, F.outside_span, F.frame_metrics]
)
def test_bad_frames(call, frame, error, message):
    with pytest.raises(error, match=message):
        call(collapsed().moments(scatter=False), frame)


@pytest.mark.parametrize(
    ("call", "option", "message"),
    [
        (F.frame_cosine_error, "max", "statistic must be one of 'mean', 'std', got 'max'"),
        (F.outside_span, "all", "variant must be one of 'means', 'features', got 'all'"),
        (F.outside_span, "features", "scatter"),
    ],
)
def test_bad_options(call, option, message):
    with pytest.raises(ArgumentError, match=message):
        call(collapsed().moments(scatter=False), torch.ones(4, 6), option)
