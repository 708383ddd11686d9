"""Trainings that end at any moment by any signal, on a full disk or under a clock that goes back, and are resumed."""

import errno
import os
import shutil
import signal
import sys
import time

import pytest

from tests.recipe_material import tiny_recipe
from tests.training.models import quiet
from tests.training.processes import Killed, Moment, run
from tests.training.test_resume import assert_same_training, directory
from tightframe.cli import main, report
from tightframe.runs.layout import CONFUSION_FILES, TIMING_FILE

pytestmark = [quiet, pytest.mark.skipif(sys.platform == "win32", reason="no SIGKILL")]
# Two epochs of two steps.
MOMENTS = {
    "before the first step": Moment("tightframe.training.writer.RecordWriter.on_train_start", 1),
    "in a step": Moment("tightframe.training.ClassifierModule.on_after_backward", 3),
    "between records and checkpoint": Moment("lightning.pytorch.Trainer.save_checkpoint", 2),
    "in the write of a checkpoint": Moment("pathlib.Path.write_bytes", 2),
    "before a file takes its place": Moment("tightframe.files.os.replace", 9),
    "before it is finished": Moment("tightframe.training.run.write_json", 1),
    "before its checksums": Moment("tightframe.training.run.seal", 1),
}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("kills")
    tiny_recipe(folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(report, "run", lambda out: None)
        main(train(folder, folder / "whole"))
    return folder


@pytest.fixture(autouse=True)
def without_a_report(monkeypatch):
    monkeypatch.setattr(report, "run", lambda out: None)


def train(folder, out):
    return ["train", str(folder / "recipe.yaml"), "--out", str(out)]


def assert_resumed(whole, out):
    main(train(whole, out))
    assert_same_training(out, whole / "whole")
    one, other = directory(out), directory(whole / "whole")
    for file in other.glob(CONFUSION_FILES):
        assert (one / file.name).read_bytes() == file.read_bytes()
    assert not list(out.rglob("*.partial"))


@pytest.mark.parametrize("moment", MOMENTS)
def test_killed(whole, tmp_path, record_property, moment):
    assert run(train(whole, tmp_path / "runs"), tmp_path, Killed(MOMENTS[moment])) == -signal.SIGKILL
    for partial in tmp_path.rglob("*.partial"):  # what a killed process leaves; the next one writes over it
        partial.unlink()
    assert_resumed(whole, tmp_path / "runs")
    record_property("cases", 1)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_stopped(whole, tmp_path, capsys, record_property, number, code):
    for name, moment in MOMENTS.items():
        signal.signal(signal.SIGINT, signal.default_int_handler)  # Lightning ignores it from the first one on
        with pytest.MonkeyPatch.context() as patch:
            moment.arrange(lambda: signal.raise_signal(number), patch.setattr)
            with pytest.raises(SystemExit) as stopped:
                main(train(whole, tmp_path / name))
        signal.signal(signal.SIGINT, signal.default_int_handler)
        assert stopped.value.code == code, name
        last = capsys.readouterr().err.splitlines()[-1]
        assert last.endswith("run the same command to resume after the last epoch"), name
        assert not list((tmp_path / name).rglob("*.partial")), name
        assert_resumed(whole, tmp_path / name)
    record_property("cases", len(MOMENTS))


def full():
    raise OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize(("target", "calls"), [("os.fsync", (1, 6, 9)), ("pathlib.Path.write_bytes", (1, 2))])
def test_a_full_disk(whole, tmp_path, capsys, record_property, target, calls):
    for call in calls:
        with pytest.MonkeyPatch.context() as patch:
            Moment(target, call).arrange(full, patch.setattr)
            with pytest.raises(SystemExit) as stopped:
                main(train(whole, tmp_path / str(call)))
        assert stopped.value.code == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert "No space left on device" in line
        assert line.endswith("run the same command to resume after the last epoch")
        assert_resumed(whole, tmp_path / str(call))
    record_property("cases", len(calls))


def test_a_clock_that_goes_back(whole, tmp_path, monkeypatch):
    real, calls = time.time, iter(range(10**9))
    for name in ("time", "perf_counter"):
        monkeypatch.setattr(time, name, lambda: real() - 3600.0 * next(calls))
    main(train(whole, tmp_path / "runs"))
    monkeypatch.undo()
    assert_same_training(tmp_path / "runs", whole / "whole")
    assert (directory(tmp_path / "runs") / TIMING_FILE).exists()


def test_resumed_on_a_copy_elsewhere(whole, tmp_path):
    out = shutil.copytree(whole / "whole", tmp_path / "runs")
    (directory(out) / TIMING_FILE).unlink()
    assert_resumed(whole, out)
    assert os.path.exists(directory(out) / TIMING_FILE)
