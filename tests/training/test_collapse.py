import pytest
import torch
from lightning.pytorch import Callback
from torch import nn
from torch.utils.data import DataLoader, IterableDataset

from tests.training.models import (
    TRAIN,
    K,
    Pairs,
    Plain,
    Weights,
    dataset,
    fit_with,
    measured,
    module,
    ordered,
    quiet,
    shuffled,
    trainer,
)
from tightframe.errors import ArgumentError, NonFiniteError, Notice, ShapeError
from tightframe.nn import DotRegressionLoss, SimplexETFClassifier
from tightframe.probing import measure
from tightframe.training import NeuralCollapseCallback, make_loader

pytestmark = quiet


def moments_of(records, **columns):
    """When and where collapse was measured."""
    return [(r.epoch, r.step, r.split, r.layer) for r in records.where(metric="nc1.pinv", **columns)]


def ours():
    return make_loader(TRAIN, 10, seed=0)


# --- when ---


def test_before_training_every_n_epochs_and_after_the_last():
    records = measured(NeuralCollapseCallback(every_n_epochs=2), max_epochs=5)
    assert moments_of(records) == [(epoch, 6 * epoch, "train", "features") for epoch in (0, 2, 4, 5)]


@pytest.mark.parametrize(
    "options",
    [
        pytest.param(
            {"max_epochs": -1, "max_steps": 9},
        ),
        pytest.param(
            {"max_epochs": 4},
        ),
    ],
)
def test_the_last_epoch_is_measured_however_training_ends(options):
    class StopAfterTwo(Callback):
        def on_train_epoch_end(self, trainer, pl_module):
            trainer.should_stop = trainer.current_epoch == 1

    callback = NeuralCollapseCallback(every_n_epochs=3)
    fitted = trainer(StopAfterTwo(), callback, **options)
    fitted.fit(Plain(), shuffled())
    assert moments_of(callback.records)[-1][1] == fitted.global_step > 0


def test_every_n_steps():
    records = measured(NeuralCollapseCallback(every_n_steps=4), max_epochs=2)
    assert [row[:2] for row in moments_of(records)] == [(0, 0), (0, 4), (1, 8), (1, 12)]


def test_every_n_steps_counts_optimiser_steps():
    records = measured(NeuralCollapseCallback(every_n_steps=2), max_epochs=2, accumulate_grad_batches=3)
    assert [step for _, step, *_ in moments_of(records)] == [0, 2, 4]


# --- what ---


def test_values_are_those_of_measure_on_the_same_weights():
    weights, callback = Weights(), NeuralCollapseCallback()
    fit_with(callback, weights, train=ours())
    for epoch in (0, 1, 2):
        model = Plain()
        model.load_state_dict(weights.after[epoch])
        expected = measure(model, make_loader(TRAIN, 512))
        rows = callback.records.where(epoch=epoch)
        assert {r.metric: r.value for r in rows} == {r.metric: r.value for r in expected}
        assert len(rows) == len(expected)
        assert {"nc1.pinv", "nc3.distance", "nc4.agreement", "cosine_margin"} < set(rows.unique("metric"))
    values = [callback.records.value("nc1.pinv", epoch=epoch) for epoch in (0, 1, 2)]
    assert len(set(values)) == 3


@pytest.mark.parametrize(
    "train", [lambda: shuffled(), lambda: shuffled(Pairs()), lambda: make_loader(TRAIN, 10, seed=1)]
)
@pytest.mark.parametrize("batch_size", [7, 512])
def test_neither_loader_nor_batches_matter(train, batch_size):
    records = measured(NeuralCollapseCallback(batch_size=batch_size), train=train(), model=Plain(lr=0.0), max_epochs=1)
    expected = measure(Plain(), make_loader(TRAIN, 512))
    for record in records.where(epoch=0):
        assert record.value == pytest.approx(expected.value(record.metric), rel=1e-4, abs=1e-7), record.metric


def test_a_module_of_ours_under_a_fixed_classifier():
    model = module(classifier=SimplexETFClassifier(5, K, seed=2, scale=4.0), loss=DotRegressionLoss())
    weights, callback = Weights(), NeuralCollapseCallback()
    fit_with(callback, weights, model=model, train=ours(), validation=ordered())
    model.load_state_dict(weights.after[1])
    expected = measure(model, make_loader(TRAIN, 512))
    rows = callback.records.where(epoch=1, split="train")
    assert {r.metric: r.value for r in rows} == {r.metric: r.value for r in expected}
    assert rows.value("nc2.gram.classifier") == pytest.approx(0, abs=1e-6)
    assert callback.records.unique("split") == ["train", "validation"]


def test_patterns_name_layers_and_the_classifier_stays_itself():
    callback = NeuralCollapseCallback(layers=["net.[024]", "net.6"], every_n_epochs=3)
    records = measured(callback, max_epochs=3, validation=ordered())
    assert records.unique("layer") == ["net.0", "net.2", "net.4", "features"]
    errors = records.where(metric="ncc.error")
    places = {(e, s, f"net.{i}") for e in (0, 3) for s in ("train", "validation") for i in (0, 2, 4)}
    assert {(r.epoch, r.split, r.layer) for r in errors} == places
    assert len(errors) == 12


def test_validation_alone_has_no_training_means():
    with pytest.warns(Notice, match="no training means"):
        records = measured(NeuralCollapseCallback(splits=["validation"]), validation=ordered(), max_epochs=1)
    assert records.unique("split") == ["validation"]
    assert "nc1.pinv" in records.unique("metric")
    assert "ncc.accuracy" not in records.unique("metric")


def test_training_alone():
    records = measured(NeuralCollapseCallback(splits=["train"]), validation=ordered(), max_epochs=1)
    assert records.unique("split") == ["train"]


def test_several_validation_loaders():
    loaders = [ordered(), ordered(dataset(6, seed=3))]
    records = measured(NeuralCollapseCallback(), validation=loaders, max_epochs=1)
    assert records.unique("split") == ["train", "validation.0", "validation.1"]
    named = module(splits=["validation", "test"])
    records = measured(NeuralCollapseCallback(), model=named, validation=loaders, max_epochs=1)
    assert records.unique("split") == ["train", "validation", "test"]
    alone = measure(named, loaders[1]).value("nc1.pinv")
    assert records.value("nc1.pinv", split="test") == pytest.approx(alone, rel=1e-5)


def test_nested_loaders():
    few = dataset(6, seed=3)
    train = {"a": [ordered(), ordered(few)], "b": ordered()}
    validation = {"x": [ordered(), ordered(few)]}

    class Nested(Plain):
        def training_step(self, batch, batch_idx):
            return super().training_step(batch["b"], batch_idx)

    records = measured(NeuralCollapseCallback(), model=Nested(), train=train, validation=validation, max_epochs=1)
    assert records.unique("split") == ["train", "validation.0", "validation.1"]


class Itself(list):
    """A loader that is its own iterator, and begins again when asked for one."""

    def __iter__(self):
        self.rest = super().__iter__()
        return self

    def __next__(self):
        return next(self.rest)


@pytest.mark.parametrize("kind", [iter, Itself])
def test_an_iterator_would_leave_nothing_to_the_training(kind):
    with pytest.raises(ArgumentError, match="at every pass, got"):
        fit_with(NeuralCollapseCallback(), train=kind(list(shuffled())))


def test_a_users_own_attribute_called_splits():
    model = Plain()
    model.splits = ("train", "validation", "test")
    records = measured(NeuralCollapseCallback(), model=model, validation=ordered(), max_epochs=1)
    assert records.unique("split") == ["train", "validation"]


def test_preset_and_scatter():
    names = {"nc1.pinv", "nc2.gram.classifier", "nc3.gram", "bias_collapse", "accuracy"}
    assert set(measured(NeuralCollapseCallback(preset="zhu2021"), max_epochs=1).unique("metric")) == names
    lean = set(measured(NeuralCollapseCallback(scatter=False), max_epochs=1).unique("metric"))
    assert "nc1.ratio" in lean
    assert not lean & {"nc1.pinv", "vci"}


def test_forward_and_num_classes_for_a_model_of_another_kind():
    class Odd(Plain):
        def forward(self, inputs, twice):
            return super().forward(inputs * (2 if twice else 1))

        def training_step(self, batch, batch_idx):
            return nn.functional.cross_entropy(self(batch[0], False), batch[1])

    callback = NeuralCollapseCallback(forward=lambda model, inputs: model(inputs, True), num_classes=K)
    model = fit_with(callback, model=Odd(), max_epochs=1)
    plain = Plain()
    plain.load_state_dict(model.state_dict())
    doubled = [(2 * TRAIN.tensors[0], TRAIN.tensors[1])]
    assert callback.records.value("nc1.pinv") == pytest.approx(measure(plain, doubled).value("nc1.pinv"), rel=1e-6)


def test_a_stream_is_measured_as_it_comes():
    class Stream(IterableDataset):
        def __iter__(self):
            return iter(Pairs())

    records = measured(NeuralCollapseCallback(), train=DataLoader(Stream(), 10), model=Plain(lr=0.0), max_epochs=1)
    expected = measure(Plain(), make_loader(TRAIN, 10)).value("nc1.pinv")
    assert records.where(epoch=0).value("nc1.pinv") == expected


@pytest.mark.parametrize(
    "precision",
    [
        "32-true",
        "bf16-mixed",
        pytest.param(
            "bf16-true",
        ),
        pytest.param(
            "64-true",
        ),
    ],
)
def test_precision_of_the_trainer(precision):
    records = measured(NeuralCollapseCallback(), precision=precision, validation=ordered(), max_epochs=1)
    expected = measure(Plain(), make_loader(TRAIN, 512)).value("nc1.pinv")
    assert records.where(epoch=0, split="train").value("nc1.pinv") == pytest.approx(expected, rel=0.1)


# --- bad input ---


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"every_n_epochs": 0}, "every_n_epochs"),
        ({"every_n_steps": -1}, "every_n_steps"),
        ({"every_n_steps": 1.5}, "every_n_steps"),
        ({"batch_size": 0}, "batch_size"),
        ({"splits": ["test"]}, "splits"),
        ({"preset": "papyan"}, "preset"),
    ],
)
def test_bad_options(options, text):
    with pytest.raises(ArgumentError, match=text):
        NeuralCollapseCallback(**options)


@pytest.mark.parametrize(
    ("callback", "options", "error", "text"),
    [
        (NeuralCollapseCallback(layers=["net.9"]), {}, ArgumentError, "net.9"),
        (NeuralCollapseCallback(num_classes=2), {}, ShapeError, "K = 2"),
        (NeuralCollapseCallback(classifier="net.9"), {}, ArgumentError, "classifier must name"),
    ],
)
def test_bad_input(callback, options, error, text):
    with pytest.raises(error, match=text):
        fit_with(callback, **options)


def test_a_model_without_classifier():
    class Bare(Plain):
        def forward(self, inputs):
            return self.net(inputs).square()

    with pytest.raises(ArgumentError, match=r"'net\.6' is off by .*; name it with classifier="):
        fit_with(NeuralCollapseCallback(), model=Bare())


# --- what fails in the middle of a training ---


class Spoiled(Plain):
    """A network that returns nan where it is measured after two epochs."""

    def forward(self, inputs):
        return self.net(inputs) * (1 if self.training or self.trainer.global_step != 12 else torch.nan)


def test_a_measurement_that_fails_leaves_a_gap_and_the_training_goes_on():
    callback = NeuralCollapseCallback()
    with pytest.warns(RuntimeWarning, match="collapse was not measured after step 12.*must be finite"):
        fit_with(callback, model=Spoiled(), max_epochs=3)
    assert [epoch for epoch, *_ in moments_of(callback.records)] == [0, 1, 3]
    with pytest.raises(NonFiniteError):
        fit_with(NeuralCollapseCallback(on_error="raise"), model=Spoiled(), max_epochs=3)
