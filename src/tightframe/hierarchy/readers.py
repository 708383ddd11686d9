"""Readers: the hierarchy that a person, a file or WordNet gives, as plain edges or as a graph."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from tightframe.errors import ArgumentError, DataFileError, is_name, require_extra, shown
from tightframe.files import read_yaml, reading
from tightframe.hierarchy.graph import Graph

EDGE_SUFFIXES = (".tsv", ".txt")
NESTED_SUFFIXES = (".json", ".yaml", ".yml")


def paths_graph(paths: Iterable[Sequence[str] | str], separator: str) -> tuple[Graph, list[int]]:
    """Return the graph of paths below an added root, and the node at the end of each."""
    if isinstance(paths, str):
        raise ArgumentError(f"paths must be a sequence of paths, one a class, got the string {paths!r}")
    numbers: dict[tuple[int, str], int] = {}
    graph, ends, taken = Graph(["root"], [[]]), [], set()
    for path in paths:
        parts = path.split(separator) if isinstance(path, str) else list(path)
        if not parts or any(part is None or str(part) == "" for part in parts):
            raise ArgumentError(f"paths must hold names, none of them empty, got {path!r}; leave missing levels out")
        node = 0
        for name in map(str, parts):
            below = numbers.setdefault((node, name), len(graph.names))
            if below == len(graph.names):
                graph.names.append(name)
                graph.above.append([node])
            node = below
        if node in taken:
            raise ArgumentError(f"paths must be different, got {path!r} more than once; each class has one path")
        taken.add(node)
        ends.append(node)
    return graph, ends


def nested_graph(nested: Any) -> Graph:
    """Return the graph of nested mappings, under their only key or an added root."""
    if isinstance(nested, Mapping) and len(nested) == 1:
        ((top, nested),) = nested.items()
        graph = Graph([_name(top)], [[]])
    elif isinstance(nested, Mapping | list | tuple) and nested:
        graph = Graph(["root"], [[]])
    else:
        raise ArgumentError(f"nested must be a mapping or list with something in it, got {shown(nested)}")
    # From the top down to where the walk is: node, content, what is left of the content, names that it had so far.
    way: list[tuple[int, Any, Iterator[tuple[Any, Any]], set[str]]] = [(0, nested, _pairs(nested), set())]
    while way:
        parent, _, rest, taken = way[-1]
        for key, below in rest:
            name = _name(key)
            if name in taken:
                raise ArgumentError(
                    f"nested must hold a name once under each node, got {shown(name)} twice under "
                    f"{shown(graph.names[parent])}"
                )
            if any(below is content for _, content, _, _ in way):
                raise ArgumentError(f"nested must not hold itself, got {shown(name)} with a mapping that it is in")
            taken.add(name)
            graph.names.append(name)
            graph.above.append([parent])
            way.append((len(graph.names) - 1, below, _pairs(below), set()))
            break
        else:
            way.pop()
    return graph


def _pairs(nested: Any) -> Iterator[tuple[Any, Any]]:
    if isinstance(nested, Mapping):
        yield from nested.items()
    elif isinstance(nested, list | tuple):
        for item in nested:
            if isinstance(item, Mapping):
                yield from item.items()
            else:
                yield item, None
    elif nested is not None:
        yield nested, None


def _name(value: Any) -> str:
    if isinstance(value, bool) or (not isinstance(value, int) and not is_name(value)):
        raise ArgumentError(f"nested must hold names, got {shown(value)} of type {type(value).__name__}; quote it")
    return str(value)


def wordnet_edges(synsets: Sequence[str]) -> tuple[list[tuple[str, str]], list[str]]:
    """Return every hypernym edge above WordNet synsets, and the synsets' names."""
    wordnet = require_extra("nltk.corpus", "hierarchy").wordnet
    try:
        found = [_synset(wordnet, synset) for synset in synsets]
    except LookupError as error:  # nltk's own message is a screen long
        raise DataFileError("nltk has no WordNet corpus here; run: python -m nltk.downloader wordnet") from error
    names = [synset.name() for synset in found]
    edges, pending, seen = [], found, set(names)
    for synset in pending:  # grows while it is walked
        for hypernym in synset.hypernyms() + synset.instance_hypernyms():
            edges.append((hypernym.name(), synset.name()))
            if hypernym.name() not in seen:
                seen.add(hypernym.name())
                pending.append(hypernym)
    return edges, names


def _synset(wordnet: Any, name: str) -> Any:
    """Return the synset of an identifier such as n02084071 or a name such as dog.n.01."""
    try:
        if name[:1] in "nvars" and name[1:].isdigit():
            synset = wordnet.synset_from_pos_and_offset(name[0], int(name[1:]))
        else:
            synset = wordnet.synset(name)
    except Exception as error:  # WordNetError, ValueError, KeyError, by what is wrong
        if type(error) is LookupError:  # without the corpus nltk raises this very class
            raise
        raise ArgumentError(f"synsets must be such as 'dog.n.01' or 'n02084071', got {name!r}: {error}") from error
    if synset is None:
        raise ArgumentError(f"synsets must be in nltk's WordNet, got {name!r}; identifiers differ between its versions")
    return synset


def read_edges(path: Path) -> list[tuple[str, str]]:
    """Read ``parent<TAB>child`` lines; blanks separate where a line has no tab."""
    edges = []
    for number, line in enumerate(_text(path).split("\n"), start=1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        fields = [field.strip() for field in line.split("\t")] if "\t" in line.strip() else line.split()
        if len(fields) != 2 or "" in fields:
            seen = f"{shown(line)}; names that hold blanks need the tab"
            raise DataFileError(f"{path}, line {number} must be parent<TAB>child, got {seen}")
        edges.append((fields[0], fields[1]))
    return edges


def read_nested(path: Path) -> Any:
    """Read nested mappings from JSON or YAML, names as they are written; a key that comes twice is refused."""
    if path.suffix != ".json":
        return read_yaml(path, words=True)
    with reading(path, "cannot be read as JSON", "correct it", "check the path"):
        return json.loads(_text(path), object_pairs_hook=_unique)


def _unique(pairs: list[tuple[Any, Any]]) -> dict[Any, Any]:
    mapping = dict(pairs)
    if len(mapping) < len(pairs):
        twice, _ = Counter(key for key, _ in pairs).most_common(1)[0]
        raise ArgumentError(f"the key {shown(twice)} comes twice in one mapping")
    return mapping


def _text(path: Path) -> str:
    with reading(path, "cannot be read as text", "save it as UTF-8", "check the path"):
        return path.read_text(encoding="utf-8-sig")  # editors on Windows begin files with a mark
