from __future__ import annotations

import pytest
import torch
from torch.utils.data import TensorDataset

from tightframe.data import ClassificationData, DataSource, long_tailed_counts, stratified_split
from tightframe.errors import ArgumentError, DtypeError, ShapeError


def make_data(**changes):
    part = TensorDataset(torch.zeros(2, 1), torch.tensor([0, 1]))
    arguments = {
        "train": part,
        "validation": None,
        "test": part,
        "num_classes": 2,
        "class_names": ("a", "b"),
        "class_counts": torch.tensor([1, 1]),
    }
    return ClassificationData(**(arguments | changes))


def test_classification_data_keeps_its_parts_and_is_frozen():
    data = make_data(paths=(("top", "a"), ("top", "b")))
    assert data.paths == (("top", "a"), ("top", "b"))
    with pytest.raises(AttributeError):
        data.num_classes = 3


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"class_names": ("a",)}, ShapeError, "class_names must have K = 2 entries, got 1"),
        ({"paths": (("a",),)}, ShapeError, "paths must have K = 2 entries, got 1"),
        ({"class_counts": torch.tensor([1, 1, 1])}, ShapeError, r"class_counts must have shape \(K,\) = \(2,\)"),
        ({"class_counts": torch.ones(2)}, DtypeError, "class_counts must be int64, got torch.float32"),
        ({"num_classes": 0}, ArgumentError, "num_classes"),
    ],
)
def test_classification_data_refuses_what_does_not_fit(changes, error, message):
    with pytest.raises(error, match=message):
        make_data(**changes)


def test_a_source_without_load_is_abstract():
    with pytest.raises(TypeError, match="load"):
        DataSource()


def test_long_tail_follows_the_published_rule():
    assert long_tailed_counts(10, 5000, 0.01).tolist() == [5000, 2997, 1796, 1077, 645, 387, 232, 139, 83, 50]
    assert long_tailed_counts(3, 7, 1.0).tolist() == [7, 7, 7]
    assert long_tailed_counts(1, 7, 0.5).tolist() == [7]


def test_long_tail_keeps_one_sample_a_class():
    counts = long_tailed_counts(4, 3, 0.01)
    assert counts.tolist() == [3, 1, 1, 1]
    assert counts.dtype == torch.int64


@pytest.mark.parametrize(
    ("arguments", "name"),
    [((0, 5, 0.5), "num_classes"), ((3, 0, 0.5), "largest"), ((3, 5, 0.0), "imbalance"), ((3, 5, 1.5), "imbalance")],
)
def test_long_tail_refuses_values_out_of_range(arguments, name):
    with pytest.raises(ArgumentError, match=name):
        long_tailed_counts(*arguments)


def test_stratified_split_is_a_partition_with_equal_shares():
    labels = torch.arange(3).repeat_interleave(torch.tensor([40, 20, 60]))
    rest, part = stratified_split(labels, 0.25, seed=3)
    assert torch.equal(torch.cat([rest, part]).sort().values, torch.arange(120))
    assert labels[part].bincount().tolist() == [10, 5, 15]
    assert rest.dtype == part.dtype == torch.int64


def test_stratified_split_depends_on_the_seed_alone():
    labels = torch.arange(2).repeat(50)
    first, again, other = (stratified_split(labels, 0.2, seed)[1] for seed in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first.sort().values, other.sort().values)


@pytest.mark.parametrize(
    ("labels", "fraction", "seed", "error", "message"),
    [
        (torch.arange(2).repeat(5), 0.0, 0, ArgumentError, r"fraction must be a fraction in \(0, 1\), got 0.0"),
        (torch.arange(2).repeat(5), 1.0, 0, ArgumentError, "fraction"),
        (torch.arange(2).repeat(5), True, 0, ArgumentError, "fraction"),
        (torch.arange(2).repeat(5), 0.2, -1, ArgumentError, "seed"),
        (torch.arange(5).repeat(2), 0.1, 0, ArgumentError, "fraction=0.1 leaves a part without some class"),
        (torch.tensor([0, 0, 0, 1]), 0.5, 0, ArgumentError, "leaves a part without some class"),
        (torch.zeros(4, 2, dtype=torch.int64), 0.5, 0, ShapeError, "labels"),
    ],
)
def test_stratified_split_refuses(labels, fraction, seed, error, message):
    with pytest.raises(error, match=message):
        stratified_split(labels, fraction, seed)
