"""Look inside a model while it runs: tap its layers, measure collapse in one pass, find its effective depth."""

from tightframe.probing.classifier import find_classifier
from tightframe.probing.curves import LayerCurves, effective_depth, probe_layers
from tightframe.probing.engine import Engine
from tightframe.probing.measure import measure, record, watch
from tightframe.probing.names import linear_maps, match_layers
from tightframe.probing.probe import Probe
from tightframe.probing.split import FEATURES, Measured, Place

__all__ = [
    "FEATURES",
    "Engine",
    "LayerCurves",
    "Measured",
    "Place",
    "Probe",
    "effective_depth",
    "find_classifier",
    "linear_maps",
    "match_layers",
    "measure",
    "probe_layers",
    "record",
    "watch",
]
