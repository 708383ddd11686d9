"""Modules over frames and functions: classifiers and losses."""

from tightframe.nn.classifiers import (
    Classifier,
    FrameClassifier,
    LinearClassifier,
    NormalizedLinear,
    SimplexETFClassifier,
)
from tightframe.nn.losses import DotRegressionLoss, FeatureLoss, LogitAdjustedCrossEntropy
from tightframe.nn.nearest import NearestETFClassifier
from tightframe.nn.tracking import ClassMeanTracker

__all__ = [
    "ClassMeanTracker",
    "Classifier",
    "DotRegressionLoss",
    "FeatureLoss",
    "FrameClassifier",
    "LinearClassifier",
    "LogitAdjustedCrossEntropy",
    "NearestETFClassifier",
    "NormalizedLinear",
    "SimplexETFClassifier",
]
