"""Two ranks under Lightning's DDP against one process, in float64 so that only the order of sums may differ."""

import pytest
import torch
from torch import nn

from tests.training.models import K, dataset, quiet, sgd, undecidable
from tests.training.processes import on_two_ranks
from tightframe.nn import LinearClassifier
from tightframe.records import Records
from tightframe.runs.confusion import CONFUSION_FILES, Confusion
from tightframe.runs.layout import RECORDS_FILE, SNAPSHOT_DIR
from tightframe.runs.snapshots import Snapshot
from tightframe.training import MLP, ClassifierModule, fit

pytestmark = quiet
# Odd sizes, so that the ranks have uneven shares.
TRAIN = dataset(n=27, dtype=torch.float64)
PARTS = {
    "validation": undecidable(dataset(n=7, seed=5, dtype=torch.float64)),
    "test": dataset(n=9, seed=6, dtype=torch.float64),
}


def train(directory, **options):
    torch.manual_seed(0)
    backbone = MLP(4, [6, 5], batch_norm=False)
    model = ClassifierModule(
        backbone,
        LinearClassifier(5, K),
        nn.CrossEntropyLoss(),
        sgd(0.1),
        splits=list(PARTS),
        seed=0,
        distances=1 - torch.eye(K),
    ).double()
    # 81 samples of training are ten batches of 8, 4 for each rank, in measurements five of 16 and one of 1.
    fit(
        model,
        TRAIN,
        PARTS,
        directory,
        run="ddp",
        seed=0,
        epochs=2,
        batch_size=8,
        collapse={"layers": ["backbone.3"], "batch_size": 16},
        trainer={"accelerator": "cpu", **options},
    )
    return model.state_dict()


def _rank(rank, directory):
    torch.save(train(directory, devices=2, strategy="ddp"), directory / f"weights{rank}.pt")


def train_on_two_ranks(directory):
    directory.mkdir()
    on_two_ranks(_rank, directory)
    return [torch.load(directory / f"weights{rank}.pt") for rank in range(2)]


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("distributed")
    weights = [train(folder / "one"), *train_on_two_ranks(folder / "two")]
    return folder, weights, *(Records.read(folder / run / RECORDS_FILE) for run in ("one", "two"))


def test_two_ranks_train_the_same_weights(runs):
    one, *ranks = runs[1]
    for rank in ranks:
        assert rank.keys() == one.keys()
        for name in one:
            torch.testing.assert_close(rank[name], one[name], rtol=1e-9, atol=1e-12, msg=name)


def test_two_ranks_give_the_collapse_of_one_process(runs):
    *_, one, two = runs
    rows = [r for r in one if r.layer]
    keys = ("epoch", "step", "split", "layer", "metric")
    found = {tuple(getattr(r, key) for key in keys): r.value for r in two if r.layer}
    assert len(rows) == len(found) > 300
    for r in rows:
        value = found[tuple(getattr(r, key) for key in keys)]
        assert value == pytest.approx(r.value, rel=1e-9, abs=1e-12, nan_ok=True), r
    assert {r.split for r in rows} == {"train", "validation", "test"}
    assert {r.layer for r in rows} == {"features", "backbone.3"}
    assert {r.metric for r in rows} > {"nc1.pinv", "ncc.accuracy", "nc4.agreement", "cosine_margin", "ncc.error"}


def test_two_ranks_give_the_accuracies_of_one_process(runs):
    *_, one, two = runs
    rows = [r for r in one if "accuracy" in r.metric and not r.layer]
    assert len(rows) == 10
    for r in rows:
        assert two.value(r.metric, split=r.split, layer="", epoch=r.epoch) == pytest.approx(r.value, rel=1e-6), r


def test_two_ranks_give_the_losses_of_one_process(runs):
    *_, one, two = runs
    for r in one.where(metric="loss"):
        assert two.value("loss", split=r.split, epoch=r.epoch) == pytest.approx(r.value, rel=1e-6), r


def test_two_ranks_give_the_confusions_of_one_process(runs):
    folder, *_ = runs
    for split, part in PARTS.items():
        one, two = (folder / run / CONFUSION_FILES.replace("*", split) for run in ("one", "two"))
        assert one.read_bytes() == two.read_bytes()
        assert Confusion.load(two).counts.sum() == len(part)
    both = Confusion.load(folder / "two" / CONFUSION_FILES.replace("*", "validation"))
    assert K * both.counts[both.pairs[:, 0] == both.pairs[:, 1]].sum() == len(PARTS["validation"])


def test_the_first_rank_alone_writes(runs):
    folder, _, one, two = runs
    assert {r.epoch for r in two} == {r.epoch for r in one} == {0, 1, 2}
    names = [sorted(p.name for p in (folder / run / SNAPSHOT_DIR).iterdir()) for run in ("one", "two")]
    assert names[0] == names[1] == [f"epoch-{epoch:05d}.safetensors" for epoch in (0, 1, 2)]
    one, two = (Snapshot.load(folder / run / SNAPSHOT_DIR / names[0][-1]) for run in ("one", "two"))
    torch.testing.assert_close(two.class_means, one.class_means, rtol=1e-6, atol=1e-7)
