"""The figure of certificates along the training of networks with weight decay."""

from __future__ import annotations

from studies.theory.certified import certified_course
from studies.theory.networks import Shape
from tightframe.report.charts import Chart, HeatMap, Line

SHAPES = {"batch norm": Shape(), "plain": Shape(depth=2, batch_norm=False)}
_MARKS = (5, 10, 20, 30, 50, 70, 100, 150, 200, 300, 500, 700, 1000, 1500, 2000)


def network_certificate(seed: int) -> list[Chart | HeatMap]:
    """Certificates along trainings on digits with weight decay 0.005: gap, its parts, deviations; trains 20 seconds.

    Two perceptrons on 50 samples a class, with and without batch norm.
    """
    courses = {name: certified_course(shape, seed, 5e-3, _MARKS[-1], _MARKS) for name, shape in SHAPES.items()}
    objectives, gaps = [], []
    for name, moments in courses.items():
        steps = [moment.step for moment in moments]
        losses = [moment.network.certificate.loss for moment in moments]
        bounds = [moment.network.certificate.lower_bound for moment in moments]
        objectives.append(Line(f"{name}: objective", steps, losses, group=name))
        objectives.append(Line("certified bound of the minimum", steps, bounds, group=name, dashed=True))
        gaps += [
            Line(f"{name}: {part}", steps, [moment.above[part] for moment in moments]) for part in moments[0].above
        ]
    charts: list[Chart | HeatMap] = [
        Chart("objective", "step", "", objectives, log_x=True, log_y=True),
        Chart("relative gap, and with features made", "step", "", gaps, log_x=True, log_y=True),
    ]
    lines = [
        Line(f"{name}: {what}", [moment.step for moment in moments], [m.network.deviations()[key] for m in moments])
        for name, moments in courses.items()
        for key, what in (("gram_W", "W Wᵀ"), ("gram_H", "means' Gram matrix"), ("logits", "logits"))
    ]
    return [*charts, Chart("deviation from the prediction", "step", "", lines, log_x=True, log_y=True)]
