"""FeatureTransform: the layers that HAFrame puts between a backbone and a fixed classifier."""

from __future__ import annotations

from typing import final

from torch import Tensor, nn

from tightframe.errors import check_last_dimension, check_positive


@final
class ResidualBlock(nn.Sequential):
    """``h + f(h)`` with f a bias-free linear map, batch norm and a PReLU of d slopes, twice.

    Args:
        dim: Feature dimension d >= 1.

    Raises:
        ArgumentError: if ``dim`` is not a positive integer.
    """

    def __init__(self, dim: int) -> None:
        check_positive("dim", dim)
        halves = [[nn.Linear(dim, dim, bias=False), nn.BatchNorm1d(dim), nn.PReLU(dim)] for _ in range(2)]
        super().__init__(*halves[0], *halves[1])

    def forward(self, features: Tensor) -> Tensor:
        """Return features ``(B, d)`` of features ``(B, d)``."""
        return features + super().forward(features)


@final
class FeatureTransform(nn.Module):
    """A bias-free projection with batch norm and two residual blocks, as published with HAFrame.

    It stands at the end of a backbone, not in a classifier: class vectors meet its output, and collapse is measured on
    its output. The published projection is a 1x1 convolution before global average pooling, which is the same as
    this linear map after it. A fixed frame needs features of both signs, which the last PReLU gives.

    Args:
        in_features: Width of the input.
        dim: Feature dimension d of the output, ``out_features``.

    Raises:
        ArgumentError: if a size is not a positive integer.

    Example:
        >>> import torch
        >>> FeatureTransform(512, 8)(torch.ones(2, 512)).shape
        torch.Size([2, 8])
    """

    def __init__(self, in_features: int, dim: int) -> None:
        super().__init__()
        check_positive("in_features", in_features)
        check_positive("dim", dim)
        self.in_features = in_features
        self.out_features = dim
        self.project = nn.Sequential(nn.Linear(in_features, dim, bias=False), nn.BatchNorm1d(dim))
        self.blocks = nn.Sequential(ResidualBlock(dim), ResidualBlock(dim))

    def forward(self, features: Tensor) -> Tensor:
        """Return features ``(B, d)`` of features ``(B, in_features)``."""
        check_last_dimension(features, self.in_features)
        return self.blocks(self.project(features))
