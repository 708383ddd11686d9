"""Records by quantity, run, epoch and seed; means over seeds with their interval; curves against epochs."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

from tightframe.errors import require_extra
from tightframe.functional.registry import Described, describe
from tightframe.records import Records
from tightframe.report.names import FEATURES, MAIN_METRICS

EVALUATION_SPLITS = ("test", "validation", "train")
Key = tuple[str, str, str]


@dataclass(frozen=True)
class Estimate:
    """Mean over seeds with the half width of its 95 % Student-t interval.

    Args:
        mean: mean of the finite values; nan if there is none.
        half_width: t(0.975, n-1) s / sqrt(n); nan for fewer than two finite values.
        count: n, the number of finite values.
        total: number of values.
    """

    mean: float
    half_width: float
    count: int
    total: int


def estimate(values: Iterable[float]) -> Estimate:
    """Summarise one value a seed.

    Example:
        >>> e = estimate([0.90, 0.92, 0.94])
        >>> f"{e.mean:.2f} ± {e.half_width:.4f}"
        '0.92 ± 0.0497'
    """
    values = list(values)
    finite = [value for value in values if math.isfinite(value)]
    n = len(finite)
    if n == 0:
        return Estimate(math.nan, math.nan, 0, len(values))
    mean = math.fsum(finite) / n
    if n == 1:
        return Estimate(mean, math.nan, 1, len(values))
    deviation = math.sqrt(math.fsum((value - mean) ** 2 for value in finite) / (n - 1))
    return Estimate(mean, _t_quantile(n - 1) * deviation / math.sqrt(n), n, len(values))


_T_QUANTILES: dict[int, float] = {}


def _t_quantile(freedom: int) -> float:
    if freedom not in _T_QUANTILES:
        _T_QUANTILES[freedom] = float(require_extra("scipy.special", "cli").stdtrit(freedom, 0.975))
    return _T_QUANTILES[freedom]


class History:
    """Values by ``(split, place, metric)``, run, epoch and seed; a row replaces earlier ones of the same place.

    Example:
        >>> records = Records()
        >>> records.add("accuracy", 0.5, run="haar", epoch=1, split="test")
        >>> records.add("accuracy", 0.7, run="haar", epoch=2, split="test")
        >>> History(records).last(("test", "", "accuracy"), "haar")
        {0: 0.7}
    """

    def __init__(self, records: Records) -> None:
        self.values: dict[Key, dict[str, dict[int, dict[int, float]]]] = {}
        for row in records:
            runs = self.values.setdefault((row.split, row.place, row.metric), {})
            runs.setdefault(row.run, {}).setdefault(row.epoch, {})[row.seed] = row.value
        self.runs: list[str] = records.unique("run")

    @property
    def evaluation_split(self) -> str:
        """The split that accuracy is judged on: test, else validation, else train."""
        return next((s for s in EVALUATION_SPLITS if (s, "", "accuracy") in self.values), EVALUATION_SPLITS[0])

    def last(self, key: Key, run: str) -> dict[int, float]:
        """Return each seed's value at the last epoch that measured it."""
        epochs = self.values.get(key, {}).get(run, {})
        return {seed: value for epoch in sorted(epochs) for seed, value in epochs[epoch].items()}


@dataclass(frozen=True)
class Curve:
    """One run's estimates against epochs; ``low`` and ``high`` bound the interval, clipped to the panel."""

    run: str
    epochs: list[int]
    estimates: list[Estimate]
    low: list[float]
    high: list[float]


@dataclass(frozen=True)
class Panel:
    """Everything one small chart shows.

    Args:
        key: split, layer and metric.
        title: Metric and place.
        quantity: the metric's label, meaning and ideal.
        main: Whether it belongs to the first view.
        log: Whether its value axis is logarithmic.
        limits: range of the value axis.
        curves: one a run.
    """

    key: Key
    title: str
    quantity: Described
    main: bool
    log: bool
    limits: tuple[float, float]
    curves: list[Curve]


def panels(history: History, num_classes: int | None = None) -> list[Panel]:
    """Choose and order the charts: accuracy, the main collapse metrics, then all others of those two kinds."""
    main = [(history.evaluation_split, "", "accuracy"), ("train", "", "accuracy")]
    main += [("train", FEATURES, metric) for metric in MAIN_METRICS]
    main = [key for key in dict.fromkeys(main) if key in history.values]
    others = [key for key in history.values if key not in main and (key[1] == "" or key[:2] == ("train", FEATURES))]
    others.sort(key=lambda key: (key[1] != "", key[2], key[0]))
    made = [_panel(history, key, key in main, num_classes) for key in main + others]
    return [panel for panel in made if panel is not None]


def _panel(history: History, key: Key, main: bool, num_classes: int | None) -> Panel | None:
    shown = describe(key[2], num_classes)
    drawn: dict[str, list[tuple[int, Estimate]]] = {}
    values: list[float] = []
    for run, epochs in history.values[key].items():
        points = [(epoch, estimate(epochs[epoch].values())) for epoch in sorted(epochs)]
        drawn[run] = [(epoch, e) for epoch, e in points if e.count]
        values += [v for seeds in epochs.values() for v in seeds.values() if math.isfinite(v)]
    if not values:
        return None
    log = min(values) > 0 and shown.ideal == 0 and not shown.percent
    if shown.percent:
        values = _after_climb([point for points in drawn.values() for point in points], max(values))
    limits = _limits(values, log, None if shown.percent else shown.ideal)
    split = key[0] + " " if key[1] == "" and key[0] else ""
    title = (split + shown.label)[:1].upper() + (split + shown.label)[1:]
    curves = [_curve(run, drawn[run], limits) for run in history.runs if drawn.get(run)]
    return Panel(key, title, shown, main, log, limits, curves)


def _after_climb(points: list[tuple[int, Estimate]], top: float) -> list[float]:
    """Leave out the climb from chance: it would press all that is worth comparing against the top."""
    last = max(epoch for epoch, _ in points)
    means = [e.mean for epoch, e in points if epoch > last / 10] or [e.mean for _, e in points]
    return [min(*means, top - 0.03), top]


def _limits(values: list[float], log: bool, ideal: float | None) -> tuple[float, float]:
    """Span the seeds' values rather than the intervals: with two seeds an interval is thirteen times as wide."""
    if log:
        low, high = math.log10(min(values)), math.log10(max(values))
        margin = max(0.08 * (high - low), 0.05)
        return 10 ** (low - margin), 10 ** (high + margin)
    if ideal is not None:
        values = [*values, ideal]
    low, high = min(values), max(values)
    margin = 0.06 * (high - low) or max(abs(high) * 0.01, 1e-12)
    return low - margin, high + margin


def _curve(run: str, points: list[tuple[int, Estimate]], limits: tuple[float, float]) -> Curve:
    def clip(value: float) -> float:
        return min(max(value, limits[0]), limits[1])

    widths = [0.0 if math.isnan(e.half_width) else e.half_width for _, e in points]
    low = [clip(e.mean - width) for (_, e), width in zip(points, widths, strict=True)]
    high = [clip(e.mean + width) for (_, e), width in zip(points, widths, strict=True)]
    return Curve(run, [epoch for epoch, _ in points], [e for _, e in points], low, high)
