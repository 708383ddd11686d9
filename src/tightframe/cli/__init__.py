"""The command line: ``tightframe COMMAND``, a file of this room for each command."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterable, Sequence
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from tightframe.errors import ConfigError, MissingExtraError, TightframeError

if TYPE_CHECKING:
    from jsonargparse import ArgumentParser

COMMANDS = {
    "compare": "train every method of a recipe under several seeds, and report them side by side",
    "train": "train one method of a recipe; run the same command to resume",
    "report": "print the table of a directory of runs and write its report",
    "recipes": "list the shipped recipes, show one, or copy one here",
    "frame": "write the hierarchy-aware frame of a hierarchy file",
    "convert": "lock or cut a trained network beyond its effective depth, without training",
    "theory": "solve an unconstrained-feature model and certify its optimum",
}
EXTRA = ("jsonargparse", "yaml", "rich", "lightning", "sklearn", "matplotlib", "plotly", "jinja2")


def build_parser(names: Iterable[str] = tuple(COMMANDS)) -> ArgumentParser:
    """Return the parser of the command line, with these commands; torch is not imported for it."""
    from jsonargparse import ArgumentParser

    from tightframe import __version__

    parser = ArgumentParser(
        prog="tightframe", description="Measure, induce and explain neural collapse.", exit_on_error=False
    )
    parser.add_argument("--version", action="version", version=f"tightframe {__version__}")
    commands = parser.add_subcommands(required=True, dest="command")
    for name in names:
        commands.add_subcommand(name, _module(name).parser(COMMANDS[name]), help=COMMANDS[name])
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line; wrong input ends with one line on stderr and exit code 2."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    try:
        _check_extra()
        _run(arguments)
    except TightframeError as error:
        print(f"tightframe: error: {error}", file=sys.stderr)  # noqa: T201
        sys.exit(2)
    except KeyboardInterrupt:
        print("tightframe: stopped; run the same command to resume after the last epoch", file=sys.stderr)  # noqa: T201
        sys.exit(130)


def _run(arguments: list[str]) -> None:
    from jsonargparse import ArgumentError

    from tightframe.cli.recipe import with_recipe

    parser = build_parser(set(arguments[:1]) & COMMANDS.keys() or COMMANDS)
    given, file = with_recipe(arguments)
    try:
        parsed = parser.parse_args(given)
        command = parsed.command
        options: Any = parser.instantiate(parsed)[command]
    except (ArgumentError, UnicodeDecodeError) as error:
        raise ConfigError(file + " ".join(str(error).split())) from error
    _module(command).run(**vars(options))


def _module(command: str) -> Any:
    return importlib.import_module(f"tightframe.cli.{command}")


def _check_extra() -> None:
    missing = [name for name in EXTRA if find_spec(name) is None]
    if missing:
        raise MissingExtraError(f"the command line needs {', '.join(missing)}; run: pip install 'tightframe[cli]'")
