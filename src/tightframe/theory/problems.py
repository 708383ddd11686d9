"""Models by name, as the command line calls them."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from tightframe.errors import ConfigError, check_choice, check_positive

if TYPE_CHECKING:  # the command line needs the names before it needs torch
    from tightframe.ufm.problems import Problem

# The class of each, and the arguments that its name says.
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


def make_problem(
    name: str,
    counts: Sequence[int] | None,
    classes: int | None,
    samples: int,
    dim: int | None,
    options: Mapping[str, Any],
) -> Problem:
    """Return the model that a command line describes.

    Args:
        name: of ``PROBLEMS``.
        counts: ``n_k``, or None for ``samples`` in each of ``classes``.
        classes: K, where there are no counts.
        samples: of each class, where there are no counts.
        dim: d; None is K, enough for every closed form.
        options: further arguments; those that are None are left at their defaults.

    Raises:
        ConfigError: if the model is unknown, lacks an argument or has no use for one.
        ArgumentError: if a value is outside its range.
    """
    from tightframe.ufm import problems

    check_choice("PROBLEM", name, tuple(PROBLEMS))
    counts = _counts(counts, classes, samples)
    cls, said = getattr(problems, PROBLEMS[name][0]), PROBLEMS[name][1]
    fields = {field.name: field for field in dataclasses.fields(cls) if field.name not in {"counts", "dim", *said}}
    takes = f"it takes {', '.join(f'--{key}' for key in ('counts', 'dim', *fields))}"
    own = {key: value for key, value in options.items() if value is not None}
    for key in own:
        if key not in fields:
            raise ConfigError(f"{name} takes no --{key}; {takes}")
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
