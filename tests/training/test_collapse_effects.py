"""What NeuralCollapseCallback leaves behind, and what it leaves alone."""

import pickle

import pytest
import torch
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import Logger
from torch.utils.data import DataLoader, Sampler

from tests.training.models import (
    TRAIN,
    K,
    Plain,
    Weights,
    fit_with,
    measured,
    module,
    ordered,
    quiet,
    shuffled,
    trainer,
)
from tightframe.records import Records
from tightframe.runs.snapshots import Snapshot
from tightframe.training import NeuralCollapseCallback, make_loader

pytestmark = quiet

# --- what stays as it was ---


class Counting(Sampler):
    """A sampler that keeps what it did in containers."""

    def __init__(self):
        self.epochs, self.state = [], {"epoch": 0}

    def __len__(self):
        return len(TRAIN)

    def __iter__(self):
        self.state["epoch"] += 1
        self.epochs.append(self.state["epoch"])
        generator = torch.Generator().manual_seed(self.state["epoch"])
        yield from torch.randperm(len(TRAIN), generator=generator).tolist()


def test_samplers_with_containers():
    samplers = [Counting(), Counting()]
    models = [
        fit_with(callback, train=DataLoader(TRAIN, 10, sampler=sampler))
        for callback, sampler in zip((Callback(), NeuralCollapseCallback(every_n_steps=2)), samplers, strict=True)
    ]
    assert samplers[0].epochs == samplers[1].epochs
    assert [torch.equal(*pair) for pair in zip(*(m.parameters() for m in models), strict=True)] == [True] * 8


def test_modes_are_as_before():
    class Modes(Callback):
        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            modes.append([m.training for m in pl_module.modules()])
            pl_module.net[1].eval()

    modes = []
    fit_with(NeuralCollapseCallback(every_n_steps=1), Modes(), max_epochs=1)
    assert all(modes[0])
    assert [m.count(False) for m in modes[1:]] == [1] * 5


def test_loggers_get_the_same_numbers():
    class Kept(Logger):
        def __init__(self):
            super().__init__()
            self.values = {}

        name = version = "kept"

        def log_hyperparams(self, *args, **kwargs):
            pass

        def log_metrics(self, metrics, step=None):
            self.values |= {(name, step): value for name, value in metrics.items()}

    logger = Kept()
    records = measured(NeuralCollapseCallback(), logger=logger, validation=ordered(), max_epochs=1)
    for r in records:
        assert logger.values[f"{r.split}/{r.layer}/{r.metric}", r.step] == r.value
    assert len(records) > 50


# --- snapshots ---


def test_snapshots(tmp_path):
    weights, callback = Weights(), NeuralCollapseCallback(every_n_epochs=2, snapshot_dir=tmp_path / "snapshots")
    fit_with(callback, weights, max_epochs=3, train=ordered(TRAIN), validation=ordered())
    paths = sorted((tmp_path / "snapshots").iterdir())
    assert [path.name for path in paths] == [f"epoch-{epoch:05d}.safetensors" for epoch in (0, 2, 3)]
    for path, epoch in zip(paths, (0, 2, 3), strict=True):
        model = Plain()
        model.load_state_dict(weights.after[epoch])
        features = model.eval().net[:6](TRAIN.tensors[0]).detach()
        snapshot = Snapshot.load(path)
        assert snapshot.epoch == epoch
        assert torch.equal(snapshot.class_vectors, model.net[6].weight)
        means = [features[TRAIN.tensors[1] == k].mean(dim=0) for k in range(K)]
        torch.testing.assert_close(snapshot.class_means, torch.stack(means), rtol=1e-5, atol=1e-6)
        for h, y in zip(snapshot.features, snapshot.labels, strict=True):
            assert (features[TRAIN.tensors[1] == y] == h).all(dim=1).any()
        assert snapshot.labels.bincount().tolist() == TRAIN.tensors[1].bincount().tolist()


def test_absent_classes_in_a_snapshot(tmp_path):
    inputs, labels = TRAIN.tensors
    data = torch.utils.data.TensorDataset(inputs[labels > 0], labels[labels > 0])
    fit_with(NeuralCollapseCallback(snapshot_dir=tmp_path), train=shuffled(data), max_epochs=1)
    means = Snapshot.load(tmp_path / "epoch-00001.safetensors").class_means
    assert means.isnan().all(dim=1).tolist() == [True, False, False]


# --- checkpoints ---


def test_a_resumed_training_has_the_records_of_an_uninterrupted_one(tmp_path):
    def run(epochs, checkpoint=None):
        callback = NeuralCollapseCallback()
        fitted = trainer(callback, max_epochs=epochs, default_root_dir=tmp_path)
        fitted.fit(module(seed=3), make_loader(TRAIN, 10, seed=0), ordered(), ckpt_path=checkpoint)
        fitted.save_checkpoint(tmp_path / "here.ckpt")
        return callback.records

    def without(records, epoch):
        return Records(r for r in records if r.epoch != epoch)

    whole = run(4)
    first = run(2)
    resumed = run(4, tmp_path / "here.ckpt")
    assert len(first) < len(resumed)
    assert resumed == whole
    assert without(whole, 0) != whole


@pytest.mark.parametrize("when", [{"every_n_train_steps": 1}, {"monitor": "validation_loss", "save_top_k": -1}])
def test_checkpoints_saved_just_before_the_end_of_an_epoch(tmp_path, when):
    def run(folder, epochs=3, checkpoint=None):
        callback, keep = NeuralCollapseCallback(), ModelCheckpoint(tmp_path / folder, "last", **when)
        fitted = trainer(callback, keep, max_epochs=epochs, enable_checkpointing=True)
        model = Plain()
        model.net[3] = torch.nn.Identity()  # dropout would draw anew
        fitted.fit(model, make_loader(TRAIN, 10, seed=0), ordered(), ckpt_path=checkpoint, weights_only=False)
        return callback.records

    run("first", 2)
    assert run("second", 3, next((tmp_path / "first").glob("last.ckpt"))) == run("whole")


def test_a_callback_used_again_forgets_and_can_be_pickled():
    callback = NeuralCollapseCallback()
    first = measured(callback)
    assert measured(pickle.loads(pickle.dumps(callback))) == first


def test_two_callbacks_in_one_trainer():
    callbacks = NeuralCollapseCallback(preset="zhu2021"), NeuralCollapseCallback(every_n_epochs=2)
    trainer(*callbacks).fit(Plain(), shuffled())
    assert len(callbacks[0].records.unique("metric")) == 5
