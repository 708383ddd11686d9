"""Read the directory that a comparison or a single training wrote, however incomplete it is."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from tightframe.errors import DataFileError, EmptyDataError, TightframeError, require_extra
from tightframe.hierarchy import Tree
from tightframe.records import Records
from tightframe.runs.confusion import CONFUSION_FILES, Confusion
from tightframe.runs.layout import (
    CLASSES_FILE,
    CONFIG_FILE,
    HIERARCHY_FILE,
    RECORDS_FILE,
    SNAPSHOT_DIR,
    TIMING_FILE,
    VERSIONS_FILE,
)
from tightframe.runs.snapshots import Snapshot

SEED_DIR = re.compile(r"seed-(-?\d+)")


@dataclass(frozen=True)
class Training:
    """What one run with one seed left on disk.

    Args:
        run: name of the run, which is the name of its directory.
        seed: its seed.
        records: its measurements; none if it never got to measure.
        timing: contents of its timing file; empty until it has finished.
        snapshots: its snapshot files by increasing epoch.
        confusions: its confusion files by split.
        problem: why it is incomplete, or empty.
    """

    run: str
    seed: int
    records: Records = field(default_factory=Records)
    timing: Mapping[str, Any] = field(default_factory=dict)
    snapshots: tuple[Path, ...] = ()
    confusions: Mapping[str, Path] = field(default_factory=dict)
    problem: str = ""

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
    """Everything the report knows about a comparison.

    Args:
        path: the directory.
        config_text: its configuration as written.
        versions: package versions.
        class_names: by class number; empty if they were not recorded.
        trainings: all trainings found or expected, by run and seed.
        tree: hierarchy of the classes; None if there is none, or none that can be read.
    """

    path: Path
    config_text: str
    versions: Mapping[str, Any]
    class_names: tuple[str, ...]
    trainings: tuple[Training, ...]
    tree: Tree | None = None

    @classmethod
    def read(cls, out: str | os.PathLike[str]) -> RunDirectory:
        """Read the directory of a comparison or a training; see :func:`_read`."""
        return read_runs(Path(out))

    @property
    def records(self) -> Records:
        """All measurements."""
        return Records(row for training in self.trainings for row in training.records)

    @property
    def runs(self) -> list[str]:
        """Names of the runs that measured something, in the configuration's order."""
        return list(dict.fromkeys(t.run for t in self.trainings if len(t.records)))

    @property
    def problems(self) -> list[Training]:
        """The incomplete trainings."""
        return [training for training in self.trainings if training.problem]

    @property
    def classifier_parameters(self) -> dict[str, int]:
        """Trainable parameters of each run's classifier, where its timing file tells."""
        known = [(t.run, t.timing.get("classifier_parameters")) for t in self.trainings]
        return {run: count for run, count in known if isinstance(count, int)}

    def class_name(self, index: int) -> str:
        """Name of a class, or its number."""
        return self.class_names[index] if index < len(self.class_names) else str(index)


def read_runs(out: Path) -> RunDirectory:
    """Read ``<out>/<run>/seed-<s>/`` for all runs and seeds.

    What is half-written or damaged becomes the ``problem`` of its training. Where there are several runs, each of them
    and each of the configuration's ``methods`` is expected to have every seed that occurs; what is not there is a
    training with a ``problem`` too. Beside the runs, a JSON list in ``classes.json`` may name the classes.

    Args:
        out: output directory of a comparison or a training.

    Raises:
        DataFileError: if ``out`` is not a directory.
        EmptyDataError: if no training below it has measured anything.
    """
    out = Path(out).resolve()
    if not out.is_dir():
        raise DataFileError(f"out must be the output directory of a training or a comparison, got {out}: no directory")
    config_text, config = _read_config(out / CONFIG_FILE)
    found = {(t.run, t.seed): t for t in map(_read_training, sorted(out.glob("*/seed-*"))) if t is not None}
    if not any(len(t.records) for t in found.values()):
        reasons = "; ".join(f"{t.run}, seed {t.seed}: {t.problem}" for t in found.values())
        raise EmptyDataError(
            f"out must hold <run>/seed-<s>/{RECORDS_FILE} with at least one row, got {out} "
            f"({reasons or 'no such directory'}); pass the directory that --out named"
        )
    trainings = tuple(
        found.get((run, seed)) or Training(run, seed, problem="missing: no directory")
        for run in _expected_runs(config, [run for run, _ in found])
        for seed in sorted({seed for _, seed in found})
    )
    names = _read_json(out / CLASSES_FILE, list)
    versions, tree = _read_json(out / VERSIONS_FILE, dict), _read_tree(out / HIERARCHY_FILE)
    return RunDirectory(out, config_text, versions, tuple(map(str, names)), trainings, tree)


def _read_tree(path: Path) -> Tree | None:
    parts = _read_json(path, dict)
    try:
        return Tree(parts["parents"], parts["names"], parts["classes"])
    except (KeyError, TypeError, TightframeError):
        return None


def _read_training(path: Path) -> Training | None:
    match = SEED_DIR.fullmatch(path.name)
    if match is None or not path.is_dir():
        return None
    run, seed = path.parent.name, int(match.group(1))
    timing = _read_json(path / TIMING_FILE, dict)
    snapshots = tuple(sorted((path / SNAPSHOT_DIR).glob("epoch-*.safetensors")))
    try:
        # The directory decides, so that a run renamed on disk is renamed everywhere.
        rows = Records(replace(row, run=run, seed=seed) for row in Records.read(path / RECORDS_FILE))
    except DataFileError as error:
        missing = not (path / RECORDS_FILE).exists()
        return Training(
            run, seed, problem="missing: no records" if missing else f"unreadable: {str(error).replace(f'{path}/', '')}"
        )
    problem = "" if timing else "unfinished: nothing measured yet"
    if len(rows) and not timing:
        problem = f"unfinished: last epoch measured is {max(row.epoch for row in rows)}"
    before, after = CONFUSION_FILES.split("*")
    confusions = {file.name[len(before) : -len(after)]: file for file in sorted(path.glob(CONFUSION_FILES))}
    return Training(run, seed, rows, timing, snapshots, confusions, problem)


def _read_config(path: Path) -> tuple[str, Mapping[str, Any]]:
    yaml = require_extra("yaml", "cli")
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return "", {}
    try:
        config = yaml.safe_load(text)
    except yaml.YAMLError:
        config = None
    return text, config if isinstance(config, dict) else {}


def _read_json(path: Path, kind: type) -> Any:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return kind()
    return content if isinstance(content, kind) else kind()


def _expected_runs(config: Mapping[str, Any], found: list[str]) -> list[str]:
    """Put the runs into the configuration's order, with those that it names and nobody started."""
    methods = config.get("methods")
    # A single training shares the recipe of a comparison, whose other methods are not missed there.
    listed = map(str, methods) if isinstance(methods, dict) and len(set(found)) > 1 else ()
    return list(dict.fromkeys([*listed, *found]))
