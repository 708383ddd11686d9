"""Count the statements of one or several checkouts, as ``ast`` sees them.

    python -m benchmarks.statements [ROOT ...]

With several, each number is followed by its ratio to that of the first.
"""

from __future__ import annotations

import ast
import sys
from pathlib import Path

FOLDERS = ("src", "studies", "benchmarks", "tests")


def statements(folder: Path) -> int:
    """Return the number of ``ast.stmt`` nodes in the Python files below a folder."""
    files = folder.rglob("*.py")
    return sum(isinstance(node, ast.stmt) for file in files for node in ast.walk(ast.parse(file.read_bytes())))


def main() -> None:
    """Print a line for each folder."""
    roots = [Path(root) for root in sys.argv[1:]] or [Path(__file__).parents[1]]
    counts = [{folder: statements(root / folder) for folder in FOLDERS} for root in roots]
    for count in counts:
        count["all but tests"] = sum(count[folder] for folder in FOLDERS[:3])
    for folder, first in counts[0].items():
        cells = [f"{count[folder]:7,} ({count[folder] / max(first, 1):.3f})" for count in counts[1:]]
        print(f"{folder:<14}{first:7,}  {'  '.join(cells)}")


if __name__ == "__main__":
    main()
