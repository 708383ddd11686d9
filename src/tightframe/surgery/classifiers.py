"""Another classifier for a model: one that is given, or the nearest class mean as a linear layer."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from tightframe.errors import ArgumentError, DeviceError, DimensionError, EmptyDataError
from tightframe.moments import ClassMoments
from tightframe.probing import find_classifier
from tightframe.surgery._modules import refuse_wrapped


def replace_classifier(model: nn.Module, classifier: nn.Module, inputs: Any = None) -> nn.Module:
    """Put another classifier in the place of the model's own, which is returned.

    The place is what :func:`tightframe.find_classifier` finds, under every name that it has. The new one gets the
    training mode of the old; parameters tied to the old one's are tied to nothing any more.

    Args:
        model: any module, changed in place. An optimiser of it knows the old parameters: build it afterwards.
        classifier: Map from features of the same width to logits; the number of classes may be another.
        inputs: batch of inputs by which :func:`tightframe.find_classifier` finds the place for sure.

    Raises:
        ArgumentError: if the model has no classifier, is one, or is wrapped.
        DimensionError: if the widths differ; one without ``in_features`` is not asked.
        DeviceError: if the two lie on different devices.

    Example:
        >>> model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
        >>> replace_classifier(model, nn.Linear(8, 5))
        Linear(in_features=8, out_features=3, bias=True)
        >>> model(torch.ones(2, 4)).shape
        torch.Size([2, 5])
    """
    name = find_classifier(model, inputs)
    if not name:
        raise ArgumentError(f"model is itself the classifier to replace, a {type(model).__name__}; use the new one")
    refuse_wrapped(model, name)
    old = model.get_submodule(name)
    given, wanted = getattr(classifier, "in_features", None), getattr(old, "in_features", None)
    if isinstance(given, int) and isinstance(wanted, int) and given != wanted:
        raise DimensionError(f"classifier must take features of width d = {wanted} as {name!r} does, got d = {given}")
    devices = {p.device for module in (old, classifier) for p in (*module.parameters(), *module.buffers())}
    if len(devices) > 1:
        raise DeviceError(
            f"classifier and model must lie on one device, got {', '.join(sorted(map(str, devices)))}; move it first"
        )
    places = [(parent, key) for parent in model.modules() for key, child in parent._modules.items() if child is old]
    for parent, key in places:
        parent._modules[key] = classifier
    classifier.train(old.training)
    return old


def nearest_class_mean_linear(moments: ClassMoments) -> nn.Linear:
    r"""Return the linear layer whose largest logit is that of the nearest class mean.

    .. math:: W = M, \quad b_k = -\tfrac12 \lVert m_k\rVert^2, \qquad
        \operatorname*{argmin}_k \lVert h - m_k\rVert^2 = \operatorname*{argmax}_k\, (W h + b)_k.

    A class without samples gets a row of zeros and the most negative number for its bias: it is never the largest, and
    unlike with minus infinity the layer can be trained further.

    Args:
        moments: Moments of the training features ``(N, d)``.

    Returns:
        d to K, in PyTorch's default dtype, on the device of the moments. Where features share a mean much longer than
        what tells them apart, the logits lose the digits that the two have in common.

    Raises:
        EmptyDataError: if no sample was seen.

    Example:
        >>> moments = ClassMoments.from_samples(torch.tensor([[0.0], [4.0]]), torch.tensor([0, 2]), num_classes=3)
        >>> nearest_class_mean_linear(moments)(torch.tensor([[1.9], [2.1], [-9.0]])).argmax(dim=1)
        tensor([0, 2, 0])
    """
    present = moments.present
    if not bool(present.any()):
        raise EmptyDataError("no sample was seen; update the moments with at least one batch first")
    dtype = torch.get_default_dtype()
    linear = nn.Linear(moments.dim, moments.num_classes, device=moments.device, dtype=dtype)
    offset = moments.mean.square().sum(dim=1) / -2
    with torch.no_grad():
        linear.weight.copy_(moments.mean)
        linear.bias.copy_(offset.where(present, torch.finfo(dtype).min))
    return linear
