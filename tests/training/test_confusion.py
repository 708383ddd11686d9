"""The confusion of an evaluation: what the module keeps of it, and its file under kill and resume."""

import shutil
import sys

import pytest
import torch
from torch.utils.data import TensorDataset

from tests.training.models import TRAIN, VALIDATION, D, K, module, ordered, quiet, trainer, undecidable
from tests.training.processes import AtCheckpoint, AtStep, die, run
from tests.training.test_resume import KILLED, checkpoint, directory
from tightframe.hierarchy import Tree
from tightframe.records import Records
from tightframe.runs.confusion import CONFUSION_FILES, Confusion
from tightframe.runs.layout import RECORDS_FILE, TIMING_FILE
from tightframe.training import RecordWriter, fit, make_loader

pytestmark = [quiet, pytest.mark.skipif(sys.platform == "win32", reason="no SIGKILL")]

DISTANCES = Tree.from_nested({"E": ["A", "B"], "C": None}).distances()
SPLITS = ["validation", "test"]


def by_hand(model, part):
    """Pairs and counts of the model as it is."""
    inputs, labels = part.tensors
    with torch.no_grad():
        predictions = model.eval()(inputs).argmax(dim=1)
    return torch.stack([labels, predictions], dim=1).unique(dim=0, return_counts=True)


def assert_same(confusion, epoch, pairs, counts):
    assert confusion.epoch == epoch
    assert torch.equal(confusion.pairs, pairs)
    assert torch.equal(confusion.counts, counts)


def test_the_module_keeps_the_confusion_of_the_last_evaluation():
    model = module(distances=DISTANCES, splits=SPLITS, lr=0.02)
    fitted = trainer(max_epochs=3)
    parts = undecidable(VALIDATION), TRAIN
    fitted.fit(model, make_loader(TRAIN, 10, seed=0), [ordered(part) for part in parts])
    assert list(model.confusions) == SPLITS
    for split, part in zip(SPLITS, parts, strict=True):
        confusion = model.confusions[split]
        assert_same(confusion, 3, *by_hand(model, part))
        assert confusion.counts.sum() == len(part)
        mistakes = confusion.counts[confusion.pairs[:, 0] != confusion.pairs[:, 1]].sum()
        assert mistakes == round(len(part) * fitted.callback_metrics[f"{split}/error"].item())
    assert fitted.callback_metrics["validation/error"].item() == pytest.approx(1 - 1 / K)


def test_nothing_is_kept_or_written_without_distances(tmp_path):
    model = module()
    train(tmp_path, model, {"validation": VALIDATION})
    assert model.confusions == {}
    assert list(tmp_path.glob(CONFUSION_FILES)) == []


def train(folder, model, parts, epochs=2, **options):
    fit(
        model, TRAIN, parts, folder, run="mine", seed=0, epochs=epochs, batch_size=10,
        trainer={"accelerator": "cpu", **options},
    )  # fmt: skip


def test_fit_writes_the_last_evaluation_of_every_split(tmp_path):
    model = module(distances=DISTANCES, splits=SPLITS, lr=0.02)
    train(tmp_path, model, {"validation": VALIDATION, "test": TRAIN}, epochs=2)
    names = sorted(path.name for path in tmp_path.glob("confusion-*"))
    assert names == ["confusion-test.safetensors", "confusion-validation.safetensors"]
    for split, part in zip(SPLITS, (VALIDATION, TRAIN), strict=True):
        assert_same(Confusion.load(tmp_path / f"confusion-{split}.safetensors"), 2, *by_hand(model, part))


def test_the_file_tells_the_epoch_it_was_evaluated_after(tmp_path):
    model = module(distances=DISTANCES)
    train(tmp_path, model, {"validation": VALIDATION}, epochs=3, check_val_every_n_epoch=2)
    assert Confusion.load(tmp_path / "confusion-validation.safetensors").epoch == 2


def test_a_sanity_check_leaves_no_file(tmp_path):
    model = module(distances=DISTANCES)
    fitted = trainer(
        RecordWriter(tmp_path / RECORDS_FILE), max_epochs=1, num_sanity_val_steps=1, check_val_every_n_epoch=2
    )
    fitted.fit(model, make_loader(TRAIN, 10, seed=0), ordered())
    assert model.confusions["validation"].counts.sum() == 7
    assert [path.name for path in tmp_path.iterdir()] == [RECORDS_FILE]


def test_a_part_of_one_sample(tmp_path):
    one = TensorDataset(torch.zeros(1, D), torch.tensor([K - 1]))
    model = module(distances=DISTANCES, splits=["test"])
    train(tmp_path, model, {"test": one}, epochs=1)
    confusion = Confusion.load(tmp_path / "confusion-test.safetensors")
    assert_same(confusion, 1, *by_hand(model, one))
    assert confusion.counts.tolist() == [1]


# --- kill and resume ---


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    path = tmp_path_factory.mktemp("tree") / "digits.tsv"
    path.write_text("".join(f"root\t{kind}\n" for kind in ("even", "odd")))
    with path.open("a") as file:
        file.writelines(f"{'odd' if digit % 2 else 'even'}\t{digit}\n" for digit in range(10))
    return path


def digits(out, tree):
    # Evaluated after epochs 2 and 4 of 5, and not after the last.
    options = ["--epochs", "5", "--hierarchy", str(tree), "--trainer", '{"check_val_every_n_epoch": 2}']
    less = ["--data.args.imbalance", "0.02", "--collapse.every_n_epochs", "5", "--method", "learned"]
    return ["train", "digits-longtail", *options, *less, "--out", str(out)]


def written(out):
    return {path.name: path.read_bytes() for path in directory(out).glob("confusion-*")}


@pytest.fixture(scope="module")
def whole(tree, tmp_path_factory):
    out = tmp_path_factory.mktemp("whole") / "runs"
    assert run(digits(out, tree), out.parent) == 0
    return out


class InConfusion:
    """Die when the file of an evaluation is half on the disk."""

    def __init__(self, epoch):
        self.epoch = epoch

    def __call__(self):
        from safetensors import torch as safetensors

        original = safetensors.save_file

        def save_file(tensors, path, metadata=None):
            original(tensors, path, metadata=metadata)
            if path.name.startswith("confusion-") and metadata["epoch"] == str(self.epoch):
                path.write_bytes(path.read_bytes()[:50])
                die()

        safetensors.save_file = save_file


class AfterTraining:
    """Die when everything is trained and checkpointed, and the run not yet called finished."""

    def __call__(self):
        from lightning.pytorch import Trainer

        original = Trainer.fit

        def fit(*args, **kwargs):
            original(*args, **kwargs)
            die()

        Trainer.fit = fit


def test_the_reference_was_last_evaluated_before_its_last_epoch(whole):
    confusion = Confusion.load(directory(whole) / "confusion-test.safetensors")
    assert confusion.epoch == 4
    records = Records.read(directory(whole) / "records.jsonl")
    error = records.value("error", split="test", epoch=4)
    wrong = confusion.counts[confusion.pairs[:, 0] != confusion.pairs[:, 1]].sum()
    assert wrong == round(error * confusion.counts.sum().item())


def test_killed_at_every_kind_of_moment(whole, tree, tmp_path):
    out = tmp_path / "runs"
    steps = checkpoint(whole)["global_step"] // 5
    assert run(digits(out, tree), tmp_path, InConfusion(2)) == KILLED
    assert list(written(out)) == ["confusion-test.safetensors.partial"]
    assert run(digits(out, tree), tmp_path, AtCheckpoint(4)) == KILLED  # the file is ahead of the checkpoint
    assert checkpoint(out)["epoch"] == 2
    assert written(out) == written(whole)
    assert run(digits(out, tree), tmp_path, InConfusion(4)) == KILLED
    assert Confusion.load(directory(out) / "confusion-test.safetensors").epoch == 4
    assert run(digits(out, tree), tmp_path, AtStep(4 * steps + 1)) == KILLED  # nothing is evaluated any more
    assert checkpoint(out)["epoch"] == 3
    shutil.copytree(out, tmp_path / "other")
    assert run(digits(out, tree), tmp_path) == 0
    assert written(out) == written(whole)
    assert run(digits(tmp_path / "other", tree), tmp_path, AfterTraining()) == KILLED
    assert not (directory(tmp_path / "other") / TIMING_FILE).exists()
    assert run(digits(tmp_path / "other", tree), tmp_path) == 0  # nothing is trained any more
    assert written(tmp_path / "other") == written(whole)
