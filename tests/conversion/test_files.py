import copy
import json
import os
import shutil
from collections import OrderedDict
from dataclasses import replace

import pytest
import torch
from torch import nn

from tests.conversion.material import K, early_means_err, opened, parts_of, recipe, same_state, size, trained
from tests.training.models import quiet
from tightframe.config import Method, Part, build, load_run
from tightframe.errors import ConfigError, DataFileError, OutputError
from tightframe.runs.layout import CHECKPOINT, CONFIG_FILE
from tightframe.surgery.convert import (
    CONVERSION_FILE,
    MODEL_FILE,
    load_conversion,
    lock_network,
    truncate_network,
    write_conversion,
)

pytestmark = quiet


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
    data = build(chosen, [], trust=True).data
    network = load_run(directory, trust=True).network
    frozen = [name for name, p in network.named_parameters() if not p.requires_grad]
    assert frozen == ["backbone.7.weight", "classifier.weight"]
    assert frozen == [name for name, p in module.named_parameters() if not p.requires_grad]
    before = network.backbone[7].weight.clone()
    found = lock_network(network, parts_of(data, 20), epsilon=0.99)
    assert found.depth == 1
    assert [lock.name for lock in found.locks] == ["backbone.4"]
    assert torch.equal(network.backbone[7].weight, before)


def test_layers_that_are_fixed_from_the_start_stay_so(tmp_path):
    method = Method(Part("LinearClassifier"), etf_transformer={"which": "w2"})
    chosen = recipe("tokens", method)
    directory, module = trained(tmp_path, chosen)
    network = load_run(directory, trust=True).network
    frozen = [name for name, p in network.named_parameters() if not p.requires_grad]
    assert frozen == [f"backbone.blocks.{i}.linear2.weight" for i in (0, 1)]
    for name in frozen:
        assert torch.equal(network.get_parameter(name), module.get_parameter(name))


def test_a_transform_stands_in_front_and_a_validation_part_changes_nothing(tmp_path):
    chosen = recipe("bytes", transform=Part("ImageTransform", {"mean": [0.5] * 3, "std": [0.2] * 3, "flip": True}))
    chosen.data.args["validation"] = True
    directory, module = trained(tmp_path, chosen)
    data = build(chosen, [], trust=True).data
    network = load_run(directory, trust=True).network
    inputs = data.test.tensors[0]
    assert inputs.dtype == torch.uint8
    torch.testing.assert_close(network.eval()(inputs), module.eval()(inputs))
    parts = parts_of(data, 20)
    locked = lock_network(copy.deepcopy(network), parts, epsilon=0.99)
    assert [lock.name for lock in locked.locks] == ["backbone.1.3", "backbone.1.6", "classifier"]
    cut = truncate_network(network, parts, epsilon=0.99)
    assert [stage.name for stage in cut.stages] == ["whole", *(f"{i} backbone.1.{3 * i - 3}" for i in (1, 2, 3))]
    write_conversion(cut, tmp_path / "cut", {})
    loaded = load_conversion(tmp_path / "cut", load_run(directory, trust=True).network, parts.sample)
    assert torch.equal(loaded.eval()(inputs), cut.network.eval()(inputs))


def test_a_checkpoint_of_another_device_is_read(mlp, tmp_path, monkeypatch):
    directory, *_ = mlp
    state = torch.load(directory / CHECKPOINT, weights_only=False)
    elsewhere = tmp_path / "learned" / "seed-0"
    (elsewhere / "checkpoints").mkdir(parents=True)
    shutil.copy(directory.parents[1] / CONFIG_FILE, tmp_path)
    with monkeypatch.context() as patched:
        patched.setattr(torch.serialization, "location_tag", lambda storage: "cuda:7")
        torch.save(state, elsewhere / CHECKPOINT)
    with pytest.raises(RuntimeError, match=r"(?i)cuda"):
        torch.load(elsewhere / CHECKPOINT, weights_only=False)
    assert same_state(load_run(elsewhere, trust=True).network, load_run(directory, trust=True).network)


@pytest.mark.parametrize("place", ["nosuch/seed-0", "learned/seed-x", "learned/0", "learned/seed-", "learned/xseed-0"])
def test_what_is_no_run(mlp, tmp_path, place):
    shutil.copy(mlp[0].parents[1] / CONFIG_FILE, tmp_path)
    with pytest.raises(ConfigError, match=r"RUN must be <out>/<method>/seed-<s>"):
        load_run(tmp_path / place, trust=True)


def test_a_run_without_a_checkpoint(mlp, tmp_path):
    shutil.copy(mlp[0].parents[1] / CONFIG_FILE, tmp_path)
    with pytest.raises(DataFileError, match=r"last.ckpt does not exist: the training of learned with seed 3 has not"):
        load_run(tmp_path / "learned" / "seed-3", trust=True)


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
    shutil.copy(directory.parents[1] / CONFIG_FILE, tmp_path)
    path = here / CHECKPOINT
    if kind == "garbage":
        path.write_bytes(b"\x00\x80 nothing")
    elif kind == "half":
        whole = (directory / CHECKPOINT).read_bytes()
        path.write_bytes(whole[: len(whole) // 2])
    else:
        other = build(replace(chosen, backbone=Part("MLP", {"widths": [12, 9, 8]})), [], data=data, trust=True).module(
            "learned", 0
        )
        torch.save(CHECKPOINTS[kind](torch.load(directory / CHECKPOINT, weights_only=False), other), path)
    with pytest.raises(
        DataFileError, match=r"last\.ckpt (cannot be loaded: .|is not a checkpoint that can be loaded \(.)"
    ) as caught:
        load_run(here, trust=True)
    assert "\n" not in str(caught.value)


# --- writing and loading ---


@pytest.mark.parametrize(
    ("run", "convert", "epsilon"),
    [
        ("mlp", lock_network, 0.99),
        ("mlp", truncate_network, 0.0),
        ("cnn", truncate_network, 0.99),
        ("cnn", lock_network, 0.0),
        ("transformer", lock_network, 0.99),
        ("transformer", truncate_network, 0.99),
    ],
)
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
    fresh = build(run[2], [], data=run[3], trust=True).module("learned", 9)
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
    found = truncate_network(network, parts_of(data, 6), epsilon=0.0)
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


@pytest.mark.parametrize("convert", [lock_network, truncate_network])
def test_a_damaged_conversion_is_refused(mlp, tmp_path, convert):
    _, parts = written(mlp, tmp_path / "whole", convert)
    network = opened(mlp)[0]
    for damage in DAMAGES:
        here = shutil.copytree(tmp_path / "whole", tmp_path / damage / "here")
        DAMAGES[damage](here)
        with pytest.raises(DataFileError, match=r"here holds no conversion of this network: .") as caught:
            load_conversion(here, network, parts.sample)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("convert", [lock_network, truncate_network])
def test_a_conversion_of_another_network_is_refused(mlp, tmp_path, convert):
    _, parts = written(mlp, tmp_path, convert)
    for other in (nn.Linear(6, K), nn.Sequential(nn.Linear(6, 7), nn.Linear(7, K))):
        with pytest.raises(DataFileError, match="holds no conversion of this network"):
            load_conversion(tmp_path, other, parts.sample)


def contents(out):
    return {path.name: path.read_bytes() for path in out.iterdir() if not path.name.endswith(".partial")}


def test_what_was_written_stays_if_writing_fails(mlp, tmp_path, monkeypatch):
    found, _ = written(mlp, tmp_path)
    before = contents(tmp_path)

    def fails(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("safetensors.torch.save_file", fails)
    with pytest.raises(OutputError, match=r"cannot be written: .*No space left"):
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

    monkeypatch.setattr(os, "replace", killed)
    with pytest.raises(KeyboardInterrupt):
        write_conversion(found, tmp_path, {"note": "new"})
    monkeypatch.undo()
    with pytest.raises(DataFileError, match="holds no conversion"):
        load_conversion(tmp_path, opened(mlp)[0], parts.sample)
    write_conversion(found, tmp_path, {})
    assert same_state(load_conversion(tmp_path, opened(mlp)[0], parts.sample), found.network)
