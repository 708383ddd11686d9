"""Read a directory of runs, however incomplete it is."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from tightframe.errors import DataFileError, EmptyDataError, TightframeError
from tightframe.files import read_json, read_yaml
from tightframe.hierarchy import Tree
from tightframe.records import Records
from tightframe.runs.confusion import CONFUSION_FILES, Confusion
from tightframe.runs.layout import (
    CLASSES_FILE,
    CONFIG_FILE,
    FORMAT,
    HIERARCHY_FILE,
    RECORDS_FILE,
    SNAPSHOT_DIR,
    TIMING_FILE,
    VERSIONS_FILE,
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
        timing = _content(path / TIMING_FILE, dict)
        snapshots = tuple(sorted((path / SNAPSHOT_DIR).glob("epoch-*.safetensors")))
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
        return cls(run, seed, rows, timing, snapshots, confusions, problem)

    def load_snapshots(self, limit: int = 25) -> list[Snapshot]:
        """Load at most ``limit`` snapshots, evenly spaced and with both ends; unreadable files are left out."""
        count = len(self.snapshots)
        step = max(1.0, (count - 1) / max(1, limit - 1))
        chosen = sorted({round(i * step) for i in range(limit) if round(i * step) < count})
        loaded = []
        for index in chosen:
            try:
                loaded.append(Snapshot.load(self.snapshots[index]))
            except DataFileError:
                continue
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
    """

    path: Path
    config_text: str
    versions: Mapping[str, Any]
    class_names: tuple[str, ...]
    trainings: tuple[Training, ...]
    tree: Tree | None = None

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
        versions = _content(path / VERSIONS_FILE, dict)
        found = {(t.run, t.seed): t for t in map(Training.read, sorted(filter(_is_training, path.glob("*/seed-*"))))}
        if not any(len(t.records) for t in found.values()):
            reasons = "; ".join(f"{t.run}, seed {t.seed}: {t.problem}" for t in found.values())
            raise EmptyDataError(
                f"out must hold <run>/seed-<s>/{RECORDS_FILE} with at least one row, got {path} "
                f"({reasons or 'no <run>/seed-<s> in it'}); pass the directory that --out named"
            )
        config = _content(path / CONFIG_FILE, dict, read_yaml)
        trainings = tuple(
            found.get((run, seed)) or Training(run, seed, problem="missing: no directory")
            for run in _expected_runs(config, [run for run, _ in found])
            for seed in sorted({seed for _, seed in found})
        )
        names = tuple(map(str, _content(path / CLASSES_FILE, list)))
        text = _content(path / CONFIG_FILE, str, _read_text)
        return cls(path, text, versions, names, trainings, read_trees(path).get(""))

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


def _content(path: Path, kind: type, read: Any = read_json) -> Any:
    """Return the content of a file, or an empty ``kind`` if the file holds something else."""
    try:
        content = read(path)
    except DataFileError:
        return kind()
    return content if isinstance(content, kind) else kind()


def read_trees(out: Path) -> dict[str, Tree]:
    """Return the hierarchies that :func:`~tightframe.runs.open_directory` stored; unreadable ones are left out."""
    described = _content(out / HIERARCHY_FILE, dict)
    trees = {name: _tree(parts) for name, parts in {"": described, **described.get("methods", {})}.items()}
    return {name: tree for name, tree in trees.items() if tree is not None}


def _tree(parts: Any) -> Tree | None:
    try:
        return Tree(parts["parents"], parts["names"], parts["classes"])
    except (KeyError, TypeError, TightframeError):
        return None


def _expected_runs(config: Mapping[str, Any], found: list[str]) -> list[str]:
    """Put the runs into the configuration's order, with those that it names and nobody started."""
    methods = config.get("methods")
    # A single training shares the recipe of a comparison, whose other methods are not missed there.
    listed = map(str, methods) if isinstance(methods, dict) and len(set(found)) > 1 else ()
    return list(dict.fromkeys([*listed, *found]))
