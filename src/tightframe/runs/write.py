"""Write a directory of runs: what all runs share, and the records of a user's own loop."""

from __future__ import annotations

import json
import platform
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tightframe.errors import DataFileError, ResumeError
from tightframe.files import read_json, read_yaml, write_json, write_yaml
from tightframe.records import Record, Records
from tightframe.runs.layout import (
    CHECKSUMS_FILE,
    CLASSES_FILE,
    CONFIG_FILE,
    FORMAT,
    HIERARCHY_FILE,
    LOCK_FILE,
    RECORDS_FILE,
    SHARED_FILES,
    SOURCES_FILE,
    TIMING_FILE,
    TRAINING_FILES,
    VERSIONS_FILE,
    fingerprint,
    training_directory,
)
from tightframe.runs.lock import hold

if TYPE_CHECKING:
    import os

    from tightframe.hierarchy import Tree

# Keys that say how far a training goes at once, and not what it computes: they may change when it is resumed.
LIMITS = ("trainer.max_time", "trainer.max_steps", "trainer.fast_dev_run")


def write(
    records: Iterable[Record],
    out: str | os.PathLike[str],
    *,
    run: str,
    seed: int = 0,
    timing: Mapping[str, Any] | None = None,
) -> Path:
    """Write the records of a finished training of your own into a directory of runs, for ``tightframe report``.

    Args:
        records: Records of one run and seed; their ``run`` and ``seed`` become the arguments below.
        out: Directory of runs; several runs and seeds share one.
        run: Name of the run, as tables show it; see :func:`~tightframe.runs.layout.check_names`.
        seed: Seed of the run, >= 0.
        timing: Further numbers for ``timing.json``, such as ``fit_seconds`` and ``trainable_parameters``.

    Returns:
        The directory ``<out>/<run>/seed-<seed>``.

    Raises:
        ConfigError, ArgumentError: if ``run`` is not a valid name, or ``seed`` is negative.
        ResumeError: if another process writes there.
        OutputError: if a file cannot be written.

    Example:
        >>> import tempfile
        >>> from tightframe.runs import RunDirectory, write
        >>> records = Records()
        >>> records.add("accuracy", 0.9, epoch=3, split="test")
        >>> out = tempfile.mkdtemp()
        >>> write(records, out, run="mine", seed=1).relative_to(out).as_posix()
        'mine/seed-1'
        >>> RunDirectory.read(out).records.value("accuracy", run="mine")
        0.9
    """
    directory = training_directory(Path(out), run, seed)
    rows = Records(replace(row, run=run, seed=seed) for row in records)
    with hold(directory):
        rows.save(directory / RECORDS_FILE)
        write_json(directory / TIMING_FILE, {"epochs": max((row.epoch for row in rows), default=0), **(timing or {})})
        seal(directory)
    return directory


def open_directory(
    out: Path,
    config: Mapping[str, Any],
    *,
    class_names: Sequence[str],
    trees: Mapping[str, Tree],
    sources: Mapping[str, Path],
) -> None:
    """Create a directory of runs, or check that the one that is there has the same configuration.

    Args:
        out: Directory of runs.
        config: Configuration as plain data.
        class_names: Names of the K classes.
        trees: Hierarchy of a method by its name; the one that judges all methods has the name ``""``.
        sources: Files and folders that were read, by what named them in the configuration.

    Raises:
        ResumeError: if the directory has runs of another configuration or of other files; the message names the keys.
        OutputError: if a file cannot be written.
    """
    hashes = {name: fingerprint(path) for name, path in sources.items()}
    with hold(out, wait=True):
        check_directory(out, config)
        if (out / SOURCES_FILE).exists():
            known = read_json(out / SOURCES_FILE)
            if not isinstance(known, dict):
                raise ResumeError(f"{out / SOURCES_FILE} is damaged; delete it if the data are the same as before")
            changed = [name for name in {**known, **hashes} if known.get(name) != hashes.get(name)]
            if changed:
                raise ResumeError(
                    f"{out} holds runs that read other contents of {', '.join(changed)} (its {SOURCES_FILE} says so); "
                    "choose another --out"
                )
        write_yaml(out / CONFIG_FILE, json.loads(json.dumps(config)))
        write_json(out / CLASSES_FILE, list(class_names))
        write_json(out / VERSIONS_FILE, _versions())
        write_json(out / SOURCES_FILE, hashes)
        if trees:
            described = {name: _described(tree) for name, tree in trees.items()}
            write_json(out / HIERARCHY_FILE, {**described.pop("", {}), "methods": described})
        seal(out)


def seal(directory: Path) -> None:
    """Write the SHA-256 of the files of a directory, so that a later change is seen; call it when they are complete.

    Of files that hold checksums themselves the names are enough.
    """
    patterns = (*SHARED_FILES, *TRAINING_FILES)
    files = sorted({file for pattern in patterns for file in directory.glob(pattern) if file.is_file()})
    known = {
        file.relative_to(directory).as_posix(): None if file.suffix in (".safetensors", ".ckpt") else fingerprint(file)
        for file in files
        if file.name not in (CHECKSUMS_FILE, LOCK_FILE)
    }
    write_json(directory / CHECKSUMS_FILE, known)


def check_directory(out: Path, config: Mapping[str, Any]) -> None:
    """Raise :class:`ResumeError` if the directory has runs of another configuration."""
    path = out / CONFIG_FILE
    if not path.exists():
        return
    try:
        theirs = read_yaml(path)
    except DataFileError as error:
        raise ResumeError(f"{error}; choose another --out") from error
    differing = [key for key in _differences(json.loads(json.dumps(config)), theirs) if key not in LIMITS]
    if differing:
        raise ResumeError(
            f"{out} holds runs of another configuration: {', '.join(differing)} differ; choose another --out"
        )


def _differences(mine: Any, theirs: Any, prefix: str = "") -> list[str]:
    """Return the dotted keys at which two nested mappings differ."""
    if isinstance(mine, dict) and isinstance(theirs, dict):
        keys = sorted({*mine, *theirs})
        return [d for k in keys for d in _differences(mine.get(k), theirs.get(k), f"{prefix}.{k}" if prefix else k)]
    unset: tuple[Any, ...] = (None, {})  # a key that an earlier version did not know is missing there
    return [] if mine == theirs or (mine in unset and theirs in unset) else [prefix or "everything"]


def _described(tree: Tree) -> dict[str, Any]:
    return {"parents": tree.parents.tolist(), "names": tree.names, "classes": tree.classes.tolist()}


def _versions() -> dict[str, Any]:
    packages = ("tightframe", "torch", "numpy", "torchmetrics", "lightning", "scikit-learn")
    return {
        "format": FORMAT,
        "python": platform.python_version(),
        "platform": platform.platform(),
        **{name: metadata.version(name) for name in packages},
    }
