"""Graphs of classes: edges in any order, nodes of several parents, and the distances in them."""

from __future__ import annotations

import re

import pytest
import torch
from hypothesis import given, settings

from tightframe.errors import ArgumentError
from tightframe.hierarchy import Tree, graph_distances

from .material import DAG, GOLDEN, UNEQUAL, trees


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
        (
            [("r", "a"), ("s", "b")],
            None,
            "one root, got 2: 'r', 's'; put them under one more node, leave some out, or swap",
        ),
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


@settings(max_examples=30, deadline=None)
@given(trees())
def test_graph_distances_of_a_tree(tree: Tree) -> None:
    if len(tree.names) == 1:
        return
    edges = [(str(tree.parents[node]), str(node)) for node in range(1, len(tree.names))]
    classes = [str(leaf) for leaf in tree.classes]
    assert torch.equal(graph_distances(edges, classes), tree.distances("depth"))


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
