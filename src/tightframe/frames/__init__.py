"""Geometry that needs no data: frames of class vectors."""

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
    "MatrixFrame",
    "NearestETF",
    "SimplexETF",
    "coherence",
    "is_equiangular",
    "is_simplex_etf",
    "is_tight",
    "is_unit_norm",
    "nearest_simplex_etf",
    "simplex_etf",
    "welch_bound",
]
