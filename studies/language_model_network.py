"""The network of the language-model study, and what its variants do to the feed-forward layers before training."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tightframe.errors import ArgumentError, check_positive
from tightframe.nn import ETFLinear
from tightframe.surgery import lock_to_etf

SYMBOLS = 256
CONTEXT = 128
HEAD_WIDTH = 32


class Attention(nn.Module):
    """Causal self-attention behind a LayerNorm."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.output = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        query, key, value = self.qkv(self.norm(x)).unflatten(-1, (3, -1, HEAD_WIDTH)).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(query, key, value, is_causal=True)
        return self.output(mixed.transpose(1, 2).flatten(2))


class FeedForward(nn.Module):
    """Two layers with a GELU between, behind a LayerNorm."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.w1 = nn.Linear(width, hidden)
        self.w2 = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.w2(F.gelu(self.w1(self.norm(x))))

    @torch.no_grad()
    def start(self, branches: int, generator: torch.Generator) -> None:
        """Draw the weights of one of so many branches; biases start at zero."""
        nn.init.xavier_normal_(self.w1.weight, generator=generator)
        nn.init.xavier_normal_(self.w2.weight, gain=branches**-0.5, generator=generator)
        for linear in (self.w1, self.w2):
            nn.init.zeros_(linear.bias)


class Block(nn.Module):
    """Attention and, if there is one, feed-forward, each added to its input."""

    feed_forward: FeedForward | None

    def __init__(self, width: int) -> None:
        super().__init__()
        self.attention = Attention(width)
        self.feed_forward = FeedForward(width, 4 * width)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(x)
        return x if self.feed_forward is None else x + self.feed_forward(x)

    @torch.no_grad()
    def start(self, branches: int, generator: torch.Generator) -> None:
        """Draw the weights of one of several blocks with so many branches in all; biases start at zero."""
        nn.init.xavier_normal_(self.attention.qkv.weight, generator=generator)
        nn.init.normal_(self.attention.output.weight, std=0.02 * branches**-0.5, generator=generator)
        for linear in (self.attention.qkv, self.attention.output):
            nn.init.zeros_(linear.bias)
        if self.feed_forward is not None:
            self.feed_forward.start(branches, generator)


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
        self.blocks = nn.ModuleList(Block(width) for _ in range(blocks))
        self.norm = nn.LayerNorm(width)
        self.output = nn.Linear(width, SYMBOLS, bias=False)
        for module in (self.symbols, self.positions, self.output):
            nn.init.normal_(module.weight, std=0.02, generator=generator)
        for block in self.blocks:
            block.start(self.branches, generator)

    def forward(self, x: Tensor) -> Tensor:
        h = self.symbols(x) + self.positions.weight[: x.shape[-1]]
        for block in self.blocks:
            h = block(h)
        return self.output(self.norm(h))


def trainable(module: nn.Module) -> int:
    """Return how many parameters are trainable."""
    return sum(p.numel() for p in module.parameters() if p.requires_grad)


def optimizer_bytes(optimizer: torch.optim.Optimizer) -> int:
    """Return the size of the state that an optimiser holds."""
    tensors = (t for state in optimizer.state.values() for t in state.values() if isinstance(t, Tensor))
    return sum(t.numel() * t.element_size() for t in tensors)


Change = Callable[[GPT, float | None, torch.Generator], None]


@dataclass(frozen=True)
class Variant:
    """One way to save feed-forward parameters.

    Args:
        change: what it does to the network before training, with the gain (None preserves variance) and a generator.
        aligned: matrices to lock, after a third of the steps, to the simplex nearest to them.
    """

    change: Change
    aligned: tuple[str, ...] = ()


def keep(network: GPT, gain: float | None, generator: torch.Generator) -> None:
    """Change nothing."""


def remove(network: GPT, gain: float | None, generator: torch.Generator) -> None:
    """Delete the feed-forward layers."""
    for block in network.blocks:
        block.feed_forward = None


def deepen(network: GPT, gain: float | None, generator: torch.Generator) -> None:
    """Delete the feed-forward layers, and append as many blocks without as match the parameters most closely."""
    before = trainable(network)
    remove(network, gain, generator)
    missing = (before - trainable(network)) / trainable(network.blocks[0])
    for _ in range(round(missing)):
        block = Block(network.width)
        block.feed_forward = None
        block.start(network.branches, generator)
        network.blocks.append(block)


def halve(network: GPT, gain: float | None, generator: torch.Generator) -> None:
    """Put feed-forward layers of half the width in place of those there are."""
    for block in network.blocks:
        block.feed_forward = FeedForward(network.width, 2 * network.width)
        block.feed_forward.start(network.branches, generator)


def fill(kind: str, *matrices: str, fixed: bool = True, learn_scale: bool = False) -> Change:
    """Return a change that gives the matrices the weights of :class:`ETFLinear`, each from a draw of its own."""

    def change(network: GPT, gain: float | None, generator: torch.Generator) -> None:
        for block in network.blocks:
            for name in matrices:
                linear = getattr(block.feed_forward, name)
                layer = ETFLinear.from_linear(
                    linear,
                    kind=kind,
                    gain="variance-preserving" if gain is None else gain,
                    activation="gelu",
                    learn_scale=learn_scale,
                    seed=int(torch.randint(2**31, (), generator=generator)),
                )
                if fixed:
                    setattr(block.feed_forward, name, layer)
                else:
                    with torch.no_grad():
                        linear.weight.copy_(layer.weight)

    return change


VARIANTS: dict[str, Variant] = {
    "baseline": Variant(keep),
    "no-ff": Variant(remove),
    "deeper-no-ff": Variant(deepen),
    "half-ff": Variant(halve),
    "w1": Variant(fill("haar", "w1")),
    "w2": Variant(fill("haar", "w2")),
    "both": Variant(fill("haar", "w1", "w2")),
    "orthogonal-w2": Variant(fill("orthogonal", "w2")),
    "gaussian-w2": Variant(fill("gaussian", "w2")),
    "orthogonal-both": Variant(fill("orthogonal", "w1", "w2")),
    "gaussian-both": Variant(fill("gaussian", "w1", "w2")),
    "simplex-init-trainable": Variant(fill("haar", "w1", "w2", fixed=False)),
    "orthogonal-init-trainable": Variant(fill("orthogonal", "w1", "w2", fixed=False)),
    "gaussian-init-trainable": Variant(fill("gaussian", "w1", "w2", fixed=False)),
    "aligned-w2": Variant(keep, aligned=("w2",)),
    "aligned-both": Variant(keep, aligned=("w1", "w2")),
    "w2-scalar": Variant(fill("haar", "w2", learn_scale=True)),
}


def build(variant: str, width: int, blocks: int, seed: int, gain: float | None = None) -> GPT:
    """Return the network of a variant; what variants of a seed have in common starts from the same numbers."""
    generator = torch.Generator().manual_seed(seed)
    network = GPT(width, blocks, generator)
    VARIANTS[variant].change(network, gain, generator)
    return network


def lock(network: GPT, matrices: tuple[str, ...], optimizer: torch.optim.Optimizer) -> None:
    """Put the nearest simplex, of the best gain, in place of feed-forward matrices; the optimiser forgets these."""
    for i in range(len(network.blocks)):
        for name in matrices:
            lock_to_etf(network, f"blocks.{i}.feed_forward.{name}", classifier=False, optimizer=optimizer)
