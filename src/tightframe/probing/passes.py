"""Run a model over data as a measurement does: in eval mode, without gradients, leaving it as it was."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from tightframe._checks import ArgumentError, ShapeError, as_labels
from tightframe.functional import ClassMoments
from tightframe.probing.probe import Probe

Forward = Callable[[nn.Module, Any], Any]
Each = Callable[[dict[str, Tensor], Tensor, Any], None]


def run(
    model: nn.Module,
    batches: Iterable[Any],
    probe: Probe,
    each: Each,
    *,
    forward: Forward | None = None,
    mask_of: Callable[[Any], Tensor] | None = None,
) -> None:
    """Run the model over batches once and call ``each(features, labels, output)`` after every forward pass.

    Args:
        model: any module; its training mode is restored afterwards.
        batches: of ``(inputs, labels)``, moved to the device of the model's parameters.
        probe: of the model.
        each: receives what the probe took, by layer; the labels; and what the model returned.
        forward: how to run the model on a batch's inputs; ``model(inputs)`` by default.
        mask_of: from a batch to the mask ``(B, T)`` of its tokens, for a probe that pools by it.

    Raises:
        ArgumentError: if a mask keeps no token of a sample, or the probe raises it.
    """
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    with evaluating(model), torch.no_grad(), probe:
        for batch in batches:
            inputs, labels = _to(batch[0], device), as_labels(batch[1]).to(device, non_blocking=True)
            if mask_of is not None:
                mask = mask_of(batch)
                if not bool((mask != 0).any(dim=-1).all()):
                    raise ArgumentError("mask_of must keep at least one token of every sample, got a sample without")
                probe.mask = mask.to(device)
            output = model(inputs) if forward is None else forward(model, inputs)
            each(probe.take(), labels, output)


@contextlib.contextmanager
def restored_modes(model: nn.Module) -> Iterator[None]:
    """Put every module back into its own training mode at the end."""
    modes = [(module, module.training) for module in model.modules()]
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


@contextlib.contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Switch every module to eval mode, and each back to its own mode.

    The fast path of ``nn.TransformerEncoder`` goes past the layers, so it is switched off as well.
    """
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with restored_modes(model):
            model.eval()
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)


def _to(value: Any, device: torch.device) -> Any:
    if isinstance(value, Mapping) and not hasattr(value, "to"):
        return {name: _to(part, device) for name, part in value.items()}
    return value.to(device, non_blocking=True) if hasattr(value, "to") else value


class Batch(NamedTuple):
    """Features ``(B, d)`` of a batch by layer, its labels ``(B,)``, and what the network made of it, if known."""

    features: dict[str, Tensor]
    labels: Tensor
    outputs: Tensor | None


class Held:
    """Batches kept on the CPU for a second look, as long as they fit into so many bytes; beyond that none.

    Args:
        limit: bytes; 0 keeps nothing.

    Attributes:
        batches: what is kept.
        complete: whether every batch was kept.
    """

    def __init__(self, limit: int = 0) -> None:
        self.batches: list[Batch] = []
        self.complete = limit > 0
        self._left = limit

    def add(
        self, features: dict[str, Tensor], labels: Tensor, outputs: Tensor | None = None, wanted: Tensor | None = None
    ) -> None:
        """Keep a batch, of which perhaps only some samples are wanted, or drop all if it is too much."""
        if not self.complete:
            return

        def kept(value: Tensor) -> Tensor:
            value = value if wanted is None else value[wanted]
            self._left -= value.nbytes
            value = value.cpu()
            # A view, such as the first of many tokens, would keep all that it is a view of.
            return value.clone() if value.untyped_storage().nbytes() > value.nbytes else value

        features = {name: kept(value) for name, value in features.items()}
        self.batches.append(Batch(features, kept(labels), None if outputs is None else kept(outputs)))
        if self._left < 0:
            self.complete = False
            self.batches.clear()


def moments_on(moments: ClassMoments, device: torch.device) -> ClassMoments:
    """Return moments on a device; on their own they share memory."""
    return ClassMoments(moments.num_classes, moments.dim, scatter=moments.has_scatter, packed=moments.packed.to(device))


def logits_of(output: Any, num_classes: int) -> Tensor:
    """Return the logits ``(B, K)`` that a model returned, perhaps as an attribute.

    Raises:
        ShapeError: if there are none.
    """
    logits = getattr(output, "logits", output)
    if not isinstance(logits, Tensor) or logits.ndim != 2 or logits.shape[1] != num_classes:
        seen = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        raise ShapeError(f"the model's output must be logits (B, K = {num_classes}), got {seen}; pass hold_bytes=0")
    return logits.detach()
