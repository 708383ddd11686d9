"""Presets, selections, values and descriptions of the rows of the table of metrics."""

from __future__ import annotations

import difflib
import inspect
import itertools
import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache, partial
from typing import Any

from torch import Tensor

from tightframe.errors import ArgumentError
from tightframe.functional.collapse import vectors_of_present
from tightframe.functional.geometry import centered_vectors
from tightframe.functional.rows import BOTH, METRICS, SUFFIXES, Metric
from tightframe.moments import ClassMoments

NEEDS = ("means", "scatter", "weight", "bias", "frame", "samples", "logits", "distances")


@dataclass(frozen=True)
class Row:
    """A metric chosen, with the options of its function.

    Args:
        id: Id under which its value is recorded.
        metric: Metric of this very id, without alternatives.
        options: Keyword arguments of the function.
    """

    id: str
    metric: Metric
    options: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Described(Metric):
    """A metric as shown for one number of classes: its ideal is a number or None."""

    ideal: float | None = None


Entry = tuple[str, Mapping[str, Any]]
Preset = str | Sequence[str | Entry]


@cache
def _expand(template: str) -> tuple[str, ...]:
    """Return the ids of a template; for any number they have the letter k."""
    parts = re.split(r"\{(.*?)\}", template)
    return tuple("".join(choice) for choice in itertools.product(*(part.split(",") for part in parts)))


_ROWS = {id: metric for metric in METRICS for id in _expand(metric.id)}


@cache
def _find(id: str) -> Metric | None:
    """Return the row of an id. A choice among alternatives changes its label, needs and function."""
    metric = _ROWS.get(re.sub(r"@\d+", "@k", id))
    if metric is None or metric.id == id:
        return metric
    word, needs, function = id.rpartition(".")[2], metric.needs, metric.function
    if word == "classifier":
        needs = frozenset({"weight"})
    elif word == "means" and function:
        function = partial(_of_means, function)
    label = metric.label + "".join(re.findall(r"@\d+", id)) + SUFFIXES.get(word, "")
    return replace(metric, id=id, label=label, needs=needs, function=function)


def _of_means(function: Callable[..., Tensor], moments: ClassMoments, weighting: str = "class") -> Tensor:
    """Apply a function of class vectors to centred class means."""
    return function(centered_vectors(moments, weighting))


def _known(id: str) -> Metric:
    """Return the row of an id that this package computes from features."""
    metric = _find(id)
    if metric is None or metric.function is None:
        computed = [name for name, row in _ROWS.items() if row.function]
        near = [name for name in computed if name.startswith(f"{id}.")] or difflib.get_close_matches(str(id), computed)
        hint = f"; near it are {', '.join(near)}" if near else ""
        why = "is no metric id" if metric is None else "is not computed from features"
        raise ArgumentError(f"preset must hold ids of metrics, {id!r} {why}{hint}; docs/metrics.md lists them")
    return metric


def _preset(ids: str, **options: Any) -> list[Entry]:
    """Return ids, each with those of the options that its function takes."""
    entries: list[Entry] = []
    for id in itertools.chain.from_iterable(map(_expand, ids.split())):
        taken = inspect.signature(_known(id).function or _known).parameters
        entries.append((id, {name: value for name, value in options.items() if name in taken}))
    return entries


def _usual(name: str) -> list[Entry]:
    """Return the ids whose rows name this preset; one for layers has no classifier."""
    entries = _preset(" ".join(metric.id for metric in METRICS if name in metric.presets))
    return [entry for entry in entries if name != "layer" or "weight" not in _known(entry[0]).needs]


PRESETS: Mapping[str, list[Entry]] = {
    "default": _usual("default"),
    "layer": _usual("layer"),
    "papyan2020": _preset(
        f"nc1.pinv nc2.{{equinorm,equiangularity,max_angle}}{BOTH} nc3.distance ncc.mismatch accuracy"
    ),
    "papyan_notebook": _preset(f"nc1.pinv_sum nc2.{{equinorm,max_angle}}{BOTH} nc3.distance ncc.mismatch accuracy"),
    "zhu2021": _preset("nc1.pinv nc2.gram.classifier nc3.gram bias_collapse accuracy", weighting="sample"),
    "markou2024": _preset(
        f"nc1.pinv vci nc2.{{equinorm,etf_distance}}{BOTH} nc2.gram.classifier nc3.gram bias_collapse "
        "ncc.mismatch cosine_margin accuracy",
        weighting="sample",
    ),
    "rhubarbwu": _preset(
        "nc1.pinv nc1.ratio cdnv nc2.gram.means gnc2.{log,log_variance,distance,distance_variance}.means nc3.gram "
        "nc3.dot_variance nc4.agreement_without_bias"
    ),
}


def select(preset: Preset, have: Collection[str]) -> list[Row]:
    """Return the rows that can be computed from given inputs.

    Args:
        preset: Name of a preset, or a list of metric ids, each alone or in a pair with a mapping of options. An id may
            hold alternatives in braces.
        have: Names of the inputs, see ``needs`` of :class:`Metric`; with ``weight`` comes a ``bias``, perhaps None.

    Raises:
        ArgumentError: if a preset or an id is not known.

    Example:
        >>> [row.id for row in select("zhu2021", {"means", "weight"})]
        ['nc2.gram.classifier', 'nc3.gram', 'bias_collapse']
        >>> select(["nc1.ratio"], {"means"})[0].metric.source
        'Tirer, Huang & Niles-Weed 2023'
    """
    if isinstance(preset, str):
        if preset not in PRESETS:
            near = "".join(f"; did you mean {name!r}?" for name in difflib.get_close_matches(preset, PRESETS, n=1))
            raise ArgumentError(
                f"preset must be a list of metric ids or one of {', '.join(PRESETS)}, got {preset!r}{near}"
            )
        preset = PRESETS[preset]
    there = {*have, "bias"} if "weight" in have else set(have)
    rows = []
    for entry in preset:
        template, options = (entry, {}) if isinstance(entry, str) else entry
        for id in _expand(template) if options else ():
            taken = [*inspect.signature(_known(id).function or select).parameters]
            if unknown := set(options) - set(taken):
                raise ArgumentError(f"options of {id} must be among {taken[1:]}, got {sorted(unknown)}")
        rows += [Row(id, _known(id), options) for id in _expand(template) if _known(id).needs <= there]
    return rows


def evaluate(
    rows: Iterable[Row],
    moments: ClassMoments,
    *,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    frame: Tensor | None = None,
) -> dict[str, Tensor]:
    """Compute the rows that need no samples.

    Args:
        rows: Rows that :func:`select` returned; rows that need samples are skipped, see
            :class:`tightframe.functional.samples.Judge`.
        moments: Moments of the layer.
        weight: Weight of the classifier ``(K, d)``; None if no row needs it.
        bias: Bias of the classifier ``(K,)``, if it has one.
        frame: Fixed class vectors ``(K, d)``; None if no row needs them.

    Returns:
        From the id of the row to a 0-d float64 tensor.
    """
    rows = [row for row in rows if "samples" not in row.metric.needs]
    given: dict[str, Any] = {"means": moments, "weight": weight, "bias": bias, "frame": frame}
    if any("weight" in row.metric.needs for row in rows):
        given["weight"] = vectors_of_present(moments, weight)  # type: ignore[arg-type]  # None is an error there
    several: dict[Any, Mapping[str, Tensor]] = {}  # values by function, of those that return more than one
    values: dict[str, Tensor] = {}
    for row in rows:
        needs, function = row.metric.needs, row.metric.function
        if function is None:
            continue
        arguments = [given[name] for name in given if name in needs]
        found = several.get(function) or function(*arguments, **row.options)
        if isinstance(found, Mapping):
            several[function] = found
        values[row.id] = found[row.id] if isinstance(found, Mapping) else found
    return values


def collapse_metrics(
    moments: ClassMoments,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    *,
    preset: Preset | None = None,
) -> dict[str, Tensor]:
    """Compute the collapse metrics that need no samples, by id.

    Args:
        moments: Moments of the classifier's input; without scatter, ``nc1.pinv`` and ``vci`` are left out.
        weight: Weight of the classifier ``(K, d)``; without it the metrics that need it are left out.
        bias: Bias of the classifier ``(K,)``, if it has one.
        preset: Metrics to compute: None for the usual ones; a list of metric ids; or the metrics of one published code,
            in its conventions: ``papyan2020`` (the paper), ``papyan_notebook`` (its authors' code), ``zhu2021``
            (centred on the mean over samples), ``markou2024`` (the same, and distances to the nearest ETF) or
            ``rhubarbwu`` (the package of Wu & Papyan).

    Returns:
        From metric id to a 0-d float64 tensor.

    Raises:
        ArgumentError: if the preset or an id is unknown.

    Example:
        >>> import torch
        >>> moments = ClassMoments.from_samples(torch.eye(3), torch.arange(3), 3)
        >>> round(collapse_metrics(moments)["nc2.gram.means"].item(), 12)
        0.0
    """
    have = {"means"} | ({"scatter"} if moments.has_scatter else set()) | ({"weight"} if weight is not None else set())
    return evaluate(select("default" if preset is None else preset, have), moments, weight=weight, bias=bias)


def describe(id: str, num_classes: int | None = None) -> Described:
    """Describe a metric id; an unknown id is its own label.

    Args:
        id: Metric id such as ``nc1.pinv``.
        num_classes: Number of classes K, on which some ideals depend.

    Example:
        >>> describe("nc2.gram.classifier").label
        'NC2 Gram, classifier'
        >>> describe("cosine_margin", num_classes=5).ideal
        1.25
    """
    known = _find(id) or Metric(id, frozenset(), id)
    ideal = known.ideal
    if callable(ideal):
        ideal = ideal(num_classes) if num_classes is not None and num_classes > 1 else None
    return Described(**{**vars(known), "ideal": ideal})


def table() -> str:
    """Return the tables of docs/metrics.md, in Markdown."""
    sections: dict[str, list[str]] = {}
    for metric in METRICS:
        title = next(title for need, title in _SECTIONS.items() if need in metric.needs or not need)
        ideal = metric.ideal
        text = ideal.__doc__.rstrip(".") if callable(ideal) and ideal.__doc__ else "" if ideal is None else f"{ideal:g}"
        needs = "means or weight" if BOTH in metric.id else ", ".join(n for n in NEEDS if n in metric.needs)
        cells = [f"`{metric.id}`", metric.formula or metric.meaning, text, metric.source, needs]
        sections.setdefault(title, []).append(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |")
    head = "| id | formula | at collapse | source | needs |\n|---|---|---|---|---|\n"
    return "\n\n".join(f"## {title}\n\n{head}" + "\n".join(rows) for title, rows in sections.items())


_SECTIONS = {
    "distances": "From a hierarchy of classes",
    "frame": "From fixed class vectors",
    "samples": "From a second look at the samples",
    "means": "From the moments of one layer",
    "weight": "From the moments of one layer",
    "": "What a training logs",
}
