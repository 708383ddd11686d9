"""What an ETFLinear layer shares with others: optimisers, states, transformers, compilers and lower precision."""

from __future__ import annotations

import copy
import math
import pickle

import pytest
import torch
from torch import nn

from tightframe.nn import ETFLinear

from .test_linear import STORAGES, build, draw, learned, storages


def fixed(layer):
    """Return copies of what no training may move."""
    kept = {name: p for name, p in layer.named_parameters() if name not in ("bias", "log_scale")}
    return {name: tensor.detach().clone() for name, tensor in [*kept.items(), *layer.named_buffers()]}


class TestLocked:
    @learned
    @storages
    @pytest.mark.parametrize("unfrozen", [False, True], ids=["", "unfrozen"])
    def test_bit_identical_after_steps_with_momentum_and_decay(self, storage, learn_scale, unfrozen):
        layer = build(storage, learn_scale=learn_scale)
        model = nn.Sequential(nn.Linear(5, 6), nn.ReLU(), layer)
        if unfrozen:
            model.requires_grad_()
        before, bias, weight = fixed(layer), layer.bias.detach().clone(), layer.weight.detach().clone()
        for optimizer in (
            torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=0.1),
            torch.optim.AdamW(model.parameters(), lr=0.1, weight_decay=0.1),
        ):
            for seed in range(3):
                optimizer.zero_grad()
                model(draw(8, 5, seed=seed)).square().sum().backward()
                optimizer.step()
        after = fixed(layer)
        assert before.keys() == after.keys()
        assert before
        assert all(torch.equal(before[name], after[name]) for name in before)
        assert not torch.equal(layer.bias, bias)
        assert torch.equal(layer.weight, weight) is not learn_scale

    def test_the_dense_weight_is_a_frozen_parameter(self):
        layer = ETFLinear(6, 4)
        assert isinstance(layer, nn.Linear)
        assert isinstance(layer.weight, nn.Parameter)
        assert not layer.weight.requires_grad
        assert set(layer.state_dict()) == set(nn.Linear(6, 4).state_dict())

    @storages
    def test_reset_brings_the_simplex_back(self, storage):
        layer = build(storage, learn_scale=True)
        before, bias, scale = fixed(layer), layer.bias.detach().clone(), layer.scale.item()
        with torch.no_grad():
            for tensor in (*layer.parameters(), *layer.buffers()):
                tensor.zero_()
        layer.reset_parameters()
        assert all(torch.equal(value, before[name]) for name, value in fixed(layer).items())
        assert layer.scale.item() == scale
        assert layer.bias.abs().max() <= bias.new_tensor(1 / math.sqrt(6))
        assert layer.bias.abs().min() > 0

    def test_reset_leaves_an_aligned_simplex(self):
        layer = ETFLinear.from_linear(nn.Linear(6, 4), kind="aligned")
        before = layer.weight.clone()
        layer.reset_parameters()
        assert torch.equal(layer.weight, before)


class TestState:
    KEYS = {  # noqa: RUF012
        "dense": ({"weight", "bias"}, {"simplex", "bias", "log_scale"}),
        "implicit": ({"bias", "length"}, {"bias", "log_scale", "length"}),
    }

    @learned
    @storages
    def test_round_trip(self, storage, learn_scale):
        one, other = (build(storage, learn_scale=learn_scale, seed=3) for _ in range(2))
        with torch.no_grad():
            for p in one.parameters():
                if p.requires_grad:
                    p.add_(1)
        state = one.state_dict()
        assert set(state) == self.KEYS[storage][learn_scale]
        other.load_state_dict(state)
        x = draw(3, 6)
        assert torch.equal(one(x), other(x))

    def test_dense_takes_any_weight_whatever_the_seed(self):
        one, other = ETFLinear(6, 4, seed=1), ETFLinear(6, 4, seed=2)
        other.load_state_dict(one.state_dict())
        assert torch.equal(one.weight, other.weight)
        linear = nn.Linear(6, 4)
        other.load_state_dict(linear.state_dict())
        assert torch.equal(other.weight, linear.weight)
        assert not other.weight.requires_grad
        linear.load_state_dict(one.state_dict())
        assert torch.equal(linear(draw(3, 6)), one(draw(3, 6)))

    def test_states_of_other_storages_lack_keys(self):
        dense, implicit = build("dense"), build("implicit")
        with pytest.raises(RuntimeError, match=r"Missing key.*length(.|\n)*Unexpected key.*weight"):
            implicit.load_state_dict(dense.state_dict())
        with pytest.raises(RuntimeError, match=r"Missing key.*weight(.|\n)*Unexpected key.*length"):
            dense.load_state_dict(implicit.state_dict())

    def test_a_state_brings_its_gain(self):
        saved, other = build("implicit", gain=1.5), build("implicit", gain=2.0)
        other.load_state_dict(saved.state_dict())
        assert torch.equal(other.weight, saved.weight)

    @learned
    @storages
    @pytest.mark.parametrize("assign", [False, True], ids=["copied", "assigned"])
    def test_built_on_meta_then_loaded(self, storage, learn_scale, assign):
        wanted = build(storage, learn_scale=learn_scale)
        with torch.device("meta"):
            layer = build(storage, learn_scale=learn_scale)
        assert all(tensor.is_meta for tensor in (*layer.parameters(), *layer.buffers()))
        state = wanted.state_dict()
        if not assign:
            layer.to_empty(device="cpu")
            with torch.no_grad():
                for buffer in layer.buffers():
                    buffer.zero_()
        layer.load_state_dict(state, assign=assign)
        assert torch.equal(layer(draw(3, 6)), wanted(draw(3, 6)))
        assert torch.equal(layer.weight, wanted.weight)

    @storages
    def test_cast_copy_and_pickle(self, storage):
        layer = build(storage, gain=1.25)
        for other in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
            assert torch.equal(other(draw(3, 6)), layer(draw(3, 6)))
        layer.load_state_dict(build(storage, gain=1.25).half().state_dict())
        assert layer.weight.dtype == torch.float32
        double = copy.deepcopy(layer).double()
        torch.testing.assert_close(double(draw(3, 6).double()).float(), layer(draw(3, 6)))
        assert double.weight.dtype == torch.float64

    @storages
    def test_repr(self, storage):
        text = repr(build(storage, gain=2.0))
        assert (
            f"in_features=6, out_features=4, bias=True, kind='{STORAGES[storage]}', gain=2, storage='{storage}'" in text
        )
        assert "gain=learned" in repr(build(storage, learn_scale=True))


class TestInTransformer:
    @learned
    @storages
    def test_eval_is_train_without_dropout(self, storage, learn_scale, monkeypatch):
        block = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True)
        for name in ("linear1", "linear2"):
            options = {"kind": STORAGES[storage], "storage": storage, "learn_scale": learn_scale}
            setattr(block, name, ETFLinear.from_linear(getattr(block, name), **options))
        x, taken = draw(3, 5, 8), []
        wanted = block(x).detach()
        fast_path = torch._transformer_encoder_layer_fwd
        monkeypatch.setattr(torch, "_transformer_encoder_layer_fwd", lambda *a: taken.append(1) or fast_path(*a))
        block.eval()
        torch.testing.assert_close(block(x), wanted, rtol=0, atol=1e-5)
        with torch.no_grad():
            torch.testing.assert_close(block(x), wanted, rtol=0, atol=1e-5)
        assert taken == [1]  # it went past forward


class TestCompiled:
    @learned
    @storages
    @pytest.mark.parametrize("backend", ["eager", "aot_eager"])
    def test_in_one_graph(self, storage, learn_scale, backend):
        torch.compiler.reset()
        layer = build(storage, learn_scale=learn_scale)
        compiled = torch.compile(layer, fullgraph=True, backend=backend)
        grads = []
        for call in (layer, compiled):
            x = draw(3, 6).requires_grad_()
            layer.zero_grad()
            call(x).square().sum().backward()
            grads.append([x.grad, *(p.grad for p in layer.parameters() if p.grad is not None)])
        assert len(grads[0]) == 2 + learn_scale
        for mine, theirs in zip(*grads, strict=True):
            torch.testing.assert_close(mine, theirs)


class TestPrecision:
    @learned
    def test_stored_products_follow_autocast_as_a_linear_layer(self, learn_scale):
        layer = build("dense", learn_scale=learn_scale)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            found, wanted = layer(draw(3, 6)), layer.export()(draw(3, 6))
        assert found.dtype == wanted.dtype == torch.bfloat16
        torch.testing.assert_close(found, wanted, rtol=0.02, atol=0.02)

    @learned
    def test_implicit_products_keep_the_dtype_and_compute_in_float32(self, learn_scale):
        layer = build("implicit", learn_scale=learn_scale)
        x = draw(3, 6)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            inside, weight = layer(x), layer.weight
        assert inside.dtype == torch.float32
        assert torch.equal(inside, layer(x))
        assert torch.equal(weight, layer.weight)
        half = x.bfloat16()
        assert torch.equal(layer(half), layer(half.float()).bfloat16())

    @storages
    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
    def test_a_module_in_half_precision(self, storage, dtype):
        layer = build(storage)
        half = copy.deepcopy(layer).to(dtype)
        found = half(draw(3, 6).to(dtype))
        assert found.dtype == half.weight.dtype == dtype
        torch.testing.assert_close(found.float(), layer(draw(3, 6)), rtol=0.05, atol=0.05)
