"""Features, labels and a collection that the tests of the metrics share."""

import torch
from torch import nn
from torchmetrics import MetricCollection

from tests.problems import scattered, simplex
from tightframe import functional as F
from tightframe.metrics import CDNV, NC1, NC2, MomentsMetric
from tightframe.moments import ClassMoments

K, D = 4, 6
PROBLEM = scattered(3 * simplex(K, D), [30, 20, 11, 9], 0.4, offset=50.0)
FEATURES, LABELS = PROBLEM.features.float(), PROBLEM.labels
MOMENTS = ClassMoments.from_samples(FEATURES, LABELS, K, scatter=True)


def classifier(bias=True):
    torch.manual_seed(1)
    return nn.Linear(D, K, bias=bias)


def batches(size, features=FEATURES, labels=LABELS):
    return list(zip(features.split(size), labels.split(size), strict=True))


def fed(metric, size=16, features=FEATURES, labels=LABELS):
    for h, y in batches(size, features, labels):
        metric.update(h, y)
    return metric


def assert_same(actual, expected, rtol=1e-10):
    if isinstance(expected, dict):
        assert actual.keys() == expected.keys()
        for name in expected:
            torch.testing.assert_close(actual[name], expected[name], rtol=rtol, atol=1e-13, equal_nan=True, msg=name)
    else:
        torch.testing.assert_close(actual, expected, rtol=rtol, atol=1e-13)


class Count(MomentsMetric):
    """How many samples there are: what a sample that is counted twice would show in."""

    def compute(self):
        return self.moments.count.sum()


def collection():
    metrics = {"ratio": NC1(K, D, variant="ratio"), "count": Count(K, D, scatter=False)}
    return MetricCollection(metrics | {"gram": NC2(K, D), "cdnv": CDNV(K, D)})


def twice():
    """All samples, and each once more one unit farther along every axis."""
    return torch.cat([FEATURES, FEATURES + 1]), LABELS.repeat(2)


def expected_collection(features, labels):
    moments = ClassMoments.from_samples(features, labels, K)
    values = {"ratio": F.nc1(moments, "ratio"), "gram": F.nc2_gram(moments), "cdnv": F.cdnv(moments)}
    return values | {"count": moments.count.sum()}
