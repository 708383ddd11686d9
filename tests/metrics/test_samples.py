import pytest
import torch
from torchmetrics import MetricCollection

from tests.problems import scattered, simplex
from tightframe import functional as F
from tightframe.errors import DtypeError, EmptyDataError, LabelError, NonFiniteError, ShapeError
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


def test_exact_values_and_their_type():
    accuracy, agreement = NCCAccuracy(TWO), NC4Agreement(TWO)
    features = torch.tensor([[1.0], [1.5], [3.0], [9.0]])
    accuracy.update(features, torch.tensor([0, 1, 1, 1]))
    agreement.update(features, torch.tensor([[2.0, 1.0]]).repeat(4, 1))
    assert accuracy.compute().tolist() == 0.75
    assert agreement.compute().tolist() == 0.5
    assert accuracy.compute().dtype == torch.float64
    assert accuracy.compute().shape == ()


def test_many_samples_are_counted_exactly():
    accuracy = NCCAccuracy(TWO)
    features = torch.zeros(1_000_003, 1)
    features[:7] = 4
    accuracy.update(features, torch.zeros(1_000_003, dtype=torch.long))
    assert (accuracy.agreeing.item(), accuracy.total.item()) == (999_996, 1_000_003)


def test_two_metrics_of_other_means_stay_apart_in_a_collection():
    shifted = ClassMoments.from_samples(torch.tensor([[2.0], [6.0]]), torch.tensor([0, 1]), 2)
    metrics = MetricCollection({"near": NCCAccuracy(TWO), "far": NCCAccuracy(shifted)}, compute_groups=False)
    metrics.update(torch.tensor([[3.0], [7.0]]), torch.tensor([1, 1]))
    assert metrics.compute() == {"near": 1.0, "far": 0.5}


def test_accuracy_and_agreement_are_not_put_into_one_group():
    metrics = MetricCollection({"accuracy": NCCAccuracy(TWO), "agreement": NC4Agreement(TWO)})
    batch = {"features": torch.tensor([[0.0], [4.0]]), "labels": torch.tensor([0, 1])}
    metrics.update(**batch, logits=torch.eye(2))
    metrics.update(**batch, logits=torch.eye(2).flip(0))
    assert metrics.compute() == {"accuracy": 1.0, "agreement": 0.5}


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


def test_means_of_nothing_are_refused():
    with pytest.raises(EmptyDataError, match="no sample"):
        NCCAccuracy(ClassMoments(K, D)).update(FEATURES, LABELS)


@pytest.mark.parametrize("metric", [NCCAccuracy, NC4Agreement])
def test_an_unfed_metric_gives_nan(metric):
    with pytest.warns(UserWarning, match="before the ``update`` method"):
        assert metric(MOMENTS).compute().isnan()


def test_plot():
    matplotlib = pytest.importorskip("matplotlib")
    matplotlib.use("Agg")
    from matplotlib import pyplot

    metric = NCCAccuracy(TWO)
    metric.update(torch.tensor([[0.0], [4.0]]), torch.tensor([0, 0]))
    _, axes = metric.plot()
    assert axes.get_lines()[0].get_ydata().tolist() == [0.5]
    pyplot.close("all")
