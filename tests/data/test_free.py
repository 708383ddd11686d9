import pytest
import torch

from tightframe.data import FreeSamples
from tightframe.errors import ArgumentError
from tightframe.training import make_loader


def test_samples_are_their_own_numbers_and_balanced():
    data = FreeSamples(3, 2).load()
    indices, labels = data.train.tensors
    assert indices.tolist() == [0, 1, 2, 3, 4, 5]
    assert labels.tolist() == [0, 0, 1, 1, 2, 2]
    assert indices.dtype == labels.dtype == torch.int64
    assert data.train[4][0].shape == ()
    assert data.num_classes == 3
    assert data.class_names == ("0", "1", "2")
    assert data.class_counts.tolist() == [2, 2, 2]


def test_the_test_part_is_the_training_part():
    data = FreeSamples(3, 2).load()
    assert data.test is data.train
    assert data.validation is None


def test_a_full_batch_holds_every_sample_once():
    data = FreeSamples(4, 3).load()
    ((indices, labels),) = make_loader(data.train, 12, seed=0)
    assert sorted(indices.tolist()) == list(range(12))
    assert torch.equal(labels, indices // 3)


@pytest.mark.parametrize("sizes", [(0, 2), (3, 0), (2.0, 2), (True, 2)])
def test_sizes_must_be_positive_integers(sizes):
    with pytest.raises(ArgumentError, match="num_classes" if sizes[1] else "samples_per_class"):
        FreeSamples(*sizes)
