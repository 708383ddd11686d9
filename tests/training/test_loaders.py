import itertools

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from tests.training.models import TRAIN, Pairs, Plain, quiet, sgd, trainer
from tightframe.errors import ArgumentError, ConfigError, EmptyDataError
from tightframe.nn import LinearClassifier
from tightframe.training import BatchSampler, ClassifierModule, evaluation_loader, fit, make_loader

pytestmark = quiet

NUMBERED = TensorDataset(torch.arange(23.0).unsqueeze(1), torch.arange(23) % 3)


def seen(loader):
    """The samples of each batch by their number."""
    return [inputs.flatten().int().tolist() for inputs, _ in loader]


def flat(lists):
    return list(itertools.chain.from_iterable(lists))


# --- BatchSampler ---


def test_the_order_is_one_of_seed_and_epoch_alone():
    def order(seed, epoch):
        sampler = BatchSampler(23, 5, seed)
        sampler.set_epoch(epoch)
        return list(sampler)

    torch.manual_seed(1)
    first = order(3, 2)
    torch.manual_seed(2)
    assert order(3, 2) == first
    orders = [order(seed, epoch) for seed, epoch in itertools.product((0, 1, 2), (0, 1, 2))]
    assert len({str(o) for o in orders}) == 9


def test_the_epochs_before_leave_no_trace():
    resumed, whole = BatchSampler(23, 5, seed=1), BatchSampler(23, 5, seed=1)
    for epoch in range(3):
        whole.set_epoch(epoch)
        orders = list(whole)
    resumed.set_epoch(2)
    assert list(resumed) == orders


def test_the_order_leaves_random_numbers_alone():
    state = torch.get_rng_state()
    list(BatchSampler(23, 5, seed=1))
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("size", [1, 4, 5, 6, 20, 23])
@pytest.mark.parametrize("seed", [None, 0])
def test_length_and_the_last_batch(size, seed):
    batches = list(BatchSampler(size, 5, seed))
    assert len(batches) == len(BatchSampler(size, 5, seed))
    samples = [i for batch in batches for i in batch]
    assert len(samples) == len(set(samples))
    if seed is None:
        assert samples == list(range(size))
    else:
        assert len(samples) == (size if size < 5 else size // 5 * 5)
        assert set(samples) <= set(range(size))
    assert all(len(batch) == 5 for batch in batches[:-1])


@pytest.mark.parametrize("world_size", [2, 3, 5])
@pytest.mark.parametrize("seed", [None, 7])
def test_the_shares_of_the_ranks_make_up_the_batches_of_one_process(world_size, seed):
    shares = [list(BatchSampler(23, 5, seed, rank, world_size)) for rank in range(world_size)]
    whole = list(BatchSampler(23, 5, seed))
    assert [len(share) for share in shares] == [
        len(BatchSampler(23, 5, seed, r, world_size)) for r in range(world_size)
    ]
    for batch, *parts in itertools.zip_longest(whole, *shares, fillvalue=[]):
        assert sorted(itertools.chain(*parts)) == sorted(batch)
        assert max(map(len, parts)) - min(map(len, parts)) <= 1


@pytest.mark.parametrize(("batch_size", "world_size"), [(0, 1), (-3, 1), (1, 2), (2.5, 1), (True, 1)])
def test_a_batch_must_have_a_sample_for_every_rank(batch_size, world_size):
    with pytest.raises(ArgumentError, match="batch_size"):
        BatchSampler(23, batch_size, world_size=world_size)


# --- make_loader ---


@pytest.mark.parametrize("seed", [None, 4])
def test_a_tensor_dataset_gives_the_batches_of_any_other(seed):
    fast, plain = make_loader(NUMBERED, 5, seed=seed), make_loader(Pairs(NUMBERED), 5, seed=seed)
    assert len(fast) == len(plain) == len(list(fast))
    for (inputs, labels), (same_inputs, same_labels) in zip(fast, plain, strict=True):
        assert torch.equal(inputs, same_inputs)
        assert torch.equal(labels, same_labels)


def test_a_tensor_dataset_is_indexed_a_batch_at_a_time_and_a_subclass_sample_by_sample():
    class Indexed(TensorDataset):
        def __getitem__(self, index):
            asked.append(index)
            return super().__getitem__(index)

    asked = []
    assert isinstance(next(iter(make_loader(NUMBERED, 5)))[0], torch.Tensor)
    batches = list(make_loader(Indexed(*NUMBERED.tensors), 5))
    assert asked == list(range(23))
    assert [len(labels) for _, labels in batches] == [5, 5, 5, 5, 3]


@pytest.mark.parametrize("make", [lambda: NUMBERED, lambda: Pairs(NUMBERED)])
def test_lightning_sets_the_epoch(make):
    class Listening(Plain):
        def training_step(self, batch, batch_idx):
            orders[-1].append(batch[0].flatten().int().tolist())

        def on_train_epoch_start(self):
            orders.append([])

        def configure_optimizers(self):
            return None

    orders = []
    trainer(max_epochs=3, use_distributed_sampler=False).fit(Listening(), make_loader(make(), 5, seed=9))
    expected = BatchSampler(23, 5, seed=9)
    for epoch, order in enumerate(orders):
        expected.set_epoch(epoch)
        assert order == list(expected)
    assert len(orders) == 3


@quiet
def test_overfitting_takes_the_same_batches_in_every_epoch(tmp_path):
    class Seeing(ClassifierModule):
        def training_step(self, batch, batch_idx):
            seen.append(batch[0])
            return super().training_step(batch, batch_idx)

    def overfit(share):
        model = Seeing(nn.Linear(4, 5), LinearClassifier(5, 3), nn.CrossEntropyLoss(), sgd(0.1))
        settings = {"run": "a", "seed": 0, "epochs": 2, "batch_size": 10}
        options = {"accelerator": "cpu", "overfit_batches": share}
        fit(model, TRAIN, {"validation": TRAIN}, tmp_path / str(share), **settings, trainer=options)

    seen = []
    overfit(2)
    assert torch.equal(torch.cat(seen), TRAIN.tensors[0][:20].repeat(2, 1))
    with pytest.raises(ConfigError, match=r"trainer: .*limit_val_batches"):
        overfit(0.5)  # of one batch of validation


def test_options_go_to_the_data_loader():
    assert make_loader(NUMBERED, 5, num_workers=1).num_workers == 1
    assert make_loader(Pairs(NUMBERED), 5, num_workers=1).num_workers == 1


def test_workers_give_the_same_batches():
    assert seen(make_loader(NUMBERED, 5, seed=1, num_workers=1)) == seen(make_loader(NUMBERED, 5, seed=1))


@pytest.mark.parametrize("make", [lambda data: data, Pairs])
def test_an_empty_dataset_is_refused(make):
    empty = make(TensorDataset(torch.empty(0, 1), torch.empty(0, dtype=torch.long)))
    with pytest.raises(EmptyDataError, match="at least one sample"):
        make_loader(empty, 5)


@pytest.mark.parametrize(
    "make",
    [
        lambda: NUMBERED,
        pytest.param(
            lambda: Pairs(NUMBERED),
        ),
    ],
)
def test_a_rank_whose_share_of_the_last_batch_is_empty(make):
    shares = [seen(make_loader(make(), 11, rank=rank, world_size=2)) for rank in range(2)]
    assert [batch[-1] for batch in shares[:1]] == [[22]]
    assert sorted(flat(map(flat, shares))) == list(range(23))


# --- evaluation_loader ---


@pytest.mark.parametrize("data", [NUMBERED, Pairs(NUMBERED)])
def test_our_own_loader_is_read_in_order_and_whole(data):
    loader = evaluation_loader(make_loader(data, 5, seed=3), 6)
    assert flat(seen(loader)) == list(range(23))
    assert list(map(len, seen(loader))) == [6, 6, 6, 5]


def test_ranks_share_the_samples():
    shares = [flat(seen(evaluation_loader(make_loader(NUMBERED, 4, seed=1), 6, rank, 2))) for rank in range(2)]
    assert sorted(flat(shares)) == list(range(23))
    assert sorted(map(len, shares)) == [11, 12]


def test_samples_are_collated_as_in_training():
    def doubled(samples):
        inputs, labels = zip(*samples, strict=True)
        return 2 * torch.stack(inputs), torch.tensor(labels)

    loader = evaluation_loader(make_loader(Pairs(NUMBERED), 4, collate_fn=doubled), 6)
    assert flat(seen(loader)) == list(range(0, 46, 2))


def test_any_other_loader_is_taken_as_it_is():
    for loader in (DataLoader(NUMBERED, 4, shuffle=True), DataLoader(NUMBERED, batch_sampler=[[1, 2], [3, 4]]), [()]):
        assert evaluation_loader(loader, 6) is loader
