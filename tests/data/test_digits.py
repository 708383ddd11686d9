from __future__ import annotations

import pytest
import torch
from sklearn.datasets import load_digits

from tightframe.data import Digits, long_tailed_counts
from tightframe.errors import ArgumentError


def rows(dataset):
    """The samples of a dataset as a set, whatever their order and shape."""
    images, labels = dataset.tensors
    return {(*image.tolist(), int(label)) for image, label in zip(images.flatten(1), labels, strict=True)}


def test_parts_are_disjoint_scaled_and_hold_real_digits():
    data = Digits(validation_fraction=0.25).load()
    bunch = load_digits()
    everything = {
        (*image, label) for image, label in zip((bunch.data / 16).tolist(), bunch.target.tolist(), strict=True)
    }
    parts = [rows(part) for part in (data.train, data.validation, data.test)]
    assert sum(map(len, parts)) == len(set.union(*parts))
    assert set.union(*parts) <= everything
    assert len(data.test) == 360
    assert len(data.validation) == 360
    images, labels = data.train.tensors
    assert images.dtype == torch.float32
    assert labels.dtype == torch.int64
    assert (images.min(), images.max()) == (0, 1)


def test_the_training_part_is_balanced_by_default_and_counted():
    data = Digits().load()
    assert data.class_counts.tolist() == [139] * 10
    assert data.train.tensors[1].bincount().tolist() == [139] * 10
    assert data.validation is None
    assert data.paths is None
    assert data.class_names == tuple("0123456789")


def test_imbalance_cuts_the_training_part_alone_and_nests():
    full, long, longer = (Digits(imbalance=imbalance, validation_fraction=0.1).load() for imbalance in (1.0, 0.1, 0.01))
    assert torch.equal(long.class_counts, long_tailed_counts(10, int(full.class_counts[0]), 0.1))
    assert torch.equal(long.train.tensors[1].bincount(), long.class_counts)
    assert rows(longer.train) < rows(long.train) < rows(full.train)
    assert rows(longer.test) == rows(full.test)
    assert rows(longer.validation) == rows(full.validation)
    test_counts = longer.test.tensors[1].bincount()
    assert (int(test_counts.min()), int(test_counts.max())) == (35, 37)


def test_the_training_part_is_in_shuffled_order():
    labels = Digits().load().train.tensors[1]
    assert len(labels[:30].unique()) > 5


def test_shapes():
    flat, image = (Digits(flatten=flatten).load().train.tensors[0] for flatten in (True, False))
    assert flat.shape == (1390, 64)
    assert image.shape == (1390, 1, 8, 8)
    assert torch.equal(flat, image.flatten(1))


def test_equal_descriptions_give_equal_data_and_the_seed_changes_it():
    first, again, other = (Digits(seed=seed).load() for seed in (0, 0, 1))
    assert torch.equal(first.train.tensors[0], again.train.tensors[0])
    assert rows(first.test) != rows(other.test)


@pytest.mark.parametrize(
    ("arguments", "name"),
    [
        ({"imbalance": 0}, "imbalance"),
        ({"imbalance": 2.0}, "imbalance"),
        ({"validation_fraction": 1.0}, "validation_fraction"),
        ({"validation_fraction": -0.1}, "validation_fraction"),
        ({"test_fraction": 0.0}, "test_fraction"),
        ({"test_fraction": "a"}, "test_fraction"),
        ({"seed": -1}, "seed"),
    ],
)
def test_the_constructor_refuses_values_out_of_range(arguments, name):
    with pytest.raises(ArgumentError, match=name):
        Digits(**arguments)


def test_load_refuses_a_part_too_small_for_every_class():
    with pytest.raises(ArgumentError, match="leaves a part without some class"):
        Digits(test_fraction=0.001).load()
