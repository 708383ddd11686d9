import pytest
import torch

from tests.problems import scattered, simplex
from tightframe import functional as F
from tightframe.errors import DtypeError, LabelError, NonFiniteError, ShapeError
from tightframe.metrics import NC4Agreement, NCCAccuracy
from tightframe.moments import ClassMoments

K, D = 4, 6
TRAIN = scattered(simplex(K, D), [30] * K, 0.5)
TEST = scattered(simplex(K, D), [9, 20, 3, 11], 1.0, seed=9)
MOMENTS = TRAIN.moments()
FEATURES, LABELS = TEST.features.float(), TEST.labels
LOGITS = torch.randn(LABELS.numel(), K, generator=torch.Generator().manual_seed(2))
TWO = ClassMoments.from_samples(torch.tensor([[0.0], [4.0]]), torch.tensor([0, 1]), 2)


@pytest.mark.parametrize("size", [1, 10, 43])
def test_batches_do_not_matter(size):
    accuracy, agreement = NCCAccuracy(MOMENTS), NC4Agreement(MOMENTS)
    for h, y, z in zip(FEATURES.split(size), LABELS.split(size), LOGITS.split(size), strict=True):
        accuracy.update(h, y)
        agreement.update(h, z)
    assert accuracy.compute() == F.ncc_accuracy(FEATURES, LABELS, MOMENTS)
    assert agreement.compute() == F.nc4_agreement(FEATURES, LOGITS, MOMENTS)
    assert 0.2 < accuracy.compute() < 1


def test_many_samples_are_counted_exactly():
    accuracy = NCCAccuracy(TWO)
    features = torch.zeros(1_000_003, 1)
    features[:7] = 4
    accuracy.update(features, torch.zeros(1_000_003, dtype=torch.long))
    assert (accuracy.agreeing.item(), accuracy.total.item()) == (999_996, 1_000_003)


@pytest.mark.parametrize(
    ("metric", "arguments", "error", "text"),
    [
        (NCCAccuracy, (FEATURES, LABELS + 1), LabelError, "labels"),
        (NCCAccuracy, (FEATURES, LABELS - 1), LabelError, "labels"),
        (NCCAccuracy, (FEATURES.long(), LABELS), DtypeError, "features"),
        (NCCAccuracy, (FEATURES[:, :3], LABELS), ShapeError, "width d = 6"),
        (NCCAccuracy, (FEATURES * torch.nan, LABELS), NonFiniteError, "finite"),
        (NC4Agreement, (FEATURES, LOGITS[:, :3]), ShapeError, "logits"),
        (NC4Agreement, (FEATURES, LOGITS[1:]), ShapeError, "logits"),
        (NC4Agreement, (FEATURES * torch.nan, LOGITS), NonFiniteError, "finite"),
    ],
)
def test_bad_input_is_refused_and_not_counted(metric, arguments, error, text):
    metric = metric(MOMENTS)
    with pytest.raises(error, match=text):
        metric.update(*arguments)
    assert metric.total == 0


@pytest.mark.parametrize("metric", [NCCAccuracy, NC4Agreement])
def test_an_unfed_metric_gives_nan(metric):
    with pytest.warns(UserWarning, match="before the ``update`` method"):
        assert metric(MOMENTS).compute().isnan()
