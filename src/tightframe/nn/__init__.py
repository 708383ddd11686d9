"""Modules: classifiers, losses and layers."""

from tightframe.nn.classifiers import Classifier, LinearClassifier, NormalizedLinear
from tightframe.nn.fixed import FrameClassifier, SimplexETFClassifier
from tightframe.nn.gain import variance_preserving_gain
from tightframe.nn.hierarchical_classifiers import ConditionalSoftmaxClassifier, HierCOSClassifier, NodeClassifier
from tightframe.nn.hierarchical_losses import (
    CorrelationLoss,
    CosineGramLoss,
    HACELoss,
    HierCOSLoss,
    HXELoss,
    SoftLabelLoss,
)
from tightframe.nn.linear import ETFLinear
from tightframe.nn.losses import DotRegressionLoss, FeatureLoss, LogitAdjustedCrossEntropy
from tightframe.nn.nearest import NearestETFClassifier
from tightframe.nn.tracking import ClassMeanTracker
from tightframe.nn.transform import FeatureTransform, ResidualBlock

__all__ = [
    "ClassMeanTracker",
    "Classifier",
    "ConditionalSoftmaxClassifier",
    "CorrelationLoss",
    "CosineGramLoss",
    "DotRegressionLoss",
    "ETFLinear",
    "FeatureLoss",
    "FeatureTransform",
    "FrameClassifier",
    "HACELoss",
    "HXELoss",
    "HierCOSClassifier",
    "HierCOSLoss",
    "LinearClassifier",
    "LogitAdjustedCrossEntropy",
    "NearestETFClassifier",
    "NodeClassifier",
    "NormalizedLinear",
    "ResidualBlock",
    "SimplexETFClassifier",
    "SoftLabelLoss",
    "variance_preserving_gain",
]
