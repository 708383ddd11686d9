"""The command line: ``tightframe COMMAND``, a file of this room for each command."""

from __future__ import annotations

import importlib
import io
import os
import signal
import sys
import threading
import traceback
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from tightframe.errors import ConfigError, MissingExtraError, OutputError, TightframeError

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
    parser.add_argument("--debug", action="store_true", help="show where an error comes from; goes with every command")
    commands = parser.add_subcommands(required=True, dest="command")
    for name in names:
        commands.add_subcommand(name, _module(name).parser(COMMANDS[name]), help=COMMANDS[name])
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line, and end with an exit code that tells the truth.

    0 is success; 2 wrong input or a file that cannot be read or written, with one line on stderr; 1 an error of
    tightframe itself, with one line; 130 Ctrl-C and 143 SIGTERM, with a line that says how to resume.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in arguments
    arguments = [argument for argument in arguments if argument != "--debug"]
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a character that the terminal lacks must not end the work
    try:
        with _terminable():
            _check_extra()
            _run(arguments)
            sys.stdout.flush()
    except (Exception, KeyboardInterrupt, Terminated) as error:
        if debug:
            traceback.print_exception(error)
        code, line = _ending(error)
        training = arguments[:1] in (["compare"], ["train"])
        if code > 2 or isinstance(error, OSError | OutputError):
            line += "; run the same command to resume after the last epoch" if training else "; run the command again"
        print(f"tightframe: {line}", file=sys.stderr)  # noqa: T201
        if isinstance(error, OSError):
            _close_stdout()
        sys.exit(code)


class Terminated(BaseException):
    """SIGTERM, as a scheduler sends it before the end of the time."""


@contextmanager
def _terminable() -> Iterator[None]:
    """Raise :class:`Terminated` at SIGTERM, so that files and locks are closed as at Ctrl-C."""

    def end(number: int, frame: object) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # a second one must not end the closing
        raise Terminated

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _ending(error: BaseException) -> tuple[int, str]:
    """Return the exit code and the line of an error."""
    said = " ".join(str(error).split())
    match error:
        case KeyboardInterrupt():
            return 130, "interrupted"
        case Terminated():
            return 143, "terminated"
        case BrokenPipeError():
            return 2, "error: standard output was closed before everything was written to it"
        case TightframeError() | OSError() | UnicodeError():
            return 2, f"error: {said}"
        case RuntimeError() if "out of memory" in said or "allocate" in said:  # of PyTorch
            return 2, f"error: not enough memory: {said[:200]}; use smaller data, batches or networks"
        case MemoryError():
            return 2, f"error: not enough memory{said and ': '}{said}; use smaller data, batches or networks"
        case RecursionError():
            return 2, f"error: the input is nested too deeply: {said}"
    return 1, f"unexpected {type(error).__name__}: {said[:300]}; --debug shows where; please report it"


def _close_stdout() -> None:
    """Point standard output to nowhere: Python would try to write what is left, and complain, when it ends."""
    try:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except (OSError, ValueError):  # it has no file
        return


def _run(arguments: list[str]) -> None:
    from jsonargparse import ArgumentError

    from tightframe.cli.recipe import with_recipe

    parser = build_parser(set(arguments[:1]) & COMMANDS.keys() or COMMANDS)
    given, file = with_recipe(arguments)
    try:
        parsed = parser.parse_args(given)
        command = parsed.command
        options: Any = parser.instantiate(parsed)[command]
    except (ArgumentError, ValueError) as error:
        raise ConfigError(file + " ".join(str(error).split())) from error
    _module(command).run(**vars(options))


def _module(command: str) -> Any:
    return importlib.import_module(f"tightframe.cli.{command}")


def _check_extra() -> None:
    missing = [name for name in EXTRA if find_spec(name) is None]
    if missing:
        raise MissingExtraError(f"the command line needs {', '.join(missing)}; run: pip install 'tightframe[cli]'")
