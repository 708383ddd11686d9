import math
import weakref

import numpy as np
import pytest
import torch
from torch import nn

from tests.probing.material import GPT, INPUTS, LABELS, REDUCE, Counting, Encoder, K, batches, cnn, hooks_of, mlp
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
from tightframe.probing import effective_depth, probe_layers
from tightframe.probing.held import Held

CASES = [
    pytest.param(make, tap, pooling, id=f"{make.__name__}-{tap}-{pooling}")
    for make, poolings in {
        mlp: ["flatten"],
        cnn: ["flatten", "mean pixels"],
        Encoder: ["mean tokens", "cls"],
        GPT: ["mean tokens", "cls", "flatten"],
    }.items()
    for pooling in poolings
    for tap in ("pre", "post")
]


def distances(h, means):
    return np.linalg.norm(h[:, None, :] - means[None, :, :], axis=2)


def by_hand(features, logits, train_features=None, labels=LABELS):
    """NCC error and mismatch, CDNV and trace ratio, sample by sample and pair by pair."""
    h, y = features.detach().double().numpy(), labels.numpy()
    reference = h if train_features is None else train_features.detach().double().numpy()
    nearest = distances(h, np.stack([reference[LABELS.numpy() == k].mean(0) for k in range(K)])).argmin(1)
    own = np.stack([h[y == k].mean(0) for k in range(K)])
    variances = [np.mean([np.sum((row - own[k]) ** 2) for row in h[y == k]]) for k in range(K)]
    pairs = [(i, j) for i in range(K) for j in range(K) if i != j]
    cdnv = np.mean([(variances[i] + variances[j]) / (2 * np.sum((own[i] - own[j]) ** 2)) for i, j in pairs])
    within = sum(np.sum((h[n] - own[y[n]]) ** 2) for n in range(len(y))) / len(y)
    between = np.mean([np.sum((mean - own.mean(0)) ** 2) for mean in own])
    decisions = logits.detach().numpy().argmax(1)
    return np.mean(nearest != y), np.mean(nearest != decisions), cdnv, within / between


# --- against brute force ---


@pytest.mark.parametrize(("make", "tap", "pooling"), CASES)
def test_every_number_is_that_of_brute_force(make, tap, pooling):
    model = make()
    known = model.known(INPUTS, tap, REDUCE[pooling])
    expected = np.array([by_hand(h, model(INPUTS)) for h in known.values()]).T
    for memory in ({"hold_bytes": 0, "spill_bytes": 0}, {"hold_bytes": 1500}, {}):
        curves = probe_layers(model, batches(10), tap=tap, pooling=pooling.split()[0], **memory)
        assert curves.layers == tuple(known)
        assert curves.dims == tuple(h.shape[1] for h in known.values())
        found = np.array([curves.ncc_error, curves.ncc_mismatch, curves.cdnv, curves.nc1])
        np.testing.assert_array_equal(found[:2], expected[:2])
        np.testing.assert_allclose(found[2:], expected[2:], rtol=2e-5)
        assert len(set(curves.ncc_error)) > 1


@pytest.mark.parametrize(("make", "tap", "pooling"), CASES)
def test_other_data_are_compared_with_the_means_of_training(make, tap, pooling):
    model, inputs, labels = make(), -INPUTS.roll(1, 0), LABELS.roll(3)
    settings = {"tap": tap, "pooling": pooling.split()[0]}
    train = probe_layers(model, batches(), **settings)
    counted = Counting(model)
    moments = {f"model.{name}": m for name, m in train.moments.items()}
    curves = probe_layers(counted, batches(10, inputs, labels), moments=moments, split="test", **settings)
    assert counted.calls == 5  # one pass
    known, reference = (model.known(x, tap, REDUCE[pooling]) for x in (inputs, INPUTS))
    assert curves.layers == tuple(f"model.{name}" for name in known)
    for i, (name, h) in enumerate(known.items()):
        error, mismatch, cdnv, nc1 = by_hand(h, model(inputs), reference[name], labels)
        assert (curves.ncc_error[i], curves.ncc_mismatch[i]) == (error, mismatch)
        assert (curves.cdnv[i], curves.nc1[i]) == pytest.approx((cdnv, nc1), rel=2e-5)
    assert curves.ncc_error != train.ncc_error
    assert curves.records.unique("split") == ["test"]


def test_a_mask_over_tokens():
    model = Encoder(padded=True)

    def reduce(h):
        keep = model.mask(INPUTS).unsqueeze(2)
        return (h * keep).sum(dim=1) / keep.sum(dim=1)

    options = {"pooling": "mask", "mask_of": lambda batch: model.mask(batch[0])}
    for hold_bytes in (0, 2**20):
        curves = probe_layers(model, batches(10), hold_bytes=hold_bytes, spill_bytes=0, **options)
        for i, h in enumerate(model.known(INPUTS, "post", reduce).values()):
            expected = by_hand(h, model(INPUTS))
            assert (curves.ncc_error[i], curves.ncc_mismatch[i]) == expected[:2]
            assert (curves.cdnv[i], curves.nc1[i]) == pytest.approx(expected[2:], rel=2e-5)


def test_with_scatter_nc1_is_that_of_the_pseudo_inverse():
    model = mlp()
    curves = probe_layers(model, batches(), scatter=True)
    for name, value, h in zip(curves.layers, curves.nc1, model.known(INPUTS, "post").values(), strict=True):
        moments = ClassMoments.from_samples(h.detach(), LABELS, K, scatter=True)
        assert value == pytest.approx(F.nc1(moments).item(), rel=1e-5)
        torch.testing.assert_close(curves.moments[name].scatter, moments.scatter, rtol=1e-4, atol=1e-5)


def test_error_and_mismatch_of_a_network_that_is_wrong():
    model = nn.Sequential(nn.Linear(K, K, bias=False), nn.Linear(K, K, bias=False))
    with torch.no_grad():
        model[0].weight.copy_(torch.eye(K))
        model[1].weight.copy_(torch.eye(K).roll(1, 0))  # decides for the class after the right one
    data = [(torch.eye(K), torch.arange(K))]
    curves = probe_layers(model, data)
    assert curves.ncc_error == (0, 0)
    assert curves.ncc_mismatch == (1, 1)
    assert curves.cdnv == (0, 0)
    assert effective_depth(curves.ncc_error) == 1


# --- passes ---


@pytest.mark.parametrize(
    ("options", "passes"),
    [
        ({}, 1),
        ({"hold_bytes": 0, "spill_bytes": 0}, 2),
        ({"ncc": False}, 1),
        ({"ncc": False, "hold_bytes": 0, "spill_bytes": 0}, 1),
    ],
)
def test_number_of_passes(options, passes):
    model = Counting(mlp())
    curves = probe_layers(model, batches(10), **options)
    assert model.calls == 5 * passes
    reference = probe_layers(mlp(), batches(10))
    assert (curves.cdnv, curves.nc1) == (reference.cdnv, reference.nc1)
    if options.get("ncc", True):
        assert (curves.ncc_error, curves.ncc_mismatch) == (reference.ncc_error, reference.ncc_mismatch)
    else:
        assert all(map(math.isnan, curves.ncc_error + curves.ncc_mismatch))
        assert curves.records.unique("metric") == ["cdnv", "nc1.ratio"]
        assert effective_depth(curves.ncc_error) is None


def test_bytes_of_the_features_decide_whether_they_are_held():
    needed = LABELS.numel() * (4 * (8 + 5 + K) + 8 + 8)  # features, label and decision
    for limit, passes in ((needed, 1), (needed - 1, 2)):
        model = Counting(mlp())
        probe_layers(model, batches(10), hold_bytes=limit, spill_bytes=0)
        assert model.calls == 5 * passes


def test_what_is_held_keeps_nothing_else_in_memory():
    held = Held(10**6, 0)
    tokens = torch.randn(5, 7, 3)
    for h in (tokens[:, 0], tokens[0], tokens.flatten(1)):
        held.add({"h": h, "labels": torch.arange(90)[: len(h)]})
    kept = [tensor for batch in held for tensor in batch.values()]
    assert len(kept) == 6
    assert all(tensor.untyped_storage().nbytes() == tensor.nbytes for tensor in kept)
    assert torch.equal(kept[0], tokens[:, 0])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int64])
def test_what_is_spilled_comes_back_as_it_was(dtype):
    held = Held(10, 10**6)
    batches = [{"h": torch.arange(n).reshape(n, 1).to(dtype), "y": torch.arange(n)} for n in (3, 5, 1, 8)]
    with pytest.warns(Notice, match="temporary file"):
        held.add(batches[0])
    for batch in batches[1:]:
        held.add(batch)
    for batch, back in zip(batches, held, strict=True):
        assert back.keys() == batch.keys()
        assert all(
            torch.equal(back[name], tensor) and back[name].dtype == tensor.dtype for name, tensor in batch.items()
        )


def test_no_batch_outlives_the_next_when_nothing_is_held():
    class Watched(nn.Module):
        def __init__(self):
            super().__init__()
            self.model, self.seen, self.alive = mlp(), [], []

        def forward(self, x):
            self.alive.append(sum(ref() is not None for ref in self.seen))
            out = self.model(x)
            self.seen.append(weakref.ref(out))
            return out

    model = Watched()
    probe_layers(model, batches(2), hold_bytes=0, spill_bytes=0)
    assert max(model.alive) <= 1
    assert len(model.alive) == 48


def test_an_iterator_serves_where_one_pass_does():
    expected = probe_layers(mlp(), batches(10))
    assert probe_layers(mlp(), iter(batches(10))).ncc_error == expected.ncc_error
    assert probe_layers(mlp(), (b for b in batches(10)), ncc=False, hold_bytes=0, spill_bytes=0).cdnv == expected.cdnv
    test = probe_layers(mlp(), iter(batches(10)), moments=expected.moments, hold_bytes=0, spill_bytes=0)
    assert test.ncc_error == expected.ncc_error


@pytest.mark.parametrize("hold_bytes", [0, 1500])
def test_an_iterator_is_refused_where_a_second_pass_is_needed(hold_bytes):
    model = Counting(mlp())
    with pytest.raises(ArgumentError, match=r"give its batches twice.*generator"):
        probe_layers(model, (b for b in batches(10)), hold_bytes=hold_bytes, spill_bytes=0)


def test_a_loader_that_gives_less_the_second_time():
    class Once:
        def __init__(self):
            self.left = iter(batches(10))

        def __iter__(self):
            yield from self.left

    with pytest.raises(ArgumentError, match="got 47 and then 0"):
        probe_layers(mlp(), Once(), hold_bytes=0, spill_bytes=0)


# --- what is chosen ---


def test_names_and_patterns_choose_layers():
    model = GPT()
    wanted = ["head", "blocks.*.mlp.2"]
    curves = probe_layers(model, batches(), layers=wanted, pooling="mean")
    assert curves.layers == ("blocks.0.mlp.2", "blocks.1.mlp.2", "head")
    whole = probe_layers(model, batches(), layers=["blocks.*"], tap="pre", pooling="mean")
    assert whole.layers == ("blocks.0", "blocks.1")
    assert whole.dims == (6, 6)


def test_records():
    curves = probe_layers(mlp(), batches(), scatter=True, split="validation")
    columns = zip(curves.layers, curves.ncc_error, curves.ncc_mismatch, curves.cdnv, curves.nc1, strict=True)
    rows = [(r.split, r.layer, r.metric, r.value) for r in curves.records]
    assert rows == [
        ("validation", layer, metric, value)
        for layer, *values in columns
        for metric, value in zip(("ncc.error", "ncc.mismatch", "cdnv", "nc1.pinv"), values, strict=True)
    ]


def test_curves_show_themselves():
    curves = probe_layers(mlp(), batches())
    assert repr(curves) == "LayerCurves(3 layers, split='train', tap='post')"
    assert f"<tr><td>5</td><td>{K}</td><td>{curves.ncc_error[2]:.4g}</td>" in curves._repr_html_()


def test_a_model_that_returns_no_logits_has_no_mismatch():
    body = mlp()[:5]
    curves = probe_layers(body, batches(), num_classes=K)
    assert all(map(math.isnan, curves.ncc_mismatch))
    assert curves.ncc_error[0] == probe_layers(mlp(), batches(), layers=["0", "3"]).ncc_error[0]
    assert curves.records.unique("metric") == ["ncc.error", "cdnv", "nc1.ratio"]


def test_inputs_of_several_parts_and_outputs_with_logits():
    class Output:
        def __init__(self, logits):
            self.logits = logits

    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = mlp()

        def forward(self, left, right):
            return Output(self.net(torch.cat([left, right], dim=1)))

    data = [({"left": x[:, :1], "right": x[:, 1:]}, y) for x, y in batches()]
    curves = probe_layers(Model(), data, forward=lambda model, inputs: model(**inputs))
    expected = probe_layers(mlp(), batches())
    assert curves.ncc_mismatch == expected.ncc_mismatch
    assert curves.layers == ("net.0", "net.3", "net.5")


def test_absent_classes():
    labels = LABELS.clamp(max=1)
    curves = probe_layers(mlp(), batches(labels=labels))
    h = mlp().known(INPUTS, "post")["0"].detach()
    moments = ClassMoments.from_samples(h, labels, 2)
    assert curves.ncc_error[0] == pytest.approx(1 - F.ncc_accuracy(h, labels, moments).item(), rel=1e-12)
    assert curves.cdnv[0] == pytest.approx(F.cdnv(moments).item(), rel=1e-5)


def test_one_class_alone_is_undefined_and_recorded_so():
    curves = probe_layers(mlp(), batches(labels=LABELS * 0))
    assert curves.ncc_error == (0, 0, 0)
    assert all(map(math.isnan, curves.cdnv + curves.nc1))
    assert curves.records.unique("metric") == ["ncc.error", "ncc.mismatch", "cdnv", "nc1.ratio"]


# --- effects ---


@pytest.mark.parametrize("hold_bytes", [0, 2**20])
def test_modes_weights_and_switches_are_as_before(hold_bytes):
    model = mlp().train()
    model[1].eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    modes = [module.training for module in model.modules()]
    state = torch.get_rng_state()
    curves = probe_layers(model, batches(), hold_bytes=hold_bytes)
    assert [module.training for module in model.modules()] == modes
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), state)
    assert hooks_of(model) == 0
    assert not any(module._forward_hooks for module in model.modules())
    assert torch.backends.mha.get_fastpath_enabled()
    assert curves.ncc_error == probe_layers(mlp(), batches()).ncc_error  # in eval mode


def test_modes_and_switches_are_as_before_after_an_error():
    model = mlp().train()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with pytest.raises(LabelError):
            probe_layers(model, batches(labels=LABELS + 1))
        assert not torch.backends.mha.get_fastpath_enabled()
    finally:
        torch.backends.mha.set_fastpath_enabled(True)
    assert all(module.training for module in model.modules())
    assert hooks_of(model) == 0


@pytest.mark.parametrize("first", [False, True])
def test_a_compiled_model_is_probed_right_or_refused(first):
    plain = mlp()
    model = torch.compile(mlp(), backend="eager")
    if first:
        model(INPUTS)
    curves, message = None, ""
    try:
        curves = probe_layers(model, batches())
    except ArgumentError as error:
        message = str(error)
    if curves is None:
        assert "torch.compile came before the probe" in message
    else:
        assert curves.ncc_error == probe_layers(plain, batches()).ncc_error


# --- bad input ---


@pytest.mark.parametrize(
    ("data", "options", "error", "text"),
    [
        ([], {}, EmptyDataError, "at least one"),
        (batches(labels=LABELS + 1), {}, LabelError, r"0\.\.2"),
        (batches(inputs=INPUTS * torch.nan), {}, NonFiniteError, "finite"),
        ([(INPUTS, LABELS.float())], {}, DtypeError, "got torch.float32"),
        ([(INPUTS, nn.functional.one_hot(LABELS))], {}, ShapeError, "labels must have shape"),
        (batches(), {"layers": ["7"]}, ArgumentError, "got '7'"),
        (batches(), {"layers": ["0", "5"], "tap": "output"}, ArgumentError, "tap must be one of"),
        (batches(), {"pooling": "max"}, ArgumentError, "pooling must be one of"),
        (batches(), {"pooling": "mask"}, ArgumentError, "mask_of and pooling='mask' go together"),
        (batches(), {"mask_of": lambda batch: batch[0]}, ArgumentError, "go together"),
        (batches(), {"num_classes": 0}, ArgumentError, "num_classes must be an integer >= 1"),
        (batches(), {"moments": {}}, ArgumentError, "moments must name at least one layer"),
        (batches(), {"layers": []}, ArgumentError, "layers must name at least one layer"),
    ],
)
def test_bad_input(data, options, error, text):
    with pytest.raises(error, match=text):
        probe_layers(mlp(), data, **options)


def test_moments_of_other_layers_or_other_features():
    train = probe_layers(mlp(), batches())
    some = {name: train.moments[name] for name in ("0", "3")}
    with pytest.raises(ArgumentError, match="moments must hold those of layer '5'"):
        probe_layers(mlp(), batches(), layers=["0", "3", "5"], moments=some)
    with pytest.raises(ShapeError, match=r"reference moments must be of K = 3 .* d = 4 .* got K = 3 and d = 8"):
        probe_layers(mlp(), batches(), tap="input", moments=train.moments)


def test_a_mask_without_any_token():
    model = Encoder()
    with pytest.raises(ArgumentError, match="at least one token of every sample"):
        probe_layers(model, batches(), pooling="mask", mask_of=lambda batch: torch.zeros(len(batch[0]), 5))


def test_tokens_need_a_choice():
    with pytest.raises(ArgumentError, match=r"layer 'blocks.0.attn_in': tokens .* need a pooling"):
        probe_layers(GPT(), batches())


def test_samples_must_come_first():
    class Turned(nn.Module):
        def __init__(self):
            super().__init__()
            self.turned, self.head = nn.Linear(4, 5), nn.Linear(5, K)

        def forward(self, x):
            h = self.turned(torch.stack([x, x, x]))  # (T, B, d)
            return self.head(h.mean(dim=0))

    with pytest.raises(ShapeError, match="layer 'turned' must give one row per sample, 10 like the labels, got 3"):
        probe_layers(Turned(), batches(10), tap="pre", pooling="mean")
