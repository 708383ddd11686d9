import warnings

import pytest
import torch
import torch.distributed as dist
from torchmetrics import MetricCollection

from tests.training.processes import on_two_ranks
from tightframe.errors import ArgumentError, DeviceError, DtypeError, LabelError, NonFiniteError, ShapeError
from tightframe.metrics import ConfusedPairs

G = torch.Generator().manual_seed(0)
K, N = 13, 400
LABELS = torch.randint(K - 1, (N,), generator=G)  # nobody is of the last class
SCORES = torch.randn(N, K, generator=G) + 2 * torch.eye(K)[LABELS]
SHARES = (slice(0, 53), slice(53, N))


def dense(scores=SCORES, labels=LABELS, num_classes=K):
    """The whole confusion matrix, one sample after another."""
    matrix = torch.zeros(num_classes, num_classes, dtype=torch.long)
    for z, y in zip(scores, labels, strict=True):
        matrix[y, z.tolist().index(max(z.tolist()))] += 1
    return matrix


def fed(metric, size=64, scores=SCORES, labels=LABELS):
    for z, y in zip(scores.split(size), labels.split(size), strict=True):
        metric.update(z, y)
    return metric


def assert_is(result, matrix):
    assert result.dtype == torch.int64
    assert torch.equal(result, torch.cat([matrix.nonzero(), matrix[matrix > 0].unsqueeze(1)], dim=1))


@pytest.mark.parametrize("size", [1, 64, N])
@pytest.mark.parametrize("dtype", [torch.uint8, torch.int64])
def test_batches_and_integers_do_not_matter(size, dtype):
    matrix = dense()
    assert matrix.sum() == N
    assert matrix.diagonal().sum() not in (0, N)
    assert_is(fed(ConfusedPairs(K), size, labels=LABELS.to(dtype)).compute(), matrix)


def test_of_equal_scores_the_lower_class():
    metric = ConfusedPairs(3)
    metric.update(torch.tensor([[1.0, 1.0, 1.0], [0.0, 2.0, 2.0]]), torch.tensor([2, 2]))
    assert metric.compute().tolist() == [[2, 0, 1], [2, 1, 1]]


def test_many_classes_take_memory_of_the_samples_alone():
    num_classes = 100_000  # of whose square there are 80 GB
    metric = ConfusedPairs(num_classes)
    scores = torch.zeros(4, num_classes)
    scores[torch.arange(4), torch.tensor([99_999, 0, 99_999, 7])] = 1
    metric.update(scores, torch.tensor([99_998, 99_999, 99_998, 7]))
    assert sum(codes.numel() for codes in metric.codes) == 4
    assert metric.compute().tolist() == [[7, 7, 1], [99_998, 99_999, 2], [99_999, 0, 1]]


def test_one_pair_and_none():
    metric = ConfusedPairs(3)
    metric.update(torch.eye(3)[:0], torch.arange(0))
    assert metric.compute().shape == (0, 3)
    metric.update(torch.eye(3)[[1, 1]], torch.tensor([2, 2]))
    assert metric.compute().tolist() == [[2, 1, 2]]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        assert ConfusedPairs(3).compute().shape == (0, 3)


# ---------------------------------------------------------------- two ranks


def _rank(rank, folder):
    dist.init_process_group("gloo")
    share = SHARES[rank]
    metric = fed(ConfusedPairs(K), 10, SCORES[share], LABELS[share])
    results = {"all": metric.compute(), "again": metric.compute()}
    fed(metric, 10, SCORES[share], LABELS[share])
    results["twice"] = metric.compute()
    alone = ConfusedPairs(K)
    if rank == 0:
        fed(alone)
    results["one_rank_has_all"] = alone.compute()
    results["nobody"] = ConfusedPairs(K).compute()
    pair = MetricCollection({"one": ConfusedPairs(K), "other": ConfusedPairs(K)})
    pair.update(SCORES[share], LABELS[share])
    results["collection"] = pair.compute()["other"]
    torch.save(results, f"{folder}/rank{rank}.pt")
    dist.barrier()
    dist.destroy_process_group()


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_two_ranks_with_uneven_shares(tmp_path):
    on_two_ranks(_rank, tmp_path)
    for rank in range(2):
        results = torch.load(tmp_path / f"rank{rank}.pt")
        for name in ("all", "again", "one_rank_has_all", "collection"):
            assert_is(results[name], dense())
        assert_is(results["twice"], 2 * dense())
        assert_is(results["nobody"], 0 * dense())


# ---------------------------------------------------------------- bad input


def test_bad_samples_are_refused_and_not_counted():
    metric = fed(ConfusedPairs(K))
    for scores, labels, error in (
        (SCORES, LABELS + K, LabelError),
        (SCORES, -1 - LABELS, LabelError),
        (SCORES, LABELS.float(), DtypeError),
        (SCORES, LABELS[1:], ShapeError),
        (SCORES[:, :3], LABELS, ShapeError),
        (SCORES[0], LABELS, ShapeError),
        (SCORES.long(), LABELS, DtypeError),
        (SCORES, LABELS.to("meta"), DeviceError),
        (SCORES * torch.nan, LABELS, NonFiniteError),
        (SCORES * torch.inf, LABELS, NonFiniteError),
    ):
        with pytest.raises(error, match="labels" if error is LabelError else "labels|scores"):
            metric.update(scores, labels)
    assert_is(metric.compute(), dense())


@pytest.mark.parametrize("num_classes", [0, -1, 2.0, True])
def test_bad_number_of_classes(num_classes):
    with pytest.raises(ArgumentError, match="num_classes must be an integer >= 1"):
        ConfusedPairs(num_classes)
