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
    from tightframe.report import plot
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

# The room of each public name; a room that is public itself has its own name.
_HOMES = {
    "ClassMoments": "moments",
    "Probe": "probing",
    "Records": "records",
    "SimplexETF": "frames",
    "Tree": "hierarchy",
    "effective_depth": "probing",
    "etf_transformer_": "surgery",
    "find_classifier": "probing",
    "functional": "functional",
    "hierarchy_aware_frame": "frames",
    "lock_to_etf": "surgery",
    "measure": "probing",
    "metrics": "metrics",
    "nearest_simplex_etf": "frames",
    "nn": "nn",
    "parameter_report": "surgery",
    "plot": "report",
    "replace_classifier": "surgery",
    "runs": "runs",
    "simplex_etf": "frames",
    "ufm": "ufm",
    "watch": "probing",
}
__all__ = list(_HOMES)  # one home for the names


def __dir__() -> list[str]:
    return [*__all__, "__version__"]


def __getattr__(name: str) -> Any:
    # Lazy, so that the command line answers `--help` before torch is imported.
    if name not in _HOMES:
        raise AttributeError(f"module 'tightframe' has no attribute {name!r}")
    home = importlib.import_module(f"tightframe.{_HOMES[name]}")
    return home if name == _HOMES[name] else getattr(home, name)
