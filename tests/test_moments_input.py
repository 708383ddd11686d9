from __future__ import annotations

import pickle

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tightframe.errors import (
    ArgumentError,
    DeviceError,
    DtypeError,
    EmptyDataError,
    LabelError,
    NonFiniteError,
    ShapeError,
)
from tightframe.moments import ClassMoments

from .problems import UNEVEN, assert_same, batches, collapsed, draw, law

NAN, INF = float("nan"), float("inf")


def bad(features=None, labels=None, **changes):
    features = UNEVEN.features[:6].clone() if features is None else features
    labels = torch.tensor([4, 4, 0, 2, 3, 4]) if labels is None else labels
    for place, value in changes.pop("at", {}).items():
        (features if isinstance(place, tuple) else labels)[place] = value
    return features, labels


BAD = {
    "label too large": (bad(at={3: 5}), LabelError, r"labels must lie in 0..4 \(K = 5\), got 5 \(1 of 6"),
    "label negative": (bad(at={3: -1}), LabelError, "got -1 .* ignore_index=-1"),
    "-100 is not ignored": (bad(at={3: -100, 5: -100}), LabelError, r"got -100 \(2 of 6 out of range\)"),
    "NaN": (bad(at={(3, 2): NAN}), NonFiniteError, "features must be finite, got 1 NaN or infinite"),
    "NaN in a seen class": (
        bad(labels=torch.tensor([0, 1, 0, 1, 0, 0]), at={(2, 0): NAN}),
        NonFiniteError,
        "features must be finite",
    ),
    "NaN in the first of a new class": (bad(at={(0, 0): NAN}), NonFiniteError, "features must be finite"),
    "NaN in the second of a new class": (bad(at={(1, 0): NAN}), NonFiniteError, "features must be finite"),
    "infinity": (bad(at={(5, 6): -INF}), NonFiniteError, "features must be finite"),
    "opposite infinities": (bad(at={(4, 1): INF, (4, 2): -INF}), NonFiniteError, "got 2 NaN or infinite"),
    "squares overflow": (bad(at={(1, 0): 1e200}), NonFiniteError, "squares within float64"),
    "too wide": (bad(draw(6, 8)), ShapeError, "features must have width d = 7, got 8"),
    "vector": (bad(draw(6)), ShapeError, r"features must have shape \(B, d\), got \(6,\)"),
    "image": (bad(draw(6, 7, 1)), ShapeError, r"features must have shape \(B, d\), got \(6, 7, 1\)"),
    "integer features": (bad(torch.ones(6, 7).long()), DtypeError, "floating-point tensor, got torch.int64"),
    "complex features": (bad(torch.ones(6, 7) * 1j), DtypeError, "floating-point tensor, got torch.complex64"),
    "rows of unequal length": (([[1.0] * 7] * 5 + [[1.0]], [0] * 6), DtypeError, r"equal rows, got list"),
    "words": ((draw(6, 7), ["a"] * 6), DtypeError, "labels must be a tensor, a numpy array or a list of numbers"),
    "bool labels": (bad(labels=torch.ones(6).bool()), DtypeError, "integer tensor, got torch.bool"),
    "float labels": (bad(labels=torch.ones(6)), DtypeError, "integer tensor, got torch.float32"),
    "one-hot labels": (bad(labels=torch.ones(6, 5).long()), ShapeError, r"\(B,\) = \(6,\), .*labels.argmax\(dim=1\)"),
    "soft labels": (bad(labels=torch.ones(6, 5)), DtypeError, r"got torch.float32.*labels.argmax\(dim=1\) of .*soft"),
    "too few labels": (bad(labels=torch.ones(5).long()), ShapeError, r"= \(6,\), got \(5,\)"),
    "labels elsewhere": (bad(labels=torch.ones(6).long().to("meta")), DeviceError, "labels are on meta"),
    "both elsewhere": (
        (draw(6, 7).to("meta"), torch.ones(6).long().to("meta")),
        DeviceError,
        "features are on meta and the moments on cpu",
    ),
}


@pytest.mark.parametrize("name", BAD)
@pytest.mark.parametrize("read", [False, True])
def test_bad_input_raises_and_changes_no_bit(name, read):
    batch, error, message = BAD[name]
    moments = ClassMoments(5, 7, scatter=True)
    moments.update(UNEVEN.features[:3], torch.tensor([0, 0, 1]))
    if read:
        assert moments.count.sum() == 3
    before = moments.packed.clone()
    with pytest.raises(error, match=message):
        moments.update(*batch)
    changed = (moments.packed != before).nonzero().squeeze(1).tolist()
    assert changed == []
    moments.update(UNEVEN.features[3:5], torch.tensor([4, 2]))
    assert moments.count.tolist() == [2, 1, 1, 0, 1]


@pytest.mark.parametrize(("place", "error"), [((599, 199), NonFiniteError), (599, LabelError)])
@pytest.mark.parametrize("scatter", [False, True])
def test_bad_input_at_the_end_of_a_long_batch_changes_no_bit(place, error, scatter, monkeypatch):
    monkeypatch.setattr("tightframe.moments.CHUNK", 500)
    moments = ClassMoments(3, 200, scatter=scatter)
    features, labels = draw(600, 200).float(), torch.arange(600) % 3
    moments.update(features[:2], labels[:2])
    before = moments.packed.clone()
    (features if isinstance(place, tuple) else labels)[place] = 10**9 if error is LabelError else NAN
    with pytest.raises(error):
        moments.update(features, labels)
    assert torch.equal(moments.packed, before)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_lengths_that_overflow_in_the_type_of_the_features_are_fine(dtype, monkeypatch):
    monkeypatch.setattr("tightframe.moments.CHUNK", 1)
    largest = torch.full((3, 2), torch.finfo(dtype).max, dtype=dtype)
    moments = ClassMoments.from_samples(largest * torch.tensor([[1], [-1], [1]], dtype=dtype), torch.zeros(3).long(), 1)
    assert moments.trace.item() == pytest.approx(2 * torch.finfo(dtype).max ** 2 * (3 - 1 / 3), rel=1e-12)


def test_a_failed_update_leaves_no_trace_in_a_later_merge():
    moments = ClassMoments(1, 1)
    with pytest.raises(NonFiniteError):
        moments.update(torch.tensor([[1e16], [NAN]], dtype=torch.float64), torch.tensor([0, 0]))
    moments.merge(ClassMoments.from_samples(torch.tensor([[0.25]]), torch.tensor([0]), 1, scatter=False))
    assert moments.mean.tolist() == [[0.25]]


@pytest.mark.parametrize("rows", [1, 50])
def test_squares_that_overflow_are_refused_in_one_dimension_too(rows, monkeypatch):
    monkeypatch.setattr("tightframe.moments.CHUNK", 1)
    moments = ClassMoments(1, 1)
    moments.update(torch.zeros(1, 1), torch.tensor([0]))
    before = moments.packed.clone()
    with pytest.raises(NonFiniteError, match="squares within float64"):
        moments.update(torch.tensor([[0.0]] * (rows - 1) + [[1e200]], dtype=torch.float64), torch.zeros(rows).long())
    assert torch.equal(moments.packed, before)


@pytest.mark.parametrize(
    ("features", "labels", "error", "message"),
    [
        (draw(3), [0, 0, 0], ShapeError, "features must have shape"),
        (draw(3, 2), [0, 0], ShapeError, "labels must have shape"),
        (draw(3, 2), [0, 1, 0], LabelError, "got 1"),
        (torch.full((1, 2), INF), [0], NonFiniteError, "finite"),
    ],
)
def test_from_samples_checks_too(features, labels, error, message):
    with pytest.raises(error, match=message):
        ClassMoments.from_samples(features, labels, 1)


@pytest.mark.parametrize("value", [0, -1, 2.0, True, "3"])
def test_sizes_are_positive_integers(value):
    with pytest.raises(ArgumentError, match="num_classes must be an integer >= 1"):
        ClassMoments(value, 1)
    with pytest.raises(ArgumentError, match="dim must be an integer >= 1"):
        ClassMoments(1, value)


@pytest.mark.parametrize(
    ("read", "error", "message"),
    [
        (lambda moments: moments.scatter, ArgumentError, r"hold no scatter.*scatter=True"),
        (lambda moments: moments.global_mean("class"), EmptyDataError, "no sample was seen"),
        (lambda moments: moments.global_mean("sample"), EmptyDataError, "no sample was seen"),
        (lambda moments: moments.centered_means(), EmptyDataError, "no sample was seen"),
        (lambda moments: moments.global_mean("balanced"), ArgumentError, "'class', 'sample', got 'balanced'"),
    ],
)
def test_reading_what_is_not_there(read, error, message):
    with pytest.raises(error, match=message):
        read(ClassMoments(2, 3))


def test_an_empty_batch_changes_no_bit():
    moments = UNEVEN.moments()
    before = moments.packed.clone()
    moments.update(torch.zeros(0, 7), torch.zeros(0).long())
    moments.update(draw(2, 7), torch.tensor([-100, -100]), ignore_index=-100)
    assert torch.equal(moments.packed, before)
    assert ClassMoments.from_samples(torch.zeros(0, 7), torch.zeros(0).long(), 5).count.tolist() == [0.0] * 5


# ---------------------------------------------------------------- ignored labels, and the path for accelerators


UPDATES = [ClassMoments._update_checked, ClassMoments._update_masked]
both_paths = pytest.mark.parametrize("update", UPDATES, ids=["checked", "masked"])


@both_paths
@pytest.mark.parametrize("ignore_index", [-100, 255, 3])
def test_ignored_samples_are_as_if_never_there(update, ignore_index):
    features, labels = UNEVEN.features.clone(), UNEVEN.labels.clone()
    labels[::4] = ignore_index
    keep = labels != ignore_index
    features[~keep] = NAN
    moments = ClassMoments(5, 7, scatter=True)
    for h, y in batches(features, labels, 16):
        update(moments, h, y, ignore_index)
    assert_same(moments, ClassMoments.from_samples(features[keep], labels[keep], 5, scatter=True))


@both_paths
@pytest.mark.parametrize("label", [-1, -101, 5, 255])
def test_no_other_stray_label_is_ignored(update, label):
    moments = ClassMoments(5, 1)
    with pytest.raises(LabelError):
        _ = update(moments, torch.ones(3, 1), torch.tensor([0, -100, label]), -100) or moments.count


@pytest.mark.parametrize(
    ("dtype", "label", "ignore_index"),
    [(np.uint8, 156, -100), (np.int8, -1, 255), (np.uint16, 2**16 - 100, -100), (np.uint64, 2**64 - 100, -100)],
)
def test_an_ignored_label_that_the_type_cannot_hold_ignores_nothing(dtype, label, ignore_index):
    # Compared in the type of the labels, or cast to that of the other, one would be the other.
    moments = ClassMoments(200, 1)
    labels = torch.from_numpy(np.array([0, label], dtype))
    if label == 156:
        moments.update(torch.ones(2, 1), labels, ignore_index)
        assert moments.count.nonzero().squeeze(1).tolist() == [0, 156]
    else:
        with pytest.raises(LabelError):
            moments.update(torch.ones(2, 1), labels, ignore_index)


@law
@given(
    st.integers(0, 10**6),
    st.integers(1, 6),
    st.integers(1, 5),
    st.sampled_from([torch.float64, torch.bfloat16]),
    st.booleans(),
)
def test_masked_path_gives_what_the_checked_path_gives(seed, updates, size, dtype, read):
    generator = torch.Generator().manual_seed(seed)
    masked, checked = ClassMoments(3, 2, scatter=True), ClassMoments(3, 2, scatter=True)
    for i in range(updates):
        labels = torch.randint(-1, 3, (size,), generator=generator)
        features = (5 + draw(size, 2, seed=seed + i)).to(dtype)
        checked._update_checked(features, labels, -1)
        masked._update_masked(features, labels, -1)
        if read:
            assert_same(masked, checked, rtol=1e-11, atol=1e-13)
    assert_same(masked, checked, rtol=1e-11, atol=1e-13)
    assert masked._bad.tolist() == [0, 0]


def test_masked_path_keeps_exact_collapse():
    problem = collapsed()
    moments = ClassMoments(4, 6, scatter=True)
    for h, y in batches(problem.features / 3, problem.labels, 3):
        moments._update_masked(h, y, None)
    assert moments.trace.tolist() == [0.0] * 4
    assert not moments.scatter.any()


@pytest.mark.parametrize(
    ("changes", "counters", "error", "message"),
    [
        ({5: 5, 6: -1}, [2, 0], LabelError, r"labels must lie in 0..4, got 2 samples out of range"),
        ({(3, 1): NAN, (3, 2): NAN, (8, 0): INF}, [0, 2], NonFiniteError, "got 2 samples with NaN or infinity"),
        ({5: 5, (8, 0): INF}, [1, 1], LabelError, "got 1 samples"),
        ({5: -100}, [0, 0], None, ""),
        ({5: -100, (5, 0): NAN}, [0, 0], None, ""),
    ],
)
def test_masked_path_counts_bad_samples_and_reading_raises(changes, counters, error, message):
    features, labels = bad(UNEVEN.features[:20].clone(), UNEVEN.labels[:20].clone(), at=changes)
    moments = ClassMoments(5, 7, scatter=True)
    moments._update_masked(features, labels, -100)
    moments._update_masked(UNEVEN.features[20:], UNEVEN.labels[20:], None)
    assert moments._bad.tolist() == counters
    if error is None:
        assert moments.count.sum() == 63
        return
    for read in (lambda: moments.count, lambda: moments.mean, lambda: moments.trace, lambda: moments.scatter):
        with pytest.raises(error, match=message):
            read()
    with pytest.raises(error, match=message):
        _ = pickle.loads(pickle.dumps(moments)).present
    whole = ClassMoments(5, 7, scatter=True)
    with pytest.raises(error, match=message):
        whole.merge(moments)


@pytest.mark.parametrize("value", [1e20, NAN])
def test_a_batch_that_is_ignored_whole_leaves_no_trace_in_a_later_merge(value):
    moments = ClassMoments(1, 1)
    moments._update_masked(torch.tensor([[value]]), torch.tensor([-100]), -100)
    assert moments.count.tolist() == [0]
    assert moments.mean.tolist() == [[0]]
    assert moments.trace.tolist() == [0]
    moments.merge(ClassMoments.from_samples(torch.tensor([[0.25]]), torch.tensor([0]), 1, scatter=False))
    assert moments.mean.tolist() == [[0.25]]
