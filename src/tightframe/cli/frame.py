"""``tightframe frame``: the hierarchy-aware frame of a hierarchy file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

from tightframe.errors import ConfigError, check_positive
from tightframe.files import write_tensors

if TYPE_CHECKING:
    from jsonargparse import ArgumentParser


def parser(text: str) -> ArgumentParser:
    """Return the parser of the command."""
    from jsonargparse import ArgumentParser

    found = ArgumentParser(
        description=f"{text}, as safetensors: frame, gram, distances and, as metadata, the class names",
        exit_on_error=False,
    )
    found.add_argument("--hierarchy", type=Path, required=True, help="edge list (.tsv, .txt) or nested .json, .yaml")
    found.add_argument("--out", type=Path, required=True, help="file to write, *.safetensors")
    found.add_argument("--dim", type=int | None, default=None, help="dimension; the number of classes by default")
    found.add_argument("--gamma", type=float | None, default=None, help="how fast cosines fall; suggested by default")
    found.add_argument(
        "--asymptote", type=float | str, default="max-separation", help="max-separation, grid or a number below 1"
    )
    found.add_argument("--mode", choices=["depth", "height"], default="depth", help="distance in the tree")
    found.add_argument("--seed", type=int, default=0, help="seed of the orientation")
    return found


def run(
    hierarchy: Path,
    out: Path,
    dim: int | None,
    gamma: float | None,
    asymptote: float | str,
    mode: str,
    seed: int,
) -> None:
    """Write the hierarchy-aware frame of a hierarchy file, and print its facts."""
    import torch

    from tightframe.frames import hierarchy_aware_frame
    from tightframe.hierarchy import Tree

    check_positive("--seed", seed, 0)
    if out.suffix != ".safetensors":
        raise ConfigError(f"--out must end in .safetensors, got {out}")
    tree = Tree.read(hierarchy)
    distances = tree.distances(mode)
    found = hierarchy_aware_frame(
        distances,
        dim,
        gamma=gamma,
        asymptote=asymptote,
        generator=torch.Generator("cpu").manual_seed(seed),
    )
    facts = {"gamma": found.gamma, "asymptote": found.asymptote, "error": found.error, "violations": found.violations}
    tensors = {"frame": found.frame, "gram": found.gram, "distances": distances}
    write_tensors(out, tensors, {"classes": json.dumps(tree.class_names), **{k: repr(v) for k, v in facts.items()}})
    print(tree)  # noqa: T201  # the command's result
    num_classes, width = found.frame.shape
    print(f"\n{out}: {num_classes} classes in {width} dimensions")  # noqa: T201
    print(", ".join(f"{name} {value:.6g}" for name, value in facts.items()))  # noqa: T201
