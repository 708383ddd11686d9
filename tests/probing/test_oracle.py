"""The whole way from a model and a loader to the rows, beside brute force: see oracle.py and zoo.py."""

import random

import numpy as np
import pytest
import torch
from lightning.pytorch import LightningDataModule, LightningModule
from lightning.pytorch.utilities import CombinedLoader
from torch import nn
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    Dataset,
    IterableDataset,
    SubsetRandomSampler,
    TensorDataset,
    WeightedRandomSampler,
    default_collate,
)

import tightframe as tf
from tests.probing.oracle import JUDGED_BY_MEANS, Samples, assert_rows, rows
from tests.probing.zoo import BATCH, LABELS, MODELS, VECTORS, D, K, N, distilled, plain
from tests.problems import draw
from tests.training.models import quiet, trainer
from tests.training.processes import on_two_ranks
from tightframe.errors import ArgumentError, Notice
from tightframe.training import NeuralCollapseCallback

pytestmark = quiet
TEST = draw(30, 5, seed=8) + 0.5, torch.arange(30) % K
DATA = TensorDataset(VECTORS, LABELS)


@torch.no_grad()
def samples_of(case, inputs=None, labels=None):
    """Run the model batch by batch, as it is measured, and check the case itself."""
    case.model.eval()
    labels = case.labels if labels is None else labels
    forward = case.options.get("forward", lambda m, x: m(x))
    h, z = [], []
    for x in (case.inputs if inputs is None else inputs).split(BATCH):
        h.append(case.features(x).reshape(-1, D))
        z.append(case.output(forward(case.model, x)).reshape(-1, K))
    keep = labels.flatten() != case.options.get("ignore_index", -100)
    h, z = torch.cat(h)[keep], torch.cat(z)[keep]
    if case.affine:
        true = h @ case.weight.T + (0 if case.bias is None else case.bias)
        seen = z.log() if case.probabilities else z
        true, seen = (t - t.mean(dim=1, keepdim=True) for t in (true, seen))
        torch.testing.assert_close(seen, true * ((seen * true).sum() / true.square().sum()))
    return Samples(h, labels.flatten()[keep], z)


def expected(case, *data, **options):
    return rows(samples_of(case, *data), case.weight, case.bias, probabilities=case.probabilities, **options)


def pairs(inputs=VECTORS, labels=LABELS, size=BATCH):
    return list(zip(inputs.split(size), labels.split(size), strict=True))


# --- models ---


@pytest.mark.parametrize("name", MODELS)
def test_model(name):
    torch.manual_seed(0)
    case = MODELS[name]()
    wanted = expected(case)
    case.model.train()
    records = tf.measure(case.model, pairs(case.inputs, case.labels), **case.options)
    assert all(module.training for module in case.model.modules())
    assert_rows(records, wanted, split="train")
    assert records.where(metric="nc1.ratio").unique("tap") == ["prepared" if case.prepared else "input"]


def test_two_heads_of_which_neither_is_the_classifier():
    torch.manual_seed(0)
    case = distilled()
    with pytest.raises(ArgumentError, match=r"(?s)\bhead\b.*\bhead_dist\b"):
        tf.measure(case.model, pairs(case.inputs))


def test_features_without_a_model():
    case = plain()
    h = samples_of(case).features
    assert_rows(
        tf.measure(h, LABELS, classifier=(case.weight, case.bias)),
        rows(Samples(h, LABELS, h @ case.weight.T + case.bias), case.weight, case.bias),
    )


def test_a_loop_of_the_user_s_own():
    case = plain()
    wanted = expected(case)
    with torch.no_grad(), tf.watch(case.model, split="train") as seen:
        for x, y in pairs():
            case.model(x)
            seen.add(y)
    assert_rows(seen.records, wanted, split="train")


# --- whose means judge ---


def test_splits_of_a_mapping_are_judged_by_the_means_of_training():
    case = plain()
    records = tf.measure(case.model, {"test": pairs(*TEST), "train": pairs()})
    train = samples_of(case)
    assert_rows(records, rows(train, case.weight, case.bias), split="train")
    assert_rows(records, expected(case, *TEST, train=train), split="test")
    moments = tf.ClassMoments.from_samples(train.features, train.labels, K, scatter=True)
    records = tf.measure(case.model, pairs(*TEST), split="test", reference=moments)
    assert_rows(records, expected(case, *TEST, train=train), split="test")


def test_a_lone_split_has_no_means_to_be_judged_by_unless_it_is_told():
    case = plain()
    wanted = expected(case, *TEST)
    with pytest.warns(Notice, match="reference") as notices:
        records = tf.measure(case.model, pairs(*TEST), split="test")
    assert sum(w.category is Notice for w in notices) == 1
    assert not {*JUDGED_BY_MEANS, "ncc.error"} & {*records.unique("metric")}
    assert_rows(records, {name: value for name, value in wanted.items() if name not in JUDGED_BY_MEANS}, split="test")
    assert_rows(tf.measure(case.model, pairs(*TEST), split="test", reference="own"), wanted, split="test")


# --- loaders ---


class Batches(Dataset):
    """Ready batches."""

    def __len__(self):
        return len(pairs())

    def __getitem__(self, index):
        return pairs()[index]


class Stream(IterableDataset):
    def __iter__(self):
        return iter(DATA)


def collated(change):
    return DataLoader(DATA, BATCH, collate_fn=lambda batch: change(*default_collate(batch)))


def joined(m, x):
    """Run a model that takes its input as it is, in a dict or in parts."""
    x = x["x"] if isinstance(x, dict) else torch.cat(x, dim=1) if isinstance(x, tuple | list) else x
    return m.fc(m.body(x))


def drawn():
    return WeightedRandomSampler(torch.linspace(0.1, 1, N), N, generator=torch.Generator().manual_seed(3))


SOME = range(5, 40)
# Each with the samples that it yields, and what the notice is about.
LOADERS = {
    "SubsetRandomSampler": (lambda: DataLoader(DATA, BATCH, sampler=SubsetRandomSampler(SOME)), SOME, None),
    "batch_size=None": (lambda: DataLoader(Batches(), batch_size=None), range(N), None),
    "IterableDataset": (lambda: DataLoader(Stream(), BATCH), range(N), None),
    "dict": (lambda: collated(lambda x, y: {"inputs": x, "label": y}), range(N), None),
    "dict and labels": (lambda: collated(lambda x, y: ({"x": x}, y)), range(N), None),
    "nested tuples": (lambda: collated(lambda x, y: ((x[:, :2], x[:, 2:]), y)), range(N), None),
    "numpy": (lambda: collated(lambda x, y: (x.numpy(), y.numpy())), range(N), None),
    "CombinedLoader": (lambda: CombinedLoader([loader(*DATA[:20]), loader(*DATA[20:])], "sequential"), range(N), None),
    "drop_last": (lambda: DataLoader(DATA, BATCH, drop_last=True), range(40), "drop"),
    "WeightedRandomSampler": (lambda: DataLoader(DATA, BATCH, sampler=drawn()), drawn(), "repeat"),
}


@pytest.mark.parametrize("name", LOADERS)
def test_loader_is_read_as_it_is(name, recwarn):
    make, indices, notice = LOADERS[name]
    indices = list(indices)
    case = plain(joined)
    records = tf.measure(case.model, make())
    said = [str(w.message) for w in recwarn if w.category is Notice]
    assert [notice in text for text in said] == ([] if notice is None else [True])
    assert_rows(records, expected(case, VECTORS[indices], LABELS[indices]))


# --- under Lightning ---


class Lit(LightningModule):
    def __init__(self, lr=0.1):
        super().__init__()
        torch.manual_seed(0)
        head = [nn.BatchNorm1d(8, momentum=0.1 if lr else 0.0), nn.ReLU(), nn.Dropout(0.3), nn.Linear(8, D), nn.Tanh()]
        self.net = nn.Sequential(nn.Linear(5, 8), *head, nn.Linear(D, K)).double()
        self.lr = lr

    def forward(self, x):
        return self.net(x)

    def training_step(self, batch, batch_idx):
        parts = [batch] if isinstance(batch[0], torch.Tensor) else batch
        return sum(nn.functional.cross_entropy(self(x), y) for x, y in parts)

    def validation_step(self, batch, batch_idx, dataloader_idx=0):
        pass

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), self.lr)


def fit(train=None, validation=None, *, model=None, measuring=True, **options):
    """Train, and return the model and the records."""
    model = model or Lit()
    callback = NeuralCollapseCallback(on_error="raise")
    data = {"datamodule": train} if isinstance(train, LightningDataModule) else {"train_dataloaders": train}
    callbacks = [callback] if measuring else []
    trainer(*callbacks, **{"max_epochs": 1, **options}).fit(model, val_dataloaders=validation, **data)
    return model, callback.records


def assert_fit(model, records, train=DATA[:], epoch=1, **others):
    """Compare the last rows of every split with the oracle's for the weights that training ended with."""
    model.eval()

    @torch.no_grad()
    def samples(x, y):
        return Samples(model.net[:-1](x), y, model.net(x))

    own = samples(*train)
    for split, data in {"train": train, **others}.items():
        wanted = rows(samples(*data), model.net[-1].weight, model.net[-1].bias, train=own)
        assert_rows(records, wanted, split=split, epoch=epoch)
    assert {*records.unique("split")} == {"train", *others}


def loader(*part, **options):
    return DataLoader(TensorDataset(*part) if part else DATA, BATCH, **options)


def test_subset_samplers_of_training_and_validation():
    shares = [loader(sampler=SubsetRandomSampler(part)) for part in (range(30), range(30, N))]
    assert_fit(*fit(*shares), train=DATA[:30], validation=DATA[30:])


def test_batch_sampler():
    sampler = BatchSampler(SubsetRandomSampler(SOME), 8, drop_last=False)
    assert_fit(*fit(DataLoader(DATA, batch_sampler=sampler)), train=DATA[5:40])


def test_training_loaders_side_by_side():
    # Of one length, so that no sample comes twice.
    parts = [loader(*DATA[:20]), loader(*DATA[20:40])]
    assert_fit(*fit(CombinedLoader(parts, "max_size_cycle")), train=DATA[:40])


@pytest.mark.parametrize("wrap", [dict, lambda parts: CombinedLoader(parts, "sequential")], ids=["dict", "combined"])
def test_named_validation_loaders(wrap):
    parts = wrap({"a": loader(*TEST), "b": loader(*DATA[:25])})
    assert_fit(*fit(loader(), parts), **{"validation.a": TEST, "validation.b": DATA[:25]})


class Transfers(LightningDataModule):
    """Normalises on the device, and augments while training."""

    def train_dataloader(self):
        return loader(shuffle=True)

    def val_dataloader(self):
        return loader(*TEST)

    def on_after_batch_transfer(self, batch, dataloader_idx):
        x = (batch[0] - 5) / 3
        return x + torch.randn_like(x) if self.trainer.training else x, batch[1]


def test_hooks_of_a_data_module():
    (x, y), (u, v) = DATA[:], TEST
    assert_fit(*fit(Transfers()), train=((x - 5) / 3, y), validation=((u - 5) / 3, v))


class Augmented(Dataset):
    """Samples with noise from every generator that people draw from."""

    def __len__(self):
        return N

    def __getitem__(self, index):
        x, y = DATA[index]
        return x + torch.rand(()) + np.random.rand() + random.random(), y


UNCHANGED = {
    "shuffled": lambda: loader(shuffle=True),
    "shuffled by a generator": lambda: loader(shuffle=True, generator=torch.Generator().manual_seed(1)),
    "augmented": lambda: DataLoader(Augmented(), BATCH, shuffle=True),
    "persistent workers": lambda: DataLoader(Augmented(), BATCH, shuffle=True, num_workers=1, persistent_workers=True),
}


@pytest.mark.parametrize("name", UNCHANGED)
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_training_is_the_same_to_the_last_bit(name):
    def outcome(measuring):
        for seed in (torch.manual_seed, np.random.seed, random.seed):
            seed(4)
        model, records = fit(UNCHANGED[name](), loader(*TEST), model=Lit(), measuring=measuring, max_epochs=2)
        assert {*records.unique("epoch")} == ({0, 1, 2} if measuring else set())
        return *model.state_dict().values(), torch.get_rng_state(), torch.rand(1), np.random.rand(), random.random()

    assert all(map(np.array_equal, outcome(True), outcome(False)))


# --- two ranks ---


def fit_standing_still(**options):
    """Fit with a learning rate of 0: weights do not depend on which samples a rank takes."""
    model = Lit(lr=0)
    return fit(loader(shuffle=True), loader(*(part[:7] for part in TEST)), model=model, **options)


def _rank(rank, path):
    fit_standing_still(devices=2, strategy="ddp")[1].save(path / f"{rank}.jsonl")


def test_two_ranks_with_uneven_shares(tmp_path):
    model, _ = fit_standing_still()
    on_two_ranks(_rank, tmp_path)
    assert_fit(model, tf.Records.read(tmp_path / "0.jsonl"), validation=tuple(part[:7] for part in TEST))
