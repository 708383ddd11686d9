"""``tightframe theory``: an unconstrained-feature model, solved and certified."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from tightframe.errors import ConfigError, check_positive
from tightframe.theory.problems import PROBLEMS, make_problem

if TYPE_CHECKING:
    from jsonargparse import ArgumentParser


def parser(text: str) -> ArgumentParser:
    """Return the parser of the command."""
    from jsonargparse import ArgumentParser

    found = ArgumentParser(
        description="solve an unconstrained-feature model: print its closed form, its solved optimum, the certificates "
        "of both and their collapse; or draw a figure of the theory: theory figure NAME (theory figure lists them). "
        f"PROBLEM is figure or one of {', '.join(PROBLEMS)}",
        exit_on_error=False,
    )
    found.add_argument("problem", type=str, help="name of a model, or figure")
    found.add_argument("name", nargs="?", help="name of a figure")
    found.add_argument("--counts", type=list[int] | None, default=None, help="samples of each class, as in [90,90,9]")
    found.add_argument("--classes", type=int | None, default=None, help="number of classes, where there are no counts")
    found.add_argument("--samples", type=int, default=1, help="of each class, where there are no counts")
    found.add_argument(
        "--dim", type=int | None, default=None, help="feature dimension; the number of classes by default"
    )
    for option, kind, text in (
        ("weight_decay", float, "penalty on the classifier"),
        ("feature_decay", float, "penalty on the features"),
        ("bias_decay", float, "penalty on the bias; 0 is a free one; no bias by default"),
        ("sample_weights", list[float], "weight of a sample of each class; 1/N by default"),
        ("weight_budget", float, "E_W of the layer-peeled model"),
        ("feature_budget", float, "E_H of the layer-peeled model"),
        ("decays", list[float], "penalties of a deep model: features, then each matrix"),
        ("relu", bool, "whether a deep model has ReLUs"),
    ):
        found.add_argument(f"--{option}", type=kind | None, default=None, help=text)
    found.add_argument("--seed", type=int, default=0, help="of the solver's starts, or of a figure")
    found.add_argument("--plot", type=Path | None, default=None, help="*.png or *.svg for the Gram matrices")
    found.add_argument("--out", type=Path | None, default=None, help="of a figure; NAME.svg by default")
    return found


def run(problem: str, name: str | None, seed: int, plot: Path | None, out: Path | None, **options: Any) -> None:
    """Solve and certify a model, or draw a figure."""
    check_positive("--seed", seed, 0)
    if problem == "figure":
        from tightframe.theory.figures import draw_figure

        draw_figure(name, seed, out)
        return
    if name is not None:
        raise ConfigError(f"unexpected argument {name!r}; only `theory figure` takes a NAME")
    from tightframe.theory.describe import describe

    shape = {key: options.pop(key) for key in ("counts", "classes", "samples", "dim")}
    describe(make_problem(problem, **shape, options=options), seed, plot)
