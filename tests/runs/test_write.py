import json
from pathlib import Path

import pytest
import torch

from tightframe.errors import ArgumentError, ConfigError, OutputError, ResumeError
from tightframe.hierarchy import Tree
from tightframe.records import Records
from tightframe.report import build_report
from tightframe.runs import RunDirectory, open_directory, write
from tightframe.runs.directory import read_trees

CONFIG = {"epochs": 2, "optimizer": {"name": "SGD", "args": {"lr": 0.1}}, "scheduler": None, "paper": {}}
TREE = Tree.from_nested({"E": ["A", "B"], "F": ["C", "D"]})


def opened(out, config=None, **changes):
    given = {"class_names": "ABCD", "trees": {}, "sources": {}, **changes}
    open_directory(out, {**CONFIG, **(config or {})}, **given)


def test_a_new_directory_holds_configuration_classes_trees_and_versions(tmp_path):
    out = tmp_path / "a" / "b"
    other = Tree.from_nested({"E": ["A", "C"], "F": ["B", "D"]})
    opened(out, {"description": "Çay", "methods": {"1e5": {}}}, trees={"": TREE, "1e5": other})
    assert "Çay" in (out / "config.yaml").read_text(encoding="utf-8")
    assert json.loads((out / "classes.json").read_text()) == list("ABCD")
    versions = json.loads((out / "versions.json").read_text())
    assert versions["torch"] == torch.__version__
    assert {"format", "python", "platform", "tightframe", "numpy", "lightning"} <= versions.keys()
    assert {name: tree.names for name, tree in read_trees(out).items()} == {"": TREE.names, "1e5": other.names}
    assert not list(out.glob("*.partial"))


def test_the_same_configuration_opens_it_again(tmp_path):
    for widths in ((8, 6), (8, 6), [8, 6]):
        opened(tmp_path, {"widths": widths, "words": ["010", "1e5"]})


@pytest.mark.parametrize(
    ("changes", "keys"),
    [
        ({"epochs": 3}, "epochs"),
        ({"optimizer": {"name": "SGD", "args": {"lr": 0.2, "momentum": 0.9}}}, "optimizer.args.lr, .*args.momentum"),
        ({"scheduler": {"name": "StepLR"}}, "scheduler"),
        ({"new": 1, "paper": {"a": 1}}, "new, paper.a"),
    ],
)
def test_another_configuration_is_refused_by_its_keys(tmp_path, changes, keys):
    opened(tmp_path)
    before = (tmp_path / "config.yaml").read_bytes()
    with pytest.raises(ResumeError, match=f"another configuration: {keys} differ; choose another --out"):
        opened(tmp_path, changes)
    assert (tmp_path / "config.yaml").read_bytes() == before


def test_a_directory_from_before_a_key_existed_opens_again(tmp_path):
    opened(tmp_path)
    opened(tmp_path, {"adaptive": None, "backbone": {}})


@pytest.mark.parametrize(("folder", "text"), [(False, "R\tB\n"), (True, "R\tA\nR\tB\n")])
def test_a_file_or_a_folder_that_was_read_and_has_changed_is_refused(tmp_path, folder, text):
    file = tmp_path / "read" / "tree.tsv"
    file.parent.mkdir()
    file.write_text("R\tA\n")
    sources = {"hierarchy": file.parent if folder else file}
    opened(tmp_path / "out", sources=sources)
    opened(tmp_path / "out", sources=sources)
    file.write_text(text)
    with pytest.raises(ResumeError, match=r"read other contents of hierarchy \(its sources.json says so"):
        opened(tmp_path / "out", sources=sources)


@pytest.mark.parametrize("content", [b"", b"- 1", b"data: 3", b"data: [", b"\xff\xfe\xff"])
def test_a_configuration_that_is_none(tmp_path, content):
    (tmp_path / "config.yaml").write_bytes(content)
    with pytest.raises(ResumeError, match=r"choose another --out$"):
        opened(tmp_path)


@pytest.mark.parametrize("below", [".", "runs"])
def test_a_directory_that_cannot_be_made(tmp_path, below):
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match=r"file.* cannot be written"):
        opened(tmp_path / "file" / below)


# --- records of a loop of one's own ---


def test_records_of_a_loop_of_ones_own_are_a_report_like_any_other(tmp_path):
    for run in ("1e5", "etf+bias"):
        for seed in (0, 1):
            records = Records()
            for epoch in (1, 2):
                records.add("accuracy", 0.4 * epoch, epoch=epoch, split="test")
            assert write(records, tmp_path, run=run, seed=seed) == Path(tmp_path / run / f"seed-{seed}")
    directory = RunDirectory.read(tmp_path)
    assert directory.runs == ["1e5", "etf+bias"]
    assert directory.problems == []
    assert directory.records.value("accuracy", run="1e5", seed=1) == 0.8
    assert "etf+bias" in build_report(tmp_path).read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("run", "seed", "error"), [("../up", 0, ConfigError), ("", 0, ConfigError), ("a", -1, ArgumentError)]
)
def test_records_are_written_into_the_directory_alone(tmp_path, run, seed, error):
    with pytest.raises(error, match=r"run must have names|seed must be"):
        write(Records(), tmp_path / "out", run=run, seed=seed)
    assert not list(tmp_path.iterdir())
