"""Measure, induce and explain neural collapse in PyTorch classifiers."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tightframe import functional, metrics, nn
    from tightframe.frames import SimplexETF, hierarchy_aware_frame, nearest_simplex_etf, simplex_etf
    from tightframe.functional import ClassMoments
    from tightframe.hierarchy import Tree
    from tightframe.probing import Probe, find_classifier, measure
    from tightframe.records import Records

__version__ = "0.1.0"

__all__ = [
    "ClassMoments",
    "Probe",
    "Records",
    "SimplexETF",
    "Tree",
    "find_classifier",
    "functional",
    "hierarchy_aware_frame",
    "measure",
    "metrics",
    "nearest_simplex_etf",
    "nn",
    "simplex_etf",
]

_HOMES = {
    "ClassMoments": "functional",
    "Probe": "probing",
    "Records": "records",
    "SimplexETF": "frames",
    "Tree": "hierarchy",
    "find_classifier": "probing",
    "hierarchy_aware_frame": "frames",
    "measure": "probing",
    "nearest_simplex_etf": "frames",
    "simplex_etf": "frames",
}


def __getattr__(name: str) -> Any:
    # Lazy, so that the command line answers `--help` before torch is imported.
    if name in _HOMES:
        return getattr(importlib.import_module(f"tightframe.{_HOMES[name]}"), name)
    if name in __all__:
        return importlib.import_module(f"tightframe.{name}")
    raise AttributeError(f"module 'tightframe' has no attribute {name!r}")
