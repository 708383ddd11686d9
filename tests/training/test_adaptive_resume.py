"""AdaptiveETF killed and resumed, from Python and from the command line, against the same training left in peace."""

import sys
from functools import partial

import pytest
import torch
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import ModelCheckpoint

from tests.training.adaptive_models import LAYERS, STEPS, Rates, copied, easy, locks, network, playing
from tests.training.models import TRAIN, Plain, quiet, trainer
from tests.training.processes import AtCheckpoint, AtStep, run
from tests.training.test_resume import KILLED, assert_same_training, checkpoint, directory, refused
from tightframe import cli
from tightframe.records import Records
from tightframe.runs.layout import RECORDS_FILE, TIMING_FILE
from tightframe.training import AdaptiveETF, NeuralCollapseCallback, RecordWriter, make_loader

pytestmark = quiet
EPOCHS = 5
DEPTHS = (3, 3, 2, 1)  # locks at the ends of epochs 2 and 4


class Foreign(Plain):
    """Hands over every parameter, in two groups."""

    def configure_optimizers(self):
        matrices = [p for p in self.parameters() if p.ndim > 1]
        rest = [p for p in self.parameters() if p.ndim <= 1]
        return torch.optim.AdamW([{"params": matrices}, {"params": rest, "weight_decay": 0.0}], 0.01)

    def on_train_batch_start(self, batch, batch_idx):
        torch.manual_seed(self.global_step)  # its dropout


class Training:
    """One training and what it leaves."""

    def __init__(self, folder, model, callback, resumed=None):
        folder.mkdir(exist_ok=True)
        self.model, self.callback, self.rates = model, callback, Rates()
        keep = ModelCheckpoint(folder, "{epoch}", save_top_k=-1, every_n_epochs=1, save_on_train_epoch_end=True)
        writer = RecordWriter(folder / "records.jsonl")
        fitted = trainer(
            NeuralCollapseCallback(), callback, writer, self.rates, keep, max_epochs=EPOCHS, enable_checkpointing=True
        )
        fitted.fit(model, make_loader(TRAIN, 10, seed=0), ckpt_path=resumed, weights_only=False)
        self.records = (folder / "records.jsonl").read_bytes()
        self.optimizer = fitted.optimizers[0].state_dict()


def assert_same(resumed, whole):
    assert resumed.records == whole.records
    assert resumed.callback.records == whole.callback.records
    assert resumed.callback.locked == whole.callback.locked
    assert resumed.rates.steps == whole.rates.steps[-len(resumed.rates.steps) :]
    others = copied(whole.model)
    assert all(torch.equal(t, others[name]) for name, t in resumed.model.state_dict().items())
    assert [p.requires_grad for p in resumed.model.parameters()] == [p.requires_grad for p in whole.model.parameters()]
    torch.testing.assert_close(resumed.optimizer["state"], whole.optimizer["state"], rtol=0, atol=0)
    assert resumed.optimizer["param_groups"] == whole.optimizer["param_groups"]


def cosine(optimizer, steps):
    return torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)


def onecycle(optimizer, steps):
    return torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.1, total_steps=steps)


def falling(optimizer, steps):
    """The steps are in a function, which no checkpoint keeps."""
    return torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / steps)


@pytest.mark.parametrize(
    ("schedule", "options", "epochs"),
    [
        (falling, {}, (1, 2, 3, 4)),
        (onecycle, {"kind": "haar"}, (2,)),
        (cosine, {"kind": "class-rank", "gain": "match-init"}, (4,)),
    ],
)
def test_locked_along_the_way(monkeypatch, tmp_path, schedule, options, epochs):
    def train(folder, after=0):
        playing(monkeypatch, DEPTHS[after:])
        resumed = tmp_path / f"epoch={after - 1}.ckpt" if after else None
        return Training(folder, network(schedule), AdaptiveETF(patience=2, **options), resumed)

    whole = train(tmp_path)
    assert locks(whole.callback) == {2: list(LAYERS[3:]), 4: [LAYERS[2]]}
    for after in epochs:
        resumed = train(tmp_path, after)
        assert len(resumed.rates.steps) == (EPOCHS - after) * STEPS
        assert_same(resumed, whole)


@pytest.mark.parametrize(
    ("model", "options"),
    [
        (Foreign, {}),
        (partial(network, falling), {"first_stage": 3}),
        (Foreign, {"first_stage": 3, "kind": "gaussian"}),
        (partial(network, cosine), {"start": 2, "kind": "orthogonal"}),
    ],
)
def test_resumed_before_and_after_a_lock(tmp_path, model, options):
    whole = Training(tmp_path, model(), easy(**options))
    assert list(locks(whole.callback)) == [0 if "start" in options else options.get("first_stage", 2)]
    for after in (1, 3):
        assert_same(Training(tmp_path, model(), easy(**options), tmp_path / f"epoch={after - 1}.ckpt"), whole)


@pytest.mark.parametrize("options", [{}, {"start": 2}, {"first_stage": 4}])
def test_a_checkpoint_of_a_training_without_the_callback(tmp_path, options):
    Training(tmp_path, network(cosine), Callback())
    callback = easy(**options)
    Training(tmp_path, network(cosine), callback, tmp_path / "epoch=1.ckpt")
    (epoch,) = locks(callback)
    assert epoch == (2 if "start" in options else 4)
    assert callback.records.where(metric="trainable_parameters").unique("epoch") == sorted({2, epoch})


# --- from the command line ---

RECIPE = """
description: a small network that locks layers
data: {name: Digits}
backbone: {name: MLP, args: {widths: [12, 12, 12]}}
methods:
  baseline: {classifier: {name: LinearClassifier}}
  along: {classifier: {name: LinearClassifier}, adaptive: {epsilon: 0.9, patience: 2}}
  stages: {classifier: {name: LinearClassifier}, adaptive: {epsilon: 0.9, first_stage: 2, kind: haar, gain: unit}}
optimizer: {name: SGD, args: {lr: 0.05, momentum: 0.9, weight_decay: 0.0005}}
scheduler: {name: CosineAnnealingLR, args: {T_max: auto}}
epochs: 4
batch_size: 128
collapse: {every_n_epochs: 2}
"""


@pytest.fixture
def command(tmp_path):
    """Return the arguments of a training into a directory."""
    (tmp_path / "recipe.yaml").write_text(RECIPE)

    def arguments(out, method="along", *more):
        return ["train", str(tmp_path / "recipe.yaml"), "--method", method, "--out", str(out), *more]

    return arguments


@pytest.mark.skipif(sys.platform == "win32", reason="no SIGKILL")
def test_the_command_killed_around_a_lock(command, tmp_path):
    whole, out = tmp_path / "whole", tmp_path / "killed"
    assert run(command(whole), tmp_path) == 0
    records = Records.read(directory(whole) / RECORDS_FILE)
    assert records.where(metric="lock.distance").unique("epoch") == [2]
    steps = checkpoint(whole)["global_step"] // 4
    assert run(command(out), tmp_path, AtCheckpoint(2)) == KILLED  # locked, and no checkpoint knows it
    assert "lock.distance" in (directory(out) / RECORDS_FILE).read_text()
    assert checkpoint(out)["epoch"] == 0
    assert run(command(out), tmp_path, AtStep(2 * steps + 2)) == KILLED
    assert checkpoint(out)["epoch"] == 1
    assert run(command(out), tmp_path, report=True) == 0
    assert_same_training(out, whole)
    trained = records.value("trainable_parameters")
    assert f'"trainable_parameters": {trained:.0f}' in (directory(out) / TIMING_FILE).read_text()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ("{epsilonn: 0.1}", "epsilonn"),
        ("{epsilon: 2.0}", "epsilon must be finite and in [0, 1), got 2.0"),
        ("{epsilon: much}", "Parser key \"epsilon\": Expected a <class 'float'>. Got value: much"),
        ("{gain: big}", "gain must be one of 'unit'"),
        ("{layers: 'backbone.*'}", 'adaptive: Parser key "layers"'),
        ("{start: 1, first_stage: 1}", "start and first_stage exclude each other"),
        ("[epsilon]", "adaptive"),
    ],
)
def test_wrong_options_are_one_line_and_write_nothing(command, tmp_path, capsys, options, said):
    path = tmp_path / "recipe.yaml"
    path.write_text(RECIPE.replace("{epsilon: 0.9, patience: 2}", options))
    line = refused(command(tmp_path / "out"), capsys)
    assert line.startswith("tightframe: error: ")
    assert said in line
    assert not (tmp_path / "out").exists()


def test_what_only_the_training_can_know_is_one_line_too(command, tmp_path, capsys):
    line = refused(command(tmp_path / "out", "stages", "--epochs", "2"), capsys)
    assert "first_stage must lie between 0, the epochs behind, and max_epochs = 2, got 2" in line


def test_a_method_without_it_trains_everything(command, tmp_path, monkeypatch):
    monkeypatch.setattr(cli, "report", lambda out: None)
    cli.main(command(tmp_path / "out", "baseline", "--epochs", "1"))
    metrics = Records.read(directory(tmp_path / "out") / RECORDS_FILE).unique("metric")
    assert "loss" in metrics
    assert not {"lock.distance", "effective_depth", "trainable_parameters"} & set(metrics)
