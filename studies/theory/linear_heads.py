"""The figure of networks that end in several linear layers: how collapsed they are, and how much of it is proved."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from statistics import fmean

import torch
import torch.nn.functional as F
from torch import Tensor

from studies.theory.networks import NUM_CLASSES, Network, Shape, descent, digits, he_start_
from studies.theory.panels import Rows, curves
from tightframe.functional import nc1
from tightframe.moments import ClassMoments
from tightframe.report.charts import Chart, HeatMap
from tightframe.ufm import certify_head

DEPTHS = (1, 2, 3, 4, 6)
SAMPLES = 20  # of each digit
WIDTH = 32
STARTS = 3
DECAY = 1e-3
WARM_UP, STEPS = 600, 4000
RATE, MOMENTUM = 0.1, 0.95


def linear_head(seed: int) -> list[Chart | HeatMap]:
    """Collapse in networks with a head of several linear layers, with proved bounds: Jacot et al. 2024, figures 1-2.

    Trains ReLU networks, two hidden layers of width 32 and a head of L₂ bias-free linear layers, on 20 images of each
    digit: squared error, all weights with decay 0.001; 600 steps of Adam to fit and 4,000 of gradient descent with
    momentum, whose rate falls to zero, to balance. Three starts at each L₂, each beside its bounds by
    :func:`~tightframe.ufm.certify_head`, infinite ones left out. The imbalance over time is the mean of the starts. Two
    minutes.

    Args:
        seed: Seed of the starts.
    """
    images, labels = digits((SAMPLES,) * NUM_CLASSES)
    networks, courses = [], {}
    for depth in DEPTHS:
        started = [train(images, labels, depth, seed + i) for i in range(STARTS)]
        networks += [measure(network, images, labels) for network, _ in started]
        if depth > 1:
            times = zip(*(course for _, course in started), strict=True)
            means = [{"t": rows[0]["t"], "imbalance": fmean(row["imbalance"] for row in rows)} for rows in times]
            courses[f"L₂ = {depth}"] = means
    first = max((rows[0]["imbalance"] for rows in courses.values()), default=math.nan)
    decayed = [{"t": row["t"], "imbalance": first * math.exp(-2 * DECAY * row["t"])} for row in means]
    over_time = curves(courses, "t", "imbalance")
    over_time += curves({"gradient flow, exp(-2λt)": decayed}, "t", "imbalance", dashed=True)
    ends = {"": networks}
    charts: list[Chart | HeatMap] = [
        Chart(
            title,
            "linear layers L₂",
            label,
            curves(ends, "depth", *names, label="{1}", points=True),
            log_y=label in ("NC1", "ε₂"),
        )
        for title, label, *names in (
            ("NC1 of the last features", "NC1", "NC1", "bound of NC1", "bound of NC1 a priori"),
            ("condition of the class means", "condition number", "means", "bound of means"),
            ("class mean against class vector", "smallest cosine", "cosine", "bound of cosine"),
            ("condition of the last matrix", "condition number", "matrix", "bound of matrix"),
            ("imbalance of neighbouring layers", "ε₂", "imbalance"),
        )
    ]
    time = "t, rate x steps / (1 - momentum)"
    return [*charts, Chart("imbalance after the warm-up", time, "ε₂", over_time, log_y=True)]


def train(
    inputs: Tensor,
    labels: Tensor,
    depth: int,
    seed: int,
    *,
    width: int = WIDTH,
    warm_up: int = WARM_UP,
    steps: int = STEPS,
    decay: float = DECAY,
) -> tuple[Network, Rows]:
    r"""Train a network of two ReLU layers and a linear head, and return it, and the imbalance after the warm-up.

    .. math:: \tfrac1{2N} \sum_i \lVert z_i - e_{y_i}\rVert^2 + \tfrac\lambda2 \lVert\theta\rVert^2

    Momentum β makes of a step of rate η one of gradient flow for a time t of η/(1 - β), but for terms of higher order.

    Args:
        inputs: Images ``(N, p)``.
        labels: Labels ``(N,)``.
        depth: Number L₂ of layers of the head.
        seed: Seed of the start.
        width: Width of all hidden layers.
        warm_up: Number of steps of Adam.
        steps: Number of steps of gradient descent with momentum.
        decay: λ.
    """
    targets = F.one_hot(labels, NUM_CLASSES).to(inputs)
    network = Network(Shape(width, 2, batch_norm=False, head=depth), inputs.shape[1], seed)
    he_start_(network)  # PyTorch's own start of a deep head loses a class

    def error() -> Tensor:
        return (network(inputs) - targets).square().sum() / (2 * len(inputs))

    adam = torch.optim.Adam(network.parameters(), lr=3e-3, weight_decay=decay, fused=True)
    for _ in descent(error, adam, warm_up):
        continue
    sgd = torch.optim.SGD(network.parameters(), lr=RATE, momentum=MOMENTUM, weight_decay=decay, fused=True)
    time, course = 0.0, []
    for step in descent(error, sgd, steps, cosine=True):
        if step % max(1, steps // 40) == 0:
            course.append({"t": time, "imbalance": imbalance(head_of(network))})
        time += sgd.param_groups[0]["lr"] / (1 - MOMENTUM)
    return network.double(), course


def head_of(network: Network) -> list[Tensor]:
    """Return the matrices of the head in float64, in the order in which they act."""
    return [layer.weight.detach().double() for layer in network.head]


def imbalance(head: Sequence[Tensor]) -> float:
    r"""Return the largest :math:`\lVert W_{l+1}^\top W_{l+1} - W_l W_l^\top\rVert_{op}` of a head; of one layer 0."""
    differences = (upper.T @ upper - lower @ lower.T for lower, upper in itertools.pairwise(head))
    return max((torch.linalg.matrix_norm(difference, ord=2).item() for difference in differences), default=0.0)


def measure(network: Network, inputs: Tensor, labels: Tensor) -> dict[str, float]:
    """Return what is measured of a head, of any depth, and the finite bounds of a head of two layers or more.

    ``NC1``; the condition numbers of class ``means`` and last ``matrix``; the smallest ``cosine`` of the two.

    Args:
        network: Trained network, in float64.
        inputs: Images ``(N, p)``.
        labels: Labels ``(N,)``.
    """
    inputs = inputs.double()
    W, H = network.point(inputs)
    head = head_of(network)
    moments = ClassMoments.from_samples(H, labels, len(W), scatter=False)
    row = {
        "depth": len(head),
        "imbalance": imbalance(head) or math.nan,
        "NC1": nc1(moments, "ratio").item(),
        "means": torch.linalg.cond(moments.mean).item(),
        "cosine": F.cosine_similarity(moments.mean, W, dim=1).min().item(),
        "matrix": torch.linalg.cond(W).item(),
    }
    names = ("NC1", "NC1 a priori", "means", "cosine", "matrix")
    bounds = [math.nan] * len(names)
    if len(head) > 1:
        with torch.no_grad():
            found = certify_head(head, network.body(inputs), labels)
        bounds = [each.bound for each in (found.nc1, found.nc1_a_priori, found.nc2, found.nc3, found.conditioning)]
    for name, bound in zip(names, bounds, strict=True):
        row[f"bound of {name}"] = bound if math.isfinite(bound) else math.nan
    return row
