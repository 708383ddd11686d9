"""What stands near a right measurement: another layer, other weights, other samples, or a traceback."""

import tempfile
from collections import UserDict

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from tests.probing.oracle import Samples, assert_rows, rows
from tests.probing.zoo import BATCH, LABELS, VECTORS, D, K, Net, body
from tightframe.errors import ArgumentError, EmptyDataError, Notice, ShapeError, TightframeError
from tightframe.moments import ClassMoments
from tightframe.probing import find_classifier, measure, watch

DATA = list(zip(VECTORS.split(BATCH), LABELS.split(BATCH), strict=True))


def net(head=None, run=lambda m, x: m.fc(m.body(x)), **more):
    return Net(run, body=body(), fc=head or nn.Linear(D, K), **more).eval()


def assert_right(records, model, weight, bias, **columns):
    model.eval()
    with torch.no_grad():
        samples = Samples(model.body(VECTORS), LABELS, model.fc(model.body(VECTORS)))
    assert_rows(records, rows(samples, weight, bias), rel=1e-6, **columns)


class LoRA(nn.Linear):
    def __init__(self):
        super().__init__(D, K)
        self.a, self.b, self.drop = nn.Linear(D, 2, bias=False), nn.Linear(2, K, bias=False), nn.Dropout(0.5)

    def forward(self, x):
        return super().forward(x) + self.b(self.a(self.drop(x)))


class Centred(nn.Linear):
    def forward(self, x):
        return F.linear(x, self.weight - self.weight.mean(dim=1, keepdim=True), self.bias)


def test_very_large_logits_are_told_apart():
    model = net(run=lambda m, x: (m.fc(m.body(x)), m.aux(m.body(x)))[0], aux=nn.Linear(D, K))
    model.fc.weight.data *= 1e5
    model.aux.weight.data = 2 * model.fc.weight.data
    assert find_classifier(model, VECTORS) == "fc"


@pytest.mark.parametrize("tap", ["input", "pre", "post"])
def test_the_weight_of_an_adapter_in_the_middle_of_a_training(tap):
    model = net(LoRA()).train()
    records = measure(model, {"train": DATA, "test": DATA}, layers=["fc"], tap=tap)
    fc = model.fc
    assert_right(records, model, fc.weight + fc.b.weight @ fc.a.weight, fc.bias, split="test")


def test_the_weight_is_the_one_that_works():
    model = net(Centred(D, K))
    weight = model.fc.weight - model.fc.weight.mean(dim=1, keepdim=True)
    assert_right(measure(model, DATA), model, weight, model.fc.bias)


def test_reading_a_spectral_norm_does_not_change_it():
    model = net(nn.utils.parametrizations.spectral_norm(nn.Linear(D, K))).train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    measure(model, DATA)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_weights_that_are_swapped_in_are_refused():
    model = net()
    other = {name: 2 * value for name, value in model.state_dict().items()}
    with pytest.raises(ArgumentError, match="other weights than it has now"):
        measure(model, DATA, forward=lambda m, x: torch.func.functional_call(m, other, (x,)))


def test_exits_that_take_turns_are_refused():
    def run(m, x):
        early, late = m.fc(m.body(x)), m.late(m.body(x))
        return early if torch.equal(x, DATA[0][0]) else late

    with pytest.raises(ArgumentError, match="gave the model's output before and does not now"):
        measure(net(run=run, late=nn.Linear(D, K)), DATA)


def test_an_input_changed_later_where_changes_are_not_counted():
    @torch.inference_mode()
    def run(m, x):
        h = m.body(x)
        logits = m.fc(h)
        h.zero_()
        return logits

    model = net(run=run)
    assert_right(measure(model, DATA), model, model.fc.weight, model.fc.bias)


def test_loaders_may_reuse_their_memory():
    class Loader:
        def __iter__(self):
            inputs, labels = np.empty((23, 5)), np.empty(23, dtype=int)
            for start in (0, 23):
                inputs[:], labels[:] = VECTORS[start : start + 23], LABELS[start : start + 23]
                yield inputs, labels

    model = nn.Linear(5, K).double()
    wanted = rows(Samples(VECTORS, LABELS, model(VECTORS).detach()), model.weight, model.bias)
    assert_rows(measure(model, Loader()), wanted)


@pytest.mark.parametrize("inference", [False, True])
def test_a_loop_that_measures_in_between(inference):
    model = net()
    with watch(model, layers=["body.0", "fc"], tap="post") as seen:
        for x, y in DATA:
            with torch.inference_mode(inference):
                model(x)
                seen.add(y)
                measure(model, DATA)
    assert_right(seen.records, model, model.fc.weight, model.fc.bias)


def test_a_full_disk_costs_one_more_pass(monkeypatch):
    class Full(tempfile.SpooledTemporaryFile):
        def flush(self):
            raise OSError("no space left")

    model = net()
    monkeypatch.setattr(tempfile, "TemporaryFile", Full)
    with pytest.warns(UserWarning, match="no space left"):
        assert_right(measure(model, DATA, hold_bytes=0), model, model.fc.weight, model.fc.bias)


def test_a_second_pass_over_other_samples_is_said():
    class Loader:
        shift = 0

        def __iter__(self):
            self.shift += 1
            return iter([(x + self.shift, y) for x, y in DATA])

    with pytest.warns(UserWarning, match="other samples at its second pass"):
        measure(net(), Loader(), hold_bytes=0, spill_bytes=0)


class Encoding(UserDict):
    def to(self, device):
        return self


@pytest.mark.parametrize(
    "data",
    [
        [(VECTORS[:0], LABELS[:0]), *DATA],
        [Encoding(x=x, labels=y) for x, y in DATA],
        [{"x": x, "scale": torch.ones(1), "labels": y} for x, y in DATA],
    ],
)
def test_batches_of_other_forms(data):
    class Scaled(Net):
        def forward(self, x, scale=1):
            return self.fc(self.body(x * scale))

    model = Scaled(None, body=body(), fc=nn.Linear(D, K), module=nn.Identity())
    assert_right(measure(model, data), model, model.fc.weight, model.fc.bias)


@pytest.mark.parametrize(
    ("data", "options", "error", "text"),
    [
        ([{"x": x, "index": y, "y": y} for x, y in DATA], {}, ArgumentError, "leave others out"),
        ([(x, 0 * y - 1) for x, y in DATA], {"ignore_index": -1}, EmptyDataError, "not ignored"),
        (None, {}, ArgumentError, "got NoneType"),
        (DATA, {"max_batches": -1}, ArgumentError, "max_batches"),
        (DATA, {"reference": ClassMoments(K + 1, D)}, ShapeError, "reference moments .* got K = 5"),
        (DATA, {"reference": {"features": ClassMoments(K, D)}}, ArgumentError, r"keys \(layer, tap\)"),
        (DATA, {"classifier": ([[1.0] * D],), "features": "body"}, ShapeError, "classifier must be"),
    ],
)
def test_errors_say_what_to_change(data, options, error, text):
    with pytest.raises(error, match=text):
        measure(net(), data, **options)


def test_one_logit_is_no_pair_of_classes():
    with pytest.raises(ShapeError, match="measure it as two classes"):
        measure(net(nn.Linear(D, 1)), [(x, y % 2) for x, y in DATA])
    with pytest.raises(TightframeError):
        measure(VECTORS[:0], LABELS[:0])


def test_several_outputs_of_different_widths_are_said_to_be_a_choice():
    class Both(nn.Module):
        def __init__(self):
            super().__init__()
            self.body, self.head = nn.Linear(4, 5), nn.Linear(5, 3)

        def forward(self, inputs):
            h = self.body(inputs)
            return h, self.head(h)

    model, data = Both(), [(torch.randn(12, 4), torch.arange(12) % 3)]
    with pytest.warns(Notice, match=r"outputs of widths \[5, 3\]"):
        measure(model, data)
    assert measure(model, data, logits=1) == measure(nn.Sequential(model.body, model.head), data)


def test_no_split_and_a_traced_model_are_refused():
    with pytest.raises(EmptyDataError, match="at least one split"):
        measure(nn.Linear(4, 3), {})
    with pytest.raises(ArgumentError, match="scripted or traced"):
        measure(torch.jit.trace(nn.Linear(4, 3), torch.ones(2, 4)), [(torch.ones(2, 4), [0, 1])])


def test_what_was_asked_for_and_cannot_be_computed_is_said():
    data = [(torch.randn(12, 4), torch.arange(12) % 3)]
    with pytest.warns(Notice, match="nc1.pinv is left out, as it needs scatter"):
        assert measure(nn.Linear(4, 3), data, preset=["nc1.pinv", "cdnv"], scatter=False).unique("metric") == ["cdnv"]
    with pytest.raises(ArgumentError, match=r"options of cdnv must be among \['power'\], got \['powr'\]"):
        measure(nn.Linear(4, 3), data, preset=[("cdnv", {"powr": 2})])
    with pytest.raises(ArgumentError, match="pass DataLoader"):
        measure(nn.Linear(4, 3), torch.utils.data.TensorDataset(*data[0]))


def test_features_beside_a_linear_layer():
    head, h, labels = nn.Linear(4, 3), torch.randn(12, 4), torch.arange(12) % 3
    expected = measure(h, labels, classifier=(head.weight, head.bias))
    assert measure(h, labels, classifier=head) == expected
    with watch(head, preset=["nc3.distance"]) as seen:
        head(h)
        seen.add(labels)
    assert seen.records.value("nc3.distance") == expected.value("nc3.distance")
