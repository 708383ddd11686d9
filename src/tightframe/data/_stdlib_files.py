"""Which files of the standard library its readers look at."""

from __future__ import annotations

import os
import platform
import sysconfig
from collections.abc import Iterator
from pathlib import Path

from tightframe.errors import DataFileError

# Tables, programs and bundled copies.
EXCLUDED = frozenset({"encodings", "pydoc_data", "idlelib", "lib2to3", "ensurepip", "turtledemo"})
TEST_DIRECTORIES = frozenset({"test", "tests", "idle_test"})
MACHINE_TABLES = "_sysconfigdata"


def library_root(root: str | os.PathLike[str] | None) -> Path:
    """Return ``root``, or the directory of the running Python's library where it is None.

    Raises:
        DataFileError: if no standard library source lies there.
    """
    found = Path(root or sysconfig.get_path("stdlib"))
    if not (found / "os.py").is_file():
        raise DataFileError(
            f"{found} holds no standard library source (no os.py); pass root=, the directory that os.py lies in"
        )
    return found


def library_version(root: str | os.PathLike[str] | None) -> str | None:
    """Return the version of the Python whose library is read, or None where ``root`` says which."""
    return platform.python_version() if root is None else None


def top_level_names(root: Path) -> list[str]:
    """Return the sorted names of the library's modules and packages, without those that are excluded."""
    names = {path.stem for path in root.iterdir() if path.suffix == ".py" or path.is_dir()}
    # What cannot be imported, such as site-packages or a directory of build options, is no part of the library.
    importable = {name for name in names if name.isidentifier() and not name.startswith(MACHINE_TABLES)}
    return sorted(importable - EXCLUDED - TEST_DIRECTORIES)


def source_files(root: Path, name: str) -> Iterator[tuple[tuple[str, ...], bytes]]:
    """Yield path, without suffix, and bytes of a module, or of every module in a package but its tests, sorted."""
    single = root / f"{name}.py"
    for path in [single] if single.is_file() else sorted((root / name).rglob("*.py")):
        parts = path.relative_to(root).with_suffix("").parts
        if TEST_DIRECTORIES.isdisjoint(parts):
            # A Windows installation has longer line ends, which must not change what is large enough.
            yield parts, path.read_bytes().replace(b"\r\n", b"\n")
