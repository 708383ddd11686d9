"""Facts of class moments that several metrics need, computed once."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

from torch import Tensor

from tightframe.moments import ClassMoments

T = TypeVar("T")


class Present(NamedTuple):
    """Moments of the classes that have samples, to read and not to change.

    Args:
        which: Index of these classes among the K.
        number: Number K' of them.
        counts: Samples of each ``(K',)``.
        means: Class means ``(K', d)``.
        traces: Sums of squared distances from these ``(K',)``.
    """

    which: Tensor | slice
    number: int
    counts: Tensor
    means: Tensor
    traces: Tensor


def fact(moments: ClassMoments, function: Callable[..., T], *options: Any) -> T:
    """Return ``function(moments, *options)``, kept until the moments change; it must not be changed itself.

    Changes of tensors made in inference mode are not counted, so of these nothing is kept.
    """
    packed = moments._settle().packed
    version = -1 if packed.is_inference() else packed._version
    if version != moments._facts[0] or version < 0:
        moments._facts = version, {}
    known = moments._facts[1]
    if (function, options) not in known:
        known[function, options] = function(moments, *options)
    return known[function, options]


def of_present(moments: ClassMoments) -> Present:
    """Return the moments of the present classes; where all are present they are views."""
    return fact(moments, _of_present)


def _of_present(moments: ClassMoments) -> Present:
    present = moments.present
    number = int(present.sum())
    which = slice(None) if number == moments.num_classes else present
    return Present(which, number, moments.count[which], moments.mean[which], moments.trace[which])
