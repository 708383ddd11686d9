"""Four ranks that measure together: uneven and empty shares, and a rank that fails."""

from __future__ import annotations

import pytest
import torch
import torch.distributed as dist
from torch import nn

import tightframe as tf
from tests.training.processes import on_two_ranks
from tightframe.errors import TightframeError
from tightframe.records import Records

K, D = 4, 6
SHARES = (7, 0, 3, 1)  # batches of each rank


def model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(D, 8), nn.ReLU(), nn.Linear(8, K)).double()


def batches() -> list[tuple[torch.Tensor, torch.Tensor]]:
    generator = torch.Generator().manual_seed(1)
    labels = torch.arange(5 * sum(SHARES)) % K
    inputs = torch.randn(len(labels), D, generator=generator, dtype=torch.float64) + labels[:, None]
    return list(zip(inputs.split(5), labels.split(5), strict=True))


def broken(rank: int) -> nn.Module:
    """Return a network that fails at its third batch, on one rank alone."""
    network, calls = model(), iter(range(1, 1000))

    def fails(*_: object) -> None:
        if rank == 2 and next(calls) > 2:
            raise ValueError("the third batch is broken")

    network.register_forward_pre_hook(fails)
    return network


def measured(network: nn.Module, loader: object, **options: object) -> Records:
    return tf.measure(network, {"train": loader, "test": loader}, num_classes=K, layers=["0"], **options)


def _rank(rank: int, folder: object) -> None:
    dist.init_process_group("gloo")
    start = sum(SHARES[:rank])
    share = batches()[start : start + SHARES[rank]]
    measured(model(), share, all_ranks=True).save(folder / f"rank{rank}.jsonl")
    try:
        measured(broken(rank), share, all_ranks=True)
    except (TightframeError, ValueError) as error:
        (folder / f"error{rank}.txt").write_text(f"{type(error).__name__}: {error}")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ranks")
    on_two_ranks(_rank, folder, ranks=len(SHARES))
    return folder


def test_uneven_and_empty_ranks_are_one_process(folder, record_property):
    whole = measured(model(), batches())
    for rank in range(len(SHARES)):
        rows = Records.read(folder / f"rank{rank}.jsonl")
        assert [(r.split, r.place, r.metric) for r in rows] == [(r.split, r.place, r.metric) for r in whole]
        for row, wanted in zip(rows, whole, strict=True):
            assert row.value == pytest.approx(wanted.value, rel=1e-10, abs=1e-10, nan_ok=True), row.metric
    record_property("cases", len(SHARES))


def test_a_rank_that_fails_makes_the_others_fail_with_its_words(folder, record_property):
    said = [(folder / f"error{rank}.txt").read_text() for rank in range(len(SHARES))]
    assert said[2] == "ValueError: the third batch is broken"
    others = "TightframeError: measuring failed on rank 2: ValueError: the third batch is broken"
    assert [text for rank, text in enumerate(said) if rank != 2] == [others] * 3
    record_property("cases", len(SHARES))
