"""Look inside a model while it runs: tap its layers, measure collapse in one pass, find its effective depth."""

from tightframe.probing.classifier import find_classifier, num_outputs
from tightframe.probing.collapse import (
    FEATURES,
    Measurement,
    gather,
    layer_metrics,
    measure,
    sample_metrics,
)
from tightframe.probing.curves import LayerCurves, probe_layers
from tightframe.probing.depth import effective_depth
from tightframe.probing.names import linear_maps, match_layers
from tightframe.probing.probe import Probe

__all__ = [
    "FEATURES",
    "LayerCurves",
    "Measurement",
    "Probe",
    "effective_depth",
    "find_classifier",
    "gather",
    "layer_metrics",
    "linear_maps",
    "match_layers",
    "measure",
    "num_outputs",
    "probe_layers",
    "sample_metrics",
]
