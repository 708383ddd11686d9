"""Batches for the nearest ETF and its tracker, and how to compare what they leave behind."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from tightframe.nn import ClassMeanTracker, NearestETFClassifier

from ..problems import draw

K, d, TAU = 4, 6, 5.0
COUNTS = (3, 1, 2, 4)


def batch(seed, counts=COUNTS, dtype=torch.float64):
    labels = torch.arange(len(counts)).repeat_interleave(torch.tensor(counts))
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))
    features = draw(len(labels), d, seed=seed) + 2 * draw(K, d, seed=100)[labels] + 1
    return features.to(dtype)[order], labels[order]


def classifier(*seeds, dtype=torch.float64, **options):
    """A classifier that has taken in the batches of these seeds."""
    made = NearestETFClassifier(d, K, dtype=dtype, **options)
    for seed in seeds:
        made(*batch(seed, dtype=dtype))
    return made


def state_of(module):
    return {name: value.clone() for name, value in module.state_dict().items()}


def assert_equal_states(one, other):
    assert one.keys() == other.keys()
    for name, value in one.items():
        assert torch.equal(value, other[name]), name
        assert value.dtype == other[name].dtype, name


def values(made):
    return {name: value.item() for name, value in made.diagnostics().items()}


def unit(features):
    return F.normalize(features, dim=-1)


def tracked(*batches, momentum=None):
    """Means of features at length tau, by the tracker alone."""
    tracker = ClassMeanTracker(K, d, momentum=momentum)
    for features, labels in batches:
        means, center = tracker(TAU * unit(features), labels)
    return means, center


def close(found, wanted, atol=1e-13):
    torch.testing.assert_close(found, wanted, rtol=0, atol=atol)


def classifier_of(state, **options):
    made = classifier(**options)
    made.load_state_dict(state)
    return made
