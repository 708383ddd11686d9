"""AdaptiveETF: its rule, its rows, and what it refuses."""

import math
from types import SimpleNamespace

import pytest
import torch
from lightning.pytorch.strategies import FSDPStrategy
from torch import nn

from tests.training.adaptive_models import (
    LAYERS,
    STEPS,
    WEIGHTS,
    WIDTH,
    Rates,
    copied,
    easy,
    fit,
    locks,
    network,
    playing,
)
from tests.training.models import TRAIN, D, K, Plain, Weights, quiet, sgd
from tightframe.errors import ArgumentError, DimensionError
from tightframe.nn import LinearClassifier, NormalizedLinear
from tightframe.probing import probe_layers
from tightframe.training import AdaptiveETF, ClassifierModule

pytestmark = quiet


# --- the rule, on curves written by hand ---


@pytest.mark.parametrize(
    ("options", "depths", "boundaries"),
    [
        ({"patience": 1}, [3], {1: 3}),
        ({"patience": 3}, [2, 3, 2], {3: 3}),
        ({"patience": 3}, [4, 2, 2, 2], {3: 4}),
        ({}, [3, None, 3, 3], {4: 3}),
        ({}, [3, 5, 3, 3], {4: 3}),
        ({}, [5, 5, 5, 5], {}),
        ({}, [None, None, None], {}),
        ({}, [3, 3, 3, 3, 2, 3, 2, 2], {2: 3, 8: 2}),
        ({}, [4, 4, 3, 2, 1, 1], {2: 4, 4: 3, 6: 1}),
        ({}, [2, 2, 4, 4, 3, 3], {2: 2}),
        ({"inclusive": True}, [3, 3], {2: 2}),
        ({"inclusive": True}, [4, 4, 3, 3, 2, 2], {2: 3, 6: 1}),
        ({"inclusive": True}, [1, 1], {2: 1}),
        ({"min_trainable": 4}, [2, 2, 2, 2], {2: 4}),
        ({"min_trainable": 9}, [2, 2], {}),
        ({"warmup": 2}, [None, None, 3, 3], {4: 3}),
        ({"every_n_epochs": 2}, [None, 3, None, 3, None], {4: 3}),
        ({"every_n_epochs": 2, "warmup": 2, "patience": 1}, [None, None, None, 3], {4: 3}),
        ({"epsilon": 0.25}, [(0.5, 0.2, 0.3, 0.25, 0.1)] * 2, {2: 4}),
        ({"epsilon": 0.0}, [(0.5, 0.2, 0.0, 1e-9, 0.0)] * 2, {}),
        ({"epsilon": 0.25}, [(0.1, math.nan, 0.1, 0.1, 0.1)] * 2, {2: 3}),
    ],
)
def test_the_rule(monkeypatch, options, depths, boundaries):
    rests = [
        e for e in range(len(depths)) if e < options.get("warmup", 0) or (e + 1) % options.get("every_n_epochs", 1)
    ]
    left = playing(monkeypatch, [depth for e, depth in enumerate(depths) if e not in rests])
    callback = AdaptiveETF(**{"patience": 2, **options})
    model = fit(callback, epochs=len(depths) + 1)
    assert not left
    expected, boundary = {}, len(LAYERS)
    for epoch, now in boundaries.items():
        expected[epoch], boundary = list(LAYERS[now:boundary]), now
    assert locks(callback) == expected
    assert callback.locked == [name for names in expected.values() for name in names]
    frozen = [name for name, p in model.named_parameters() if not p.requires_grad]
    assert frozen == WEIGHTS[boundary:]


@pytest.mark.parametrize("limit", [{"epochs": 2}, {"epochs": -1, "max_steps": 2 * STEPS}])
def test_nothing_is_locked_after_the_last_epoch(monkeypatch, limit):
    left = playing(monkeypatch, [3, 3])
    callback = AdaptiveETF(patience=2)
    fit(callback, **limit)
    assert left == [3]
    assert not callback.locked


def test_rows(monkeypatch):
    playing(monkeypatch, [None, 3])
    callback = AdaptiveETF(patience=1)
    model = fit(callback, epochs=3)
    rows = [(r.epoch, r.step, r.layer, r.metric, r.value) for r in callback.records]
    whole = sum(p.numel() for p in network().parameters())
    left = sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert whole - left == WIDTH * WIDTH + WIDTH * K
    none, some = (1, STEPS), (2, 2 * STEPS)
    assert rows[0] == (0, 0, "", "trainable_parameters", whole)
    assert rows[1:6] == [(*none, name, "ncc.error", 1.0) for name in LAYERS]
    assert rows[6][:4] == (*none, "", "effective_depth")
    assert math.isnan(rows[6][4])
    assert rows[7:13] == [
        *((*some, name, "ncc.error", float(i < 2)) for i, name in enumerate(LAYERS)),
        (*some, "", "effective_depth", 3.0),
    ]
    assert [row[:4] for row in rows[13:15]] == [(*some, name, "lock.distance") for name in LAYERS[3:]]
    assert all(0 < row[4] < 1 for row in rows[13:15])
    assert rows[15:] == [(*some, "", "trainable_parameters", left)]
    assert {(r.split, r.run, r.seed) for r in callback.records} == {("train", "", 0)}


def test_the_curve_is_measured_in_eval_mode_at_the_end_of_the_epoch():
    callback, weights = AdaptiveETF(epsilon=0.0, patience=9), Weights()
    fit(callback, weights, epochs=4)
    model = network()
    errors = callback.records.where(metric="ncc.error")
    for epoch in (1, 2, 3):
        model.load_state_dict(weights.after[epoch])
        curves = probe_layers(model, [TRAIN.tensors])
        assert [row.value for row in errors.where(epoch=epoch)] == list(curves.ncc_error)
        assert [row.layer for row in errors.where(epoch=epoch)] == list(LAYERS)
    with torch.no_grad():
        logits, labels = model.eval()(TRAIN.tensors[0]).double(), TRAIN.tensors[1]
    means = torch.stack([logits[labels == k].mean(dim=0) for k in range(K)])
    nearest = torch.cdist(logits, means).argmin(dim=1)
    assert errors.value("ncc.error", layer="classifier") == (nearest != labels).double().mean().item()


class Backwards(nn.Module):
    """Runs its layers in another order than it holds them."""

    def __init__(self):
        super().__init__()
        self.third, self.second, self.first = nn.Linear(6, 5), nn.Linear(6, 6), nn.Linear(D, 6)

    def forward(self, inputs):
        return self.third(self.second(self.first(inputs).relu()).relu()).relu()


def test_patterns_name_layers_in_the_order_of_execution():
    module = ClassifierModule(Backwards(), LinearClassifier(5, K), nn.CrossEntropyLoss(), sgd(0.1))
    callback = easy(layers=["backbone.*"])
    fit(callback, model=module)
    assert locks(callback) == {2: ["backbone.second", "backbone.third"]}
    assert module.classifier.weight.requires_grad


def test_a_layer_that_is_kept_is_never_locked():
    callback = easy(keep=["classifier", "backbone.6"])
    module = fit(callback)
    assert locks(callback) == {2: ["backbone.3", "backbone.9"]}
    assert module.classifier.weight.requires_grad


def test_a_classifier_of_more_classes_than_there_is_a_simplex_for_can_be_kept():
    narrow = network(width=2, classifier=LinearClassifier(2, 4))
    callback = easy(keep=["classifier"])
    fit(callback, model=narrow)
    assert locks(callback) == {2: ["backbone.3", "backbone.6", "backbone.9"]}


# --- errors ---


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"epsilon": 1.0}, "epsilon must be finite and in"),
        ({"epsilon": math.nan}, "epsilon must be finite and in"),
        ({"patience": 0}, "patience must be an integer >= 1"),
        ({"every_n_epochs": 0}, "every_n_epochs must be"),
        ({"warmup": -1}, "warmup must be an integer >= 0"),
        ({"min_trainable": 0}, "min_trainable must be"),
        ({"batch_size": 0.5}, "batch_size must be"),
        ({"start": 0}, "start must be an integer >= 1"),
        ({"first_stage": 0}, "first_stage must be an integer >= 1"),
        ({"start": 1, "first_stage": 1}, "exclude each other"),
        ({"kind": "simplex"}, "kind must be one of 'aligned'"),
        ({"gain": "big"}, "gain must be one of 'unit'"),
        ({"gain": -1.0}, "gain must be a finite number > 0"),
        ({"kind": "haar", "activation": "step"}, "activation must be one of 'relu'"),
        ({"seed": -1}, "seed must be an integer >= 0"),
        ({"tap": "input"}, "tap must be one of 'post', 'pre'"),
        ({"pooling": "mask"}, "pooling must be one of 'flatten', 'mean', 'cls', got 'mask'"),
        ({"layers": "backbone.*"}, "layers must be a list"),
        ({"layers": []}, "layers must be a list"),
    ],
)
def test_arguments(options, said):
    before = torch.get_rng_state()
    with pytest.raises(ArgumentError, match=said):
        AdaptiveETF(**options)
    AdaptiveETF()
    assert torch.equal(torch.get_rng_state(), before)


def refused(error, said, callback, model=None, **options):
    """Expect an error before the first step."""
    model = model or network()
    before = copied(model)
    with pytest.raises(error, match=said):
        fit(callback, model=model, **options)
    assert all(torch.equal(t, before[name]) for name, t in model.state_dict().items())
    return model


class Scheduled(Plain):
    def configure_optimizers(self):
        optimizer = torch.optim.SGD(self.parameters(), self.lr)
        return [optimizer], [torch.optim.lr_scheduler.StepLR(optimizer, 1)]


class TwoOptimizers(Plain):
    def __init__(self):
        super().__init__()
        self.automatic_optimization = False

    def configure_optimizers(self):
        return [torch.optim.SGD(layer.parameters(), 0.1) for layer in (self.net[0], self.net[4])]


def test_what_cannot_be_trained_is_refused_before_the_first_step():
    refused(ArgumentError, "needs exactly one optimizer, got 2", easy(), TwoOptimizers())
    refused(ArgumentError, "cannot remove a parameter from LBFGS", easy(), network(optimizer=torch.optim.LBFGS))
    refused(ArgumentError, "rewarm must be False for a Scheduled", easy(), Scheduled())
    refused(ArgumentError, "layers must name modules of the model", easy(layers=["head"]))
    refused(ArgumentError, "keep must name modules of the model", easy(keep=["head"]))
    refused(ArgumentError, "start must be below the number of layers, 5, got 5", easy(start=5))
    refused(ArgumentError, "first_stage must lie between 0.*and max_epochs = 6, got 6", easy(first_stage=6))
    refused(
        DimensionError,
        "d >= K - 1.*pass keep=.'classifier'",
        easy(),
        network(width=2, classifier=LinearClassifier(2, 4)),
    )
    refused(
        ArgumentError,
        "got NormalizedLinear.*pass keep=.'classifier'",
        easy(),
        network(classifier=NormalizedLinear(6, 3)),
    )
    model = network()
    nn.utils.parametrizations.weight_norm(model.backbone[6])
    refused(ArgumentError, "computed by a parametrization.*pass keep=.'backbone.6'", easy(), model)
    model = network()
    model.backbone[6].weight = model.backbone[9].weight
    refused(ArgumentError, "is tied", easy(), model)


@pytest.mark.parametrize("callback", [easy(rewarm=False), easy(start=2)])
def test_a_foreign_schedule_that_is_left_alone(callback):
    rates = Rates()
    fit(callback, rates, model=Scheduled(), epochs=4)
    assert callback.locked
    torch.testing.assert_close(rates.steps[::7], [0.1, 0.01, 0.001, 0.0001])


def test_strategies_that_shard_are_refused():
    parallel = SimpleNamespace(strategy=FSDPStrategy(), world_size=2)
    with pytest.raises(ArgumentError, match="got FSDPStrategy, which may shard them; train with devices=1"):
        AdaptiveETF().on_fit_start(parallel, Plain())
