"""Geometry that needs no data: frames of class vectors."""

from tightframe.frames.gram import GramFrame, barz_denzler_frame, frame_of_gram
from tightframe.frames.hierarchical import (
    hierarchy_aware_frame,
    max_separation_asymptote,
    suggest_gamma,
    tree_max_separation,
)
from tightframe.frames.layers import control_weight, nearest_simplex_weight, simplex_weight
from tightframe.frames.nearest import NearestETF, nearest_simplex_etf
from tightframe.frames.operator import (
    Frame,
    MatrixFrame,
    coherence,
    is_equiangular,
    is_simplex_etf,
    is_tight,
    is_unit_norm,
    welch_bound,
)
from tightframe.frames.simplex import SimplexETF, simplex_etf

__all__ = [
    "Frame",
    "GramFrame",
    "MatrixFrame",
    "NearestETF",
    "SimplexETF",
    "barz_denzler_frame",
    "coherence",
    "control_weight",
    "frame_of_gram",
    "hierarchy_aware_frame",
    "is_equiangular",
    "is_simplex_etf",
    "is_tight",
    "is_unit_norm",
    "max_separation_asymptote",
    "nearest_simplex_etf",
    "nearest_simplex_weight",
    "simplex_etf",
    "simplex_weight",
    "suggest_gamma",
    "tree_max_separation",
    "welch_bound",
]
