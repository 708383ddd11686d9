import json

import pytest

from tests.training.models import TRAIN, Plain, module, ordered, quiet, shuffled, trainer
from tightframe.errors import DataFileError, ResumeError
from tightframe.records import Records
from tightframe.training import NeuralCollapseCallback, RecordWriter, make_loader

pytestmark = quiet


@pytest.fixture
def path(tmp_path):
    return tmp_path / "run" / "records.jsonl"


def fit(path, epochs=2, checkpoint=None, collapse=True, **options):
    """Train, and return the Trainer, whose checkpoint can be saved."""
    callbacks = [NeuralCollapseCallback(every_n_epochs=2), RecordWriter(path, **options)][not collapse :]
    fitted = trainer(*callbacks, max_epochs=epochs)
    fitted.fit(module(seed=1), make_loader(TRAIN, 10, seed=0), ordered(), ckpt_path=checkpoint)
    return fitted


def test_every_number_once_with_run_and_seed(path):
    fitted = fit(path, epochs=3, run="mine", seed=4)
    records = Records.read(path)
    assert {(r.run, r.seed) for r in records} == {("mine", 4)}
    collapse = next(c for c in fitted.callbacks if isinstance(c, NeuralCollapseCallback)).records
    written = [(r.epoch, r.step, r.split, r.layer, r.metric, r.value) for r in records if r.layer]
    assert written == [(r.epoch, r.step, r.split, r.layer, r.metric, r.value) for r in collapse]
    logged = [(r.epoch, r.step, f"{r.split}/{r.metric}") for r in records if not r.layer]
    names = sorted(fitted.callback_metrics)
    assert logged == [(epoch, 6 * epoch, name) for epoch in (1, 2, 3) for name in names]
    for name, value in fitted.callback_metrics.items():
        split, metric = name.split("/")
        assert records.value(metric, split=split, layer="") == value.item()


def test_rows_stand_in_the_order_of_epochs(path):
    fit(path, epochs=4)
    epochs = [r.epoch for r in Records.read(path)]
    assert epochs == sorted(epochs)


def test_without_a_collapse_callback(path):
    fit(path, collapse=False)
    assert {r.layer for r in Records.read(path)} == {""}


def test_an_epoch_without_evaluation_has_no_rows_of_one(path):
    fitted = trainer(RecordWriter(path), max_epochs=5, check_val_every_n_epoch=2)
    fitted.fit(module(seed=1), make_loader(TRAIN, 10, seed=0), ordered())
    records = Records.read(path)
    assert records.where(split="validation").unique("epoch") == [2, 4]
    assert records.where(split="train").unique("epoch") == [1, 2, 3, 4, 5]
    assert records.where(metric="loss", split="validation").unique("step") == [12, 24]


def test_names_without_split(path):
    trainer(RecordWriter(path), max_epochs=1).fit(Plain(), shuffled(), ordered())
    assert [(r.split, r.metric) for r in Records.read(path)] == [("", "validation_loss")]


def test_a_training_from_scratch_empties_the_file(path):
    path.parent.mkdir()
    path.write_text("what was here\n")
    fit(path)
    assert {r.epoch for r in Records.read(path)} == {0, 1, 2}


@pytest.fixture
def interrupted(path, tmp_path):
    """An uninterrupted training's text, and a checkpoint after two epochs of four beside what was written by then."""
    fit(path, epochs=4)
    whole = path.read_text()
    fit(path, epochs=2).save_checkpoint(tmp_path / "two.ckpt")
    return whole, tmp_path / "two.ckpt"


@pytest.mark.parametrize(
    "damage",
    [
        lambda text: text,
        lambda text: text + text.splitlines()[-1] + "\n",
        lambda text: text + text.splitlines()[-1][:30],
        lambda text: text + '{"run": "x"',
        lambda text: text + text,
    ],
)
def test_resuming_cuts_the_file_back_to_the_checkpoint(path, interrupted, damage):
    whole, checkpoint = interrupted
    path.write_text(damage(path.read_text()))
    fit(path, epochs=4, checkpoint=checkpoint)
    assert path.read_text() == whole


@pytest.mark.parametrize("damage", [lambda path: path.unlink(), lambda path: path.write_text("")])
def test_a_file_that_lacks_rows_of_the_checkpoint_is_refused(path, interrupted, damage):
    damage(path)
    with pytest.raises(ResumeError, match=r"has 0 rows and the checkpoint knows of \d+"):
        fit(path, epochs=4, checkpoint=interrupted[1])


def test_a_file_with_a_broken_line_is_refused(path, interrupted):
    path.write_text("nonsense\n" + path.read_text())
    with pytest.raises(DataFileError, match="line 1 is not a record"):
        fit(path, epochs=4, checkpoint=interrupted[1])


def test_lines_are_json(path):
    fit(path)
    columns = ["run", "seed", "epoch", "step", "split", "layer", "metric", "value", "tap"]
    assert all(list(json.loads(line)) == columns for line in path.read_text().splitlines())


def test_the_order_of_the_callbacks_does_not_matter(path):
    collapse = NeuralCollapseCallback()
    trainer(RecordWriter(path), collapse).fit(Plain(), shuffled())
    assert len(Records.read(path).where(layer="features")) == len(collapse.records)
