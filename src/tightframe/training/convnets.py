"""The convolutional backbones of the literature: residual networks and VGG, without their last linear layers."""

from __future__ import annotations

from torch import Tensor, nn

from tightframe.errors import ArgumentError, ShapeError, check_positive
from tightframe.nn.transform import FeatureTransform

# Channels of a residual network's first stage, doubled at each of the next.
WIDTH = 64
# Blocks of each stage, by depth.
STAGES = {18: (2, 2, 2, 2), 50: (3, 4, 6, 3)}
# Two convolutions of each width, then the resolution is halved.
VGG13_WIDTHS = (64, 128, 256, 512, 512)


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
