"""Two ranks with uneven shares against one process."""

from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from tests.metrics.material import (
    FEATURES,
    LABELS,
    MOMENTS,
    D,
    K,
    assert_same,
    batches,
    classifier,
    collection,
    expected_collection,
    fed,
    twice,
)
from tests.training.processes import on_two_ranks
from tightframe import functional as F
from tightframe.metrics import NC1, NeuralCollapse
from tightframe.moments import ClassMoments

SHARES = (slice(0, 53), slice(53, 70))
BIG = {"scatter": (4, 1500, True), "means": (1500, 700, False)}


def _peak():
    """Return the highest resident memory since :func:`_forget_peak`, in bytes."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM"):
            return 1024 * int(line.split()[1])
    raise OSError("no VmHWM")


def _forget_peak():
    Path("/proc/self/clear_refs").write_text("5")


def _sync_cost(num_classes, dim, scatter):
    """Return how many states' worth of memory a synchronisation takes beside the state."""
    metric = NeuralCollapse(num_classes, dim, scatter=scatter)
    metric.update(torch.randn(8, dim), torch.arange(8) % num_classes)
    try:
        _forget_peak()
        before = _peak()
    except OSError:
        return None
    metric.sync()
    return (_peak() - before) / (metric.packed.numel() * 8)


def _rank(rank, folder):
    dist.init_process_group("gloo")
    features, labels = FEATURES[SHARES[rank]], LABELS[SHARES[rank]]
    results = {}

    metric = fed(NeuralCollapse(K, D, classifier=classifier()), 10, features, labels)
    assert metric.moments.count.sum() == labels.numel()  # settled, so that reading it again changes nothing
    local = metric.packed.clone()
    results["first"] = metric.compute()
    results["restored"] = torch.equal(metric.packed, local)
    results["again"] = metric.compute()
    fed(metric, 10, features + 1, labels)
    results["more"] = metric.compute()
    metric.sync()
    results["synced_state_differs"] = not torch.equal(metric.packed, local)
    metric.unsync()
    results["local"] = metric.moments.count.clone()

    metrics = collection()
    for h, y in batches(10, features, labels):
        metrics.update(h, y)
    results["collection"] = metrics.compute()
    results["collection_again"] = metrics.compute()
    metrics.update(features + 1, labels)
    results["collection_more"] = metrics.compute()
    results["groups"] = len(metrics.compute_groups)

    step = NC1(K, D, dist_sync_on_step=True)
    results["step"] = step(features, labels)
    results["after_step"] = step.compute()

    alone = NC1(K, D)
    if rank == 0:
        fed(alone, 10, FEATURES, LABELS)
    else:
        alone.update(FEATURES[:0], LABELS[:0])
    results["one_rank_has_all"] = alone.compute()

    local_only = fed(NC1(K, D, sync_on_compute=False), 10, features, labels)
    results["not_synced"] = local_only.compute()

    results["cost"] = {name: _sync_cost(*sizes) for name, sizes in BIG.items()}
    torch.save(results, f"{folder}/rank{rank}.pt")
    dist.barrier()
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ranks")
    on_two_ranks(_rank, folder)
    return [torch.load(folder / f"rank{rank}.pt") for rank in range(2)]


def test_two_ranks_with_uneven_shares_are_one_process(ranks):
    head = classifier()
    for result in ranks:
        assert_same(result["first"], F.collapse_metrics(MOMENTS, head.weight, head.bias.detach()))
        assert_same(result["again"], result["first"], rtol=0)
        moments = ClassMoments.from_samples(*twice(), K, scatter=True)
        assert_same(result["more"], F.collapse_metrics(moments, head.weight, head.bias.detach()))


def test_unsync_restores_the_state_of_the_rank(ranks):
    for result, share in zip(ranks, SHARES, strict=True):
        assert result["restored"]
        assert result["synced_state_differs"]
        assert torch.equal(result["local"], 2 * LABELS[share].bincount(minlength=K).double())


def test_a_shared_state_is_synced_without_double_counting(ranks):
    for result in ranks:
        assert result["groups"] == 1
        assert_same(result["collection"], expected_collection(FEATURES, LABELS))
        assert_same(result["collection_again"], expected_collection(FEATURES, LABELS))
        assert_same(result["collection_more"], expected_collection(*twice()))


def test_sync_on_step(ranks):
    for result in ranks:
        assert_same(result["step"], F.nc1(MOMENTS))
        assert_same(result["after_step"], F.nc1(MOMENTS))


def test_a_rank_may_have_no_samples(ranks):
    for result in ranks:
        assert_same(result["one_rank_has_all"], F.nc1(MOMENTS))


def test_sync_can_be_off(ranks):
    for result, share in zip(ranks, SHARES, strict=True):
        assert_same(result["not_synced"], F.nc1(ClassMoments.from_samples(FEATURES[share], LABELS[share], K, True)))


@pytest.mark.parametrize("name", BIG)
def test_syncing_costs_at_most_twice_the_state(ranks, name):
    costs = [result["cost"][name] for result in ranks]
    if None in costs:
        pytest.skip("this system does not tell the peak of memory")
    assert 0.5 < max(costs) <= 2  # a gather and a stack of two states take 4
