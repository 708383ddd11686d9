"""Tensors of a trained network, as the certificates take them."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from tightframe.errors import (
    DtypeError,
    EmptyDataError,
    ShapeError,
    check_features,
    check_finite,
    check_label_range,
    check_labels,
)


def checked_layers(
    inputs: tuple[str, Tensor], labels: Tensor, weights: Mapping[str, Tensor], biases: Mapping[str, Tensor | None]
) -> tuple[Tensor, Tensor, list[Tensor], list[Tensor | None]]:
    """Return inputs, labels, weights and biases of neighbouring linear layers, float64 on the CPU.

    Args:
        inputs: Name and values of the inputs ``(N, d_in)`` of the first layer.
        labels: Labels ``(N,)`` in 0..K-1, every class at least once.
        weights: Weights ``(out, in)`` by name, in the order in which they act; the last has K rows.
        biases: Bias of each, or None, by name.

    Raises:
        ShapeError, DtypeError, DeviceError, LabelError, NonFiniteError: if the tensors do not fit each other.
        EmptyDataError: if a class has no sample.
    """
    name, x = inputs
    check_features(x, name=name)
    check_labels(labels, x)
    tensors, width = dict([inputs]), x.shape[1]
    for (name, weight), (bias_name, bias) in zip(weights.items(), biases.items(), strict=True):
        check_features(weight, width, name=name)
        width = len(weight)
        tensors[name] = weight
        if bias is None:
            continue
        if not bias.is_floating_point():
            raise DtypeError(f"{bias_name} must be floating point, got {bias.dtype}")
        if bias.shape != (width,):
            raise ShapeError(f"{bias_name} must have shape {(width,)}, got {tuple(bias.shape)}")
        tensors[bias_name] = bias
    check_label_range(labels, width)
    for name, values in tensors.items():
        check_finite(values, name)
    labels = labels.detach().cpu().long()
    missing = (labels.bincount(minlength=width) == 0).nonzero().flatten().tolist()
    if missing:
        raise EmptyDataError(
            f"labels must hold every class of K = {width}, got none of {missing[:10]}; pass the samples of all classes "
            "that the network was trained on"
        )
    exact = {name: values.detach().to("cpu", torch.float64) for name, values in tensors.items()}
    return exact[inputs[0]], labels, [exact[name] for name in weights], [exact.get(name) for name in biases]
