"""Exceptions, checks of what a caller passed in, and optional dependencies.

Every exception derives from :class:`TightframeError`, which the command line turns into one line and exit code 2. A
message names the argument, says what was expected, what was seen and how to correct it.
"""

from __future__ import annotations

import importlib
import math
import reprlib
from collections.abc import Collection
from types import ModuleType
from typing import TYPE_CHECKING, Any

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


class OutputError(TightframeError, RuntimeError):
    """A file cannot be written."""


class ConfigError(TightframeError, ValueError):
    """A recipe or a command-line option cannot be bound."""


class ResumeError(TightframeError, RuntimeError):
    """A directory holds a run of another configuration."""


class FailedError(TightframeError, RuntimeError):
    """Some of several trainings failed; the others are finished."""


class MissingExtraError(TightframeError, ImportError):
    """An optional dependency is not installed."""


class Notice(UserWarning):
    """A fact that a reader of the numbers should know; nothing is wrong."""


def require_extra(module: str, extra: str) -> ModuleType:
    """Import an optional dependency, or say which extra brings it.

    Args:
        module: Dotted name of the module.
        extra: Extra of this package that installs the module.

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


def shown(value: object) -> str:
    """Return a value as a message shows it, cut where it is long or deep.

    Example:
        >>> shown([[1, "two"]] * 1000)
        "[[1, 'two'], [1, 'two'], [1, 'two'], [1, 'two'], [1, 'two'], [1, 'two'], ...]"
    """
    return _SHORT.repr(value)


_SHORT = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxlong = _SHORT.maxother = 80


def is_name(value: object) -> bool:
    r"""Whether ``value`` is text that is not empty and can be written.

    That is without control characters and halves of pairs of surrogates, which JSON allows.

    Example:
        >>> is_name("cat"), is_name(""), is_name("\0"), is_name("\ud800")
        (True, False, False, False)
    """
    if not isinstance(value, str) or not value or min(value) < " ":
        return False
    try:
        return bool(value.encode())
    except UnicodeEncodeError:
        return False


def check_positive(name: str, value: int, minimum: int = 1) -> None:
    """Raise :class:`ArgumentError` unless ``value`` is an integer of at least ``minimum``, and of 64 bits."""
    if isinstance(value, bool) or not isinstance(value, int) or not minimum <= value < 2**63:
        raise ArgumentError(f"{name} must be an integer >= {minimum}, got {value!r}")


def check_choice(name: str, value: object, choices: Collection[str]) -> None:
    """Raise :class:`ArgumentError` unless ``value`` is one of ``choices``."""
    if value not in choices:
        raise ArgumentError(f"{name} must be one of {', '.join(map(repr, choices))}, got {value!r}")


def check_range(name: str, value: float, inside: bool, wanted: str) -> None:
    """Raise :class:`ArgumentError` unless a finite number is ``inside`` its range, in words ``wanted``."""
    if isinstance(value, bool) or not inside or math.isinf(value):
        raise ArgumentError(f"{name} must be finite and {wanted}, got {value!r}")


def as_tensor(values: Any, name: str) -> Tensor:
    """Return data as a plain tensor, whose memory is shared where it can be.

    Args:
        values: Tensor, of a subclass or not, numpy array, or list of numbers; a list of floats becomes float64.
        name: Name of the argument, for the error.

    Raises:
        DtypeError: if the values are no numbers in equal rows.
    """
    from torch import Tensor, from_numpy

    if isinstance(values, Tensor):
        return values if type(values) is Tensor else values.as_subclass(Tensor)
    import numpy as np

    try:
        array = np.asarray(values)
        # torch takes neither foreign byte orders nor negative strides, and warns of what it may not write to.
        if not (array.flags.writeable and array.dtype.isnative and all(step >= 0 for step in array.strides)):
            array = array.astype(array.dtype.newbyteorder("="))
        return from_numpy(array)
    except (TypeError, ValueError) as error:
        seen = f"{type(values).__name__} ({error})"
        raise DtypeError(
            f"{name} must be a tensor, a numpy array or a list of numbers in equal rows, got {seen}"
        ) from error


def as_labels(labels: Any, name: str = "labels") -> Tensor:
    """Return labels as :func:`as_tensor` does, integers of any type as int64; others are left to :func:`check_labels`.

    In int64 no comparison wraps, as that of uint8 labels with -100 would.
    """
    import torch

    labels = as_tensor(labels, name)
    dtype = labels.dtype
    if dtype == torch.int64 or dtype.is_floating_point or dtype.is_complex or dtype == torch.bool:
        return labels
    wide = labels.long()
    # A label beyond int64 would turn negative, and might become the one to ignore.
    return wide.where(wide >= 0, torch.iinfo(torch.int64).max) if dtype == torch.uint64 else wide


def check_features(features: Tensor, dim: int | None = None, name: str = "features") -> None:
    """Check shape and dtype of features ``(B, d)``; their values are not read.

    Raises:
        DtypeError: if they are not a floating-point tensor.
        ShapeError: if they are not two-dimensional, or their width is not ``dim``.
    """
    from torch import Tensor

    if not isinstance(features, Tensor) or not features.is_floating_point():
        seen = features.dtype if isinstance(features, Tensor) else type(features).__name__
        raise DtypeError(
            f"{name} must be a floating-point tensor, got {seen}; convert to float32, as {name}.float() does"
        )
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
        fix = f"convert to int64 if they are whole numbers, or take {name}.argmax(dim=1) of one-hot or soft labels"
        raise DtypeError(f"{name} must be an integer tensor, got {seen}; {fix}")
    if labels.ndim != 1 or labels.shape[0] != features.shape[0]:
        fix = f"; take {name}.argmax(dim=1) of one-hot or soft labels" if labels.ndim == 2 else ""
        raise ShapeError(f"{name} must have shape (B,) = ({features.shape[0]},), got {tuple(labels.shape)}{fix}")
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
        f"({bad.numel()} of {labels.numel()} out of range); are there K outputs? if a label marks what to leave out, "
        f"pass ignore_index={int(bad[0])}"
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
