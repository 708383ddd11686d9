"""Trees and graphs of classes: what they are, what they refuse, and the distances in them."""

from __future__ import annotations

import re
import sys
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tightframe._checks import ArgumentError, DataFileError, DtypeError, MissingExtraError, ShapeError
from tightframe.hierarchy import Tree, check_distances, graph_distances

NESTED = {"E": ["A", "B"], "F": ["C", "D"]}
GOLDEN = [[0.0, 1.0, 2.0, 2.0], [1.0, 0.0, 2.0, 2.0], [2.0, 2.0, 0.0, 1.0], [2.0, 2.0, 1.0, 0.0]]
# Leaves at depths 1, 2, 3, 3: the hand-computed case in which depth and height disagree.
UNEQUAL = {"R": {"a": None, "X": {"b": None, "Y": ["c", "d"]}}}
# dog is both a pet and cattle, at unequal depth.
DAG = [("life", "pet"), ("life", "farm"), ("farm", "cattle"), ("pet", "cat"), ("pet", "dog"), ("cattle", "dog")]
DAG += [("cattle", "cow")]


@st.composite
def trees(draw: st.DrawFn) -> Tree:
    """Return random trees of random label order, in which some classes are inner nodes."""
    count = draw(st.integers(1, 25))
    parents = [-1] + [draw(st.integers(0, node - 1)) for node in range(1, count)]
    inner = sorted(set(parents) - {-1})
    leaves = [node for node in range(count) if node not in inner]
    extra = draw(st.lists(st.sampled_from(inner), unique=True, max_size=3)) if inner else []
    return Tree(parents, classes=draw(st.permutations(leaves + extra)))


def way(tree: Tree, node: int) -> list[int]:
    """Return the nodes from one up to the root, by walking."""
    nodes = [node]
    while nodes[-1]:
        nodes.append(int(tree.parents[nodes[-1]]))
    return nodes


def test_golden_tree_has_the_specs_distances_in_both_modes() -> None:
    tree = Tree.from_nested(NESTED)
    assert tree.class_names == ("A", "B", "C", "D")
    assert tree.names == ("root", "E", "A", "B", "F", "C", "D")
    assert tree.num_classes == 4
    for mode in ("depth", "height"):
        distances = tree.distances(mode)
        assert distances.dtype == torch.float64
        assert distances.tolist() == GOLDEN


def test_arrays_of_the_golden_tree() -> None:
    tree = Tree.from_nested(NESTED)
    assert tree.parents.tolist() == [-1, 0, 1, 1, 0, 4, 4]
    assert tree.classes.tolist() == [2, 3, 5, 6]
    assert tree.depth.tolist() == [0, 1, 2, 2, 1, 2, 2]
    assert tree.height.tolist() == [2, 1, 0, 0, 1, 0, 0]
    assert {a.dtype for a in (tree.parents, tree.classes, tree.depth, tree.height)} == {np.dtype(np.int64)}
    assert tree.lca().tolist() == [[2, 1, 0, 0], [1, 3, 0, 0], [0, 0, 5, 4], [0, 0, 4, 6]]
    ancestors = tree.ancestors()
    assert ancestors.dtype == torch.bool
    assert ancestors.int().tolist() == [
        [1, 1, 1, 0, 0, 0, 0],
        [1, 1, 0, 1, 0, 0, 0],
        [1, 0, 0, 0, 1, 1, 0],
        [1, 0, 0, 0, 1, 0, 1],
    ]
    assert repr(tree) == "Tree(num_classes=4, nodes=7, depth=2)"


def test_depth_and_height_differ_where_leaves_lie_at_different_depths() -> None:
    tree = Tree.from_nested(UNEQUAL)
    # Deepest leaf 3; common ancestors R, X, Y of depths 0, 1, 2 and heights 3, 2, 1: equal here ...
    assert tree.distances("depth")[0].tolist() == [0.0, 3.0, 3.0, 3.0]
    assert tree.distances("height").tolist() == tree.distances("depth").tolist()
    # ... and not once a shallow branch stands beside the deep one: Z has depth 1 and height 1.
    tree = Tree.from_nested({"R": {"Z": ["a", "b"], "X": {"Y": ["c", "d"]}}})
    assert tree.distances("depth")[0].tolist() == [0.0, 2.0, 3.0, 3.0]
    assert tree.distances("height")[0].tolist() == [0.0, 1.0, 3.0, 3.0]
    assert tree.distances("depth")[2].tolist() == tree.distances("height")[2].tolist() == [3.0, 3.0, 0.0, 1.0]


@settings(max_examples=150, deadline=None)
@given(trees())
def test_lca_ancestors_and_distances_agree_with_walking(tree: Tree) -> None:
    lca, ancestors = tree.lca(), tree.ancestors()
    by_depth, by_height = tree.distances("depth"), tree.distances("height")
    for a, leaf_a in enumerate(tree.classes):
        up = way(tree, leaf_a)
        assert ancestors[a].nonzero().flatten().tolist() == sorted(up)
        for b, leaf_b in enumerate(tree.classes):
            lowest = next(node for node in way(tree, leaf_b) if node in up)
            assert lca[a, b] == lowest
            assert by_depth[a, b] == (0 if a == b else tree.depth.max() - len(way(tree, lowest)) + 1)
            below = [len(way(tree, leaf)) for leaf in tree.classes if lowest in way(tree, leaf)]
            assert by_height[a, b] == (0 if a == b else max(below) - len(way(tree, lowest)))


@settings(max_examples=100, deadline=None)
@given(trees(), st.sampled_from(["depth", "height"]))
def test_distances_are_ultrametric(tree: Tree, mode: str) -> None:
    distances = tree.distances(mode)
    check_distances(distances, tree.num_classes)
    through = torch.maximum(distances[:, :, None], distances[None, :, :]).amin(dim=1)  # over the class between
    assert bool((distances <= through).all())


@settings(max_examples=100, deadline=None)
@given(trees(), st.randoms(use_true_random=False))
def test_relabelling_classes_permutes_everything(tree: Tree, random: object) -> None:
    order = list(range(tree.num_classes))
    random.shuffle(order)  # type: ignore[attr-defined]
    again = Tree(tree.parents, tree.names, tree.classes[order])
    assert np.array_equal(again.lca(), tree.lca()[np.ix_(order, order)])
    assert torch.equal(again.distances(), tree.distances()[order][:, order])
    assert torch.equal(again.ancestors(), tree.ancestors()[order])


@settings(max_examples=100, deadline=None)
@given(trees(), st.randoms(use_true_random=False))
def test_numbering_is_preorder_and_does_not_depend_on_how_nodes_came(tree: Tree, random: object) -> None:
    for node in range(1, len(tree.names)):
        assert tree.parents[node] in way(tree, node - 1)
    shuffled = list(range(len(tree.names)))
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    place = np.argsort(shuffled)
    parents = [place[tree.parents[node]] if node else -1 for node in shuffled]
    again = Tree(parents, [tree.names[node] for node in shuffled], place[tree.classes])
    assert again.class_names == tree.class_names
    assert torch.equal(again.distances(), tree.distances())


@pytest.mark.parametrize("shape", ["caterpillar", "star"])
def test_extreme_shapes(shape: str) -> None:
    count = 300
    spine = list(range(-1, count - 2))
    parents = [*spine, *range(count - 1), count - 2] if shape == "caterpillar" else [-1] + [0] * count
    tree = Tree(parents)
    row, column = torch.meshgrid(torch.arange(count), torch.arange(count), indexing="ij")
    away = count - 1 - torch.minimum(row, column) if shape == "caterpillar" else torch.ones(count, count)
    expected = torch.where(row == column, 0, away).double()
    expected[-2:, -2:] = torch.tensor([[0.0, 1.0], [1.0, 0.0]])
    assert torch.equal(tree.distances("depth"), expected)
    assert torch.equal(tree.distances("height"), expected)


def test_drawing() -> None:
    assert str(Tree.from_nested({"R": {"X": ["a", {"Y": ["b", "c"]}], "d": None, "Z": {"W": "e"}}})).split("\n") == [
        "R",
        "├── X",
        "│   ├── a",
        "│   └── Y",
        "│       ├── b",
        "│       └── c",
        "├── d",
        "└── Z",
        "    └── W",
        "        └── e",
    ]
    assert str(Tree([-1])) == "0"


def test_class_that_is_an_inner_node_gets_a_leaf_under_its_node() -> None:
    edges = [("root", "Felis"), ("root", "Canis"), ("Felis", "F. catus"), ("Felis", "F. silvestris")]
    tree = Tree.from_edges(edges, ["Felis", "F. catus", "F. silvestris", "Canis"])
    assert tree.class_names == ("Felis", "F. catus", "F. silvestris", "Canis")
    assert len(tree.names) == 6
    assert [tree.names[node] for node in way(tree, tree.classes[0])] == ["Felis", "Felis", "root"]
    assert tree.distances().tolist() == [[0, 1, 1, 2], [1, 0, 1, 2], [1, 1, 0, 2], [2, 2, 2, 0]]
    assert graph_distances(edges, tree.class_names).tolist() == tree.distances().tolist()
    # The root itself as a class: at distance H from all.
    assert Tree.from_edges([("r", "a"), ("r", "b")], ["a", "r", "b"]).distances()[1].tolist() == [1, 0, 1]


def test_tree_of_one_class() -> None:
    for tree in (Tree([-1]), Tree.from_nested({"only": None}), Tree.from_paths(["only"])):
        assert tree.distances().tolist() == [[0.0]]
        assert tree.lca().tolist() == [[tree.classes[0]]]


@pytest.mark.parametrize(
    ("parents", "names", "classes", "message"),
    [
        ([-1, -1, 0], ["r", "s", "a"], None, "one root, got 2: 'r', 's'"),
        ([1, 2, 0], None, None, "no cycle, got '0' -> '2' -> '1' -> '0'"),
        ([-1, 0, 3, 2], ["r", "a", "x", "y"], None, "no cycle, got 'x' -> 'y' -> 'x'"),
        ([-1, 1], None, None, "got 1 for node 1 ('1')"),
        ([-1, 7], None, None, "0..1, or -1 for the root, got 7 for node 1"),
        ([-1, -2], None, None, "got -2 for node 1"),
        ([], None, None, "parents must be a sequence of integers, one or more, got []"),
        ([-1.0, 0.0], None, None, "sequence of integers"),
        ([[-1, 0]], None, None, "sequence of integers"),
        ([-1, 0, 0], ["r", "a", "b"], [1], "every leaf of the hierarchy, got none for 'b' (1 in all)"),
        ([-1, 0, 0], ["r", "a", "b"], [1, 2, 1], "must be different, got 'a' more than once"),
        ([-1, 0, 0], None, [1, 3], "numbers of nodes, 0..2, got 3"),
        ([-1, 0, 0], None, ["1", "2"], "classes must be a sequence of integers"),
    ],
)
def test_wrong_parents(parents: list[int], names: list[str], classes: list[int], message: str) -> None:
    with pytest.raises(ArgumentError, match=re.escape(message)):
        Tree.from_parents(parents, names, classes)


def test_names_must_match_parents() -> None:
    with pytest.raises(ShapeError, match="each of the 3 nodes, got 2"):
        Tree([-1, 0, 0], ["r", "a"])


def test_long_lists_of_culprits_are_cut() -> None:
    with pytest.raises(ArgumentError, match=re.escape("got 9: '0', '1', '2', '3', '4', …; put")):
        Tree([-1] * 9)


def test_edges_in_any_order_with_repetition() -> None:
    edges = [("E", "A"), ("root", "F"), ("E", "B"), ("root", "E"), ("F", "C"), ("E", "A"), ("F", "D")]
    tree = Tree.from_edges(edges)
    assert tree.class_names == ("A", "B", "C", "D")
    assert tree.distances().tolist() == GOLDEN
    assert Tree.from_edges(iter(edges), ["D", "A", "C", "B"]).distances()[0].tolist() == [0, 2, 1, 2]


@pytest.mark.parametrize(
    ("edges", "classes", "message"),
    [
        ([], None, "must have nodes, got none"),
        ([("r", "a"), ("s", "b")], None, "one root, got 2: 'r', 's'"),
        ([("r", "a"), ("a", "b"), ("b", "c"), ("c", "a"), ("c", "d")], None, "got 'a' -> 'b' -> 'c' -> 'a'; leave"),
        ([("a", "b"), ("b", "a")], None, "no cycle"),
        ([("r", "a"), ("a", "a")], None, "got 'a' as its own parent"),
        (["ab"], None, "pairs (parent, child) of names, got 'ab'"),
        ([("r", "a", "b")], None, "got ('r', 'a', 'b')"),
        ([(None, "a")], None, "got (None, 'a')"),
        ([("r", "dog"), ("r", "b")], ["dg", "b"], "got 'dg'; did you mean 'dog'?"),
        ([("r", "a"), ("r", "b")], ["zzz", "b"], "got 'zzz'; nodes are 'r', 'a', 'b'"),
        ([("r", "a"), ("r", "b")], ["a", "b", "a"], "must be different, got 'a' more than once"),
        ([("r", "a"), ("r", "b")], ["a"], "got none for 'b' (1 in all); add them to classes, or take"),
        ([("r", "a"), ("r", "b")], "ab", "sequence of names, got the string 'ab'"),
    ],
)
def test_wrong_edges(edges: list[tuple[str, str]], classes: list[str], message: str) -> None:
    for build in (Tree.from_edges, graph_distances):
        with pytest.raises(ArgumentError, match=re.escape(message)):
            build(edges, classes)


def test_prune_leaves_out_what_has_no_class_below() -> None:
    edges = [("r", "X"), ("X", "a"), ("X", "b"), ("r", "c"), ("other", "d"), ("r", "Y"), ("Y", "Z"), ("Y", "Q")]
    tree = Tree.from_edges([*edges, ("other", "Q")], ["c", "a", "b"], prune=True)
    assert tree.names == ("r", "X", "a", "b", "c")
    assert tree.class_names == ("c", "a", "b")
    assert graph_distances(edges, ["c", "a", "b"], prune=True).tolist() == tree.distances().tolist()
    assert Tree.from_nested(UNEQUAL, ["b", "a"], prune=True).names == ("R", "a", "X", "b")
    with pytest.raises(ArgumentError, match="one root, got 2: 'r', 'other'"):
        Tree.from_edges(edges, prune=True)
    with pytest.raises(ArgumentError, match="no cycle"):
        Tree.from_edges([("a", "b"), ("b", "a")], prune=True)


def test_several_parents_are_refused_or_chosen_by_rule() -> None:
    with pytest.raises(ArgumentError, match=re.escape("several parents of 'dog': 'pet', 'cattle'; choose")):
        Tree.from_edges(DAG)
    chosen = {
        rule: Tree.from_edges(DAG, ["cat", "dog", "cow"], several_parents=rule)
        for rule in ("first", "shallowest", "deepest")
    }
    assert chosen["first"].distances()[1].tolist() == [2, 0, 3]
    assert chosen["shallowest"].distances()[1].tolist() == [2, 0, 3]
    assert chosen["deepest"].distances()[1].tolist() == [3, 0, 1]
    swapped = [DAG[5], *DAG[:5], DAG[6]]
    assert Tree.from_edges(swapped, ["cat", "dog", "cow"], several_parents="first").distances()[1].tolist() == [3, 0, 1]
    with pytest.raises(ArgumentError, match="several_parents must be one of 'raise', 'first'"):
        Tree.from_edges(DAG, several_parents="last")


def test_node_that_loses_its_children_is_left_out_unless_it_is_a_class() -> None:
    edges = [("r", "X"), ("r", "W"), ("W", "V"), ("X", "a"), ("V", "a"), ("V", "b")]
    tree = Tree.from_edges(edges, several_parents="deepest")
    assert "X" not in tree.names
    assert tree.class_names == ("a", "b")
    tree = Tree.from_edges(edges, ["a", "b", "X"], several_parents="deepest")
    assert tree.distances().tolist() == [[0, 1, 3], [1, 0, 3], [3, 3, 0]]


def test_graph_distances_by_hand() -> None:
    classes = ["cat", "dog", "cow"]
    # Depths: life 0, pet and farm 1, cattle 2, cat 2, dog and cow 3.
    assert graph_distances(DAG, classes).tolist() == [[0, 2, 3], [2, 0, 1], [3, 1, 0]]
    assert graph_distances(DAG, classes, rule="shortest-path").tolist() == [[0, 2, 4], [2, 0, 2], [4, 2, 0]]
    # The short way may lead through a class: cat - pet - dog - cattle - cow, not by the root.
    long = [("life", "kept"), ("kept", "pet"), *DAG[1:]]
    assert graph_distances(long, classes, rule="shortest-path")[0].tolist() == [0, 2, 4]
    with pytest.raises(ArgumentError, match="rule must be one of 'deepest', 'shortest-path', got 'first'"):
        graph_distances(DAG, rule="first")


@settings(max_examples=60, deadline=None)
@given(trees())
def test_graph_distances_of_a_tree(tree: Tree) -> None:
    if len(tree.names) == 1:
        return
    edges = [(str(tree.parents[node]), str(node)) for node in range(1, len(tree.names))]
    classes = [str(leaf) for leaf in tree.classes]
    assert torch.equal(graph_distances(edges, classes), tree.distances("depth"))
    depth = torch.from_numpy(tree.depth)
    leaves = depth[tree.classes]
    steps = leaves[:, None] + leaves[None, :] - 2 * depth[tree.lca().astype(np.int64)]
    assert torch.equal(graph_distances(edges, classes, rule="shortest-path"), steps.double())


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
        ({"E": ["A", False]}, "got False of type bool; quote"),
        ({"E": {1.5: None}}, "got 1.5 of type float"),
        ({"E": ["A", None]}, "got None of type NoneType"),
        ({"E": ["A", ""]}, "got '' of type str"),
    ],
)
def test_wrong_nested(nested: object, message: str) -> None:
    with pytest.raises(ArgumentError, match=re.escape(message)):
        Tree.from_nested(nested)  # type: ignore[arg-type]


def test_networkx() -> None:
    networkx = pytest.importorskip("networkx")
    graph = networkx.DiGraph([("root", "E"), ("root", "F"), ("E", "A"), ("E", "B"), ("F", "C"), ("F", "D")])
    assert Tree.from_networkx(graph).distances().tolist() == GOLDEN
    assert Tree.from_networkx(networkx.MultiDiGraph(graph), ["A", "B", "C", "D"]).distances().tolist() == GOLDEN
    assert Tree.from_networkx(networkx.DiGraph(DAG), several_parents="first").num_classes == 3
    with pytest.raises(ArgumentError, match="must be directed"):
        Tree.from_networkx(graph.to_undirected())
    with pytest.raises(ArgumentError, match="must be directed"):
        Tree.from_networkx(DAG)
    with pytest.raises(ArgumentError, match="two written '1'"):
        Tree.from_networkx(networkx.DiGraph([("r", 1), ("r", "1")]))
    graph.add_node("alone")
    with pytest.raises(ArgumentError, match="one root, got 2: 'root', 'alone'"):
        Tree.from_networkx(graph)
    assert Tree.from_networkx(graph, ["A", "B", "C", "D"], prune=True).num_classes == 4


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


def test_unknown_mode() -> None:
    with pytest.raises(ArgumentError, match="mode must be one of 'depth', 'height', got 'width'"):
        Tree.from_nested(NESTED).distances("width")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ((1, 3, 0.0), "positive between different classes, got 0.0 and back 2.0 for classes 1 and 3"),
        ((2, 2, 0.5), "exactly zero on the diagonal, got 0.5 for classes 2 and 2"),
        ((0, 2, 1.5), "the same both ways, got 1.5 and back 2.0 for classes 0 and 2"),
        ((3, 1, -1.0), "not be negative, got -1.0 and back 2.0 for classes 3 and 1"),
        ((3, 1, float("nan")), "be finite, got nan and back 2.0 for classes 3 and 1"),
        ((0, 1, float("inf")), "be finite, got inf and back 1.0 for classes 0 and 1"),
    ],
)
def test_wrong_distances_name_the_pair(change: tuple[int, int, float], message: str) -> None:
    distances = torch.tensor(GOLDEN)
    check_distances(distances, 4)
    distances[change[0], change[1]] = change[2]
    with pytest.raises(ArgumentError, match=re.escape(message)):
        check_distances(distances)


def test_wrong_form_of_distances() -> None:
    with pytest.raises(DtypeError, match=re.escape("got torch.int64")):
        check_distances(torch.zeros(2, 2, dtype=torch.long))
    with pytest.raises(DtypeError, match="got ndarray"):
        check_distances(np.zeros((2, 2)))  # type: ignore[arg-type]
    for shape in ((3,), (2, 3), (0, 0)):
        with pytest.raises(ShapeError, match=re.escape(f"(K, K), got {shape}")):
            check_distances(torch.zeros(shape))
    with pytest.raises(ShapeError, match=re.escape("(5, 5), got 4")):
        check_distances(torch.tensor(GOLDEN), 5)
