"""``tightframe recipes``: the shipped recipes."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from tightframe.config import find_recipe, shipped_recipes
from tightframe.errors import ConfigError
from tightframe.files import read_yaml, write_text

if TYPE_CHECKING:
    from jsonargparse import ArgumentParser


def parser(text: str) -> ArgumentParser:
    """Return the parser of the command."""
    from jsonargparse import ArgumentParser

    found = ArgumentParser(description=text, exit_on_error=False)
    found.add_argument("action", choices=["list", "show", "copy"], help="what to do")
    found.add_argument("name", nargs="?", help="name of a recipe")
    return found


def run(action: str, name: str | None) -> None:
    """List the shipped recipes, show one, or copy one here to be changed."""
    if action == "list":
        for recipe, path in shipped_recipes().items():
            print(f"{recipe:<20} {' '.join(read_yaml(path).get('description', '').split())}")  # noqa: T201
        return
    if name is None:
        raise ConfigError(f"recipes {action} needs the NAME of a recipe; see `tightframe recipes list`")
    path = find_recipe(name)
    text = path.read_text(encoding="utf-8")
    if action == "show":
        print(text, end="")  # noqa: T201
        return
    target = Path(path.name)
    if target.exists():
        raise ConfigError(f"{target} exists here already; move it away first")
    write_text(target, text)
    print(target)  # noqa: T201
