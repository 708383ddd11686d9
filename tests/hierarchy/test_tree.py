"""Trees of classes: what they are, what they refuse, and the distances in them."""

from __future__ import annotations

import re

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tightframe.errors import ArgumentError, ShapeError
from tightframe.hierarchy import Tree, check_distances, graph_distances

from .material import GOLDEN, NESTED, UNEQUAL, trees, way


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


@settings(max_examples=40, deadline=None)
@given(trees())
def test_lca_and_distances_agree_with_walking(tree: Tree) -> None:
    lca = tree.lca()
    by_depth, by_height = tree.distances("depth"), tree.distances("height")
    for a, leaf_a in enumerate(tree.classes):
        up = way(tree, leaf_a)
        for b, leaf_b in enumerate(tree.classes):
            lowest = next(node for node in way(tree, leaf_b) if node in up)
            assert lca[a, b] == lowest
            assert by_depth[a, b] == (0 if a == b else tree.depth.max() - len(way(tree, lowest)) + 1)
            below = [len(way(tree, leaf)) for leaf in tree.classes if lowest in way(tree, leaf)]
            assert by_height[a, b] == (0 if a == b else max(below) - len(way(tree, lowest)))


@settings(max_examples=30, deadline=None)
@given(trees(), st.sampled_from(["depth", "height"]))
def test_distances_are_ultrametric(tree: Tree, mode: str) -> None:
    distances = tree.distances(mode)
    check_distances(distances)
    through = torch.maximum(distances[:, :, None], distances[None, :, :]).amin(dim=1)  # over the class between
    assert bool((distances <= through).all())


@settings(max_examples=30, deadline=None)
@given(trees(), st.randoms(use_true_random=False))
def test_relabelling_classes_permutes_everything(tree: Tree, random: object) -> None:
    order = list(range(tree.num_classes))
    random.shuffle(order)  # type: ignore[attr-defined]
    again = Tree(tree.parents, tree.names, tree.classes[order])
    assert np.array_equal(again.lca(), tree.lca()[np.ix_(order, order)])
    assert torch.equal(again.distances(), tree.distances()[order][:, order])


@settings(max_examples=30, deadline=None)
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
    html = Tree([-1] + [0] * 50, ["<r>", *map(str, range(50))])._repr_html_()
    assert "Tree(num_classes=50" in html
    assert "&lt;r&gt;\n├── 0\n" in html
    assert html.endswith("├── 38\n…</pre>")


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


def test_unknown_mode() -> None:
    with pytest.raises(ArgumentError, match="mode must be one of 'depth', 'height', got 'width'"):
        Tree.from_nested(NESTED).distances("width")
