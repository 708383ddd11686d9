"""Readers and splits: a source hands over a :class:`ClassificationData`, the standard library also a text."""

from tightframe.data.base import ClassificationData, DataSource, long_tailed_counts, stratified_split
from tightframe.data.cifar import CIFAR10, CIFAR100
from tightframe.data.digits import Digits
from tightframe.data.features import FeatureFile, FeatureFiles, write_features
from tightframe.data.free import FreeSamples
from tightframe.data.images import STL10, ImageFolder
from tightframe.data.inaturalist import INaturalist
from tightframe.data.stdlib import ByteCorpus, StdlibBytes, StdlibModules

__all__ = [
    "CIFAR10",
    "CIFAR100",
    "STL10",
    "ByteCorpus",
    "ClassificationData",
    "DataSource",
    "Digits",
    "FeatureFile",
    "FeatureFiles",
    "FreeSamples",
    "INaturalist",
    "ImageFolder",
    "StdlibBytes",
    "StdlibModules",
    "long_tailed_counts",
    "stratified_split",
    "write_features",
]
