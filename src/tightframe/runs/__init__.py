"""A directory of runs as plain data: its layout, whole-or-nothing writes, the lock, and what reads it again."""

from tightframe.runs.confusion import Confusion
from tightframe.runs.directory import RunDirectory, Training
from tightframe.runs.snapshots import Snapshot

__all__ = ["Confusion", "RunDirectory", "Snapshot", "Training"]
