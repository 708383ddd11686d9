import pytest
import torch
from torch import nn
from torchmetrics import MetricCollection

from tests.metrics.material import (
    FEATURES,
    LABELS,
    MOMENTS,
    D,
    K,
    assert_same,
    batches,
    classifier,
    collection,
    expected_collection,
    fed,
    twice,
)
from tightframe import functional as F
from tightframe.errors import ArgumentError, LabelError, ShapeError
from tightframe.metrics import CDNV, NC1, NC2, NC3, MomentsMetric, NeuralCollapse
from tightframe.moments import ClassMoments

# Every class beside the function that it stands for.
SINGLES = {
    "nc1": (lambda: NC1(K, D), lambda m: F.nc1(m)),
    "nc1.pinv_sum": (lambda: NC1(K, D, variant="pinv_sum"), lambda m: F.nc1(m, "pinv_sum")),
    "nc1.ratio": (lambda: NC1(K, D, variant="ratio"), lambda m: F.nc1(m, "ratio")),
    "nc1.sample": (lambda: NC1(K, D, weighting="sample"), lambda m: F.nc1(m, weighting="sample")),
    "nc2": (lambda: NC2(K, D), F.nc2_gram),
    "nc2.equinorm": (lambda: NC2(K, D, variant="equinorm"), F.nc2_equinorm),
    "nc2.equiangularity": (lambda: NC2(K, D, variant="equiangularity"), F.nc2_equiangularity),
    "nc2.max_angle": (lambda: NC2(K, D, variant="max_angle"), F.nc2_max_angle),
    "nc2.etf_gap": (lambda: NC2(K, D, variant="etf_gap"), F.nc2_etf_gap),
    "nc3": (lambda: NC3(K, D, classifier=classifier()), lambda m: F.nc3_distance(m, classifier().weight)),
    "nc3.gram": (
        lambda: NC3(K, D, classifier=classifier(), variant="gram"),
        lambda m: F.nc3_gram(m, classifier().weight),
    ),
    "nc3.alignment": (
        lambda: NC3(K, D, classifier=classifier(), variant="alignment"),
        lambda m: F.nc3_alignment(m, classifier().weight),
    ),
    "cdnv": (lambda: CDNV(K, D), F.cdnv),
    "cdnv.squared": (lambda: CDNV(K, D, power=2), lambda m: F.cdnv(m, power=2)),
}


@pytest.mark.parametrize("name", SINGLES)
def test_single_metrics_are_their_functions(name):
    make, function = SINGLES[name]
    assert_same(fed(make()).compute(), function(MOMENTS).detach())


@pytest.mark.parametrize("size", [1, 7, 64, 70])
@pytest.mark.parametrize("preset", [None, "papyan2020", "zhu2021"])
def test_all_metrics_are_the_function_of_the_whole_data_for_any_batches(size, preset):
    head = classifier()
    metric = fed(NeuralCollapse(K, D, classifier=head, preset=preset), size)
    assert_same(metric.compute(), F.collapse_metrics(MOMENTS, head.weight, head.bias.detach(), preset=preset))


def test_without_classifier_and_scatter_what_needs_them_is_left_out():
    values = fed(NeuralCollapse(K, D, scatter=False)).compute()
    assert_same(values, F.collapse_metrics(ClassMoments.from_samples(FEATURES, LABELS, K, scatter=False)))
    assert not {"nc1.pinv", "vci", "nc3.distance"} & values.keys()
    assert "cdnv" in values


def test_forward_returns_the_batch_and_accumulates():
    metric = NeuralCollapse(K, D)
    for h, y in batches(35):
        assert_same(metric(h, y), F.collapse_metrics(ClassMoments.from_samples(h, y, K, scatter=True)))
    assert_same(metric.compute(), F.collapse_metrics(MOMENTS), rtol=1e-9)


def test_forward_does_not_keep_more_than_the_state():
    metric = NC1(K, D)
    metric(FEATURES, LABELS)
    metric(FEATURES, LABELS)
    held = metric.packed.untyped_storage().nbytes()
    assert held == 8 * ClassMoments.packed_size(K, D, scatter=True)


def test_reset_forgets_everything_and_the_default_stays_empty():
    metric = NC1(K, D)
    for _ in range(2):
        fed(metric, features=FEATURES + 3, labels=LABELS.flip(0)).compute()
        metric.reset()
        assert not metric.packed.any()
        assert_same(fed(metric).compute(), F.nc1(MOMENTS))
        metric.reset()


def test_metrics_of_a_collection_share_one_state_and_stay_right():
    metrics = collection()
    for n in (1, 3, 4):
        for h, y in batches(16)[n - 1 : n]:
            metrics.update(h, y)
        metrics.compute()
        if n == 3:
            metrics.update(*batches(16)[1])
    seen = [batches(16)[i] for i in (0, 2, 1, 3)]
    features, labels = (torch.cat(part) for part in zip(*seen, strict=True))
    assert_same(metrics.compute(), expected_collection(features, labels))
    assert list(map(len, metrics.compute_groups.values())) == [4]
    states = {metric.packed.data_ptr() for metric in metrics.values(copy_state=False)}
    assert len(states) == 1


def test_forward_of_a_collection():
    metrics = collection()
    for h, y in batches(35):
        assert_same(metrics(h, y), expected_collection(h, y))
    assert_same(metrics.compute(), expected_collection(FEATURES, LABELS), rtol=1e-9)


def test_a_metric_taken_out_of_a_collection_does_not_touch_the_others():
    metrics = collection()
    metrics.update(FEATURES, LABELS)
    metrics["gram"].update(FEATURES + 1, LABELS)
    assert_same(
        metrics.compute(), expected_collection(FEATURES, LABELS) | {"gram": expected_collection(*twice())["gram"]}
    )


def test_the_classifier_is_not_part_of_the_metric():
    metric = NeuralCollapse(K, D, classifier=classifier())
    assert list(metric.parameters()) == []
    assert list(metric.children()) == []


@pytest.mark.parametrize("copied", [lambda m: m, lambda m: m.clone(), lambda m: MetricCollection({"m": m})["m"]])
def test_the_classifier_is_read_when_it_is_asked(copied):
    head = classifier(bias=False)
    metric = fed(copied(NC3(K, D, classifier=head)))
    before = metric.compute()
    with torch.no_grad():
        head.weight.copy_(MOMENTS.centered_means())
    metric.update(FEATURES[:0], LABELS[:0])  # an update makes torchmetrics compute anew
    assert before > 0.1
    assert metric.compute() < 1e-7


def test_ignore_index():
    labels = LABELS.clone()
    labels[::3] = -100
    kept = labels != -100
    metric = fed(NeuralCollapse(K, D, ignore_index=-100), labels=labels)
    assert_same(metric.compute(), F.collapse_metrics(ClassMoments.from_samples(FEATURES[kept], labels[kept], K, True)))
    with pytest.raises(LabelError, match=r"labels must lie in 0\.\.3"):
        fed(NeuralCollapse(K, D), labels=labels)


@pytest.mark.parametrize(
    ("make", "error", "text"),
    [
        (lambda: NC1(K, D, variant="rank"), ArgumentError, "variant"),
        (lambda: NC1(K, D, weighting="none"), ArgumentError, "weighting"),
        (lambda: NC2(K, D, variant="pinv"), ArgumentError, "variant"),
        (lambda: NC3(K, D, classifier=classifier(), variant="pinv"), ArgumentError, "variant"),
        (lambda: NeuralCollapse(K, D, preset="papyan"), ArgumentError, "preset"),
        (lambda: NeuralCollapse(0, D), ArgumentError, "num_classes"),
        (lambda: NeuralCollapse(K, 0), ArgumentError, "dim"),
        (lambda: fed(NC3(K, D, classifier=None)).compute(), ArgumentError, "classifier"),
        (lambda: fed(NC3(K, D, classifier=nn.Linear(D, 3))).compute(), ShapeError, "weight"),
        (lambda: fed(CDNV(K, D, power=0)).compute(), ArgumentError, "power"),
        (lambda: NC1(K, D, colour="red"), ValueError, "colour"),
    ],
)
def test_bad_arguments(make, error, text):
    with pytest.raises(error, match=text):
        make()


def test_an_unfed_metric_gives_nan():
    with pytest.warns(UserWarning, match="before the ``update`` method"):
        assert NC1(K, D).compute().isnan()


def test_plot():
    matplotlib = pytest.importorskip("matplotlib")
    matplotlib.use("Agg")
    from matplotlib import pyplot

    metric = fed(NC1(K, D))
    _, axes = metric.plot()
    assert axes.get_ylim()[0] <= metric.compute().item() <= axes.get_ylim()[1]
    _, axes = metric.plot([metric.compute(), metric.compute() / 2, metric.compute() / 4])
    drawn = axes.get_lines()[0].get_ydata()
    assert drawn.tolist() == [metric.compute().item() / n for n in (1, 2, 4)]
    _, axes = fed(NeuralCollapse(K, D)).plot()
    assert len(axes.get_legend_handles_labels()[1]) == len(fed(NeuralCollapse(K, D)).compute())
    pyplot.close("all")


def test_moments_metric_is_abstract():
    with pytest.raises(TypeError, match="abstract"):
        MomentsMetric(K, D, scatter=False)
