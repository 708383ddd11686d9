"""From names in a recipe to objects: classes and functions are looked up, checked and called here alone."""

from __future__ import annotations

import copy
import importlib
import inspect
import os
import re
import typing
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from tightframe.config.recipe import Part
from tightframe.errors import ConfigError, TightframeError, check_positive

AUTO = "auto"
TRUSTED = ("tightframe.", "torch.nn.", "torch.optim.")
# Words in annotations of data. For any other, jsonargparse takes a text with dots as the path of an object to import.
_DATA = re.compile(
    r"((typing|collections|abc|pathlib|os|bool|bytes|dict|float|int|list|set|str|tuple|None|Path|PathLike|Iterable|Literal|"
    r"Mapping|Optional|Sequence|Union)\b|\W|'[^']*')*"
)


def check_trusted(plain: Any, where: str) -> None:
    """Check that a recipe runs no code of others: every name with dots in it is one of tightframe or PyTorch.

    Nothing is imported for it. It comes before jsonargparse sees the recipe, which imports what ``class_path`` names.

    Args:
        plain: Recipe as nested mappings and lists.
        where: Name of the recipe, for the error.

    Raises:
        ConfigError: if a part names anything else.
    """
    for name in _part_names(plain):
        if "." in name and not name.startswith(TRUSTED):
            raise ConfigError(
                f"{where} names {name}, code outside tightframe and PyTorch, which would be run; if you trust it, pass "
                "--trust (trust=True in Python)"
            )


def _part_names(plain: Any) -> Iterator[str]:
    if isinstance(plain, Mapping):
        yield from (plain[key] for key in ("name", "class_path") if isinstance(plain.get(key), str))
        for value in plain.values():
            yield from _part_names(value)
    elif isinstance(plain, list | tuple):
        for value in plain:
            yield from _part_names(value)


def located(plain: Any, folder: Path) -> Any:
    """Return a recipe as plain data whose relative paths start at a folder: hierarchies and paths of the data source.

    Args:
        plain: Recipe as nested mappings; what is not one, which the parser refuses, stays as it is.
        folder: Folder of the recipe's file, or the working directory.
    """

    def absolute(mapping: Any, keys: Iterable[str]) -> None:
        for key in keys:
            value = mapping.get(key) if isinstance(mapping, dict) else None
            if isinstance(value, str):
                mapping[key] = from_folder(value)
            if isinstance(value, list):
                mapping[key] = [from_folder(path) for path in value]

    def from_folder(path: Any) -> str:
        return os.path.abspath(folder / Path(str(path)).expanduser())

    found = copy.deepcopy(plain)
    if not isinstance(found, dict):
        return found
    methods = found.get("methods")
    for part in [found, *(methods.values() if isinstance(methods, dict) else ())]:
        absolute(part, ["hierarchy"])
    data = found.get("data")
    if isinstance(data, dict) and isinstance(data.get("name"), str):
        absolute(data.get("args"), path_arguments(data["name"]))
    return found


def path_arguments(source: str) -> list[str]:
    """Return the arguments of a data source that are paths."""
    parameters = inspect.signature(find(source, ("tightframe.data",), "data")).parameters.values()
    return [p.name for p in parameters if "Path" in str(p.annotation)]


def bind(
    part: Part,
    rooms: tuple[str, ...],
    base: type,
    where: str,
    given: Mapping[str, Any] | None = None,
) -> Any:
    """Return the object that a part names.

    Args:
        part: Name and arguments.
        rooms: Modules in which a name without dots is looked up.
        base: Class that the object must have.
        where: Key of the part in the recipe, for errors.
        given: Arguments that the rest of the recipe decides, for parameters that are required or set to ``auto``; a
            function that makes a frame gets all that it has a parameter for.

    Raises:
        ConfigError: if the name is unknown, of the wrong kind, or an argument is.
    """
    made = find(part.name, rooms, where)
    kind = made if inspect.isclass(made) else _returned(made)
    if not (inspect.isclass(kind) and issubclass(kind, base)):
        raise ConfigError(f"{where}.name must be a {base.__name__}, or a function annotated with one, got {part.name}")
    decided = dict(given or {})
    own = {name: value for name, value in part.args.items() if value != AUTO}
    if not inspect.isclass(made):
        decided["generator"] = _generator(own.pop("seed", decided.get("seed", 0)), f"{where}.args.seed")
    parameters = inspect.signature(made).parameters
    frames = {name: own.pop(name) for name in list(own) if name in parameters and _is_frame(parameters[name])}
    arguments = checked(made, own, f"{where}.args")
    for name, value in frames.items():
        arguments[name] = _frame(value, f"{where}.args.{name}", decided)
    for name, parameter in parameters.items():
        required = parameter.default is parameter.empty and parameter.kind not in (
            parameter.VAR_POSITIONAL,
            parameter.VAR_KEYWORD,
        )
        wanted = required or part.args.get(name) == AUTO or (not inspect.isclass(made) and name in decided)
        if name in arguments or not wanted:
            continue
        if name not in decided:
            raise ConfigError(f"{where}.args must set {name} for {part.name}: nothing else decides it")
        arguments[name] = decided[name]
    try:
        return made(**arguments)
    except TightframeError:
        raise
    except Exception as error:  # whatever a class of any package says of its arguments
        raise ConfigError(f"{where}: {part.name} cannot be made: {error}") from error


def _returned(function: Callable[..., Any]) -> Any:
    try:
        return typing.get_type_hints(function).get("return")
    except Exception:  # annotations may name what was imported for type checkers alone
        return None


def _generator(seed: Any, where: str) -> Any:
    import torch

    check_positive(where, seed, 0)
    return torch.Generator("cpu").manual_seed(seed)


def _is_frame(parameter: inspect.Parameter) -> bool:
    return "Frame" in str(parameter.annotation)


def _frame(value: Any, where: str, given: Mapping[str, Any]) -> Any:
    from tightframe.frames import Frame

    described = {"name": value} if isinstance(value, str) and "." not in value else value
    if not isinstance(described, Mapping) or not {"name"} <= described.keys() <= {"name", "args"}:
        raise ConfigError(
            f"{where} must be the name of a frame of tightframe, or a mapping of name and args, got {value!r}"
        )
    return bind(Part(**described), ("tightframe.frames",), Frame, where, given)


def find(name: str, rooms: tuple[str, ...], where: str) -> Any:
    """Return the class or function of a name."""
    module, _, attribute = name.rpartition(".")
    candidates = [module] if module else list(rooms)
    for candidate in candidates:
        try:
            found = getattr(importlib.import_module(candidate), attribute, None)
        except ImportError as error:
            raise ConfigError(f"{where}.name: {candidate} cannot be imported: {error}") from error
        if inspect.isclass(found) or inspect.isfunction(found):
            return found
    raise ConfigError(f"{where}.name: no class or function {attribute!r} in {', '.join(candidates)}")


def checked(made: Callable[..., Any], args: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Check arguments against the signature's types, where these are types of data, and return them.

    Args:
        made: Class or function.
        args: Arguments by name.
        where: Key of the part in the recipe, for errors.

    Raises:
        ConfigError: if an argument is unknown or of another type.
    """
    import jsonargparse

    parser = jsonargparse.ArgumentParser(exit_on_error=False)
    accepted = inspect.signature(made).parameters
    takes_all = any(parameter.kind is parameter.VAR_KEYWORD for parameter in accepted.values())
    unknown = [] if takes_all else sorted(set(args) - set(accepted))
    if unknown:
        raise ConfigError(
            f"{where}: {made.__name__} takes no {', '.join(map(repr, unknown))}; it takes {', '.join(accepted)}"
        )
    add = parser.add_class_arguments if inspect.isclass(made) else parser.add_function_arguments
    named = {name: value for name, value in args.items() if name in accepted}
    data = {name: value for name, value in named.items() if _is_data(accepted[name]) or not _has_path(value)}
    skip: set[str | int] = {name for name in accepted if name not in data}
    add(made, skip=skip, fail_untyped=False, sub_configs=False)
    try:
        parsed = parser.parse_object(data, defaults=False)
    except jsonargparse.ArgumentError as error:
        raise ConfigError(f"{where}: {' '.join(str(error).split())}") from error
    return {**args, **{name: parsed[name] for name in data}}


def _is_data(parameter: inspect.Parameter) -> bool:
    annotation = parameter.annotation
    text = annotation if isinstance(annotation, str) else inspect.formatannotation(annotation)
    return annotation is not parameter.empty and _DATA.fullmatch(text.replace('"', "'")) is not None


def _has_path(value: Any) -> bool:
    if isinstance(value, Mapping):
        return any(map(_has_path, value.values()))
    return any(map(_has_path, value)) if isinstance(value, list | tuple) else isinstance(value, str) and "." in value
