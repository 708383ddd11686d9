"""torchmetrics classes over the functions of ``tightframe.functional``."""

from tightframe.metrics.collapse import CDNV, NC1, NC2, NC3, MomentsMetric, NeuralCollapse
from tightframe.metrics.samples import NC4Agreement, NCCAccuracy

__all__ = ["CDNV", "NC1", "NC2", "NC3", "MomentsMetric", "NC4Agreement", "NCCAccuracy", "NeuralCollapse"]
