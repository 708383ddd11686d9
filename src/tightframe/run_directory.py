"""What lies in a directory of runs beside the runs: the recipe, its classes and the versions it ran with."""

from __future__ import annotations

import json
import os
import platform
from dataclasses import asdict
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tightframe.config import Recipe, build_tree
from tightframe.errors import ConfigError, ResumeError
from tightframe.runs.layout import CLASSES_FILE, CONFIG_FILE, HIERARCHY_FILE, VERSIONS_FILE

if TYPE_CHECKING:
    from tightframe.data import ClassificationData


def check_directory(out: Path, recipe: Recipe) -> None:
    """Check that the runs in a directory, if there are any, are of this recipe.

    Raises:
        ResumeError: if they are of another one; the message names the keys that differ.
    """
    import yaml

    config = out / CONFIG_FILE
    if not config.exists():
        return
    try:
        theirs = yaml.safe_load(config.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ResumeError(f"{config} cannot be read as YAML; choose another --out") from error
    differing = _differences(_plain(recipe), theirs)
    if differing:
        raise ResumeError(
            f"{out} holds runs of another configuration: {', '.join(differing)} differ; choose another --out"
        )


def write_directory(out: Path, recipe: Recipe, data: ClassificationData) -> None:
    """Create a directory for runs of a recipe: configuration, class names, their hierarchy and versions.

    Raises:
        ConfigError: if it cannot be written.
    """
    import yaml

    files = {
        CONFIG_FILE: yaml.safe_dump(_plain(recipe), sort_keys=False, allow_unicode=True),
        CLASSES_FILE: json.dumps(data.class_names) + "\n",
        VERSIONS_FILE: json.dumps(_versions(), indent=2) + "\n",
    }
    tree = build_tree(recipe, data)
    if tree is not None:
        parts = {"parents": tree.parents.tolist(), "names": tree.names, "classes": tree.classes.tolist()}
        files[HIERARCHY_FILE] = json.dumps(parts) + "\n"
    try:
        out.mkdir(parents=True, exist_ok=True)
        for name, text in files.items():
            partial = out / f"{name}.partial"
            partial.write_text(text, encoding="utf-8")
            os.replace(partial, out / name)
    except OSError as error:
        raise ConfigError(f"--out {out} cannot be written: {error}") from error


def _plain(recipe: Recipe) -> Any:
    return json.loads(json.dumps(asdict(recipe)))


def _differences(mine: Any, theirs: Any, prefix: str = "") -> list[str]:
    """Return the dotted keys at which two nested mappings differ."""
    if isinstance(mine, dict) and isinstance(theirs, dict):
        keys = sorted({*mine, *theirs})
        return [d for k in keys for d in _differences(mine.get(k), theirs.get(k), f"{prefix}.{k}" if prefix else k)]
    unset: tuple[Any, ...] = (None, {})  # a key that an earlier version did not know is missing there
    return [] if mine == theirs or (mine in unset and theirs in unset) else [prefix or "everything"]


def _versions() -> dict[str, str]:
    packages = ("tightframe", "torch", "numpy", "torchmetrics", "lightning", "scikit-learn")
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        **{name: metadata.version(name) for name in packages},
    }
