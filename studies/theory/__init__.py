"""The figures of the papers on unconstrained-feature models, by name."""

from __future__ import annotations

from collections.abc import Callable

from studies.theory.certificates import network_certificate
from studies.theory.deep import low_rank
from studies.theory.layer_peeled import minority_collapse, minority_collapse_network, oversampling
from studies.theory.linear_heads import linear_head
from studies.theory.max_margin import seli
from studies.theory.one_layer import balanced_norms, bias_kink, relu_death
from studies.theory.ulpm import ulpm_flow, ulpm_network
from tightframe.report.charts import Chart, HeatMap

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
