"""The figures of the papers on unconstrained-feature models, by name."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from tightframe.errors import ConfigError, check_choice
from tightframe.report.charts import Chart, HeatMap, write_charts
from tightframe.theory.figures.deep import low_rank
from tightframe.theory.figures.layer_peeled import minority_collapse, minority_collapse_network, oversampling
from tightframe.theory.figures.linear_heads import linear_head
from tightframe.theory.figures.max_margin import seli
from tightframe.theory.figures.network import network_certificate
from tightframe.theory.figures.one_layer import balanced_norms, bias_kink, relu_death
from tightframe.theory.figures.ulpm import ulpm_flow, ulpm_network

Charts = list[Chart | HeatMap]

FIGURES: dict[str, Callable[[int], Charts]] = {
    "minority-collapse": minority_collapse,
    "minority-collapse-network": minority_collapse_network,
    "oversampling": oversampling,
    "balanced-norms": balanced_norms,
    "bias-kink": bias_kink,
    "relu-death": relu_death,
    "seli": seli,
    "ulpm-flow": ulpm_flow,
    "ulpm-network": ulpm_network,
    "network-certificate": network_certificate,
    "low-rank": low_rank,
    "linear-head": linear_head,
}


def draw_figure(name: str | None, seed: int, out: Path | None) -> None:
    """Write a figure of the theory, or list them all.

    Args:
        name: of ``FIGURES``, or None for the list.
        seed: of whatever it draws or trains.
        out: ``*.png`` or ``*.svg``; None is ``<name>.svg`` here.

    Raises:
        ConfigError: if there is no such figure, or it cannot be written.
    """
    if name is None:
        for each, figure in FIGURES.items():
            print(f"{each:<24} {(figure.__doc__ or '').splitlines()[0]}")  # noqa: T201  # the command's result
        return
    check_choice("NAME", name, tuple(FIGURES))
    out = Path(f"{name}.svg") if out is None else out
    if out.suffix not in (".png", ".svg"):
        raise ConfigError(f"--out must end in .png or .svg, got {out}")
    write_charts(out, FIGURES[name](seed))
    print(f"figure: {out}")  # noqa: T201
