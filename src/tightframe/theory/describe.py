"""Print a model: its closed form, its solved optimum, the certificates of both and their collapse."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

import torch

from tightframe.errors import ArgumentError, DimensionError
from tightframe.functional import registry
from tightframe.report.charts import HeatMap, write_charts
from tightframe.report.tables import render_rows
from tightframe.ufm import Certificate, MaxMargin, Problem, Solution, certify, closed_form, solve

METRICS = ("nc1.ratio", "nc2.equinorm.means", "nc2.max_angle.means", "nc2.max_angle.classifier", "nc3.distance")


def describe(problem: Problem, seed: int, plot: Path | None = None) -> None:
    """Print what theory and solver say of a model, side by side; draw the geometry if wanted.

    Args:
        problem: the model.
        seed: of the solver's starts.
        plot: ``*.png`` or ``*.svg`` for the Gram matrices.
    """
    found = dict(_points(problem, seed))
    certificates = {name: certify(problem, solution) for name, solution in found.items()}
    print(f"{problem}")  # noqa: T201  # the command's result
    render_rows(["", *found], [[label, *cells] for label, cells in _rows(found, certificates)])
    for name, solution in found.items():
        print(f"{name}: {solution.reason}")  # noqa: T201
        print(f"  certificate: {certificates[name].explanation}")  # noqa: T201
        render_rows([f"facts, {name}", ""], [[key, number(value)] for key, value in solution.facts.items()])
    if plot is not None:
        write_charts(plot, [chart for name, solution in found.items() for chart in _maps(name, solution)], columns=2)
        print(f"figure: {plot}")  # noqa: T201


def _points(problem: Problem, seed: int) -> Iterator[tuple[str, Solution]]:
    """Yield the closed form, if there is one in that many dimensions, and what the solver finds of a minimum."""
    try:
        yield "closed form", closed_form(problem)
    except (ArgumentError, DimensionError) as error:
        print(f"no closed form: {error}\n")  # noqa: T201
    if not isinstance(problem, MaxMargin):
        yield "solved", solve(problem, generator=torch.Generator().manual_seed(seed))


def _rows(found: Mapping[str, Solution], certificates: Mapping[str, Certificate]) -> Iterator[tuple[str, list[str]]]:
    """Yield label and cells of what is known of each point."""

    def of_certificates(attribute: str) -> list[str]:
        return [number(getattr(certificate, attribute)) for certificate in certificates.values()]

    yield "objective", of_certificates("loss")
    yield "lower bound", of_certificates("lower_bound")
    yield "relative gap", of_certificates("relative_gap")
    yield "global minimum", ["proved" if c.is_global() else "not proved" for c in certificates.values()]
    yield "stationarity", of_certificates("stationarity")
    yield "operator norm of the slope", of_certificates("operator_norm")
    yield "sigma", of_certificates("sigma")
    yield (
        "negative curvature",
        ["none found" if (w := c.witness) is None else number(w.curvature) for c in certificates.values()],
    )
    yield "‖W‖²", [number(s.W.square().sum().item()) for s in found.values()]
    yield "‖H‖², all samples", [number((s.moments.count @ s.gram_H.diagonal()).item()) for s in found.values()]
    collapse = [solution.collapse() for solution in found.values()]
    for metric in METRICS:
        if any(metric in values for values in collapse):
            label = registry.describe(metric).label
            yield label, [number(values[metric]) if metric in values else "–" for values in collapse]


def number(value: float) -> str:
    """Write a number with ten digits, which show where two results part."""
    return f"{value:.10g}"


def _maps(name: str, solution: Solution) -> list[HeatMap]:
    return [
        HeatMap(f"{name}: class vectors, W Wᵀ", solution.gram_W),
        HeatMap(f"{name}: class means, H Hᵀ", solution.gram_H),
    ]
