"""Training with Lightning: the module, callbacks for any Trainer, and one resumable run."""

from tightframe.training.adaptive import AdaptiveETF
from tightframe.training.agd import AGD, scaled_orthogonal_
from tightframe.training.backbones import MLP, VGG13, FreeFeatures, ResNet, SmallCNN, TokenMean, TokenTransformer
from tightframe.training.collapse import NeuralCollapseCallback
from tightframe.training.loaders import BatchSampler, evaluation_loader, make_loader
from tightframe.training.module import ClassifierModule
from tightframe.training.run import check_options, fit
from tightframe.training.transforms import ImageTransform
from tightframe.training.writer import RecordWriter

__all__ = [
    "AGD",
    "MLP",
    "VGG13",
    "AdaptiveETF",
    "BatchSampler",
    "ClassifierModule",
    "FreeFeatures",
    "ImageTransform",
    "NeuralCollapseCallback",
    "RecordWriter",
    "ResNet",
    "SmallCNN",
    "TokenMean",
    "TokenTransformer",
    "check_options",
    "evaluation_loader",
    "fit",
    "make_loader",
    "scaled_orthogonal_",
]
