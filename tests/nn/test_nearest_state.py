"""When the nearest ETF moves, what it says of that, and its copies."""

from __future__ import annotations

import copy
import io
import math
import pickle

import pytest
import torch
from safetensors.torch import load, save
from torch import nn

from tightframe.frames import nearest_simplex_etf
from tightframe.nn import NearestETFClassifier

from ..problems import draw
from .nearest_material import (
    TAU,
    K,
    assert_equal_states,
    batch,
    classifier,
    classifier_of,
    close,
    d,
    state_of,
    tracked,
    unit,
    values,
)

# --- when it moves ---


@pytest.mark.parametrize("every", [1, 2, 3])
def test_update_every(every):
    made = classifier(update_every=every)
    for t in range(7):
        before = state_of(made)
        logits = made(*batch(t))
        moved = not torch.equal(made.weight, before["weight"])
        assert moved == (t % every == 0)
        assert torch.equal(made.bias, before["bias"]) != moved
        if not moved:
            assert torch.equal(logits, classifier_of(before)(batch(t)[0]))
        assert made.tracker.steps == t + 1
    means, _ = tracked(*(batch(t) for t in range(7)))
    close(made.tracker.class_means, means)
    if every == 3:
        close(made.weight, nearest_simplex_etf(means).frame)


@pytest.mark.parametrize("last", [1, 3])
def test_freeze_after(last):
    made = classifier(freeze_after=last)
    for t in range(last):
        assert not made.frozen
        made(*batch(t))
    assert made.frozen
    before = state_of(made)
    assert torch.equal(made(*batch(9)), made(batch(9)[0]))
    after = state_of(made)
    for name in before.keys() - {"_extra_state"}:
        assert torch.equal(after[name], before[name]), name
    assert made.batches == last
    close(made.weight, classifier(*range(last)).weight, atol=0)


def test_freeze_after_holds_for_a_state_that_is_past_it():
    made = classifier_of(state_of(classifier(0, 1, 2, 3)), freeze_after=2)
    assert made.frozen
    before = made.weight.clone()
    made(*batch(9))
    assert torch.equal(made.weight, before)


@pytest.mark.parametrize("seeds", [(), (0, 1)])
def test_freeze_survives_save_and_load(seeds):
    made = classifier(*seeds)
    made.freeze()
    before = made.weight.clone()
    for clone in (made, classifier_of(state_of(made)), copy.deepcopy(made), pickle.loads(pickle.dumps(made))):
        assert clone.frozen
        clone(*batch(5))
        assert torch.equal(clone.weight, before)
        assert clone.batches == len(seeds)
        assert clone.tracker.steps == len(seeds)
    assert not classifier_of(state_of(classifier(*seeds))).frozen


@pytest.mark.parametrize("how", ["without labels", "in eval mode", "frozen"])
def test_a_batch_that_is_not_taken_in_moves_nothing(how):
    made = classifier(0, 1)
    if how == "in eval mode":
        made.eval()
    if how == "frozen":
        made.freeze()
    before, found = state_of(made), values(made)
    features, labels = batch(2)
    logits = made(features, None if how == "without labels" else labels)
    close(logits, TAU * unit(features) @ before["weight"].T + before["bias"])
    after = state_of(made)
    if how == "frozen":  # it says that it does not drift
        assert values(made) == {**found, "etf.drift": 0.0}
        del before["_extra_state"], after["_extra_state"]
    else:
        assert values(made) == found
    assert_equal_states(after, before)
    assert made.batches == 2


def test_leading_dimensions_without_labels():
    made = classifier(0, 1)
    features = draw(2, 3, 4, d)
    close(made(features), made(features.flatten(0, 2)).unflatten(0, (2, 3, 4)))
    assert made(features[0, 0, 0]).shape == (K,)
    assert made(features[:0]).shape == (0, 3, 4, K)


# --- what it says of itself ---


def test_diagnostics_by_hand():
    made = NearestETFClassifier(2, 2, dtype=torch.float64)
    along, across = torch.tensor([[0.6, 0.8], [-0.6, -0.8]]).double(), torch.tensor([[-0.8, 0.6], [0.8, -0.6]]).double()
    start = made.weight.clone()
    made(along, torch.arange(2))
    found = made.diagnostics()
    assert found.keys() == {"etf.drift", "etf.alignment", "etf.smallest_singular_value", "etf.rank"}
    assert all(value.ndim == 0 and not value.requires_grad for value in found.values())
    assert found["etf.drift"].item() == pytest.approx((along - start).norm().item() / math.sqrt(2))
    assert found["etf.alignment"].item() == pytest.approx(1, abs=1e-15)
    assert found["etf.smallest_singular_value"].item() == pytest.approx(1)
    assert found["etf.rank"].item() == 1
    # The second batch has share 2/3, so the mean points along (1, 2) in these axes: cos = 1/√5 from where it was.
    made(across, torch.arange(2))
    assert made.diagnostics()["etf.drift"].item() == pytest.approx(math.sqrt(2 - 2 / math.sqrt(5)))


@pytest.mark.parametrize("options", [{"update_every": 3}, {"freeze_after": 1}])
def test_no_drift_where_it_rests(options):
    made = classifier(0, **options)
    first = made.diagnostics()
    assert first["etf.drift"] > 0
    made(*batch(1))
    second = made.diagnostics()
    assert second.pop("etf.drift").item() == 0
    assert {**second, "etf.drift": first["etf.drift"]} == first


def test_frozen_before_the_first_batch_there_is_nothing_to_say():
    made = classifier()
    made.freeze()
    made(*batch(0))
    assert made.diagnostics() == {}


def test_a_state_keeps_its_shapes_so_that_averages_over_states_work():
    fresh, trained = classifier(), classifier(0, 1)
    average = {name: 0.5 * old + 0.5 * new for (name, old), new in zip(
        fresh.state_dict().items(), trained.state_dict().values(), strict=True
    )}  # fmt: skip
    fresh.load_state_dict(average)
    assert fresh.batches == 1
    assert torch.equal(fresh.tracker.class_means, 0.5 * trained.tracker.class_means)
    short = {**classifier().state_dict(), "_extra_state": torch.zeros(2, dtype=torch.float64)}  # as once written
    fresh.load_state_dict(short)
    assert (fresh.batches, fresh.diagnostics()) == (0, {})


def test_diagnostics_are_a_copy():
    made = classifier(0)
    made.diagnostics().clear()
    assert len(made.diagnostics()) == 4


@pytest.mark.parametrize("options", [{}, {"update_every": 3}, {"freeze_after": 1}])
def test_a_restored_state_says_the_same(options):
    made = classifier(0, **options)
    other = classifier_of(state_of(made), **options)
    for seed in (1, 2):
        assert values(made) == values(other)
        made(*batch(seed))
        other(*batch(seed))
    assert values(made) == values(other)


# --- its vectors and its copies ---


def test_export_gives_the_same_logits_on_unit_features():
    made = classifier(0, 1, 2)
    linear = made.export()
    assert type(linear) is nn.Linear
    h = draw(50, d)
    close(linear(unit(h)), made(h))
    with torch.no_grad():
        linear.weight.zero_()
        linear.bias.zero_()
    assert made.weight.norm() > 1
    assert made.bias.norm() > 0.1


@pytest.mark.parametrize("options", [{}, {"freeze_after": 2}])
def test_the_weight_lies_in_memory_as_at_first(options):
    """As safetensors want it, and so that a matrix product rounds as it does after loading."""
    made = classifier(0, 1, dtype=torch.float32, **options)
    assert made.weight.is_contiguous()
    other = classifier(dtype=torch.float32, **options)
    other.load_state_dict(load(save(made.state_dict())))
    h = draw(300, d).float()
    assert torch.equal(made(h), other(h))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize(
    "options", [{"gradient": "exact", "proximal": 0.3, "momentum": 0.8}, {"update_every": 2}, {"freeze_after": 3}]
)
def test_the_step_after_a_save_is_the_step_without_bit_for_bit(options, dtype):
    for seeds in ((), (0,), (0, 1, 2)):
        made = classifier(*seeds, dtype=dtype, **options)
        buffer = io.BytesIO()
        torch.save(made.state_dict(), buffer)
        buffer.seek(0)
        other = classifier(seed=1, dtype=dtype, **options)
        other.load_state_dict(torch.load(buffer))
        for clone in (other, copy.deepcopy(made), pickle.loads(pickle.dumps(made))):
            whole = copy.deepcopy(made)
            for seed in (3, 4):
                pairs = [batch(seed, dtype=dtype) for _ in range(2)]
                for module, (features, labels) in zip((whole, clone), pairs, strict=True):
                    logits = module(features.requires_grad_(), labels)
                    logits.float().square().sum().backward()
                assert torch.equal(pairs[0][0].grad, pairs[1][0].grad)
                assert torch.equal(whole(pairs[0][0]), clone(pairs[1][0]))
                assert_equal_states(state_of(whole), state_of(clone))


def test_built_on_meta_then_loaded():
    wanted = classifier(0, 1)
    with torch.device("meta"):
        made = NearestETFClassifier(d, K, dtype=torch.float64)
    made.to_empty(device="cpu").load_state_dict(wanted.state_dict())
    assert_equal_states(state_of(made), state_of(wanted))
    assert torch.equal(made(*batch(2)), wanted(*batch(2)))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_cast_rounds_the_weight_and_keeps_the_means(dtype):
    made = classifier(0, 1)
    before = state_of(made)
    assert made.to(dtype).weight.dtype == made.bias.dtype == dtype
    assert_equal_states(state_of(made.tracker), {n[8:]: v for n, v in before.items() if n.startswith("tracker.")})
    made(*batch(2))
    assert made.weight.dtype == made.bias.dtype == dtype
    wanted = nearest_simplex_etf(tracked(batch(0), batch(1), batch(2))[0]).frame
    close(made.tracker.class_means, tracked(batch(0), batch(1), batch(2))[0])
    assert torch.equal(made.weight, wanted.to(dtype))
