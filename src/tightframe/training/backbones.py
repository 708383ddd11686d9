"""Small backbones for the shipped recipes; any ``nn.Module`` with ``out_features`` serves in their place."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tightframe.errors import ArgumentError, check_positive
from tightframe.nn.transform import ResidualBlock


class MLP(nn.Sequential):
    """Linear layers, each followed by batch norm (if wanted) and ReLU; inputs are flattened.

    Args:
        in_features: size of a flattened input.
        widths: output width of each layer; the last is the feature dimension d.
        batch_norm: Whether to normalise before each ReLU.
        relu_last: Whether the features themselves pass the last ReLU. Without it they may have any sign, which is what
            a fixed classifier with negative class vectors wants.
    """

    def __init__(
        self, in_features: int, widths: Sequence[int], *, batch_norm: bool = True, relu_last: bool = True
    ) -> None:
        _check_widths(widths)
        layers: list[nn.Module] = [nn.Flatten()]
        for i, (inputs, outputs) in enumerate(zip([in_features, *widths], widths, strict=False)):
            layers.append(nn.Linear(inputs, outputs, bias=not batch_norm))
            if batch_norm:
                layers.append(nn.BatchNorm1d(outputs))
            if relu_last or i < len(widths) - 1:
                layers.append(nn.ReLU())
        super().__init__(*layers)
        self.out_features = widths[-1]


class SmallCNN(nn.Sequential):
    """3x3 convolutions with batch norm and ReLU, the resolution halved at each, then global average pooling.

    Args:
        in_channels: Number C of channels of the images ``(B, C, H, W)``.
        widths: channels of each convolution; the last is the feature dimension d.
    """

    def __init__(self, in_channels: int, widths: Sequence[int]) -> None:
        _check_widths(widths)
        layers: list[nn.Module] = []
        for i, (inputs, outputs) in enumerate(zip([in_channels, *widths], widths, strict=False)):
            stride = 1 if i == 0 else 2
            layers += [
                nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1, bias=False),
                nn.BatchNorm2d(outputs),
                nn.ReLU(),
            ]
        super().__init__(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.out_features = widths[-1]


class TokenMean(nn.Module):
    """Mean of token embeddings, a bias-free projection and two residual blocks (Linear, BN, PReLU, twice).

    Args:
        vocabulary: number of distinct tokens.
        dim: feature dimension d.
        embedding: width of the embeddings.
        token_dropout: share of tokens left out of the mean while training.
        dropout: Rate of dropout of the normalised mean.
    """

    def __init__(
        self, vocabulary: int, dim: int, *, embedding: int = 128, token_dropout: float = 0.2, dropout: float = 0.2
    ) -> None:
        super().__init__()
        self.token_dropout = token_dropout
        self.embedding = nn.EmbeddingBag(vocabulary, embedding, mode="sum")
        nn.init.normal_(self.embedding.weight, std=0.1)
        self.project = nn.Sequential(
            nn.BatchNorm1d(embedding), nn.Dropout(dropout), nn.Linear(embedding, dim, bias=False), nn.BatchNorm1d(dim)
        )
        self.blocks = nn.Sequential(ResidualBlock(dim), ResidualBlock(dim))
        self.out_features = dim

    def forward(self, tokens: Tensor) -> Tensor:
        """Return features ``(B, d)`` of tokens ``(B, T)``."""
        keep = torch.ones(tokens.shape, device=tokens.device)
        if self.training and self.token_dropout:
            keep = (torch.rand(tokens.shape, device=tokens.device) >= self.token_dropout).float()
        kept = keep.sum(dim=1, keepdim=True).clamp(min=1)
        return self.blocks(self.project(self.embedding(tokens, per_sample_weights=keep / kept)))


class TokenTransformer(nn.Module):
    """A pre-LN transformer encoder of tokens ``(B, T)``; its features are the mean over the tokens of the last norm.

    The feed-forward layers of a block are ``linear1`` and ``linear2``, as those of ``nn.TransformerEncoderLayer``.

    Args:
        in_features: T, the length of the inputs.
        vocabulary: number of distinct tokens.
        dim: feature dimension d, the width of all blocks, a multiple of ``heads``.
        blocks: Number of blocks, at least 1.
        heads: Number of heads of the attention.
        feed_forward: width of the feed-forward layers; 0 leaves them out.
        dropout: Rate of dropout of embeddings, attention and everything that is added to the stream.
    """

    def __init__(
        self,
        in_features: int,
        vocabulary: int,
        dim: int,
        *,
        blocks: int = 2,
        heads: int = 4,
        feed_forward: int = 512,
        dropout: float = 0.1,
    ) -> None:
        sizes = {"in_features": in_features, "vocabulary": vocabulary, "dim": dim, "blocks": blocks, "heads": heads}
        for name, value in sizes.items():
            check_positive(name, value)
        check_positive("feed_forward", feed_forward, 0)
        if dim % heads:
            raise ArgumentError(f"dim must be a multiple of heads, got {dim} and {heads}")
        super().__init__()
        self.tokens = nn.Embedding(vocabulary, dim)
        self.positions = nn.Parameter(torch.empty(in_features, dim))
        for table in (self.tokens.weight, self.positions):
            nn.init.normal_(table, std=0.02)
        self.dropout = nn.Dropout(dropout)
        self.blocks = nn.Sequential(*(_EncoderBlock(dim, heads, feed_forward, dropout) for _ in range(blocks)))
        self.norm = nn.LayerNorm(dim)
        self.out_features = dim

    def forward(self, tokens: Tensor) -> Tensor:
        """Return features ``(B, d)`` of tokens ``(B, T)``."""
        stream = self.dropout(self.tokens(tokens) + self.positions[: tokens.shape[1]])
        return self.norm(self.blocks(stream)).mean(dim=1)


class _EncoderBlock(nn.Module):
    def __init__(self, dim: int, heads: int, feed_forward: int, dropout: float) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim)
        self.attention = nn.MultiheadAttention(dim, heads, dropout=dropout, batch_first=True)
        self.dropout = nn.Dropout(dropout)
        self.has_feed_forward = feed_forward > 0
        if self.has_feed_forward:
            self.norm2 = nn.LayerNorm(dim)
            self.linear1 = nn.Linear(dim, feed_forward)
            self.linear2 = nn.Linear(feed_forward, dim)

    def forward(self, stream: Tensor) -> Tensor:
        normed = self.norm1(stream)
        stream = stream + self.dropout(self.attention(normed, normed, normed, need_weights=False)[0])
        if not self.has_feed_forward:
            return stream
        return stream + self.dropout(self.linear2(F.gelu(self.linear1(self.norm2(stream)))))


class FreeFeatures(nn.Embedding):
    """An unconstrained-feature model's features: one free vector a sample, looked up by the sample's index.

    The table ``weight`` starts with orthonormal columns, or rows if N < d.

    Args:
        num_samples: N, the size of the training set.
        dim: feature dimension d.

    Raises:
        ArgumentError: if an argument is not a positive integer.
    """

    def __init__(self, num_samples: int, dim: int) -> None:
        check_positive("num_samples", num_samples)
        check_positive("dim", dim)
        super().__init__(num_samples, dim)
        self.out_features = dim

    def reset_parameters(self) -> None:
        """Draw an orthogonal table."""
        nn.init.orthogonal_(self.weight)


def _check_widths(widths: Sequence[int]) -> None:
    if not widths:
        raise ArgumentError("widths must name at least one width, got none")
    for width in widths:
        check_positive("widths", width)
