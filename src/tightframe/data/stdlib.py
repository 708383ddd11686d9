"""Python's own standard library as text: windows of code and the module they come from, and a corpus of bytes."""

from __future__ import annotations

import platform
import re
import sysconfig
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tightframe.data.base import ClassificationData, DataSource, StrPath, TensorSamples, check_fraction
from tightframe.errors import ArgumentError, DataFileError, EmptyDataError, check_positive, require_extra

# Tables, programs and bundled copies.
EXCLUDED = frozenset({"encodings", "pydoc_data", "idlelib", "lib2to3", "ensurepip", "turtledemo"})
TEST_DIRECTORIES = frozenset({"test", "tests", "idle_test"})
MACHINE_TABLES = "_sysconfigdata"

PERIOD = 768
TEST = 128
GAP = 64
TRAIN = PERIOD - TEST - 2 * GAP

MIN_BYTES = 4000
TEST_FRACTION = 0.1

_TOKEN = re.compile(rb"[A-Za-z_]\w*|\d+|[^\w\s]")

Stretch = tuple[int, int]
Windows = NDArray[np.int64]


class _Library:
    """The source of a standard library: the running Python's, or that in the directory ``root``."""

    def __init__(self, root: StrPath | None) -> None:
        self.root = root

    @property
    def python_version(self) -> str | None:
        """Version of the Python whose library is read, or None where ``root`` says which."""
        return platform.python_version() if self.root is None else None

    def _directory(self) -> Path:
        found = Path(self.root or sysconfig.get_path("stdlib"))
        if not (found / "os.py").is_file():
            raise DataFileError(
                f"{found} holds no standard library source (no os.py); pass root=, the directory that os.py lies in"
            )
        return found


def source_files(root: Path, name: str) -> Iterator[tuple[tuple[str, ...], bytes]]:
    """Yield path, without suffix, and bytes of a module, or of every module in a package but its tests, sorted."""
    single = root / f"{name}.py"
    for path in [single] if single.is_file() else sorted((root / name).rglob("*.py")):
        parts = path.relative_to(root).with_suffix("").parts
        if TEST_DIRECTORIES.isdisjoint(parts):
            # A Windows installation has longer line ends, which must not change what is large enough.
            yield parts, path.read_bytes().replace(b"\r\n", b"\n")


class StdlibModules(_Library, DataSource):
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
        root: StrPath | None = None,
    ) -> None:
        super().__init__(root)
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

    def load(self) -> ClassificationData:
        """Return the parts as TensorDatasets of ``((window,) int64 token ids, int64 label)``.

        Raises:
            DataFileError: if there is no standard library source to read.
            EmptyDataError: if no module is large enough.
        """
        root = self._directory()

        @cache
        def token_id(token: bytes) -> int:
            return zlib.crc32(token) % self.vocabulary

        kept = []
        for path, sources in _find_modules(root, self.min_bytes):
            files = [np.fromiter(map(token_id, _TOKEN.findall(source)), np.int64) for source in sources]
            windows = self._windows_of(files)
            if len(windows[0]) and len(windows[2]):
                kept.append((path, windows))
        if not kept:
            raise EmptyDataError(f"no module under {root} reaches min_bytes={self.min_bytes}; lower it")
        paths = tuple(path for path, _ in kept)
        train, held_out, test = (_samples(part) for part in zip(*(windows for _, windows in kept), strict=True))
        validation = held_out if self.validation_fraction else None
        return ClassificationData.of(train, validation, test, train.labels, [path[-1] for path in paths], paths)

    def _windows_of(self, files: list[Windows]) -> tuple[Windows, ...]:
        """Return the ``(n, window)`` windows of train, validation and test of the token ids of one class."""
        parts: tuple[list[Windows], ...] = ([], [], [])
        for tokens in files:
            for stretches in _stretches(len(tokens), self.window, self.validation_fraction):
                for part, (start, stop) in zip(parts, stretches, strict=True):
                    count = max(stop - start, 0) // self.window
                    part.append(tokens[start : start + count * self.window].reshape(count, self.window))
        empty = np.empty((0, self.window), np.int64)
        return tuple(np.concatenate([empty, *part]) for part in parts)


def _find_modules(root: Path, min_bytes: int) -> Iterator[tuple[tuple[str, str, str], list[bytes]]]:
    """Yield path (topic, package, module) and files of the classes in topic order, then by package and module."""
    yaml = require_extra("yaml", "cli")
    # The packages of each topic, as the documentation's contents list them.
    text = resources.files("tightframe.data").joinpath("stdlib_topics.yaml").read_text(encoding="utf-8")
    for topic, packages in yaml.safe_load(text).items():
        for package in sorted(packages):
            own, pool = {}, []
            for parts, source in source_files(root, package):
                if len(source) >= min_bytes:
                    own[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = [source]
                else:
                    pool.append(source)
            if sum(map(len, pool)) >= min_bytes:
                own[f"{package}.*"] = pool
            for name in sorted(own):
                yield (topic, package, name), own[name]


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


def _samples(windows: Sequence[Windows]) -> TensorSamples:
    """Return the windows of all classes with their labels."""
    counts = torch.tensor([len(own) for own in windows], device="cpu")
    return TensorSamples(torch.from_numpy(np.concatenate(windows)), torch.repeat_interleave(counts))


@dataclass(frozen=True)
class ByteCorpus:
    """The parts of a text, each ``(n,)`` uint8.

    Args:
        train: Text to learn from.
        validation: Text to choose by, or None if there is none.
        test: Text to judge by.
    """

    train: Tensor
    validation: Tensor | None
    test: Tensor


class StdlibBytes(_Library):
    """The standard library's source, file after file in the order of their paths, as one row of bytes a part.

    Of every file of at least 4,000 bytes the last tenth is test, from the last line end before it on. Where
    ``validation_fraction`` is given, so much of the rest of the file is validation, cut in the same way if it is again
    at least 4,000 bytes. All else is train, with the whole of smaller files and of those without a line end. Every byte
    is in exactly one part.

    Left out are tests, ``encodings`` and ``pydoc_data`` (tables), ``idlelib``, ``lib2to3``, ``ensurepip`` and
    ``turtledemo`` (programs and bundled copies), ``_sysconfigdata*`` (the machine's) and what cannot be imported by
    name, such as ``site-packages``. Line ends count as one byte.

    The text depends on the Python that runs, so a record of a result should state :attr:`python_version`: Python 3.11.7
    gives 7.92 MB of train and 0.86 MB of test.

    Args:
        validation_fraction: Share for validation, in [0, 1).
        root: directory to read in place of the running Python's standard library.

    Raises:
        ArgumentError: if an argument lies outside its range.

    Example:
        >>> corpus = StdlibBytes(validation_fraction=0.1).load()
        >>> corpus.train.dtype, round(len(corpus.train) / len(corpus.test))
        (torch.uint8, 8)
    """

    def __init__(self, validation_fraction: float = 0.0, root: StrPath | None = None) -> None:
        super().__init__(root)
        check_fraction("validation_fraction", validation_fraction)
        self.validation_fraction = validation_fraction

    def load(self) -> ByteCorpus:
        """Return the parts.

        Raises:
            DataFileError: if there is no standard library source to read.
            EmptyDataError: if no file is large enough to be cut.
        """
        root = self._directory()
        names = {path.stem for path in root.iterdir() if path.suffix == ".py" or path.is_dir()}
        # What cannot be imported, such as site-packages or a directory of build options, is no part of the library.
        names = {name for name in names if name.isidentifier() and not name.startswith(MACHINE_TABLES)}
        train, validation, test = bytearray(), bytearray(), bytearray()
        for name in sorted(names - EXCLUDED - TEST_DIRECTORIES):
            for _, source in source_files(root, name):
                rest, last = _cut(source, TEST_FRACTION)
                test += last
                rest, last = _cut(rest, self.validation_fraction)
                validation += last
                train += rest
        for part, fraction in ((test, TEST_FRACTION), (validation, self.validation_fraction)):
            if fraction and not part:
                raise EmptyDataError(
                    f"no file under {root} has {MIN_BYTES} bytes in lines, of which {fraction:g} could be cut off"
                )
        return ByteCorpus(_tensor(train), _tensor(validation) if self.validation_fraction else None, _tensor(test))


def _cut(text: bytes, fraction: float) -> tuple[bytes, bytes]:
    """Return a text without its last lines, and these: the least that have the share of it; none of a short one."""
    if not fraction or len(text) < MIN_BYTES:
        return text, b""
    stop = text.rfind(b"\n", 0, len(text) - round(fraction * len(text))) + 1
    return (text[:stop], text[stop:]) if stop else (text, b"")


def _tensor(text: bytearray) -> Tensor:
    return torch.frombuffer(text, dtype=torch.uint8)
