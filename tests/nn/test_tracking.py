"""The tracked means against sums written out."""

from __future__ import annotations

import copy
import io
import pickle

import pytest
import torch
from torch import nn

from tightframe.errors import (
    ArgumentError,
    DeviceError,
    DtypeError,
    EmptyDataError,
    LabelError,
    NonFiniteError,
    ShapeError,
)
from tightframe.nn import ClassMeanTracker

from ..problems import draw
from .nearest_material import K, assert_equal_states, batch, close, d, state_of


def means_by_hand(features, labels):
    """Centred class means and the global mean of one batch, sample by sample."""
    center = sum(features.double()) / len(features)
    means = torch.zeros(K, d, dtype=torch.float64)
    for k in range(K):
        mine = [h for h, y in zip(features.double(), labels, strict=True) if y == k]
        if mine:
            means[k] = sum(mine) / len(mine) - center
    return means, center


def fed(tracker, *batches):
    for features, labels in batches:
        tracker(features, labels)
    return tracker


# --- one batch ---


def test_starts_at_zero_in_float64():
    tracker = ClassMeanTracker(K, d)
    assert {name: (tuple(b.shape), b.dtype, b.count_nonzero().item()) for name, b in tracker.named_buffers()} == {
        "class_means": ((K, d), torch.float64, 0),
        "global_mean": ((d,), torch.float64, 0),
        "updates": ((K,), torch.int64, 0),
        "steps": ((), torch.int64, 0),
    }


@pytest.mark.parametrize("momentum", [None, 0.0, 0.9])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_the_first_batch_enters_whole(momentum, dtype):
    features, labels = batch(0, counts=(3, 1, 0, 4), dtype=dtype)
    tracker = ClassMeanTracker(K, d, momentum=momentum)
    means, center = tracker(features, labels)
    close(means, means_by_hand(features, labels)[0])
    close(center, means_by_hand(features, labels)[1])
    assert means[2].tolist() == [0.0] * d
    assert tracker.updates.tolist() == [1, 1, 0, 1]
    assert tracker.steps.item() == 1
    assert torch.equal(means, tracker.class_means)
    assert torch.equal(center, tracker.global_mean)


@pytest.mark.parametrize("n", [256, 257, 700])
def test_large_batches(n):
    features, labels = batch(0, counts=(n // 2, 1, 0, n - n // 2 - 1))
    means, center = ClassMeanTracker(K, d)(features.requires_grad_(), labels)
    wanted = means_by_hand(features.detach(), labels)
    close(means, wanted[0])
    close(center, wanted[1])
    weight = draw(K, d, seed=1)
    (means * weight).sum().backward()
    counts = labels.bincount(minlength=K).double().clamp(min=1)
    close(features.grad, weight[labels] / counts[labels, None] - weight[[0, 1, 3]].sum(dim=0) / n)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64])
def test_labels_of_any_integer_type(dtype):
    features, labels = batch(0)
    close(ClassMeanTracker(K, d)(features, labels.to(dtype))[0], means_by_hand(features, labels)[0])


def test_many_classes_under_narrow_labels():
    for top, dtype in ((127, torch.int8), (255, torch.uint8), (299, torch.int16)):
        means, _ = ClassMeanTracker(300, 1)(torch.tensor([[1.0], [3.0]]), torch.tensor([0, top], dtype=dtype))
        assert means.flatten().nonzero().flatten().tolist() == [0, top]


# --- averages over batches ---


@pytest.mark.parametrize("steps", [1, 2, 3, 8])
def test_growing_window_weighs_each_batch_as_published(steps):
    """After batches 0..t, batch u counts 2 (u + 1) / ((t + 1) (t + 2))."""
    batches = [batch(seed) for seed in range(steps)]
    tracker = fed(ClassMeanTracker(K, d), *batches)
    parts = [means_by_hand(*b) for b in batches]
    weights = [2 * (u + 1) / (steps * (steps + 1)) for u in range(steps)]
    assert sum(weights) == pytest.approx(1)
    close(tracker.class_means, sum(w * means for w, (means, _) in zip(weights, parts, strict=True)))
    close(tracker.global_mean, sum(w * center for w, (_, center) in zip(weights, parts, strict=True)))


def test_every_class_has_a_window_of_its_own_and_so_has_the_global_mean():
    early, late, last = batch(0), batch(1, counts=(0, 2, 2, 0)), batch(2)
    tracker = fed(ClassMeanTracker(K, d), early, late, late, last)
    assert tracker.updates.tolist() == [2, 4, 4, 2]
    assert tracker.steps.item() == 4
    (m0, c0), (m1, c1), (m2, c2) = (means_by_hand(*b) for b in (early, late, last))
    close(tracker.class_means[[0, 3]], (m0 / 3 + 2 * m2 / 3)[[0, 3]])
    close(tracker.class_means[[1, 2]], (m0 / 10 + 5 * m1 / 10 + 4 * m2 / 10)[[1, 2]])
    close(tracker.global_mean, c0 / 10 + 5 * c1 / 10 + 4 * c2 / 10)


@pytest.mark.parametrize("momentum", [0.0, 0.25, 0.9])
def test_constant_momentum(momentum):
    batches = [batch(0), batch(1, counts=(1, 0, 2, 2)), batch(2)]
    (first, c0), (second, c1), (third, c2) = (means_by_hand(*b) for b in batches)
    tracker = fed(ClassMeanTracker(K, d, momentum=momentum), *batches)
    close(tracker.class_means[1], momentum * first[1] + (1 - momentum) * third[1])
    rest = momentum**2 * first + momentum * (1 - momentum) * second + (1 - momentum) * third
    close(tracker.class_means[[0, 2, 3]], rest[[0, 2, 3]])
    close(tracker.global_mean, momentum**2 * c0 + momentum * (1 - momentum) * c1 + (1 - momentum) * c2)


def test_no_momentum_keeps_the_last_batch_bit_for_bit():
    last = batch(1)
    assert_equal_states(
        {"m": fed(ClassMeanTracker(K, d, momentum=0), batch(0), last).class_means},
        {"m": fed(ClassMeanTracker(K, d), last).class_means},
    )


@pytest.mark.parametrize(("seen", "share"), [(0, 1.0), (1, 2 / 3), (5, 2 / 7), (19_997, 2 / 19_999), (10**6, 1e-4)])
def test_share_of_a_batch_has_a_floor(seen, share):
    tracker = ClassMeanTracker(2, 1)
    tracker.updates.fill_(seen)
    tracker.steps.fill_(seen)
    means, center = tracker(torch.tensor([[1.0], [3.0]]), torch.tensor([0, 1]))
    torch.testing.assert_close(means.flatten(), share * torch.tensor([-1.0, 1.0]).double(), rtol=1e-13, atol=0)
    assert center.item() == pytest.approx(2 * share, rel=1e-13)


@pytest.mark.parametrize("momentum", [None, 0.9])
def test_a_missing_class_is_left_alone_bit_for_bit(momentum):
    tracker = fed(ClassMeanTracker(K, d, momentum=momentum), batch(0), batch(1), batch(2))
    before = tracker.class_means.clone()
    means, _ = tracker(*batch(3, counts=(2, 0, 3, 0)))
    assert torch.equal(means[[1, 3]], before[[1, 3]])
    assert (means[[0, 2]] != before[[0, 2]]).all()
    assert tracker.updates.tolist() == [4, 3, 4, 3]


def test_a_large_offset_costs_no_digits_of_the_means():
    features, labels = batch(0)
    means, _ = ClassMeanTracker(K, d)(features + 2.0**30, labels)
    exact, _ = means_by_hand((features + 2.0**30) - 2.0**30, labels)
    close(means, exact, atol=1e-5)  # an ulp of the offset times the samples, of float32 it would be 64


# --- gradients ---


def test_gradients_are_those_of_the_share_of_this_batch():
    tracker = fed(ClassMeanTracker(K, d), *(batch(seed) for seed in range(5)))
    features, labels = batch(9)
    features.requires_grad_()
    means, center = tracker(features, labels)
    weight, other = draw(K, d, seed=1), draw(d, seed=2)
    ((means * weight).sum() + (center * other).sum()).backward()
    n, counts = len(labels), labels.bincount().double()
    wanted = 2 / 7 * (weight[labels] / counts[labels, None] - weight.sum(dim=0) / n + other / n)
    close(features.grad, wanted)


def test_the_state_carries_no_gradient_and_older_graphs_live_on():
    tracker = ClassMeanTracker(K, d)
    (one, y1), (two, y2) = batch(0), batch(1)
    first, _ = tracker(one.requires_grad_(), y1)
    kept = first.detach().clone()
    second, _ = tracker(two.requires_grad_(), y2)
    assert not any(b.requires_grad for b in tracker.buffers())
    assert torch.equal(first, kept)
    second.square().sum().backward()
    assert one.grad is None
    first.square().sum().backward()
    fresh = one.detach().clone().requires_grad_()
    ClassMeanTracker(K, d)(fresh, y1)[0].square().sum().backward()
    assert torch.equal(one.grad, fresh.grad)


# --- what is refused, and leaves everything as it was ---

BAD = {
    "nan": (lambda h, y: (h.index_fill(0, torch.tensor(2), torch.nan), y), NonFiniteError, "features must be finite"),
    "inf": (lambda h, y: (h.index_fill(1, torch.tensor(0), torch.inf), y), NonFiniteError, "features must be finite"),
    "opposite inf": (
        lambda h, y: (h.index_put((torch.tensor([0, 1]), torch.tensor([0, 0])), torch.tensor([1, -1]).double() / 0), y),
        NonFiniteError,
        "got 2 NaN or infinite",
    ),
    "label K": (lambda h, y: (h, y.clone().fill_(K)), LabelError, r"0\.\.3 \(K = 4\), got 4"),
    "one label": (lambda h, y: (h, y.index_fill(0, torch.tensor(7), -1)), LabelError, r"got -1 \(1 of 10"),
    "float labels": (lambda h, y: (h, y.double()), DtypeError, "labels must be an integer tensor"),
    "boolean labels": (lambda h, y: (h, y.bool()), DtypeError, "labels must be an integer tensor"),
    "no tensor": (lambda h, y: (h, y.tolist()), DtypeError, "labels must be an integer tensor, got list"),
    "integer features": (lambda h, y: (h.long(), y), DtypeError, "features must be a floating-point tensor"),
    "width": (lambda h, y: (h[:, 1:], y), ShapeError, "width d = 6, got 5"),
    "rank": (lambda h, y: (h[:, None], y), ShapeError, r"features must have shape \(B, d\)"),
    "fewer labels": (lambda h, y: (h, y[1:]), ShapeError, "labels must have shape"),
    "labels (B, 1)": (lambda h, y: (h, y[:, None]), ShapeError, "labels must have shape"),
    "device": (lambda h, y: (h, y.to("meta")), DeviceError, "labels are on meta"),
    "empty": (lambda h, y: (h[:0], y[:0]), EmptyDataError, "at least one sample"),
}
bad = pytest.mark.parametrize(("spoil", "error", "message"), BAD.values(), ids=BAD.keys())


@bad
@pytest.mark.parametrize("used", [False, True])
def test_a_bad_batch_raises_and_changes_nothing(spoil, error, message, used):
    tracker = ClassMeanTracker(K, d)
    if used:
        fed(tracker, batch(0), batch(1, counts=(1, 0, 0, 2)))
    before = state_of(tracker)
    with pytest.raises(error, match=message):
        tracker(*spoil(*batch(2)))
    assert_equal_states(state_of(tracker), before)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_classes": 0}, "num_classes must be an integer >= 1"),
        ({"dim": 0}, "dim must be an integer >= 1"),
        *(
            ({"momentum": m}, "momentum must be None or a number in")
            for m in (1, 1.0, -0.1, float("nan"), "0.9", True, False)
        ),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(ArgumentError, match=message):
        ClassMeanTracker(**{"num_classes": K, "dim": d, **arguments})


# --- the state as a module's ---


@pytest.mark.parametrize(
    "cast",
    [
        lambda model: model.half(),
        lambda model: model.float(),
        lambda model: model.to(torch.bfloat16),
        lambda model: model.to(torch.float32),
        lambda model: model.to(device="cpu", dtype=torch.float16),
    ],
)
def test_a_cast_of_the_model_leaves_the_digits_of_the_state(cast):
    model = nn.Sequential(nn.Linear(d, d), fed(ClassMeanTracker(K, d), batch(0), batch(1)))
    before = state_of(model[1])
    assert cast(model) is model
    assert_equal_states(state_of(model[1]), before)
    assert dict(model[1].named_buffers()).keys() == before.keys()


def test_moves_to_meta_and_back_with_its_types():
    tracker = fed(ClassMeanTracker(K, d), batch(0))
    saved = state_of(tracker)
    for moved in (tracker.to("meta"), ClassMeanTracker(K, d, device="meta").half()):
        assert {b.device.type for b in moved.buffers()} == {"meta"}
        moved.to_empty(device="cpu").load_state_dict(saved)
        assert_equal_states(state_of(moved), saved)


def through_a_file(tracker):
    buffer = io.BytesIO()
    torch.save(tracker.state_dict(), buffer)
    buffer.seek(0)
    other = ClassMeanTracker(K, d)
    other.load_state_dict(torch.load(buffer))
    return other


@pytest.mark.parametrize("clone", [copy.deepcopy, lambda t: pickle.loads(pickle.dumps(t)), through_a_file])
def test_a_copy_goes_on_bit_for_bit_and_alone(clone):
    tracker = ClassMeanTracker(K, d)
    for seed in (0, 1):
        features, labels = batch(seed)
        tracker(features.requires_grad_(), labels)[0].sum().backward()
    other = clone(tracker)
    assert_equal_states(state_of(tracker), state_of(other))
    before = state_of(other)
    tracker(*batch(2))
    assert_equal_states(state_of(other), before)
    other(*batch(2))
    assert_equal_states(state_of(tracker), state_of(other))


def test_repr():
    assert repr(ClassMeanTracker(K, d, momentum=0.9)) == "ClassMeanTracker(num_classes=4, dim=6, momentum=0.9)"
