from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tightframe.errors import DtypeError, EmptyDataError, LabelError, NonFiniteError, ShapeError
from tightframe.functional import (
    cosine_margins,
    nc4_agreement,
    ncc_accuracy,
    nearest_class_center,
    numerical_rank,
)
from tightframe.moments import ClassMoments

from ..problems import collapsed, draw, exact_statistics, law, rotation, scattered, simplex

NAN, INF = float("nan"), float("inf")


def literal_nearest(problem, features):
    exact = exact_statistics(problem.features, problem.labels)
    h = features.double().numpy().astype(np.longdouble)
    distances = np.square(h[:, None, :] - exact.mean[None]).sum(axis=-1)
    return exact.classes[distances.argmin(axis=1)].tolist()


def on_a_line(*points):
    """One class at each point."""
    features = torch.tensor(points, dtype=torch.float64).unsqueeze(1)
    return ClassMoments.from_samples(features, torch.arange(len(points)), len(points))


# ---------------------------------------------------------------- nearest class mean


@pytest.mark.parametrize("counts", [[20] * 6, [50, 1, 9, 2, 30, 7], [0, 20, 0, 9, 9, 0]])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_nearest_center_is_the_least_distance(counts, dtype):
    problem = scattered(draw(6, 5), counts, 2.0)
    queries = (3 * draw(200, 5, seed=8)).to(dtype)
    found = nearest_class_center(queries, problem.moments(scatter=False))
    assert found.dtype == torch.int64
    assert found.tolist() == literal_nearest(problem, queries)


@law
@given(st.integers(0, 10**6), st.integers(1, 6), st.integers(1, 5), st.floats(-1e4, 1e4))
def test_nearest_center_law(seed, K, d, offset):
    problem = scattered(draw(K, d, seed=seed), [1 + (seed + k) % 4 for k in range(K)], 1.0, seed, offset=offset)
    queries = offset + draw(20, d, seed=seed + 1)
    assert nearest_class_center(queries, problem.moments(scatter=False)).tolist() == literal_nearest(problem, queries)


@pytest.mark.parametrize(
    ("dtype", "ratio"), [(torch.float32, 1e3), (torch.float32, 3e3), (torch.float32, 3e4), (torch.float64, 1e8)]
)
def test_means_far_longer_than_their_separation(dtype, ratio):
    means = draw(10, 64)
    problem = scattered(means, [30] * 10, 0.3, offset=0.0)
    away = draw(1, 64, seed=4)
    shift = ratio * torch.cdist(means, means).max() * away / away.norm()
    features = (problem.features + shift).to(dtype)
    moments = ClassMoments.from_samples(features, problem.labels, 10)
    shifted = type(problem)(features, problem.labels, 10, problem.merged)
    wanted = literal_nearest(shifted, features)
    assert nearest_class_center(features, moments).tolist() == wanted


def test_of_equally_near_classes_the_first():
    moments = on_a_line(5.0, 1.0, 1.0, 3.0)
    assert nearest_class_center(torch.tensor([[1.0], [0.0], [2.0]]).double(), moments).tolist() == [1, 1, 1]
    twins = on_a_line(*[0.1] * 4)
    assert nearest_class_center(torch.tensor([[7.0]]), twins).tolist() == [0]


def test_absent_classes_are_never_chosen():
    moments = ClassMoments.from_samples(torch.tensor([[50.0], [60.0]]), torch.tensor([3, 1]), 5)
    assert nearest_class_center(draw(0, 1), moments).tolist() == []
    # An absent class at the origin would be nearest.
    assert nearest_class_center(torch.tensor([[0.0], [-9.0], [58.0]]), moments).tolist() == [3, 3, 1]


def test_accuracy_by_hand():
    moments = on_a_line(0.0, 4.0)
    features = torch.tensor([[1.0], [3.0], [1.5], [9.0]])
    for dtype in (torch.int64, torch.uint8):
        accuracy = ncc_accuracy(features, torch.tensor([0, 1, 1, 1], dtype=dtype), moments)
        assert (accuracy.item(), accuracy.dtype, accuracy.shape) == (0.75, torch.float64, torch.Size())


# ---------------------------------------------------------------- agreement with the network


@pytest.mark.parametrize("offset", [0.0, 1.0, 10.0])
def test_a_head_that_is_the_nearest_mean_with_its_bias_agrees_everywhere(offset):
    problem = scattered(draw(10, 32), [30] * 10, 1.0, offset=offset)
    moments = problem.moments(scatter=False)
    W = moments.mean
    b = -W.square().sum(dim=1) / 2
    logits = problem.features @ W.T + b
    assert nc4_agreement(problem.features, logits, moments).item() == 1
    assert nc4_agreement(problem.features.float(), logits.float(), moments).item() == 1
    without_bias = nc4_agreement(problem.features, logits - b, moments).item()
    if offset:  # which is what leaving out the bias would report
        assert without_bias < 0.95


def test_agreement_by_hand():
    moments = on_a_line(0.0, 4.0, 8.0)
    features = torch.tensor([[0.0], [4.0], [8.0], [8.0]])
    logits = torch.tensor([[2.0, 1, 0], [0, 1, 2], [0, 1, 2], [0, 0, -1]])
    agreement = nc4_agreement(features, logits, moments)
    assert (agreement.item(), agreement.dtype, agreement.shape) == (0.5, torch.float64, torch.Size())
    assert nc4_agreement(features, logits.bfloat16().requires_grad_(), moments).item() == 0.5


# ---------------------------------------------------------------- cosine margins


@pytest.mark.parametrize("K", [2, 3, 10])
@pytest.mark.parametrize("offset", [0.0, 7.0])
def test_margins_at_collapse(K, offset):
    labels = torch.arange(K).repeat(3)
    features = offset + 5 * simplex(K, 12)[labels]
    moments = ClassMoments.from_samples(features, labels, K)
    # A common shift of the rows, such as training leaves, does not matter.
    margins = cosine_margins(features, labels, moments, 0.2 * simplex(K, 12) + draw(12))
    assert margins.shape == (3 * K,)
    assert margins.dtype == torch.float64
    torch.testing.assert_close(margins, torch.full_like(margins, K / (K - 1)), rtol=1e-12, atol=0)
    mistaken = cosine_margins(features, (labels + 1) % K, moments, simplex(K, 12))
    torch.testing.assert_close(mistaken, -margins, rtol=1e-12, atol=0)


def test_margins_are_their_formula():
    problem = scattered(draw(4, 6), [20, 9, 2, 1], 1.5, offset=3.0)
    W = draw(4, 6, seed=5)
    found = cosine_margins(problem.features.requires_grad_(), problem.labels, problem.moments(), W.requires_grad_())
    exact = exact_statistics(problem.features.detach(), problem.labels)
    center, rows = exact.mean.mean(axis=0), W.detach().numpy() - W.detach().numpy().mean(axis=0)
    for i, (h, y) in enumerate(zip(problem.features.detach().numpy(), problem.labels.tolist(), strict=True)):
        cosines = [(h - center) @ w / np.linalg.norm((h - center).astype(float)) / np.linalg.norm(w) for w in rows]
        rivals = [c for k, c in enumerate(cosines) if k != y]
        assert found[i].item() == pytest.approx(float(cosines[y] - max(rivals)), rel=1e-12, abs=1e-14)
    assert not found.requires_grad
    assert found.abs().max() <= 2


def test_a_sample_at_the_global_mean_has_no_margin():
    features = torch.tensor([[1.0, 0.0], [-1.0, 0.0], [0.0, 0.0]])
    moments = ClassMoments.from_samples(features[:2], torch.tensor([0, 1]), 2)
    margins = cosine_margins(features, torch.tensor([0, 1, 0]), moments, torch.eye(2))
    assert margins[:2].tolist() == pytest.approx([math.sqrt(2)] * 2, rel=1e-14)
    assert margins[2].isnan()


# ---------------------------------------------------------------- numerical rank


def test_numerical_rank_by_hand():
    # Singular values (1, 1), (5, 0) and (4, 2): ranks 2, 1 and 36/20.
    H = torch.tensor([[1.0, 0.0], [0.0, 1.0], [3.0, 4.0], [4.0, 0.0], [0.0, -2.0]])
    labels = torch.tensor([0, 0, 4, 2, 2])
    rank = numerical_rank(H, labels, 5)
    assert rank.item() == pytest.approx((2 + 1 + 1.8) / 3, rel=1e-14)
    assert (rank.dtype, rank.shape) == (torch.float64, torch.Size())
    order = torch.tensor([3, 0, 2, 4, 1])
    assert numerical_rank(H[order], labels[order].int(), 7).item() == pytest.approx(rank.item(), rel=1e-14)


def test_numerical_rank_does_not_center():
    problem = collapsed()
    assert numerical_rank(problem.features, problem.labels, 4).item() == pytest.approx(1, rel=1e-12)
    pair = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    far = numerical_rank(pair + 1e6, torch.zeros(2).long(), 1).item()
    assert far == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize(("n", "d"), [(3, 5), (7, 4), (1, 3)])
def test_numerical_rank_is_its_formula_and_does_not_turn(n, d):
    H, labels = draw(3 * n, d), torch.arange(3 * n) % 3
    found = numerical_rank(H, labels, 3).item()
    wanted = np.mean(
        [
            (np.linalg.norm(H[labels == k].numpy(), "nuc") / np.linalg.norm(H[labels == k].numpy())) ** 2
            for k in range(3)
        ]
    )
    assert found == pytest.approx(wanted, rel=1e-12)
    assert 1 - 1e-12 <= found <= min(n, d) + 1e-12
    assert numerical_rank(-3.7 * H @ rotation(d), labels, 3).item() == pytest.approx(found, rel=1e-12)


def test_a_class_of_zero_features_has_no_rank():
    assert math.isnan(numerical_rank(torch.zeros(2, 3), torch.tensor([0, 0]), 1).item())
    H = torch.tensor([[0.0, 0.0], [1.0, 0.0]])
    assert math.isnan(numerical_rank(H, torch.tensor([0, 1]), 2).item())
    assert numerical_rank(H, torch.tensor([0, 0]), 2).item() == pytest.approx(1, rel=1e-15)


# ---------------------------------------------------------------- bad input

MOMENTS = collapsed().moments()
WEIGHT = draw(4, 6)
OF_SAMPLES = {
    "ncc_accuracy": lambda h, y: ncc_accuracy(h, y, MOMENTS),
    "cosine_margins": lambda h, y: cosine_margins(h, y, MOMENTS, WEIGHT),
    "numerical_rank": lambda h, y: numerical_rank(h, y, 4),
}


SAMPLES, LABELS = draw(3, 6), torch.tensor([0, 1, 3])
BAD = [
    (SAMPLES[:0], LABELS[:0], EmptyDataError, "features must hold at least one sample"),
    *(
        (SAMPLES, torch.tensor(labels), LabelError, r"labels must lie in 0\.\.3")
        for labels in ([0, 1, 4], [0, -100, 1])
    ),
    *(
        (SAMPLES, LABELS.to(dtype), DtypeError, "labels must be an integer tensor")
        for dtype in (torch.float32, torch.bool)
    ),
    (SAMPLES, LABELS[:2], ShapeError, "labels must have shape"),
    (SAMPLES[0], LABELS, ShapeError, "features must have shape"),
    (SAMPLES.long(), LABELS, DtypeError, "features must be a floating-point tensor"),
    *(
        (SAMPLES.clone().index_fill_(0, LABELS[1:2], x), LABELS, NonFiniteError, "features must be finite")
        for x in (NAN, INF)
    ),
    (SAMPLES[:, :5], LABELS, ShapeError, "features must have width d = 6, got 5"),
]


@pytest.mark.parametrize(("features", "labels", "error", "message"), BAD)
@pytest.mark.parametrize("name", OF_SAMPLES)
def test_bad_samples(name, features, labels, error, message):
    if name == "numerical_rank" and "width" in message:
        return  # it knows no width
    with pytest.raises(error, match=message):
        OF_SAMPLES[name](features, labels)


@pytest.mark.parametrize(
    "call",
    [
        lambda empty: nearest_class_center(SAMPLES, empty),
        lambda empty: nc4_agreement(SAMPLES, draw(3, 4), empty),
        lambda empty: cosine_margins(SAMPLES, LABELS, empty, WEIGHT),
    ],
)
def test_moments_without_a_sample(call):
    with pytest.raises(EmptyDataError, match="no sample was seen"):
        call(ClassMoments(4, 6))


@pytest.mark.parametrize(
    ("logits", "error", "message"),
    [
        *((torch.ones(shape), ShapeError, r"\(B, K\) = \(3, 4\), got") for shape in ((3, 5), (2, 4), (3,), (3, 4, 1))),
        (torch.full((3, 4), NAN), NonFiniteError, "logits must be finite"),
    ],
)
def test_bad_logits(logits, error, message):
    with pytest.raises(error, match=message):
        nc4_agreement(SAMPLES, logits, MOMENTS)
    with pytest.raises(EmptyDataError):
        nc4_agreement(SAMPLES[:0], draw(0, 4), MOMENTS)


@pytest.mark.parametrize(
    ("weight", "error", "message"),
    [
        *((torch.ones(shape), ShapeError, r"\(K, d\) = \(4, 6\), got") for shape in ((3, 6), (4, 5), (4,))),
        (torch.full((4, 6), NAN), NonFiniteError, "weight must be finite"),
    ],
)
def test_bad_weights(weight, error, message):
    with pytest.raises(error, match=message):
        cosine_margins(SAMPLES, LABELS, MOMENTS, weight)
    with pytest.raises(ShapeError, match=r"weight must have shape \(K, d\) = \(2, 1\)"):
        cosine_margins(torch.ones(1, 1), torch.tensor([0]), on_a_line(1.0), torch.ones(1, 1))
