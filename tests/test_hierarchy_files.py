"""Hierarchies in files as people write them, and as they break them."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

from tightframe._checks import DataFileError, MissingExtraError
from tightframe.hierarchy import Tree

GOLDEN = [[0.0, 1.0, 2.0, 2.0], [1.0, 0.0, 2.0, 2.0], [2.0, 2.0, 0.0, 1.0], [2.0, 2.0, 1.0, 0.0]]
JSON = '{"E": ["A", "B"], "F": ["C", "D"]}'


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("tree.tsv", "root\tE\nroot\tF\nE\tA\nE\tB\nF\tC\nF\tD\n"),
        ("tree.tsv", "\ufeff# parent, child\r\nroot\tE\r\n\r\nroot\tF\r\n E \tA\r\nE\tB\r\nF\tC\r\nF\tD"),
        ("tree_isa.txt", "root E\nroot  F\n  # leaves\nE A\nE B\nE B\nF C\nF\tD\n"),
        ("tree.json", JSON),
        ("tree.yaml", "E: [A, B]\nF:\n  - C\n  - D: null\n"),
        ("tree.yml", "root:\n  E:\n    A:\n    B:\n  F: [C, D]\n"),
    ],
)
def test_files_of_the_golden_tree(tmp_path: Path, name: str, text: str) -> None:
    path = tmp_path / name
    path.write_bytes(text.encode())
    tree = Tree.read(path)
    assert tree.class_names == ("A", "B", "C", "D")
    assert tree.names[0] == "root"
    assert tree.distances().tolist() == GOLDEN
    assert Tree.read(str(path), ["D", "C", "A", "B"]).distances()[0].tolist() == [0, 1, 2, 2]
    assert Tree.read(path, ["C", "A"], prune=True).names == ("root", "E", "A", "F", "C")


def test_names_with_blanks_and_sharps_need_tabs_alone(tmp_path: Path) -> None:
    path = tmp_path / "tree.tsv"
    path.write_text("languages\tC# and C\nlanguages\tobject oriented\n", encoding="utf-8")
    assert Tree.read(path).class_names == ("C# and C", "object oriented")


def test_several_parents_in_a_file(tmp_path: Path) -> None:
    path = tmp_path / "tree.tsv"
    path.write_text("r a\nr b\na x\nb x\nb y\na z\n", encoding="utf-8")
    with pytest.raises(DataFileError, match=r"tree\.tsv: .* several parents of 'x': 'a', 'b'; choose"):
        Tree.read(path)
    assert Tree.read(path, several_parents="first").distances()[0].tolist() == [0, 2, 1]


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("tree.tsv", "r\ta\nr\tb\tc\n", ", line 2 must be parent<TAB>child, got 'r\\tb\\tc'"),
        ("tree.tsv", "# a\n\nr\t\n", ", line 3 must be"),
        ("tree.tsv", "r\ta\nr\tb\n\tc\n", ", line 3 must be"),
        ("tree.txt", "r a\nr guinea pig\n", ", line 2 must be parent<TAB>child, got 'r guinea pig'; names that hold"),
        ("tree.txt", "r a\nr\n", ", line 2 must be"),
        ("tree.tsv", "", ": the hierarchy must have nodes, got none"),
        ("tree.tsv", "r\ta\ns\tb\n", ": the hierarchy must have one root, got 2: 'r', 's'"),
        ("tree.tsv", "r\ta\na\tb\nb\ta\n", ": the hierarchy must have no cycle, got"),
        ("tree.tsv", "r\tr\n", "got 'r' as its own parent"),
        ("tree.json", JSON[:-3], " cannot be read as JSON: "),
        ("tree.json", "", " cannot be read as JSON: "),
        ("tree.json", "[" * 100_000, " cannot be read as JSON: "),
        ("tree.json", "{}", ": nested must be a mapping or list with something in it"),
        ("tree.json", "3", ": nested must be a mapping or list"),
        ("tree.json", '{"E": ["A"], "E": ["B"]}', "the key 'E' comes twice"),
        ("tree.json", '{"E": ["A", "A"]}', ": nested must hold a name once under each node, got 'A' twice under 'E'"),
        ("tree.yaml", "E: [A, B\nF: [C]\n", " cannot be read as YAML: "),
        ("tree.yaml", "E: [A]\nE: [B]\n", "the key 'E' comes twice"),
        ("tree.yaml", "E: [yes, no]\n", "got True of type bool; quote names in YAML"),
        ("tree.yaml", "E: &e\n  F: *e\n", "must not hold itself"),
        ("tree.yaml", "? [A, B]\n: C\n", "tree.yaml"),
        ("tree.yaml", "!!python/object/apply:os.getcwd []", " cannot be read as YAML: "),
        ("tree.pickle", "", " must end in .tsv, .txt, .json, .yaml or .yml"),
    ],
)
def test_broken_files_are_named(tmp_path: Path, name: str, text: str, message: str) -> None:
    path = tmp_path / name
    path.write_text(text, encoding="utf-8")
    with pytest.raises(DataFileError, match=re.escape(message)) as caught:
        Tree.read(path)
    assert str(caught.value).startswith(str(path))
    assert "\n" not in str(caught.value)


def test_unknown_class_in_a_file(tmp_path: Path) -> None:
    path = tmp_path / "tree.json"
    path.write_text('{"pets": ["dog", "cat"]}', encoding="utf-8")
    with pytest.raises(DataFileError, match=r"tree\.json: .* got 'dgo'; did you mean 'dog'\?"):
        Tree.read(path, ["dgo", "cat"])


def test_files_that_are_no_text(tmp_path: Path) -> None:
    with pytest.raises(DataFileError, match=r"none\.tsv cannot be read as text"):
        Tree.read(tmp_path / "none.tsv")
    (tmp_path / "folder.json").mkdir()
    with pytest.raises(DataFileError, match=r"folder\.json cannot be read as text"):
        Tree.read(tmp_path / "folder.json")
    (tmp_path / "binary.tsv").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(DataFileError, match=r"binary\.tsv cannot be read as text"):
        Tree.read(tmp_path / "binary.tsv")


def test_yaml_without_its_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "tree.yaml").write_text("E: [A, B]\n", encoding="utf-8")
    monkeypatch.setitem(sys.modules, "yaml", None)
    with pytest.raises(MissingExtraError, match=re.escape("pip install 'tightframe[cli]'")):
        Tree.read(tmp_path / "tree.yaml")
