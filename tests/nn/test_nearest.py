"""What the nearest ETF is, what a batch makes of it and what it refuses."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from tightframe.errors import (
    ArgumentError,
    DimensionError,
    DtypeError,
    EmptyDataError,
    LabelError,
    NonFiniteError,
    ShapeError,
)
from tightframe.frames import is_simplex_etf, nearest_simplex_etf, simplex_etf
from tightframe.nn import NearestETFClassifier
from tightframe.probing import find_classifier, measure

from ..problems import draw
from .nearest_material import (
    TAU,
    K,
    assert_equal_states,
    batch,
    classifier,
    close,
    d,
    state_of,
    tracked,
    unit,
)

# --- what it is ---


def test_state_is_all_of_it():
    made = classifier(0)
    assert list(made.parameters()) == []
    names = {"weight", "bias", "_extra_state"} | {f"tracker.{n}" for n in ("class_means", "global_mean", "updates")}
    assert made.state_dict().keys() == names | {"tracker.steps"}


@pytest.mark.parametrize(("K", "d"), [(2, 1), (4, 3), (4, 4), (5, 12)])
def test_before_the_first_batch_it_is_a_random_etf_without_bias(K, d):
    made = NearestETFClassifier(d, K, seed=3, dtype=torch.float64)
    assert torch.equal(made.weight, simplex_etf(K, d, generator=torch.Generator().manual_seed(3), dtype=torch.float64))
    assert is_simplex_etf(made.weight, tol=1e-12)
    assert made.bias.tolist() == [0.0] * K
    assert made.diagnostics() == {}
    h = draw(7, d)
    close(made(h), TAU * unit(h) @ made.weight.T)
    assert made.batches == 0


def test_options_reach_the_state_and_the_repr():
    made = NearestETFClassifier(d, K, momentum=0.9, scale=2, proximal=1, update_every=3, freeze_after=7)
    assert made.tracker.momentum == 0.9
    text = repr(made)
    assert f"in_features={d}, out_features={K}, scale=2.0, proximal=1.0, gradient='none'" in text
    assert "update_every=3, freeze_after=7, frozen=False" in text
    made.freeze()
    assert "frozen=True" in repr(made)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        *(({"scale": s}, "scale must be finite and > 0") for s in (0.0, math.inf, math.nan)),
        *(({"proximal": p}, "proximal must be finite and >= 0") for p in (-0.1, math.nan)),
        *(({"momentum": m}, "momentum must be None or a number") for m in (1.0, -0.1, "0.9")),
        ({"gradient": "half"}, "gradient must be one of 'exact', 'none', got 'half'"),
        *(({"update_every": n}, "update_every must be an integer >= 1") for n in (0, 1.5, None)),
        *(({"freeze_after": n}, "freeze_after must be an integer >= 1") for n in (0, -1, 1.5)),
        *(({"seed": n}, "seed must be an integer >= 0") for n in (-1, 1.0, None)),
        ({"num_classes": 1}, "num_classes"),
    ],
)
def test_bad_arguments(options, message):
    with pytest.raises(ArgumentError, match=message):
        NearestETFClassifier(**{"dim": d, "num_classes": K, **options})


def test_too_few_dimensions():
    with pytest.raises(DimensionError, match="K = 5 needs dim >= K - 1 = 4, got dim = 3"):
        NearestETFClassifier(3, 5)


def test_from_linear_takes_sizes_dtype_device_and_options():
    linear = nn.Linear(d, K, dtype=torch.float64)
    made = NearestETFClassifier.from_linear(linear, seed=5, scale=2.0, gradient="exact")
    assert torch.equal(made.weight, NearestETFClassifier(d, K, seed=5, dtype=torch.float64).weight)
    assert (made.scale, made.gradient) == (2.0, "exact")
    meta = NearestETFClassifier.from_linear(nn.Linear(d, K, device="meta"))
    assert {b.device.type for b in meta.buffers()} == {"meta"}
    with pytest.raises(ArgumentError, match=r"linear must be an nn\.Linear, got Identity"):
        NearestETFClassifier.from_linear(nn.Identity())


# --- what a batch does ---


@pytest.mark.parametrize("momentum", [None, 0.9])
def test_weight_is_nearest_to_the_tracked_means_and_the_batch_meets_it(momentum):
    made, batches = classifier(momentum=momentum), [batch(seed) for seed in range(3)]
    for t, (features, labels) in enumerate(batches):
        logits = made(features, labels)
        means, center = tracked(*batches[: t + 1], momentum=momentum)
        frame = nearest_simplex_etf(means).frame
        close(made.weight, frame)
        close(made.bias, -frame @ center)
        close(logits, TAU * unit(features) @ frame.T - frame @ center)
        assert made.batches == t + 1


def test_an_etf_is_found_in_one_batch_by_hand():
    h = torch.tensor([[0.6, 0.8], [-1.2, -1.6], [3.0, 4.0]], dtype=torch.float64)
    made = NearestETFClassifier(2, 2, dtype=torch.float64)
    logits = made(h, torch.tensor([0, 1, 0]))
    wanted = torch.tensor([[0.6, 0.8], [-0.6, -0.8]], dtype=torch.float64)
    close(made.weight, wanted)
    # The mean of the three is a third of tau along (0.6, 0.8).
    close(made.bias, torch.tensor([-5.0, 5.0]).double() / 3)
    close(logits, torch.tensor([[10.0, -10.0], [-20.0, 20.0], [10.0, -10.0]]).double() / 3)


@pytest.mark.parametrize("scale", [0.5, 5.0, 40.0])
def test_scale_is_the_length_of_the_features(scale):
    features, labels = batch(0)
    made = classifier(0, scale=scale)
    close(made.prepare(features).norm(dim=1), torch.full((10,), scale).double())
    close(made.weight, classifier(0).weight)
    close(made(features), scale / TAU * classifier(0)(features), atol=1e-12)
    close(made.tracker.class_means, scale / TAU * tracked((features, labels))[0])


def test_the_pull_is_off_at_first_and_to_the_weight_before_then():
    made = classifier(proximal=0.7)
    made(*batch(0))
    close(made.weight, nearest_simplex_etf(tracked(batch(0))[0]).frame)
    before = made.weight.clone()
    made(*batch(1))
    means, _ = tracked(batch(0), batch(1))
    wanted = nearest_simplex_etf(means, previous=before, proximal=0.7).frame
    close(made.weight, wanted)
    assert (made.weight - nearest_simplex_etf(means).frame).norm() > 1e-2


def test_what_a_missing_class_leaves_open_stays_as_it_was():
    made = classifier()
    start = made.weight.clone()
    features, labels = batch(0, counts=(3, 0, 0, 3))
    made(features, labels)
    assert made.diagnostics()["etf.rank"] == 1
    assert is_simplex_etf(made.weight, tol=1e-12)
    frame = nearest_simplex_etf(tracked((features, labels))[0], previous=start).frame
    close(made.weight, frame)


def test_features_of_zero_length_stay_zero():
    features, labels = batch(0)
    features[:2] = 0
    features.requires_grad_()
    made = classifier(gradient="exact")
    logits = made(features, labels)
    close(logits[:2], made.bias.expand(2, -1), atol=0)
    logits.square().sum().backward()
    assert features.grad[:2].count_nonzero() == 0
    assert features.grad.isfinite().all()


# --- what is refused ---


@pytest.mark.parametrize(
    ("spoil", "error"),
    [
        (lambda h, y: (h * torch.nan, y), NonFiniteError),
        (lambda h, y: (h.index_fill(0, torch.tensor(0), torch.inf), y), NonFiniteError),
        (lambda h, y: (h, y + 1), LabelError),
        (lambda h, y: (h, y.double()), DtypeError),
        (lambda h, y: (h.long(), y), DtypeError),
        (lambda h, y: (h[:, 1:], y), ShapeError),
        (lambda h, y: (h[None], y[None]), ShapeError),
        (lambda h, y: (h, y[1:]), ShapeError),
        (lambda h, y: (h[:0], y[:0]), EmptyDataError),
    ],
)
@pytest.mark.parametrize(("gradient", "seeds"), [("none", (0, 1)), ("exact", ())])
def test_a_bad_batch_raises_and_changes_nothing(spoil, error, gradient, seeds):
    made = classifier(*seeds, gradient=gradient)
    before, found = state_of(made), made.diagnostics()
    with pytest.raises(error):
        made(*spoil(*batch(2)))
    assert_equal_states(state_of(made), before)
    assert made.diagnostics() == found


@pytest.mark.parametrize("labels", [None, torch.tensor([0, 1])])
def test_features_that_do_not_fit(labels):
    with pytest.raises(ShapeError, match=f"d = {d}"):
        classifier(0)(torch.zeros(2, d - 1), labels)
    with pytest.raises(DtypeError, match="int64"):
        classifier(0)(torch.zeros(2, d, dtype=torch.int64), labels)


# --- under the probe ---


@pytest.mark.parametrize("training", [True, False])
def test_measure_finds_it_prepares_the_features_and_moves_nothing(training):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(d, d), classifier(0, dtype=torch.float32)).train(training)
    assert find_classifier(model) == "1"
    before = state_of(model)
    data = [batch(seed, dtype=torch.float32) for seed in (1, 2)]
    records = measure(model, data)
    assert_equal_states(state_of(model), before)
    assert model.training == training
    plain = measure(nn.Sequential(model[0], Unit(), model[1].export()), data)
    # These do not see that all features and class vectors are longer by one factor.
    for metric in ("nc1.pinv", "cdnv", "ncc.accuracy", "nc4.agreement", "nc3.distance", "nc3.gram", "cosine_margin"):
        assert records.value(metric) == pytest.approx(plain.value(metric), rel=1e-4), metric
    assert records.value("nc1.pinv") > 0.1


class Unit(nn.Module):
    def forward(self, features):
        return unit(features)
