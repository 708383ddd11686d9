"""What AdaptiveETF does to a training when it locks layers, and what it leaves as it was."""

import pytest
import torch
from lightning.pytorch import Callback
from torch import nn
from torch.optim.swa_utils import update_bn
from torch.utils.data import DataLoader, TensorDataset

from tests.training.adaptive_models import (
    LAYERS,
    STEPS,
    WEIGHTS,
    WIDTH,
    At,
    Rates,
    Seen,
    copied,
    easy,
    fit,
    locks,
    momentum,
    network,
    playing,
)
from tests.training.models import TRAIN, K, Plain, Weights, quiet, sgd, trainer
from tightframe.frames import nearest_simplex_etf, nearest_simplex_weight
from tightframe.nn import LinearClassifier, SimplexETFClassifier
from tightframe.records import Records
from tightframe.training import (
    AdaptiveETF,
    ClassifierModule,
    NeuralCollapseCallback,
    RecordWriter,
    TokenMean,
    make_loader,
)

pytestmark = quiet


# --- what a lock does ---


@pytest.mark.parametrize("optimizer", [momentum, lambda p: torch.optim.AdamW(p, lr=0.01, weight_decay=0.1)])
def test_a_locked_weight_stays_bit_for_bit(monkeypatch, optimizer):
    playing(monkeypatch, [3, 3, 1, 1, None])
    weights, callback = Weights(), AdaptiveETF(patience=2)
    model = network(optimizer=optimizer)
    fitted = trainer(callback, weights, max_epochs=6)
    fitted.fit(model, make_loader(TRAIN, 10, seed=0))
    assert locks(callback) == {2: list(LAYERS[3:]), 4: list(LAYERS[1:3])}
    for epoch, names in {2: WEIGHTS[3:], 4: WEIGHTS[1:]}.items():
        for later in range(epoch + 1, 7):
            for name in names:
                assert torch.equal(weights.after[later][name], weights.after[epoch][name])
            for name in ("backbone.0.weight", "backbone.9.bias", "classifier.bias", "backbone.7.weight"):
                assert not torch.equal(weights.after[later][name], weights.after[epoch][name])
    (found,) = fitted.optimizers
    held = {id(p) for group in found.param_groups for p in group["params"]}
    trained = {id(p) for p in model.parameters() if p.requires_grad}
    assert held == trained == {id(p) for p in found.state}
    assert all(model.get_parameter(name).grad is None for name in WEIGHTS[1:])


def test_an_aligned_lock_is_the_simplex_nearest_to_the_weight_then(monkeypatch):
    playing(monkeypatch, [2])
    before = {}
    model = fit(AdaptiveETF(patience=1), At(1, lambda m: before.update(copied(m))), epochs=2)
    for name in WEIGHTS[2:4]:
        expected = nearest_simplex_weight(before[name].double()).float()
        torch.testing.assert_close(model.get_parameter(name), expected, check_dtype=False)
    nearest = nearest_simplex_etf(before["classifier.weight"].double(), gradient="none").frame
    gain = (nearest * before["classifier.weight"]).sum() / K
    torch.testing.assert_close(model.classifier.weight, gain * nearest, check_dtype=False)


@pytest.mark.parametrize("kind", ["haar", "canonical", "class-rank", "orthogonal", "gaussian"])
def test_kinds_and_draws(monkeypatch, kind):
    drawn = []
    for seed in (0, 0, 1):
        playing(monkeypatch, [1])
        model = fit(AdaptiveETF(patience=1, kind=kind, gain=2.0, seed=seed), epochs=2)
        drawn.append([model.get_parameter(name) for name in WEIGHTS[1:]])
    vertices = K if kind == "class-rank" else WIDTH
    for weight in drawn[0][:3]:
        torch.testing.assert_close(weight.norm(), torch.tensor(2 * vertices**0.5))
        rank = {"class-rank": K - 1, "orthogonal": WIDTH, "gaussian": WIDTH}.get(kind, WIDTH - 1)
        assert torch.linalg.matrix_rank(weight, rtol=1e-4) == rank
    first, again, other = drawn
    assert all(map(torch.equal, first, again))
    if kind != "canonical":
        assert not any(map(torch.equal, first, other))
        assert not torch.equal(first[0], first[1])
        assert not torch.equal(first[1], first[2])


def test_a_fixed_classifier_is_skipped():
    classifier = SimplexETFClassifier(WIDTH, K, learn_scale=True)
    callback = easy()
    fit(callback, model=network(classifier=classifier))
    assert callback.locked == list(LAYERS[1:4])


def test_a_weight_frozen_by_hand_is_left_alone():
    model = network()
    model.backbone[6].requires_grad_(False)
    before = model.backbone[6].weight.clone()
    callback = easy()
    fit(callback, model=model)
    assert callback.locked == ["backbone.3", "backbone.9", "classifier"]
    assert torch.equal(model.backbone[6].weight, before)


def test_a_model_whose_layers_are_all_fixed():
    model = network(lambda optimizer, steps: torch.optim.lr_scheduler.LinearLR(optimizer, total_iters=steps))
    for name in WEIGHTS:
        model.get_parameter(name).requires_grad_(False)
    callback, rates = easy(), Rates()
    fit(callback, rates, model=model)
    assert not callback.locked
    assert [row.epoch for row in callback.records.where(metric="trainable_parameters")] == [0]
    assert rates.steps == sorted(rates.steps)  # the schedule went on


def test_locked_before_training():
    weights, callback = Weights(), AdaptiveETF(start=2, kind="haar")
    model = fit(callback, weights, epochs=3)
    assert locks(callback) == {0: list(LAYERS[2:])}
    assert callback.records.unique("metric") == ["lock.distance", "trainable_parameters"]
    assert len(callback.records.where(metric="trainable_parameters")) == 1
    assert torch.equal(weights.after[3]["backbone.6.weight"], model.backbone[6].weight)
    assert [name for name, p in model.named_parameters() if not p.requires_grad] == WEIGHTS[2:]


# --- batch norm, random numbers and modes ---


def test_batch_norm_is_estimated_anew_from_the_training_batches(monkeypatch):
    playing(monkeypatch, [2])
    loader = make_loader(TRAIN, 10, seed=0)
    weights, stale = Weights(), {}
    fit(AdaptiveETF(patience=1), At(1, lambda m: stale.update(copied(m))), loader=loader, epochs=2)
    playing(monkeypatch, [2])
    trainer(AdaptiveETF(patience=1), weights, max_epochs=2).fit(network(), loader)
    expected = network()
    expected.load_state_dict(weights.after[1])
    loader.batch_sampler.set_epoch(0) if loader.batch_sampler else loader.sampler.set_epoch(0)
    update_bn(loader, expected)
    statistics = [name for name in stale if "running" in name]
    assert len(statistics) == 8
    for name in statistics:
        assert torch.equal(weights.after[1][name], expected.state_dict()[name])
        assert not torch.equal(weights.after[1][name], stale[name])


LOADERS = {
    "seeded": lambda: make_loader(TRAIN, 10, seed=0),
    "global": lambda: DataLoader(TRAIN, 10, shuffle=True),
    "generator": lambda: DataLoader(TRAIN, 10, shuffle=True, generator=torch.Generator().manual_seed(3)),
    "sampler": lambda: DataLoader(
        TRAIN, 10, sampler=torch.utils.data.RandomSampler(TRAIN, generator=torch.Generator().manual_seed(3))
    ),
    "workers": lambda: DataLoader(TRAIN, 10, shuffle=True, num_workers=1, persistent_workers=True),
}


@pytest.mark.parametrize("loader", LOADERS)
def test_random_numbers_order_and_modes_are_left_alone(loader):
    seen = []
    for callback in (easy(), easy(first_stage=2), easy(start=1), Callback()):
        torch.manual_seed(5)
        seen.append(Seen())
        model = Plain()  # with dropout
        modes = []
        watch = At(2, lambda m, modes=modes: modes.append([part.training for part in m.modules()]))
        frozen = At(1, lambda m: m.net[1].eval())
        trainer(frozen, watch, callback, seen[-1], max_epochs=4).fit(model, LOADERS[loader]())
        if not isinstance(callback, AdaptiveETF):
            break
        assert callback.locked == ["net.4", "net.6"]
        modes.append([part.training for part in model.modules()])
        assert modes[0] == modes[1]
        assert not model.net[1].training
    for other in seen[:-1]:
        assert all(map(torch.equal, other.batches, seen[-1].batches))
        assert all(map(torch.equal, other.states, seen[-1].states))
        assert len(other.batches) == len(seen[-1].batches)


# --- what can be trained ---


@pytest.mark.parametrize("precision", ["bf16-mixed", "bf16-true", "64-true"])
def test_precisions(precision):
    callback, weights = easy(), Weights()
    fit(callback, weights, epochs=4, precision=precision)
    assert callback.locked == list(LAYERS[1:])
    assert all(t.isfinite().all() for t in weights.after[4].values())
    assert all(torch.equal(weights.after[4][name], weights.after[3][name]) for name in WEIGHTS[1:])


def ids():
    tokens = torch.randint(1, 20, (60, 7), generator=torch.Generator().manual_seed(0))
    encoder = nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), 1)
    backbone = nn.Sequential(nn.Embedding(20, 8), encoder, nn.Flatten(), nn.Linear(56, 8))
    return tokens, backbone, {"pooling": "mean"}, ["1.layers.0.linear2", "3"]


def bag():
    tokens = torch.randint(1, 20, (60, 7), generator=torch.Generator().manual_seed(0))
    backbone = nn.Sequential(TokenMean(20, 8), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8))
    return tokens, backbone, {"layers": ["backbone.[13]"]}, ["3"]


def images():
    pixels = torch.rand(60, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    convolutions = [nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Conv2d(4, 2, 3), nn.BatchNorm2d(2), nn.ReLU()]
    return pixels, nn.Sequential(*convolutions, nn.Flatten(), nn.Linear(32, 8)), {}, ["2", "6"]


@pytest.mark.parametrize("make", [ids, bag, images])
def test_tokens_and_images(make):
    inputs, backbone, options, names = make()
    dataset = TensorDataset(inputs, torch.arange(60) % K)
    model = ClassifierModule(backbone, LinearClassifier(8, K), nn.CrossEntropyLoss(), sgd(0.01))
    callback = easy(**options)
    fit(callback, model=model, loader=make_loader(dataset, 10, seed=0), epochs=3)
    rest = [] if "layers" in options else ["classifier"]
    assert callback.locked == [*(f"backbone.{name}" for name in names), *rest]


class Two(Plain):
    """Takes a second argument."""

    def forward(self, inputs, shift):
        return self.net(inputs + shift)

    def training_step(self, batch, batch_idx):
        return nn.functional.cross_entropy(self(batch[0], 0), batch[1])


def test_batches_that_are_mappings():
    class Named(Plain):
        def forward(self, image):
            return self.net(image)

        def training_step(self, batch, batch_idx):
            return nn.functional.cross_entropy(self(batch["image"]), batch["label"])

    rows = [{"image": x, "label": y} for x, y in zip(*TRAIN.tensors, strict=True)]
    callback = easy()
    fit(callback, model=Named(), loader=DataLoader(rows, 10))
    assert list(locks(callback)) == [2]


def test_a_model_that_needs_its_own_forward():
    callback = easy(forward=lambda module, inputs: module(inputs, 0))
    fit(callback, model=Two())
    assert callback.locked == ["net.4", "net.6"]


@pytest.mark.parametrize("first", ["adaptive", "collapse", "writer"])
def test_beside_other_callbacks(tmp_path, first):
    callbacks = {
        "adaptive": easy(),
        "collapse": NeuralCollapseCallback(),
        "writer": RecordWriter(tmp_path / "records.jsonl"),
    }
    order = sorted(callbacks, key=lambda name: name != first)
    trainer(*(callbacks[name] for name in order), max_epochs=4).fit(network(), make_loader(TRAIN, 10, seed=0))
    written = Records.read(tmp_path / "records.jsonl")
    layers = {"ncc.error", "lock.distance", "effective_depth", "trainable_parameters"}
    mine = [row.to_json() for row in written if row.metric in layers and row.layer != "features"]
    assert mine == [row.to_json() for row in callbacks["adaptive"].records]
    keys = [(r.epoch, r.step, r.split, r.layer, r.metric) for r in written if r.metric != "trainable_parameters"]
    assert len(set(keys)) == len(keys)


def test_a_callback_begins_anew_with_another_training():
    callback = easy()
    fit(callback)
    rows = callback.records
    model = network()
    fit(callback, model=model, epochs=1)
    assert all(p.requires_grad for p in model.parameters())
    assert not callback.locked
    fit(callback)
    assert callback.records == rows


# --- the learning rate ---

SCHEDULES = {
    "CosineAnnealingLR": lambda o, steps: torch.optim.lr_scheduler.CosineAnnealingLR(o, steps),
    "OneCycleLR": lambda o, steps: torch.optim.lr_scheduler.OneCycleLR(o, 0.1, total_steps=steps),
    "LinearLR": lambda o, steps: torch.optim.lr_scheduler.LinearLR(o, 1.0, 0.0, total_iters=steps),
    "LambdaLR": lambda o, steps: torch.optim.lr_scheduler.LambdaLR(o, lambda step: 1 - step / steps),
}


def rates(schedule, steps, lr=0.1):
    """Learning rates of a training of so many steps."""
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr, momentum=0.9)
    scheduler, found = schedule(optimizer, steps), []
    for _ in range(steps):
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return found


@pytest.mark.parametrize("name", SCHEDULES)
def test_the_schedule_begins_again_over_the_steps_that_are_left(monkeypatch, name):
    playing(monkeypatch, [3, 3, 2, 2])
    seen, schedule = Rates(), SCHEDULES[name]
    fit(AdaptiveETF(patience=2), seen, model=network(schedule), epochs=5)
    first, second, third = rates(schedule, 5 * STEPS), rates(schedule, 3 * STEPS), rates(schedule, STEPS)
    assert seen.steps == [*first[: 2 * STEPS], *second[: 2 * STEPS], *third]


def test_a_learning_rate_that_is_a_tensor(monkeypatch):
    playing(monkeypatch, [3, 3, 2, 2])
    seen, cosine = Rates(), SCHEDULES["CosineAnnealingLR"]
    model = network(cosine, optimizer=lambda p: torch.optim.Adam(p, torch.tensor(0.125)))
    fit(AdaptiveETF(patience=2), seen, model=model, epochs=5)
    starts = [seen.steps[step] for step in (0, 2 * STEPS, 4 * STEPS)]
    assert starts == [0.125] * 3


def test_the_schedule_goes_on_if_it_should_not_begin_again(monkeypatch):
    cosine = SCHEDULES["CosineAnnealingLR"]
    for options in ({"rewarm": False}, {"min_trainable": 5}):  # the second has nothing to lock
        playing(monkeypatch, [3, 3, 2, 2])
        seen = Rates()
        fit(AdaptiveETF(patience=2, **options), seen, model=network(cosine), epochs=5)
        assert seen.steps == rates(cosine, 5 * STEPS)


def test_without_a_schedule_the_learning_rate_stays(monkeypatch):
    playing(monkeypatch, [3, 3])
    seen = Rates()
    fit(AdaptiveETF(patience=2), seen, epochs=3, model=network(optimizer=sgd(0.2)))
    assert set(seen.steps) == {0.2}


# --- two stages ---


def test_the_second_stage_starts_from_the_first_weights(monkeypatch):
    playing(monkeypatch, [3])
    cosine, seen, weights = SCHEDULES["CosineAnnealingLR"], Rates(), Weights()
    callback = AdaptiveETF(first_stage=2, kind="haar", gain="unit")
    model = network(cosine, norm=nn.Identity)
    momenta = []

    class Momenta(Callback):
        def on_train_epoch_start(self, trainer, pl_module):
            momenta.append(len(trainer.optimizers[0].state))

    trainer(callback, weights, seen, Momenta(), max_epochs=5).fit(model, make_loader(TRAIN, 10, seed=0))
    assert locks(callback) == {2: list(LAYERS[3:])}
    for name, first in weights.after[0].items():
        same = torch.equal(weights.after[2][name], first)
        assert same == (name not in WEIGHTS[3:])
        assert not torch.equal(weights.after[1][name], first)
    assert all(torch.equal(weights.after[5][name], weights.after[2][name]) for name in WEIGHTS[3:])
    assert momenta == [0, 10, 0, 8, 8]
    assert seen.steps == [*rates(cosine, 5 * STEPS)[: 2 * STEPS], *rates(cosine, 3 * STEPS)]
    assert callback.records.where(metric="effective_depth").unique("epoch") == [2]


@pytest.mark.parametrize(("depth", "options"), [(None, {}), (5, {}), (2, {"min_trainable": 5})])
def test_without_layers_to_lock_training_goes_on(monkeypatch, depth, options):
    playing(monkeypatch, [depth])
    seen, cosine = Rates(), SCHEDULES["CosineAnnealingLR"]
    callback = AdaptiveETF(first_stage=2, **options)
    model = fit(callback, seen, model=network(cosine), epochs=4)
    plain = fit(Callback(), model=network(cosine), epochs=4)
    assert not callback.locked
    assert seen.steps == rates(cosine, 4 * STEPS)
    assert all(torch.equal(t, plain.state_dict()[name]) for name, t in model.state_dict().items())
