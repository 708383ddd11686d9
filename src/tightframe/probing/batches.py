"""Batches of a user's loader: inputs and labels in any common form, read without changing the loader."""

from __future__ import annotations

import contextlib
import copy
import inspect
import random
import warnings
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import BatchSampler, DataLoader, Dataset, IterableDataset, Sampler, WeightedRandomSampler
from torch.utils.data.distributed import DistributedSampler

from tightframe.errors import ArgumentError, DtypeError, Notice, as_labels

LABEL_NAMES = ("labels", "label", "targets", "target", "y")
ENDLESS = 10_000  # batches after which a loader may be one that never ends
Forward = Callable[[nn.Module, Any], Any]


def split_batch(batch: Any) -> tuple[Any, Any]:
    """Return the inputs of a model, and the labels, from a batch.

    Args:
        batch: Pair ``(inputs, labels, ...)``, whose further parts are left out, or a mapping with one of ``labels``,
            ``label``, ``targets``, ``target`` and ``y``.

    Raises:
        ArgumentError: if it is neither.

    Example:
        >>> split_batch({"image": 1, "label": 2})
        ({'image': 1}, 2)
    """
    if isinstance(batch, Mapping):
        found = [name for name in LABEL_NAMES if name in batch]
        if len(found) == 1:
            return {name: value for name, value in batch.items() if name != found[0]}, batch[found[0]]
        seen = f"a mapping with the keys {list(batch)}"
    elif isinstance(batch, tuple | list):
        if len(batch) >= 2:
            return batch[0], batch[1]
        seen = f"a {type(batch).__name__} of {len(batch)}"
    else:
        seen = type(batch).__name__
    raise ArgumentError(
        "loader must yield batches (inputs, labels), or mappings with exactly one of the keys "
        f"{', '.join(LABEL_NAMES)}, got {seen}; wrap the loader in a generator that yields such batches"
    )


def labels_of(value: Any, device: torch.device) -> Tensor:
    """Return labels as int64 on a device.

    Raises:
        DtypeError: if they are not integers.
    """
    labels = as_labels(value)
    if labels.dtype != torch.int64:
        raise DtypeError(
            f"labels must be integers 0..K-1, got {labels.dtype}; pass class indices, such as argmax(dim=1) of "
            "one-hot or soft labels"
        )
    return labels.to(device, non_blocking=True)


def to_device(value: Any, device: torch.device) -> Any:
    """Return a batch with its tensors on a device, NumPy arrays as tensors, and containers of the same kind."""
    if isinstance(value, np.ndarray) and value.dtype.kind in "fiub":
        return torch.from_numpy(value).to(device, non_blocking=True)
    if hasattr(value, "to"):
        return value.to(device, non_blocking=True) if isinstance(value, Tensor) else value.to(device)
    if isinstance(value, Mapping):
        return {name: to_device(part, device) for name, part in value.items()}
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*(to_device(part, device) for part in value))
    if isinstance(value, list | tuple):
        return type(value)(to_device(part, device) for part in value)
    return value


def call(model: nn.Module, inputs: Any) -> Any:
    """Run a model on the inputs of a batch.

    A mapping is passed by keyword if the model's ``forward`` takes all of its names, else a lone value by position;
    anything else is passed as it is.
    """
    if isinstance(inputs, Mapping) and inputs:
        names, open_ended = _parameters(model)
        if open_ended or set(inputs) <= set(names):
            return model(**inputs)
        if len(inputs) == 1:
            return model(next(iter(inputs.values())))
        if len(names) != 1 or names[0] in inputs:
            raise ArgumentError(
                f"batches must have keys that the model's forward takes, {names}, got {list(inputs)}; rename "
                "them or leave others out, or pass forward=lambda model, inputs: model(...)"
            )
    return model(inputs)


def _parameters(model: nn.Module) -> tuple[list[str], bool]:
    """Return the names that ``forward`` takes, and whether it takes any."""
    parameters = inspect.signature(model.forward).parameters.values()
    kinds = inspect.Parameter
    names = [p.name for p in parameters if p.kind in (kinds.POSITIONAL_OR_KEYWORD, kinds.KEYWORD_ONLY)]
    open_ended = any(p.kind is kinds.VAR_KEYWORD for p in parameters)
    wrapped = getattr(model, "_orig_mod", None) or getattr(model, "module", None)
    return _parameters(wrapped) if open_ended and isinstance(wrapped, nn.Module) else (names, open_ended)


class Reading:
    """One loader, read as it is, with its own sampler, workers and collate; nothing is changed by the reading.

    Every pass begins with the same random numbers, so a shuffled or augmented loader yields the same samples again.

    Args:
        loader: Iterable of batches. A ``DataLoader`` is copied before it is read, so that the iterator of a training is
            not disturbed. A ``CombinedLoader`` of Lightning is read with all that it combines.
        max_batches: Number of batches to read; None for all.
        transfer: Function that moves a batch to the device of a model; None for :func:`to_device`.
    """

    def __init__(
        self, loader: Any, max_batches: int | None = None, transfer: Callable[[Any], Any] | None = None
    ) -> None:
        if not hasattr(loader, "__iter__") and not hasattr(loader, "__getitem__"):
            raise ArgumentError(f"loader must yield batches (inputs, labels), got {type(loader).__name__}")
        if isinstance(loader, Dataset) and not isinstance(loader, IterableDataset):
            raise ArgumentError(
                f"loader must yield batches, got a data set, {type(loader).__name__}; pass DataLoader(...)"
            )
        self.loader = loader
        self.max_batches = max_batches
        self.transfer = transfer
        self._combined = hasattr(loader, "flattened") and hasattr(loader, "iterables")
        self.parts = parts = loader.flattened if self._combined else [loader]
        for part in parts:
            _notice(part)
        self.owners = [owner for part in parts for owner in _owners(part)]
        if self._combined and loader._mode == "max_size_cycle" and len(set(map(length_of, parts))) > 1:
            warnings.warn(
                "the loaders are measured as they are: side by side, where the shorter ones repeat samples; pass a "
                "mapping of splits to measure each alone",
                Notice,
                stacklevel=2,
            )
        self._kept = None if self._combined else _without_padding(loader)

    @property
    def once(self) -> bool:
        """Whether the loader can be read only once."""
        return any(isinstance(part, Iterator) and length_of(part) is None for part in self.parts)

    def __len__(self) -> int:
        """Return the number of batches, as far as it is known; 0 for a stream."""
        length = None if self._combined else length_of(self.loader)  # a CombinedLoader that was not read has none
        return (self.max_batches or 0) if length is None else min(length, self.max_batches or length)

    def batches(self, device: torch.device) -> Iterator[tuple[Any, int | None]]:
        """Yield batches on a device, and how many samples of each count: None for all."""
        left = self._kept
        for index, batch in enumerate(_copy(self.loader)):
            if index == self.max_batches:
                break
            if index == ENDLESS and not len(self):
                warnings.warn(
                    f"a loader without length has yielded {ENDLESS} batches; if it never ends, pass max_batches",
                    Notice,
                    stacklevel=2,
                )
            batch = batch[0] if self._combined else batch  # beside its number, and that of its loader
            batch = to_device(batch, device) if self.transfer is None else self.transfer(batch)
            for part in _parts(batch) if self._combined else [batch]:
                yield part, left
                if left is not None:
                    left -= len(split_batch(part)[1])

    @contextlib.contextmanager
    def undisturbed(self) -> Iterator[None]:
        """Put all random numbers, and the state of samplers, back at the end."""
        states = [(owner, dict(vars(owner))) for owner in self.owners if isinstance(owner, Sampler)]
        inside = [(v, copy.copy(v)) for _, state in states for v in state.values() if isinstance(v, list | dict | set)]
        generators = {id(g): g for owner in self.owners for g in vars(owner).values() if isinstance(g, _GENERATORS)}
        with contextlib.ExitStack() as afterwards:
            for generator in generators.values():
                afterwards.callback(_restorer(generator))
            for container, before in inside:
                afterwards.callback(_put_back, container, before)
            for owner, state in states:
                afterwards.callback(vars(owner).update, state)
                afterwards.callback(vars(owner).clear)
            afterwards.callback(random.setstate, random.getstate())
            afterwards.callback(np.random.set_state, np.random.get_state())
            devices = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else []
            with torch.random.fork_rng(devices=devices):
                yield


_GENERATORS = (torch.Generator, random.Random, np.random.Generator, np.random.RandomState)


def _restorer(generator: Any) -> Callable[[], None]:
    """Return a function that puts a generator back into the state it has now."""
    if isinstance(generator, np.random.Generator):
        inner = generator.bit_generator
        return partial(setattr, inner, "state", copy.deepcopy(inner.state))
    if isinstance(generator, random.Random):
        return partial(generator.setstate, generator.getstate())
    return partial(generator.set_state, generator.get_state())


def _put_back(container: Any, before: Any) -> None:
    """Give a container its earlier parts, unless it still has them: a training may be in the middle of it."""
    now, then = ([*c, *(c.values() if isinstance(c, dict) else ())] for c in (container, before))
    if len(now) != len(then) or any(a is not b for a, b in zip(now, then, strict=True)):
        container.clear()
        container.extend(before) if isinstance(container, list) else container.update(before)


def _owners(loader: Any) -> list[Any]:
    """Return the loader, its samplers and its data sets: everything that may hold random numbers of its own."""
    found: dict[int, Any] = {}
    waiting = [loader]
    while waiting:
        owner = waiting.pop()
        if id(owner) in found or not hasattr(owner, "__dict__"):
            continue
        found[id(owner)] = owner
        for value in vars(owner).values():
            parts = value if isinstance(value, list | tuple) and len(value) <= 64 else [value]
            waiting += [part for part in parts if isinstance(part, Sampler | Dataset | DataLoader)]
    return list(found.values())


def _copy(loader: Any) -> Any:
    """Return a loader whose iteration does not touch that of the one given."""
    if isinstance(loader, DataLoader):
        loader = copy.copy(loader)
        # Its workers end with the pass; those of the one given may be in the middle of an epoch.
        vars(loader).update(_iterator=None, persistent_workers=False)
    elif hasattr(loader, "flattened") and hasattr(loader, "iterables"):
        loader = copy.copy(loader)
        loader._iterator = None
        loader.flattened = [_copy(part) for part in loader.flattened]
    return loader


def _parts(combined: Any) -> list[Any]:
    """Return the batches that a ``CombinedLoader`` took together: one of each loader, or of one alone."""
    parts = list(combined.values()) if isinstance(combined, Mapping) else combined
    nested = isinstance(parts, list | tuple) and all(isinstance(p, tuple | list | Mapping | None) for p in parts)
    return [lone for part in parts if part is not None for lone in _parts(part)] if nested else [combined]


def _without_padding(loader: Any) -> int | None:
    """Return how many samples a rank has before the repeats that a ``DistributedSampler`` pads with."""
    sampler = getattr(loader, "sampler", None)
    if not isinstance(sampler, DistributedSampler):
        sampler = getattr(getattr(loader, "batch_sampler", None), "sampler", None)
    if not isinstance(sampler, DistributedSampler) or sampler.drop_last:
        return None
    return len(range(sampler.rank, len(sampler.dataset), sampler.num_replicas))  # type: ignore[arg-type]  # it is sized


def length_of(loader: Any) -> int | None:
    """Return the number of batches of a loader, or None for a stream."""
    try:
        return len(loader)
    except TypeError:
        return None


def _notice(loader: Any) -> None:
    """Give a notice if a loader leaves out samples, or repeats them."""
    if not isinstance(loader, DataLoader) or isinstance(loader.dataset, IterableDataset):
        return
    batches = loader.batch_sampler
    sampler: Any = batches.sampler if type(batches) is BatchSampler else loader.sampler
    said = None
    if isinstance(sampler, WeightedRandomSampler) or getattr(sampler, "replacement", False) is True:
        said = f"its {type(sampler).__name__} repeats samples and leaves out others"
    elif type(batches) is BatchSampler and batches.drop_last and (rest := len(sampler) % batches.batch_size):
        said = f"drop_last leaves out {rest} of {len(sampler)} samples"
    if said is not None:
        warnings.warn(f"the loader is measured as it is: {said}; pass another one to measure all", Notice, stacklevel=2)
