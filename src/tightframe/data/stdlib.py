"""Python's own standard library as text: windows of source code and the module they come from."""

from __future__ import annotations

import os
import re
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import TensorDataset

from tightframe.data._stdlib_files import library_root, library_version, source_files
from tightframe.data.base import ClassificationData, DataSource, check_fraction
from tightframe.errors import ArgumentError, EmptyDataError, check_positive, require_extra

PERIOD = 768
TEST = 128
GAP = 64
TRAIN = PERIOD - TEST - 2 * GAP

_TOKEN = re.compile(rb"[A-Za-z_]\w*|\d+|[^\w\s]")

Stretch = tuple[int, int]


class StdlibModules(DataSource):
    r"""Windows of the standard library's source, to be classified by module; naturally long-tailed, with a topic tree.

    - **Classes.** Every module of at least ``min_bytes``, and ``package.*`` for a package's smaller files where these
      reach ``min_bytes`` together, under the topic that the documentation's contents list its package in. Order: the
      contents', then package and module by name. Tests and what the contents do not list are left out, and so is a
      class without a window of train and of test.
    - **Tokens.** ``[A-Za-z_]\w*|\d+|[^\w\s]`` on bytes; the id is crc32 modulo ``vocabulary``.
    - **Split.** Each file is cut into periods of 768 tokens: the last 128 are test, the 64 on either side of these
      belong to no part, the rest is train. Within each such stretch of train tokens the last ``validation_fraction``,
      rounded to whole windows but at least one, is validation, and again the 64 tokens before it belong to no part; a
      stretch too short to leave a window of train gives none. Windows do not overlap.

    K depends on the Python that runs, so a record of a result should state :attr:`python_version`: Python 3.11.7 gives
    207 classes in 117 packages and 25 topics, 36,794 windows of train and 8,311 of test.

    Args:
        window: tokens in one input, 1 to 128.
        vocabulary: number of token ids, at least 2.
        validation_fraction: share of each stretch of train tokens, in [0, 1).
        min_bytes: size of the smallest class, at least 1; line ends count as one byte.
        root: directory to read in place of the running Python's standard library.

    Raises:
        ArgumentError: if an argument lies outside its range.
    """

    def __init__(
        self,
        window: int = 32,
        vocabulary: int = 16384,
        validation_fraction: float = 0.0,
        min_bytes: int = 12000,
        root: str | os.PathLike[str] | None = None,
    ) -> None:
        check_positive("window", window)
        if window > TEST:
            raise ArgumentError(f"window must be at most {TEST}, the tokens in one stretch of test, got {window}")
        check_positive("vocabulary", vocabulary, minimum=2)
        check_fraction("validation_fraction", validation_fraction)
        check_positive("min_bytes", min_bytes)
        if validation_fraction and not _held_out(TRAIN, window, validation_fraction):
            raise ArgumentError(
                f"validation_fraction={validation_fraction} leaves train no window of {window} among {TRAIN} tokens; "
                "lower either"
            )
        self.window = window
        self.vocabulary = vocabulary
        self.validation_fraction = validation_fraction
        self.min_bytes = min_bytes
        self.root = root

    @property
    def python_version(self) -> str | None:
        """Version of the Python whose library is read, or None where ``root`` says which."""
        return library_version(self.root)

    def load(self) -> ClassificationData:
        """Return the parts as TensorDatasets of ``((window,) int64 token ids, int64 label)``.

        Raises:
            DataFileError: if there is no standard library source to read.
            EmptyDataError: if no module is large enough.
        """
        root = library_root(self.root)
        ids = _TokenIds(self.vocabulary)
        modules, windows = [], []
        for module in _find_modules(root, self.min_bytes):
            own = self._windows_of(module, ids)
            if len(own[0]) and len(own[2]):
                modules.append(module)
                windows.append(own)
        if not modules:
            raise EmptyDataError(f"no module under {root} reaches min_bytes={self.min_bytes}; lower it")
        train, validation, test = (_dataset(part) for part in zip(*windows, strict=True))
        return ClassificationData(
            train=train,
            validation=validation if self.validation_fraction else None,
            test=test,
            num_classes=len(modules),
            class_names=tuple(module.path[-1] for module in modules),
            class_counts=torch.tensor([len(own[0]) for own in windows], device="cpu"),
            paths=tuple(module.path for module in modules),
        )

    def _windows_of(self, module: _Module, ids: _TokenIds) -> tuple[NDArray[np.int64], ...]:
        """Return the ``(n, window)`` windows of train, validation and test of one class."""
        parts: tuple[list[NDArray[np.int64]], ...] = ([], [], [])
        for source in module.sources:
            tokens = ids.of(source)
            for stretches in _stretches(len(tokens), self.window, self.validation_fraction):
                for part, (start, stop) in zip(parts, stretches, strict=True):
                    count = max(stop - start, 0) // self.window
                    part.append(tokens[start : start + count * self.window].reshape(count, self.window))
        empty = np.empty((0, self.window), np.int64)
        return tuple(np.concatenate([empty, *part]) for part in parts)


@dataclass(frozen=True)
class _Module:
    """One class: its path (topic, package, module) and the bytes of its files."""

    path: tuple[str, str, str]
    sources: list[bytes]


class _TokenIds(dict[bytes, int]):
    """Token to id; a token is hashed when it is first met."""

    def __init__(self, vocabulary: int) -> None:
        super().__init__()
        self.vocabulary = vocabulary

    def __missing__(self, token: bytes) -> int:
        self[token] = zlib.crc32(token) % self.vocabulary
        return self[token]

    def of(self, source: bytes) -> NDArray[np.int64]:
        """Return the ids of the tokens of ``source``, in order."""
        return np.fromiter(map(self.__getitem__, _TOKEN.findall(source)), np.int64)


def _topics() -> dict[str, str]:
    """Return the topic of every top-level module that the documentation's contents list, in their order."""
    yaml = require_extra("yaml", "cli")
    text = resources.files("tightframe.data").joinpath("stdlib_topics.yaml").read_text(encoding="utf-8")
    topics: dict[str, str] = {}
    for topic, modules in yaml.safe_load(text).items():
        for module in modules:
            topics.setdefault(module, topic)
    return topics


def _find_modules(root: Path, min_bytes: int) -> Iterator[_Module]:
    """Yield the classes in topic order, then by package and module."""
    topics = _topics()
    order = {topic: place for place, topic in enumerate(topics.values())}
    for package in sorted(topics, key=lambda name: (order[topics[name]], name)):
        own, pool = {}, []
        for name, source in _package_sources(root, package):
            if len(source) >= min_bytes:
                own[name] = [source]
            else:
                pool.append(source)
        if sum(map(len, pool)) >= min_bytes:
            own[f"{package}.*"] = pool
        for name in sorted(own):
            yield _Module((topics[package], package, name), own[name])


def _package_sources(root: Path, package: str) -> Iterator[tuple[str, bytes]]:
    """Yield dotted name and bytes of the modules of a package."""
    for parts, source in source_files(root, package):
        yield ".".join(parts[:-1] if parts[-1] == "__init__" else parts), source


def _stretches(length: int, window: int, validation_fraction: float) -> Iterator[tuple[Stretch, Stretch, Stretch]]:
    """Yield for each period of a file where train, validation and test begin and end; an end may precede a begin."""
    for start in range(0, length, PERIOD):
        begin = start + (GAP if start else 0)
        test = start + PERIOD - TEST
        end = min(test - GAP, length)
        cut = end - _held_out(end - begin, window, validation_fraction)
        yield (begin, cut - GAP if cut < end else end), (cut, end), (test, min(start + PERIOD, length))


def _held_out(length: int, window: int, validation_fraction: float) -> int:
    """Return how many tokens at the end of a stretch of ``length`` are validation; 0 if train would have no window."""
    if not validation_fraction:
        return 0
    held_out = max(round(validation_fraction * length / window), 1) * window
    return held_out if length - held_out - GAP >= window else 0


def _dataset(windows: tuple[NDArray[np.int64], ...]) -> TensorDataset:
    """Return the windows of all classes with their labels."""
    counts = torch.tensor([len(own) for own in windows], device="cpu")
    return TensorDataset(torch.from_numpy(np.concatenate(windows)), torch.repeat_interleave(counts))
