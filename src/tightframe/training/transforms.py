"""ImageTransform: scaling, normalisation and augmentation of whole batches of images, on whatever device they are."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from tightframe.errors import ArgumentError, DtypeError, ShapeError, check_positive


class ImageTransform(nn.Module):
    r"""Normalised images, :math:`(x/255 - \text{mean}) / \text{std}`, randomly cropped and mirrored while training.

    While training, every image has a crop at a place of its own and is mirrored with probability 1/2; otherwise the
    middle is cropped and nothing mirrored. The random numbers come from PyTorch's default CPU generator, so that they
    do not depend on the device.

    Args:
        mean: Mean of each channel, for images in [0, 1].
        std: Standard deviation of each channel, > 0.
        crop: height and width of the result in pixels; None keeps those of the images.
        padding: black pixels added on every side before the crop, >= 0.
        flip: Whether to mirror images left and right at random.

    Raises:
        ArgumentError: if an argument lies outside its range, or ``mean`` and ``std`` differ in length.

    Example:
        >>> transform = ImageTransform(mean=[0.5], std=[0.25], crop=2).eval()
        >>> transform(torch.tensor([[[[0, 0, 0, 0], [0, 0, 255, 0], [0, 255, 255, 0], [0, 0, 0, 0]]]]).byte())
        tensor([[[[-2.,  2.],
                  [ 2.,  2.]]]])
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        mean: Sequence[float],
        std: Sequence[float],
        crop: int | None = None,
        padding: int = 0,
        flip: bool = True,
    ) -> None:
        super().__init__()
        if not mean or len(mean) != len(std):
            raise ArgumentError(
                f"mean and std must have one number a channel each, got {len(mean)} and {len(std)} numbers"
            )
        if not all(map(math.isfinite, mean)):
            raise ArgumentError(f"mean must be finite numbers, got {list(mean)}")
        if not all(0 < value < math.inf for value in std):
            raise ArgumentError(f"std must be finite numbers > 0, got {list(std)}")
        if crop is not None:
            check_positive("crop", crop)
        check_positive("padding", padding, minimum=0)
        self.crop = crop
        self.padding = padding
        self.flip = flip
        for name, values in (("mean", mean), ("std", std)):
            self.register_buffer(name, torch.tensor(values).view(-1, 1, 1), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        """Return images ``(B, C, crop, crop)`` in the dtype of this module.

        Args:
            images: ``(B, C, H, W)``, uint8 in 0..255 or floating-point in [0, 1].

        Raises:
            DtypeError: if they are of another dtype.
            ShapeError: if they are not four-dimensional, have another number of channels, or are smaller than the crop.
        """
        self._check(images)
        height, width = images.shape[2:] if self.crop is None else (self.crop, self.crop)
        padded = functional.pad(images, [self.padding] * 4)
        room = padded.shape[2] - height, padded.shape[3] - width
        if min(room) < 0:
            raise ShapeError(
                f"images must be at least crop = {self.crop} pixels high and wide with padding = {self.padding}, got "
                f"{tuple(images.shape)}; lower crop or raise padding"
            )
        if self.training:
            cropped = self._random_crops(padded, height, width)
        else:
            top, left = room[0] // 2, room[1] // 2
            cropped = padded[:, :, top : top + height, left : left + width]
        scaled = cropped.to(self.mean.dtype)
        if images.dtype == torch.uint8:
            scaled = scaled / 255
        return (scaled - self.mean) / self.std

    def _random_crops(self, images: Tensor, height: int, width: int) -> Tensor:
        """Return a crop of each image, at a random place and mirrored or not."""
        size = len(images)
        top = torch.randint(images.shape[2] - height + 1, (size,), device="cpu")
        left = torch.randint(images.shape[3] - width + 1, (size,), device="cpu")
        windows = images.unfold(2, height, 1).unfold(3, width, 1)  # a view of the crops at all places
        crops = windows[torch.arange(size, device="cpu"), :, top, left]
        if not self.flip:
            return crops
        mirrored = (torch.rand(size, device="cpu") < 0.5).to(images.device)
        return torch.where(mirrored.view(-1, 1, 1, 1), crops.flip(3), crops)

    def _check(self, images: Tensor) -> None:
        if images.dtype != torch.uint8 and not images.is_floating_point():
            raise DtypeError(f"images must be uint8 or floating-point, got {images.dtype}; convert with .float() / 255")
        if images.ndim != 4 or images.shape[1] != len(self.mean):
            raise ShapeError(
                f"images must have shape (B, C, H, W) with C = {len(self.mean)}, the length of mean and std, got "
                f"{tuple(images.shape)}"
            )

    def extra_repr(self) -> str:
        """Return the options for ``repr``."""
        return f"crop={self.crop}, padding={self.padding}, flip={self.flip}"
