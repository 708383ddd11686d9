"""Run a model as a measurement does: in eval mode, and read its logits."""

from __future__ import annotations

import contextlib
import sys
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from tightframe.errors import ArgumentError, Notice, ShapeError

Logits = str | int | Callable[[Any], Tensor]
T = TypeVar("T")

PATIENCE = 3.0  # seconds before a pass shows its progress


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

    Two things that bypass hooks are switched off as well: the fast path of ``nn.TransformerEncoder``, and graphs of
    ``torch.compile``.
    """
    # Nothing was compiled if dynamo was never imported, and importing it takes seconds.
    compiled = "torch._dynamo" in sys.modules
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with restored_modes(model), torch.compiler.set_stance("force_eager") if compiled else contextlib.nullcontext():
            model.eval()
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)


def logits_of(output: Any, wanted: Logits | None = None) -> Tensor:
    """Return the logits ``(B, K)``, or ``(B, ..., K)``, that a model returned.

    Args:
        output: Tensor, object with ``logits`` as attribute or key, or tuple whose first tensor of two or more
            dimensions holds the logits, with a notice if others have another width.
        wanted: Key, index or function that finds them in the output; None for the rule above.

    Raises:
        ShapeError: if there are none.
    """
    found: Any
    try:
        if callable(wanted):
            found = wanted(output)
        elif wanted is not None:
            found = getattr(output, wanted) if isinstance(wanted, str) and hasattr(output, wanted) else output[wanted]
        elif isinstance(output, Mapping):
            found = output.get("logits")
        elif isinstance(output, tuple | list) and not hasattr(output, "logits"):
            found = _first_of(output)
        else:
            found = getattr(output, "logits", output)
    except (KeyError, IndexError, TypeError) as error:
        raise ArgumentError(f"logits={wanted!r} does not find logits in {type(output).__name__}: {error!r}") from error
    if not isinstance(found, Tensor) or found.ndim < 2 or not found.is_floating_point():
        seen = f"{found.dtype} {tuple(found.shape)}" if isinstance(found, Tensor) else type(output).__name__
        raise ShapeError(
            f"the model's output must be logits (B, K), got {seen}; pass logits=, the key, index or function that "
            "finds them in the output"
        )
    return found.detach()


def _first_of(output: tuple[Any, ...] | list[Any]) -> Any:
    """Return the first tensor of two or more dimensions of several outputs."""
    parts = [part for part in output if isinstance(part, Tensor) and part.ndim >= 2]
    widths = [part.shape[1] for part in parts if part.ndim == 2]
    if len(set(widths)) > 1:
        warnings.warn(
            f"the model returns outputs of widths {widths}, and the first is taken for the logits; pass logits=0 to "
            "confirm, or another index",
            Notice,
            stacklevel=2,
        )
    return parts[0] if parts else None


def shown(batches: Iterable[T], total: int | None, text: str) -> Iterator[T]:
    """Yield the batches, and show the progress of a long pass on a terminal."""
    start, bar = time.monotonic(), None
    try:
        for index, batch in enumerate(batches):
            yield batch
            if bar is None and sys.stderr.isatty() and time.monotonic() - start > PATIENCE:
                bar = _bar(text, total)
            if bar is not None:
                bar.update(bar.task_ids[0], completed=index + 1)
    finally:
        if bar is not None:
            bar.stop()


def _bar(text: str, total: int | None) -> Any:
    try:
        from rich.console import Console
        from rich.progress import Progress
    except ImportError:
        return None
    bar = Progress(console=Console(stderr=True), transient=True)
    bar.add_task(text, total=total)
    bar.start()
    return bar
