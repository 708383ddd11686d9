"""Models of Hugging Face's transformers, built from a configuration: nothing is downloaded."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from tightframe.errors import ArgumentError
from tightframe.moments import ClassMoments
from tightframe.surgery import etf_transformer_, lock_to_etf, nearest_class_mean_linear, parameter_report, truncate

transformers = pytest.importorskip("transformers")

SIZES = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24}
TOKENS = torch.randint(20, (4, 6), generator=torch.Generator().manual_seed(0))
LABELS = torch.tensor([0, 1, 0, 1])


def bert():
    config = transformers.BertConfig(vocab_size=20, max_position_embeddings=8, **SIZES)
    return transformers.BertForSequenceClassification(config), {"input_ids": TOKENS, "labels": LABELS}


def gpt2():
    config = transformers.GPT2Config(vocab_size=20, n_positions=8, n_embd=16, n_layer=2, n_head=2, n_inner=24)
    return transformers.GPT2LMHeadModel(config), {"input_ids": TOKENS, "labels": TOKENS}


def vit():
    config = transformers.ViTConfig(image_size=8, patch_size=4, **SIZES)
    images = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    return transformers.ViTForImageClassification(config), {"pixel_values": images, "labels": LABELS}


def llama():
    config = transformers.LlamaConfig(vocab_size=20, num_key_value_heads=1, max_position_embeddings=8, **SIZES)
    return transformers.LlamaForCausalLM(config), {"input_ids": TOKENS, "labels": TOKENS}


MODELS = {"bert": (bert, 2), "gpt2": (gpt2, 2), "vit": (vit, 2), "llama": (llama, 3)}


@pytest.fixture(params=MODELS)
def built(request):
    torch.manual_seed(0)
    build, layers = MODELS[request.param]
    model, inputs = build()
    return model, inputs, layers


def linear_shape(layer):
    shape = tuple(layer.weight.shape)
    return shape[::-1] if type(layer).__name__ == "Conv1D" else shape


class TestConversion:
    @pytest.mark.parametrize("which", ["w1", "w2", "both"])
    def test_the_feed_forward_layers_and_no_others(self, built, which):
        model, _, layers = built
        locks = etf_transformer_(model, which)
        per_block = {"w1": layers - 1, "w2": 1, "both": layers}[which]
        assert len(locks) == 2 * per_block
        shapes = [linear_shape(model.get_submodule(lock.name)) for lock in locks]
        block = {"w1": [(24, 16)] * (layers - 1), "w2": [(16, 24)]}
        assert shapes == 2 * (block["w1"] + block["w2"] if which == "both" else block[which])
        frozen = {name for name, p in model.named_parameters() if not p.requires_grad}
        assert frozen == {f"{lock.name}.weight" for lock in locks}
        assert not any("attention." in lock.name or "attn" in lock.name for lock in locks)
        for lock in locks:
            layer = model.get_submodule(lock.name)
            W = layer.weight.detach().T if type(layer).__name__ == "Conv1D" else layer.weight.detach()
            V = W.T if W.shape[0] > W.shape[1] else W
            torch.testing.assert_close(V @ V.T / lock.gain**2, (16 * torch.eye(16) - 1) / 15, rtol=0, atol=1e-5)

    def test_trains_saves_and_comes_back(self, built, tmp_path):
        model, inputs, _ = built
        model.train()
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0.1)
        model(**inputs).loss.backward()
        optimizer.step()
        locks = etf_transformer_(model, optimizer=optimizer)
        before = {name: p.detach().clone() for name, p in model.named_parameters()}
        for _ in range(2):
            optimizer.zero_grad()
            model(**inputs).loss.backward()
            optimizer.step()
        fixed = {f"{lock.name}.weight" for lock in locks}
        unmoved = {name for name, p in model.named_parameters() if torch.equal(p, before[name])}
        assert fixed <= unmoved
        assert not any("bias" not in name and "mlp" in name for name in unmoved - fixed)

        model.save_pretrained(tmp_path)
        again = type(model).from_pretrained(tmp_path).eval()
        with torch.no_grad():
            torch.testing.assert_close(again(**inputs).logits, model.eval()(**inputs).logits)
        for lock in locks:
            assert torch.equal(again.get_submodule(lock.name).weight, model.get_submodule(lock.name).weight)
        # What is fixed is not in the file: it is fixed again by locking once more, which leaves the values.
        locks = etf_transformer_(again)
        assert [(lock.distance, lock.changed) for lock in locks] == [(0.0, True)] * len(locks)
        assert parameter_report(again).trainable == parameter_report(model).trainable

    def test_aligned(self, built):
        model, inputs, _ = built
        locks = etf_transformer_(model, "w2", kind="aligned")
        assert all(0 < lock.distance < 1 for lock in locks)
        assert torch.isfinite(model(**inputs).loss)


class TestLock:
    def test_tied_embeddings_are_refused(self):
        model, _ = gpt2()
        with pytest.raises(ArgumentError, match=r"lm_head\.weight is tied: transformer\.wte\.weight"):
            lock_to_etf(model, "lm_head")

    def test_a_real_conv1d(self):
        model, _ = gpt2()
        name = "transformer.h.0.attn.c_attn"
        lock = lock_to_etf(model, name)
        W = model.get_submodule(name).weight.detach()  # (16, 48): sixteen vertices in 48 dimensions
        torch.testing.assert_close(W @ W.T / lock.gain**2, (16 * torch.eye(16) - 1) / 15, rtol=0, atol=1e-5)


class TestTruncation:
    @pytest.mark.parametrize("build", [bert, vit])
    def test_stops_after_a_block(self, build):
        torch.manual_seed(0)
        model, inputs = build()
        model.eval()
        del inputs["labels"]
        block = next(name for name, module in model.named_modules() if name.endswith(".0") and list(module.children()))
        with torch.no_grad():
            hidden = model(**inputs, output_hidden_states=True).hidden_states[1]
        moments = ClassMoments.from_samples(hidden[:, 0], LABELS, 2)

        class FirstToken(nn.Module):
            def forward(self, tokens):
                return tokens[:, 0]

        classifier = nn.Sequential(FirstToken(), nearest_class_mean_linear(moments))
        truncated = truncate(model, block, classifier, inputs, tap="pre")
        torch.testing.assert_close(truncated(**inputs), classifier(hidden))
        whole, kept = parameter_report(model).trainable, parameter_report(truncated.trunk).trainable
        one_block = parameter_report(model.get_submodule(block)).trainable
        assert kept <= whole - one_block
