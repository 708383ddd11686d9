"""Read a directory of runs, however incomplete it is."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from tightframe.errors import DataFileError, EmptyDataError, Notice
from tightframe.files import read_json, read_yaml
from tightframe.hierarchy import Tree
from tightframe.records import Records
from tightframe.runs.confusion import Confusion
from tightframe.runs.layout import (
    CHECKSUMS_FILE,
    CLASSES_FILE,
    CONFIG_FILE,
    CONFUSION_FILES,
    FORMAT,
    HIERARCHY_FILE,
    RECORDS_FILE,
    SNAPSHOT_FILES,
    SOURCES_FILE,
    TIMING_FILE,
    VERSIONS_FILE,
    fingerprint,
    run_and_seed,
)
from tightframe.runs.snapshots import Snapshot


@dataclass(frozen=True)
class Training:
    """Files of one run with one seed.

    Args:
        run: Name of the run, which is the name of its directory.
        seed: Seed of the run.
        records: Measurements; none if the training never got to measure.
        timing: Contents of the timing file; empty until the training has finished.
        snapshots: Snapshot files by increasing epoch.
        confusions: Confusion files by split.
        problem: Reason why the training is incomplete, or empty.
    """

    run: str
    seed: int
    records: Records = field(default_factory=Records)
    timing: Mapping[str, Any] = field(default_factory=dict)
    snapshots: tuple[Path, ...] = ()
    confusions: Mapping[str, Path] = field(default_factory=dict)
    problem: str = ""

    @classmethod
    def read(cls, directory: str | os.PathLike[str]) -> Training:
        """Read ``<out>/<run>/seed-<s>``; files that are half-written or damaged become the ``problem``.

        Raises:
            DataFileError: if it is no such directory.
        """
        path = Path(directory)
        found = run_and_seed(path)
        if found is None or not path.is_dir():
            raise DataFileError(f"directory must be <out>/<run>/seed-<s>, got {path}")
        run, seed = found
        damaged: list[str] = []
        timing = _content(path / TIMING_FILE, dict, problems=damaged)
        snapshots = tuple(sorted(path.glob(SNAPSHOT_FILES)))
        try:
            # The directory decides, so that a run renamed on disk is renamed everywhere.
            rows = Records(replace(row, run=run, seed=seed) for row in Records.read(path / RECORDS_FILE))
        except DataFileError as error:
            missing = not (path / RECORDS_FILE).exists()
            problem = "missing: no records" if missing else f"unreadable: {str(error).replace(f'{path}/', '')}"
            return cls(run, seed, problem=problem)
        problem = "" if timing else "unfinished: nothing measured yet"
        if len(rows) and not timing:
            problem = f"unfinished: last epoch measured is {max(row.epoch for row in rows)}"
        before, after = CONFUSION_FILES.split("*")
        confusions = {file.name[len(before) : -len(after)]: file for file in sorted(path.glob(CONFUSION_FILES))}
        checks: list[Callable[[], Any]] = [partial(Snapshot.check, file) for file in snapshots]
        checks += [partial(Confusion.load, file) for file in confusions.values()]
        for check in checks:
            try:
                check()
            except DataFileError as error:
                damaged.append(str(error))
        damaged += [f"{name} is missing or not what was written" for name in changed_files(path, damaged)]
        if damaged and not problem.startswith("unfinished"):
            problem = f"damaged: {'; '.join(damaged).replace(f'{path}/', '')}"
        elif damaged:
            problem += f"; {'; '.join(damaged).replace(f'{path}/', '')}"
        return cls(run, seed, rows, timing, snapshots, confusions, problem)

    def load_snapshots(self, limit: int = 25) -> list[Snapshot]:
        """Load at most ``limit`` snapshots, evenly spaced, with both ends; a damaged one is left out, with a notice."""
        count = len(self.snapshots)
        step = max(1.0, (count - 1) / max(1, limit - 1))
        chosen = sorted({round(i * step) for i in range(limit) if round(i * step) < count})
        loaded = []
        for index in chosen:
            try:
                loaded.append(Snapshot.load(self.snapshots[index]))
            except DataFileError as error:
                warnings.warn(f"{error}; it is left out", Notice, stacklevel=2)
        return loaded

    def load_confusion(self, split: str) -> Confusion | None:
        """Load the confusion of a split; None if there is none, or none that can be read."""
        try:
            return Confusion.load(self.confusions[split])
        except (KeyError, DataFileError):
            return None


@dataclass(frozen=True)
class RunDirectory:
    """A directory of runs.

    Args:
        path: Path of the directory.
        config_text: Configuration as it is written.
        versions: Versions of the format and of packages.
        class_names: Names of the classes; empty if they were not recorded.
        trainings: Trainings found or expected, by run and seed.
        tree: Hierarchy of the classes; None if there is none, or none that can be read.
        damaged: Files of the directory that cannot be read or are not as they were written, a line each.
    """

    path: Path
    config_text: str
    versions: Mapping[str, Any]
    class_names: tuple[str, ...]
    trainings: tuple[Training, ...]
    tree: Tree | None = None
    damaged: tuple[str, ...] = ()

    @classmethod
    def read(cls, out: str | os.PathLike[str]) -> RunDirectory:
        """Read ``<out>/<run>/seed-<s>/`` for all runs and seeds.

        Half-written or damaged files become the ``problem`` of their training. Where there are several runs, each of
        them and each of the configuration's ``methods`` is expected to have every seed that occurs; a missing one is a
        training with a ``problem`` too.

        Args:
            out: Output directory of a comparison, a training or :func:`tightframe.runs.write`.

        Raises:
            DataFileError: if ``out`` is not a directory, or a later version of tightframe wrote it.
            EmptyDataError: if no training in it has measured anything.
        """
        path = Path(out).resolve()
        if not path.is_dir():
            raise DataFileError(
                f"out must be the output directory of a training or a comparison, got {path}: no directory"
            )
        stored_format(path)
        damaged: list[str] = []
        versions = _content(path / VERSIONS_FILE, dict, problems=damaged)
        found = {(t.run, t.seed): t for t in map(Training.read, sorted(filter(_is_training, path.glob("*/seed-*"))))}
        if not any(len(t.records) for t in found.values()):
            reasons = "; ".join(f"{t.run}, seed {t.seed}: {t.problem}" for t in found.values())
            raise EmptyDataError(
                f"out must hold <run>/seed-<s>/{RECORDS_FILE} with at least one row, got {path} "
                f"({reasons or 'no <run>/seed-<s> in it'}); pass the directory that --out named"
            )
        config = _content(path / CONFIG_FILE, dict, read_yaml, damaged)
        trainings = tuple(
            found.get((run, seed)) or Training(run, seed, problem="missing: no directory")
            for run in _expected_runs(config, [run for run, _ in found])
            for seed in sorted({seed for _, seed in found})
        )
        names = tuple(map(str, _content(path / CLASSES_FILE, list, problems=damaged)))
        text = _content(path / CONFIG_FILE, str, _read_text)
        tree = read_trees(path, damaged).get("")
        _content(path / SOURCES_FILE, dict, problems=damaged)
        damaged += [f"{name} is missing or not what was written" for name in changed_files(path, damaged)]
        lines = tuple(line.replace(f"{path}/", "") for line in damaged)
        return cls(path, text, versions, names, trainings, tree, lines)

    @property
    def records(self) -> Records:
        """Measurements of all trainings."""
        return Records(row for training in self.trainings for row in training.records)

    @property
    def runs(self) -> list[str]:
        """Names of the runs that measured something, in the configuration's order."""
        return list(dict.fromkeys(t.run for t in self.trainings if len(t.records)))

    @property
    def problems(self) -> list[Training]:
        """Incomplete trainings."""
        return [training for training in self.trainings if training.problem]

    @property
    def classifier_parameters(self) -> dict[str, int]:
        """Number of trainable parameters of each run's classifier, where its timing file tells."""
        known = [(t.run, t.timing.get("classifier_parameters")) for t in self.trainings]
        return {run: count for run, count in known if isinstance(count, int)}

    def class_name(self, index: int) -> str:
        """Return the name of a class, or its number."""
        return self.class_names[index] if index < len(self.class_names) else str(index)


def stored_format(out: Path) -> int:
    """Return the format of a directory of runs; without one it is 1.

    Raises:
        DataFileError: if a later version of tightframe wrote it.
    """
    found = _content(out / VERSIONS_FILE, dict).get("format", 1)
    if type(found) is not int:  # damaged
        return 1
    if found not in range(1, FORMAT + 1):
        raise DataFileError(f"{out} has format {found!r} and this tightframe reads up to {FORMAT}; update tightframe")
    return int(found)


def _is_training(path: Path) -> bool:
    return path.is_dir() and run_and_seed(path) is not None


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise DataFileError(f"{path} cannot be read as text: {error}") from error


def _content(path: Path, kind: type, read: Any = read_json, problems: list[str] | None = None) -> Any:
    """Return the content of a file, or an empty ``kind`` if it holds something else, which is added to ``problems``."""
    try:
        content = read(path)
        if isinstance(content, kind):
            return content
        error = f"{path} holds {type(content).__name__}, not {kind.__name__}"
    except DataFileError as caught:
        error = str(caught)
    if problems is not None and path.exists():
        problems.append(error)
    return kind()


def changed_files(directory: Path, problems: list[str] | None = None) -> list[str]:
    """Return the names of the files in a directory that are not what :func:`~tightframe.runs.write.seal` saw."""
    path = directory / CHECKSUMS_FILE
    known = _content(path, dict, problems=problems)
    if not all(value is None or isinstance(value, str) for value in known.values()):
        return [path.name]
    files = {name: directory / name for name in known}
    same = (file.is_file() and known[name] in (None, fingerprint(file)) for name, file in files.items())
    return [name for name, is_same in zip(files, same, strict=True) if not is_same]


def read_trees(out: Path, problems: list[str] | None = None) -> dict[str, Tree]:
    """Return the hierarchies that :func:`~tightframe.runs.open_directory` stored.

    Args:
        out: Directory of runs.
        problems: List that a line is added to for every one that cannot be read, and is left out.
    """
    path = out / HIERARCHY_FILE
    described = _content(path, dict, problems=problems)
    methods = described.get("methods", {})
    trees: dict[str, Tree] = {}
    for name, parts in {"": described, **(methods if isinstance(methods, dict) else {})}.items():
        try:
            trees[name] = Tree(parts["parents"], parts["names"], parts["classes"])
        except Exception as error:  # whatever its parts are
            if problems is not None and (name or "parents" in described):
                said = " ".join(str(error).split())[:200]
                problems.append(f"{path} holds no tree{name and f' for {name}'}: {type(error).__name__}: {said}")
    return trees


def _expected_runs(config: Mapping[str, Any], found: list[str]) -> list[str]:
    """Put the runs into the configuration's order, with those that it names and nobody started."""
    methods = config.get("methods")
    # A single training shares the recipe of a comparison, whose other methods are not missed there.
    listed = map(str, methods) if isinstance(methods, dict) and len(set(found)) > 1 else ()
    return list(dict.fromkeys([*listed, *found]))
