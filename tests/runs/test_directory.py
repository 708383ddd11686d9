from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from tests.report.material import write_comparison
from tightframe.errors import DataFileError, EmptyDataError, Notice
from tightframe.records import Records
from tightframe.runs import RunDirectory


def write_training(
    out: Path, run: str, seed: int, *, epochs: int = 2, finished: bool = True, classifier_parameters: int = 5
) -> Path:
    directory = out / run / f"seed-{seed}"
    directory.mkdir(parents=True)
    records = Records()
    for epoch in range(epochs + 1):
        records.add("accuracy", 0.1 * epoch, run=run, seed=seed, epoch=epoch, split="test")
    records.save(directory / "records.jsonl")
    if finished:
        timing = {"fit_seconds": 1.5, "epochs": epochs, "classifier_parameters": classifier_parameters}
        (directory / "timing.json").write_text(json.dumps(timing))
    return directory


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_comparison(tmp_path_factory.mktemp("comparison") / "digits")


def problems(out: Path) -> dict[tuple[str, int], str]:
    return {(t.run, t.seed): t.problem for t in RunDirectory.read(out).problems}


def test_a_complete_comparison(trained: Path) -> None:
    directory = RunDirectory.read(trained)
    assert directory.runs == ["learned", "fixed-etf"]
    assert [(t.run, t.seed) for t in directory.trainings] == [(r, s) for r in directory.runs for s in (0, 1)]
    assert directory.problems == []
    assert directory.classifier_parameters == {"learned": 320, "fixed-etf": 0}
    assert directory.class_name(3) == "three"
    assert directory.config_text == (trained / "config.yaml").read_text()
    assert directory.versions["torch"] == "2.13.0"
    assert [len(t.snapshots) for t in directory.trainings] == [3, 3, 3, 3]


def test_seeds_are_ordered_as_numbers(tmp_path: Path) -> None:
    for seed in (10, 9, 2):
        write_training(tmp_path, "a", seed)
    assert [t.seed for t in RunDirectory.read(tmp_path).trainings] == [2, 9, 10]


def test_the_directory_names_the_run(tmp_path: Path) -> None:
    write_training(tmp_path, "old", 0)
    (tmp_path / "old").rename(tmp_path / "new")
    (tmp_path / "new" / "seed-0").rename(tmp_path / "new" / "seed-4")
    records = RunDirectory.read(tmp_path).records
    assert records.unique("run") == ["new"]
    assert records.unique("seed") == [4]


def test_unfinished_training_says_how_far_it_came(tmp_path: Path) -> None:
    write_training(tmp_path, "a", 0)
    write_training(tmp_path, "a", 1, epochs=1, finished=False)
    assert problems(tmp_path) == {("a", 1): "unfinished: last epoch measured is 1"}


def test_half_written_last_line_is_dropped(tmp_path: Path) -> None:
    directory = write_training(tmp_path, "a", 0, epochs=3, finished=False)
    path = directory / "records.jsonl"
    path.write_text(path.read_text()[:-20])
    assert problems(tmp_path) == {("a", 0): "unfinished: last epoch measured is 2"}


def test_half_written_timing_means_unfinished(tmp_path: Path) -> None:
    directory = write_training(tmp_path, "a", 0)
    (directory / "timing.json").write_text('{"epochs": 2')
    (problem,) = problems(tmp_path).values()
    assert problem.startswith("unfinished: last epoch measured is 2; timing.json cannot be read as JSON")
    assert RunDirectory.read(tmp_path).classifier_parameters == {}


def test_empty_records_are_a_training_that_measured_nothing_yet(tmp_path: Path) -> None:
    write_training(tmp_path, "a", 0)
    directory = write_training(tmp_path, "b", 0, finished=False)
    (directory / "records.jsonl").write_text("")
    assert problems(tmp_path) == {("b", 0): "unfinished: nothing measured yet"}
    assert RunDirectory.read(tmp_path).runs == ["a"]


def test_damaged_records_are_a_problem_and_not_a_crash(tmp_path: Path) -> None:
    write_training(tmp_path, "a", 0)
    path = write_training(tmp_path, "a", 1) / "records.jsonl"
    path.write_text("{}\n" + path.read_text())
    (problem,) = problems(tmp_path).values()
    assert problem.startswith("unreadable: records.jsonl, line 1 is not a record")
    assert str(tmp_path) not in problem


def test_missing_records_seeds_and_methods(tmp_path: Path) -> None:
    write_training(tmp_path, "b", 0)
    write_training(tmp_path, "a", 1)
    (tmp_path / "a" / "seed-0").mkdir()
    (tmp_path / "config.yaml").write_text("methods: {b: {}, c: {}, a: {}}\n")
    assert problems(tmp_path) == {
        ("b", 1): "missing: no directory",
        ("c", 0): "missing: no directory",
        ("c", 1): "missing: no directory",
        ("a", 0): "missing: no records",
    }
    assert RunDirectory.read(tmp_path).runs == ["b", "a"]


def test_single_training_does_not_miss_the_recipes_other_methods(tmp_path: Path) -> None:
    write_training(tmp_path, "b", 0)
    (tmp_path / "config.yaml").write_text("methods: {a: {}, b: {}}\n")
    assert problems(tmp_path) == {}


@pytest.mark.parametrize("text", ["methods: [unclosed", "- a list", "", "methods: 3"])
def test_strange_configuration_is_kept_as_text(tmp_path: Path, text: str) -> None:
    write_training(tmp_path, "a", 0)
    write_training(tmp_path, "b", 0)
    (tmp_path / "config.yaml").write_text(text)
    (tmp_path / "versions.json").write_text("[1")
    (tmp_path / "classes.json").write_text('{"not": "a list"}')
    directory = RunDirectory.read(tmp_path)
    assert (directory.config_text, directory.versions, directory.class_name(1)) == (text, {}, "1")
    assert directory.runs == ["a", "b"]


def test_other_directories_are_ignored(tmp_path: Path) -> None:
    write_training(tmp_path, "a", 0)
    (tmp_path / "figures" / "seed-x").mkdir(parents=True)
    (tmp_path / "figures" / "seed-1").touch()
    assert [(t.run, t.seed) for t in RunDirectory.read(tmp_path).trainings] == [("a", 0)]


def test_nothing_there_at_all(tmp_path: Path) -> None:
    with pytest.raises(EmptyDataError, match=r"records\.jsonl.*no <run>/seed-<s> in it.*--out"):
        RunDirectory.read(tmp_path)
    (tmp_path / "a" / "seed-3").mkdir(parents=True)
    with pytest.raises(EmptyDataError, match="a, seed 3: missing: no records"):
        RunDirectory.read(tmp_path)
    with pytest.raises(DataFileError, match="out must be the output directory"):
        RunDirectory.read(tmp_path / "absent")


def test_snapshots_are_spaced_evenly_with_both_ends_and_unreadable_ones_left_out(trained: Path, tmp_path: Path) -> None:
    shutil.copytree(trained / "learned" / "seed-0", tmp_path / "a" / "seed-0")
    snapshots = tmp_path / "a" / "seed-0" / "snapshots"
    first = next(iter(sorted(snapshots.iterdir())))
    for copy in range(3, 60):
        shutil.copy(first, snapshots / f"epoch-{copy:05d}.safetensors")
    (training,) = RunDirectory.read(tmp_path).trainings
    assert len(training.snapshots) == 60
    assert len(training.load_snapshots()) == 25
    assert [s.epoch for s in training.load_snapshots(limit=60)][:3] == [0, 1, 2]
    (snapshots / "epoch-00001.safetensors").write_bytes(b"short")
    with pytest.warns(Notice, match="epoch-00001.safetensors is not a snapshot .*; it is left out"):
        assert [s.epoch for s in training.load_snapshots(limit=60)][:2] == [0, 2]
    assert [s.epoch for s in training.load_snapshots(limit=1)] == [0]


@pytest.mark.parametrize("found", [3, 0])
def test_a_later_format_is_refused(tmp_path: Path, found: object) -> None:
    write_training(tmp_path, "a", 0)
    (tmp_path / "versions.json").write_text(json.dumps({"format": found}))
    with pytest.raises(DataFileError, match="this tightframe reads up to 2; update tightframe"):
        RunDirectory.read(tmp_path)
