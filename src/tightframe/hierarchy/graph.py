"""Graph: named nodes with any number of parents, and the distances of classes in a hierarchy that is not a tree."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from graphlib import CycleError, TopologicalSorter
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tightframe.errors import ArgumentError, check_choice, shown

PARENT_RULES = ("raise", "first", "shallowest", "deepest")
_SHOWN = 5


@dataclass(frozen=True)
class Graph:
    """Nodes ``0..N-1`` with their names and their parents.

    Args:
        names: N names, unique or not.
        above: Parents of each node.
    """

    names: list[str]
    above: list[list[int]]

    @classmethod
    def from_edges(cls, edges: Iterable[Any], nodes: Iterable[str] = ()) -> Graph:
        """Return the graph of ``(parent, child)`` pairs, nodes in the order in which they first appear."""
        numbers: dict[str, int] = {}
        above: list[dict[int, None]] = []  # dictionaries, so that an edge given again costs nothing

        def number(name: str) -> int:
            if numbers.setdefault(name, len(above)) == len(above):
                above.append({})
            return numbers[name]

        for edge in edges:
            if isinstance(edge, str) or not isinstance(edge, Sequence) or len(edge) != 2 or None in edge:
                raise ArgumentError(f"edges must be pairs (parent, child) of names, got {edge!r}")
            parent, child = (number(str(name)) for name in edge)
            if parent == child:
                raise ArgumentError(
                    f"edges must join two nodes, got {shown(edge[0])} as its own parent; leave that edge out"
                )
            above[child][parent] = None
        for name in nodes:
            number(name)
        return cls(list(numbers), [list(parents) for parents in above])

    def order(self) -> list[int]:
        """Return the nodes, each after all its parents; raise unless there is one root and no cycle."""
        if not self.names:
            raise ArgumentError("the hierarchy must have nodes, got none")
        roots = [node for node, parents in enumerate(self.above) if not parents]
        if len(roots) > 1:
            raise ArgumentError(
                f"the hierarchy must have one root, got {len(roots)}: {self._shown(roots)}; put them under one more "
                "node, leave some out, or swap the columns if the file has the child first"
            )
        try:
            return list(TopologicalSorter(dict(enumerate(self.above))).static_order())
        except CycleError as error:
            nodes = error.args[1]
            cycle = " -> ".join(shown(self.names[node]) for node in nodes[:_SHOWN])
            cycle += f" and so on, {len(nodes) - 1} nodes" if len(nodes) > _SHOWN else ""
            raise ArgumentError(
                f"the hierarchy must have no cycle, got {cycle}; leave one of these edges out"
            ) from None

    def below(self) -> list[list[int]]:
        """Return the children of each node in the order of their numbers."""
        below: list[list[int]] = [[] for _ in self.names]
        for node, parents in enumerate(self.above):
            for parent in parents:
                below[parent].append(node)
        return below

    def leaves(self) -> list[int]:
        """Return the nodes without children."""
        inner = {parent for parents in self.above for parent in parents}
        return [node for node in range(len(self.names)) if node not in inner]

    def depth(self) -> list[int]:
        """Return the length of the longest way from the root to each node, in edges."""
        depth = [0] * len(self.names)
        for node in self.order():
            depth[node] = max((depth[parent] + 1 for parent in self.above[node]), default=0)
        return depth

    def find(self, classes: Sequence[str]) -> list[int]:
        """Return the node of each class by name: the leaf of that name, otherwise the one inner node."""
        if isinstance(classes, str):
            raise ArgumentError(f"classes must be a sequence of names, got the string {classes!r}")
        leaves = set(self.leaves())
        nodes: dict[str, list[int]] = {}
        for node, name in enumerate(self.names):
            nodes.setdefault(name, []).append(node)
        found = []
        for name in map(str, classes):
            same = nodes.get(name, [])
            same = [node for node in same if node in leaves] or same
            if not same:
                close = get_close_matches(name, self.names, n=1)
                hint = f"did you mean {close[0]!r}?" if close else f"nodes are {self._shown(range(len(self.names)))}"
                raise ArgumentError(f"classes must name nodes of the hierarchy, got {name!r}; {hint}")
            if len(same) > 1:
                raise ArgumentError(f"classes must name one node each, got {name!r} for {len(same)}; rename them")
            found += same
        return found

    def check_classes(self, classes: Sequence[int]) -> None:
        """Raise unless the classes are different nodes, and every leaf is one."""
        twice = [node for node, count in Counter(classes).items() if count > 1]
        if twice:
            raise ArgumentError(f"classes must be different, got {self._shown(twice)} more than once")
        idle = sorted(set(self.leaves()) - set(classes))
        if idle:
            raise ArgumentError(
                f"classes must hold every leaf of the hierarchy, got none for {self._shown(idle)} "
                f"({len(idle)} in all); add them to classes, or take them out of the hierarchy (prune=True)"
            )

    def restricted(self, wanted: Sequence[int]) -> tuple[Graph, list[int]]:
        """Return the graph of some nodes and all above them, and the new numbers of these nodes."""
        kept, pending = set(wanted), list(wanted)
        while pending:
            fresh = [parent for parent in self.above[pending.pop()] if parent not in kept]
            kept.update(fresh)
            pending += fresh
        number = {node: i for i, node in enumerate(sorted(kept))}
        above = [[number[parent] for parent in self.above[node]] for node in number]
        return Graph([self.names[node] for node in number], above), [number[node] for node in wanted]

    def one_parent(self, rule: str) -> Graph:
        """Return a tree of the same nodes that keeps one parent of several, by a rule of ``PARENT_RULES``."""
        check_choice("several_parents", rule, PARENT_RULES)
        if rule == "raise":
            for node, parents in enumerate(self.above):
                if len(parents) > 1:
                    raise ArgumentError(
                        f"the hierarchy must be a tree, got several parents of {shown(self.names[node])}: "
                        f"{self._shown(parents)}; choose one by several_parents='first', 'shallowest' or 'deepest', "
                        "or take the distances in the whole graph from graph_distances"
                    )
        depth = self.depth()
        sign = {"deepest": -1, "shallowest": 1}.get(rule, 0)
        # Python's min returns the first of equals, as the rule promises.
        return Graph(self.names, [[min(ps, key=lambda p: sign * depth[p])] if ps else [] for ps in self.above])

    def with_own_leaves(self, classes: Sequence[int]) -> tuple[Graph, list[int]]:
        """Return a graph where each class that has nodes below it gets a leaf under its node, and the classes there."""
        leaves = set(self.leaves())
        names, above, own = list(self.names), list(self.above), list(classes)
        for label, node in enumerate(classes):
            if node not in leaves:
                own[label] = len(names)
                names.append(names[node])
                above.append([node])
        return Graph(names, above), own

    def _shown(self, nodes: Iterable[int]) -> str:
        nodes = list(nodes)
        return ", ".join(shown(self.names[node]) for node in nodes[:_SHOWN]) + (", …" if len(nodes) > _SHOWN else "")


def graph_distances(
    edges: Iterable[tuple[str, str]], classes: Sequence[str] | None = None, *, prune: bool = False
) -> Tensor:
    """Return the distances ``(K, K)`` of classes in a hierarchy whose nodes may have several parents.

    D(a, b) = H - max depth(v) over the common ancestors v of a and b. The depth is the longest way from the root, and H
    the depth of the deepest leaf. On a tree this is ``Tree.distances("depth")``. It is not ultrametric in general.

    Args:
        edges: Pairs ``(parent, child)`` of unique names, with one root and no cycle.
        classes: K names in label order; None is the leaves in the order in which they first appear. A class that has
            nodes below it gets a leaf of its own under its node, as in :class:`Tree`.
        prune: Whether to leave out nodes that have no class below them, instead of refusing leaves that are no class.

    Raises:
        ArgumentError: if there is not one root, or a cycle, a leaf that is not a class, or a class twice.

    Example:
        >>> edges = [("pet", "cat"), ("life", "pet"), ("life", "cattle"), ("pet", "dog"), ("cattle", "cow")]
        >>> graph_distances([*edges, ("cattle", "dog")], ["cat", "dog", "cow"]).tolist()
        [[0.0, 1.0, 2.0], [1.0, 0.0, 1.0], [2.0, 1.0, 0.0]]
    """
    graph, chosen = class_graph(Graph.from_edges(edges), classes, prune)
    graph, chosen = graph.with_own_leaves(chosen)
    depth = np.array(graph.depth())
    under = np.zeros((len(depth), len(chosen)), dtype=bool)
    under[chosen, np.arange(len(chosen))] = True
    for node in reversed(graph.order()):
        for parent in graph.above[node]:
            under[parent] |= under[node]
    distances = np.empty((len(chosen), len(chosen)))
    for node in np.argsort(depth, kind="stable"):  # the deepest common ancestor of a pair writes last
        here = np.flatnonzero(under[node])
        distances[np.ix_(here, here)] = depth.max() - depth[node]
    np.fill_diagonal(distances, 0.0)
    return torch.from_numpy(distances)


def class_graph(graph: Graph, classes: Sequence[str] | None, prune: bool) -> tuple[Graph, list[int]]:
    """Return the graph, with ``prune`` only the part above the classes, and the nodes of the classes."""
    chosen = graph.leaves() if classes is None else graph.find(classes)
    if prune and classes is not None:
        graph, chosen = graph.restricted(chosen)
    graph.order()
    graph.check_classes(chosen)
    return graph, chosen
