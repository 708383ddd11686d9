"""The figure of networks that end in several linear layers: how collapsed they are, and how much of it is proved."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from studies.theory.networks import balanced_digits
from tightframe.functional import nc1
from tightframe.moments import ClassMoments
from tightframe.report.charts import Chart, HeatMap, Line
from tightframe.ufm.heads import Bound, HeadCertificate, certify_head

DEPTHS = (1, 2, 3, 4, 6)
SAMPLES = 20  # of each digit
WIDTH = 32
STARTS = 3
DECAY = 1e-3
WARM_UP, STEPS = 600, 4000
RATE, MOMENTUM = 0.1, 0.95

_DEPTH = "linear layers L₂"


def linear_head(seed: int) -> list[Chart | HeatMap]:
    """Collapse in networks with a head of several linear layers, with proved bounds: Jacot et al. 2024, figures 1-2.

    Trains ReLU networks, two hidden layers of width 32 and a head of L₂ bias-free linear layers, on 20 images of each
    digit: squared error, all weights with decay 0.001; 600 steps of Adam to fit and 4,000 of gradient descent with
    momentum, whose rate falls to zero, to balance. Three starts at each L₂. Dashed lines are the bounds of
    :func:`~tightframe.ufm.heads.certify_head`, the worst of the starts, left out where one of these is infinite. The
    imbalance over time is the mean of the starts. A minute.

    Args:
        seed: of the starts.
    """
    (inputs, labels), generator = balanced_digits(SAMPLES), torch.Generator().manual_seed(seed)
    networks = {depth: train(inputs, labels, depth, generator) for depth in DEPTHS}
    measured = {depth: [measure(*point, labels) for point in network.points()] for depth, network in networks.items()}
    certificates = {
        depth: [certify_head(*point, labels) for point in network.points()]
        for depth, network in networks.items()
        if depth >= 2
    }
    return [
        _chart("NC1 of the last features", "nc1", measured, certificates, (lambda c: c.nc1, lambda c: c.nc1_a_priori)),
        _chart("condition of the class means", "means", measured, certificates, (lambda c: c.nc2,)),
        _chart("class mean against class vector", "cosine", measured, certificates, (lambda c: c.nc3,)),
        _chart("condition of the last matrix", "matrix", measured, certificates, (lambda c: c.conditioning,)),
        _imbalance_by_depth(certificates),
        _imbalance_by_time({depth: network for depth, network in networks.items() if depth >= 2}),
    ]


class Networks(NamedTuple):
    """S trained networks with heads of one depth.

    Attributes:
        matrices: of the head, in the order in which they act, each ``(S, out, in)``.
        inputs: what enters the head ``(S, N, d)``.
        times: since the end of the warm-up, in units of gradient flow, ``(T,)``.
        imbalances: the largest of the head then ``(T, S)``; of one layer 0.
    """

    matrices: list[Tensor]
    inputs: Tensor
    times: list[float]
    imbalances: Tensor

    def points(self) -> list[tuple[list[Tensor], Tensor]]:
        """Return head and what enters it, of each network."""
        return [([matrix[i] for matrix in self.matrices], x) for i, x in enumerate(self.inputs)]


def train(
    inputs: Tensor,
    labels: Tensor,
    depth: int,
    generator: torch.Generator,
    *,
    width: int = WIDTH,
    starts: int = STARTS,
    warm_up: int = WARM_UP,
    steps: int = STEPS,
    decay: float = DECAY,
) -> Networks:
    r"""Train networks of two ReLU layers and a linear head, all starts at once.

    .. math:: \tfrac1{2N} \sum_i \lVert z_i - e_{y_i}\rVert^2 + \tfrac\lambda2 \lVert\theta\rVert^2

    Momentum β makes of a step of rate η one of gradient flow for a time η/(1 - β), but for terms of higher order.

    Args:
        inputs: ``(N, p)``.
        labels: ``(N,)``, of all K classes.
        depth: L₂ >= 1, layers of the head.
        generator: of the starts, which have variance 1/fan-in, before a ReLU twice that.
        width: of all hidden layers.
        starts: S.
        warm_up: steps of Adam.
        steps: of gradient descent with momentum.
        decay: λ.
    """
    targets = F.one_hot(labels).to(inputs)
    sizes = [inputs.shape[1], *[width] * (depth + 1), targets.shape[1]]
    weights = []
    for layer, (fan_in, fan_out) in enumerate(itertools.pairwise(sizes)):
        deviation = math.sqrt((2 if layer < 2 else 1) / fan_in)
        weights.append((deviation * torch.randn(starts, fan_out, fan_in, generator=generator)).requires_grad_())
    biases = [torch.zeros(starts, 1, width, requires_grad=True) for _ in range(2)]
    parameters, head = [*weights, *biases], weights[2:]

    def step(optimizer: torch.optim.Optimizer) -> None:
        optimizer.zero_grad()
        logits = _body(weights, biases, inputs)
        for matrix in head:
            logits = logits @ matrix.mT
        ((logits - targets).square().sum() / (2 * len(inputs))).backward()  # the sum over starts mixes no two of them
        optimizer.step()

    adam = torch.optim.Adam(parameters, lr=3e-3, weight_decay=decay, fused=True)
    for _ in range(warm_up):
        step(adam)
    descent = torch.optim.SGD(parameters, lr=RATE, momentum=MOMENTUM, weight_decay=decay, fused=True)
    times, imbalances, time = [0.0], [imbalance(head)], 0.0
    for index in range(steps):
        descent.param_groups[0]["lr"] = RATE * (1 - index / steps)
        step(descent)
        time += descent.param_groups[0]["lr"] / (1 - MOMENTUM)
        if (index + 1) % max(1, steps // 40) == 0:
            times.append(time)
            imbalances.append(imbalance(head))
    with torch.no_grad():
        entering = _body(weights, biases, inputs)
    return Networks([matrix.detach() for matrix in head], entering, times, torch.stack(imbalances))


def _body(weights: Sequence[Tensor], biases: Sequence[Tensor], inputs: Tensor) -> Tensor:
    hidden = inputs
    for weight, bias in zip(weights[:2], biases, strict=True):
        hidden = torch.relu(hidden @ weight.mT + bias)
    return hidden


def imbalance(head: Sequence[Tensor]) -> Tensor:
    r"""Return the largest :math:`\lVert W_{l+1}^\top W_{l+1} - W_l W_l^\top\rVert_{op}` of each head, ``(S,)``.

    Args:
        head: matrices ``(S, out, in)`` in the order in which they act.
    """
    head = [matrix.detach().double() for matrix in head]
    differences = [upper.mT @ upper - lower @ lower.mT for lower, upper in itertools.pairwise(head)]
    norms = [torch.linalg.matrix_norm(difference, ord=2) for difference in differences]
    return torch.stack([*norms, torch.zeros(len(head[0]), dtype=torch.float64)]).amax(dim=0)


class Measured(NamedTuple):
    """What the bounds are of: NC1, condition of class means and of the last matrix, smallest cosine of the two."""

    nc1: float
    means: float
    cosine: float
    matrix: float


def measure(head: Sequence[Tensor], inputs: Tensor, labels: Tensor) -> Measured:
    """Return what is measured of a head, of any depth.

    Args:
        head: matrices ``(out, in)`` in the order in which they act.
        inputs: what enters it ``(N, d)``.
        labels: ``(N,)``.
    """
    *inner, last = (matrix.double() for matrix in head)
    features = inputs.double()
    for matrix in inner:
        features = features @ matrix.T
    moments = ClassMoments.from_samples(features, labels, len(last), scatter=False)
    return Measured(
        nc1=nc1(moments, "ratio").item(),
        means=torch.linalg.cond(moments.mean).item(),
        cosine=F.cosine_similarity(moments.mean, last, dim=1).min().item(),
        matrix=torch.linalg.cond(last).item(),
    )


def _chart(
    title: str,
    what: str,
    measured: dict[int, list[Measured]],
    certificates: dict[int, list[HeadCertificate]],
    bounds: Sequence[Callable[[HeadCertificate], Bound]],
) -> Chart:
    worst = min if what == "cosine" else max
    depths = [depth for depth, row in measured.items() for _ in row]
    lines = [Line("measured", depths, [getattr(each, what) for row in measured.values() for each in row], points=True)]
    for bound, name in zip(bounds, ("bound", "bound a priori"), strict=False):
        # No axis shows infinity, and the worst of a nan is not known.
        rows = [[bound(certificate).bound for certificate in row] for row in certificates.values()]
        values = [worst(row) if all(map(math.isfinite, row)) else math.nan for row in rows]
        lines.append(Line(name, list(certificates), values, dashed=True))
    name = {"nc1": "NC1", "cosine": "smallest cosine"}.get(what, "condition number")
    return Chart(title, _DEPTH, name, lines, log_y=what == "nc1")


def _imbalance_by_depth(certificates: dict[int, list[HeadCertificate]]) -> Chart:
    depths = [depth for depth, row in certificates.items() for _ in row]
    values = [each.imbalance for row in certificates.values() for each in row]
    lines = [Line("at the end", depths, values, points=True)]
    return Chart("imbalance of neighbouring layers", _DEPTH, "ε₂", lines, log_y=True)


def _imbalance_by_time(networks: dict[int, Networks]) -> Chart:
    lines = []
    for depth, network in networks.items():
        lines.append(Line(f"L₂ = {depth}", network.times, network.imbalances.mean(dim=1), group=str(depth)))
    times = np.array(next(iter(networks.values())).times)
    start = max(network.imbalances[0].mean().item() for network in networks.values())
    lines.append(Line("gradient flow, exp(-2λt)", times, start * np.exp(-2 * DECAY * times), dashed=True))
    return Chart("imbalance after the warm-up", "t, rate x steps / (1 - momentum)", "ε₂", lines, log_y=True)
