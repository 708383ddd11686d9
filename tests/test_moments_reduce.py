from __future__ import annotations

from datetime import timedelta

import pytest
import torch
import torch.distributed as dist

from tightframe.moments import ClassMoments

from .problems import UNEVEN, assert_same, draw
from .training.processes import on_two_ranks


def reduce_on_rank(rank, folder):
    """Run every scenario on one rank and store what it sees."""
    dist.init_process_group("gloo", timeout=timedelta(seconds=30))
    seen = {}
    # The ranks share class 0 unevenly; only rank 0 has class 1, only rank 1 has class 3, nobody has class 2.
    first = torch.arange(64) % 5 < 3
    mine = (first | (UNEVEN.labels == 1)) & (UNEVEN.labels != 3)
    mine = mine if rank == 0 else ~mine
    for name, offset in {"plain": 0.0, "offset": 1000.0}.items():
        for scatter in (False, True):
            shard = ClassMoments.from_samples(UNEVEN.features[mine] + offset, UNEVEN.labels[mine], 5, scatter=scatter)
            assert shard.all_reduce_() is shard
            seen[name, scatter] = shard
    shard = ClassMoments(5, 7, scatter=True)
    if rank == 0:
        shard.update(UNEVEN.features, UNEVEN.labels)
    seen["one rank is empty", True] = shard.all_reduce_()
    coarse = UNEVEN.features.bfloat16() if rank else UNEVEN.features
    seen["eps"] = ClassMoments.from_samples(coarse, UNEVEN.labels, 5).all_reduce_().eps.item()
    labels = torch.arange(4).repeat(6 if rank else 7)
    for dtype in (torch.float32, torch.float64):
        features = draw(4, 6).to(dtype)[labels]
        seen["collapsed", dtype] = ClassMoments.from_samples(features, labels, 4).all_reduce_()
    for name, sizes in {"both saw samples": (2, 3), "only the bad rank saw samples": (0, 3)}.items():
        shard = ClassMoments(2, 1)
        shard._update_masked(torch.ones(sizes[rank], 1), torch.full((sizes[rank],), rank * 7), None)
        try:
            seen[name] = str(shard.all_reduce_())
        except Exception as error:
            seen[name] = type(error).__name__
    torch.save(seen, f"{folder}/rank{rank}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def two_ranks(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ranks")
    on_two_ranks(reduce_on_rank, folder)
    return [torch.load(folder / f"rank{rank}.pt", weights_only=False) for rank in range(2)]


@pytest.mark.parametrize("scatter", [False, True])
@pytest.mark.parametrize("name", ["plain", "offset"])
def test_two_ranks_reduce_to_what_one_process_sees(two_ranks, name, scatter):
    offset = 1000.0 if name == "offset" else 0.0
    whole = ClassMoments.from_samples(UNEVEN.features + offset, UNEVEN.labels, 5, scatter=scatter)
    for seen in two_ranks:
        assert_same(seen[name, scatter], whole)
        assert_same(seen["one rank is empty", True], UNEVEN.moments())
        assert seen["eps"] == torch.finfo(torch.bfloat16).eps
    assert torch.equal(two_ranks[0][name, scatter].packed, two_ranks[1][name, scatter].packed)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_exact_collapse_survives_the_reduction(two_ranks, dtype):
    for seen in two_ranks:
        assert seen["collapsed", dtype].count.tolist() == [13.0] * 4
        assert seen["collapsed", dtype].trace.tolist() == [0.0] * 4


@pytest.mark.parametrize("name", ["both saw samples", "only the bad rank saw samples"])
def test_a_bad_sample_on_one_rank_raises_on_every_rank(two_ranks, name):
    assert [seen[name] for seen in two_ranks] == ["LabelError", "LabelError"]
