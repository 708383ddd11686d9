"""Change the layers of a model that exists: fix them, replace them, cut them off, and count what is left to train."""

from tightframe.surgery.batch_norm import reestimate_batch_norm
from tightframe.surgery.classifiers import nearest_class_mean_linear, replace_classifier
from tightframe.surgery.locking import LOCK_KINDS, Fix, Lock, lock_beyond, lock_to_etf
from tightframe.surgery.parameters import LayerParameters, ParameterReport, parameter_report
from tightframe.surgery.transformers import etf_transformer_
from tightframe.surgery.truncation import TruncatedModel, truncate

__all__ = [
    "LOCK_KINDS",
    "Fix",
    "LayerParameters",
    "Lock",
    "ParameterReport",
    "TruncatedModel",
    "etf_transformer_",
    "lock_beyond",
    "lock_to_etf",
    "nearest_class_mean_linear",
    "parameter_report",
    "reestimate_batch_norm",
    "replace_classifier",
    "truncate",
]
