"""What the language-model study found, as Markdown and as a figure."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable
from pathlib import Path

from studies._tables import BySeed, last, markdown, minus, ratios, timing
from studies.language_model_network import VARIANTS
from tightframe.errors import DataFileError, require_extra
from tightframe.report.charts import PALETTE, STYLE
from tightframe.report.history import estimate
from tightframe.runs import RunDirectory

BASELINE, NO_FF = "baseline", "no-ff"
BITS = "bits_per_byte"
# Marker: which matrices are not learned from the usual start. Colour: what they are.
LOOKS = {
    BASELINE: ("o", 6),
    NO_FF: ("X", 6),
    "deeper-no-ff": ("P", 6),
    "half-ff": ("s", 6),
    "w1": ("^", 0),
    "w2": ("v", 0),
    "both": ("D", 0),
    "orthogonal-w2": ("v", 1),
    "orthogonal-both": ("D", 1),
    "gaussian-w2": ("v", 2),
    "gaussian-both": ("D", 2),
    "aligned-w2": ("v", 3),
    "aligned-both": ("D", 3),
    "simplex-init-trainable": ("o", 0),
    "orthogonal-init-trainable": ("o", 1),
    "gaussian-init-trainable": ("o", 2),
    "w2-scalar": ("v", 5),
}
CAPTION = (
    "Bits per byte and what is derived from it: mean ± 95 % interval over seeds, differences and shares seed by seed. "
    "FF kept: (no-ff − x) / (no-ff − baseline). Times: median. Trainable parameters and optimiser state: at the end."
)


def variants_of(directory: RunDirectory) -> list[str]:
    """Return the variants that were run, in the study's order."""
    return [*(name for name in VARIANTS if name in directory.runs), *(r for r in directory.runs if r not in VARIANTS)]


def judged_by(directory: RunDirectory) -> str:
    """Return the name of the part whose bits are told.

    Raises:
        DataFileError: if none are.
    """
    splits = directory.records.where(metric=BITS).unique("split")
    if not splits:
        raise DataFileError(f"{directory.path} must hold trainings of python -m studies.language_model run, got others")
    return ", ".join(splits)


def kept(mine: BySeed, baseline: BySeed, no_ff: BySeed) -> BySeed:
    """Return, for each seed that all have, the share of what the feed-forward layers give; nan where they give 0."""
    part, whole = minus(no_ff, mine), minus(no_ff, baseline)
    return {seed: part[seed] / whole[seed] if whole[seed] else math.nan for seed in part if seed in whole}


def interval(values: Iterable[float], digits: int = 3, scale: float = 1.0) -> str:
    """Write ``mean ± half width``; a seed that diverged does not count, which is said."""
    found = estimate(scale * value for value in values)
    if not found.count:
        return "nan" if found.total else "–"
    text = f"{found.mean:.{digits}f}"
    if not math.isnan(found.half_width):
        text += f" ± {found.half_width:.{digits}f}"
    return text if found.count == found.total else f"{text} ({found.count} of {found.total})"


def step_time(directory: RunDirectory, variant: str, key: str) -> str:
    """Write the median of milliseconds a step."""
    seconds = ratios(timing(directory, variant, key), timing(directory, variant, "steps"))
    return f"{1000 * statistics.median(seconds):.1f}" if seconds else "–"


def count(values: Iterable[float]) -> str:
    """Write a number that all seeds should have in common."""
    return " / ".join(f"{value:,}" for value in dict.fromkeys(values)) or "–"


def table(directory: RunDirectory) -> str:
    """Tabulate every variant: bits, what they cost, and how they stand to the baseline."""
    baseline, no_ff = last(directory, BASELINE, BITS), last(directory, NO_FF, BITS)
    rows = []
    for variant in variants_of(directory):
        own = last(directory, variant, BITS)
        rows.append(
            [
                variant,
                str(len(own)),
                interval(own.values()),
                interval(minus(own, baseline).values()) if variant != BASELINE else "–",
                interval(kept(own, baseline, no_ff).values(), digits=0, scale=100),
                count(timing(directory, variant, "trainable_parameters").values()),
                count(timing(directory, variant, "optimizer_bytes").values()),
                step_time(directory, variant, "fit_seconds"),
                step_time(directory, variant, "cpu_seconds"),
            ]
        )
    columns = ["variant", "seeds", f"{judged_by(directory)} bits/byte", f"minus {BASELINE}", "FF kept %"]
    columns += ["trainable parameters", "optimiser bytes", "ms/step", "CPU ms/step"]
    return markdown(columns, rows)


def draw(directory: RunDirectory, path: Path) -> None:
    """Draw bits per byte against trainable parameters and against the time of a training."""
    matplotlib = require_extra("matplotlib", "cli")
    path.parent.mkdir(parents=True, exist_ok=True)
    on_cpu = {t.timing.get("device") for t in directory.trainings} == {"cpu"}
    # Other processes on the machine prolong a training, and leave the time that it had of the processors alone.
    clock, name = ("cpu_seconds", "CPU time") if on_cpu else ("fit_seconds", "time")
    axes_of = (
        ("trainable_parameters", 1e3, "trainable parameters, thousands"),
        (clock, 60.0, f"{name} of a training, minutes"),
    )
    with matplotlib.rc_context(STYLE):
        figure = require_extra("matplotlib.figure", "cli").Figure(figsize=(11, 4.6), layout="constrained")
        left, right = figure.subplots(1, 2, sharey=True)
        for axis, (key, unit, label) in zip((left, right), axes_of, strict=True):
            points = []
            for variant in variants_of(directory):
                found, costs = (
                    estimate(last(directory, variant, BITS).values()),
                    timing(directory, variant, key).values(),
                )
                if not found.count or not costs:
                    continue
                cost, (marker, color) = statistics.median(costs) / unit, LOOKS.get(variant, ("s", 4))
                points.append((cost, found.mean))
                axis.errorbar(
                    cost,
                    found.mean,
                    yerr=None if math.isnan(found.half_width) else found.half_width,
                    color=PALETTE[color],
                    marker=marker,
                    capsize=3,
                    linestyle="none",
                    label=variant,
                )
            front = pareto(points)
            axis.plot(*zip(*front, strict=True), color="#6B6B6B", linewidth=1, zorder=0, drawstyle="steps-post")
            axis.set_xlabel(label)
        left.set_ylabel(f"bits per byte, {judged_by(directory)}")
        figure.legend(*left.get_legend_handles_labels(), loc="outside right center")
        figure.savefig(path, dpi=150, metadata={"Date": None} if path.suffix == ".svg" else None)


def pareto(points: Iterable[tuple[float, float]]) -> list[tuple[float, float]]:
    """Return, by increasing cost, the points that have fewer bits than all cheaper ones."""
    front: list[tuple[float, float]] = []
    for cost, value in sorted(points):
        if not front or value < front[-1][1]:
            front.append((cost, value))
    return front
