from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tightframe import runs
from tightframe.hierarchy import Tree
from tightframe.records import Records
from tightframe.report import build_report
from tightframe.report.confusion import (
    MAX_GROUPS,
    gather_confusions,
    grouped,
    lowest_common_ancestors,
    meetings,
    most_frequent,
    tree_groups,
)
from tightframe.runs import RunDirectory
from tightframe.runs.confusion import Confusion

from .test_build import HOSTILE, Page

# root (0), E (1), A, B (2, 3), F (4), sub (5), C (6), D (7)
SMALL = Tree.from_paths([("E", "A"), ("E", "B"), ("F", "sub", "C"), ("F", "D")])
#        right         A for B    B for A    A for C    C for D    D for C
PAIRS = [[0, 0], [2, 2], [1, 0], [0, 1], [0, 2], [3, 2], [2, 3]]
COUNTS = [10, 6, 4, 3, 2, 7, 1]


def random_tree(seed: int, num_nodes: int = 40) -> Tree:
    """A tree with unary nodes and leaves at many depths, its classes in any order."""
    rng = np.random.default_rng(seed)
    parents = [-1, *(int(rng.integers(max(0, i - 9), i)) for i in range(1, num_nodes))]
    leaves = np.setdiff1d(np.arange(num_nodes), parents)
    return Tree(parents, classes=rng.permutation(leaves).tolist())


def random_mistakes(tree: Tree, seed: int = 0, size: int = 300) -> tuple[np.ndarray, np.ndarray]:
    """Pairs of label and prediction, and their counts."""
    rng = np.random.default_rng(seed)
    return np.unique(rng.integers(0, tree.num_classes, (size, 2)), axis=0, return_counts=True)


def write(
    out: Path, tree: Tree, names: Sequence[str], runs: dict[str, list[Confusion | None]], split: str = "test"
) -> Path:
    """Write what a comparison leaves that matters here: one confusion a seed."""
    out.mkdir(exist_ok=True)
    parts = {"parents": tree.parents.tolist(), "names": tree.names, "classes": tree.classes.tolist()}
    (out / "hierarchy.json").write_text(json.dumps(parts))
    (out / "classes.json").write_text(json.dumps(list(names)))
    for run, seeds in runs.items():
        for seed, confusion in enumerate(seeds):
            directory = out / run / f"seed-{seed}"
            directory.mkdir(parents=True, exist_ok=True)
            records = Records()
            records.add("accuracy", 0.5, run=run, seed=seed, epoch=1, split=split)
            records.save(directory / "records.jsonl")
            (directory / "timing.json").write_text('{"epochs": 1}')
            if confusion is not None:
                confusion.save(directory, split)
    return out


def small(epoch: int = 3, factor: int = 1) -> Confusion:
    return Confusion(epoch, torch.tensor(PAIRS), factor * torch.tensor(COUNTS))


def shown(out: Path) -> dict[str, Any]:
    data: dict[str, Any] = Page(build_report(out)).data["confusion"]
    return data


# ---------------------------------------------------------------- where mistakes meet


@pytest.mark.parametrize("seed", range(20))
def test_meeting_nodes_are_those_of_the_whole_table(seed: int) -> None:
    tree = random_tree(seed)
    every = np.stack(np.meshgrid(*2 * [np.arange(tree.num_classes)], indexing="ij"), axis=-1).reshape(-1, 2)
    assert np.array_equal(lowest_common_ancestors(tree, every), tree.lca().ravel())
    (pairs, counts), table = random_mistakes(tree, seed), tree.lca()
    expected = np.zeros(len(tree.names), dtype=int)
    for (label, prediction), count in zip(pairs, counts, strict=True):
        expected[table[label, prediction]] += count * (label != prediction)
    assert np.array_equal(meetings(tree, pairs, counts), expected)
    assert 0 < expected.sum() < counts.sum()
    assert expected[tree.classes].sum() == 0


def test_no_pair_at_all() -> None:
    nothing = np.zeros((0, 2), dtype=np.int64)
    assert lowest_common_ancestors(SMALL, nothing).tolist() == []
    right = np.array([[1, 1]]), np.array([4])
    assert meetings(SMALL, *right).tolist() == [0] * 8
    assert most_frequent(SMALL, *right) == []


def test_ten_thousand_classes_need_no_table() -> None:
    levels = [(k // 1000, k // 100, k // 10) for k in range(10_000)]
    tree = Tree.from_levels(levels)
    pairs, counts = random_mistakes(tree, size=50_000)
    labels, predictions = pairs.T
    depth = sum((labels // size == predictions // size).astype(int) for size in (1000, 100, 10))
    of_depth = np.bincount(tree.depth, meetings(tree, pairs, counts))[:4]
    wrong = labels != predictions
    assert np.array_equal(of_depth, np.bincount(depth[wrong], counts[wrong], 4))
    groups = tree_groups(tree)
    assert groups is not None
    assert (len(groups.nodes), groups.level) == (100, 2)
    assert np.array_equal(groups.of_class, np.arange(10_000) // 100)


# ---------------------------------------------------------------- groups of the heat map


@pytest.mark.parametrize("seed", range(10))
def test_groups_are_the_deepest_level_that_is_small_enough(seed: int) -> None:
    tree = random_tree(seed)
    ancestors = np.zeros((tree.num_classes, len(tree.names)), dtype=bool)
    for label, node in enumerate(tree.classes):
        while node >= 0:
            ancestors[label, node] = True
            node = tree.parents[node]
    for limit in range(2, tree.num_classes + 2):
        levels = []
        for level in range(int(tree.depth.max()) + 1):
            # By hand: of each class the deepest node on its way that is no deeper than the level.
            found = [int(np.flatnonzero(way & (tree.depth <= level)).max()) for way in ancestors]
            if len(set(found)) <= limit:
                levels.append(found)
        groups = tree_groups(tree, limit)
        if len(set(levels[-1])) < 2:
            assert groups is None
            continue
        assert groups is not None
        assert groups.nodes[groups.of_class].tolist() == levels[-1]
        assert groups.nodes.tolist() == sorted(set(levels[-1]))
        assert (groups.level is None) == (len(groups.nodes) == tree.num_classes)


def test_classes_are_in_the_order_of_the_tree_whatever_their_labels() -> None:
    tree = Tree.from_nested({"E": ["A", "B"], "F": ["C", "D"]}, classes=["D", "A", "C", "B"])
    groups = tree_groups(tree)
    assert groups is not None
    assert [tree.names[node] for node in groups.nodes] == ["A", "B", "C", "D"]
    assert groups.of_class.tolist() == [3, 0, 2, 1]
    assert groups.level is None
    assert groups.blocks == (("E", 0, 2), ("F", 2, 2))


def test_borders_where_there_is_nothing_between() -> None:
    flat = tree_groups(Tree.from_nested(list("ABC")))
    assert flat is not None
    assert flat.blocks == ()
    mixed = tree_groups(Tree.from_nested({"A": None, "E": ["B", "C"], "D": None}))
    assert mixed is not None
    assert mixed.blocks == (("A", 0, 1), ("E", 1, 2), ("D", 3, 1))


@pytest.mark.parametrize("num_classes", [1, MAX_GROUPS + 1])
def test_no_groups(num_classes: int) -> None:
    assert tree_groups(Tree([-1, *num_classes * [0]])) is None


def test_as_many_classes_as_there_may_be_groups() -> None:
    groups = tree_groups(Tree([-1, *MAX_GROUPS * [0]]))
    assert groups is not None
    assert len(groups.nodes) == MAX_GROUPS


@pytest.mark.parametrize("limit", [4, 9, 100])
def test_cells_are_the_dense_matrix_without_its_diagonal(limit: int) -> None:
    tree = random_tree(3)
    (pairs, counts), groups = random_mistakes(tree), tree_groups(tree, limit)
    assert groups is not None
    dense = np.zeros((len(groups.nodes), len(groups.nodes)), dtype=int)
    for (label, prediction), count in zip(pairs, counts, strict=True):
        dense[groups.of_class[label], groups.of_class[prediction]] += count
    cells, totals = grouped(groups, pairs, counts)
    assert np.array_equal(totals, dense.sum(axis=1))
    assert dense.trace() > 0
    np.fill_diagonal(dense, 0)
    again = np.zeros_like(dense)
    again[cells[:, 0], cells[:, 1]] = cells[:, 2]
    assert np.array_equal(again, dense)
    assert len(cells) == np.count_nonzero(dense)


def test_the_ten_most_frequent_mistakes() -> None:
    tree = Tree([-1, *6 * [0]])
    pairs = np.array([[a, b] for a in range(6) for b in range(6)])
    counts = np.where(pairs[:, 0] == pairs[:, 1], 100, 1 + (pairs.sum(axis=1) % 4))
    found = most_frequent(tree, pairs, counts)
    assert [count for _, _, count, _, _ in found] == [4] * 8 + [3] * 2
    assert [pair[:2] for pair in found] == [
        (0, 3), (1, 2), (2, 1), (2, 5), (3, 0), (3, 4), (4, 3), (5, 2), (0, 2), (1, 5),
    ]  # fmt: skip
    assert [pair[3] for pair in found[:2]] == [counts[:6].sum(), counts[6:12].sum()]


# ---------------------------------------------------------------- from files to the page


def test_the_page_shows_where_the_mistakes_are(tmp_path: Path) -> None:
    out = write(tmp_path, SMALL, "ABCD", {"mine": [small()], "other": [small()]})
    page = Page(build_report(out))
    data = page.data["confusion"]
    assert (data["split"], data["groups"]) == ("test", ["A", "B", "C", "D"])
    assert data["blocks"] == [["E", 0, 2], ["F", 2, 2]]
    mine, other = data["runs"]
    assert {**mine, "run": "other"} == other
    assert (mine["seeds"], mine["epochs"], mine["samples"]) == ([0], [3, 3], 33)
    # Node, mistakes that meet there, and with all below: of E A for B and B for A, of F C for D and D for C.
    assert mine["nodes"] == [[0, 2, 17], [1, 7, 7], [4, 8, 8]]
    assert mine["depths"] == [2, 15, 0]
    assert mine["cells"] == [[0, 1, 3], [0, 2, 2], [1, 0, 4], [2, 3, 1], [3, 2, 7]]
    assert mine["totals"] == [15, 4, 7, 7]
    assert mine["frequent"] == [
        ["D", "C", 7, 7, "F"],
        ["B", "A", 4, 4, "E"],
        ["A", "B", 3, 15, "E"],
        ["A", "C", 2, 15, "root"],
        ["C", "D", 1, 7, "F"],
    ]
    places = [attrs["data-node"] for _, attrs in page.tags if attrs.get("class") == "mistakes"]
    assert places == ["0", "1", "4", "5"]
    text = " ".join(page.text.split())
    assert "test samples whose label and prediction differ" in text
    assert "borders of the root’s children" in text
    assert "too many to tell apart" not in text


def test_elements_that_the_script_asks_for_exist(tmp_path: Path) -> None:
    page = Page(build_report(write(tmp_path, SMALL, "ABCD", {"mine": [small()]})))
    ids = {attrs["id"] for _, attrs in page.tags if "id" in attrs}
    assert {"confusion-run", "confusion-summary", "confusion-map", "confusion-pairs"} <= ids
    script = page.scripts[-1]
    for name in ("run", "summary", "map", "pairs", "bar", "high"):
        assert f'confusion-{name}"' in script or f"#confusion-{name} " in script
        assert f"confusion-{name}" in ids


def test_seeds_are_added_up(tmp_path: Path) -> None:
    more = Confusion(5, torch.tensor([[3, 3], [0, 2]]), torch.tensor([8, 1]))
    write(tmp_path, SMALL, "ABCD", {"mine": [small(), None, more]})
    confusions = gather_confusions(RunDirectory.read(tmp_path), "test")
    assert confusions is not None
    (run,) = confusions.runs
    assert (run.seeds, run.epochs, run.samples) == ([0, 2], (3, 5), 42)
    # The second file adds one A for C and eight right samples of the class D.
    assert run.cells.tolist() == [[0, 1, 3], [0, 2, 3], [1, 0, 4], [2, 3, 1], [3, 2, 7]]
    assert run.totals.tolist() == [16, 4, 7, 15]


def test_the_split_that_accuracy_is_judged_on(tmp_path: Path) -> None:
    write(tmp_path, SMALL, "ABCD", {"mine": [small()]}, split="validation")
    assert shown(tmp_path)["split"] == "validation"
    write(tmp_path / "both", SMALL, "ABCD", {"mine": [small()]})
    small(factor=9).save(tmp_path / "both" / "mine" / "seed-0", "validation")
    data = shown(tmp_path / "both")
    assert (data["split"], data["runs"][0]["samples"]) == ("test", 33)


def test_many_classes_are_grouped_and_the_page_says_so(tmp_path: Path) -> None:
    tree = Tree.from_levels([(k // 100, k // 5) for k in range(1000)])
    pairs, counts = random_mistakes(tree, size=3000)
    confusion = Confusion(1, torch.from_numpy(pairs), torch.from_numpy(counts))
    write(tmp_path, tree, [f"class {k}" for k in range(1000)], {"mine": [confusion]})
    page = Page(build_report(tmp_path))
    data = page.data["confusion"]
    assert len(data["groups"]) == 200
    assert [block[1:] for block in data["blocks"]] == [[20 * i, 20] for i in range(10)]
    (mine,) = data["runs"]
    assert sum(mine["totals"]) == mine["samples"] == 3000
    assert len(mine["cells"]) < len(counts)  # sparse, and not 200 x 200
    labels, predictions = (pairs // 5).T
    assert sum(count for _, _, count in mine["cells"]) == counts[labels != predictions].sum()
    text = " ".join(page.text.split())
    assert "1000 classes are too many to tell apart" in text
    assert "the 200 nodes at depth 2" in text


def test_a_flat_tree_of_many_classes_has_no_picture(tmp_path: Path) -> None:
    tree = Tree([-1, *300 * [0]])
    write(tmp_path, tree, [f"class {k}" for k in range(300)], {"mine": [small()]})
    page = Page(build_report(tmp_path))
    data = page.data["confusion"]
    assert (data["groups"], data["blocks"], data["runs"][0]["cells"]) == ([], [], [])
    assert data["runs"][0]["nodes"] == [[0, 17, 17]]
    assert data["runs"][0]["frequent"][0] == ["class 3", "class 2", 7, 7, "0"]
    assert "confusion-map" not in {attrs.get("id") for _, attrs in page.tags}
    assert "there is no picture" in " ".join(page.text.split())


def test_a_run_without_mistakes(tmp_path: Path) -> None:
    right = Confusion(1, torch.tensor([[1, 1]]), torch.tensor([5]))
    (run,) = shown(write(tmp_path, SMALL, "ABCD", {"mine": [right]}))["runs"]
    assert (run["samples"], run["nodes"], run["cells"], run["frequent"]) == (5, [], [], [])
    assert run["totals"] == [0, 5, 0, 0]


def test_names_from_files_stay_text(tmp_path: Path) -> None:
    tree = Tree.from_paths([(HOSTILE, "<b>A"), (HOSTILE, "</script><img src=x>"), ("F", "C"), ("F", "D")])
    names = ["<b>A", "</script><img src=x>", "C", "D"]
    write(tmp_path, tree, names, {HOSTILE: [small()]})
    page = Page(build_report(tmp_path))
    assert len(page.script_tags) == 4
    assert not [tag for tag, _ in page.tags if tag in ("img", "b")]
    data = page.data["confusion"]
    assert data["groups"] == names
    assert data["blocks"][0] == [HOSTILE, 0, 2]
    assert data["runs"][0]["frequent"][1] == [names[1], names[0], 4, 4, HOSTILE]


def section(out: Path) -> str:
    page = build_report(out).read_text()
    return page[page.index('<section id="hierarchy">') : page.index('<section id="trainings">')]


def test_without_files_the_page_is_as_before(tmp_path: Path) -> None:
    write(tmp_path, SMALL, "ABCD", {"mine": [None]})
    assert shown(tmp_path) is None
    text = section(tmp_path)
    assert "<h2>Hierarchy of the classes</h2>" in text
    assert "<summary>E <small>2</small></summary>" in text
    assert "mistakes" not in text
    assert "confusion" not in text
    assert "drawConfusion" not in (tmp_path / "report.html").read_text()


@pytest.mark.parametrize("damage", ["truncated", "other classes", "without a tree"])
def test_what_cannot_be_read_is_left_out(tmp_path: Path, damage: str) -> None:
    write(tmp_path, SMALL, "ABCD", {"mine": [small(), small()], "other": [small()]})
    for path in (tmp_path / "mine" / "seed-1", tmp_path / "other" / "seed-0"):
        if damage == "truncated":
            file = path / "confusion-test.safetensors"
            file.write_bytes(file.read_bytes()[:-1])
        else:
            Confusion(1, torch.tensor([[0, 4]]), torch.tensor([1])).save(path, "test")
    if damage == "without a tree":
        (tmp_path / "hierarchy.json").unlink()
        assert shown(tmp_path) is None
        return
    page = Page(build_report(tmp_path))
    (run,) = page.data["confusion"]["runs"]
    assert (run["seeds"], run["samples"]) == ([0], 33)
    assert section(tmp_path).count("<option>") == 1


def test_the_page_of_a_hierarchy_of_any_depth(tmp_path):
    records = Records()
    records.add("accuracy", 0.5, epoch=1, split="test")
    runs.write(records, tmp_path, run="a")
    chain = [(f"n{i}", f"n{i + 1}") for i in range(5000)]
    tree = Tree.from_edges([("n0", "w"), *chain, ("n5000", "x"), ("n5000", "y")])
    described = {"parents": tree.parents.tolist(), "names": tree.names, "classes": tree.classes.tolist()}
    (tmp_path / "hierarchy.json").write_text(json.dumps(described))
    page = build_report(tmp_path).read_text(encoding="utf-8")
    assert "<p>w</p>" in page
    assert "4902 more levels with 2 of the classes, not shown" in page
    assert page.count('<details class="branch"') == 100
