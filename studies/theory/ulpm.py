"""Figures of training without any penalty: the unconstrained layer-peeled model, and networks without weight decay."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from studies.theory.networks import NUM_CLASSES, Network, Shape, TimedDescent, descent, digits
from studies.theory.panels import Rows, curves
from tightframe.report.charts import Chart, HeatMap, Line
from tightframe.ufm import ULPM, MaxMargin, Solution, certify, closed_form
from tightframe.ufm.flow import LogTimeFlow, Trajectory
from tightframe.ufm.losses import CrossEntropy
from tightframe.ufm.margin import etf_flow_scale
from tightframe.ufm.solution import centering

MODELS = (ULPM((10,) * 4, dim=8), ULPM((5,) * 10, dim=10))
SHAPES = {"batch norm": Shape(), "plain": Shape(batch_norm=False)}
LAST, DECADE = 1e100, 12
PANELS = {
    "spread of norms": ("nc2.equinorm.means", "nc2.equinorm.classifier", "nc2.equinorm.centred"),
    "within-class variation": ("nc1.ratio",),
    "cosines: mean of |cos + 1/(K−1)|": ("nc2.max_angle.means", "nc2.max_angle.classifier", "nc2.max_angle.centred"),
    "self-duality": ("nc3.distance",),
}


def ulpm_flow(seed: int) -> list[Chart | HeatMap]:
    """The ULPM along gradient flow: collapse, certified gap and exact law against log log t (Ji et al. 2022, fig. 2).

    A random start of every sample's feature; to t = 1e100, with t = 1e12 marked.
    """
    courses = {f"K = {problem.num_classes}": flow_course(problem, seed) for problem in MODELS}
    name, rows = next(iter(courses.items()))
    panels = {}
    for title, metrics in PANELS.items():
        lines = [*curves({name: rows}, "log log t", *metrics, label="{1}"), _guide("1/log t", rows, metrics[0], 1.0)]
        if len(metrics) > 1:
            lines.append(_guide("1/√(log t)", rows, metrics[1], 0.5))
        panels[f"{title}, {name}"] = lines
    scales = curves(courses, "log log t", "scale", label="{}: flow", points=True)
    scales += curves(courses, "log log t", "law", label="law from an ETF", dashed=True)
    panels |= _gaps(courses, "log log t") | {"scale a of the logits a P": scales}
    marks = {f"t = 1e{DECADE}": math.log(math.log(10.0**DECADE))}
    return [Chart(title, "log log t", "", lines, log_y=True, marks=marks) for title, lines in panels.items()]


def ulpm_network(seed: int) -> list[Chart | HeatMap]:
    """Networks on digits without weight decay against log t, to t = 1e12 (Ji et al. 2022, sec. 4); trains a minute.

    Two perceptrons on 50 samples a class, with and without batch norm.
    """
    times = torch.logspace(0.05, DECADE, 30, dtype=torch.float64).tolist()
    courses = {name: network_course(shape, seed, times) for name, shape in SHAPES.items()}
    panels = {title: curves(courses, "t", *metrics[:2], label="{}: {}") for title, metrics in PANELS.items()}
    panels |= _gaps(courses, "t") | {"sum of cross-entropies": curves(courses, "t", "loss")}
    return [Chart(title, "t", "", lines, log_x=True, log_y=True) for title, lines in panels.items()]


def flow_course(problem: ULPM, seed: int, final_time: float = LAST, points: int = 40) -> Rows:
    """Return :func:`measure` along gradient flow from a random start, features of all samples drawn, and its law.

    Args:
        problem: Balanced model.
        seed: Seed of the start.
        final_time: Last time, > 10.
        points: Number of times at most, nearly equidistant in log log t, from t = 10 on.
    """
    generator = torch.Generator().manual_seed(seed)
    flow = LogTimeFlow(final_time, records=10 * points, per_sample=True, generator=generator).run(problem)
    ages = flow.times[1:].log()
    wanted = torch.linspace(math.log(math.log(10.0)), math.log(math.log(final_time)), points).exp()
    chosen = sorted({int((ages - age).abs().argmin()) + 1 for age in wanted.tolist()})
    laws = etf_flow_scale(problem, flow.times[chosen], start_of_equal_norm(flow))
    rows = []
    for i, law in zip(chosen, laws.tolist(), strict=True):
        row = {"log log t": flow.times[i].log().log().item(), "law": law}
        rows.append(row | measure(problem, flow.W[i], flow.H[i]))
    return rows


def network_course(shape: Shape, seed: int, times: Sequence[float], per_class: int = 50) -> Rows:
    """Return :func:`measure` of a network that is trained on digits without weight decay, in float64.

    Args:
        shape: Parts of the network.
        seed: Seed of its start.
        times: Times in ascending order; see :class:`studies.theory.networks.TimedDescent`.
        per_class: Samples of each class.
    """
    images, labels = digits((per_class,) * NUM_CLASSES)
    images, problem = images.double(), ULPM((per_class,) * NUM_CLASSES, shape.width)
    network = Network(shape, images.shape[1], seed).double()
    optimizer = TimedDescent(network.parameters())
    waiting, rows = list(times), []
    # Not torch's cross-entropy, which in the end cannot tell the loss from zero.
    loss, rows_of_samples = CrossEntropy(), problem.rows(len(labels))
    for _ in descent(lambda: loss.fit(rows_of_samples, network(images)), optimizer, 40_000):
        if optimizer.time >= waiting[0]:
            row = {"t": optimizer.time, "loss": optimizer.loss}
            rows.append(row | measure(problem, *network.point(images)))
            waiting = [time for time in waiting if time > optimizer.time]
        if not waiting:
            break
    return rows


def measure(problem: ULPM, W: Tensor, H: Tensor) -> dict[str, float]:
    r"""Return collapse and distance from the largest margin of a point, by name.

    Beside the collapse metrics: those of the classifier without its mean, ``*.centred``; ``above``, by how much
    :math:`p = \lVert W\rVert\,\lVert H\rVert / \text{margin}` exceeds its minimum, relative to it; ``certified``, the
    bound p/D - 1 of that by the softmax weights alone; both nan where a sample is misclassified; ``scale``, the a of
    the logits' projection :math:`a P`.

    Args:
        problem: Balanced model.
        W: Class vectors ``(K, d)``.
        H: Features ``(K, d)`` or ``(N, d)``, class by class.
    """
    # A network need not share the norm between W and H as the flow does; logits and margins do not see the split.
    prices = problem.rows(len(H)).prices
    ratio = ((prices.sqrt().unsqueeze(1) * H).norm() / W.norm()).sqrt()
    point = Solution(problem, ratio * W, H / ratio, None, math.nan, False, "")
    certificate = certify(problem, point)
    values = point.collapse()
    centred = Solution(problem, W - W.mean(dim=0), H, None, math.nan, False, "").collapse()
    for metric in ("nc2.equinorm", "nc2.max_angle"):
        values[f"{metric}.centred"] = centred[f"{metric}.classifier"]
    price, least = certificate.loss, closed_form(MaxMargin(problem.counts, problem.dim)).loss
    for name, bound in (("above", least), ("certified", certificate.facts["dual.softmax"])):
        values[name] = price / bound - 1 if math.isfinite(price) else math.nan
    P = centering(problem.num_classes)
    values["scale"] = ((point.class_means @ point.W.T) * P).sum().item() / (problem.num_classes - 1)
    return values


def start_of_equal_norm(flow: Trajectory) -> float:
    """Return the scale of the simplex ETF that has the norm of a flow's start."""
    problem = flow.problem
    return flow.norms[0].item() / (2 * (problem.num_classes - 1) * math.sqrt(problem.counts[0]))


def _gaps(courses: Mapping[str, Rows], x: str) -> dict[str, list[Line]]:
    above = curves(courses, x, "above", label="{}: p above its minimum")
    certified = curves(courses, x, "certified", label="p above D, certified", dashed=True)
    return {"relative gap to the largest margin": above + certified}


def _guide(label: str, rows: Rows, metric: str, power: float) -> Line:
    """Return (log t)^-power through a curve's last point, over its second half."""
    last, ages = rows[-1], [row["log log t"] for row in rows[len(rows) // 2 :]]
    return Line(label, ages, [last[metric] * math.exp(power * (ages[-1] - age)) for age in ages], dashed=True)
