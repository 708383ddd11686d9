"""Every file of a directory of runs, damaged in every way: the result is the same, or one line names the file.

The files are those that ``runs.layout`` declares, so a new one is covered as soon as it is declared there.
"""

import random
import shutil
import warnings
from contextlib import redirect_stderr, redirect_stdout
from fnmatch import fnmatch
from io import StringIO
from types import SimpleNamespace

import pytest
import torch

from tests.recipe_material import tiny_recipe
from tests.training.models import quiet
from tightframe.cli import main
from tightframe.errors import TightframeError
from tightframe.files import read_checkpoint, read_json, read_tensors, read_yaml, write_tensors
from tightframe.records import Records
from tightframe.runs import Confusion, Snapshot, write
from tightframe.runs.directory import changed_files
from tightframe.runs.layout import SHARED_FILES, TRAINING_FILES

pytestmark = quiet
SEED = "learned/seed-0"
FILES = [*SHARED_FILES, *(f"{SEED}/{name}" for name in TRAINING_FILES)]
DAMAGES = ("missing", "empty", "half", "garbage", "another type", "brackets", "directory")
SELECTED = ("half", "another type")  # for all commands; `pytest -m slow` has every command on every damage
READERS = {
    ".json": read_json,
    ".jsonl": Records.read,
    ".yaml": read_yaml,
    ".ckpt": read_checkpoint,
    "snapshots": Snapshot.load,
    "confusion": Confusion.load,
}


def ended(arguments):
    """Exit code, output and error of a command."""
    out, err = StringIO(), StringIO()
    with redirect_stdout(out), redirect_stderr(err), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            main(arguments)
        except SystemExit as end:
            return end.code, out.getvalue(), err.getvalue()
    return 0, out.getvalue(), err.getvalue()


@pytest.fixture(scope="module")
def directories(tmp_path_factory):
    """An interrupted and a finished training, with a finished one of another run beside each."""
    folder = tmp_path_factory.mktemp("runs")
    tiny_recipe(folder)
    other = Records()
    other.add("accuracy", 0.5, epoch=2, split="test")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("tightframe.report.build.write_figures", lambda *args: None)  # they take seconds
        patch.setattr("tightframe.cli.train.report", SimpleNamespace(run=lambda out: None))
        patch.setattr("tightframe.surgery.convert.Parts.timed", lambda parts, stages, networks: tuple(stages))
        patch.setattr("tightframe.report.build.write_html", lambda content, path: path)
        for state, limit in (("interrupted", ["--trainer.max_steps", "3"]), ("finished", [])):
            code, _, err = ended([*train(folder, folder / state), *limit])
            assert code == 0, err
            write(other, folder / state, run="other")
            code, _, err = ended(convert(folder / state))
            assert code == 0, err
        yield folder


def train(folder, out):
    return ["train", str(folder / "recipe.yaml"), "--out", str(out)]


def convert(out):
    return ["convert", str(out / SEED), "--epsilon", "0.9", "--out", str(out.parent / f"{out.name}-converted")]


def of(out, name):
    """The file that a pattern names, or None."""
    return next(iter(sorted(out.glob(name))), None)


def damage(path, how):
    content = path.read_bytes()
    path.unlink()
    if how == "directory":
        path.mkdir()
    elif how == "another type" and path.suffix == ".safetensors":
        write_tensors(path, {"another": torch.ones(2)})
    elif how == "another type" and path.suffix == ".ckpt":
        torch.save({"another": torch.ones(2)}, path)
    elif how != "missing":
        path.write_bytes(
            {
                "empty": b"",
                "half": content[: len(content) // 2],
                "garbage": random.Random(0).randbytes(300),
                "another type": b'{"another": [1]}\n',
                "brackets": b"[" * 20_000,
            }[how]
        )


def result(out):
    """What a training came to."""
    state = torch.load(out / SEED / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
    return (out / SEED / "records.jsonl").read_bytes(), {name: tensor.tolist() for name, tensor in state.items()}


def network(out):
    """The network that convert wrote."""
    tensors, _ = read_tensors(out.parent / f"{out.name}-converted" / "model.safetensors")
    return {name: tensor.tolist() for name, tensor in tensors.items()}


def test_every_file_is_declared(directories):
    out = directories / "finished"
    files = [path.relative_to(out).as_posix() for path in out.rglob("*") if path.is_file()]
    written_by_the_report = ("leaderboard.csv", "records.csv", "report.html", "other/*")
    assert [f for f in files if not any(fnmatch(f, pattern) for pattern in (*FILES, *written_by_the_report))] == []
    assert [name for name in FILES if of(out, name) is None] == []


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("state", ["interrupted", "finished"])
@pytest.mark.parametrize("every", [False, pytest.param(True, marks=pytest.mark.slow)], ids=["", "every command"])
def test_damaged(directories, tmp_path, record_property, every, state, name):
    if of(directories / state, name) is None:
        assert state == "interrupted"
        return
    cases = 0
    for how in DAMAGES:
        out = shutil.copytree(
            directories / state, tmp_path / str(how), ignore=shutil.ignore_patterns("*.csv", "*.html")
        )
        path = of(out, name)
        damage(path, how)
        commands = [["report", str(out)], convert(out), train(directories, out)]
        for command in commands if every or how in SELECTED else commands[:1]:
            before = {p: p.read_bytes() for p in out.glob(f"{SEED}/**/*") if p.is_file() and p != path}
            code, shown, err = ended(command)
            case = f"{command[0]} with {name} {how}: {code} {err} {shown[-300:]}"
            cases += 1
            assert code in (0, 2), case
            assert code == 0 or (err.startswith("tightframe: error: ") and err.count("\n") == 1), case
            if code == 2:  # nothing is lost
                kept = {p: p.read_bytes() for p in before if p.name != ".lock"}  # records end with those of an epoch
                assert all(before[p].startswith(now) or now.startswith(before[p]) for p, now in kept.items()), case
                assert path.name in err or "differ" in err, case
            elif command[0] == "report":
                assert "other" in shown, case
                sealed = state == "finished" and path.name not in (".lock", "checksums.json")
                unseen = (how in ("missing", "half") and not sealed) or path.suffix in (".ckpt", "")
                assert unseen or path.name in shown or "no records" in shown or "nothing measured" in shown, case
            elif command[0] == "convert":
                assert network(out) == network(directories / state), case
            else:
                left_alone = state == "finished" and path.suffix in (".ckpt", ".jsonl")
                assert left_alone or result(out) == result(directories / "finished"), case
    record_property("cases", cases)


@pytest.mark.parametrize("name", FILES)
def test_a_flipped_bit_is_seen(directories, tmp_path, record_property, name):
    out = shutil.copytree(directories / "finished", tmp_path / "runs")
    path = of(out, name)
    reader = next((READERS[kind] for kind in READERS if kind in (path.suffix, path.parent.name, path.name[:9])), None)
    content, draw = path.read_bytes(), random.Random(0)
    wanted = reader and repr(reader(path))
    for place in draw.choices(range(8 * len(content)), k=200):
        flipped = bytearray(content)
        flipped[place // 8] ^= 1 << place % 8
        path.write_bytes(flipped)
        try:
            found = reader and repr(reader(path))
        except TightframeError as error:
            found = str(error)
            named = path.name in found and "\n" not in found
        else:
            named = path.name in changed_files(path.parent) or path.name in ("checksums.json", ".lock")
        assert found == wanted or named, (place, found)
    record_property("cases", 200)
