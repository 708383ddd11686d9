"""``tightframe train``, killed with SIGKILL and started again, against the same training left in peace."""

import os
import shutil
import signal
import sys
import sysconfig
from pathlib import Path

import pytest
import torch

from tests.training.models import quiet
from tests.training.processes import AtStep, run
from tightframe.cli import main
from tightframe.records import Records
from tightframe.runs.layout import RECORDS_FILE, SNAPSHOT_DIR, TIMING_FILE

pytestmark = [
    quiet,
    pytest.mark.skipif(sys.platform == "win32", reason="no SIGKILL"),
]

KILLED = -signal.SIGKILL
MODULES = ("os", "argparse", "difflib", "locale", "pdb", "textwrap", "shutil", "tarfile", "zipfile")


def directory(out):
    """The one run in an output directory."""
    (found,) = out.glob("*/seed-*")
    return found


def checkpoint(out):
    return torch.load(directory(out) / "checkpoints" / "last.ckpt", weights_only=False)


def assert_same_training(resumed, whole):
    one, other = directory(resumed), directory(whole)
    assert (one / RECORDS_FILE).read_bytes() == (other / RECORDS_FILE).read_bytes()
    names = sorted(path.name for path in (other / SNAPSHOT_DIR).iterdir())
    assert sorted(path.name for path in (one / SNAPSHOT_DIR).iterdir()) == names
    for name in names:
        assert (one / SNAPSHOT_DIR / name).read_bytes() == (other / SNAPSHOT_DIR / name).read_bytes()
    mine, theirs = checkpoint(resumed), checkpoint(whole)
    assert mine["state_dict"].keys() == theirs["state_dict"].keys()
    for name, value in theirs["state_dict"].items():
        assert torch.equal(mine["state_dict"][name], value), name
    assert mine["lr_schedulers"] == theirs["lr_schedulers"]
    for one, other in zip(mine["optimizer_states"], theirs["optimizer_states"], strict=True):
        torch.testing.assert_close(one["state"], other["state"], rtol=0, atol=0)
        assert one["param_groups"] == other["param_groups"]


def longtail(out):
    # 434 samples are 6 steps an epoch.
    options = ["--epochs", "4", "--collapse.every_n_epochs", "2", "--method", "etf-dr-balanced", "--seed", "1"]
    return ["train", "digits-longtail", *options, "--out", str(out)]


@pytest.fixture(scope="module")
def longtail_whole(tmp_path_factory):
    out = tmp_path_factory.mktemp("longtail") / "whole"
    assert run(longtail(out), out.parent) == 0
    return out


def test_the_reference_trains_with_mixup_and_says_so(longtail_whole):
    records = Records.read(directory(longtail_whole) / RECORDS_FILE)
    assert records.unique("epoch") == [0, 1, 2, 3, 4]
    assert records.where(layer="features").unique("epoch") == [0, 2, 4]
    assert "mixup_alpha: 1.0" in (longtail_whole / "config.yaml").read_text()


def test_longtailed_digits_killed_and_resumed(longtail_whole, tmp_path):
    out = tmp_path / "runs"
    steps = checkpoint(longtail_whole)["global_step"] // 4
    assert run(longtail(out), tmp_path, AtStep(3 * steps + 1)) == KILLED
    with (directory(out) / RECORDS_FILE).open("a") as file:
        file.write('{"run": "etf-dr-balanced", "seed": 1, "epo')
    assert run(longtail(out), tmp_path, report=True) == 0
    assert_same_training(out, longtail_whole)
    assert (directory(out) / TIMING_FILE).exists()
    assert (out / "report.html").exists()


def test_a_finished_training_is_left_alone(longtail_whole, tmp_path):
    out = shutil.copytree(longtail_whole, tmp_path / "runs")
    before = {path: path.read_bytes() for path in directory(out).rglob("*") if path.is_file()}
    assert run(longtail(out), tmp_path) == 0
    assert {path: path.read_bytes() for path in directory(out).rglob("*") if path.is_file()} == before


@pytest.fixture(scope="module")
def library(tmp_path_factory):
    """A few modules of the standard library."""
    root = tmp_path_factory.mktemp("library")
    for module in MODULES:
        shutil.copy(Path(sysconfig.get_path("stdlib")) / f"{module}.py", root)
    return root


def stdlib(out, library):
    data = ["--data.args.root", str(library), "--data.args.min_bytes", "8000", "--data.args.validation_fraction", "0.1"]
    size = ["--data.args.vocabulary", "512", "--backbone.args.vocabulary", "512", "--batch_size", "128"]
    options = ["--epochs", "3", "--collapse.every_n_epochs", "1", "--method", "learned-logit-adjusted"]
    return ["train", "stdlib", *data, *size, *options, "--out", str(out)]


@pytest.fixture(scope="module")
def stdlib_killed(library, tmp_path_factory):
    """A training in peace, and one that was killed at the end of its second epoch."""
    folder = tmp_path_factory.mktemp("stdlib")
    assert run(stdlib(folder / "whole", library), folder) == 0
    steps = checkpoint(folder / "whole")["global_step"] // 3
    assert run(stdlib(folder / "killed", library), folder, AtStep(2 * steps - 2)) == KILLED
    return folder / "whole", folder / "killed"


def test_source_code_under_dropout_killed_and_resumed(library, stdlib_killed, tmp_path):
    whole, killed = stdlib_killed
    out = shutil.copytree(killed, tmp_path / "runs")
    assert checkpoint(out)["epoch"] == 0
    assert run(stdlib(out, library), tmp_path) == 0
    assert_same_training(out, whole)
    assert Records.read(directory(out) / RECORDS_FILE).unique("split") == ["train", "validation", "test"]


# --- what cannot be resumed ---


def refused(arguments, capsys):
    """The one line on stderr of a command that is refused."""
    with pytest.raises(SystemExit) as stopped:
        main(arguments)
    assert stopped.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    return line


@pytest.mark.parametrize(
    ("change", "keys"),
    [
        (["--epochs", "5"], "epochs"),
        (["--data.args.imbalance", "0.1", "--optimizer.args.lr", "0.2"], "data.args.imbalance, optimizer.args.lr"),
        (["--scheduler", "null"], "scheduler"),
        (["--trainer.devices", "2"], "trainer.devices"),  # other ranks add up in another order
    ],
)
def test_another_configuration_is_refused_by_its_keys(longtail_whole, tmp_path, capsys, change, keys):
    out = shutil.copytree(longtail_whole, tmp_path / "runs")
    before = (out / "config.yaml").read_bytes()
    line = refused([*longtail(out), *change], capsys)
    assert line.startswith("tightframe: error: ")
    assert f"another configuration: {keys} differ" in line
    assert (out / "config.yaml").read_bytes() == before


def test_a_configuration_that_is_no_yaml_any_more(longtail_whole, tmp_path, capsys):
    out = shutil.copytree(longtail_whole, tmp_path / "runs")
    (out / "config.yaml").write_text("data: [1, }")
    assert "cannot be read as YAML" in refused(longtail(out), capsys)


@pytest.mark.parametrize("damage", [lambda text: "", lambda text: text[:1000], lambda text: "x\n" + text])
def test_damaged_records_are_refused(library, stdlib_killed, tmp_path, capsys, damage):
    out = shutil.copytree(stdlib_killed[1], tmp_path / "runs")
    records = directory(out) / RECORDS_FILE
    records.write_text(damage(records.read_text()))
    assert RECORDS_FILE in refused(stdlib(out, library), capsys)


def test_a_damaged_checkpoint_is_refused(library, stdlib_killed, tmp_path, capsys):
    out = shutil.copytree(stdlib_killed[1], tmp_path / "runs")
    os.truncate(directory(out) / "checkpoints" / "last.ckpt", 5000)
    assert "last.ckpt" in refused(stdlib(out, library), capsys)
