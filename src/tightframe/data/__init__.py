"""Readers and splits: every source hands over a :class:`ClassificationData`."""

from tightframe.data.base import ClassificationData, DataSource, long_tailed_counts, stratified_split
from tightframe.data.cifar import CIFAR10, CIFAR100
from tightframe.data.digits import Digits
from tightframe.data.features import FeatureFile, FeatureFiles, write_features
from tightframe.data.free import FreeSamples
from tightframe.data.images import STL10, ImageFolder
from tightframe.data.inaturalist import INaturalist
from tightframe.data.stdlib import StdlibModules

__all__ = [
    "CIFAR10",
    "CIFAR100",
    "STL10",
    "ClassificationData",
    "DataSource",
    "Digits",
    "FeatureFile",
    "FeatureFiles",
    "FreeSamples",
    "INaturalist",
    "ImageFolder",
    "StdlibModules",
    "long_tailed_counts",
    "stratified_split",
    "write_features",
]
