import copy
from itertools import cycle, pairwise

import pytest
import torch
from torch import nn

from tests.conversion.material import (
    VOCABULARY,
    K,
    early_means_err,
    first_means_err,
    opened,
    parts_of,
    recipe,
    right,
    same_state,
    size,
    trained,
)
from tests.training.models import quiet
from tightframe.cli.convert import cells
from tightframe.config import Method, Part, build, load_run
from tightframe.errors import ArgumentError
from tightframe.surgery import LOCK_KINDS, Fix, lock_to_etf
from tightframe.surgery.convert import (
    load_conversion,
    lock_network,
    truncate_network,
    write_conversion,
)

pytestmark = quiet


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


# --- lock ---


def test_the_stages_of_a_lock_are_what_each_step_gives():
    network, data = first_means_err()
    before = copy.deepcopy(network)
    found = lock_network(network, parts_of(data, 6))
    assert found.network is network
    assert (found.depth, found.changed, found.truncated) == (2, True, False)
    assert found.ncc_error == pytest.approx([1 / 3, 0, 0, 0])
    assert found.layers == ("0", "2", "4", "6")
    assert [stage.name for stage in found.stages] == ["trained", "2 locked", "batch norm re-estimated"]

    locked = copy.deepcopy(before)
    for layer in ("4", "6"):
        lock_to_etf(locked, layer)
    for stage, by_hand in zip(found.stages, (before, locked, network), strict=True):
        assert stage.train == stage.test == pytest.approx(right(by_hand, data.train))
        assert stage.parameters == size(before)
        assert stage.flops == 2 * (2 * 2 + 2 * 2 + 2 * 3 + 3 * 2)
        assert stage.seconds > 0
        assert stage.relative > 0
    freed = 2 * 3 + 3 * 2
    assert [stage.trainable for stage in found.stages] == [size(before), size(before) - freed, size(before) - freed]
    assert torch.equal(network[4].weight, locked[4].weight)
    assert torch.equal(network[2].weight, before[2].weight)
    assert found.stages[0].relative == 1
    assert [m.training for m in network.modules()] == [m.training for m in before.modules()]


def test_batch_norms_are_estimated_by_the_mean_over_the_batches():
    (network, data), (locked, _) = first_means_err(), first_means_err()
    parts = parts_of(data, 2)
    lock_network(network, parts)
    for layer in ("4", "6"):
        lock_to_etf(locked, layer)
    inputs = []
    locked[5].register_forward_pre_hook(lambda module, args: inputs.append(args[0].detach()))
    locked.train()
    for batch, _ in parts.shuffled:
        locked(batch)
    assert len(inputs) == 3  # of 6 samples, 2 a step
    norm = network[5]
    torch.testing.assert_close(norm.running_mean, torch.stack([h.mean(0) for h in inputs]).mean(0))
    torch.testing.assert_close(norm.running_var, torch.stack([h.var(0) for h in inputs]).mean(0))


@pytest.mark.parametrize(("kind", "gain"), list(zip(LOCK_KINDS, cycle([None, 0.7, "match-init"]))))
def test_the_options_reach_each_layer_with_its_own_seed(mlp, kind, gain):
    network, parts = opened(mlp)
    by_hand = copy.deepcopy(network)
    found = lock_network(network, parts, epsilon=0.99, fix=Fix(kind, gain, seed=5))
    assert found.depth == 1
    for index, layer in ((1, "backbone.4"), (2, "backbone.7"), (3, "classifier")):
        classes = K if kind == "class-rank" else None
        lock = lock_to_etf(by_hand, layer, kind, gain=gain, seed=5 + index, num_classes=classes)
        assert lock == found.locks[index - 1]
        assert torch.equal(network.get_submodule(layer).weight, by_hand.get_submodule(layer).weight)


def test_the_layer_at_the_depth_is_locked_on_request():
    network, data = first_means_err()
    found = lock_network(network, parts_of(data, 6), inclusive=True)
    assert [lock.name for lock in found.locks] == ["2", "4", "6"]


def test_layers_are_kept_and_looked_at_on_request(mlp):
    network, parts = opened(mlp)
    found = lock_network(network, parts, epsilon=0.99, keep=["classifier"])
    assert [lock.name for lock in found.locks] == ["backbone.4", "backbone.7"]
    assert network.classifier.weight.requires_grad
    network, parts = opened(mlp)
    found = lock_network(network, parts, epsilon=0.99, layers=["backbone.[17]", "classifier"])
    assert found.layers == ("backbone.1", "backbone.7", "classifier")
    assert [lock.name for lock in found.locks] == ["backbone.7", "classifier"]


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"keep": ["head"]}, "keep must name modules of the model, got 'head'"),
        ({"layers": ["head"]}, "layers must name modules of the model, got 'head'"),
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


@pytest.mark.parametrize("convert", [lock_network, truncate_network])
@pytest.mark.parametrize("classifier_too", [True, False])
def test_where_nothing_lies_beyond_the_depth_nothing_changes(convert, classifier_too):
    network, data = early_means_err()
    if not classifier_too:
        data.train.tensors[0][:, 0] = 0.0  # what told the classes apart
    before = copy.deepcopy(network)
    found = convert(network, parts_of(data, 6))
    assert found.depth == (2 if classifier_too else None)
    assert found.network is network
    assert not found.changed
    assert found.locks == ()
    assert len(found.stages) == (1 if convert is lock_network else 2)
    assert same_state(network, before)
    assert all(p.requires_grad for p in network.parameters())


def test_the_last_layer_is_locked_at_its_own_depth_on_request():
    network, data = early_means_err()
    found = lock_network(network, parts_of(data, 6), inclusive=True)
    assert found.depth == 2
    assert [lock.name for lock in found.locks] == ["2"]


def test_a_fixed_classifier_is_neither_locked_nor_counted(tmp_path):
    chosen = recipe(method=Method(Part("SimplexETFClassifier", {"learn_scale": True})))
    directory, _ = trained(tmp_path, chosen)
    data = build(chosen, [], trust=True).data
    parts = parts_of(data, 20)
    network = load_run(directory, trust=True).network
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


def check_cuts(run, pooling, channels_first, layers=None):
    """Each cut gets right what the nearest class mean gets right, counted from what the next layer receives."""
    network, parts = opened(run)
    train, test = run[3].train, run[3].test
    before = copy.deepcopy(network)
    found = truncate_network(network, parts, epsilon=0.99, pooling=pooling, layers=layers)
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


def test_cuts_after_the_blocks_of_a_transformer(transformer, tmp_path):
    layers = ["backbone.blocks.*", "classifier"]
    found = check_cuts(transformer, "mean", False, layers)
    assert found.layers == ("backbone.blocks.0", "backbone.blocks.1", "classifier")
    assert found.stages[1].flops < found.stages[2].flops == found.stages[0].flops
    write_conversion(found, tmp_path, {})
    network, parts = opened(transformer)
    again = load_conversion(tmp_path, network, parts.sample)
    assert same_state(again, found.network)


def test_maps_that_a_block_receives_are_pooled_as_its_probe_does(cnn):
    network, parts = opened(cnn)
    children = list(network.backbone)
    blocks = nn.Sequential(nn.Sequential(*children[:3]), nn.Sequential(*children[3:]))
    whole = nn.Sequential(blocks, network.classifier)
    found = truncate_network(whole, parts, pooling="mean", layers=["0.*", "1"])
    assert found.layers == ("0.0", "0.1", "1")
    assert [stage.train for stage in found.stages[1:]] == pytest.approx([1 - error for error in found.ncc_error[:-1]])


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
    parts = parts_of(data, 20)
    found = truncate_network(network, parts, epsilon=0.99, pooling=pooling)
    h = pooled(received(network, "second", data.train), pooling, back)
    labels = data.train.tensors[1]
    assert found.stages[1].name == "1 first"
    assert found.stages[1].train == pytest.approx(nearest_right(h, labels, h, labels))
    assert found.depth == 1
    write_conversion(found, tmp_path, {})
    loaded = load_conversion(tmp_path, Patches(back), parts.sample)
    torch.testing.assert_close(loaded.eval()(parts.sample), found.network.eval()(parts.sample), rtol=0, atol=0)
