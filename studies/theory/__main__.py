"""Draw a figure of a paper, or list them all.

python -m studies.theory [NAME] [--seed 0] [--out NAME.svg]
"""

from __future__ import annotations

import argparse
from pathlib import Path

from studies.theory import FIGURES
from tightframe.report.charts import write_charts


def main(argv: list[str] | None = None) -> None:
    """Draw a figure, or list them all."""
    parser = argparse.ArgumentParser(prog="studies.theory", description="Draw a figure of the papers.")
    parser.add_argument("name", nargs="?", choices=FIGURES, help="name of the figure; without one, list them")
    parser.add_argument("--seed", type=int, default=0, help="seed of what is drawn or trained")
    parser.add_argument("--out", type=Path, help="*.png or *.svg; NAME.svg by default")
    options = parser.parse_args(argv)
    if options.name is None:
        for name, figure in FIGURES.items():
            print(f"{name:<26} {(figure.__doc__ or '').splitlines()[0]}")
        return
    out = options.out or Path(f"{options.name}.svg")
    write_charts(out, FIGURES[options.name](options.seed))
    print(f"figure: {out}")


if __name__ == "__main__":
    main()
