"""AdaptiveETF on two ranks under Lightning's DDP against one process with the joint batches, in float64."""

import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.strategies import DDPStrategy
from torch import nn

from tests.training.adaptive_models import LAYERS, At, copied, easy, locks, network
from tests.training.models import dataset, quiet, trainer
from tests.training.processes import on_two_ranks
from tightframe.training import make_loader

pytestmark = quiet
TRAIN = dataset(n=27, dtype=torch.float64)  # 81 samples: uneven shares of the last batch of a measurement
EPOCHS = 4
WAYS = {
    "along the way": {},
    "start": {"start": 2, "kind": "haar"},
    "first stage": {"first_stage": 2},
}


class Mixed(nn.BatchNorm1d):
    """A batch norm with a buffer that is no statistic, and differs between ranks."""

    def __init__(self, width):
        super().__init__(width)
        self.register_buffer("own", torch.zeros(1))


def cosine(optimizer, steps):
    return torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)


def train(options, norm, rank=0, world_size=1, resumed=None, folder=None):
    """Return what a training left: weights, locks, rows and learning rates."""
    model = network(cosine, norm=norm).double()
    for name, buffer in model.named_buffers():
        if name.endswith("own"):
            buffer.fill_(rank)
    callback = easy(batch_size=16, **options)
    keep = [] if folder is None else [ModelCheckpoint(folder, "{epoch}", save_top_k=-1, save_on_train_epoch_end=True)]
    ranks = {}
    if world_size > 1:  # by default the first rank's buffers are copied to all before each forward
        strategy = DDPStrategy(broadcast_buffers=norm is not Mixed)
        ranks = {"devices": world_size, "strategy": strategy, "use_distributed_sampler": False}
    locked = {}
    after = At(2, lambda module: locked.update(copied(module)))
    fitted = trainer(callback, after, *keep, max_epochs=EPOCHS, enable_checkpointing=bool(keep), **ranks)
    loader = make_loader(TRAIN, 8, seed=0, rank=rank, world_size=world_size)
    fitted.fit(model, loader, ckpt_path=resumed, weights_only=False)
    optimizer = fitted.optimizers[0]
    return {
        "weights": copied(model),
        "locked": locked,
        "trained": [name for name, p in model.named_parameters() if p.requires_grad],
        "locks": locks(callback),
        "rows": {(r.metric, r.layer, r.epoch, r.step): r.value for r in callback.records},
        "rate": [group["lr"] for group in optimizer.param_groups],
    }


# Batch norm, whose statistics belong to a rank, and the epochs to go on from: before a lock, and right after one.
RESUMED = {("Identity", "along the way"): (0, 1), ("Identity", "start"): (1,), ("BatchNorm1d", "first stage"): (0, 1)}


def _rank(rank, folder):
    for norm, way in [*RESUMED, ("Identity", "first stage")]:
        place = folder / f"{norm}-{way}"
        options, kind = WAYS[way], getattr(nn, norm)
        whole = train(options, kind, rank, 2, folder=place)
        epochs = RESUMED.get((norm, way), ())
        resumed = [train(options, kind, rank, 2, place / f"epoch={epoch}.ckpt") for epoch in epochs]
        torch.save((whole, resumed), folder / f"{place.name}-{rank}.pt")
    torch.save(train({}, Mixed, rank, 2), folder / f"mixed-{rank}.pt")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("adaptive")
    on_two_ranks(_rank, folder)
    return folder


def assert_close(two, one, rtol, atol):
    for name in ("locks", "trained"):
        assert two.pop(name) == one[name]
    torch.testing.assert_close(two, {name: one[name] for name in two}, rtol=rtol, atol=atol)


@pytest.mark.parametrize("way", WAYS)
def test_two_ranks_lock_as_one_process(folder, way):
    one = train(WAYS[way], nn.Identity)
    assert one["locks"] == {{"start": 0}.get(way, 2): list(LAYERS[2 if way == "start" else 1 :])}
    for rank in range(2):
        two, _ = torch.load(folder / f"Identity-{way}-{rank}.pt")
        assert_close(two, one, 1e-9, 1e-12)


@pytest.mark.parametrize(("norm", "way"), RESUMED)
def test_two_ranks_go_on_from_a_checkpoint(folder, norm, way):
    for rank in range(2):
        whole, resumed = torch.load(folder / f"{norm}-{way}-{rank}.pt")
        assert len(resumed) == len(RESUMED[norm, way])
        for other in resumed:
            other["locked"] = other["locked"] or whole["locked"]
            assert_close(other, whole, 0, 0)


def test_statistics_are_averaged_and_nothing_else(folder):
    zero, one = (torch.load(folder / f"mixed-{rank}.pt")["locked"] for rank in range(2))
    for name, value in zero.items():
        if name.endswith("own"):
            assert (value.item(), one[name].item()) == (0, 1)
        else:
            assert torch.equal(value, one[name]), name
