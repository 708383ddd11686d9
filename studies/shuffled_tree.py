"""The hierarchy of a recipe's data with its classes shuffled: the same tree over other classes.

python -m studies.shuffled_tree stdlib-hierarchy shuffled.json
tightframe compare stdlib-hierarchy --methods.haframe-2.hierarchy shuffled.json --out runs/shuffled
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from studies._tables import command
from tightframe.config import Part, bind, find_recipe
from tightframe.data import DataSource
from tightframe.errors import ConfigError
from tightframe.files import read_yaml
from tightframe.hierarchy import Tree


def shuffled(paths: Sequence[Sequence[str]], class_names: Sequence[str], seed: int) -> dict[str, Any]:
    """Return nested mappings in which each class stands where another one was."""
    order = torch.randperm(len(class_names), generator=torch.Generator().manual_seed(seed)).tolist()
    root: dict[str, Any] = {}
    for path, other in zip(paths, order, strict=True):
        node = root
        for name in path[:-1]:
            node = node.setdefault(name, {})
        node[class_names[other]] = None
    return root


@command
def main(argv: Sequence[str] | None) -> None:
    parser = argparse.ArgumentParser(prog="python -m studies.shuffled_tree", description="A hierarchy, shuffled.")
    parser.add_argument("recipe", help="name or YAML file, of data with a hierarchy")
    parser.add_argument("out", type=Path, help="JSON file to write")
    parser.add_argument("--seed", type=int, default=0, help="of the shuffle")
    options = parser.parse_args(argv)
    described = read_yaml(find_recipe(options.recipe))["data"]
    data = bind(Part(**described), ("tightframe.data",), DataSource, "data").load()
    if data.paths is None:
        raise ConfigError(f"{options.recipe} must have data with a hierarchy of their own")
    nested = shuffled(data.paths, data.class_names, options.seed)
    Tree.from_nested(nested, data.class_names)
    options.out.write_text(json.dumps(nested, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
