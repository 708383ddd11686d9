"""Which metrics to compute together: everything that applies, or what one published code computes."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from torch import Tensor

from tightframe._checks import ArgumentError
from tightframe.functional import collapse as c
from tightframe.functional import geometry as g
from tightframe.functional.moments import ClassMoments

OfMoments = Callable[[ClassMoments], Tensor]
OfClassifier = Callable[[ClassMoments, Tensor], Tensor]

_VECTOR_METRICS: dict[str, Callable[[ClassMoments | Tensor], Tensor]] = {
    "nc2.equinorm": g.nc2_equinorm,
    "nc2.equiangularity": g.nc2_equiangularity,
    "nc2.max_angle": g.nc2_max_angle,
    "nc2.gram": g.nc2_gram,
    "nc2.etf_gap": g.nc2_etf_gap,
    "nc2.min_separation": g.nc2_min_separation,
    "gnc2.log": g.gnc2,
}


def _of_rows(metric: Callable[[Tensor], Tensor]) -> OfClassifier:
    return lambda moments, weight: metric(c.rows_of_present(moments, weight))


def _of_sample_centered(metric: Callable[[Tensor], Tensor]) -> OfMoments:
    return lambda moments: metric(moments.centered_means("sample"))


# Metrics of the moments; those of the second table need the scatter, those of the third the classifier's weight.
_DEFAULT: tuple[dict[str, OfMoments], dict[str, OfMoments], dict[str, OfClassifier]] = (
    {
        "nc1.ratio": partial(c.nc1, variant="ratio"),
        "nc1.rank": c.between_class_rank,
        "cdnv": c.cdnv,
        **{f"{name}.means": metric for name, metric in _VECTOR_METRICS.items()},
    },
    {"nc1.pinv": c.nc1, "vci": c.vci},
    {
        **{f"{name}.classifier": _of_rows(metric) for name, metric in _VECTOR_METRICS.items()},
        "nc3.distance": c.nc3_distance,
        "nc3.gram": c.nc3_gram,
        "nc3.alignment": c.nc3_alignment,
        "nc0": _of_rows(g.nc0),
    },
)

_PRESETS: dict[str, tuple[dict[str, OfMoments], dict[str, OfMoments], dict[str, OfClassifier]]] = {
    "papyan2020": (
        {
            "nc2.equinorm.means": g.nc2_equinorm,
            "nc2.equiangularity.means": g.nc2_equiangularity,
            "nc2.max_angle.means": g.nc2_max_angle,
        },
        {"nc1.pinv": c.nc1},
        {
            "nc2.equinorm.classifier": _of_rows(g.nc2_equinorm),
            "nc2.equiangularity.classifier": _of_rows(g.nc2_equiangularity),
            "nc2.max_angle.classifier": _of_rows(g.nc2_max_angle),
            "nc3.distance": c.nc3_distance,
        },
    ),
    "papyan_notebook": (
        {"nc2.equinorm.means": g.nc2_equinorm, "nc2.max_angle.means": g.nc2_max_angle},
        {"nc1.pinv_sum": partial(c.nc1, variant="pinv_sum")},
        {
            "nc2.equinorm.classifier": _of_rows(g.nc2_equinorm),
            "nc2.max_angle.classifier": _of_rows(g.nc2_max_angle),
            "nc3.distance": c.nc3_distance,
        },
    ),
    "zhu2021": (
        {},
        {"nc1.pinv": partial(c.nc1, weighting="sample")},
        {"nc2.gram.classifier": _of_rows(g.nc2_gram), "nc3.gram": partial(c.nc3_gram, weighting="sample")},
    ),
    "markou2024": (
        {
            "nc2.equinorm.means": _of_sample_centered(g.nc2_equinorm),
            "nc2.etf_distance.means": _of_sample_centered(partial(g.nc2_etf_gap, variant="squared")),
        },
        {"nc1.pinv": partial(c.nc1, weighting="sample"), "vci": partial(c.vci, weighting="sample")},
        {
            "nc2.equinorm.classifier": _of_rows(g.nc2_equinorm),
            "nc2.etf_distance.classifier": _of_rows(partial(g.nc2_etf_gap, variant="squared")),
            "nc2.gram.classifier": _of_rows(g.nc2_gram),
            "nc3.gram": partial(c.nc3_gram, weighting="sample"),
        },
    ),
    "rhubarbwu": (
        {
            "nc1.ratio": partial(c.nc1, variant="ratio"),
            "cdnv": c.cdnv,
            "nc2.gram.means": g.nc2_gram,
            "gnc2.log.means": g.gnc2,
            "gnc2.log_variance.means": partial(g.gnc2, statistic="variance"),
        },
        {"nc1.pinv": c.nc1},
        {"nc3.gram": c.nc3_gram, "nc3.alignment_variance": partial(c.nc3_alignment, statistic="variance")},
    ),
}

PRESETS = tuple(_PRESETS)


def collapse_metrics(
    moments: ClassMoments, weight: Tensor | None = None, bias: Tensor | None = None, *, preset: str | None = None
) -> dict[str, Tensor]:
    """Compute collapse metrics by id.

    Args:
        moments: of the classifier's input; without scatter, ``nc1.pinv`` and ``vci`` are left out.
        weight: ``(K, d)`` of the classifier; without it, so are the metrics that need it.
        bias: ``(K,)`` of the classifier, if it has one.
        preset: None for everything that applies, or the metrics of one published code, in its conventions:
            ``papyan2020`` (the paper), ``papyan_notebook`` (its authors' code), ``zhu2021`` (centred on the mean over
            samples), ``markou2024`` (the same, and distances to the nearest ETF) or ``rhubarbwu`` (the package of Wu &
            Papyan).

    Returns:
        From metric id to a 0-d float64 tensor.

    Raises:
        ArgumentError: if the preset is unknown.

    Example:
        >>> import torch
        >>> moments = ClassMoments.from_samples(torch.eye(3), torch.arange(3), 3)
        >>> round(collapse_metrics(moments)["nc2.gram.means"].item(), 12)
        0.0
    """
    if preset is not None and preset not in _PRESETS:
        raise ArgumentError(f"preset must be None or one of {', '.join(_PRESETS)}, got {preset!r}")
    of_moments, of_scatter, of_classifier = _DEFAULT if preset is None else _PRESETS[preset]
    values = {name: metric(moments) for name, metric in of_moments.items()}
    if moments.has_scatter:
        values |= {name: metric(moments) for name, metric in of_scatter.items()}
    if weight is not None:
        values |= {name: metric(moments, weight) for name, metric in of_classifier.items()}
        if preset in (None, "zhu2021", "markou2024"):
            weighting = "class" if preset is None else "sample"
            values["bias_collapse"] = c.bias_collapse(moments, weight, bias, weighting=weighting)
    return values
