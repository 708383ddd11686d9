"""The tracked means on two ranks with uneven shares against one process with the joint batch."""

from __future__ import annotations

from datetime import timedelta

import pytest
import torch
import torch.distributed as dist

from tightframe.errors import (
    EmptyDataError,
    LabelError,
    NonFiniteError,
    TightframeError,
)
from tightframe.nn import ClassMeanTracker, NearestETFClassifier

from ..problems import draw
from ..training.processes import on_two_ranks
from .nearest_material import K, assert_equal_states, batch, d, state_of

# Rank 0 alone has class 1, rank 1 alone class 3; nobody has class 2 in round two, and rank 0 nothing in round three.
SHARES = [[(3, 1, 1, 0), (1, 0, 3, 2)], [(2, 2, 0, 0), (0, 0, 0, 1)], [(0, 0, 0, 0), (1, 2, 1, 1)]]


def share_of(rank, step):
    features, labels = batch(10 * step + rank, counts=SHARES[step][rank])
    return features.requires_grad_(), labels


def joint(step):
    parts = [share_of(rank, step) for rank in range(2)]
    return torch.cat([h for h, _ in parts]).detach().requires_grad_(), torch.cat([y for _, y in parts])


def value_of(means, center, rank):
    """A function of the means, another one on each rank."""
    return (means * draw(K, d, seed=rank + 1)).square().sum() + (center * draw(d, seed=rank + 3)).exp().sum()


SPOILT_ON_ONE = {
    "nan": lambda h, y: (h.detach() * torch.nan, y),
    "inf": lambda h, y: (h.detach() / 0, y),
    "label": lambda h, y: (h, torch.full_like(y, K)),
    "negative label": lambda h, y: (h, torch.full_like(y, -1)),
}


def caught(module, features, labels):
    before = state_of(module)
    try:
        module(features, labels)
    except Exception as error:
        assert_equal_states(state_of(module), before)
        return type(error)
    return None


def work(rank, folder):
    dist.init_process_group("gloo", timeout=timedelta(seconds=20))
    tracker, seen = ClassMeanTracker(K, d), {"steps": [], "errors": {}}
    for step in range(len(SHARES)):
        features, labels = share_of(rank, step)
        value_of(*tracker(features, labels), rank).backward()
        seen["steps"].append((state_of(tracker), features.grad))
    seen["errors"]["empty", "tracker"] = caught(tracker, torch.zeros(0, d), torch.zeros(0, dtype=torch.long))
    classifier = NearestETFClassifier(d, K)
    classifier(*share_of(rank, 0))
    for name, spoil in SPOILT_ON_ONE.items():
        for kind, module in {"tracker": tracker, "classifier": classifier}.items():
            features, labels = share_of(rank, 0)
            seen["errors"][name, kind] = caught(module, *(spoil(features, labels) if rank else (features, labels)))
    torch.save(seen, f"{folder}/rank{rank}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ranks")
    on_two_ranks(work, folder)
    return [torch.load(folder / f"rank{rank}.pt", weights_only=False) for rank in range(2)]


def test_two_ranks_track_the_joint_batch(ranks):
    tracker = ClassMeanTracker(K, d)
    for step in range(len(SHARES)):
        features, labels = joint(step)
        means, center = tracker(features, labels)
        (value_of(means, center, 0) + value_of(means, center, 1)).backward()
        (one, grad0), (other, grad1) = (rank["steps"][step] for rank in ranks)
        assert_equal_states(one, other)
        for name, value in state_of(tracker).items():
            torch.testing.assert_close(one[name], value, rtol=0, atol=1e-13, msg=name)
        torch.testing.assert_close(torch.cat([grad0, grad1]), features.grad, rtol=1e-12, atol=1e-13)
        assert len(grad0) == sum(SHARES[step][0])


@pytest.mark.parametrize("kind", ["tracker", "classifier"])
@pytest.mark.parametrize("name", SPOILT_ON_ONE)
def test_what_is_wrong_on_one_rank_stops_both_and_changes_nothing(ranks, name, kind):
    good, spoilt = (rank["errors"][name, kind] for rank in ranks)
    assert spoilt is (LabelError if "label" in name else NonFiniteError)
    assert issubclass(good, TightframeError)


def test_no_sample_on_any_rank(ranks):
    assert [rank["errors"]["empty", "tracker"] for rank in ranks] == [EmptyDataError] * 2
