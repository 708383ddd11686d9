"""Figures of the layer-peeled model: minority collapse in the model and in networks, and oversampling against it."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import cast

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from tightframe.ufm.problems import CrossEntropyUFM, LayerPeeled
from torch import Tensor

from tightframe.data import ClassificationData, Digits
from tightframe.report.charts import Chart, HeatMap, Line
from tightframe.ufm import minority
from tightframe.ufm.layer_peeled import (
    layer_peeled_form,
    minority_collapse_threshold,
    minority_cosine,
    oversampling_to_avoid_collapse,
)
from tightframe.ufm.network import certify_network

NUM_CLASSES = 10
MAJORITIES = (3, 5, 7)
FEATURE_BUDGETS = (5.0, 10.0)
WEIGHT_BUDGET = 1.0
RATIO = 1000.0  # of the oversampling figure
DECAYS = (0.01, 0.04)
FEWEST = (139, 69, 28, 9, 3, 1)  # samples of a minority class; the smallest class of digits has 139
STARTS = 2
WIDTH = 64

_RATIO_AXIS = "imbalance ratio R"
_COSINE_AXIS = "cosine between minority class vectors"


def minority_collapse(seed: int) -> list[Chart | HeatMap]:
    """Minority class vectors become one from a ratio R_0 on, in the layer-peeled model: Fang et al. 2021, figure 3.

    K = 10 and E_W = 1. Points are minima that their Frank-Wolfe gap proves, with cosines measured on their class
    vectors; the lines come from the four scalars alone.

    Args:
        seed: of no use here, where nothing is drawn at random.
    """
    return [_against_ratio(budget) for budget in FEATURE_BUDGETS]


def oversampling(seed: int) -> list[Chart | HeatMap]:
    """Oversampling by more than R / R_0 undoes minority collapse, by R wholly: Fang et al. 2021, figure 6.

    K = 10, E_W = 1 and R = 1000; lines and points are as in :func:`minority_collapse`.

    Args:
        seed: of no use here, where nothing is drawn at random.
    """
    return [_against_oversampling(budget) for budget in FEATURE_BUDGETS]


def minority_collapse_network(seed: int) -> list[Chart | HeatMap]:
    """Networks on imbalanced digits near minority collapse as the model does: Fang et al. 2021, figure 4; trains.

    Digits 0 to K_A - 1 keep 139 samples, the others 139 / R. Each point is a network. Dashed are the minima of two
    models: the layer-peeled one at the budgets that the logits of these networks need, their mean at one R; and the
    one with penalties, that on features inferred from their norm. About a minute.

    Args:
        seed: of the networks' starts.
    """
    data = Digits().load()
    return [chart for decay in DECAYS for chart in _of_networks(data, decay, seed)]


@dataclass(frozen=True)
class TrainedNetwork:
    """What is compared of a network and the models.

    Args:
        ratio: R, of the class sizes.
        cosine: mean cosine between two minority class vectors.
        budget: E_H E_W that its logits need at least.
        margin: of the minority classes in the model with penalties, where they collapse at 1.
        penalised: cosine of minority class vectors at the minimum of the model with penalties.
        accuracy: on test samples of minority classes.
        slope: norm of the gradient of the objective at the end.
    """

    ratio: float
    cosine: float
    budget: float
    margin: float
    penalised: float
    accuracy: float
    slope: float


def train(
    data: ClassificationData, majority: int, fewest: int, decay: float, seed: int, iterations: int = 400
) -> TrainedNetwork:
    r"""Train a ReLU network of two hidden layers, on all samples at once by L-BFGS, and measure it.

    .. math:: \tfrac1N \sum_i \mathrm{CE}(W h_\theta(x_i), y_i)
        + \tfrac\lambda2 \left(\lVert\theta\rVert^2 + \lVert W\rVert^2\right)

    Args:
        data: K classes of vectors.
        majority: K_A, how many classes keep as many samples as the smallest has.
        fewest: samples of each of the other classes.
        decay: λ.
        seed: of the start.
        iterations: of L-BFGS, at most.
    """
    (inputs, labels), largest = data.train[:], int(data.class_counts.min())
    counts = tuple(largest if k < majority else fewest for k in range(data.num_classes))
    kept = torch.cat([(labels == k).nonzero().squeeze(1)[:count] for k, count in enumerate(counts)])
    inputs, labels = inputs[kept], labels[kept]
    parameters = _start(inputs.shape[1], data.num_classes, seed)
    slope = _minimise(parameters, inputs, labels, decay, iterations)
    with torch.no_grad():
        H, W = _features(parameters, inputs), parameters[-1]
        means = torch.stack([rows.mean(dim=0) for rows in H.split(counts)])
        test_inputs, test_labels = data.test[:]
        right = (_features(parameters, test_inputs) @ W.T).argmax(dim=1) == test_labels
        last = certify_network(H, labels, W, weight_decay=decay)
        return TrainedNetwork(
            ratio=largest / fewest,
            cosine=mean_cosine(W, majority),
            budget=budget_of((means @ W.T).double()),
            margin=minority.minority_collapse(cast("CrossEntropyUFM", last.point.problem)).margin,
            penalised=math.nan if last.predicted is None else mean_cosine(last.predicted.W, majority),
            accuracy=right[test_labels >= majority].double().mean().item(),
            slope=slope,
        )


def mean_cosine(W: Tensor, first: int) -> float:
    """Return the mean cosine between two of the class vectors ``(K, d)`` from ``first`` on; nan where one is zero.

    Zero is what rounding leaves: less than 1e-12 of the longest class vector.
    """
    W = W.double()
    lengths = torch.linalg.vector_norm(W, dim=1, keepdim=True)
    units, n = (W / lengths)[first:], len(W) - first
    if n < 2 or lengths[first:].min() < 1e-12 * lengths.max():
        return math.nan
    return (units.sum(dim=0).square().sum().item() - n) / (n * (n - 1))


def budget_of(logits: Tensor) -> float:
    r"""Return the least E_H E_W that allows such logits of class means ``(K, K)``: :math:`(\lVert Z\rVert_* / K)^2`.

    What all logits of a row have in common does not touch the loss and is left out.
    """
    Z = logits - logits.mean(dim=1, keepdim=True)
    return (torch.linalg.svdvals(Z).sum().item() / len(Z)) ** 2


def _of_networks(data: ClassificationData, decay: float, seed: int) -> list[Chart]:
    """Return the charts of one weight decay: cosine and accuracy against R, and cosine against the margin."""
    cosines, accuracies, margins = [], [], []
    for K_A in MAJORITIES:
        rows = [[train(data, K_A, fewest, decay, seed + i) for i in range(STARTS)] for fewest in FEWEST]
        networks, label, group = [network for row in rows for network in row], _label(K_A), str(K_A)
        ratios, cosine = [network.ratio for network in networks], [network.cosine for network in networks]
        cosines.append(Line(label, ratios, cosine, group, points=True))
        cosines.append(
            Line("", [row[0].ratio for row in rows], [_of_model(K_A, row) for row in rows], group, dashed=True)
        )
        accuracies.append(Line(label, ratios, [network.accuracy for network in networks], group, points=True))
        margins.append(Line(label, [network.margin for network in networks], cosine, group, points=True))
        networks.sort(key=lambda network: network.margin)
        of_model = [network.penalised for network in networks]
        margins.append(Line("", [network.margin for network in networks], of_model, group, dashed=True))
    title = f"λ = {decay:g}: "
    return [
        Chart(f"{title}layer-peeled model dashed", _RATIO_AXIS, _COSINE_AXIS, cosines, log_x=True),
        Chart(f"{title}minority test accuracy", _RATIO_AXIS, "accuracy", accuracies, log_x=True),
        Chart(
            f"{title}penalised model dashed",
            "margin ω√n / σ",
            _COSINE_AXIS,
            margins,
            log_x=True,
            marks={"collapse": 1.0},
        ),
    ]


def _against_ratio(feature_budget: float) -> Chart:
    thresholds = {
        K_A: minority_collapse_threshold(K_A, NUM_CLASSES - K_A, WEIGHT_BUDGET, feature_budget) for K_A in MAJORITIES
    }
    x, few = _grid(4, thresholds.values()), np.logspace(0, 4, 9)
    lines = []
    for K_A in MAJORITIES:
        lines.append(Line(_label(K_A), x, [_cosine(R, K_A, feature_budget) for R in x], str(K_A)))
        lines.append(Line("", few, [_proved_cosine(R, 1.0, K_A, feature_budget) for R in few], str(K_A), points=True))
    marks = {f"R₀ = {R:.2f}": R for R in thresholds.values()}
    return Chart(f"E_H = {feature_budget:g}", _RATIO_AXIS, _COSINE_AXIS, lines, log_x=True, marks=marks)


def _against_oversampling(feature_budget: float) -> Chart:
    least = {
        K_A: oversampling_to_avoid_collapse(RATIO, K_A, NUM_CLASSES - K_A, WEIGHT_BUDGET, feature_budget)
        for K_A in MAJORITIES
    }
    x, few = _grid(3, least.values()), np.logspace(0, 3, 7)
    lines = []
    for K_A in MAJORITIES:
        lines.append(Line(_label(K_A), x, [_cosine(RATIO / w, K_A, feature_budget) for w in x], str(K_A)))
        points = [_proved_cosine(RATIO, w, K_A, feature_budget) for w in few]
        lines.append(Line("", few, points, str(K_A), points=True))
    marks = {f"R / R₀ = {w:.2f}": w for w in least.values() if w > 1}
    return Chart(
        f"R = {RATIO:g}, E_H = {feature_budget:g}", "oversampling w_r", _COSINE_AXIS, lines, log_x=True, marks=marks
    )


def _grid(decades: int, kinks: Iterable[float]) -> NDArray[np.float64]:
    """Return places from 1 to a power of ten, evenly in logarithms, with those where a curve has its kink."""
    return np.unique([*np.logspace(0, decades, 20 * decades + 1), *kinks])


def _label(majority: int) -> str:
    return f"K_A = {majority}"


def _cosine(ratio: float, majority: int, feature_budget: float) -> float:
    return minority_cosine(float(ratio), majority, NUM_CLASSES - majority, WEIGHT_BUDGET, feature_budget)


def _proved_cosine(ratio: float, oversampled: float, majority: int, feature_budget: float) -> float:
    """Return the cosine at a minimum, measured on its class vectors; nan if nothing proves it one."""
    weights = (float(ratio),) * majority + (float(oversampled),) * (NUM_CLASSES - majority)
    solution = layer_peeled_form(
        LayerPeeled((1,) * NUM_CLASSES, NUM_CLASSES, WEIGHT_BUDGET, feature_budget, sample_weights=weights)
    )
    return mean_cosine(solution.W, majority) if solution.exact else math.nan


def _of_model(majority: int, networks: Sequence[TrainedNetwork]) -> float:
    """Return the model's cosine at the mean budget of networks of one ratio."""
    budget = float(np.mean([network.budget for network in networks]))
    return minority_cosine(networks[0].ratio, majority, NUM_CLASSES - majority, 1.0, budget)


def _start(inputs: int, classes: int, seed: int) -> list[Tensor]:
    """Return weights and biases of the hidden layers and the class vectors, scaled as He et al. 2015 do for ReLUs."""
    generator, parameters = torch.Generator().manual_seed(seed), []
    for fan_in in (inputs, WIDTH):
        parameters.append(torch.randn(WIDTH, fan_in, generator=generator, dtype=torch.float64) * math.sqrt(2 / fan_in))
        parameters.append(torch.zeros(WIDTH, dtype=torch.float64))
    parameters.append(torch.randn(classes, WIDTH, generator=generator, dtype=torch.float64) / math.sqrt(WIDTH))
    return [parameter.float().requires_grad_() for parameter in parameters]


def _features(parameters: Sequence[Tensor], inputs: Tensor) -> Tensor:
    first, first_bias, second, second_bias, _ = parameters
    return F.relu(F.linear(F.relu(F.linear(inputs, first, first_bias)), second, second_bias))


def _minimise(parameters: list[Tensor], inputs: Tensor, labels: Tensor, decay: float, iterations: int) -> float:
    """Minimise cross-entropy and weight decay, in place, and return the norm of the gradient at the end."""
    optimizer = torch.optim.LBFGS(
        parameters,
        max_iter=iterations,
        history_size=20,
        tolerance_grad=1e-6,
        tolerance_change=0,
        line_search_fn="strong_wolfe",
    )

    def closure() -> Tensor:
        optimizer.zero_grad()
        penalty = torch.stack([parameter.square().sum() for parameter in parameters]).sum()
        value = F.cross_entropy(_features(parameters, inputs) @ parameters[-1].T, labels) + decay / 2 * penalty
        value.backward()
        return value

    with torch.enable_grad():
        optimizer.step(closure)
        closure()
    return math.sqrt(sum(p.grad.square().sum().item() for p in parameters if p.grad is not None))
