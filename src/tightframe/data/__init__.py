"""Readers and splits: every source hands over a :class:`ClassificationData`."""

from tightframe.data.base import ClassificationData, DataSource, long_tailed_counts, stratified_split
from tightframe.data.digits import Digits
from tightframe.data.features import FeatureFile, FeatureFiles, write_features
from tightframe.data.stdlib import StdlibModules

__all__ = [
    "ClassificationData",
    "DataSource",
    "Digits",
    "FeatureFile",
    "FeatureFiles",
    "StdlibModules",
    "long_tailed_counts",
    "stratified_split",
    "write_features",
]
