"""Hierarchies as paths, levels, nested mappings, WordNet and files, as people write them and as they break them."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
import torch

from tightframe.errors import ArgumentError, DataFileError, MissingExtraError, ShapeError
from tightframe.hierarchy import Tree
from tightframe.hierarchy.graph import graph_distances
from tightframe.hierarchy.index import TreeIndex

from .material import GOLDEN, NESTED

JSON = '{"E": ["A", "B"], "F": ["C", "D"]}'


def test_paths() -> None:
    paths = ["os", "os.path", "json.decoder", ("json", "encoder")]
    tree = Tree.from_paths(paths)
    assert tree.class_names == ("os", "path", "decoder", "encoder")
    assert tree.distances().tolist() == [[0, 1, 2, 2], [1, 0, 2, 2], [2, 2, 0, 1], [2, 2, 1, 0]]
    # The last name alone is no node: two packages may have a module of one name.
    assert Tree.from_paths(["a/x", "b/x"], separator="/").distances().tolist() == [[0, 2], [2, 0]]


@pytest.mark.parametrize(
    ("paths", "message"),
    [
        ([], "one path a class, got none"),
        (["a..b"], "none of them empty, got 'a..b'"),
        ([()], "none of them empty, got ()"),
        ([("a", None)], "got ('a', None)"),
        (["a.b", "c", "a.b"], "must be different, got 'a.b' more than once"),
        ("a.b", "got the string 'a.b'"),
    ],
)
def test_wrong_paths(paths: list[str], message: str) -> None:
    with pytest.raises(ArgumentError, match=re.escape(message)):
        Tree.from_paths(paths)


def test_levels_from_coarse_to_fine() -> None:
    expected = [[0, 1, 2, 3], [1, 0, 2, 3], [2, 2, 0, 3], [3, 3, 3, 0]]
    rows = [[0, 5], [0, 5], [0, 6], [1, 5]]
    for levels in (rows, torch.tensor(rows), np.array(rows)):
        tree = Tree.from_levels(levels, ["w", "x", "y", "z"])
        assert tree.class_names == ("w", "x", "y", "z")
        assert tree.distances().tolist() == expected
    # Rows need not be of one length, and one class a row needs no name.
    assert Tree.from_levels([["cat"], ["cat"], []]).distances().tolist() == [[0, 1, 2], [1, 0, 2], [2, 2, 0]]


def test_wrong_levels() -> None:
    with pytest.raises(ShapeError, match=r"rows of ancestors, got 0 as the first; wrap"):
        Tree.from_levels([0, 0, 1])
    with pytest.raises(ShapeError, match="rows of ancestors, got 'cat'"):
        Tree.from_levels(["cat", "dog"])
    with pytest.raises(ShapeError, match="each of the 2 rows, got 1"):
        Tree.from_levels([[0], [1]], ["a"])
    with pytest.raises(ArgumentError, match="leave missing levels out"):
        Tree.from_levels([["cat", None], ["cat", "b"]])
    with pytest.raises(ArgumentError, match="more than once"):
        Tree.from_levels([["cat"], ["cat"]], ["a", "a"])


def test_nested_forms_of_one_tree() -> None:
    forms = [
        NESTED,
        [{"E": ["A", "B"]}, {"F": ["C", "D"]}],
        {"top": {"E": {"A": None, "B": {}}, "F": ("C", {"D": []})}},
    ]
    for nested in forms:
        tree = Tree.from_nested(nested)
        assert tree.class_names == ("A", "B", "C", "D")
        assert tree.distances().tolist() == GOLDEN
    assert Tree.from_nested(forms[2]).names[0] == "top"
    assert Tree.from_nested(["x", "y", "z"]).distances().tolist() == [[0, 1, 1], [1, 0, 1], [1, 1, 0]]


def test_classes_of_nested_mappings_by_name() -> None:
    tree = Tree.from_nested(NESTED, ["D", "A", "B", "C"])
    assert tree.class_names == ("D", "A", "B", "C")
    assert tree.distances()[0].tolist() == [0, 2, 2, 1]
    # The genus of one name with its species: the leaf is meant.
    tree = Tree.from_nested({"cat": ["cat", "lion"], "dog": None}, ["lion", "cat", "dog"])
    assert len(tree.names) == 5
    assert tree.distances().tolist() == [[0, 1, 2], [1, 0, 2], [2, 2, 0]]
    with pytest.raises(ArgumentError, match="one node each, got 'x' for 2"):
        Tree.from_nested({"E": ["x"], "F": ["x"]}, ["x"])


@pytest.mark.parametrize(
    ("nested", "message"),
    [
        ({}, "something in it, got {}"),
        ([], "something in it, got []"),
        ("A", "something in it, got 'A'"),
        ({"E": ["A", "A"]}, "got 'A' twice under 'E'"),
        ([{"E": ["A"]}, {"E": ["B"]}], "got 'E' twice under 'root'"),
        ({"E": [["A"]]}, "got ['A'] of type list"),
        ({"E": ["A", False]}, "got False of type bool; quote it"),
        ({"E": {1.5: None}}, "got 1.5 of type float"),
        ({"E": ["A", None]}, "got None of type NoneType"),
        ({"E": ["A", ""]}, "got '' of type str"),
    ],
)
def test_wrong_nested(nested: object, message: str) -> None:
    with pytest.raises(ArgumentError, match=re.escape(message)):
        Tree.from_nested(nested)  # type: ignore[arg-type]


def test_names_stay_as_they_are_written_in_yaml(tmp_path: Path) -> None:
    path = tmp_path / "tree.yaml"
    path.write_text(
        "'yes': [010, 1e5, 'no', 'null', 1_000, '2001-01-01']\n1.50:\n  0x1F: ~\n  0o7:\n", encoding="utf-8"
    )
    tree = Tree.read(path)
    assert tree.class_names == ("010", "1e5", "no", "null", "1_000", "2001-01-01", "0x1F", "0o7")
    assert tree.names[1] == "yes"
    assert "1.50" in tree.names


def test_nested_of_any_depth_but_not_within_itself() -> None:
    nested: dict[str, object] = {"a": None, "b": None}
    for level in range(1500):
        nested = {f"level {level}": nested, f"leaf {level}": None}
    assert Tree.from_nested(nested).depth.max() == 1501
    twice = {"x": None, "y": None}
    assert Tree.from_nested({"E": twice, "F": twice}).num_classes == 4
    twice["x"] = [{"z": twice}]  # type: ignore[assignment]
    with pytest.raises(ArgumentError, match=re.escape("nested must not hold itself, got 'z'")):
        Tree.from_nested({"E": twice})


class Synset:
    """What nltk's synsets have that is used here."""

    def __init__(self, name: str, above: list[Synset], instance: bool = False) -> None:
        self._name, self._above, self._instance, self.visits = name, above, instance, 0

    def name(self) -> str:
        return self._name

    def hypernyms(self) -> list[Synset]:
        self.visits += 1
        return [] if self._instance else self._above

    def instance_hypernyms(self) -> list[Synset]:
        return self._above if self._instance else []


@pytest.fixture
def wordnet(monkeypatch: pytest.MonkeyPatch) -> dict[str, Synset]:
    entity = Synset("entity.n.01", [])
    animal = Synset("animal.n.01", [entity])
    canine = Synset("canine.n.02", [animal])
    domestic = Synset("domestic_animal.n.01", [animal])
    nodes = [entity, animal, canine, domestic, Synset("dog.n.01", [domestic, canine]), Synset("wolf.n.01", [canine])]
    nodes += [Synset("cat.n.01", [animal]), Synset("laika.n.01", [nodes[4]], instance=True), Synset("run.v.01", [])]
    known = {node.name(): node for node in nodes}

    def by_offset(pos: str, offset: int) -> Synset | None:
        return {("n", 2084071): nodes[4]}.get((pos, offset))

    corpus = ModuleType("nltk.corpus")
    corpus.wordnet = SimpleNamespace(  # type: ignore[attr-defined]
        synset=known.__getitem__, synset_from_pos_and_offset=by_offset
    )
    monkeypatch.setitem(sys.modules, "nltk", ModuleType("nltk"))
    monkeypatch.setitem(sys.modules, "nltk.corpus", corpus)
    return known


def test_wordnet(wordnet: dict[str, Synset]) -> None:
    tree = Tree.from_wordnet(["wolf.n.01", "n02084071", "cat.n.01"], several_parents="first")
    assert tree.class_names == ("wolf.n.01", "dog.n.01", "cat.n.01")
    assert tree.names[0] == "entity.n.01"
    # Of the two hypernyms the first is domestic_animal.
    assert tree.distances().tolist() == [[0, 2, 2], [2, 0, 2], [2, 2, 0]]
    # laika, an instance, lies below dog, which as a class gets its own leaf.
    tree = Tree.from_wordnet(["dog.n.01", "laika.n.01"])
    assert tree.distances().tolist() == [[0, 1], [1, 0]]
    assert len(tree.names) == 6


def test_wordnet_is_walked_once_however_many_ways_lead_up(wordnet: dict[str, Synset]) -> None:
    Tree.from_wordnet(["wolf.n.01", "dog.n.01", "laika.n.01", "cat.n.01"])
    assert [node.visits for node in wordnet.values()] == [1, 1, 1, 1, 1, 1, 1, 1, 0]


@pytest.mark.parametrize(
    ("synsets", "message"),
    [
        (["dgo.n.01"], "got 'dgo.n.01'"),
        (["n00000001"], "in nltk's WordNet, got 'n00000001'"),
        (["dog.n.01", "n02084071"], "must be different, got 'dog.n.01'"),
    ],
)
def test_wrong_synsets(wordnet: dict[str, Synset], synsets: list[str], message: str) -> None:
    with pytest.raises(ArgumentError, match=re.escape(message)):
        Tree.from_wordnet(synsets)


def test_wordnet_without_its_corpus(wordnet: dict[str, Synset]) -> None:
    def missing(name: str) -> None:
        raise LookupError("a screen of advice")

    sys.modules["nltk.corpus"].wordnet.synset = missing  # type: ignore[attr-defined]
    with pytest.raises(DataFileError, match=re.escape("run: python -m nltk.downloader wordnet")):
        Tree.from_wordnet(["dog.n.01"])


def test_wordnet_without_nltk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "nltk.corpus", None)
    with pytest.raises(MissingExtraError, match=re.escape("pip install 'tightframe[hierarchy]'")):
        Tree.from_wordnet(["dog.n.01"])


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
        ("tree.json", JSON[:-3], " cannot be read as JSON ("),
        ("tree.json", "", " cannot be read as JSON ("),
        ("tree.json", "[" * 100_000, " cannot be read as JSON ("),
        ("tree.json", "{}", ": nested must be a mapping or list with something in it"),
        ("tree.json", "3", ": nested must be a mapping or list"),
        ("tree.json", '{"E": ["A"], "E": ["B"]}', "the key 'E' comes twice"),
        ("tree.json", '{"E": ["A", "A"]}', ": nested must hold a name once under each node, got 'A' twice under 'E'"),
        ("tree.yaml", "E: [A, B\nF: [C]\n", " cannot be read as YAML ("),
        ("tree.yaml", "E: [A]\nE: [B]\n", "the key 'E' must be a word that comes once"),
        ("tree.yaml", "E: [A, '']\n", "got '' of type str"),
        ("tree.yaml", "E: &e\n  F: *e\n", " cannot be read as YAML ("),
        ("tree.yaml", "? [A, B]\n: C\n", "tree.yaml"),
        ("tree.yaml", "!!python/object/apply:os.getcwd []", ": nested must be a mapping"),
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
    with pytest.raises(DataFileError, match=r"none\.tsv does not exist; check the path"):
        Tree.read(tmp_path / "none.tsv")
    (tmp_path / "folder.json").mkdir()
    with pytest.raises(DataFileError, match=r"folder\.json cannot be read \(.*; save it as UTF-8"):
        Tree.read(tmp_path / "folder.json")
    (tmp_path / "binary.tsv").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(DataFileError, match=r"binary\.tsv cannot be read as text"):
        Tree.read(tmp_path / "binary.tsv")


def test_yaml_without_its_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "tree.yaml").write_text("E: [A, B]\n", encoding="utf-8")
    monkeypatch.setitem(sys.modules, "yaml", None)
    with pytest.raises(MissingExtraError, match=re.escape("pip install 'tightframe[cli]'")):
        Tree.read(tmp_path / "tree.yaml")


def test_a_chain_of_5000_levels(tmp_path: Path) -> None:
    edges = [(f"n{i}", f"n{i + 1}") for i in range(5000)] + [("n5000", "a"), ("n5000", "b"), ("n2500", "c")]
    path = tmp_path / "tree.tsv"
    path.write_text("".join(f"{parent}\t{child}\n" for parent, child in reversed(edges)), encoding="utf-8")
    tree = Tree.read(path, ["a", "b", "c"])
    assert tree.distances().tolist() == [[0, 1, 2501], [1, 0, 2501], [2501, 2501, 0]]
    assert torch.equal(graph_distances(edges, ["a", "b", "c"]), tree.distances())
    assert [tree.names[node] for node in tree.lca()[0]] == ["a", "n5000", "n2500"]
    assert TreeIndex(tree).num_nodes == 5004
    assert len(tree._repr_html_()) < 20_000
    for name, below, end in (("tree.json", '{"a":', "null}"), ("tree.yaml", "{a: ", "}")):
        (tmp_path / name).write_text(below * 5000 + end * 5000, encoding="utf-8")
        with pytest.raises(DataFileError, match=rf"{name} cannot be read as"):
            Tree.read(tmp_path / name)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("tree.tsv", "".join(f"n{i}\tn{i + 1}\n" for i in range(3000)) + "n3000\tn1\nr\tn0\n"),
        ("tree.tsv", f"r\t{'a' * 10**5}\t\n"),
        ("tree.json", json.dumps([{"a": "b" * 10**5}, {"a": None}])),
        ("tree.json", json.dumps([["a"] * 10**5])),
        ("tree.json", '["a", "\\ud800"]'),
        ("tree.json", "{" + '"a": 1, ' * 10**4 + '"b": 1, ' * 10**4 + '"c": 1}'),
        ("tree.yaml", "a: &a [b, {c: *a}]\n"),
        ("tree.yaml", "- 'a\\nb'\n- {a: 1, a: 2}\n"),
    ],
)
def test_refusals_are_short(tmp_path: Path, name: str, text: str) -> None:
    path = tmp_path / name
    path.write_text(text, encoding="utf-8")
    with pytest.raises(DataFileError) as caught:
        Tree.read(path)
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < len(str(path)) + 500
