import copy
import json
import os
from collections import OrderedDict
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset

from tests.conversion_material import VOCABULARY, K, recipe, trained
from tests.training.models import quiet
from tightframe import conversion
from tightframe._checks import ArgumentError, ConfigError, DataFileError, DimensionError
from tightframe.config import Method, Part, build_data, build_module
from tightframe.conversion import (
    CONVERSION_FILE,
    MODEL_FILE,
    Parts,
    accuracy,
    cells,
    load_conversion,
    lock_network,
    network_of_run,
    truncate_network,
    write_conversion,
)
from tightframe.data import ClassificationData
from tightframe.probing import probe_layers
from tightframe.surgery import LOCK_KINDS, lock_beyond, lock_to_etf
from tightframe.training.run import CHECKPOINT

pytestmark = quiet


@pytest.fixture(autouse=True)
def hurry(monkeypatch):
    monkeypatch.setattr(conversion, "ROUNDS", 2)


def run_of(factory, name, *args, **kwargs):
    chosen = recipe(*args, **kwargs)
    directory, module = trained(factory.mktemp(name), chosen)
    return directory, module.eval(), chosen, build_data(chosen)


@pytest.fixture(scope="module")
def mlp(tmp_path_factory):
    return run_of(tmp_path_factory, "mlp")


@pytest.fixture(scope="module")
def cnn(tmp_path_factory):
    return run_of(tmp_path_factory, "cnn", "images")


@pytest.fixture(scope="module")
def transformer(tmp_path_factory):
    return run_of(tmp_path_factory, "transformer", "tokens", optimizer=Part("AdamW", {"lr": 0.01}))


def opened(run):
    directory, _, chosen, data = run
    return network_of_run(directory, chosen, data), Parts(data, chosen.batch_size)


def between(curve, depth):
    """An epsilon at which a curve has this effective depth."""
    assert max(curve[depth - 1 :]) < curve[depth - 2], curve
    return curve[depth - 2] - 1e-6


def right(network, part):
    """The share of samples that a network gets right."""
    inputs, labels = part.tensors
    with torch.no_grad():
        return (copy.deepcopy(network).eval()(inputs).argmax(dim=1) == labels).double().mean().item()


def size(network, trained_alone=False):
    return sum(p.numel() for p in network.parameters() if p.requires_grad or not trained_alone)


def received(network, layer, part):
    """What a layer of a network receives, for all samples of a part."""
    found = []
    network = copy.deepcopy(network).eval()
    network.get_submodule(layer).register_forward_pre_hook(lambda module, args: found.append(args[0]))
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    with torch.no_grad():
        network(part.tensors[0])
    torch.backends.mha.set_fastpath_enabled(fast)
    return found[0]


def pooled(h, pooling, channels_first):
    if h.ndim == 2:
        return h.double()
    if pooling == "mean":
        return h.double().flatten(2).mean(dim=2) if channels_first else h.double().mean(dim=1)
    return h[:, 0].double() if pooling == "cls" else h.double().flatten(1)


def nearest_right(train, labels, h, wanted):
    """The share of samples nearest to the mean of their class, by the definition."""
    means = torch.stack([train[labels == k].mean(dim=0) for k in range(K)])
    return ((h[:, None] - means).square().sum(dim=2).argmin(dim=1) == wanted).double().mean().item()


def same_state(a, b):
    a, b = a.state_dict(), b.state_dict()
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


def test_accuracy_is_the_share_of_right_decisions_in_eval_mode_and_modes_stay():
    model = nn.Sequential(nn.Linear(3, 3, bias=False), nn.Dropout(0.9), nn.Identity().eval())
    with torch.no_grad():
        model[0].weight.copy_(torch.eye(3))
    one_hot = torch.eye(3)[[0, 0, 1, 2, 2]]
    loader = [(one_hot[:3], torch.tensor([0, 1, 1])), (one_hot[3:], torch.tensor([2, 0]))]
    assert accuracy(model, loader, 3) == pytest.approx(3 / 5)
    assert [m.training for m in model] == [True, True, False]


# --- the network of a run ---


def test_the_network_of_a_run_is_that_which_training_ended_with(mlp):
    network, _ = opened(mlp)
    _, module, _, data = mlp
    inputs = data.test.tensors[0]
    torch.testing.assert_close(network.eval()(inputs), module(inputs), rtol=0, atol=0)
    assert size(network, True) == size(network) == sum(p.numel() for p in module.parameters())


def test_layers_that_training_locked_stay_locked(tmp_path):
    method = Method(Part("LinearClassifier"), adaptive={"kind": "haar", "start": 2})
    directory, module = trained(tmp_path, recipe(method=method))
    chosen = recipe(method=method)
    data = build_data(chosen)
    network = network_of_run(directory, chosen, data)
    frozen = [name for name, p in network.named_parameters() if not p.requires_grad]
    assert frozen == ["backbone.7.weight", "classifier.weight"]
    assert frozen == [name for name, p in module.named_parameters() if not p.requires_grad]
    before = network.backbone[7].weight.clone()
    found = lock_network(network, Parts(data, 20), epsilon=0.99)
    assert found.depth == 1
    assert [lock.name for lock in found.locks] == ["backbone.4"]
    assert torch.equal(network.backbone[7].weight, before)


def test_layers_that_are_fixed_from_the_start_stay_so(tmp_path):
    method = Method(Part("LinearClassifier"), etf_transformer={"which": "w2"})
    chosen = recipe("tokens", method)
    directory, module = trained(tmp_path, chosen)
    network = network_of_run(directory, chosen, build_data(chosen))
    frozen = [name for name, p in network.named_parameters() if not p.requires_grad]
    assert frozen == [f"backbone.blocks.{i}.linear2.weight" for i in (0, 1)]
    for name in frozen:
        assert torch.equal(network.get_parameter(name), module.get_parameter(name))


def test_a_transform_stands_in_front_and_a_validation_part_changes_nothing(tmp_path):
    chosen = recipe("bytes", transform=Part("ImageTransform", {"mean": [0.5] * 3, "std": [0.2] * 3, "flip": True}))
    chosen.data.args["validation"] = True
    directory, module = trained(tmp_path, chosen)
    data = build_data(chosen)
    network = network_of_run(directory, chosen, data)
    inputs = data.test.tensors[0]
    assert inputs.dtype == torch.uint8
    torch.testing.assert_close(network.eval()(inputs), module.eval()(inputs))
    parts = Parts(data, 20)
    locked = lock_network(copy.deepcopy(network), parts, epsilon=0.99)
    assert [lock.name for lock in locked.locks] == ["backbone.1.3", "backbone.1.6", "classifier"]
    cut = truncate_network(network, parts, epsilon=0.99)
    assert [stage.name for stage in cut.stages] == ["whole", *(f"{i} backbone.1.{3 * i - 3}" for i in (1, 2, 3))]
    write_conversion(cut, tmp_path / "cut", {})
    loaded = load_conversion(tmp_path / "cut", network_of_run(directory, chosen, data), parts.sample)
    assert torch.equal(loaded.eval()(inputs), cut.network.eval()(inputs))


def test_a_checkpoint_of_another_device_is_read(mlp, tmp_path, monkeypatch):
    directory, _, chosen, data = mlp
    state = torch.load(directory / CHECKPOINT, weights_only=False)
    elsewhere = tmp_path / "learned" / "seed-0"
    (elsewhere / "checkpoints").mkdir(parents=True)
    with monkeypatch.context() as patched:
        patched.setattr(torch.serialization, "location_tag", lambda storage: "cuda:7")
        torch.save(state, elsewhere / CHECKPOINT)
    with pytest.raises(RuntimeError, match=r"(?i)cuda"):
        torch.load(elsewhere / CHECKPOINT, weights_only=False)
    assert same_state(network_of_run(elsewhere, chosen, data), network_of_run(directory, chosen, data))


@pytest.mark.parametrize("place", ["nosuch/seed-0", "learned/seed-x", "learned/0", "learned/seed-", "learned/xseed-0"])
def test_what_is_no_run(mlp, tmp_path, place):
    _, _, chosen, data = mlp
    with pytest.raises(ConfigError, match=r"RUN must be <out>/<method>/seed-<s>"):
        network_of_run(tmp_path / place, chosen, data)


def test_a_run_without_a_checkpoint(mlp, tmp_path):
    _, _, chosen, data = mlp
    with pytest.raises(DataFileError, match=r"last.ckpt does not exist: the training of learned with seed 3 has not"):
        network_of_run(tmp_path / "learned" / "seed-3", chosen, data)


CHECKPOINTS = {
    "empty": lambda state, other: None,
    "list": lambda state, other: [1],
    "no state": lambda state, other: {"callbacks": {}},
    "no callbacks": lambda state, other: {"state_dict": state["state_dict"]},
    "other layers": lambda state, other: {**state, "callbacks": {"AdaptiveETF": {"locked": ["backbone.99"]}}},
    "no weight": lambda state, other: {**state, "callbacks": {"AdaptiveETF": {"locked": ["backbone.0"]}}},
    "other network": lambda state, other: {**state, "state_dict": other.state_dict()},
}


@pytest.mark.parametrize("kind", [*CHECKPOINTS, "garbage", "half"])
def test_a_checkpoint_that_is_something_else(mlp, tmp_path, kind):
    directory, _, chosen, data = mlp
    here = tmp_path / "learned" / "seed-0"
    (here / "checkpoints").mkdir(parents=True)
    path = here / CHECKPOINT
    if kind == "garbage":
        path.write_bytes(b"\x00\x80 nothing")
    elif kind == "half":
        whole = (directory / CHECKPOINT).read_bytes()
        path.write_bytes(whole[: len(whole) // 2])
    else:
        other = build_module(replace(chosen, backbone=Part("MLP", {"widths": [12, 9, 8]})), "learned", data, 0)
        torch.save(CHECKPOINTS[kind](torch.load(directory / CHECKPOINT, weights_only=False), other), path)
    with pytest.raises(DataFileError, match=r"last\.ckpt cannot be loaded: .") as caught:
        network_of_run(here, chosen, data)
    assert "\n" not in str(caught.value)


# --- lock ---


def test_the_stages_of_a_lock_are_what_each_step_gives(mlp):
    network, parts = opened(mlp)
    train, test = mlp[3].train, mlp[3].test
    curve = probe_layers(network, parts.train).ncc_error
    before = copy.deepcopy(network)
    found = lock_network(network, parts, epsilon=between(curve, 2))
    assert found.network is network
    assert (found.depth, found.changed, found.truncated) == (2, True, False)
    assert found.ncc_error == curve
    assert found.layers == ("backbone.1", "backbone.4", "backbone.7", "classifier")
    assert [stage.name for stage in found.stages] == ["trained", "2 locked", "batch norm anew"]

    locked = copy.deepcopy(before)
    for layer in ("backbone.7", "classifier"):
        lock_to_etf(locked, layer)
    for stage, by_hand in zip(found.stages, (before, locked, network), strict=True):
        assert stage.train == pytest.approx(right(by_hand, train))
        assert stage.test == pytest.approx(right(by_hand, test))
        assert stage.parameters == size(before)
        assert stage.flops == 2 * (6 * 12 + 12 * 10 + 10 * 8 + 8 * K)
        assert stage.seconds > 0
        assert stage.relative > 0
    freed = 10 * 8 + 8 * K
    assert [stage.trainable for stage in found.stages] == [size(before), size(before) - freed, size(before) - freed]
    assert torch.equal(network.backbone[7].weight, locked.backbone[7].weight)
    assert torch.equal(network.backbone[4].weight, before.backbone[4].weight)
    assert found.stages[0].relative == 1
    assert [m.training for m in network.modules()] == [m.training for m in before.modules()]


def test_batch_norms_are_mended_by_the_mean_over_the_batches(mlp):
    network, parts = opened(mlp)
    locked, _ = opened(mlp)
    curve = probe_layers(network, parts.train).ncc_error
    lock_network(network, parts, epsilon=between(curve, 2))
    for layer in ("backbone.7", "classifier"):
        lock_to_etf(locked, layer)
    inputs = []
    locked.backbone[8].register_forward_pre_hook(lambda module, args: inputs.append(args[0].detach()))
    locked.train()
    for batch, _ in parts.shuffled:
        locked(batch)
    assert len(inputs) == 6  # of 130 samples, 20 a step
    norm = network.backbone[8]
    torch.testing.assert_close(norm.running_mean, torch.stack([h.mean(0) for h in inputs]).mean(0))
    torch.testing.assert_close(norm.running_var, torch.stack([h.var(0) for h in inputs]).mean(0))


@pytest.mark.parametrize("kind", LOCK_KINDS)
@pytest.mark.parametrize("gain", [None, 0.7, "match-init"])
def test_the_options_reach_each_layer_with_its_own_seed(mlp, kind, gain):
    network, parts = opened(mlp)
    by_hand = copy.deepcopy(network)
    found = lock_network(network, parts, epsilon=0.99, kind=kind, gain=gain, seed=5)
    assert found.depth == 1
    for index, layer in ((1, "backbone.4"), (2, "backbone.7"), (3, "classifier")):
        classes = K if kind == "class-rank" else None
        lock = lock_to_etf(by_hand, layer, kind, gain=gain, seed=5 + index, num_classes=classes)
        assert lock == found.locks[index - 1]
        assert torch.equal(network.get_submodule(layer).weight, by_hand.get_submodule(layer).weight)


def test_the_layer_at_the_depth_is_locked_on_request(mlp):
    network, parts = opened(mlp)
    curve = probe_layers(network, parts.train).ncc_error
    found = lock_network(network, parts, epsilon=between(curve, 2), inclusive=True)
    assert [lock.name for lock in found.locks] == ["backbone.4", "backbone.7", "classifier"]


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"kind": "etf"}, "kind must be one of 'aligned', "),
        ({"gain": "big"}, "gain must be one of 'unit', "),
        ({"gain": -1.0}, "gain"),
        ({"seed": -1}, "seed must be an integer >= 0"),
        ({"epsilon": 1.0}, r"epsilon must be finite and in \[0, 1\), got 1.0"),
        ({"epsilon": -0.1}, "epsilon"),
        ({"epsilon": float("nan")}, "epsilon"),
        ({"pooling": "max"}, "pooling must be one of"),
    ],
)
def test_bad_options_are_found_also_where_nothing_would_be_locked(mlp, options, text):
    network, parts = opened(mlp)
    before = copy.deepcopy(network)
    with pytest.raises(ArgumentError, match=text):
        lock_network(network, parts, **{"epsilon": 0.0, **options})
    assert same_state(network, before)


def early_means_err():
    """A network whose last layer alone has nearest class means that never err, and its data."""
    network = nn.Sequential(nn.Linear(2, 2, bias=False), nn.BatchNorm1d(2), nn.Linear(2, 2, bias=False))
    with torch.no_grad():
        network[0].weight.copy_(torch.eye(2))
        network[2].weight.copy_(torch.tensor([[-1.0, 0.0], [1.0, 0.0]]))
        network[1].bias.copy_(torch.tensor([-0.5, 0.0]))
    points = torch.tensor([[0.0, 0.0], [0.0, 10.0], [0.0, 10.0], [1.0, 0.0], [1.0, 0.0], [1.0, 10.0]])
    labels = torch.tensor([0, 0, 0, 1, 1, 1])
    part = TensorDataset(points, labels)
    return network, ClassificationData(part, None, part, 2, ("a", "b"), labels.bincount())


@pytest.mark.parametrize("convert", [lock_network, truncate_network])
@pytest.mark.parametrize("classifier_too", [True, False])
def test_where_nothing_lies_beyond_the_depth_nothing_changes(convert, classifier_too):
    network, data = early_means_err()
    if not classifier_too:
        data.train.tensors[0][:, 0] = 0.0  # what told the classes apart
    before = copy.deepcopy(network)
    found = convert(network, Parts(data, 6))
    assert found.depth == (2 if classifier_too else None)
    assert found.network is network
    assert not found.changed
    assert found.locks == ()
    assert len(found.stages) == (1 if convert is lock_network else 2)
    assert same_state(network, before)
    assert all(p.requires_grad for p in network.parameters())


def test_the_last_layer_is_locked_at_its_own_depth_on_request():
    network, data = early_means_err()
    found = lock_network(network, Parts(data, 6), inclusive=True)
    assert found.depth == 2
    assert [lock.name for lock in found.locks] == ["2"]


def test_a_fixed_classifier_is_neither_locked_nor_counted(tmp_path):
    chosen = recipe(method=Method(Part("SimplexETFClassifier", {"learn_scale": True})))
    directory, _ = trained(tmp_path, chosen)
    data = build_data(chosen)
    parts = Parts(data, 20)
    network = network_of_run(directory, chosen, data)
    scale = network.classifier.log_scale.clone()
    cut = truncate_network(network, parts, epsilon=0.99)
    assert cut.layers[-1] == "classifier"
    assert cut.stages[0].test == pytest.approx(right(network, data.test))
    found = lock_network(network, parts, epsilon=0.99)
    assert [lock.name for lock in found.locks] == ["backbone.4", "backbone.7"]
    assert found.stages[0].trainable == found.stages[0].parameters == size(network.backbone) + 1
    assert torch.equal(network.classifier.log_scale, scale)
    assert network.classifier.log_scale.requires_grad


# --- truncate ---


def check_cuts(run, pooling, channels_first):
    """Each cut gets right what the nearest class mean gets right, counted from what the next layer receives."""
    network, parts = opened(run)
    train, test = run[3].train, run[3].test
    before = copy.deepcopy(network)
    found = truncate_network(network, parts, epsilon=0.99, pooling=pooling)
    assert same_state(network, before)
    assert [m.training for m in network.modules()] == [m.training for m in before.modules()]
    assert size(network, True) == size(before, True)
    assert found.stages[0].train == pytest.approx(right(network, train))
    assert found.stages[0].test == pytest.approx(right(network, test))
    assert len(found.stages) == len(found.layers)
    for i, stage in enumerate(found.stages[1:]):
        h_train, h_test = (
            pooled(received(network, found.layers[i + 1], part), pooling, channels_first) for part in (train, test)
        )
        assert stage.name == f"{i + 1} {found.layers[i]}"
        assert stage.train == pytest.approx(nearest_right(h_train, train.tensors[1], h_train, train.tensors[1]))
        assert stage.train == pytest.approx(1 - found.ncc_error[i])
        assert stage.test == pytest.approx(nearest_right(h_train, train.tensors[1], h_test, test.tensors[1]))
    assert found.truncated
    assert found.changed
    assert right(found.network, test) == pytest.approx(found.stages[found.depth].test)
    return found


def test_cuts_of_an_mlp(mlp):
    found = check_cuts(mlp, None, False)
    widths = [6, 12, 10, 8]
    for i, stage in enumerate(found.stages[1:], start=1):
        layers = sum(a * b for a, b in pairwise(widths[: i + 1]))
        norms = 2 * sum(widths[1 : i + 1])
        assert stage.parameters == stage.trainable == layers + norms + (widths[i] + 1) * K
        assert stage.flops == 2 * (layers + widths[i] * K)
    assert found.stages[0].flops == 2 * (6 * 12 + 12 * 10 + 10 * 8 + 8 * K)
    headings, rows = cells(found)
    assert all(len(row) == len(headings) for row in rows)
    assert rows[1][:5] == [
        "1 backbone.1",
        f"{100 * found.stages[1].train:.2f}",
        f"{100 * found.stages[1].test:.2f}",
        "148",
        "148",
    ]
    assert rows[0][5:] == ["100", "100"]
    assert rows[1][5] == f"{100 * 240 / 608:.0f}"


@pytest.mark.parametrize("pooling", [None, "flatten", "mean"])
def test_cuts_of_a_cnn(cnn, pooling):
    found = check_cuts(cnn, pooling, True)
    positions, channels = (64, 16, 4), (1, 4, 6, 8)
    costs = [2 * 9 * a * b * n for a, b, n in zip(channels, channels[1:], positions, strict=False)]
    assert found.stages[0].flops == sum(costs) + 2 * 8 * K
    for i in (1, 2):
        read = channels[i] * (1 if pooling == "mean" else positions[i - 1])
        assert found.stages[i].flops == sum(costs[:i]) + 2 * read * K
        convolutions = sum((9 * a + 2) * b for a, b in pairwise(channels[: i + 1]))
        assert found.stages[i].parameters == convolutions + (read + 1) * K
    assert found.stages[3].flops == found.stages[0].flops  # the pool stands before the next linear layer


@pytest.mark.parametrize("pooling", ["mean", "cls"])
def test_cuts_of_a_transformer(transformer, pooling):
    found = check_cuts(transformer, pooling, False)
    assert found.layers == (*(f"backbone.blocks.{i}.linear{j}" for i in (0, 1) for j in (1, 2)), "classifier")
    attention = 2 * 6 * 8 * 8 * 4 + 2 * 2 * 6 * 6 * 8  # projections; products with all keys and values
    feed_forward = 2 * 6 * 8 * 12
    classifier = 2 * 8 * K
    assert found.stages[0].flops == 2 * attention + 4 * feed_forward + classifier
    # After linear2 the next layer is in the next block, behind its attention.
    assert found.stages[1].flops == attention + feed_forward + 2 * 12 * K
    assert found.stages[2].flops == 2 * attention + 2 * feed_forward + classifier
    assert found.stages[4].flops == found.stages[0].flops
    embedding = (VOCABULARY + 6) * 8
    block = 4 * 8 * 8 + 4 * 8 + 2 * 8 * 2
    assert found.stages[0].parameters == embedding + 2 * (block + 2 * 8 * 12 + 8 + 12) + 2 * 8 + (8 + 1) * K
    assert found.stages[1].parameters == embedding + block + 12 * (8 + 1) + (12 + 1) * K


def test_fast_attention_is_on_again(transformer):
    network, parts = opened(transformer)
    assert torch.backends.mha.get_fastpath_enabled()
    parts.stage("it", network)
    assert torch.backends.mha.get_fastpath_enabled()


def test_tokens_need_a_pooling(transformer):
    network, parts = opened(transformer)
    for convert in (lock_network, truncate_network):
        with pytest.raises(ArgumentError, match="need a pooling: pass 'cls', 'mean'"):
            convert(network, parts)


class Patches(nn.Module):
    """Maps become tokens between a convolution and a linear layer, or the other way round."""

    def __init__(self, back):
        super().__init__()
        torch.manual_seed(0)
        self.back = back
        self.first = nn.Linear(1, 5) if back else nn.Conv2d(1, 5, 2, 2)
        self.second = nn.Conv2d(5, 7, 2) if back else nn.Linear(5, 7)
        self.head = nn.Linear(7, K)

    def forward(self, x):
        if self.back:
            return self.head(self.second(self.first(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)).mean(dim=(2, 3)))
        return self.head(self.second(self.first(x).flatten(2).transpose(1, 2)).relu().mean(dim=1))


@pytest.mark.parametrize(("back", "pooling"), [(True, "mean"), (True, None), (False, "mean"), (False, "cls")])
def test_what_a_layer_gives_is_pooled_as_the_next_one_receives_it(cnn, back, pooling, tmp_path):
    data = cnn[3]
    network = Patches(back).eval()
    parts = Parts(data, 20)
    found = truncate_network(network, parts, epsilon=0.99, pooling=pooling)
    h = pooled(received(network, "second", data.train), pooling, back)
    labels = data.train.tensors[1]
    assert found.stages[1].name == "1 first"
    assert found.stages[1].train == pytest.approx(nearest_right(h, labels, h, labels))
    assert found.depth == 1
    write_conversion(found, tmp_path, {})
    loaded = load_conversion(tmp_path, Patches(back), parts.sample)
    torch.testing.assert_close(loaded.eval()(parts.sample), found.network.eval()(parts.sample), rtol=0, atol=0)


# --- writing and loading ---


@pytest.mark.parametrize("run", ["mlp", "cnn", "transformer"])
@pytest.mark.parametrize("convert", [lock_network, truncate_network])
@pytest.mark.parametrize("epsilon", [0.99, 0.0])
def test_a_conversion_comes_back_as_it_was(request, tmp_path, run, convert, epsilon):
    run = request.getfixturevalue(run)
    network, parts = opened(run)
    network.get_submodule("classifier").bias.requires_grad_(False)  # frozen, and no lock
    found = convert(network, parts, epsilon=epsilon, pooling="mean")
    assert found.changed is (epsilon > 0)
    write_conversion(found, tmp_path / "a" / "b", {"note": "x"})
    assert sorted(p.name for p in (tmp_path / "a" / "b").iterdir()) == [CONVERSION_FILE, MODEL_FILE]
    facts = json.loads((tmp_path / "a" / "b" / CONVERSION_FILE).read_text())
    assert facts["note"] == "x"
    assert facts["depth"] == found.depth
    assert facts["truncated"] is found.truncated
    fresh = build_module(run[2], "learned", run[3], seed=9)
    fresh = nn.Sequential(OrderedDict(backbone=fresh.backbone, classifier=fresh.classifier))
    loaded = load_conversion(tmp_path / "a" / "b", fresh, parts.sample)
    assert same_state(loaded, found.network)
    assert torch.equal(loaded.eval()(parts.sample), found.network.eval()(parts.sample))
    flags = [{n: p.requires_grad for n, p in network.named_parameters()} for network in (loaded, found.network)]
    if found.truncated:  # its classifier is new, and the old one is gone
        assert all(flags[0].values())
    assert flags[0] == flags[1]


def test_tied_weights_are_written(tmp_path):
    network, data = early_means_err()
    network[2].weight = network[0].weight
    found = truncate_network(network, Parts(data, 6), epsilon=0.0)
    write_conversion(found, tmp_path, {})
    fresh = copy.deepcopy(network)
    nn.init.zeros_(fresh[0].weight)
    loaded = load_conversion(tmp_path, fresh, data.train.tensors[0])
    assert torch.equal(loaded[2].weight, torch.eye(2))


def written(mlp, out, convert=lock_network, **options):
    network, parts = opened(mlp)
    found = convert(network, parts, epsilon=0.99, **options)
    write_conversion(found, out, {})
    return found, parts


def without(out, key):
    facts = json.loads((out / CONVERSION_FILE).read_text())
    del facts[key]
    (out / CONVERSION_FILE).write_text(json.dumps(facts))


def half(path):
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])


DAMAGES = {
    "no directory": lambda out: out.rename(out.with_name("gone")),
    "no model": lambda out: (out / MODEL_FILE).unlink(),
    "no facts": lambda out: (out / CONVERSION_FILE).unlink(),
    "half a model": lambda out: half(out / MODEL_FILE),
    "half the facts": lambda out: half(out / CONVERSION_FILE),
    "empty model": lambda out: (out / MODEL_FILE).write_bytes(b""),
    "a list": lambda out: (out / CONVERSION_FILE).write_text("[]"),
    "bytes": lambda out: (out / CONVERSION_FILE).write_bytes(b"\xff\xfe\x00"),
    "no layers": lambda out: [without(out, key) for key in ("layers", "frozen")],
}


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("convert", [lock_network, truncate_network])
def test_a_damaged_conversion_is_refused(mlp, tmp_path, damage, convert):
    _, parts = written(mlp, tmp_path / "here", convert)
    DAMAGES[damage](tmp_path / "here")
    with pytest.raises(DataFileError, match=r"here holds no conversion of this network: .") as caught:
        load_conversion(tmp_path / "here", opened(mlp)[0], parts.sample)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("convert", [lock_network, truncate_network])
def test_a_conversion_of_another_network_is_refused(mlp, tmp_path, convert):
    _, parts = written(mlp, tmp_path, convert)
    for other in (nn.Linear(6, K), nn.Sequential(nn.Linear(6, 7), nn.Linear(7, K))):
        with pytest.raises(DataFileError, match="holds no conversion of this network"):
            load_conversion(tmp_path, other, parts.sample)


def contents(out):
    return {path.name: path.read_bytes() for path in out.iterdir() if not path.name.endswith(".partial")}


@pytest.mark.parametrize("at", ["save_file", "write_text"])
def test_what_was_written_stays_if_writing_fails(mlp, tmp_path, monkeypatch, at):
    found, _ = written(mlp, tmp_path)
    before = contents(tmp_path)

    def fails(*args, **kwargs):
        raise OSError(28, "No space left on device")

    where = (conversion, "save_file") if at == "save_file" else (type(tmp_path), "write_text")
    monkeypatch.setattr(*where, fails)
    with pytest.raises(ConfigError, match=r"cannot be written: .*No space left"):
        write_conversion(replace(found, depth=3), tmp_path, {})
    assert contents(tmp_path) == before


def test_a_conversion_that_is_half_replaced_is_refused(mlp, tmp_path, monkeypatch):
    found, parts = written(mlp, tmp_path)
    with torch.no_grad():
        found.network.classifier.bias += 1
    calls = []

    def killed(source, target):
        calls.append(target)
        if len(calls) == 2:
            raise KeyboardInterrupt
        os.rename(source, target)

    monkeypatch.setattr(conversion.os, "replace", killed)
    with pytest.raises(KeyboardInterrupt):
        write_conversion(found, tmp_path, {})
    monkeypatch.undo()
    with pytest.raises(DataFileError, match="holds no conversion"):
        load_conversion(tmp_path, opened(mlp)[0], parts.sample)
    write_conversion(found, tmp_path, {})
    assert same_state(load_conversion(tmp_path, opened(mlp)[0], parts.sample), found.network)


@pytest.mark.parametrize("place", ["file", "file/below", "folders"])
def test_a_directory_that_cannot_be_written(mlp, tmp_path, place):
    found, _ = written(mlp, tmp_path / "fine")
    (tmp_path / "file").write_text("")
    (tmp_path / "folders" / f"{MODEL_FILE}.partial").mkdir(parents=True)
    with pytest.raises(ConfigError, match=f"--out .*{place} cannot be written: .") as caught:
        write_conversion(found, tmp_path / place, {})
    assert "\n" not in str(caught.value)


# --- lock_beyond ---


def tower():
    torch.manual_seed(0)
    return nn.Sequential(*(nn.Linear(6, 6) for _ in range(4)), nn.Linear(6, 3))


NAMES = ["0", "1", "2", "3", "4"]


@pytest.mark.parametrize(
    ("options", "locked"),
    [
        ({"depth": 5}, []),
        ({"depth": 5, "inclusive": True}, ["4"]),
        ({"depth": 3}, ["3", "4"]),
        ({"depth": 1, "inclusive": True}, ["1", "2", "3", "4"]),
        ({"depth": 1, "inclusive": True, "min_trainable": 4}, ["4"]),
        ({"depth": 1, "min_trainable": 9}, []),
    ],
)
def test_which_layers_lie_beyond(options, locked):
    model = tower()
    assert [lock.name for lock in lock_beyond(model, NAMES, **options)] == locked
    frozen = [name for name, p in model.named_parameters() if not p.requires_grad]
    assert frozen == [f"{name}.weight" for name in locked]


def test_a_draw_depends_on_the_number_of_the_layer_alone():
    model, other = tower(), tower()
    lock_to_etf(other, "2", "canonical")
    before = other[2].weight.clone()
    lock_beyond(model, NAMES, 1, kind="haar", seed=3)
    assert [lock.name for lock in lock_beyond(other, NAMES, 2, kind="haar", seed=3)] == ["3", "4"]
    assert torch.equal(other[2].weight, before)
    assert torch.equal(other[3].weight, model[3].weight)
    assert torch.equal(other[4].weight, model[4].weight)
    draws = [model[i].weight for i in (1, 2, 3)]
    assert not any(torch.equal(a, b) for i, a in enumerate(draws) for b in draws[:i])


def test_what_is_locked_leaves_the_optimizer():
    model = tower()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    lock_beyond(model, NAMES, 3, optimizer=optimizer)
    assert len(optimizer.param_groups[0]["params"]) == 8


def test_layers_without_a_trained_matrix_are_passed_over():
    model = tower()
    model[3].weight.requires_grad_(False)
    assert [lock.name for lock in lock_beyond(model, NAMES, 2)] == ["2", "4"]


@pytest.mark.parametrize(
    ("options", "error", "text"),
    [
        ({"depth": 0}, ArgumentError, "depth must be an integer >= 1"),
        ({"depth": 6}, ArgumentError, r"depth must be one of the layers 1\.\.5, got 6"),
        ({"depth": True}, ArgumentError, "depth"),
        ({"depth": 1, "min_trainable": 0}, ArgumentError, "min_trainable must be an integer >= 1"),
        ({"depth": 1, "kind": "etf"}, ArgumentError, "kind must be one of"),
        ({"depth": 4, "layers": ["0", "1", "2", "3", "5"]}, ArgumentError, "no module '5'"),
        ({"depth": 4, "kind": "class-rank", "num_classes": 9}, ArgumentError, "num_classes must be K = 3"),
    ],
)
def test_what_lock_beyond_refuses(options, error, text):
    with pytest.raises(error, match=text):
        lock_beyond(tower(), **{"layers": NAMES, **options})


def test_a_layer_that_is_trained_and_cannot_be_locked_is_not_passed_over():
    model = tower()
    nn.utils.parametrizations.weight_norm(model[3])
    with pytest.raises(ArgumentError, match="layer '3' is computed by a parametrization"):
        lock_beyond(model, NAMES, 2)
    narrow = nn.Sequential(nn.Linear(6, 2), nn.Linear(2, 5))
    with pytest.raises(DimensionError, match="d >= K - 1"):
        lock_beyond(narrow, ["0", "1"], 1)
