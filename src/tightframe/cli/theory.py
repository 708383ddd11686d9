"""``tightframe theory``: an unconstrained-feature model, solved and certified."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tightframe.errors import ArgumentError, ConfigError, DimensionError, check_choice, check_positive

if TYPE_CHECKING:
    from jsonargparse import ArgumentParser

    from tightframe.ufm import Certificate, Problem, Solution

# The class of each model, and the arguments that its name decides.
PROBLEMS: dict[str, tuple[str, dict[str, Any]]] = {
    "cross-entropy": ("CrossEntropyUFM", {}),
    "mse": ("MeanSquaredUFM", {}),
    "layer-peeled": ("LayerPeeled", {}),
    "ulpm": ("ULPM", {}),
    "max-margin": ("MaxMargin", {}),
    "relu": ("ReLUImbalanced", {}),
    "deep-cross-entropy": ("DeepUFM", {"loss": "cross-entropy"}),
    "deep-mse": ("DeepUFM", {"loss": "mse"}),
}
METRICS = ("nc1.ratio", "nc2.equinorm.means", "nc2.max_angle.means", "nc2.max_angle.classifier", "nc3.distance")


def parser(text: str) -> ArgumentParser:
    """Return the parser of the command."""
    from jsonargparse import ArgumentParser

    found = ArgumentParser(
        description=f"{text}: print its closed form, its solved optimum, the certificates of both and their collapse. "
        f"PROBLEM is one of {', '.join(PROBLEMS)}",
        exit_on_error=False,
    )
    found.add_argument("problem", type=str, help="name of a model")
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
    found.add_argument("--seed", type=int, default=0, help="seed of the solver's starts")
    found.add_argument("--plot", type=Path | None, default=None, help="*.png or *.svg for the Gram matrices")
    return found


def run(problem: str, seed: int, plot: Path | None, **options: Any) -> None:
    """Solve and certify a model."""
    check_positive("--seed", seed, 0)
    shape = {key: options.pop(key) for key in ("counts", "classes", "samples", "dim")}
    describe(make_problem(problem, **shape, options=options), seed, plot)


def make_problem(
    name: str,
    counts: Sequence[int] | None,
    classes: int | None,
    samples: int,
    dim: int | None,
    options: Mapping[str, Any],
) -> Problem:
    """Return the model that the options describe.

    Args:
        name: Name of a model, one of ``PROBLEMS``.
        counts: Numbers n_k of samples, or None for ``samples`` in each of ``classes``.
        classes: Number K of classes, where there are no counts.
        samples: Samples of each class, where there are no counts.
        dim: Feature dimension d; None is K, enough for every closed form.
        options: Further arguments; those that are None are left at their defaults.

    Raises:
        ConfigError: if the model is unknown, lacks an argument or has no use for one.
        ArgumentError: if a value is outside its range.
    """
    from tightframe import ufm

    check_choice("PROBLEM", name, tuple(PROBLEMS))
    counts = _counts(counts, classes, samples)
    cls, said = getattr(ufm, PROBLEMS[name][0]), PROBLEMS[name][1]
    fields = {field.name: field for field in dataclasses.fields(cls) if field.name not in {"counts", "dim", *said}}
    takes = f"it takes {', '.join(f'--{key}' for key in ('counts', 'dim', *fields))}"
    own = {key: value for key, value in options.items() if value is not None}
    for key in own:
        if key not in fields:
            raise ConfigError(f"--{key} is not an option of {name}; {takes}")
    for key, field in fields.items():
        if field.default is dataclasses.MISSING and key not in own:
            raise ConfigError(f"{name} needs --{key}; {takes}")
    problem: Problem = cls(counts=counts, dim=len(counts) if dim is None else dim, **said, **own)
    return problem


def _counts(counts: Sequence[int] | None, classes: int | None, samples: int) -> tuple[int, ...]:
    if counts is not None:
        if classes not in (None, len(counts)):
            raise ConfigError(f"--counts are of {len(counts)} classes, but --classes is {classes}; leave either out")
        return tuple(counts)
    if classes is None:
        raise ConfigError("give --counts [n1,n2,...] or --classes K")
    check_positive("--classes", classes, 2)
    check_positive("--samples", samples)
    return (samples,) * classes


def describe(problem: Problem, seed: int, plot: Path | None = None) -> None:
    """Print closed form and solution of a model side by side, and draw their Gram matrices if ``plot`` is given."""
    from tightframe.report.charts import HeatMap, write_charts
    from tightframe.report.tables import render_rows
    from tightframe.ufm import certify

    found = dict(_points(problem, seed))
    certificates = {name: certify(problem, solution) for name, solution in found.items()}
    print(f"{problem}")  # noqa: T201  # the command's result
    render_rows(["", *found], [[label, *cells] for label, cells in _rows(found, certificates)])
    for name, solution in found.items():
        print(f"{name}: {solution.reason}")  # noqa: T201
        print(f"  certificate: {certificates[name].explanation}")  # noqa: T201
        render_rows([f"facts, {name}", ""], [[key, number(value)] for key, value in solution.facts.items()])
    if plot is not None:
        maps = [
            HeatMap(f"{name}: {title}", gram)
            for name, solution in found.items()
            for title, gram in (("class vectors, W Wᵀ", solution.gram_W), ("class means, H Hᵀ", solution.gram_H))
        ]
        write_charts(plot, maps, columns=2)
        print(f"figure: {plot}")  # noqa: T201


def _points(problem: Problem, seed: int) -> Iterator[tuple[str, Solution]]:
    """Yield the closed form, if there is one in these dimensions, and the minimum that the solver finds."""
    import torch

    from tightframe.ufm import MaxMargin, closed_form, solve

    try:
        yield "closed form", closed_form(problem)
    except (ArgumentError, DimensionError) as error:
        print(f"no closed form: {error}\n")  # noqa: T201
    if not isinstance(problem, MaxMargin):
        yield "solved", solve(problem, generator=torch.Generator().manual_seed(seed))


def _rows(found: Mapping[str, Solution], certificates: Mapping[str, Certificate]) -> Iterator[tuple[str, list[str]]]:
    """Yield label and cells of the facts of each point."""
    from tightframe.functional import registry

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
