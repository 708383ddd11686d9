"""The network of the language-model study, and what its variants do to the feed-forward layers before training."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tightframe.errors import ArgumentError, check_positive
from tightframe.nn import ETFLinear
from tightframe.surgery import parameter_report

SYMBOLS = 256
CONTEXT = 128
HEAD_WIDTH = 32


class Attention(nn.Module):
    """Causal self-attention behind a LayerNorm."""

    def __init__(self, width: int, branches: int, generator: torch.Generator) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.output = nn.Linear(width, width)
        nn.init.xavier_normal_(self.qkv.weight, generator=generator)
        nn.init.normal_(self.output.weight, std=0.02 * branches**-0.5, generator=generator)

    def forward(self, x: Tensor) -> Tensor:
        query, key, value = self.qkv(self.norm(x)).unflatten(-1, (3, -1, HEAD_WIDTH)).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(query, key, value, is_causal=True)
        return self.output(mixed.transpose(1, 2).flatten(2))


class FeedForward(nn.Module):
    """Two layers with a GELU between, behind a LayerNorm."""

    def __init__(self, width: int, hidden: int, branches: int, generator: torch.Generator) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.w1 = nn.Linear(width, hidden)
        self.w2 = nn.Linear(hidden, width)
        nn.init.xavier_normal_(self.w1.weight, generator=generator)
        nn.init.xavier_normal_(self.w2.weight, gain=branches**-0.5, generator=generator)

    def forward(self, x: Tensor) -> Tensor:
        return self.w2(F.gelu(self.w1(self.norm(x))))


class Block(nn.Module):
    """Attention and, if there is one, feed-forward, each added to its input.

    Args:
        width: of the stream.
        hidden: width of the feed-forward layers; 0 for none.
        branches: number of branches of the whole network, by which their last weights are scaled.
        generator: of the weights.
    """

    def __init__(self, width: int, hidden: int, branches: int, generator: torch.Generator) -> None:
        super().__init__()
        self.attention = Attention(width, branches, generator)
        self.feed_forward = FeedForward(width, hidden, branches, generator) if hidden else None

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(x)
        return x if self.feed_forward is None else x + self.feed_forward(x)


class GPT(nn.Module):
    """A pre-LN transformer that predicts the next byte: ``(B, T <= 128)`` int64 to logits ``(B, T, 256)``.

    Args:
        width: a multiple of 32, the width of a head; the feed-forward layers are four times as wide.
        blocks: at least 1.
        generator: of the weights, on the CPU.
    """

    def __init__(self, width: int, blocks: int, generator: torch.Generator) -> None:
        check_positive("width", width)
        check_positive("blocks", blocks)
        if width % HEAD_WIDTH:
            raise ArgumentError(f"width must be a multiple of {HEAD_WIDTH}, the width of a head, got {width}")
        super().__init__()
        self.width = width
        self.branches = 2 * blocks
        self.symbols = nn.Embedding(SYMBOLS, width)
        self.positions = nn.Embedding(CONTEXT, width)
        self.blocks = nn.ModuleList()
        self.norm = nn.LayerNorm(width)
        self.output = nn.Linear(width, SYMBOLS, bias=False)
        for module in (self.symbols, self.positions, self.output):
            nn.init.normal_(module.weight, std=0.02, generator=generator)
        self.blocks.extend(Block(width, 4 * width, self.branches, generator) for _ in range(blocks))

    def forward(self, x: Tensor) -> Tensor:
        h = self.symbols(x) + self.positions.weight[: x.shape[-1]]
        for block in self.blocks:
            h = block(h)
        return self.output(self.norm(h))


Change = Callable[[GPT, torch.Generator], None]


def remove(network: GPT, generator: torch.Generator) -> None:
    """Delete the feed-forward layers."""
    for block in network.blocks:
        block.feed_forward = None


def deepen(network: GPT, generator: torch.Generator) -> None:
    """Delete the feed-forward layers, and append as many blocks without as match the parameters most closely."""
    before = parameter_report(network).trainable
    remove(network, generator)
    missing = (before - parameter_report(network).trainable) / parameter_report(network.blocks[0]).trainable
    for _ in range(round(missing)):
        network.blocks.append(Block(network.width, 0, network.branches, generator))


def halve(network: GPT, generator: torch.Generator) -> None:
    """Put feed-forward layers of half the width in place of those there are."""
    for block in network.blocks:
        block.feed_forward = FeedForward(network.width, 2 * network.width, network.branches, generator)


@dataclass(frozen=True)
class Variant:
    """One way to save feed-forward parameters.

    Args:
        change: Change of the blocks before training; None for none.
        matrices: Feed-forward matrices that get other values.
        kind: Kind of these values; ``"aligned"`` locks them to the nearest simplex after a third of the steps.
        fixed: Whether the values stay as they are drawn.
        learn_scale: Whether the scale of fixed matrices is trained.
    """

    change: Change | None = None
    matrices: tuple[str, ...] = ()
    kind: str = "haar"
    fixed: bool = True
    learn_scale: bool = False

    @property
    def aligned(self) -> bool:
        """Whether matrices are locked along the way."""
        return self.kind == "aligned"

    @torch.no_grad()
    def fill(self, network: GPT, gain: float | None, generator: torch.Generator) -> None:
        """Give the matrices the weights of :class:`ETFLinear`, each of its own draw; no gain preserves variance."""
        for block in network.blocks:
            for name in self.matrices:
                linear = getattr(block.feed_forward, name)
                layer = ETFLinear.from_linear(
                    linear,
                    kind=self.kind,
                    gain="variance-preserving" if gain is None else gain,
                    activation="gelu",
                    learn_scale=self.learn_scale,
                    seed=int(torch.randint(2**31, (), generator=generator)),
                )
                if self.fixed:
                    setattr(block.feed_forward, name, layer)
                else:
                    linear.weight.copy_(layer.weight)


W1, W2, BOTH = ("w1",), ("w2",), ("w1", "w2")
VARIANTS: dict[str, Variant] = {
    "baseline": Variant(),
    "no-ff": Variant(remove),
    "deeper-no-ff": Variant(deepen),
    "half-ff": Variant(halve),
    "w1": Variant(matrices=W1),
    "w2": Variant(matrices=W2),
    "both": Variant(matrices=BOTH),
    "orthogonal-w2": Variant(matrices=W2, kind="orthogonal"),
    "gaussian-w2": Variant(matrices=W2, kind="gaussian"),
    "orthogonal-both": Variant(matrices=BOTH, kind="orthogonal"),
    "gaussian-both": Variant(matrices=BOTH, kind="gaussian"),
    "simplex-init-trainable": Variant(matrices=BOTH, fixed=False),
    "orthogonal-init-trainable": Variant(matrices=BOTH, kind="orthogonal", fixed=False),
    "gaussian-init-trainable": Variant(matrices=BOTH, kind="gaussian", fixed=False),
    "aligned-w2": Variant(matrices=W2, kind="aligned"),
    "aligned-both": Variant(matrices=BOTH, kind="aligned"),
    "w2-scalar": Variant(matrices=W2, learn_scale=True),
}


def build(variant: str, width: int, blocks: int, seed: int, gain: float | None = None) -> GPT:
    """Return the network of a variant; what variants of a seed have in common starts from the same numbers."""
    generator = torch.Generator().manual_seed(seed)
    network = GPT(width, blocks, generator)
    chosen = VARIANTS[variant]
    if chosen.change is not None:
        chosen.change(network, generator)
    for module in network.modules():
        if isinstance(module, nn.Linear) and module.bias is not None:
            nn.init.zeros_(module.bias)
    if not chosen.aligned:
        chosen.fill(network, gain, generator)
    return network
