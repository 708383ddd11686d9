"""What every metric class does, whatever it measures."""

from __future__ import annotations

import pickle
from copy import deepcopy

import pytest
import torch
from torchmetrics import MetricCollection

from tightframe import metrics
from tightframe.hierarchy import Tree

from ..problems import draw
from .material import FEATURES, LABELS, MOMENTS, D, K, assert_same, classifier

HEAD = classifier()
SCORES = HEAD(FEATURES).detach() + draw(len(LABELS), K).float()
DISTANCES = Tree.from_nested({"E": ["A", "B"], "F": ["C", "D"]}).distances()
MAKE = {
    "CDNV": lambda: metrics.CDNV(K, D),
    "ConfusedPairs": lambda: metrics.ConfusedPairs(K),
    "FrameCollapse": lambda: metrics.FrameCollapse(HEAD.weight.detach(), scatter=True),
    "HierarchicalDistance": lambda: metrics.HierarchicalDistance(DISTANCES, top_k=(1, 2)),
    "HierarchicalMetrics": lambda: metrics.HierarchicalMetrics(DISTANCES),
    "MistakeSeverity": lambda: metrics.MistakeSeverity(DISTANCES),
    "NC1": lambda: metrics.NC1(K, D),
    "NC2": lambda: metrics.NC2(K, D),
    "NC3": lambda: metrics.NC3(K, D, classifier=HEAD),
    "NC4Agreement": lambda: metrics.NC4Agreement(MOMENTS),
    "NCCAccuracy": lambda: metrics.NCCAccuracy(MOMENTS),
    "NeuralCollapse": lambda: metrics.NeuralCollapse(K, D, classifier=HEAD),
}
FIRST, SECOND = (
    {"features": FEATURES[part], "labels": LABELS[part], "scores": SCORES[part], "logits": SCORES[part]}
    for part in (slice(None, 40), slice(40, None))
)
each = pytest.mark.parametrize("make", MAKE.values(), ids=MAKE.keys())


def fed(metric, *batches):
    for batch in batches:
        metric.update(**metric._filter_kwargs(**batch))
    return metric


def persistent(make):
    metric = make()
    metric.persistent(True)
    return metric


def test_every_class_is_here():
    assert set(MAKE) == set(metrics.__all__) - {"MomentsMetric"}


@each
def test_what_is_done_in_inference_mode_can_go_on_outside(make):
    whole, second = fed(make(), FIRST, SECOND).compute(), fed(make(), SECOND).compute()
    checkpoint = fed(persistent(make), FIRST).state_dict()
    with torch.inference_mode():
        made = fed(make(), FIRST)
        forward = make()
        forward(**forward._filter_kwargs(**FIRST))
        copied = deepcopy(made)
        loaded = persistent(make)
        loaded.load_state_dict(checkpoint)
        reset = fed(make(), FIRST)
        reset.compute()
        reset.reset()
    for metric in (made, forward, copied, loaded):
        assert_same(fed(metric, SECOND).compute(), whole)
    assert_same(fed(reset, SECOND).compute(), second)


@each
def test_a_checkpoint_restores_a_new_object_and_stays_its_own(make):
    wanted, whole = fed(make(), FIRST).compute(), fed(make(), FIRST, SECOND).compute()
    source = fed(persistent(make), FIRST)
    state = source.state_dict()
    kept = deepcopy(state)
    one, other = persistent(make), fed(persistent(make), SECOND)
    other.compute()  # which a load must forget
    for metric in (one, other):
        metric.load_state_dict(state)
    assert_same(fed(one, SECOND).compute(), whole)
    assert_same(other.compute(), wanted)
    assert_same(fed(source, SECOND).compute(), whole)
    torch.testing.assert_close(dict(state), dict(kept), rtol=0, atol=0)
    assert make().state_dict() == {}  # but for those that are told to persist


@each
def test_copies_and_pickles_go_their_own_way_and_casts_of_a_parent_change_nothing(make):
    source = fed(make(), FIRST)
    copies = [source.clone(), pickle.loads(pickle.dumps(source)), source.clone()]
    torch.nn.ModuleList(copies[2:]).to(torch.bfloat16).half()
    wanted, whole = source.compute(), fed(make(), FIRST, SECOND).compute()
    for copied in copies:
        assert_same(fed(copied, SECOND).compute(), whole)
    source._computed = None
    assert_same(source.compute(), wanted)


def test_all_in_one_collection_are_what_they_are_alone():
    others = {
        "other moments": lambda: metrics.NC1(K, D, ignore_index=0),
        "other variant": lambda: metrics.NC1(K, D, variant="ratio"),
        "other frame": lambda: metrics.FrameCollapse(HEAD.weight.detach().flip(0), scatter=True),
        "other distances": lambda: metrics.MistakeSeverity(DISTANCES.flip(0).flip(1) * 2),
        "other rules": lambda: metrics.HierarchicalMetrics(DISTANCES, decisions=("crm",)),
    }
    made = MAKE | others
    collection = MetricCollection({name: make() for name, make in made.items()})
    for batch in (FIRST, SECOND):
        collection.update(**batch)
        collection.compute()
    for name, metric in collection.items():
        assert_same(metric.compute(), fed(made[name](), FIRST, SECOND).compute())


def test_a_state_of_another_shape_is_refused():
    state = persistent(lambda: metrics.NC1(K + 1, D)).state_dict()
    with pytest.raises(RuntimeError, match=r"shape of packed: \(\d+,\) in the checkpoint, \(\d+,\) here"):
        persistent(MAKE["NC1"]).load_state_dict(state)
