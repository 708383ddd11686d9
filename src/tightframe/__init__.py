"""Measure, induce and explain neural collapse in PyTorch classifiers."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tightframe import functional, metrics, nn, runs, ufm
    from tightframe.frames import SimplexETF, hierarchy_aware_frame, nearest_simplex_etf, simplex_etf
    from tightframe.hierarchy import Tree
    from tightframe.moments import ClassMoments
    from tightframe.probing import Probe, effective_depth, find_classifier, measure, watch
    from tightframe.records import Records
    from tightframe.report.plot import plot
    from tightframe.surgery import etf_transformer_, lock_to_etf, parameter_report, replace_classifier

__version__ = "0.1.0"

__all__ = [
    "ClassMoments",
    "Probe",
    "Records",
    "SimplexETF",
    "Tree",
    "effective_depth",
    "etf_transformer_",
    "find_classifier",
    "functional",
    "hierarchy_aware_frame",
    "lock_to_etf",
    "measure",
    "metrics",
    "nearest_simplex_etf",
    "nn",
    "parameter_report",
    "plot",
    "replace_classifier",
    "runs",
    "simplex_etf",
    "ufm",
    "watch",
]

# The room of each public name; the others are rooms themselves.
_HOMES = {
    "ClassMoments": "moments",
    "Probe": "probing",
    "Records": "records",
    "SimplexETF": "frames",
    "Tree": "hierarchy",
    "effective_depth": "probing",
    "etf_transformer_": "surgery",
    "find_classifier": "probing",
    "hierarchy_aware_frame": "frames",
    "lock_to_etf": "surgery",
    "measure": "probing",
    "nearest_simplex_etf": "frames",
    "parameter_report": "surgery",
    "plot": "report.plot",
    "replace_classifier": "surgery",
    "simplex_etf": "frames",
    "watch": "probing",
}


def __dir__() -> list[str]:
    return [*__all__, "__version__"]


def __getattr__(name: str) -> Any:
    # Lazy, so that the command line answers `--help` before torch is imported.
    if name in _HOMES:
        return getattr(importlib.import_module(f"tightframe.{_HOMES[name]}"), name)
    if name in __all__:
        return importlib.import_module(f"tightframe.{name}")
    if name == "_checks":  # scripts of fault reports catch errors by this name
        return importlib.import_module("tightframe.errors")
    raise AttributeError(f"module 'tightframe' has no attribute {name!r}")
