"""Training with the nearest ETF: what it logs, and that interruption, measurement and a second rank change nothing."""

import copy
import signal
import sys

import pytest
import torch
import yaml
from lightning.pytorch import Callback
from torch import nn

from tests.training.models import TRAIN, D, K, dataset, module, ordered, quiet, sgd, trainer
from tests.training.processes import AtStep, run
from tightframe.config import AUTO, Method, Part, Recipe, bind, build
from tightframe.data import Digits
from tightframe.errors import ArgumentError, ConfigError, TightframeError
from tightframe.nn import (
    Classifier,
    DotRegressionLoss,
    LogitAdjustedCrossEntropy,
    NearestETFClassifier,
    SimplexETFClassifier,
)
from tightframe.records import Records
from tightframe.runs.layout import RECORDS_FILE
from tightframe.training import MLP, ClassifierModule, NeuralCollapseCallback, fit, make_loader

pytestmark = quiet
INPUTS, LABELS = TRAIN.tensors
NAMES = ("etf.drift", "etf.alignment", "etf.smallest_singular_value", "etf.rank")


def nearest(**options):
    return NearestETFClassifier(5, K, **options)


def follow(**options):
    """A module with a nearest ETF that has seen a batch."""
    model = module(classifier=nearest(**options))
    model.classifier(model.backbone(INPUTS[:30]), LABELS[:30])
    return model


def assert_equal_states(one, other):
    assert one.keys() == other.keys()
    for name, value in one.items():
        assert torch.equal(value, other[name]), name


# --- the loss of a batch ---

LOSSES = {
    "cross-entropy": nn.CrossEntropyLoss,
    "logit-adjusted": lambda: LogitAdjustedCrossEntropy(LABELS.bincount()),
    "dot-regression": DotRegressionLoss,
}
losses = pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES.keys())
gradients = pytest.mark.parametrize("gradient", ["none", "exact"])


@losses
@gradients
def test_loss_and_gradients_are_those_of_the_frame_that_the_batch_has_moved(loss, gradient):
    model = follow(gradient=gradient)
    model.loss, model.log = loss(), lambda *args, **kwargs: None
    twin = copy.deepcopy(model)
    found = model.training_step((INPUTS, LABELS), 0)
    features = twin.backbone(INPUTS)
    if isinstance(model.loss, DotRegressionLoss):  # of class vectors, which are constants
        twin.classifier(features.detach(), LABELS)
        wanted = twin.loss(features, LABELS, twin.classifier)
    else:
        wanted = twin.loss(twin.classifier(features, LABELS), LABELS)
    assert torch.equal(found, wanted)
    assert model.classifier.batches == 2
    assert_equal_states(model.state_dict(), twin.state_dict())
    found.backward()
    wanted.backward()
    for p, q in zip(model.parameters(), twin.parameters(), strict=True):
        assert torch.equal(p.grad, q.grad)


@losses
@gradients
def test_it_trains(loss, gradient):
    model = module(classifier=nearest(gradient=gradient), loss=loss(), lr=0.1)
    start, before = model.classifier.weight.clone(), model.backbone[0].weight.detach().clone()
    fitted = trainer(max_epochs=6)
    fitted.fit(model, make_loader(TRAIN, 10, seed=0), ordered())
    assert model.classifier.tracker.steps == model.classifier.batches == fitted.global_step == 36
    assert not torch.equal(model.classifier.weight, start)
    assert not torch.equal(model.backbone[0].weight, before)


def test_mixup_is_refused():
    with pytest.raises(ArgumentError, match=r"mixup_alpha must be 0 with a NearestETFClassifier, got 0\.5"):
        module(classifier=nearest(), mixup_alpha=0.5)
    assert module(classifier=SimplexETFClassifier(5, K), mixup_alpha=0.5).mixup_alpha == 0.5


# --- what is logged ---


class Diagnostics(Callback):
    """Notes what the classifier says after every batch."""

    def __init__(self):
        self.seen = []

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        found = pl_module.classifier.diagnostics()
        self.seen.append((len(batch[1]), {name: value.item() for name, value in found.items()}))


@pytest.mark.parametrize("options", [{}, {"update_every": 4}, {"freeze_after": 2}])
def test_means_of_the_diagnostics_are_logged(options):
    note = Diagnostics()
    fitted = trainer(note, max_epochs=1)
    fitted.fit(module(classifier=nearest(**options)), make_loader(TRAIN, 12, seed=0), ordered())
    assert len(note.seen) == 5
    assert {n for n in fitted.callback_metrics if n.startswith("train/etf.")} == {f"train/{name}" for name in NAMES}
    for name in NAMES:
        wanted = sum(n * found[name] for n, found in note.seen) / sum(n for n, _ in note.seen)
        assert fitted.callback_metrics[f"train/{name}"].item() == pytest.approx(wanted, rel=1e-6), name
    moving = [found["etf.drift"] > 0 for _, found in note.seen]
    assert moving == [t % options.get("update_every", 1) == 0 and t < options.get("freeze_after", 9) for t in range(5)]


# --- measuring and validating ---


class Validated(Callback):
    """Keeps the classifier's state on both sides of each validation."""

    def on_validation_start(self, trainer, pl_module):
        assert not pl_module.classifier.training
        self.before = copy.deepcopy(pl_module.classifier.state_dict())

    def on_validation_end(self, trainer, pl_module):
        assert_equal_states(pl_module.classifier.state_dict(), self.before)


def trained(*callbacks, validation=None):
    model = module(classifier=nearest(gradient="exact"), seed=0)
    trainer(*callbacks).fit(model, make_loader(TRAIN, 10, seed=0), validation)
    return model.state_dict()


def test_measuring_and_validating_move_nothing():
    plain = trained()
    measured = NeuralCollapseCallback(every_n_steps=1)
    both = trained(measured, Validated(), validation=ordered())
    assert {r.step for r in measured.records} == set(range(13))
    assert {r.split for r in measured.records} == {"train", "validation"}
    for name in plain.keys() & both.keys():
        if not name.startswith("evaluation"):
            assert torch.equal(plain[name], both[name]), name


def test_collapse_is_measured_on_what_the_classifier_meets():
    measured = NeuralCollapseCallback(every_n_steps=1, splits=["train"])
    model = module(classifier=nearest(), seed=0)
    trainer(measured, max_epochs=1).fit(model, make_loader(TRAIN, 10, seed=0))
    last = measured.records.where(step=model.classifier.batches, layer="features")
    assert last.value("nc2.equinorm.classifier") == pytest.approx(0, abs=1e-6)
    model.eval()
    h = model.classifier.prepare(model.backbone(INPUTS))
    nearest_mean = torch.cdist(h, torch.stack([h[k == LABELS].mean(dim=0) for k in range(K)])).argmin(dim=1)
    agreement = (model(INPUTS).argmax(dim=1) == nearest_mean).double().mean().item()
    assert last.value("nc4.agreement") == pytest.approx(agreement)


# --- interruption ---

OPTIONS = [
    {"gradient": "exact", "proximal": 0.2},
    {"momentum": 0.9, "update_every": 3},
    {"freeze_after": 1},
    {"freeze_after": 7},
]


class Stopped(Exception):  # noqa: N818
    pass


class StopAt(Callback):
    def __init__(self, step):
        self.step = step

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if trainer.global_step == self.step:
            raise Stopped


def train(directory, classifier, *, stop=None, dtype=torch.float32, epochs=4, **options):
    torch.manual_seed(0)
    backbone = MLP(D, [6, 5], batch_norm=False)
    model = ClassifierModule(backbone, nearest(**classifier), nn.CrossEntropyLoss(), sgd(0.1), seed=0).to(dtype)
    parts = {"validation": dataset(n=7, seed=5, dtype=dtype)}
    model.configure_callbacks = lambda: [StopAt(stop)]
    size = {"epochs": epochs, "batch_size": 8}  # 60 samples are 7 steps an epoch
    options = {"accelerator": "cpu", **options}
    fit(model, dataset(dtype=dtype), parts, directory, run="nearest", seed=0, **size, trainer=options)
    return model.state_dict()


def last_checkpoint(directory):
    return torch.load(directory / "checkpoints" / "last.ckpt", weights_only=False)


def assert_same_runs(one, other):
    assert (one / RECORDS_FILE).read_text().splitlines() == (other / RECORDS_FILE).read_text().splitlines()
    mine, theirs = last_checkpoint(one), last_checkpoint(other)
    assert_equal_states(mine["state_dict"], theirs["state_dict"])
    assert mine["global_step"] == theirs["global_step"]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_an_interrupted_run_is_the_uninterrupted_one_bit_for_bit(options, tmp_path):
    train(tmp_path / "whole", options)
    with pytest.raises(Stopped):
        train(tmp_path / "resumed", options, stop=16)
    assert last_checkpoint(tmp_path / "resumed")["global_step"] == 14
    train(tmp_path / "resumed", options)
    assert_same_runs(tmp_path / "resumed", tmp_path / "whole")


def test_records_have_the_diagnostics_of_the_training_split(tmp_path):
    train(tmp_path, {"freeze_after": 7}, epochs=2)
    records = Records.read(tmp_path / RECORDS_FILE)
    for name in NAMES:
        rows = list(records.where(metric=name))
        assert [(r.epoch, r.step, r.split, r.layer) for r in rows] == [(1, 7, "train", ""), (2, 14, "train", "")]
    assert records.value("etf.drift", epoch=1) > 0
    assert records.value("etf.drift", epoch=2) == 0
    assert records.value("etf.alignment", epoch=2) <= 1
    assert records.value("etf.rank", epoch=2) == K - 1


# --- recipes ---


def part(**args):
    return bind(Part("NearestETFClassifier", args), ("tightframe.nn",), Classifier, "here", GIVEN)


GIVEN = {"dim": 6, "num_classes": 5, "seed": 3}


def test_a_recipe_binds_it():
    made = part(seed=AUTO, gradient="exact", momentum=0.9, proximal=0.1, scale=2, freeze_after=4, update_every=2)
    assert (made.in_features, made.out_features, made.gradient, made.scale) == (6, 5, "exact", 2.0)
    assert (made.tracker.momentum, made.proximal, made.freeze_after, made.update_every) == (0.9, 0.1, 4, 2)
    assert torch.equal(made.weight, NearestETFClassifier(6, 5, seed=3).weight)
    plain = part(momentum=None, freeze_after=None)
    assert torch.equal(plain.weight, NearestETFClassifier(6, 5).weight)
    assert (plain.tracker.momentum, plain.freeze_after) == (None, None)


@pytest.mark.parametrize(
    ("args", "error", "message"),
    [
        ({"gradient": "full"}, ArgumentError, "gradient must be one of 'exact', 'none', got 'full'"),
        ({"gradient": 3}, ConfigError, r"here\.args: .*gradient"),
        ({"momentum": 1.0}, ArgumentError, "momentum must be None or a number in"),
        ({"momentum": "big"}, ConfigError, r"here\.args: .*momentum"),
        ({"proximal": -1}, ArgumentError, "proximal must be finite and >= 0"),
        ({"update_every": 1.5}, ConfigError, r"here\.args: .*update_every"),
        ({"freeze_after": 0}, ArgumentError, "freeze_after must be an integer >= 1"),
        ({"normalize": False}, ConfigError, "NearestETFClassifier takes no 'normalize'"),
        ({"gradient": AUTO}, ConfigError, "must set gradient for NearestETFClassifier"),
    ],
)
def test_a_recipe_with_bad_values_is_told_so_in_one_line(args, error, message):
    with pytest.raises(TightframeError, match=message) as caught:
        part(**args)
    assert type(caught.value) is error
    assert "\n" not in str(caught.value)


def recipe(**changes):
    plain = {
        "data": Part("Digits", {"imbalance": 0.1}),
        "backbone": Part("MLP", {"widths": [16, 12]}),
        "methods": {"followed": Method(Part("NearestETFClassifier", {"seed": AUTO, "gradient": "exact"}))},
        "optimizer": Part("SGD", {"lr": 0.1}),
        "epochs": 2,
        "batch_size": 64,
    }
    return Recipe(**{**plain, **changes})


def test_a_recipe_takes_two_steps():
    data = Digits(imbalance=0.1).load()
    made = build(recipe(), [], data=data).module("followed", 2)
    assert torch.equal(made.classifier.weight, NearestETFClassifier(12, 10, seed=2).weight)
    trainer(max_epochs=1, limit_train_batches=2).fit(made, make_loader(data.train, 64, seed=0))
    assert made.classifier.batches == 2


def test_a_recipe_with_mixup_is_refused_before_it_trains():
    with pytest.raises(ArgumentError, match="mixup_alpha must be 0 with a NearestETFClassifier"):
        build(recipe(mixup_alpha=0.2), data=Digits(imbalance=0.1).load())


def command(out, file):
    args = {"gradient": "exact", "seed": AUTO, "proximal": 0.1, "freeze_after": 11}
    text = {
        "data": {"name": "Digits", "args": {"imbalance": 0.1}},
        "backbone": {"name": "MLP", "args": {"widths": [16, 12]}},
        "methods": {"followed": {"classifier": {"name": "NearestETFClassifier", "args": args}}},
        "optimizer": {"name": "SGD", "args": {"lr": 0.1}},
        "epochs": 3,
        "batch_size": 64,
        "num_threads": 1,
    }
    file.write_text(yaml.safe_dump(text))
    return ["train", str(file), "--seed", "1", "--out", str(out)]


@pytest.mark.skipif(sys.platform == "win32", reason="no SIGKILL")
def test_a_command_killed_and_started_again_is_one_left_in_peace(tmp_path):
    whole, killed = (command(tmp_path / name, tmp_path / "recipe.yaml") for name in ("whole", "killed"))
    assert run(whole, tmp_path) == 0
    # 8 steps an epoch: it is frozen before the checkpoint that it goes on from.
    assert run(killed, tmp_path, AtStep(18)) == -signal.SIGKILL
    assert run(killed, tmp_path) == 0
    one, other = (tmp_path / name / "followed" / "seed-1" for name in ("killed", "whole"))
    assert_same_runs(one, other)
    state = last_checkpoint(one)["state_dict"]
    assert state["classifier.tracker.steps"] == 11
    assert last_checkpoint(one)["global_step"] == 24
