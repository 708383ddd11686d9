import warnings

import pytest
import torch
from torch import nn

from tests.probing.material import INPUTS, LABELS, Counting, K, batches, inputs_of, network
from tightframe import functional as F
from tightframe.errors import (
    ArgumentError,
    DtypeError,
    EmptyDataError,
    LabelError,
    NonFiniteError,
    Notice,
    ShapeError,
)
from tightframe.moments import ClassMoments
from tightframe.nn import LinearClassifier, NormalizedLinear, SimplexETFClassifier
from tightframe.probing import measure


@pytest.mark.parametrize("size", [1, 10, 47])
def test_measure_is_the_functions_of_features_computed_by_hand(size):
    model = network()
    head = model[6]
    records = measure(model, batches(size))
    features = inputs_of(model, 6)
    moments = ClassMoments.from_samples(features, LABELS, K, scatter=True)
    logits = head(features).detach()
    expected = F.collapse_metrics(moments, head.weight, head.bias.detach()) | {
        "ncc.accuracy": F.ncc_accuracy(features, LABELS, moments),
        "nc4.agreement": F.nc4_agreement(features, logits, moments),
        "cosine_margin": F.cosine_margins(features, LABELS, moments, head.weight).mean(),
        "accuracy": (logits.argmax(1) == LABELS).double().mean(),
        "cross_entropy": nn.functional.cross_entropy(logits.double(), LABELS),
    }
    assert set(records.unique("metric")) == expected.keys()
    assert len(records) == len(expected)
    assert {(r.split, r.layer, r.run, r.epoch) for r in records} == {("train", "features", "", 0)}
    for name, value in expected.items():
        # BatchNorm in float32 rounds differently for another batch size.
        assert records.value(name) == pytest.approx(value.item(), rel=1e-5, nan_ok=True), name


def test_several_layers_in_one_pass():
    model = Counting(network())
    records = measure(model, batches(10), layers=["model.4", "model.2", "model.6"], reference="own", split="test")
    assert model.calls == 5
    assert records.unique("layer") == ["model.2", "model.4", "features"]
    assert {(r.split, r.tap) for r in records} == {("test", "input")}
    for layer, place in ((2, "model.2"), (4, "model.4"), (6, "features")):
        moments = ClassMoments.from_samples(inputs_of(model.model, layer), LABELS, K, scatter=True)
        for name in ("nc1.pinv", "nc1.ratio", "cdnv", "nc2.gram.means"):
            expected = F.collapse_metrics(moments)[name].item()
            assert records.value(name, layer=place) == pytest.approx(expected, rel=1e-5)
    of_classifier_alone = ("nc3.distance", "nc4.agreement", "ncc.accuracy", "accuracy")
    assert {r.layer for r in records if r.metric in of_classifier_alone} == {"features"}


def test_nearest_class_centres_of_other_layers_than_the_classifier_s():
    labels = LABELS.roll(5)
    records = measure(network(), batches(10, labels=labels), layers=["2", "4", "6"])
    assert records.where(metric="ncc.error").unique("layer") == ["2", "4"]
    for layer in (2, 4):
        features = inputs_of(network(), layer)
        moments = ClassMoments.from_samples(features, labels, K)
        expected = 1 - F.ncc_accuracy(features, labels, moments).item()
        assert records.value("ncc.error", layer=str(layer)) == pytest.approx(expected, rel=1e-12)
        assert 0 < expected < 1
    assert "ncc.error" not in measure(network(), batches(), layers=["2"], preset="zhu2021").unique("metric")


@pytest.mark.parametrize(
    ("memory", "passes", "said"),
    [
        ({}, 1, None),
        ({"hold_bytes": 500}, 1, "temporary file"),
        ({"hold_bytes": 500, "spill_bytes": 600}, 2, "one more pass"),
        ({"hold_bytes": 0, "spill_bytes": 0}, 2, "one more pass"),
    ],
)
def test_a_second_look_never_disappears(memory, passes, said):
    model, calls = network(), []
    model[0].register_forward_hook(lambda *args: calls.append(1))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        records = measure(model, batches(), layers=["4"], **memory)
    assert len(calls) == 5 * passes
    assert records == measure(network(), batches(), layers=["4"])
    texts = [str(warning.message) for warning in caught if warning.category is Notice]
    assert (said is None and not texts) or any(said in text for text in texts)


def test_an_exact_answer_at_collapse():
    model = LinearClassifier(K, K, bias=False)
    with torch.no_grad():
        model.weight.copy_(torch.eye(K) - 1 / K)
    data = [(torch.eye(K), torch.arange(K)), (torch.eye(K), torch.arange(K))]
    records = measure(model, data)
    zero = ("nc1.pinv", "nc1.ratio", "cdnv", "nc2.equinorm.means", "nc2.gram.classifier", "nc3.distance")
    assert all(records.value(name) == pytest.approx(0, abs=1e-7) for name in zero)
    assert records.value("ncc.accuracy") == records.value("nc4.agreement") == 1
    assert records.value("cosine_margin") == pytest.approx(K / (K - 1))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_other_precisions(dtype):
    model = network(dtype)
    records = measure(model, batches(inputs=INPUTS.to(dtype)))
    features = torch.cat([inputs_of(model, 6, h) for h, _ in batches(inputs=INPUTS.to(dtype))])
    assert features.dtype == dtype
    moments = ClassMoments.from_samples(features, LABELS, K, scatter=True)
    assert records.value("nc1.pinv") == pytest.approx(F.nc1(moments).item(), rel=1e-9)
    assert len(records) == len(measure(network(), batches()))


@pytest.mark.parametrize(
    ("data", "options", "error", "text"),
    [
        ([], {}, EmptyDataError, "at least one"),
        (batches(labels=LABELS + 1), {}, LabelError, r"0\.\.2"),
        (batches(labels=LABELS - 1), {}, LabelError, "got -1"),
        (batches(labels=LABELS.float()), {}, DtypeError, "integer"),
        (batches(labels=nn.functional.one_hot(LABELS)), {}, ShapeError, "labels"),
        (batches(inputs=INPUTS * torch.nan), {}, NonFiniteError, "finite"),
        (batches(), {"num_classes": 4}, ShapeError, "K = 4"),
        (batches(), {"layers": ["9"]}, ArgumentError, "got '9'"),
        (batches(), {"preset": "papyan"}, ArgumentError, "preset"),
    ],
)
def test_bad_input(data, options, error, text):
    with pytest.raises(error, match=text):
        measure(network(), data, **options)


def test_a_model_that_does_not_return_logits():
    model = nn.Sequential(nn.Linear(4, K), nn.Flatten(0))
    with pytest.raises(ShapeError, match="logits="):
        measure(model, batches())
    found = measure(model, batches(), logits=lambda output: output.view(-1, K))
    assert found == measure(model[0], batches())
    with pytest.warns(Notice, match="accuracy and NC4 are left out"):
        records = measure(model, batches(), classifier="0", num_classes=K)
    assert set(found.unique("metric")) - set(records.unique("metric")) == {"nc4.agreement", "accuracy", "cross_entropy"}


def test_an_ignored_label_is_as_if_never_there():
    labels = LABELS.clone()
    labels[::4] = -100
    wanted = labels >= 0
    records = measure(network(), batches(labels=labels), layers=["4"], ignore_index=-100)
    expected = measure(network(), batches(inputs=INPUTS[wanted], labels=labels[wanted]), layers=["4"])
    assert {r.metric for r in records} == {r.metric for r in expected}
    assert {"nc4.agreement", "ncc.error"} < set(records.unique("metric"))
    for r in records:
        value = expected.value(r.metric, layer=r.layer)
        assert r.value == pytest.approx(value, rel=1e-9, abs=1e-12, nan_ok=True), r.metric


# --- collapse onto class vectors that nobody trains ---


@pytest.mark.parametrize("learn_scale", [False, True])
def test_means_are_measured_against_a_frame_that_stands_still(learn_scale):
    classifier = SimplexETFClassifier(4, K, learn_scale=learn_scale)
    records = measure(nn.Sequential(nn.Identity(), classifier), batches())
    prepared = classifier.prepare(INPUTS).detach()
    expected = F.frame_metrics(ClassMoments.from_samples(prepared, LABELS, K, scatter=True), classifier.weight)
    assert len(expected) == 10
    for metric, value in expected.items():
        torch.testing.assert_close(records.value(metric), value.item(), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("classifier", [LinearClassifier(4, K), NormalizedLinear(4, K), nn.Linear(4, K)])
def test_class_vectors_that_are_trained_are_no_frame(classifier):
    with torch.no_grad():  # where a weight made on demand tells nothing of being trained
        records = measure(nn.Sequential(nn.Identity(), classifier), batches())
    assert "nc3.distance" in records.unique("metric")
    assert not [metric for metric in records.unique("metric") if metric.startswith("frame.")]


def test_an_ignored_label_that_the_type_of_the_labels_cannot_hold_ignores_nothing():
    inputs, labels = torch.randn(4, 8, generator=torch.Generator().manual_seed(0)), torch.tensor([0, 156, 199, 156])
    model = nn.Linear(8, 200)
    wide, narrow = (measure(model, [(inputs, y)], ignore_index=-100) for y in (labels, labels.byte()))
    wanted = [pytest.approx(r.value, nan_ok=True) for r in wide]
    assert [r.value for r in narrow] == wanted
