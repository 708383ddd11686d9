"""Networks to look into, and data for them."""

from __future__ import annotations

import torch
from torch import nn

from tests.problems import scattered, simplex

K = 3
PROBLEM = scattered(2 * simplex(K, 4), [20, 15, 12], 0.7)
INPUTS, LABELS = PROBLEM.features.float(), PROBLEM.labels


def network(dtype=torch.float32):
    torch.manual_seed(0)
    layers = nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.5), nn.Linear(8, 5), nn.Tanh(), nn.Linear(5, K)
    return nn.Sequential(*layers).to(dtype)


def batches(size=10, inputs=INPUTS, labels=LABELS):
    return list(zip(inputs.split(size), labels.split(size), strict=True))


def inputs_of(model, layer, inputs=INPUTS):
    """What goes into a layer of a sequential model in eval mode, without any hook."""
    with torch.no_grad():
        return model.eval()[:layer](inputs)


class Counting(nn.Module):
    """A model that counts its forward passes."""

    def __init__(self, model):
        super().__init__()
        self.model = model
        self.calls = 0

    def forward(self, inputs):
        self.calls += 1
        return self.model(inputs)


def hooks_of(model):
    return sum(len(module._forward_pre_hooks) for module in model.modules())


# --- networks whose representations are known without any hook ---

DEPTHS = ("pre", "post")


class Steps(nn.Sequential):
    """Layers one after the other."""

    def linear(self):
        return [i for i, m in enumerate(self) if isinstance(m, nn.Linear | nn.Conv2d)]

    def known(self, inputs, tap, reduce=lambda h: h.flatten(1)):
        """Features of each linear layer by name, found by running one module after the other."""
        values = [inputs]
        for module in self:
            values.append(module(values[-1].clone()).clone())  # an operation in place changes copies
        places = self.linear()
        after = {i: i + 1 if tap == "pre" else j for i, j in zip(places, [*places[1:], places[-1] + 1], strict=True)}
        return {str(i): reduce(values[place]) for i, place in after.items()}


def mlp(inplace=False):
    torch.manual_seed(1)
    return Steps(
        nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(inplace), nn.Linear(8, 5), nn.ReLU(inplace), nn.Linear(5, K)
    ).eval()


def cnn():
    torch.manual_seed(2)
    return Steps(
        *(nn.Unflatten(1, (1, 2, 2)), nn.Upsample(scale_factor=2), nn.Conv2d(1, 3, 3, padding=1), nn.BatchNorm2d(3)),
        *(nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(3, 5, 2), nn.ReLU(inplace=True), nn.Flatten(), nn.Linear(5, K)),
    ).eval()


class Encoder(nn.Module):
    """Two layers of ``nn.TransformerEncoder`` over five tokens made of an input's four numbers, and a padding mask."""

    def __init__(self, padded=False):
        super().__init__()
        torch.manual_seed(3)
        self.embed = nn.Parameter(torch.randn(5, 6))
        layer = nn.TransformerEncoderLayer(6, 2, 9, batch_first=True, activation="relu")
        self.encoder = nn.TransformerEncoder(layer, 2)
        self.head = nn.Linear(6, K)
        self.padded = padded
        for p in self.parameters():
            p.data += 0.1 * torch.randn(p.shape)
        self.eval()

    def tokens(self, inputs):
        return torch.cat([torch.ones(len(inputs), 1), inputs], dim=1).unsqueeze(2) * self.embed

    def mask(self, inputs):
        """The first token always, and those of the numbers up to the third if the first is negative."""
        keep = torch.ones(len(inputs), 5, dtype=torch.bool)
        keep[inputs[:, 0] < 0, 3:] = False
        return keep

    def forward(self, inputs):
        padding = ~self.mask(inputs) if self.padded else None
        return self.head(self.encoder(self.tokens(inputs), src_key_padding_mask=padding)[:, 0])

    def known(self, inputs, tap, reduce):
        x = self.tokens(inputs)
        padding = ~self.mask(inputs) if self.padded else None
        found = {}
        for i, layer in enumerate(self.encoder.layers):
            x = layer.norm1(x + layer.self_attn(x, x, x, key_padding_mask=padding, need_weights=False)[0])
            before = layer.linear1(x)
            wide = before.relu()
            narrow = layer.linear2(wide)
            if i:
                found["encoder.layers.0.linear2", "post"] = x
            x = layer.norm2(x + narrow)
            found[f"encoder.layers.{i}.linear1", "pre"] = before
            found[f"encoder.layers.{i}.linear1", "post"] = wide
            found[f"encoder.layers.{i}.linear2", "pre"] = narrow
        found["encoder.layers.1.linear2", "post"] = x[:, 0]
        found["head", "pre"] = found["head", "post"] = self.head(x[:, 0])
        order = [f"encoder.layers.{i}.linear{j}" for i in (0, 1) for j in (1, 2)]
        return {name: reduce(h) if (h := found[name, tap]).ndim == 3 else h for name in [*order, "head"]}


class Conv1D(nn.Module):
    """A linear map with its weight transposed, as Hugging Face's GPT-2 has it."""

    def __init__(self, outputs, inputs):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(inputs, outputs))
        self.bias = nn.Parameter(torch.randn(outputs))

    def forward(self, x):
        return x @ self.weight + self.bias


class Block(nn.Module):
    """A block of a GPT, its parts defined in the opposite order of their use."""

    def __init__(self, width=6):
        super().__init__()
        self.mlp = nn.Sequential(Conv1D(2 * width, width), nn.GELU(), Conv1D(width, 2 * width))
        self.ln_2 = nn.LayerNorm(width)
        self.attn_out = Conv1D(width, width)
        self.attn_in = Conv1D(3 * width, width)
        self.ln_1 = nn.LayerNorm(width)

    def forward(self, x):
        return self.parts(x)["block"]

    def parts(self, x):
        qkv = self.attn_in(n := self.ln_1(x))
        q, k, v = qkv.chunk(3, dim=-1)
        mixed = nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + (out := self.attn_out(mixed))
        wide = self.mlp[0](m := self.ln_2(x))
        narrow = self.mlp[2](active := self.mlp[1](wide))
        pre = {"attn_in": qkv, "attn_out": out, "mlp.0": wide, "mlp.2": narrow, "block": x + narrow}
        return {**pre, "to attn_in": n, "to attn_out": mixed, "to mlp.0": m, "to mlp.2": active}


class GPT(nn.Module):
    """Two blocks over four tokens; the prediction is made of the last one."""

    ORDER = ("attn_in", "attn_out", "mlp.0", "mlp.2")

    def __init__(self):
        super().__init__()
        torch.manual_seed(4)
        self.head = nn.Linear(6, K)
        self.blocks = nn.ModuleList([Block(), Block()])
        self.embed = nn.Parameter(torch.randn(4, 6))
        self.eval()

    def forward(self, inputs):
        x = inputs.unsqueeze(2) * self.embed
        for block in self.blocks:
            x = block(x)
        return self.head(x[:, -1])

    def known(self, inputs, tap, reduce):
        x = inputs.unsqueeze(2) * self.embed
        pre, given = {}, {}
        for i, block in enumerate(self.blocks):
            parts = block.parts(x)
            pre |= {f"blocks.{i}.{name}": parts[name] for name in self.ORDER}
            given |= {f"blocks.{i}.{name}": parts[f"to {name}"] for name in self.ORDER}
            x = parts["block"]
        pre["head"], given["head"] = self.head(x[:, -1]), x[:, -1]
        if tap == "post":
            pre = dict(zip(pre, [*list(given.values())[1:], pre["head"]], strict=True))
        return {name: reduce(h) if h.ndim == 3 else h for name, h in pre.items()}


REDUCE = {
    "flatten": lambda h: h.flatten(1),
    "mean tokens": lambda h: h.mean(dim=1),
    "mean pixels": lambda h: h.mean(dim=(2, 3)) if h.ndim == 4 else h.flatten(1),
    "cls": lambda h: h[:, 0],
}
