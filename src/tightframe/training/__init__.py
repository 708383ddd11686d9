"""Training with Lightning: the module, callbacks for any Trainer, and one resumable run."""

from tightframe.training.backbones import MLP, SmallCNN, TokenMean
from tightframe.training.collapse import NeuralCollapseCallback
from tightframe.training.loaders import BatchSampler, evaluation_loader, make_loader
from tightframe.training.module import ClassifierModule
from tightframe.training.run import check_options, fit
from tightframe.training.writer import RecordWriter

__all__ = [
    "MLP",
    "BatchSampler",
    "ClassifierModule",
    "NeuralCollapseCallback",
    "RecordWriter",
    "SmallCNN",
    "TokenMean",
    "check_options",
    "evaluation_loader",
    "fit",
    "make_loader",
]
