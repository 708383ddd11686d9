"""Re-estimate the running statistics of batch norm after earlier layers changed."""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim.swa_utils import update_bn

from tightframe.errors import EmptyDataError
from tightframe.probing.batches import to_device
from tightframe.probing.passes import restored_modes


def batch_norms(model: nn.Module) -> list[_BatchNorm]:
    """Return the batch norms of a model that keep statistics."""
    return [m for m in model.modules() if isinstance(m, _BatchNorm) and m.running_mean is not None]


def reestimate_batch_norm(model: nn.Module, loader: Iterable[Any]) -> int:
    """Estimate the running statistics of every batch norm from one pass over data, and return how many there are.

    A layer that changes leaves those after it with statistics of activations that no longer occur. Most of what locking
    a trained network costs is this.

    It is :func:`torch.optim.swa_utils.update_bn`: the mean over the batches of the statistics of each, in training mode
    and without gradients; dropout is active as it was when they were first estimated. Batch norms in eval mode, frozen
    ones, are estimated too. Modes and momenta are then what they were. Without batch norm nothing is read.

    Args:
        model: any module that maps inputs to something.
        loader: Loader of inputs, or of tuples or lists that begin with them; it is moved to the model's device.

    Raises:
        EmptyDataError: if there is no batch. After any error, those of the model included, the statistics are those
            before.

    Example:
        >>> model = nn.BatchNorm1d(1)
        >>> reestimate_batch_norm(model, [torch.tensor([[1.0], [3.0]])]), model.running_mean.item()
        (1, 2.0)
    """
    norms = batch_norms(model)
    if not norms:
        return 0
    batches = iter(loader)
    first = next(batches, None)
    if first is None:
        raise EmptyDataError("loader must hold at least one batch, got none")
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    before = [(m, m.momentum, {name: b.clone() for name, b in m.named_buffers()}) for m in norms]
    with restored_modes(model):
        try:
            inputs = (
                batch[0] if isinstance(batch, tuple | list) else batch for batch in itertools.chain([first], batches)
            )
            update_bn(([to_device(part, device)] for part in inputs), model)
        except BaseException:
            for norm, _, buffers in before:
                norm.load_state_dict(buffers, strict=False)
            raise
        finally:
            for norm, momentum, _ in before:
                norm.momentum = momentum
    return len(norms)
