"""Hierarchies that the tests share: the golden one, one of leaves at different depths, a graph, and random trees."""

from __future__ import annotations

from hypothesis import strategies as st

from tightframe.hierarchy import Tree

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
