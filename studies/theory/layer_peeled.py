"""Figures of the layer-peeled model: minority collapse in the model and in networks, and oversampling against it."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import cast

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from studies.theory.networks import NUM_CLASSES, Network, Shape, descent, digits, he_start_
from studies.theory.panels import curves
from tightframe.data import Digits
from tightframe.report.charts import Chart, HeatMap
from tightframe.ufm import CrossEntropyUFM, LayerPeeled, certify_network, minority_collapse_threshold
from tightframe.ufm import minority_collapse as minority_margin
from tightframe.ufm.layer_peeled import layer_peeled_form, minority_cosine, oversampling_to_avoid_collapse

MAJORITIES = (3, 5, 7)
FEATURE_BUDGETS = (5.0, 10.0)
WEIGHT_BUDGET = 1.0
RATIO = 1000.0  # of the oversampling figure
DECAYS = (0.01, 0.04)
MOST = 139  # samples of the smallest class of digits
FEWEST = (139, 69, 28, 9, 3, 1)  # samples of a minority class
STARTS = 2

_RATIO_AXIS = "imbalance ratio R"
_COSINE_AXIS = "cosine between minority class vectors"


def minority_collapse(seed: int) -> list[Chart | HeatMap]:
    """Minority class vectors become one from a ratio R_0 on, in the layer-peeled model: Fang et al. 2021, figure 3.

    K = 10 and E_W = 1. Points are minima that their Frank-Wolfe gap proves, with cosines measured on their class
    vectors; the lines come from the four scalars alone. Nothing is drawn at random.
    """
    charts: list[Chart | HeatMap] = []
    for budget in FEATURE_BUDGETS:
        places = [minority_collapse_threshold(K_A, NUM_CLASSES - K_A, WEIGHT_BUDGET, budget) for K_A in MAJORITIES]
        marks = {f"R₀ = {R:.2f}": R for R in places}
        charts.append(_cosines(f"E_H = {budget:g}", _RATIO_AXIS, 4, lambda R: (R, 1.0), budget, marks))
    return charts


def oversampling(seed: int) -> list[Chart | HeatMap]:
    """Oversampling by more than R / R_0 undoes minority collapse, by R wholly: Fang et al. 2021, figure 6.

    K = 10, E_W = 1 and R = 1000; lines and points are as in :func:`minority_collapse`.
    """
    charts: list[Chart | HeatMap] = []
    for budget in FEATURE_BUDGETS:
        places = [
            oversampling_to_avoid_collapse(RATIO, K_A, NUM_CLASSES - K_A, WEIGHT_BUDGET, budget) for K_A in MAJORITIES
        ]
        marks = {f"R / R₀ = {w:.2f}": w for w in places if w > 1}
        title = f"R = {RATIO:g}, E_H = {budget:g}"
        charts.append(_cosines(title, "oversampling w_r", 3, lambda w: (RATIO, w), budget, marks))
    return charts


def _cosines(
    title: str,
    axis: str,
    decades: int,
    weights: Callable[[float], tuple[float, float]],
    budget: float,
    marks: Mapping[str, float],
) -> Chart:
    """Return the chart of a cosine over places from 1 to a power of ten, and over the marks, where curves have kinks.

    Args:
        title: Title of the chart.
        axis: Label of the places.
        decades: Exponent of the power of ten.
        weights: Function of a place: weights of a sample of majority and of minority classes.
        budget: E_H.
        marks: Places to mark.
    """
    fine = np.unique([*np.logspace(0, decades, 20 * decades + 1), *marks.values()]).tolist()
    few = np.logspace(0, decades, 2 * decades + 1).tolist()
    joined, proved = {}, {}
    for K_A in MAJORITIES:
        K_B, name = NUM_CLASSES - K_A, f"K_A = {K_A}"
        joined[name], proved[name] = [], []
        for place in fine:
            majority, minority = weights(place)
            cosine = minority_cosine(majority / minority, K_A, K_B, WEIGHT_BUDGET, budget)
            joined[name].append({"place": place, "cosine": cosine})
        for place in few:
            majority, minority = weights(place)
            of_samples = (majority,) * K_A + (minority,) * K_B
            problem = LayerPeeled((1,) * NUM_CLASSES, NUM_CLASSES, WEIGHT_BUDGET, budget, sample_weights=of_samples)
            solution = layer_peeled_form(problem)
            cosine = mean_cosine(solution.W, K_A) if solution.exact else math.nan
            proved[name].append({"place": place, "cosine": cosine})
    lines = curves(joined, "place", "cosine") + curves(proved, "place", "cosine", label="", points=True)
    return Chart(title, axis, _COSINE_AXIS, lines, log_x=True, marks=marks)


def minority_collapse_network(seed: int) -> list[Chart | HeatMap]:
    """Networks on imbalanced digits near minority collapse as the model does: Fang et al. 2021, figure 4; trains.

    Digits 0 to K_A - 1 keep 139 samples, the others 139 / R. Each point is a network. Dashed are the minima of two
    models: the layer-peeled one at the budget that the logits of the network need; and the one with penalties, that on
    features inferred from their norm. About two minutes.

    Args:
        seed: Seed of the networks' starts.
    """
    charts: list[Chart | HeatMap] = []
    for decay in DECAYS:
        networks = {
            f"K_A = {K_A}": [train(K_A, fewest, decay, seed + i) for fewest in FEWEST for i in range(STARTS)]
            for K_A in MAJORITIES
        }
        by_margin = {name: sorted(rows, key=lambda row: row["margin"]) for name, rows in networks.items()}
        peeled = curves(networks, "ratio", "cosine", points=True)
        peeled += curves(networks, "ratio", "layer-peeled", label="", dashed=True)
        penalised = curves(by_margin, "margin", "cosine", points=True)
        penalised += curves(by_margin, "margin", "penalised", label="", dashed=True)
        accuracies, margin = curves(networks, "ratio", "accuracy", points=True), "margin ω√n / σ"
        title, mark = f"λ = {decay:g}: ", {"collapse": 1.0}
        charts += [
            Chart(f"{title}layer-peeled model dashed", _RATIO_AXIS, _COSINE_AXIS, peeled, log_x=True),
            Chart(f"{title}minority test accuracy", _RATIO_AXIS, "accuracy", accuracies, log_x=True),
            Chart(f"{title}penalised model dashed", margin, _COSINE_AXIS, penalised, log_x=True, marks=mark),
        ]
    return charts


def train(majority: int, fewest: int, decay: float, seed: int, iterations: int = 400) -> dict[str, float]:
    r"""Train a ReLU network of two hidden layers, on all samples at once by L-BFGS, and measure it.

    .. math:: \tfrac1N \sum_i \mathrm{CE}(W h_\theta(x_i), y_i)
        + \tfrac\lambda2 \left(\lVert\theta\rVert^2 + \lVert W\rVert^2\right)

    Args:
        majority: Number K_A of the classes that keep ``MOST`` samples.
        fewest: Samples of each of the other classes.
        decay: λ.
        seed: Seed of the start.
        iterations: Iterations of L-BFGS, at most.

    Returns:
        ``ratio`` R; mean ``cosine`` of two minority class vectors, and that at the ``layer-peeled`` minimum of the
        ``budget`` E_H E_W that the logits need at least, and at the ``penalised`` one; ``margin`` of the minority
        classes under penalties, where they collapse at 1; test ``accuracy`` of minority classes; ``slope``, the norm
        of the gradient at the end.
    """
    images, labels = digits((MOST,) * majority + (fewest,) * (NUM_CLASSES - majority))
    network = Network(Shape(depth=2, batch_norm=False), images.shape[1], seed)
    he_start_(network)
    parameters = list(network.parameters())

    def objective() -> Tensor:
        squares = torch.stack([parameter.square().sum() for parameter in parameters]).sum()
        return F.cross_entropy(network(images), labels) + decay / 2 * squares

    limits = {"max_iter": iterations, "history_size": 20, "tolerance_grad": 1e-6, "tolerance_change": 0}
    for _ in descent(objective, torch.optim.LBFGS(parameters, line_search_fn="strong_wolfe", **limits), steps=1):
        continue
    slopes = torch.autograd.grad(objective(), parameters)
    W, H = network.point(images)
    last = certify_network(H, labels, W, weight_decay=decay)
    ratio, budget = MOST / fewest, budget_of(last.point.class_means @ W.T)
    test_images, test_labels = Digits().load().test[:]
    right = network(test_images).argmax(dim=1) == test_labels
    return {
        "ratio": ratio,
        "cosine": mean_cosine(W, majority),
        "budget": budget,
        "layer-peeled": minority_cosine(ratio, majority, NUM_CLASSES - majority, 1.0, budget),
        "margin": minority_margin(cast("CrossEntropyUFM", last.point.problem)).margin,
        "penalised": math.nan if last.predicted is None else mean_cosine(last.predicted.W, majority),
        "accuracy": right[test_labels >= majority].double().mean().item(),
        "slope": torch.stack([slope.square().sum() for slope in slopes]).sum().sqrt().item(),
    }


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

    A number that all logits of a row have in common does not touch the loss and is left out.
    """
    Z = logits - logits.mean(dim=1, keepdim=True)
    return (torch.linalg.svdvals(Z).sum().item() / len(Z)) ** 2
