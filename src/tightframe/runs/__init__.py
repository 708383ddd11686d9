"""A directory of runs as plain data: its layout, its lock, whole-or-nothing writes, and the reader."""

from tightframe.runs.confusion import Confusion
from tightframe.runs.directory import RunDirectory, Training
from tightframe.runs.snapshots import Snapshot
from tightframe.runs.write import open_directory, write

__all__ = ["Confusion", "RunDirectory", "Snapshot", "Training", "open_directory", "write"]
