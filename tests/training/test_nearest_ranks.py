"""The nearest ETF on two ranks with uneven shares against one process with the joint batch, in float64."""

import copy
from datetime import timedelta

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn

from tests.problems import draw
from tests.training.models import D, K, quiet
from tests.training.processes import on_two_ranks
from tightframe.records import Records
from tightframe.runs.layout import RECORDS_FILE

from .test_nearest import NAMES, assert_equal_states, nearest, train

pytestmark = quiet
SHARES = (7, 4)  # samples of each rank: uneven, and class 2 is on the second alone


def joint(step):
    labels = torch.tensor([0, 1, 0, 1, 1, 0, 0, 2, 1, 2, 2])
    return draw(len(labels), D, seed=step) + draw(K, D, seed=99)[labels], labels


class Labelled(nn.Module):
    """Backbone and classifier as one module of inputs and labels."""

    def __init__(self, **options):
        super().__init__()
        torch.manual_seed(0)
        self.backbone = nn.Sequential(nn.Linear(D, 6), nn.Tanh(), nn.Linear(6, 5))
        self.classifier = nearest(**options)
        self.double()

    def forward(self, inputs, labels):
        return self.classifier(self.backbone(inputs), labels)


PLAIN = {
    "none": {},
    "exact": {"gradient": "exact"},
    "exact, all options": {"gradient": "exact", "proximal": 0.3, "momentum": 0.7},
}


def descend(model, batches, factor):
    """Train by gradient descent; return gradients and states of each step."""
    seen = []
    inner = model.module if isinstance(model, nn.parallel.DistributedDataParallel) else model
    for inputs, labels in batches:
        model.zero_grad()
        (factor * F.cross_entropy(model(inputs, labels), labels, reduction="sum")).backward()
        seen.append(([p.grad.clone() for p in model.parameters()], copy.deepcopy(inner.state_dict())))
        with torch.no_grad():
            for p in model.parameters():
                p -= 0.5 * p.grad
    return seen


def _rank(rank, directory):
    store = f"file://{directory}/store"
    dist.init_process_group("gloo", init_method=store, rank=rank, world_size=2, timeout=timedelta(seconds=30))
    start = sum(SHARES[:rank])
    mine = [tuple(x[start : start + SHARES[rank]] for x in joint(step)) for step in range(4)]
    # DDP averages over ranks, so a rank weighs each of its samples by 2 / N.
    plain = {
        name: descend(nn.parallel.DistributedDataParallel(Labelled(**options)), mine, 2 / sum(SHARES))
        for name, options in PLAIN.items()
    }
    dist.destroy_process_group()
    fitted = train(directory / "two", {"gradient": "exact"}, dtype=torch.float64, devices=2, strategy="ddp", epochs=2)
    torch.save((plain, fitted), directory / f"rank{rank}.pt")


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ranks")
    on_two_ranks(_rank, folder)
    return folder, [torch.load(folder / f"rank{rank}.pt") for rank in range(2)]


@pytest.mark.parametrize("name", PLAIN)
def test_two_ranks_with_uneven_shares_are_one_process(ranks, name):
    wanted = descend(Labelled(**PLAIN[name]), [joint(step) for step in range(4)], 1 / sum(SHARES))
    (zero, _), (one, _) = ranks[1]
    for (grads, state), mine, theirs in zip(wanted, zero[name], one[name], strict=True):
        assert_equal_states(mine[1], theirs[1])
        for key, value in state.items():
            torch.testing.assert_close(mine[1][key].double(), value.double(), rtol=1e-10, atol=1e-10, msg=key)
        for grad, a, b in zip(grads, mine[0], theirs[0], strict=True):
            assert torch.equal(a, b)
            torch.testing.assert_close(a, grad, rtol=1e-10, atol=1e-10)


def test_two_ranks_under_lightning_are_one_process(ranks, tmp_path):
    folder, ((_, mine), (_, theirs)) = ranks
    wanted = train(tmp_path / "one", {"gradient": "exact"}, dtype=torch.float64, epochs=2)
    for key, value in wanted.items():
        if key.startswith(("backbone", "classifier")):
            torch.testing.assert_close(mine[key], value, rtol=1e-9, atol=1e-12, msg=key)
            assert torch.equal(mine[key], theirs[key]), key
    one, two = (Records.read(path / RECORDS_FILE) for path in (tmp_path / "one", folder / "two"))
    assert len(one) == len(two)
    for name in NAMES:
        for epoch in (1, 2):
            value = one.value(name, split="train", epoch=epoch)
            assert two.value(name, split="train", epoch=epoch) == pytest.approx(value, rel=1e-6), name
