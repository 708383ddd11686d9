"""Modules over frames and functions: classifiers and losses."""

from tightframe.nn.classifiers import (
    Classifier,
    FrameClassifier,
    LinearClassifier,
    NormalizedLinear,
    SimplexETFClassifier,
)
from tightframe.nn.losses import DotRegressionLoss, FeatureLoss, LogitAdjustedCrossEntropy

__all__ = [
    "Classifier",
    "DotRegressionLoss",
    "FeatureLoss",
    "FrameClassifier",
    "LinearClassifier",
    "LogitAdjustedCrossEntropy",
    "NormalizedLinear",
    "SimplexETFClassifier",
]
