"""Rows of numbers by name, and the lines of a chart that are drawn from them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from tightframe.report.charts import Line

Rows = Sequence[Mapping[str, float]]


def curves(
    groups: Mapping[str, Rows], x: str, *names: str, label: str = "{}", points: bool = False, dashed: bool = False
) -> list[Line]:
    """Return a line for each name and group, in the colour of the group, or of both where there are several names.

    Args:
        groups: Rows by the name of their group.
        x: Name of the number on the horizontal axis.
        *names: Names of the numbers on the vertical axis.
        label: Label of a line, with ``{0}`` for its group and ``{1}`` for its name; "" for none.
        points: Whether rows are points that are not joined.
        dashed: Whether the line is dashed.
    """
    lines = []
    for group, rows in groups.items():
        for name in names:
            places, values = [row[x] for row in rows], [row[name] for row in rows]
            colour = group if len(names) == 1 else f"{group}: {name}"
            lines.append(Line(label.format(group, name).strip(), places, values, colour, points, dashed))
    return lines
