"""torchmetrics classes over the functions of ``tightframe.functional``."""

from tightframe.metrics.collapse import CDNV, NC1, NC2, NC3, FrameCollapse, MomentsMetric, NeuralCollapse
from tightframe.metrics.confusion import ConfusedPairs
from tightframe.metrics.samples import NC4Agreement, NCCAccuracy
from tightframe.metrics.severity import HierarchicalDistance, HierarchicalMetrics, MistakeSeverity

__all__ = [
    "CDNV",
    "NC1",
    "NC2",
    "NC3",
    "ConfusedPairs",
    "FrameCollapse",
    "HierarchicalDistance",
    "HierarchicalMetrics",
    "MistakeSeverity",
    "MomentsMetric",
    "NC4Agreement",
    "NCCAccuracy",
    "NeuralCollapse",
]
