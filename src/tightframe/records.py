"""Records: the one long table of results.

Networks, layers and theory all write the same nine columns, so one report reads them all.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tightframe.errors import ArgumentError, DataFileError, require_extra
from tightframe.files import html_table, write_text

if TYPE_CHECKING:
    import pandas


@dataclass(frozen=True)
class Record:
    """One measured number.

    Args:
        run: Name of the run; in a comparison, of the method.
        seed: Seed of the run.
        epoch: Number of completed epochs; 0 is before training.
        step: Number of completed optimizer steps.
        split: Name of the split: ``train``, ``validation``, ``test``, or empty.
        layer: Dotted name of the layer, ``features`` for the classifier's input, or empty.
        metric: Id of the metric, such as ``nc1.pinv``.
        value: Number; may be nan or infinite.
        tap: Place at which the layer's features were read: ``input``, ``prepared`` (by a classifier that normalises),
            ``pre`` or ``post``; empty for a number without such a place, and in records of earlier versions.
    """

    run: str
    seed: int
    epoch: int
    step: int
    split: str
    layer: str
    metric: str
    value: float
    tap: str = ""

    @property
    def place(self) -> str:
        """Layer, with the tap unless it is the layer's input."""
        return f"{self.layer} ({self.tap})" if self.tap in ("pre", "post") else self.layer

    def to_json(self) -> str:
        """Return one JSON line; a non-finite value becomes the string that ``float`` reads back."""
        row = asdict(self)
        if not math.isfinite(self.value):
            row["value"] = str(self.value)
        return json.dumps(row, allow_nan=False)

    @classmethod
    def from_json(cls, line: str) -> Record:
        """Parse one JSON line; raises ``ValueError`` if it is not a record."""
        row = json.loads(line)
        if not isinstance(row, dict) or {*row, "tap"} != COLUMNS:
            raise ValueError(f"expected an object with exactly the keys {sorted(COLUMNS)}")
        run, split, layer, metric = (str(row[name]) for name in ("run", "split", "layer", "metric"))
        seed, epoch, step = (row[name] for name in ("seed", "epoch", "step"))
        if not all(type(number) is int and abs(number) < 2**63 for number in (seed, epoch, step)):
            raise ValueError(f"seed, epoch and step must be integers of 64 bits, got {seed}, {epoch}, {step}")
        return cls(run, seed, epoch, step, split, layer, metric, float(row["value"]), str(row.get("tap", "")))


COLUMNS = frozenset(field.name for field in fields(Record))


class Records:
    """A long table of :class:`Record` rows.

    Example:
        >>> records = Records()
        >>> records.add("nc1.pinv", 0.5, run="haar", seed=0, epoch=10, layer="features")
        >>> records.value("nc1.pinv", layer="features")
        0.5
    """

    def __init__(self, rows: Iterable[Record] = ()) -> None:
        self._rows = list(rows)

    def __len__(self) -> int:
        return len(self._rows)

    def __iter__(self) -> Iterator[Record]:
        return iter(self._rows)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Records) and [r.to_json() for r in self] == [r.to_json() for r in other]

    def __repr__(self) -> str:
        return f"Records({len(self)} rows, {len(self.unique('metric'))} metrics)"

    def _repr_html_(self) -> str:
        """Return a table of the newest value of each run, seed, split, place and metric, for notebooks."""
        newest = {(r.run, r.seed, r.split, r.place, r.metric): f"{r.value:.6g}" for r in self}
        return html_table(["run", "seed", "split", "layer", "metric", "value"], [(*k, v) for k, v in newest.items()])

    def add(
        self,
        metric: str,
        value: float,
        *,
        run: str = "",
        seed: int = 0,
        epoch: int = 0,
        step: int = 0,
        split: str = "",
        layer: str = "",
        tap: str = "",
    ) -> None:
        """Append one row."""
        self._rows.append(Record(run, seed, epoch, step, split, layer, metric, float(value), tap))

    def extend(self, other: Iterable[Record]) -> None:
        """Append the rows of ``other``."""
        self._rows.extend(other)

    def where(self, **columns: Any) -> Records:
        """Return the rows whose columns equal the given values."""
        _check_columns(columns)
        return Records(r for r in self if all(getattr(r, name) == value for name, value in columns.items()))

    def unique(self, column: str) -> list[Any]:
        """Return the distinct values of a column, in order of first appearance."""
        _check_columns([column])
        return list(dict.fromkeys(getattr(r, column) for r in self))

    def value(self, metric: str, **columns: Any) -> float:
        """Return the newest value of a metric among the rows that ``columns`` selects.

        Raises:
            ArgumentError: if no row matches (the message lists the metrics that exist), or if rows match that differ in
                more than epoch and step.
        """
        rows = self.where(metric=metric, **columns)
        if not len(rows):
            raise ArgumentError(f"no row has metric={metric!r} and {columns}; metrics here: {self.unique('metric')}")
        for column in ("run", "seed", "split", "layer", "tap"):
            values = rows.unique(column)
            if len(values) > 1:
                raise ArgumentError(f"{column} must be given for {metric!r}: there are rows of {values}")
        return max(reversed(rows._rows), key=lambda row: (row.epoch, row.step)).value

    def to_frame(self) -> pandas.DataFrame:
        """Return a pandas data frame of the nine columns."""
        pandas = require_extra("pandas", "cli")
        return pandas.DataFrame([asdict(r) for r in self], columns=[field.name for field in fields(Record)])

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write all rows as JSON lines, whole or not at all; missing folders are created.

        Raises:
            OutputError: if the file cannot be written.
        """
        write_text(path, "".join(r.to_json() + "\n" for r in self))
        return Path(path)

    @classmethod
    def read(cls, path: str | os.PathLike[str]) -> Records:
        """Read JSON lines; a last line that a killed process left half-written is dropped.

        Raises:
            DataFileError: if the file is missing, or any other line is not a record (with its number).
        """
        path = Path(path)
        try:
            lines = path.read_text(encoding="utf-8").split("\n")
        except (OSError, UnicodeDecodeError) as error:
            raise DataFileError(f"{path} cannot be read as records: {error}") from error
        rows = []
        for number, line in enumerate(lines[:-1], start=1):
            try:
                rows.append(Record.from_json(line))
            except (ValueError, TypeError, OverflowError, RecursionError) as error:
                raise DataFileError(f"{path}, line {number} is not a record: {str(error)[:300]}") from error
        return cls(rows)


def _check_columns(names: Iterable[str]) -> None:
    unknown = set(names) - COLUMNS
    if unknown:
        raise ArgumentError(f"columns must be among {sorted(COLUMNS)}, got {sorted(unknown)}")
