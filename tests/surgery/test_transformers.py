from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from tightframe.errors import ArgumentError, NonFiniteError, ShapeError
from tightframe.frames import nearest_simplex_weight
from tightframe.nn import variance_preserving_gain
from tightframe.surgery import etf_transformer_


class Conv1D(nn.Module):
    def __init__(self, nf, nx):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(nx, nf))
        self.bias = nn.Parameter(torch.zeros(nf))


def names(**modules):
    """Nested modules from dotted names, with _ for the dots."""
    root = nn.Module()
    for name, module in modules.items():
        *path, last = name.split("__")
        at = root
        for part in path:
            if part not in at._modules:
                at.add_module(part, nn.Module())
            at = at._modules[part]
        at.add_module(last, module)
    return root


def attention(prefix, dense="output__dense"):
    keys = ("self__query", "self__key", "self__value", dense)
    return {f"{prefix}__{key}": nn.Linear(8, 8) for key in keys}


def bert(block):
    own = f"bert__encoder__layer__{block}"
    return {
        **attention(f"{own}__attention"),
        f"{own}__intermediate__dense": nn.Linear(8, 12),
        f"{own}__output__dense": nn.Linear(12, 8),
    }


def gpt2(block):
    own = f"transformer__h__{block}"
    return {
        f"{own}__attn__c_attn": Conv1D(24, 8),
        f"{own}__attn__c_proj": Conv1D(8, 8),
        f"{own}__mlp__c_fc": Conv1D(12, 8),
        f"{own}__mlp__c_proj": Conv1D(8, 12),
    }


def llama(block):
    own = f"model__layers__{block}"
    return {
        **{f"{own}__self_attn__{key}_proj": nn.Linear(8, 8, bias=False) for key in "qkvo"},
        **{f"{own}__mlp__{key}_proj": nn.Linear(8, 12, bias=False) for key in ("gate", "up")},
        f"{own}__mlp__down_proj": nn.Linear(12, 8, bias=False),
    }


def timm(block):
    own = f"blocks__{block}"
    return {
        f"{own}__attn__qkv": nn.Linear(8, 24),
        f"{own}__attn__proj": nn.Linear(8, 8),
        f"{own}__mlp__fc1": nn.Linear(8, 12),
        f"{own}__mlp__fc2": nn.Linear(12, 8),
    }


MODELS = {
    "bert": (bert, {"bert__pooler__dense": nn.Linear(8, 8), "classifier": nn.Linear(8, 3)}),
    "gpt2": (gpt2, {"lm_head": nn.Linear(8, 20)}),
    "llama": (llama, {"lm_head": nn.Linear(8, 20)}),
    "timm": (timm, {"head": nn.Linear(8, 3)}),
}
W1 = {
    "bert": ["intermediate.dense"],
    "gpt2": ["mlp.c_fc"],
    "llama": ["mlp.gate_proj", "mlp.up_proj"],
    "timm": ["mlp.fc1"],
}
W2 = {"bert": ["output.dense"], "gpt2": ["mlp.c_proj"], "llama": ["mlp.down_proj"], "timm": ["mlp.fc2"]}
PLACE = {"bert": "bert.encoder.layer", "gpt2": "transformer.h", "llama": "model.layers", "timm": "blocks"}


def build(kind, blocks=2):
    torch.manual_seed(0)
    block, rest = MODELS[kind]
    parts = {key: value for index in range(blocks) for key, value in block(index).items()}
    return names(**parts, **copy.deepcopy(rest))


def encoder(layers=2, activation="relu", **options):
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(8, 2, 12, dropout=0.0, activation=activation, batch_first=True, **options)
    return nn.TransformerEncoder(layer, layers, enable_nested_tensor=not layer.norm_first)


def frozen(model):
    return [name for name, p in model.named_parameters() if not p.requires_grad]


models = pytest.mark.parametrize("kind", MODELS)


class TestFound:
    @models
    @pytest.mark.parametrize("which", ["w1", "w2", "both"])
    def test_by_the_names_of_libraries(self, kind, which):
        model = build(kind)
        wanted = {"w1": W1[kind], "w2": W2[kind], "both": W1[kind] + W2[kind]}[which]
        expected = [f"{PLACE[kind]}.{block}.{name}" for block in (0, 1) for name in wanted]
        before = {name: p.detach().clone() for name, p in model.named_parameters()}
        locks = etf_transformer_(model, which)
        assert [lock.name for lock in locks] == expected
        assert frozen(model) == [f"{name}.weight" for name in (n for n, _ in model.named_modules()) if name in expected]
        changed = {name for name, p in model.named_parameters() if not torch.equal(p, before[name])}
        assert changed == {f"{name}.weight" for name in expected}

    def test_in_encoder_and_decoder_layers(self):
        model = nn.Transformer(8, 2, 1, 2, 12, batch_first=True)
        assert [lock.name for lock in etf_transformer_(model, "w2")] == [
            "encoder.layers.0.linear2",
            "decoder.layers.0.linear2",
            "decoder.layers.1.linear2",
        ]
        assert [lock.name for lock in etf_transformer_(nn.TransformerDecoderLayer(8, 2, 12))] == ["linear1", "linear2"]

    def test_towers_of_different_widths(self):
        parts = {
            "text__layers__0__fc1": nn.Linear(8, 12),
            "text__layers__0__fc2": nn.Linear(12, 8),
            "image__layers__0__fc1": nn.Linear(6, 24),
            "image__layers__0__fc2": nn.Linear(24, 6),
            "audio__layers__0__linear1": nn.Linear(5, 7),
            "audio__layers__0__linear2": nn.Linear(7, 5),
        }
        assert [lock.shape for lock in etf_transformer_(names(**parts), "w1")] == [(12, 8), (24, 6), (7, 5)]

    def test_square_ones_by_their_names(self):
        model = names(a__0__fc1=nn.Linear(8, 8), a__0__fc2=nn.Linear(8, 8))
        assert [lock.name for lock in etf_transformer_(model)] == ["a.0.fc1", "a.0.fc2"]

    def test_attention_in_the_name_of_the_model_does_not_matter(self):
        model = names(attention_net__0__mlp__fc1=nn.Linear(8, 12), attention_net__0__mlp__fc2=nn.Linear(12, 8))
        assert len(etf_transformer_(model)) == 2

    def test_by_an_own_pattern(self):
        model = nn.ModuleDict(
            {
                "enter": nn.ModuleList([nn.Linear(8, 12), nn.Linear(8, 12)]),
                "leave": nn.ModuleList([nn.Linear(12, 8), nn.Linear(12, 8)]),
            }
        )
        locks = etf_transformer_(model, pattern={"w1": r"enter\.(\d+)", "w2": r"leave\.(\d+)"})
        assert [lock.name for lock in locks] == ["enter.0", "leave.0", "enter.1", "leave.1"]
        gated = names(b__0__a=nn.Linear(8, 12), b__0__g=nn.Linear(8, 12), b__0__o=nn.Linear(12, 8))
        locks = etf_transformer_(gated, "w1", pattern={"w1": [r"(.+)\.g", r"(.+)\.a"], "w2": r"(.+)\.o"})
        assert [lock.name for lock in locks] == ["b.0.g", "b.0.a"]

    def test_some_blocks_with_the_draws_that_they_have_among_all(self):
        whole, some = encoder(3), encoder(3)
        etf_transformer_(whole)
        locks = etf_transformer_(some, blocks=(2, 0))
        assert [lock.name for lock in locks] == [f"layers.{i}.linear{j}" for i in (0, 2) for j in (1, 2)]
        for lock in locks:
            assert torch.equal(some.get_submodule(lock.name).weight, whole.get_submodule(lock.name).weight)
        assert some.layers[1].linear1.weight.requires_grad


class TestWeights:
    def test_every_draw_is_its_own_and_comes_from_the_seed(self):
        drawn = {}
        for seed in (0, 0, 1):
            model = names(**llama(0), **llama(1))
            locks = etf_transformer_(model, seed=seed)
            drawn.setdefault(seed, []).append([model.get_submodule(lock.name).weight for lock in locks])
        assert all(torch.equal(a, b) for a, b in zip(*drawn[0], strict=True))
        weights = [w if w.shape == (12, 8) else w.T for w in (*drawn[0][0], *drawn[1][0])]
        for i, a in enumerate(weights):
            assert not any(torch.allclose(a, b, atol=0.1) for b in weights[:i])

    def test_gains(self):
        assert {lock.gain for lock in etf_transformer_(encoder())} == {variance_preserving_gain("gelu")}
        locks = etf_transformer_(encoder(), activation="relu", gain="variance-preserving")
        assert {lock.gain for lock in locks} == {variance_preserving_gain("relu")}
        assert {lock.gain for lock in etf_transformer_(encoder(), gain="unit")} == {1.0}
        assert {lock.gain for lock in etf_transformer_(encoder(), gain=0.5)} == {0.5}
        model = encoder()
        norms = [model.get_submodule(f"layers.{i}.linear{j}").weight.detach().norm() for i in (0, 1) for j in (1, 2)]
        for lock, norm in zip(etf_transformer_(model, gain="match-init"), norms, strict=True):
            torch.testing.assert_close(model.get_submodule(lock.name).weight.detach().norm(), norm)

    def test_aligned(self):
        model = encoder()
        before = {f"linear{j}": getattr(model.layers[0], f"linear{j}").weight.detach().clone() for j in (1, 2)}
        etf_transformer_(model, kind="aligned", blocks=[0])
        for name, weight in before.items():
            wanted = nearest_simplex_weight(weight.double()).float()
            torch.testing.assert_close(getattr(model.layers[0], name).weight.detach(), wanted)

    def test_the_last_layer_is_no_classifier(self):
        model = names(a__0__fc1=nn.Linear(8, 5), a__0__fc2=nn.Linear(5, 8))  # fc2 is the last: 5 < 8 - 1
        W = model.a.get_submodule("0.fc2").weight
        etf_transformer_(model, "w2", gain="unit")
        gram = (W.T @ W).detach()
        torch.testing.assert_close(gram, (5 * torch.eye(5) - 1) / 4, rtol=0, atol=1e-5)

    def test_what_is_lost_before_a_norm_is_nothing(self):
        # Layer norm without its affine map has no mean, so the first weight loses no input: its kernel is the ones.
        model = encoder(1)
        etf_transformer_(model, "w1")
        W = model.layers[0].linear1.weight.detach()
        torch.testing.assert_close(W.sum(dim=1), torch.zeros(12), rtol=0, atol=1e-5)
        h = nn.functional.layer_norm(torch.randn(100, 8), (8,))
        ratio = (h @ W.T).norm(dim=1) / h.norm(dim=1)
        torch.testing.assert_close(ratio, torch.full_like(ratio, float(ratio[0])), rtol=1e-4, atol=0)


class TestForward:
    @pytest.mark.parametrize("activation", ["relu", "gelu"])
    @pytest.mark.parametrize("norm_first", [False, True])
    @pytest.mark.parametrize("which", ["w1", "w2", "both"])
    def test_eval_is_train_in_pytorchs_layer(self, activation, norm_first, which, monkeypatch):
        model = encoder(1, activation, norm_first=norm_first).layers[0]
        x = torch.randn(3, 5, 8)
        etf_transformer_(model, which)
        trained = model.train()(x)
        fused, calls = torch._transformer_encoder_layer_fwd, []
        monkeypatch.setattr(torch, "_transformer_encoder_layer_fwd", lambda *args: calls.append(1) or fused(*args))
        with torch.no_grad():  # where the fused kernel runs, which reads the weights past the layers
            torch.testing.assert_close(model.eval()(x), trained.detach(), rtol=1e-5, atol=1e-5)
        assert calls
        assert model.linear1.weight.requires_grad == (which == "w2")

    @pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
    @pytest.mark.parametrize("masked", [False, True])
    def test_eval_is_train_in_pytorchs_encoder(self, masked):
        model = encoder(2)
        x = torch.randn(3, 5, 8)
        mask = torch.arange(5) >= torch.tensor([[5], [3], [2]]) if masked else None
        plain = model.eval()(x)
        etf_transformer_(model)
        trained = model.train()(x, src_key_padding_mask=mask)
        with torch.no_grad():
            found = model.eval()(x, src_key_padding_mask=mask)
        keep = torch.ones(3, 5, dtype=torch.bool) if mask is None else ~mask
        torch.testing.assert_close(found[keep], trained.detach()[keep], rtol=1e-5, atol=1e-5)
        assert not torch.allclose(found[0], plain[0], atol=0.1)

    def test_training_moves_all_but_the_fixed_weights(self):
        model = encoder(2)
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.1, weight_decay=0.1)
        x = torch.randn(3, 5, 8)
        model(x).square().sum().backward()
        optimizer.step()
        locks = etf_transformer_(model, optimizer=optimizer)
        before = {name: p.detach().clone() for name, p in model.named_parameters()}
        for _ in range(3):
            optimizer.zero_grad()
            (model(x) - x.flip(0)).square().sum().backward()
            optimizer.step()
        still = {name for name, p in model.named_parameters() if torch.equal(p, before[name])}
        assert still == {f"{lock.name}.weight" for lock in locks}
        assert len(optimizer.param_groups[0]["params"]) == len(before) - 4
        assert [lock.changed for lock in etf_transformer_(model)] == [False] * 4


class TestRefusals:
    def refuse(self, model, error=ArgumentError, match="", **options):
        before = copy.deepcopy(model.state_dict())
        with pytest.raises(error, match=match):
            etf_transformer_(model, **options)
        assert all(
            torch.equal(before[key].nan_to_num(), value.nan_to_num()) for key, value in model.state_dict().items()
        )
        assert frozen(model) == []

    @pytest.mark.parametrize(
        "bad", [{"which": "w3"}, {"kind": "class-rank"}, {"seed": -1}, {"gain": "big"}, {"gain": 0.0}, {"optimizer": 1}]
    )
    def test_options(self, bad):
        self.refuse(encoder(), match=next(iter(bad)), **bad)

    @pytest.mark.parametrize("blocks", [[2], [-1], []])
    def test_blocks(self, blocks):
        self.refuse(encoder(), match=r"blocks must be some of 0\.\.1.*layers\.0", blocks=blocks)

    @pytest.mark.parametrize("pattern", [{"w1": "a"}, "a", {"w1": "(", "w2": "b"}, {"w1": "a", "w2": [3]}])
    def test_patterns(self, pattern):
        self.refuse(encoder(), match="pattern must", pattern=pattern)

    def test_nothing_matches(self):
        model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 4))
        self.refuse(model, match=r"no feed-forward layers.*0 \(8, 4\), 2 \(4, 8\)")
        self.refuse(encoder(), match="no feed-forward", pattern={"w1": "(.+)fc1", "w2": "(.+)fc2"})
        self.refuse(nn.ReLU(), match="linear layers are none")

    def test_half_a_block(self):
        model = names(b__0__fc1=nn.Linear(8, 12), b__0__fc2=nn.Linear(12, 8), b__1__fc1=nn.Linear(8, 12))
        self.refuse(model, match=r"must have one layer for.*fc2', got none beside \['b\.1\.fc1'\]")
        gated = names(b__0__up_proj=nn.Linear(8, 12), b__0__down_proj=nn.Linear(12, 8))
        self.refuse(gated, match=r"gate_proj', got none")

    def test_two_candidates_in_a_block(self):
        model = names(
            b__0__fc1=nn.Linear(8, 12),
            b__0__fc2=nn.Linear(12, 8),
            b__0__linear1=nn.Linear(8, 12),
            b__0__linear2=nn.Linear(12, 8),
        )
        self.refuse(model, match=r"'b\.0' has two candidates.*b\.0\.")
        nested = names(b__0__fc1=nn.Linear(8, 12), b__0__fc2=nn.Linear(12, 8), b__0__mlp__fc1=nn.Linear(8, 12))
        nested.b.get_submodule("0.mlp").add_module("fc2", nn.Linear(12, 8))
        self.refuse(nested, match="two candidates")
        around = names(
            b__0__fc1=nn.Linear(8, 12), b__0__fc2=nn.Linear(12, 8), fc1=nn.Linear(8, 12), fc2=nn.Linear(12, 8)
        )
        self.refuse(around, match="two candidates")
        wide = {"w1": r"(b\.\d)\..*1", "w2": r"(b\.\d)\..*2"}
        self.refuse(model, match=r"got \['b\.0\.fc1', 'b\.0\.linear1'\]", pattern=wide)

    def test_attention(self):
        for place in ("b__0__attn", "b__0__self_attention", "b__0__layer__0__SelfAttention"):
            model = names(**{f"{place}__fc1": nn.Linear(8, 12), f"{place}__fc2": nn.Linear(12, 8)})
            self.refuse(model, match=r"belongs to attention; pass a pattern")
        pattern = {"w1": r"(.+)\.attention\.self\.query", "w2": r"(.+)\.attention\.output\.dense"}
        self.refuse(build("bert"), match=r"'bert\.encoder\.layer\.0\.attention\.self\.query'", pattern=pattern)

    @pytest.mark.parametrize(
        ("fc1", "fc2"), [((8, 12), (12, 6)), ((8, 12), (10, 8)), ((12, 8), (12, 8)), ((8, 12), (8, 12))]
    )
    def test_shapes_that_disagree(self, fc1, fc2):
        model = names(a__0__fc1=nn.Linear(*fc1), a__0__fc2=nn.Linear(*fc2))
        self.refuse(model, ShapeError, match=r"from d to f and back.*'a\.0\.fc1'")

    def test_gates_that_disagree(self):
        model = names(**llama(0))
        model.model.get_submodule("layers.0.mlp").up_proj = nn.Linear(8, 13)
        self.refuse(model, ShapeError, match="from d to f")

    def test_a_layer_that_cannot_be_locked_leaves_the_others_alone(self):
        model = build("timm")
        last = model.get_submodule("blocks.1.mlp.fc2")
        last.weight.data[0, 0] = torch.inf
        self.refuse(model, NonFiniteError, match=r"blocks\.1\.mlp\.fc2")
        nn.init.zeros_(last.weight)
        self.refuse(model, match=r"'blocks\.1\.mlp\.fc2' must have vertices", kind="aligned")
        self.refuse(model, match=r"'blocks\.1\.mlp\.fc2' must not be zero", gain="match-init")
        last.weight = model.get_submodule("blocks.0.mlp.fc2").weight
        self.refuse(model, match="tied")
        self.refuse(nn.DataParallel(encoder()), match="wrapped")
