"""``tightframe.plot``: the figure of an object, chosen by its type."""

from __future__ import annotations

import os
from functools import singledispatch
from pathlib import Path
from typing import Any

from torch import Tensor

from tightframe.errors import ArgumentError
from tightframe.frames import Frame
from tightframe.probing import LayerCurves
from tightframe.records import Records
from tightframe.report.charts import Chart, HeatMap, Line, draw_charts
from tightframe.report.history import History, panels
from tightframe.runs import RunDirectory
from tightframe.ufm import Solution


@singledispatch
def plot(x: Any) -> Any:
    """Return a matplotlib figure of an object; notebooks show it, ``.savefig(path)`` writes it.

    Args:
        x: :class:`~tightframe.Records` or a directory of runs (metrics against epochs), the
            :class:`~tightframe.probing.LayerCurves` of a network, a frame or its matrix ``(K, d)`` (its Gram matrix),
            or a :class:`~tightframe.ufm.Solution` (the Gram matrices of classifier and class means).

    Raises:
        ArgumentError: if there is no figure of such an object, or nothing in it to draw.
        MissingExtraError: if matplotlib is not installed.

    Example:
        >>> import tightframe as tf
        >>> figure = tf.plot(tf.simplex_etf(4, 3))
        >>> len(figure.axes)
        2
    """
    known = "Records, a directory of runs, LayerCurves, a frame or a Solution"
    raise ArgumentError(f"x must be one of {known}, got {type(x).__name__}")


@plot.register
def _(x: Records) -> Any:
    found = panels(History(x))
    if not found:
        raise ArgumentError("x must hold a finite number of the whole network or of its features, got none")
    return draw_charts([panel.chart for panel in found], groups=x.unique("run"))


@plot.register
def _(x: RunDirectory) -> Any:
    return plot(x.records)


@plot.register(str)
@plot.register(os.PathLike)
def _(x: str | os.PathLike[str]) -> Any:
    return plot(RunDirectory.read(Path(x)))


@plot.register
def _(x: LayerCurves) -> Any:
    depth = range(1, len(x.layers) + 1)
    shown = {"nearest-class-centre error": x.ncc_error, "CDNV": x.cdnv, "NC1": x.nc1}
    return draw_charts(
        [
            Chart(title, "layer", "", [Line("", depth, values)], log_y=title != "nearest-class-centre error")
            for title, values in shown.items()
        ]
    )


@plot.register(Tensor)
@plot.register(Frame)
def _(x: Frame | Tensor) -> Any:
    matrix = x.as_matrix() if isinstance(x, Frame) else x
    if matrix.ndim != 2:
        raise ArgumentError(f"x must be a frame (K, d), got shape {tuple(matrix.shape)}")
    return draw_charts([HeatMap("Gram matrix", (matrix @ matrix.T).detach().cpu())])


@plot.register
def _(x: Solution) -> Any:
    return draw_charts([HeatMap("class vectors, W Wᵀ", x.gram_W), HeatMap("class means, H Hᵀ", x.gram_H)])
