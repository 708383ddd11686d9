"""Figures of training without any penalty: the unconstrained layer-peeled model, and networks without weight decay."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from tightframe.ufm.closed_form import closed_form
from tightframe.ufm.forms.common import centering
from tightframe.ufm.forms.margin import etf_flow_scale
from tightframe.ufm.objective import row_weights
from tightframe.ufm.problems import ULPM, MaxMargin
from torch import Tensor

from studies.theory.networks import Network, Shape, balanced_digits, unregularised
from tightframe.report.charts import Chart, HeatMap, Line
from tightframe.ufm.certify import certify
from tightframe.ufm.flow import LogTimeFlow, Trajectory
from tightframe.ufm.solution import Solution

MODELS = (ULPM((10,) * 4, dim=8), ULPM((5,) * 10, dim=10))
SHAPES = {"batch norm": Shape(), "plain": Shape(batch_norm=False)}
_LAST, _DECADE = 1e100, 12
_PANELS = {
    "spread of norms": {
        "class means": "nc2.equinorm.means",
        "classifier": "nc2.equinorm.classifier",
        "classifier, centred": "nc2.equinorm.centred",
    },
    "within-class variation": {"NC1, ratio of traces": "nc1.ratio"},
    "cosines: mean of |cos + 1/(K−1)|": {
        "class means": "nc2.max_angle.means",
        "classifier": "nc2.max_angle.classifier",
        "classifier, centred": "nc2.max_angle.centred",
    },
    "self-duality": {"squared distance": "nc3.distance"},
}
ABOVE, CERTIFIED, SCALE = "above", "certified", "scale"


@dataclass(frozen=True)
class Course:
    """What is measured of points at times.

    Args:
        problem: that the points are of.
        times: t ``(T,)``, each > 1.
        losses: ``(T,)``.
        values: ``(T,)`` by name; see :func:`measure`.
    """

    problem: ULPM
    times: list[float]
    losses: list[float]
    values: Mapping[str, list[float]]


def measure(problem: ULPM, W: Tensor, H: Tensor) -> dict[str, float]:
    r"""Return collapse and distance from the largest margin of a point, by name.

    Beside the collapse metrics: those of the classifier without its mean, ``*.centred``; ``above``, by how much
    :math:`p = \lVert W\rVert\,\lVert H\rVert / \text{margin}` exceeds its minimum, relative to it; ``certified``, the
    bound p/D - 1 of that by the softmax weights alone; both nan where a sample is misclassified; ``scale``, the a of
    the logits' projection :math:`a P`.

    Args:
        problem: balanced.
        W: ``(K, d)``.
        H: ``(K, d)`` or ``(N, d)``, class by class.
    """
    # A network need not share the norm between W and H as the flow does; logits and margins do not see the split.
    prices = row_weights(problem, H)[1]
    ratio = ((prices.sqrt().unsqueeze(1) * H).norm() / W.norm()).sqrt()
    point = Solution(problem, ratio * W, H / ratio, None, math.nan, False, "")
    certificate = certify(problem, point)
    values = point.collapse()
    centred = Solution(problem, W - W.mean(dim=0), H, None, math.nan, False, "").collapse()
    for metric in ("nc2.equinorm", "nc2.max_angle"):
        values[f"{metric}.centred"] = centred[f"{metric}.classifier"]
    price, bound = certificate.loss, certificate.facts["dual.softmax"]
    least = closed_form(MaxMargin(problem.counts, problem.dim)).loss
    values[ABOVE], values[CERTIFIED] = (price / of - 1 if math.isfinite(price) else math.nan for of in (least, bound))
    P = centering(problem.num_classes)
    values[SCALE] = ((point.class_means @ point.W.T) * P).sum().item() / (problem.num_classes - 1)
    return values


def flow_course(problem: ULPM, seed: int, final_time: float = _LAST, points: int = 40) -> tuple[Course, Trajectory]:
    """Return the course of gradient flow from a random start, features of all samples drawn, and the whole flow.

    Args:
        problem: balanced.
        seed: of the start.
        final_time: > 10.
        points: at most so many times, nearly equidistant in log log t, from t = 10 on.
    """
    generator = torch.Generator().manual_seed(seed)
    flow = LogTimeFlow(final_time, records=10 * points, per_sample=True, generator=generator).run(problem)
    ages = flow.times[1:].log()
    wanted = torch.linspace(math.log(math.log(10.0)), math.log(math.log(final_time)), points).exp()
    chosen = sorted({int((ages - age).abs().argmin()) + 1 for age in wanted.tolist()})
    rows = [measure(problem, flow.W[i], flow.H[i]) for i in chosen]
    return Course(problem, flow.times[chosen].tolist(), flow.losses[chosen].tolist(), _columns(rows)), flow


def network_course(shape: Shape, seed: int, times: Sequence[float], per_class: int = 50) -> Course:
    """Return the course of a network that is trained on digits without weight decay, in float64.

    Args:
        shape: of the network.
        seed: of its draw.
        times: increasing; see :func:`studies.theory.networks.unregularised`.
        per_class: samples.
    """
    images, labels = balanced_digits(per_class)
    images, problem = images.double(), ULPM((per_class,) * 10, shape.width)
    network = Network(shape, images.shape[1], seed).double()
    reached, rows = [], []
    for moment in unregularised(network, images, labels, times):
        reached.append(moment)
        rows.append(measure(problem, *network.point(images)))
    return Course(problem, [time for time, _ in reached], [loss for _, loss in reached], _columns(rows))


def _columns(rows: Sequence[Mapping[str, float]]) -> dict[str, list[float]]:
    return {name: [row[name] for row in rows] for name in rows[0]}


def ulpm_flow(seed: int) -> list[Chart | HeatMap]:
    """The ULPM along gradient flow: collapse, certified gap and exact law against log log t (Ji et al. 2022, fig. 2).

    A random start of every sample's feature; to t = 1e100, with t = 1e12 marked.
    """
    courses = {f"K = {problem.num_classes}": flow_course(problem, seed) for problem in MODELS}
    name, (course, _) = next(iter(courses.items()))
    x = ages(course.times)
    charts: list[Chart | HeatMap] = []
    for title, metrics in _PANELS.items():
        lines = [Line(label, x, course.values[metric]) for label, metric in metrics.items()]
        lines.append(_guide("1/log t", x, course.values[next(iter(metrics.values()))], power=1.0))
        if "classifier" in metrics:
            lines.append(_guide("1/√(log t)", x, course.values[metrics["classifier"]], power=0.5))
        charts.append(_panel(f"{title}, {name}", "log log t", lines, log_x=False))
    gaps, scales = [], []
    for label, (course, flow) in courses.items():
        x = ages(course.times)
        gaps.append(Line(f"{label}: p above its minimum", x, course.values[ABOVE], group=label))
        gaps.append(Line("p above D, certified", x, course.values[CERTIFIED], group=label, dashed=True))
        times = torch.tensor(course.times, dtype=torch.float64)
        law = etf_flow_scale(course.problem, times, start_of_equal_norm(flow))
        scales.append(Line(f"{label}: flow", x, course.values[SCALE], group=label, points=True))
        scales.append(Line("law from an ETF", x, law, group=label, dashed=True))
    charts.append(_panel("relative gap to the largest margin", "log log t", gaps, log_x=False))
    charts.append(_panel("scale a of the logits a P", "log log t", scales, log_x=False))
    return charts


def ages(times: Sequence[float]) -> list[float]:
    """Return log log t."""
    return [math.log(math.log(time)) for time in times]


def start_of_equal_norm(flow: Trajectory) -> float:
    """Return the scale of the simplex ETF that has the norm of a flow's start."""
    problem = flow.problem
    return flow.norms[0].item() / (2 * (problem.num_classes - 1) * math.sqrt(problem.counts[0]))


def _guide(label: str, x: Sequence[float], y: Sequence[float], power: float) -> Line:
    """Draw (log t)^-power through a curve's last point, over its second half."""
    half = x[len(x) // 2 :]
    return Line(label, half, [y[-1] * math.exp(power * (x[-1] - age)) for age in half], dashed=True)


def _panel(title: str, x: str, lines: Sequence[Line], log_x: bool) -> Chart:
    marks = {} if log_x else {f"t = 1e{_DECADE}": ages([10.0**_DECADE])[0]}
    return Chart(title, x, "", lines, log_x=log_x, log_y=True, marks=marks)


def ulpm_network(seed: int) -> list[Chart | HeatMap]:
    """Networks on digits without weight decay against log t, to t = 1e12 (Ji et al. 2022, sec. 4); trains a minute.

    Two perceptrons on 50 samples a class, with and without batch norm.
    """
    times = torch.logspace(0.05, _DECADE, 30, dtype=torch.float64).tolist()
    courses = {name: network_course(shape, seed, times) for name, shape in SHAPES.items()}
    charts: list[Chart | HeatMap] = []
    for title, metrics in _PANELS.items():
        lines = [
            Line(f"{name}: {label}", course.times, course.values[metric])
            for name, course in courses.items()
            for label, metric in metrics.items()
            if "centred" not in metric
        ]
        charts.append(_panel(title, "t", lines, log_x=True))
    gaps, losses = [], []
    for name, course in courses.items():
        gaps.append(Line(f"{name}: p above its minimum", course.times, course.values[ABOVE], group=name))
        gaps.append(Line("p above D, certified", course.times, course.values[CERTIFIED], group=name, dashed=True))
        losses.append(Line(name, course.times, course.losses, group=name))
    charts.append(_panel("relative gap to the largest margin", "t", gaps, log_x=True))
    charts.append(_panel("sum of cross-entropies", "t", losses, log_x=True))
    return charts
