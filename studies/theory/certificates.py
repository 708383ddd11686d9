"""Certificates of networks on digits along their training with weight decay, and the parts of their gaps."""

from __future__ import annotations

import math
from collections.abc import Collection
from typing import cast

import torch
import torch.nn.functional as F
from scipy.optimize import minimize_scalar
from torch import Tensor

from studies.theory.networks import NUM_CLASSES, Network, Shape, descent, digits
from studies.theory.panels import Rows, curves
from tightframe.report.charts import Chart, HeatMap
from tightframe.ufm import CrossEntropyUFM, Solution, certify_network
from tightframe.ufm.problem import objective

SHAPES = {"batch norm": Shape(), "plain": Shape(depth=2, batch_norm=False)}
MARKS = (5, 10, 20, 30, 50, 70, 100, 150, 200, 300, 500, 700, 1000, 1500, 2000)
PARTS = ("as it is", "class means", "centred")


def network_certificate(seed: int) -> list[Chart | HeatMap]:
    """Certificates along trainings on digits with weight decay 0.005: gap, its parts, deviations; trains 20 seconds.

    Two perceptrons on 50 samples a class, with and without batch norm.
    """
    courses = {name: certified_course(shape, seed, 5e-3, MARKS[-1], MARKS) for name, shape in SHAPES.items()}
    objectives = curves(courses, "step", "objective", label="{}: objective")
    objectives += curves(courses, "step", "bound", label="certified bound of the minimum", dashed=True)
    gaps = curves(courses, "step", *PARTS, label="{}: {}")
    deviations = curves(courses, "step", "gram_W", "gram_H", "logits", label="{}: {}")
    return [
        Chart("objective", "step", "", objectives, log_x=True, log_y=True),
        Chart("relative gap, and with features made", "step", "", gaps, log_x=True, log_y=True),
        Chart("deviation from the prediction", "step", "", deviations, log_x=True, log_y=True),
    ]


def certified_course(
    shape: Shape,
    seed: int,
    decay: float,
    steps: int,
    marks: Collection[int] = (),
    per_class: int = 50,
    feature_decay: float | None = None,
) -> Rows:
    """Return :func:`measure` of a network on digits that is trained with weight decay, at steps and in the end.

    The training is SGD on all samples, momentum 0.9, whose learning rate falls from 0.2 to 0 as a cosine.

    Args:
        shape: Parts of the network.
        seed: Seed of its start.
        decay: Weight decay of every parameter.
        steps: Number of steps.
        marks: Steps to look at before the end.
        per_class: Samples of each class.
        feature_decay: Penalty of the features. With one, ``decay`` is that of the classifier alone, both penalties are
            in the loss, and the training is Adam from a rate of 0.003.
    """
    images, labels = digits((per_class,) * NUM_CLASSES)
    network = Network(shape, images.shape[1], seed)
    optimizer: torch.optim.Optimizer
    optimizer = torch.optim.SGD(network.parameters(), lr=0.2, momentum=0.9, weight_decay=decay)
    if feature_decay is not None:
        optimizer = torch.optim.Adam(network.parameters(), lr=3e-3)

    def loss() -> Tensor:
        H = network.body(images)
        fit = F.cross_entropy(network.head(H), labels)
        if feature_decay is None:
            return fit
        return fit + decay / 2 * network.head[0].weight.square().sum() + feature_decay / 2 * H.square().sum()

    rows = []
    for step in descent(loss, optimizer, steps, cosine=True):
        if step in marks or step == steps:
            W, H = network.point(images)
            rows.append({"step": step} | measure(W, H, labels, shape.relu, decay, feature_decay))
    return rows


def measure(
    W: Tensor, H: Tensor, labels: Tensor, relu: bool, decay: float, feature_decay: float | None = None
) -> dict[str, float]:
    """Return the certificate of a network in numbers by name.

    ``objective`` and certified ``bound`` of :class:`~tightframe.ufm.CrossEntropyUFM`; the ``cross-entropy``; how far
    the :func:`gap_parts` are above the bound, relative to it; ``above ReLU's``, the same of the bound of nonnegative
    features; ``operator norm`` of the slope over σ; the deviations from the predicted minimum; :func:`collapse_of`.

    Args:
        W: Class vectors ``(K, d)``.
        H: Features ``(N, d)``.
        labels: Labels ``(N,)``.
        relu: Whether features are behind a ReLU.
        decay: Weight decay of the training.
        feature_decay: Penalty of the features, if they have one.
    """
    found = certify_network(H, labels, W, weight_decay=decay, feature_decay=feature_decay)
    point, certificate = found.point, found.certificate
    bound = certificate.lower_bound
    row = {
        "objective": certificate.loss,
        "bound": bound,
        "cross-entropy": F.cross_entropy(point.logits, point.labels).item(),
        "operator norm": certificate.operator_norm / certificate.sigma,
        "above ReLU's": math.nan,
        **{part: value / bound - 1 for part, value in zip(PARTS, gap_parts(point), strict=True)},
        **found.deviations(),
        **collapse_of(point, found.predicted),
    }
    if relu:
        certificate = certify_network(H, labels, W, weight_decay=decay, relu=True).certificate
        row["above ReLU's"] = certificate.loss / certificate.lower_bound - 1
    return row


def collapse_of(point: Solution, least: Solution | None) -> dict[str, float]:
    """Return NC1, NC2 and NC3 of a point, its squared norms, and those of the model's minimum, if that is known."""
    collapse, problem = point.collapse(), cast("CrossEntropyUFM", point.problem)
    predicted = math.nan if least is None else least.W.square().sum().item()
    return {
        "NC1": collapse.get("nc1.ratio", math.nan),
        "NC2 of W": collapse.get("nc2.gram.classifier", math.nan),
        "NC3": collapse.get("nc3.distance", math.nan),
        "‖W‖²": point.W.square().sum().item(),
        "‖H‖²": point.H.square().sum().item(),
        "predicted ‖W‖²": predicted,
        "predicted ‖H‖²": predicted * problem.weight_decay / problem.feature_decay,  # λ_W WᵀW = λ_H HᵀH there
    }


def gap_parts(point: Solution) -> tuple[float, float, float]:
    """Return the objective of a network's point, and its values when parts of its geometry are made as predicted.

    Of the point as it is; with class means for features; with these centred, W and features at their best scales each
    time. The rest above the minimum is in the angles and the relative lengths of class means and class vectors.

    Args:
        point: Point of a :class:`CrossEntropyUFM` without bias.
    """
    problem, W, means = cast("CrossEntropyUFM", point.problem), point.W, point.class_means
    return point.loss, best_scaled(problem, W, means), best_scaled(problem, W, means - means.mean(dim=0))


def best_scaled(problem: CrossEntropyUFM, W: Tensor, H: Tensor) -> float:
    """Return the least objective of these class vectors and features, each of the two at its best scale.

    At the best scales both penalties are equal. With W and H of equal penalties the objective of √c W and √c H is
    convex in c.

    Args:
        problem: Model without bias.
        W: Class vectors ``(K, d)``.
        H: Features ``(K, d)`` or ``(N, d)``, class by class.
    """
    prices = problem.rows(len(H)).prices
    of_features = problem.feature_decay * (prices @ H.square().sum(dim=1))
    balance = (of_features / (problem.weight_decay * W.square().sum())) ** 0.25

    def value(c: float) -> float:
        return objective(problem, c**0.5 * balance * W, c**0.5 / balance * H).item()

    high = 1.0
    while value(2 * high) < value(high):
        high *= 2
    return min(value(0.0), minimize_scalar(value, bounds=(0, 2 * high), method="bounded", options={"xatol": 1e-10}).fun)
