from __future__ import annotations

import csv
import html
import json
import math
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import torch

from tightframe.errors import ArgumentError, EmptyDataError, MissingExtraError
from tightframe.records import Records
from tightframe.report import build_report
from tightframe.report.build import gather
from tightframe.runs import RunDirectory
from tightframe.runs.snapshots import Snapshot

from .material import simplex

HOSTILE = "<script>alert('x')<!-- & \"y\" $z$"
FETCHING = {
    ("script", "src"),
    ("link", "href"),
    ("img", "src"),
    ("iframe", "src"),
    ("object", "data"),
    ("source", "src"),
}


class Page(HTMLParser):
    """Tags with attributes, visible text and the content of each script."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: list[str] = []
        self.styles: list[str] = []
        self.cells: list[str] = []
        self.text = ""
        self._open: list[str] = []
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag in ("script", "style"):
            self._open.append(tag)
            (self.scripts if tag == "script" else self.styles).append("")
        if tag == "td":
            self.cells.append("")
            self._open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if self._open and self._open[-1] == tag:
            self._open.pop()

    def handle_data(self, data: str) -> None:
        place = self._open[-1] if self._open else ""
        if place == "script":
            self.scripts[-1] += data
        elif place == "style":
            self.styles[-1] += data
        else:
            self.text += data
            if place == "td":
                self.cells[-1] += data

    @property
    def data(self) -> dict[str, Any]:
        (index,) = [i for i, (_, attrs) in enumerate(self.script_tags) if attrs.get("id") == "data"]
        loaded: dict[str, Any] = json.loads(self.scripts[index])
        return loaded

    @property
    def script_tags(self) -> list[tuple[str, dict[str, str | None]]]:
        return [entry for entry in self.tags if entry[0] == "script"]


def write_run(out: Path, run: str, accuracies: list[float], *, snapshots: bool = False) -> None:
    for seed, accuracy in enumerate(accuracies):
        directory = out / run / f"seed-{seed}"
        directory.mkdir(parents=True)
        records = Records()
        for epoch in (0, 1):
            where = {"run": run, "seed": seed, "epoch": epoch}
            records.add("accuracy", accuracy if epoch else 0.1, split="test", **where)
            records.add("nc1.pinv", accuracy / (1 + epoch), split="train", layer="features", **where)
        records.save(directory / "records.jsonl")
        (directory / "timing.json").write_text('{"epochs": 1, "fit_seconds": 1234.56, "classifier_parameters": 40}')
        if snapshots:
            Snapshot(1, simplex(4, 4), simplex(4, 4), simplex(4, 4), torch.arange(4)).save(directory / "snapshots")


@pytest.fixture(scope="module")
def report(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("report") / "digits"
    shutil.copytree(trained, out)
    return build_report(out)


@pytest.fixture(scope="module")
def page(report: Path) -> Page:
    return Page(report)


def test_everything_is_written(report: Path) -> None:
    names = {str(path.relative_to(report.parent)) for path in report.parent.rglob("*") if path.is_file()}
    figures = {f"figures/{n}.{kind}" for n in ("accuracy", "collapse", "class_means") for kind in ("png", "svg")}
    assert {"report.html", "leaderboard.csv", "records.csv"} | figures <= names
    assert not [name for name in names if name.endswith(".partial")]
    assert (report.parent / "figures" / "accuracy.png").read_bytes()[:4] == b"\x89PNG"


def test_numbers_on_the_page_are_the_ones_in_the_records(report: Path, page: Page) -> None:
    records = Records()
    for path in sorted(report.parent.glob("*/seed-*/records.jsonl")):
        records.extend(Records.read(path))
    with (report.parent / "leaderboard.csv").open(newline="") as file:
        board = {row["run"]: row for row in csv.DictReader(file)}
    for run in ("learned", "fixed-etf"):
        values = [records.value("accuracy", run=run, seed=seed, split="test") for seed in (0, 1)]
        mean = sum(values) / 2
        half = math.tan(0.475 * math.pi) * abs(values[0] - values[1]) / 2
        assert f"{100 * mean:.2f} ± {100 * half:.2f}" in page.cells
        assert float(board[run]["test.accuracy"]) == pytest.approx(mean, rel=1e-12)
        assert float(board[run]["test.accuracy_ci95"]) == pytest.approx(half, rel=1e-9)
    (chart,) = [p["chart"] for p in page.data["panels"] if p["chart"]["title"] == "Test accuracy %"]
    first = next(line for line in chart["lines"] if line["label"] == "learned")
    expected = [100 * records.value("accuracy", run="learned", seed=s, split="test", epoch=1) for s in (0, 1)]
    assert first["y"][1] == pytest.approx(sum(expected) / 2, rel=1e-4)


def test_geometry_on_the_page(page: Page) -> None:
    learned, fixed = page.data["geometry"]
    assert (learned["run"], fixed["run"], fixed["epoch"], fixed["seed"]) == ("learned", "fixed-etf", 2, 0)
    assert all(
        v == pytest.approx(1 if i == j else -1 / 9, abs=6e-4)
        for i, row in enumerate(fixed["classifier"])
        for j, v in enumerate(row)
    )
    view = fixed["view"]
    assert [page.data["classes"][c] for c in view["classes"]] == ["zero", "one", "two", "three"]
    assert [frame["epoch"] for frame in view["frames"]] == [0, 1, 2]
    for frame in view["frames"]:
        for vector, vertex in zip(frame["vectors"], view["vertices"], strict=True):
            assert vector == pytest.approx(vertex, abs=2e-3)
        assert all(0 < len(points) <= 40 for points in frame["points"])


def test_page_fetches_nothing(page: Page) -> None:
    assert not [(tag, attrs) for tag, attrs in page.tags if {"src", "srcset", "data", "background"} & set(attrs)]
    assert not [tag for tag, _ in page.tags if tag in ("link", "base", "iframe", "img")]
    for style in page.styles:
        assert "url(" not in style
        assert "@import" not in style
    (policy,) = [a["content"] for tag, a in page.tags if tag == "meta" and a.get("http-equiv")]
    assert policy is not None
    assert "default-src 'none'" in policy
    assert "http" not in policy
    links = [attrs.get("href") for tag, attrs in page.tags if tag == "a"]
    assert all(link and link.startswith("#") for link in links)
    ids = {attrs.get("id") for _, attrs in page.tags}
    assert all(link and link[1:] in ids for link in links)
    assert "prefers-color-scheme" in "".join(page.scripts)


def test_elements_that_the_script_asks_for_exist(page: Page) -> None:
    ids = {attrs["id"] for _, attrs in page.tags if "id" in attrs}
    asked = set(re.findall(r'byId\("([\w-]+)"\)', page.scripts[-1]))
    assert {"legend", "charts", "epoch", "play", "theme", "cosine-run"} <= asked
    assert asked <= ids


def test_report_is_reproducible(report: Path) -> None:
    files = [path for path in report.parent.rglob("*") if path.suffix in (".html", ".csv", ".svg")]
    before = {path: path.read_bytes() for path in files}
    assert build_report(report.parent) == report
    assert [path.name for path in files if path.read_bytes() != before[path]] == []


def test_names_from_files_stay_text(tmp_path: Path) -> None:
    write_run(tmp_path, HOSTILE, [0.5], snapshots=True)
    (tmp_path / "config.yaml").write_text("a: </pre></script><script>alert(2)</script>\n")
    (tmp_path / "classes.json").write_text(json.dumps([f"</script>{HOSTILE}", "b", "c", "d"]))
    (tmp_path / "versions.json").write_text(json.dumps({"<img src=x>": "<b>1</b>"}))
    page = Page(build_report(tmp_path))
    assert len(page.script_tags) == 4
    assert not [tag for tag, _ in page.tags if tag in ("img", "b")]
    assert page.data["runs"] == [HOSTILE]
    assert page.data["classes"][0] == f"</script>{HOSTILE}"
    assert "</pre></script><script>alert(2)</script>" in html.unescape(page.text)
    assert HOSTILE in html.unescape(page.text)


def test_one_seed_has_no_interval(tmp_path: Path) -> None:
    write_run(tmp_path, "only", [0.875])
    page = Page(build_report(tmp_path))
    assert "87.50" in page.cells
    assert "one seed gives no interval" in page.text
    assert "±" not in page.text
    assert all(w is None for p in page.data["panels"] for c in p["chart"]["lines"] for w in c["width"])
    assert page.data["geometry"] == []
    assert "simplex" not in {attrs.get("id") for _, attrs in page.tags}
    assert "1,234.6" in page.cells


def test_missing_and_half_written_trainings_are_named(tmp_path: Path) -> None:
    write_run(tmp_path, "a", [0.5, 0.6, 0.7])
    write_run(tmp_path, "b", [0.5])
    (tmp_path / "a" / "seed-1" / "timing.json").unlink()
    path = tmp_path / "a" / "seed-2" / "records.jsonl"
    path.write_text(path.read_text()[:-9])
    (tmp_path / "a" / "seed-2" / "timing.json").unlink()
    text = " ".join(Page(build_report(tmp_path)).text.split())
    assert "4 of 6 trainings are missing, unfinished or damaged" in text
    assert "a, seed 1: unfinished: last epoch measured is 1" in text
    assert "b, seed 2: missing: no directory" in text


def test_nan_values_do_not_break_the_page(tmp_path: Path) -> None:
    write_run(tmp_path, "diverged", [math.nan, math.nan], snapshots=True)
    write_run(tmp_path, "partly", [0.75, math.nan])
    nan = torch.full((4, 4), math.nan)
    Snapshot(1, nan, simplex(4, 4), nan.clone(), torch.arange(4)).save(tmp_path / "diverged" / "seed-0" / "snapshots")
    page = Page(build_report(tmp_path))
    assert "nan" in page.cells
    assert "75.00 (1 of 2)" in page.cells
    assert page.data["geometry"][0]["means"] == [[None] * 4] * 4
    assert page.data["geometry"][0]["view"] is None
    with (tmp_path / "leaderboard.csv").open(newline="") as file:
        assert [row["run"] for row in csv.DictReader(file)] == ["partly", "diverged"]


def test_many_classes_and_snapshots_keep_the_page_small(tmp_path: Path) -> None:
    write_run(tmp_path, "big", [0.5])
    etf = simplex(301, 300)
    labels = torch.arange(4).repeat(60)
    for epoch in range(30):
        Snapshot(epoch, etf, etf.clone(), etf[labels], labels).save(tmp_path / "big" / "seed-0" / "snapshots")
    (item,) = Page(build_report(tmp_path)).data["geometry"]
    assert (item["num_classes"], len(item["means"]), len(item["means"][0])) == (300, 60, 60)
    assert len(item["view"]["frames"]) == 25
    assert [item["view"]["frames"][i]["epoch"] for i in (0, -1)] == [0, 29]
    assert [len(points) for points in item["view"]["frames"][0]["points"]] == [40] * 4


def test_chosen_classes(trained: Path) -> None:
    view = gather(RunDirectory.read(trained), [9, 5, 2]).geometry[0].view
    assert view is not None
    assert view.classes == (9, 5, 2)
    with pytest.raises(ArgumentError, match="classes must be"):
        build_report(trained, classes=[0, 12])


def test_no_runs(tmp_path: Path) -> None:
    with pytest.raises(EmptyDataError):
        build_report(tmp_path)


def test_missing_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_run(tmp_path, "only", [0.5])
    monkeypatch.setitem(sys.modules, "jinja2", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'tightframe\[cli\]'"):
        build_report(tmp_path)


def test_import_is_light() -> None:
    code = (
        "import sys, tightframe.report; heavy = {'matplotlib', 'plotly', 'pandas', 'jinja2', 'rich', 'scipy'};"
        "sys.exit(', '.join(heavy & set(sys.modules)) or 0)"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stderr == ""
