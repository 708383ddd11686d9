"""Records by quantity, run, epoch and seed; means over seeds with their interval; curves against epochs."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache

from tightframe.errors import require_extra
from tightframe.functional.registry import Described, describe
from tightframe.records import Records
from tightframe.report.charts import Chart, Line

FEATURES = "features"
MAIN_METRICS = (
    "nc1.pinv",
    "cdnv",
    "nc2.equinorm.means",
    "nc2.max_angle.means",
    "nc3.distance",
    "nc4.agreement",
)
# Of the many numbers that a hierarchy gives, those that a leaderboard has room for.
MAIN_SEVERITY = ("mistake_severity", "hierarchical_distance@1", "hierarchical_distance@5", "hops")
EVALUATION_SPLITS = ("test", "validation", "train")
Key = tuple[str, str, str]


def is_detail(metric: str) -> bool:
    """Return whether a metric of a hierarchy has no place on a leaderboard."""
    return "distances" in describe(metric).needs and metric not in MAIN_SEVERITY


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


@cache
def _t_quantile(freedom: int) -> float:
    return float(require_extra("scipy.special", "cli").stdtrit(freedom, 0.975))


class History:
    """Values by ``(split, place, metric)``, run, epoch and seed; a row replaces earlier ones of the same place.

    Each seed's last epoch is in ``last_epochs``, by run.

    Example:
        >>> records = Records()
        >>> records.add("accuracy", 0.5, run="haar", epoch=1, split="test")
        >>> records.add("accuracy", 0.7, run="haar", epoch=2, split="test")
        >>> History(records).last(("test", "", "accuracy"), "haar")
        {0: 0.7}
    """

    def __init__(self, records: Records) -> None:
        self.values: dict[Key, dict[str, dict[int, dict[int, float]]]] = {}
        self.last_epochs: dict[str, dict[int, int]] = {}
        for row in records:
            runs = self.values.setdefault((row.split, row.place, row.metric), {})
            runs.setdefault(row.run, {}).setdefault(row.epoch, {})[row.seed] = row.value
            seeds = self.last_epochs.setdefault(row.run, {})
            seeds[row.seed] = max(row.epoch, seeds.get(row.seed, 0))
        self.runs = list(self.last_epochs)

    @property
    def evaluation_split(self) -> str:
        """The split that accuracy is judged on: test, else validation, else train."""
        return next((s for s in EVALUATION_SPLITS if (s, "", "accuracy") in self.values), EVALUATION_SPLITS[0])

    def last(self, key: Key, run: str) -> dict[int, float]:
        """Return each seed's value at the last epoch that measured it."""
        epochs = self.values.get(key, {}).get(run, {})
        return {seed: value for epoch in sorted(epochs) for seed, value in epochs[epoch].items()}

    def estimates(self, key: Key, run: str, scale: float = 1) -> dict[int, Estimate]:
        """Return the mean over seeds, times ``scale``, at each epoch, in order, that has a finite value."""
        epochs = self.values.get(key, {}).get(run, {})
        found = {epoch: estimate(scale * value for value in epochs[epoch].values()) for epoch in sorted(epochs)}
        return {epoch: each for epoch, each in found.items() if each.count}


@dataclass(frozen=True)
class Panel:
    """A chart against epochs, with what the page says about it.

    Args:
        key: split, layer and metric.
        meaning: Meaning of the metric.
        ideal: Value under exact collapse, in the units of the chart; None if there is none.
        main: Whether it belongs to the first view.
        chart: One line a run; values are in percent where the metric is a share.
    """

    key: Key
    meaning: str
    ideal: float | None
    main: bool
    chart: Chart


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
    scale = 100 if shown.percent else 1
    values = [scale * v for run in history.values[key].values() for seeds in run.values() for v in seeds.values()]
    values = [value for value in values if math.isfinite(value)]
    if not values:
        return None
    estimates = {run: found for run in history.runs if (found := history.estimates(key, run, scale))}
    lines = [
        Line(run, list(found), [e.mean for e in found.values()], run, width=[e.half_width for e in found.values()])
        for run, found in estimates.items()
    ]
    log = min(values) > 0 and shown.ideal == 0 and not shown.percent
    if shown.percent:
        means = [(epoch, e.mean) for found in estimates.values() for epoch, e in found.items()]
        values = _after_climb(means, max(values))
    ideal = None if shown.ideal is None else scale * shown.ideal
    limits = _limits(values, log, None if shown.percent else ideal)
    chart = Chart(title_of(key, shown), "epoch", "", lines, log_y=log, limits=limits)
    return Panel(key, shown.meaning, ideal, main, chart)


def title_of(key: Key, quantity: Described) -> str:
    """Return the label of a metric, with its split where that is not plain, and the percent sign."""
    label = f"{key[0]} {quantity.label}".strip() if key[1] == "" else quantity.label
    return label[:1].upper() + label[1:] + (" %" if quantity.percent else "")


def _after_climb(points: list[tuple[int, float]], top: float) -> list[float]:
    """Leave out the climb from chance: it would press all that is worth comparing against the top."""
    last = max(epoch for epoch, _ in points)
    means = [mean for epoch, mean in points if epoch > last / 10] or [mean for _, mean in points]
    return [min(*means, top - 3), top]


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
