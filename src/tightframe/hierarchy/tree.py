"""Tree: a hierarchy whose leaves are the classes, and the distances of classes in it."""

from __future__ import annotations

import html
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tightframe.errors import ArgumentError, DataFileError, ShapeError, check_choice
from tightframe.hierarchy import readers
from tightframe.hierarchy.graph import Graph, class_graph

MODES = ("depth", "height")

_DRAWN = 40  # lines of a tree that a notebook shows

Ints = NDArray[np.int64]


@final
class Tree:
    """A rooted tree whose leaves are the K classes.

    Node 0 is the root. The nodes are numbered depth first: the descendants of a node are the numbers right after it. A
    class that has nodes below it gets a leaf of its own under its node, with the same name: it is as far from its
    descendants as they are from each other there. A node with one child keeps its place.

    Args:
        parents: Number of each node's parent ``(N,)``, -1 for the root, in any order.
        names: N names, unique or not; None is the numbers.
        classes: Numbers of the nodes of the K classes in label order; None is the leaves, in the order of ``parents``.

    Attributes:
        parents: ``(N,)`` int64, in the tree's own numbering.
        names: N names in that order.
        classes: ``(K,)`` int64 leaf of each class.
        depth: ``(N,)`` int64 edges from the root.
        height: ``(N,)`` int64 edges to the farthest leaf below.

    Raises:
        ArgumentError: if there is not one root, or a cycle, a leaf that is not a class, or a class twice.
        ShapeError: if the numbers of parents and names differ.

    Example:
        >>> tree = Tree.from_nested({"E": ["A", "B"], "F": ["C", "D"]})
        >>> tree.class_names
        ('A', 'B', 'C', 'D')
        >>> tree.distances()[0]
        tensor([0., 1., 2., 2.], dtype=torch.float64)
        >>> print(tree)
        root
        ├── E
        │   ├── A
        │   └── B
        └── F
            ├── C
            └── D
    """

    def __init__(
        self,
        parents: Sequence[int] | Ints,
        names: Sequence[str] | None = None,
        classes: Sequence[int] | Ints | None = None,
    ) -> None:
        above = _numbers("parents", parents)
        labels = [str(i) for i in range(len(above))] if names is None else [str(name) for name in names]
        if len(labels) != len(above):
            raise ShapeError(f"names must have one name for each of the {len(above)} nodes, got {len(labels)}")
        for node, parent in enumerate(above):
            if parent == node or not -1 <= parent < len(above):
                raise ArgumentError(
                    f"parents must be numbers of other nodes, 0..{len(above) - 1}, or -1 for the root, "
                    f"got {parent} for node {node} ({labels[node]!r})"
                )
        graph = Graph(labels, [[parent] if parent >= 0 else [] for parent in above])
        graph.order()
        chosen = graph.leaves() if classes is None else _numbers("classes", classes)
        wrong = [node for node in chosen if not 0 <= node < len(above)]
        if wrong:
            raise ArgumentError(f"classes must be numbers of nodes, 0..{len(above) - 1}, got {wrong[0]}")
        graph.check_classes(chosen)
        self._number(*graph.with_own_leaves(chosen))

    def _number(self, graph: Graph, classes: list[int]) -> None:
        below, order = graph.below(), []
        pending = [node for node, above in enumerate(graph.above) if not above]
        while pending:
            order.append(pending.pop())
            pending += reversed(below[order[-1]])
        place = np.empty(len(order), dtype=np.int64)
        place[order] = np.arange(len(order))
        parents = [int(place[graph.above[node][0]]) if graph.above[node] else -1 for node in order]
        depth, height = [0] * len(order), [0] * len(order)
        for node in range(1, len(order)):
            depth[node] = depth[parents[node]] + 1
        for node in range(len(order) - 1, 0, -1):
            height[parents[node]] = max(height[parents[node]], height[node] + 1)
        self.parents: Ints = np.array(parents, dtype=np.int64)
        self.names = tuple(graph.names[node] for node in order)
        self.classes: Ints = place[classes]
        self.depth: Ints = np.array(depth, dtype=np.int64)
        self.height: Ints = np.array(height, dtype=np.int64)

    @classmethod
    def _of(cls, graph: Graph, classes: list[int]) -> Tree:
        return cls([above[0] if above else -1 for above in graph.above], graph.names, classes)

    @classmethod
    def from_parents(
        cls,
        parents: Sequence[int] | Ints,
        names: Sequence[str] | None = None,
        classes: Sequence[int] | Ints | None = None,
    ) -> Tree:
        """Return the tree of an array of parents; the arguments are the same as those of the class."""
        return cls(parents, names, classes)

    @classmethod
    def from_edges(
        cls,
        edges: Iterable[tuple[str, str]],
        classes: Sequence[str] | None = None,
        *,
        several_parents: str = "raise",
        prune: bool = False,
    ) -> Tree:
        """Return the tree of ``(parent, child)`` pairs of unique names.

        Args:
            edges: Pairs in any order; a pair may come again.
            classes: K names in label order; None is the leaves in the order in which they first appear.
            several_parents: Rule for a node of several parents, which no tree has: refuse it (``"raise"``), or keep one
                parent: the ``"first"``, the ``"shallowest"`` or the ``"deepest"``, by the longest way from the root,
                and the first of equals. A node that loses all its children in this way is left out, unless it is a
                class. For distances in the whole graph see :func:`graph_distances`.
            prune: Whether to leave out nodes that have no class below them, instead of refusing leaves that are not
                classes. It is done before all else.

        Raises:
            ArgumentError: if an edge is not a pair of names, a node has several parents, a class is not a node, or
                as in the class.

        Example:
            >>> Tree.from_edges([("animal", "cat"), ("animal", "dog")], classes=["dog", "cat"]).class_names
            ('dog', 'cat')
        """
        graph, chosen = class_graph(Graph.from_edges(edges), classes, prune)
        return cls._of(*graph.one_parent(several_parents).restricted(chosen))

    @classmethod
    def from_paths(cls, paths: Sequence[Sequence[str] | str], *, separator: str = ".") -> Tree:
        """Return the tree of one path a class, from below an added root down to the class, in label order.

        A node is a whole path and has its last name, so two nodes may have the same name.

        Args:
            paths: K sequences of names, or strings such as ``"json.decoder"``. A path may begin with another one.
            separator: String between the names of a path that is a string.

        Raises:
            ArgumentError: if there is no path, a name is empty, or a path comes twice.

        Example:
            >>> Tree.from_paths(["json.decoder", "json.encoder", "re"]).distances()[0].tolist()
            [0.0, 1.0, 2.0]
        """
        graph, ends = readers.paths_graph(paths, separator)
        if not ends:
            raise ArgumentError("paths must hold one path a class, got none")
        return cls._of(graph, ends)

    @classmethod
    def from_levels(
        cls, levels: Sequence[Sequence[Any]] | Tensor | NDArray[Any], class_names: Sequence[str] | None = None
    ) -> Tree:
        """Return the tree of labels at each level; ``levels[k]`` has those of class k from coarse to fine.

        Args:
            levels: K rows of ancestors, without the class itself, of any lengths. Equal labels under different
                ancestors are different nodes.
            class_names: K names; None is the numbers.

        Raises:
            ShapeError: if an entry of ``levels`` is not a row, or the numbers of rows and names differ.
            ArgumentError: if a label is empty or None, or as in :meth:`from_paths`.

        Example:
            >>> Tree.from_levels([[0], [0], [1]]).distances()[0].tolist()
            [0.0, 1.0, 2.0]
        """
        rows = levels.tolist() if isinstance(levels, Tensor | np.ndarray) else list(levels)
        if any(isinstance(row, str) or not isinstance(row, Sequence) for row in rows):
            raise ShapeError(
                f"levels must be K rows of ancestors, got {rows[0]!r} as the first; wrap one label in a list"
            )
        names = [str(k) for k in range(len(rows))] if class_names is None else list(class_names)
        if len(names) != len(rows):
            raise ShapeError(f"class_names must have one name for each of the {len(rows)} rows, got {len(names)}")
        return cls.from_paths([(*row, name) for row, name in zip(rows, names, strict=True)])

    @classmethod
    def from_nested(
        cls, nested: Mapping[str, Any] | Sequence[Any], classes: Sequence[str] | None = None, *, prune: bool = False
    ) -> Tree:
        """Return the tree of nested mappings; leaves are list items, strings, or keys with nothing below.

        The key of a mapping of one key is the root; otherwise a root is added. A list may hold mappings, too. A name
        in two places is two nodes.

        Args:
            nested: Mappings and lists of names.
            classes: K names in label order; None is the leaves in the order in which they stand. If a leaf and an
                inner node have the name, the leaf is meant.
            prune: Whether to leave out nodes that have no class below them, as in :meth:`from_edges`.

        Raises:
            ArgumentError: if ``nested`` is empty, holds itself or something other than these, a name comes twice
                under one node, a class is not a node or the name of several, or as in the class.

        Example:
            >>> Tree.from_nested({"life": {"animal": ["cat", "dog"], "moss": None}}).class_names
            ('cat', 'dog', 'moss')
        """
        return cls._of(*class_graph(readers.nested_graph(nested), classes, prune))

    @classmethod
    def from_networkx(
        cls, graph: Any, classes: Sequence[str] | None = None, *, several_parents: str = "raise", prune: bool = False
    ) -> Tree:
        """Return the tree of a ``networkx.DiGraph`` with edges to children; the rest is as in :meth:`from_edges`.

        Raises:
            ArgumentError: if it is undirected, two nodes have the same text, or as in :meth:`from_edges`.
        """
        if not getattr(graph, "is_directed", bool)():
            raise ArgumentError(f"graph must be directed, with edges from parent to child, got {graph!r}")
        names = [str(node) for node in graph.nodes]
        if len(set(names)) < len(names):
            twice = next(name for name in names if names.count(name) > 1)
            raise ArgumentError(f"graph must have nodes that are written differently, got two written {twice!r}")
        whole = Graph.from_edges([(str(parent), str(child)) for parent, child in graph.edges()], names)
        kept, chosen = class_graph(whole, classes, prune)
        return cls._of(*kept.one_parent(several_parents).restricted(chosen))

    @classmethod
    def from_wordnet(cls, synsets: Sequence[str], *, several_parents: str = "deepest") -> Tree:
        """Return the tree of hypernyms above WordNet synsets, in label order.

        Args:
            synsets: K identifiers such as ``"n02084071"``, or names such as ``"dog.n.01"``.
            several_parents: Rule for which hypernym to keep, see :meth:`from_edges`.

        Raises:
            MissingExtraError: if nltk is not installed.
            DataFileError: if nltk's WordNet corpus is not installed.
            ArgumentError: if a synset is unknown or comes twice, or they have no common root.
        """
        edges, names = readers.wordnet_edges(synsets)
        return cls.from_edges(edges, names, several_parents=several_parents)

    @classmethod
    def read(
        cls,
        path: str | os.PathLike[str],
        classes: Sequence[str] | None = None,
        *,
        several_parents: str = "raise",
        prune: bool = False,
    ) -> Tree:
        """Read a tree from a file that a person may have written.

        ``.tsv`` and ``.txt`` hold one ``parent<TAB>child`` a line (blanks will do if no name has one); a line that
        begins with ``#`` is a comment. ``.json``, ``.yaml`` and ``.yml`` hold nested mappings as in
        :meth:`from_nested`. Names stay as they are written: ``010``, ``1e5`` and ``no`` are words.

        Args:
            path: Path of the file.
            classes: K names in label order; None is the leaves in the order in which they first appear.
            several_parents: Rule for edges, see :meth:`from_edges`.
            prune: Whether to leave out nodes that have no class below them, as in :meth:`from_edges`.

        Raises:
            DataFileError: if the file is missing, of another format, or not a tree; it names the file, and the line if
                one line is wrong.
            MissingExtraError: if a YAML file is read without PyYAML.
        """
        path = Path(path)
        try:
            if path.suffix in readers.EDGE_SUFFIXES:
                return cls.from_edges(readers.read_edges(path), classes, several_parents=several_parents, prune=prune)
            if path.suffix in readers.NESTED_SUFFIXES:
                return cls.from_nested(readers.read_nested(path), classes, prune=prune)
        except ArgumentError as error:
            raise DataFileError(f"{path}: {error}") from error
        raise DataFileError(f"{path} must end in .tsv, .txt, .json, .yaml or .yml")

    @property
    def num_classes(self) -> int:
        """K."""
        return len(self.classes)

    @property
    def class_names(self) -> tuple[str, ...]:
        """Return the K names in label order."""
        return tuple(self.names[node] for node in self.classes)

    def lca(self) -> NDArray[np.int32]:
        """Return the lowest common ancestor of every two classes ``(K, K)``, the leaf itself on the diagonal.

        Example:
            >>> Tree.from_nested({"E": ["A", "B"], "F": ["C", "D"]}).lca()[0].tolist()
            [2, 1, 0, 0]
        """
        leaves = np.sort(self.classes).astype(np.int32)
        # Common ancestors of one leaf lie on its way to the root, where the lower number is the higher node.
        return self._spread(self._between().astype(np.int32), leaves, np.minimum)

    def distances(self, mode: str = "depth") -> Tensor:
        """Return the distances of every two classes ``(K, K)`` float64: ultrametric, zero on the diagonal alone.

        Args:
            mode: Name of the distance. ``"depth"`` is the depth of the deepest leaf minus the depth of the lowest
                common ancestor, as in the published tables of tieredImageNet-H and others. ``"height"`` is the height
                of the lowest common ancestor, as papers define it. They agree if all leaves have one depth.

        Raises:
            ArgumentError: if ``mode`` is another word.
        """
        check_choice("mode", mode, MODES)
        values = self.height if mode == "height" else self.depth.max() - self.depth
        between = values[self._between()].astype(np.float64)
        return torch.from_numpy(self._spread(between, np.zeros(self.num_classes), np.maximum))

    def _between(self) -> Ints:
        """Return the lowest common ancestor of each two leaves that are neighbours in the numbering ``(K-1,)``."""
        # Every leaf is a class: the node after a leaf leads down to the next leaf, and its parent up to both.
        return self.parents[np.sort(self.classes)[:-1] + 1]

    def _spread(self, between: NDArray[Any], own: NDArray[Any], join: np.ufunc) -> NDArray[Any]:
        """Join the values between each two classes by ``join`` ``(K, K)``; the diagonal is ``own``."""
        count = len(own)
        table = np.empty((count, count), dtype=own.dtype)
        np.fill_diagonal(table, own)
        for row in range(1, count):
            join(table[row - 1, :row], between[row - 1], out=table[row, :row])
        for row in range(count - 2, -1, -1):
            join(table[row + 1, row + 1 :], between[row], out=table[row, row + 1 :])
        place = np.argsort(np.argsort(self.classes))
        if not np.array_equal(place, np.arange(count)):
            table = table[place]
            for values in table:  # row by row, which stays in the cache
                values[:] = values[place]
        return table

    def __str__(self) -> str:
        return "\n".join(self._lines())

    def _lines(self) -> Iterator[str]:
        below: list[list[int]] = [[] for _ in self.names]
        for node in range(1, len(self.names)):
            below[self.parents[node]].append(node)
        pending = [(0, "", "", "")]
        while pending:
            node, indent, branch, further = pending.pop()
            yield f"{indent}{branch}{self.names[node]}"
            rest = [(child, indent + further, "├── ", "│   ") for child in below[node]]
            rest[-1:] = [(child, before, "└── ", "    ") for child, before, _, _ in rest[-1:]]
            pending += reversed(rest)

    def __repr__(self) -> str:
        return f"Tree(num_classes={self.num_classes}, nodes={len(self.names)}, depth={int(self.depth.max())})"

    def _repr_html_(self) -> str:
        lines = list(islice(self._lines(), _DRAWN + 1))
        shown = "\n".join(lines[:_DRAWN] + ["…"] * (len(lines) > _DRAWN))
        return f"<p>{html.escape(repr(self))}</p><pre>{html.escape(shown)}</pre>"


def _numbers(name: str, values: Sequence[int] | Ints) -> list[int]:
    given = np.asarray(values)
    if given.ndim != 1 or not given.size or not np.issubdtype(given.dtype, np.integer):
        raise ArgumentError(f"{name} must be a sequence of integers, one or more, got {values!r}")
    numbers: list[int] = given.tolist()
    return numbers
