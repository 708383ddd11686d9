"""Exceptions, checks of what a caller passed in, and optional dependencies.

Every exception derives from :class:`TightframeError`, so the command line turns exactly these into one line and exit
code 2. A message names the argument, says what was expected, what was seen and how to mend it.
"""

from __future__ import annotations

import importlib
import math
from collections.abc import Collection
from types import ModuleType
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # the command line needs the exceptions before it needs torch
    from torch import Tensor


class TightframeError(Exception):
    """Base of every error that this package raises on purpose."""


class ArgumentError(TightframeError, ValueError):
    """An option has a value outside its documented range."""


class ShapeError(TightframeError, ValueError):
    """A tensor has the wrong shape."""


class DtypeError(TightframeError, TypeError):
    """A tensor has the wrong dtype."""


class DeviceError(TightframeError, ValueError):
    """Tensors that belong together lie on different devices."""


class LabelError(TightframeError, ValueError):
    """A label lies outside 0..K-1."""


class NonFiniteError(TightframeError, ValueError):
    """Features hold NaN or infinity."""


class DimensionError(TightframeError, ValueError):
    """The feature dimension is too small for the requested frame."""


class EmptyDataError(TightframeError, ValueError):
    """There is nothing to measure."""


class DataFileError(TightframeError, ValueError):
    """A file is missing, truncated or in another format than its name says."""


class ConfigError(TightframeError, ValueError):
    """A recipe or a command-line option cannot be bound."""


class ResumeError(TightframeError, RuntimeError):
    """A directory holds a run of another configuration."""


class MissingExtraError(TightframeError, ImportError):
    """An optional dependency is not installed."""


class Notice(UserWarning):
    """What a reader of the numbers should know; nothing is wrong."""


def require_extra(module: str, extra: str) -> ModuleType:
    """Import an optional dependency, or say which extra brings it.

    Args:
        module: dotted name of the module.
        extra: the extra of this package that installs it.

    Raises:
        MissingExtraError: with the ``pip install`` line, whatever made the import fail: a half-installed package (such
            as a CUDA torchvision beside a CPU torch) raises other things than ``ImportError``.
    """
    try:
        return importlib.import_module(module)
    except Exception as error:
        raise MissingExtraError(
            f"{module} cannot be imported ({type(error).__name__}: {error}); run: pip install 'tightframe[{extra}]'"
        ) from error


def check_positive(name: str, value: int, minimum: int = 1) -> None:
    """Raise :class:`ArgumentError` unless ``value`` is an integer of at least ``minimum``."""
    if isinstance(value, bool) or not isinstance(value, int) or value < minimum:
        raise ArgumentError(f"{name} must be an integer >= {minimum}, got {value!r}")


def check_choice(name: str, value: object, choices: Collection[str]) -> None:
    """Raise :class:`ArgumentError` unless ``value`` is one of ``choices``."""
    if value not in choices:
        raise ArgumentError(f"{name} must be one of {', '.join(map(repr, choices))}, got {value!r}")


def check_range(name: str, value: float, inside: bool, wanted: str) -> None:
    """Raise :class:`ArgumentError` unless a finite number is ``inside`` its range, in words ``wanted``."""
    if isinstance(value, bool) or not inside or math.isinf(value):
        raise ArgumentError(f"{name} must be finite and {wanted}, got {value!r}")


def check_features(features: Tensor, dim: int | None = None, name: str = "features") -> None:
    """Check shape and dtype of features ``(B, d)``; their values are not read.

    Raises:
        DtypeError: if they are not a floating-point tensor.
        ShapeError: if they are not two-dimensional, or their width is not ``dim``.
    """
    from torch import Tensor

    if not isinstance(features, Tensor) or not features.is_floating_point():
        seen = features.dtype if isinstance(features, Tensor) else type(features).__name__
        raise DtypeError(f"{name} must be a floating-point tensor, got {seen}; convert with {name}.float()")
    if features.ndim != 2:
        raise ShapeError(
            f"{name} must have shape (B, d), got {tuple(features.shape)}; flatten each sample to one vector first"
        )
    if dim is not None and features.shape[1] != dim:
        raise ShapeError(f"{name} must have width d = {dim}, got {features.shape[1]}")


def check_last_dimension(features: Tensor, dim: int, name: str = "features") -> None:
    """Check dtype and width of features ``(…, d)``; their values are not read.

    Raises:
        DtypeError: if they are not floating point.
        ShapeError: if their last dimension is not ``dim``.
    """
    if not features.is_floating_point():
        raise DtypeError(f"{name} must be floating point, got {features.dtype}; convert with {name}.float()")
    if features.ndim == 0 or features.shape[-1] != dim:
        raise ShapeError(f"{name} must have shape (…, d = {dim}), got {tuple(features.shape)}")


def check_labels(labels: Tensor, features: Tensor, name: str = "labels") -> None:
    """Check that ``labels`` are integers ``(B,)`` beside ``features (B, d)``; their values are not read.

    Raises:
        DtypeError: if they are not integers.
        ShapeError: if there is not one label a sample.
        DeviceError: if they lie on another device than the features.
    """
    import torch
    from torch import Tensor

    integers = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)
    if not isinstance(labels, Tensor) or labels.dtype not in integers:
        seen = labels.dtype if isinstance(labels, Tensor) else type(labels).__name__
        raise DtypeError(f"{name} must be an integer tensor, got {seen}; convert with {name}.long()")
    if labels.ndim != 1 or labels.shape[0] != features.shape[0]:
        raise ShapeError(f"{name} must have shape (B,) = ({features.shape[0]},), got {tuple(labels.shape)}")
    if labels.device != features.device:
        raise DeviceError(f"{name} are on {labels.device} and features on {features.device}; move one with .to(device)")


def check_label_range(labels: Tensor, num_classes: int, name: str = "labels") -> None:
    """Read ``labels`` and raise :class:`LabelError` on any outside ``0..num_classes - 1``."""
    if labels.numel() == 0:
        return
    import torch

    labels = labels.long()  # a narrow type would wrap num_classes
    low, high = torch.aminmax(labels)
    if low >= 0 and high < num_classes:
        return
    bad = labels[(labels < 0) | (labels >= num_classes)]
    raise LabelError(
        f"{name} must lie in 0..{num_classes - 1} (K = {num_classes}), got {int(bad[0])} "
        f"({bad.numel()} of {labels.numel()} out of range); to leave them out pass ignore_index={int(bad[0])}"
    )


def check_finite(values: Tensor, name: str = "features") -> None:
    """Read ``values`` and raise :class:`NonFiniteError` on NaN or infinity."""
    # The sum is NaN or infinite if any value is, and much cheaper than a look at each.
    if math.isfinite(values.sum().item()):
        return
    import torch

    finite = torch.isfinite(values)
    if not bool(finite.all()):
        raise NonFiniteError(
            f"{name} must be finite, got {int((~finite).sum())} NaN or infinite of {values.numel()} values; "
            "look for a diverged loss or an overflow in half precision"
        )
