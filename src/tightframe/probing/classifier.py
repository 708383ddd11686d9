"""Find the classifier of a model: its last linear map."""

from __future__ import annotations

from torch import nn

from tightframe._checks import ArgumentError
from tightframe.nn import Classifier


def find_classifier(model: nn.Module) -> str:
    """Return the dotted name of the model's classifier: its last :class:`tightframe.nn.Classifier` or ``nn.Linear``.

    Raises:
        ArgumentError: if there is neither; name the layer yourself then.

    Example:
        >>> find_classifier(nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3)))
        '2'
    """
    named = list(model.named_modules())
    for kinds in (Classifier, nn.Linear):
        names = [name for name, module in named if isinstance(module, kinds)]
        if names:
            return names[-1]
    raise ArgumentError("model has neither a tightframe classifier nor an nn.Linear; name the layer to measure")


def num_outputs(classifier: nn.Module) -> int:
    """Return K of a classifier, its ``out_features``.

    Raises:
        ArgumentError: if it has none.
    """
    size = getattr(classifier, "out_features", None)
    if not isinstance(size, int):
        raise ArgumentError(f"{type(classifier).__name__} has no integer out_features; pass num_classes=K")
    return size
