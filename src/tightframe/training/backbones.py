"""Backbones for the shipped recipes, without last linear layers; any module with ``out_features`` serves as well."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tightframe.errors import ArgumentError, ShapeError, check_positive
from tightframe.nn.transform import FeatureTransform, ResidualBlock

# Channels of a residual network's first stage, doubled at each of the next.
WIDTH = 64
# Blocks of each stage, by depth.
STAGES = {18: (2, 2, 2, 2), 50: (3, 4, 6, 3)}
# Two convolutions of each width, then the resolution is halved.
VGG13_WIDTHS = (64, 128, 256, 512, 512)


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


class ResNet(nn.Sequential):
    """A residual network (He et al., CVPR 2016) up to the global average pooling, whose features are non-negative.

    Depth 50 halves the resolution in the 3x3 convolution of a block. No convolution has a bias.

    Args:
        depth: 18 (d = 512) or 50 (d = 2048).
        in_channels: Number C of channels of the images ``(B, C, H, W)``.
        small_images: begin with a 3x3 convolution at full resolution instead of a 7x7 one and a max-pooling, which
            together divide the resolution by 4.
        affine: Whether batch norm learns factors and offsets; without these every parameter has four dimensions.
        dim: Number of features of any sign that an appended :class:`~tightframe.nn.FeatureTransform` makes, for a fixed
            frame; None for none.

    Raises:
        ArgumentError: if ``depth`` is another, or ``in_channels`` or ``dim`` not a positive integer.

    Example:
        >>> import torch
        >>> network = ResNet(18, in_channels=3)
        >>> network(torch.zeros(2, 3, 32, 32)).shape, network.out_features
        (torch.Size([2, 512]), 512)
    """

    def __init__(
        self,
        depth: int,
        in_channels: int,
        *,
        small_images: bool = False,
        affine: bool = True,
        dim: int | None = None,
    ) -> None:
        if depth not in STAGES:
            raise ArgumentError(f"depth must be one of {', '.join(map(str, STAGES))}, got {depth!r}")
        check_positive("in_channels", in_channels)
        kernel, stride = (3, 1) if small_images else (7, 2)
        layers = _convolution(in_channels, WIDTH, affine, kernel, stride)
        if not small_images:
            layers.append(nn.MaxPool2d(3, stride=2, padding=1))
        channels = WIDTH
        for stage, blocks in enumerate(STAGES[depth]):
            for block in range(blocks):
                stride = 2 if stage > 0 and block == 0 else 1
                residual = _Residual(depth, channels, WIDTH * 2**stage, stride, affine)
                layers.append(residual)
                channels = residual.out_channels
        layers += [nn.AdaptiveAvgPool2d(1), nn.Flatten()]
        super().__init__(*layers, *([] if dim is None else [FeatureTransform(channels, dim)]))
        self.out_features = channels if dim is None else dim


class VGG13(nn.Sequential):
    """The convolutions of VGG-13 (Simonyan & Zisserman, ICLR 2015) with batch norm, then global average pooling.

    The features ``(B, 512)`` are non-negative. No convolution has a bias, which batch norm would undo.

    Args:
        in_channels: Number C of channels of the images ``(B, C, H, W)``, at least 32 pixels high and wide.
        affine: Whether batch norm learns factors and offsets; without these every parameter has four dimensions.

    Raises:
        ArgumentError: if ``in_channels`` is not a positive integer.

    Example:
        >>> import torch
        >>> network = VGG13(in_channels=3)
        >>> network(torch.zeros(2, 3, 32, 32)).shape, network.out_features
        (torch.Size([2, 512]), 512)
    """

    def __init__(self, in_channels: int, *, affine: bool = True) -> None:
        check_positive("in_channels", in_channels)
        layers: list[nn.Module] = []
        channels = in_channels
        for width in VGG13_WIDTHS:
            layers += [*_convolution(channels, width, affine), *_convolution(width, width, affine), nn.MaxPool2d(2)]
            channels = width
        super().__init__(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.out_features = channels

    def forward(self, images: Tensor) -> Tensor:
        """Return features ``(B, 512)`` of images ``(B, C, H, W)``.

        Raises:
            ShapeError: if they are smaller than 32 pixels.
        """
        smallest = 2 ** len(VGG13_WIDTHS)
        if min(images.shape[-2:]) < smallest:
            raise ShapeError(f"images must be at least {smallest} pixels high and wide, got {tuple(images.shape)}")
        features: Tensor = super().forward(images)
        return features


class _Residual(nn.Module):
    """A block: two 3x3 convolutions at depth 18; at depth 50 a 3x3 one between two of 1x1, the last four times as wide.

    The input is added before the last ReLU, through a 1x1 convolution where the shape changes.
    """

    def __init__(self, depth: int, channels: int, width: int, stride: int, affine: bool) -> None:
        super().__init__()
        if depth == 18:
            self.out_channels = width
            layers = [*_convolution(channels, width, affine, 3, stride), *_convolution(width, width, affine)]
        else:
            self.out_channels = 4 * width
            layers = [
                *_convolution(channels, width, affine, 1),
                *_convolution(width, width, affine, 3, stride),
                *_convolution(width, self.out_channels, affine, 1),
            ]
        self.branch = nn.Sequential(*layers[:-1])
        changes = stride != 1 or channels != self.out_channels
        self.shortcut = (
            nn.Sequential(*_convolution(channels, self.out_channels, affine, 1, stride)[:-1])
            if changes
            else nn.Identity()
        )

    def forward(self, maps: Tensor) -> Tensor:
        return (self.branch(maps) + self.shortcut(maps)).relu()


def _convolution(inputs: int, outputs: int, affine: bool, kernel: int = 3, stride: int = 1) -> list[nn.Module]:
    """Return a convolution that keeps the resolution (at stride 1), its batch norm and its ReLU."""
    convolution = nn.Conv2d(inputs, outputs, kernel, stride, padding=kernel // 2, bias=False)
    nn.init.kaiming_normal_(convolution.weight, mode="fan_out", nonlinearity="relu")
    return [convolution, nn.BatchNorm2d(outputs, affine=affine), nn.ReLU()]


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
