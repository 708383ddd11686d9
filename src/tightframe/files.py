"""Files: written whole or not at all, and read without running what is in them."""

from __future__ import annotations

import json
import math
import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import cache
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast
from zipfile import ZipFile
from zlib import crc32

from tightframe.errors import DataFileError, OutputError, TightframeError, require_extra, shown

if TYPE_CHECKING:
    from torch import Tensor

CHECKSUM = "crc32"
# What a YAML file may hold: values are counted where aliases put them, so the text alone does not bound them.
YAML_BYTES = 2 * 2**20
YAML_VALUES = 100_000
YAML_DEPTH = 100
# Characters of a library's own words in a message.
SAID_LENGTH = 300


@contextmanager
def written_whole(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a path beside ``path`` to write to; it takes the place of ``path`` if the block ends without an error.

    A process that is killed at any moment leaves the file that was there before, if there was one. Missing folders are
    created. Two processes must not write the same file at once; see :func:`tightframe.runs.lock.hold`.

    Args:
        path: Path of the file; a link is followed.

    Raises:
        OutputError: if the file cannot be written, or something that is not a file has its name.

    Example:
        >>> import tempfile
        >>> target = Path(tempfile.mkdtemp()) / "new" / "a.txt"
        >>> with written_whole(target) as partial:
        ...     _ = partial.write_text("whole")
        >>> target.read_text(), [p.name for p in target.parent.iterdir()]
        ('whole', ['a.txt'])
    """
    target = Path(os.path.realpath(path))
    partial = target.with_name(f"{target.name}.partial")
    try:
        if target.exists() and not target.is_file():
            raise OutputError(f"{path} cannot be written: it exists and is not a file; move it away")
        target.parent.mkdir(parents=True, exist_ok=True)
        yield partial
        with partial.open("rb+") as file:
            os.fsync(file.fileno())
        os.replace(partial, target)
    except OSError as error:
        raise OutputError(f"{path} cannot be written: {error}") from error
    finally:
        with suppress(OSError):
            partial.unlink()


@contextmanager
def reading(path: str | os.PathLike[str], wrong: str, fix: str, missing: str = "") -> Iterator[None]:
    """Turn what fails while a file is read into a :class:`DataFileError` that names it, in one line.

    Args:
        path: Path of the file.
        wrong: Words for a file that is damaged or of another format, such as "is no JSON".
        fix: Words for what to do about it.
        missing: Words for what to do if there is no such file; "" is ``fix``.
    """
    try:
        yield
    except TightframeError:
        raise
    except FileNotFoundError as error:
        raise DataFileError(f"{path} does not exist; {missing or fix}") from error
    except MemoryError as error:  # a damaged file may claim any size
        raise DataFileError(f"{path} needs more memory than there is, or {wrong}; {fix}") from error
    except Exception as error:  # libraries raise exceptions of many kinds about a damaged file
        # Only the system numbers its errors; libraries raise bare ones about what they read.
        unreadable = isinstance(error, OSError) and error.errno is not None
        said = " ".join("".join(c if c.isprintable() else " " for c in str(error)).split())
        said = said if len(said) <= SAID_LENGTH else f"{said[:SAID_LENGTH]} …"
        kind = "" if " " in said else f"{type(error).__name__}: "  # what is no sentence needs it
        raise DataFileError(f"{path} {'cannot be read' if unreadable else wrong} ({kind}{said}); {fix}") from error


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """Write a text file in UTF-8 as :func:`written_whole` does; lines end in a newline on every system."""
    with written_whole(path) as partial:
        partial.write_text(text, encoding="utf-8", newline="\n")


def write_json(path: str | os.PathLike[str], content: Any) -> None:
    """Write a JSON file, whole or not at all; errors as in :func:`written_whole`."""
    write_text(path, json.dumps(content, indent=2, ensure_ascii=False) + "\n")


def write_tensors(
    path: str | os.PathLike[str], tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None
) -> None:
    """Write a safetensors file, whole or not at all.

    Args:
        path: Path of the file.
        tensors: Tensors by name, on any device; they may share memory.
        metadata: Text by name. A checksum is added, which :func:`read_tensors` checks. Equal contents give equal files.

    Raises:
        OutputError: if the file cannot be written.
    """
    import torch
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    copies = {name: t.detach().cpu().clone(memory_format=torch.contiguous_format) for name, t in tensors.items()}
    text = {**(metadata or {})}
    with written_whole(path) as partial:
        try:
            save_file(copies, partial, metadata={**text, CHECKSUM: _checksum(copies, text)})
        except SafetensorError as error:
            raise OutputError(f"{path} cannot be written: {error}") from error
        with partial.open("rb+") as file:  # the library writes metadata in any order
            size = int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(size))
            header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
            ordered = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode().ljust(size)
            if len(ordered) == size:
                file.seek(8)
                file.write(ordered)


def _checksum(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> str:
    """Return the CRC-32 of tensors and metadata, with their names, types and shapes."""
    import torch

    shapes = [(name, str(t.dtype), tuple(t.shape)) for name, t in sorted(tensors.items())]
    crc = crc32(repr((shapes, sorted(metadata.items()))).encode())
    for name, *_ in shapes:
        crc = crc32(tensors[name].contiguous().flatten().view(torch.uint8).numpy().data, crc)
    return f"{crc:08x}"


def read_tensors(
    path: str | os.PathLike[str], what: str = "a safetensors file", *, header: bool = False
) -> tuple[dict[str, Any], dict[str, str]]:
    """Return the tensors and the metadata of a safetensors file; nothing in it is executed.

    Args:
        path: Path of the file.
        what: Words for what it should be, for the error.
        header: Whether to read the names and the metadata alone; None is in the place of the tensors.

    Raises:
        DataFileError: if the file is missing, truncated, of another format, or not what was written.
    """
    from safetensors import safe_open

    with reading(path, f"is not {what}", "write it again", "check the path"):
        with safe_open(path, framework="pt") as file:
            tensors = {name: None if header else file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            metadata = dict(file.metadata() or {})
        wanted = metadata.pop(CHECKSUM, None)
        if not header and wanted not in (None, _checksum(cast("dict[str, Tensor]", tensors), metadata)):
            raise ValueError("its contents are not those that were written")
    return tensors, metadata


def read_checkpoint(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Return what a checkpoint of Lightning holds, on the CPU: tensors and plain data; nothing in it is executed.

    Raises:
        DataFileError: if the file is missing, damaged, no checkpoint, or holds other objects.
    """
    import torch

    with reading(path, "is not a checkpoint that can be loaded", "delete it to train from the start"):
        with ZipFile(path) as archive:  # PyTorch does not compare checksums
            damaged = archive.testzip()
        if damaged is not None:
            raise ValueError(f"{damaged} in it is not what was written")
        found = torch.load(path, map_location="cpu", weights_only=True)
        return {"state_dict": found["state_dict"], "callbacks": found["callbacks"], **found}


def read_json(path: str | os.PathLike[str]) -> Any:
    """Return what a JSON file holds.

    Raises:
        DataFileError: if the file is missing, not UTF-8, not JSON, or nested too deeply.
    """
    with reading(path, "cannot be read as JSON", "write it again", "check the path"):
        return json.loads(Path(path).read_text(encoding="utf-8"))


def read_yaml(path: str | os.PathLike[str], *, words: bool = False) -> Any:
    """Return what a YAML file holds, keys as they are written (``010``, ``1e5``, ``no``).

    Values follow the rules of YAML 1.2: ``yes``, ``no`` and ``010`` are words; ``1e-4`` is a number.

    Args:
        path: Path of the file.
        words: Whether every scalar is a name or nothing (``null``): a name is kept as it is written, and refused
            without quotes where YAML has a truth value or a date (``no``, ``2024-01-01``).

    Raises:
        DataFileError: if the file is missing, not UTF-8, not YAML, a key comes twice, an alias stands inside what it
            names, or the file exceeds ``YAML_BYTES``, ``YAML_VALUES`` with all aliases in place, or ``YAML_DEPTH``.
    """
    yaml = require_extra("yaml", "cli")
    with reading(path, "cannot be read as YAML", "correct it", "check the path"):
        with Path(path).open("rb") as file:
            content = file.read(YAML_BYTES + 1)
        if len(content) > YAML_BYTES:
            raise ValueError(f"it must have at most {YAML_BYTES} bytes; JSON and lines of text may have more")
        text = content.decode("utf-8-sig")  # editors on Windows begin files with a mark
        if not text.strip():
            raise ValueError("it is empty")
        return yaml.load(text, _yaml_loader(yaml, words))


def html_table(headings: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Return an HTML table, such as notebooks show for an object.

    Example:
        >>> html_table(["d"], [["<3"]])
        '<table><tr><th>d</th></tr><tr><td>&lt;3</td></tr></table>'
    """
    head = "".join(f"<th>{escape(heading)}</th>" for heading in headings)
    body = "".join(f"<tr>{''.join(f'<td>{escape(str(cell))}</td>' for cell in row)}</tr>" for row in rows)
    return f"<table><tr>{head}</tr>{body}</table>"


@cache
def _yaml_loader(yaml: Any, words: bool) -> Any:
    class Loader(yaml.BaseLoader):
        def __init__(self, text: str) -> None:
            super().__init__(text)
            self.name = "the file"
            self.held: dict[Any, tuple[int, int]] = {}  # values and levels of each node, aliases in place
            self.level = 0

        def compose_node(self, parent: Any, index: Any) -> Any:
            mark, alias = self.peek_event().start_mark, self.check_event(yaml.AliasEvent)
            self.level += 1
            self.check(len(self.held), self.level, mark)  # before the stack or the time is spent
            node = super().compose_node(parent, index)
            self.level -= 1
            if not alias:
                inside = [] if isinstance(node.value, str) else node.value
                if isinstance(node, yaml.MappingNode):
                    inside = [part for pair in inside for part in pair]
                held = [self.held[part] for part in inside]
                self.held[node] = 1 + sum(n for n, _ in held), 1 + max((levels for _, levels in held), default=0)
            elif node not in self.held:
                raise yaml.MarkedYAMLError(problem="an alias stands inside what it names", problem_mark=mark)
            values, levels = self.held[node]
            self.check(values, self.level + levels, mark)
            return node

        def check(self, values: int, levels: int, mark: Any) -> None:
            for count, limit, what in ((values, YAML_VALUES, "values"), (levels, YAML_DEPTH, "levels")):
                if count > limit:
                    problem = f"it must have at most {limit} {what}, aliases in place"
                    raise yaml.MarkedYAMLError(problem=problem, problem_mark=mark)

        def construct_mapping(self, node: Any, deep: bool = False) -> dict[str, Any]:
            keys = [key.value if isinstance(key.value, str) else None for key, _ in node.value]
            wrong = next((key for key, count in Counter(keys).items() if count > 1 or key is None), "")
            if wrong != "" or keys.count("") > 1:
                problem = f"the key {shown(wrong)} must be a word that comes once in its mapping"
                raise yaml.MarkedYAMLError(problem=problem, problem_mark=node.start_mark)
            if words and None in [self.construct_object(key) for key, _ in node.value]:
                raise ValueError("a key must be a name; put 'null' in quotes")
            return {key.value: self.construct_object(value, deep=True) for key, value in node.value}

    resolver = yaml.resolver.Resolver()
    others = ("tag:yaml.org,2002:bool", "tag:yaml.org,2002:timestamp")

    def scalar(loader: Any, node: Any) -> Any:
        if node.style is not None:
            return node.value
        if not words:
            return _yaml_value(node.value)
        tag = resolver.resolve(yaml.ScalarNode, node.value, (True, False))
        if tag in others:
            raise ValueError(f"{node.value!r} must be in quotes to be a name")
        return None if tag == "tag:yaml.org,2002:null" else node.value

    Loader.add_constructor("tag:yaml.org,2002:str", scalar)
    return Loader


def write_yaml(path: str | os.PathLike[str], content: Any) -> None:
    """Write mappings, lists and scalars so that :func:`read_yaml` returns them, whole or not at all.

    Raises:
        OutputError: if the file cannot be written.
    """
    yaml = require_extra("yaml", "cli")

    class Dumper(yaml.SafeDumper):  # type: ignore[name-defined]
        pass

    def word(dumper: Any, text: str) -> Any:
        style = None if _yaml_value(text) == text else "'"
        return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=style)

    Dumper.add_representer(str, word)
    write_text(path, yaml.dump(content, Dumper=Dumper, sort_keys=False, allow_unicode=True))


def _yaml_value(text: str) -> Any:
    named = {"": None, "~": None, "null": None, "true": True, "false": False, ".inf": math.inf, ".nan": math.nan}
    if text.lower() in named:
        return named[text.lower()]
    if re.fullmatch(r"[-+]?(0|[1-9][0-9]*)", text):
        return int(text)
    if re.fullmatch(r"[-+]?(\.[0-9]+|(0|[1-9][0-9]*)(\.[0-9]*)?)([eE][-+]?[0-9]+)?", text):
        return float(text)
    return math.copysign(math.inf, -1) if text.lower() == "-.inf" else text
