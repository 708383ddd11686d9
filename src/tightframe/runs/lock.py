"""A lock on a directory: one process at a time writes into it."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from tightframe.errors import OutputError, ResumeError
from tightframe.runs.layout import LOCK_FILE


@contextmanager
def hold(directory: Path, *, wait: bool = False) -> Iterator[None]:
    """Hold the lock of a directory, which is created, for the length of a block.

    The system releases the lock when the process ends, whatever ends it. Where the system or the file system has no
    locks (``flock``), nothing is locked.

    Args:
        directory: Directory to write into.
        wait: Whether to wait for the process that holds the lock; otherwise it is an error.

    Raises:
        ResumeError: if another process holds the lock; the message names it.
        OutputError: if the directory cannot be written to.
    """
    try:
        directory.mkdir(parents=True, exist_ok=True)
        file = (directory / LOCK_FILE).open("a+", encoding="utf-8", errors="replace")
    except OSError as error:
        raise OutputError(f"{directory} cannot be written: {error}") from error
    with file:
        if not _locked(file.fileno(), wait):
            file.seek(0)
            holder = file.read().strip() or "another process"
            raise ResumeError(
                f"{directory} is being written by {holder}; wait for it, stop it, or choose another --out"
            )
        holder = f"process {os.getpid()} on {socket.gethostname()} since {time.strftime('%Y-%m-%d %H:%M:%S')}"
        with suppress(OSError):  # a full disk: the lock holds without a name in it
            file.truncate(0)
            os.write(file.fileno(), holder.encode())
        yield


def _locked(descriptor: int, wait: bool) -> bool:
    """Take the lock if there are locks; return False if another process has it."""
    try:
        import fcntl
    except ImportError:  # Windows
        return True
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
        return False
    except OSError:  # a file system without locks
        return True
    return True
