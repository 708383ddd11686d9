"""Effective depth: the layer from which nearest class means classify as well as one asks."""

from __future__ import annotations

from collections.abc import Sequence

from tightframe.errors import ArgumentError, EmptyDataError, check_choice


def effective_depth(curve: Sequence[float], epsilon: float = 0.01, mode: str = "suffix") -> int | None:
    r"""Return the ε-effective depth of a network (Galanti, Galanti & Ben-Shaul 2022, arXiv 2202.09028).

    .. math:: \min\{i : \mathrm{err}_i \le \varepsilon\} \quad(\text{first}), \qquad
        \min\{i : \mathrm{err}_j \le \varepsilon \;\forall j \ge i\} \quad(\text{suffix})

    Curves need not fall from layer to layer, least of all where layers are fixed: a model may be cut, or its layers
    locked, where the *suffix* begins.

    Args:
        curve: nearest-class-centre error of the layers 1..L in order of execution, such as
            :attr:`LayerCurves.ncc_error`. A layer whose error is nan does not pass.
        epsilon: ε in [0, 1).
        mode: ``"suffix"`` or ``"first"``.

    Returns:
        The layer, counted from 1, or None if no layer (``"suffix"``: not the last one) has an error of at most ε.

    Raises:
        EmptyDataError: if the curve is empty.
        ArgumentError: if ε or the mode is outside its range.

    Example:
        >>> curve = [0.3, 0.005, 0.04, 0.0, 0.0]
        >>> effective_depth(curve), effective_depth(curve, mode="first"), effective_depth(curve[:3])
        (4, 2, None)
    """
    check_choice("mode", mode, ("suffix", "first"))
    if not 0 <= epsilon < 1:
        raise ArgumentError(f"epsilon must lie in [0, 1), got {epsilon!r}")
    passes = [bool(error <= epsilon) for error in curve]
    if not passes:
        raise EmptyDataError("curve must hold the error of at least one layer, got none")
    if mode == "first":
        return passes.index(True) + 1 if True in passes else None
    failed = max((i for i, passed in enumerate(passes, start=1) if not passed), default=0)
    return failed + 1 if failed < len(passes) else None
