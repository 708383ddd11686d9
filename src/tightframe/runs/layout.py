"""The layout of a directory of runs: ``<out>/<run>/seed-<s>/``, and the names of the files in it."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable
from pathlib import Path

from tightframe.errors import ConfigError, check_positive

FORMAT = 2
RECORDS_FILE = "records.jsonl"
CONFIG_FILE = "config.yaml"
CLASSES_FILE = "classes.json"
HIERARCHY_FILE = "hierarchy.json"
SOURCES_FILE = "sources.json"
VERSIONS_FILE = "versions.json"
TIMING_FILE = "timing.json"
CHECKSUMS_FILE = "checksums.json"
LOCK_FILE = ".lock"
SNAPSHOT_DIR = "snapshots"
SNAPSHOT_FILES = f"{SNAPSHOT_DIR}/epoch-*.safetensors"
CONFUSION_FILES = "confusion-*.safetensors"
CHECKPOINT = Path("checkpoints") / "last.ckpt"
# Patterns of every file in the directory, and in that of a training.
SHARED_FILES = (CONFIG_FILE, CLASSES_FILE, HIERARCHY_FILE, SOURCES_FILE, VERSIONS_FILE, CHECKSUMS_FILE, LOCK_FILE)
TRAINING_FILES = (
    RECORDS_FILE,
    TIMING_FILE,
    SNAPSHOT_FILES,
    CONFUSION_FILES,
    CHECKPOINT.as_posix(),
    CHECKSUMS_FILE,
    LOCK_FILE,
)

_NAME = re.compile(r"\w[\w.+-]{0,99}")
_DEVICE = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)(\..*)?", re.IGNORECASE)
_SEED = re.compile(r"seed-(\d+)")


def check_names(names: Iterable[str], argument: str = "methods") -> None:
    """Check that names of runs are names of directories on every system.

    Args:
        names: Names of the runs of one directory.
        argument: Name of the argument, for the error.

    Raises:
        ConfigError: if a name is not a letter, digit or ``_`` with up to 99 of ``. + -``, letters, digits and ``_``
            after it, is a device of Windows, or equals another one but for capital letters.

    Example:
        >>> check_names(["learned", "etf-1e5"])
        >>> check_names(["a/b"])
        Traceback (most recent call last):
        ...
        tightframe.errors.ConfigError: methods must have names of letters, digits and _ . + - (at most 100, beginning \
with a letter or a digit), got 'a/b'
    """
    seen: dict[str, str] = {}
    for name in names:
        if not isinstance(name, str) or not _NAME.fullmatch(name):
            raise ConfigError(
                f"{argument} must have names of letters, digits and _ . + - (at most 100, beginning with a letter or a "
                f"digit), got {name!r}"
            )
        if _DEVICE.fullmatch(name):
            raise ConfigError(f"{argument} must not have the name of a device of Windows, got {name!r}; choose another")
        other = seen.setdefault(name.casefold(), name)
        if other != name:
            raise ConfigError(
                f"{argument} must have names that differ in more than capital letters, got {other!r} and {name!r}"
            )


def training_directory(out: Path, run: str, seed: int) -> Path:
    """Return ``<out>/<run>/seed-<s>``.

    Raises:
        ConfigError: if ``run`` is not a valid name, see :func:`check_names`.
        ArgumentError: if ``seed`` is not an integer >= 0.
    """
    check_names([run], "run")
    check_positive("seed", seed, 0)
    return out / run / f"seed-{seed}"


def run_and_seed(directory: Path) -> tuple[str, int] | None:
    """Return the run and the seed of a training's directory, or None if it has another name."""
    match = _SEED.fullmatch(directory.name)
    return None if match is None else (directory.parent.name, int(match.group(1)))


def fingerprint(path: Path) -> str:
    """Return the SHA-256 of a file, or of the names and sizes of all files below a folder."""
    digest = hashlib.sha256()
    if path.is_dir():
        for file in sorted(file for file in path.rglob("*") if file.is_file()):
            digest.update(f"{file.relative_to(path).as_posix()}\n{file.stat().st_size}\n".encode())
        return digest.hexdigest()
    with path.open("rb") as content:
        while chunk := content.read(2**20):
            digest.update(chunk)
    return digest.hexdigest()
