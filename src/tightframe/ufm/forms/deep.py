"""Deep linear models with squared error: a root for each class, zero below a threshold, and two layers with a ReLU."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from tightframe.errors import ArgumentError
from tightframe.ufm.forms.common import bisect, norms, require_dim
from tightframe.ufm.objective import counts_of
from tightframe.ufm.problems import DeepUFM
from tightframe.ufm.solution import Solution
from tightframe.ufm.structures import deep_objective, last_features


def deep_squared_form(problem: DeepUFM) -> Solution:
    r"""Return the minimum of the deep linear squared-error model, for any counts; with a ReLU, its best known point.

    With F factors (the features are one), :math:`\Lambda` the product of their decays and
    :math:`\kappa_k = N \Lambda^{1/F} n_k^{1/F - 1}`, the logits are :math:`\mathrm{diag}(x)`, where

    .. math:: (1 - x_k)\, x_k^{1 - 2/F} = \kappa_k, \qquad x_k \in \bigl[\tfrac{F-2}{F-1}, 1\bigr],
        \qquad \text{or}\quad x_k = 0 \quad\text{iff}\quad
        \kappa_k \ge \tfrac{1}{F-1}\bigl(\tfrac{F-2}{F-1}\bigr)^{1-2/F}

    (balanced: Tirer & Bruna 2022, arXiv 2202.08087; Dang et al. 2023, arXiv 2301.00437). Fit and penalty depend on the
    singular values of :math:`\mathrm{diag}(\sqrt n) Z` and their alignment alone, so that the classes decouple. Factor
    f has :math:`\lambda_f \lVert W_f\rVert^2 = \Lambda^{1/F}\sum_k (\sqrt{n_k}\, x_k)^{2/F}`.

    With a ReLU and two matrices the same point is a point of the model, since its factors are nonnegative; that none
    is better is observed, not proved. With more it is not optimal for many classes (Súkeník et al. 2024).

    Args:
        problem: Model with ``loss="mse"``; d at least the number of classes with :math:`x_k > 0`.

    Returns:
        The solution with its ``factors``; ``facts`` hold ``active_classes``, ``zero_kappa`` (the threshold),
        ``death_count``, the count up to which a class has :math:`x_k = 0`, ``kappa`` and ``scale`` x in the balanced
        case, and ``squared_norm_factor_0``, ... of the features (over all samples) and the matrices.

    Raises:
        ArgumentError: if the loss is another one, or a ReLU stands before more than one matrix.
        DimensionError: if d is smaller than the number of classes with :math:`x_k > 0`.

    Example:
        >>> solution = deep_squared_form(DeepUFM((5, 5), dim=2, decays=(0.01, 0.01, 0.01), loss="mse"))
        >>> round(solution.facts["kappa"], 6), round(solution.facts["scale"], 6)
        (0.0342, 0.965397)
    """
    _check(problem)
    F, kappas = problem.num_layers + 1, _kappas(problem)
    threshold = ((F - 2) / (F - 1)) ** (1 - 2 / F) / (F - 1)
    scales = torch.tensor([_root(kappa, F) if kappa < threshold else 0.0 for kappa in kappas], dtype=torch.float64)
    active = int((scales > 0).sum())
    require_dim(problem, active, "the orthogonal features of the active classes")
    factors = _factors(problem, scales)
    facts: dict[str, float] = {"zero_kappa": threshold, "active_classes": active}
    facts["death_count"] = problem.counts[0] * (kappas[0] / threshold) ** (F / (F - 1))
    if problem.balanced:
        facts |= {"kappa": kappas[0], "scale": scales[0].item()}
    proved = problem.num_layers == 1 or not problem.relu
    return _solution(problem, factors, facts, proved)


def relu_bound(problem: DeepUFM) -> float:
    r"""Return a lower bound of the squared-error model with a ReLU before the second of two matrices.

    A ReLU does not raise a Frobenius norm, so features :math:`A = \varphi(W_1 H_1)` cost at least
    :math:`\sqrt{\lambda_0\lambda_1}\lVert A\rVert_F`, and logits :math:`Z` with
    :math:`\lVert Y\rVert_* \le \lVert W_2\rVert_F \lVert A\rVert_F` at least
    :math:`\tfrac32 \Lambda^{1/3} \lVert Y\rVert_*^{2/3}`, :math:`Y = \mathrm{diag}(\sqrt n) Z`. The minimum of this
    with the fit has :math:`y_k = (\sqrt{n_k} - \theta)_+`; where m classes are left with roots of sum S and
    :math:`\sum_k y_k = S x`,

    .. math:: (1 - x)\, x^{1/3} = N \Lambda^{1/3} m\, S^{-4/3}.

    Args:
        problem: Model with ``loss="mse"``, ``relu=True`` and two matrices; not checked.

    Example:
        >>> problem = DeepUFM((5, 5), dim=2, decays=(0.01, 0.01, 0.01), loss="mse", relu=True)
        >>> relu_bound(problem) < deep_squared_form(problem).loss
        True
    """
    roots = counts_of(problem).sqrt().sort(descending=True).values
    N, price = problem.num_samples, math.prod(problem.decays) ** (1 / 3)
    lowest = 0.5  # at zero
    for m, total in enumerate(roots.cumsum(dim=0).tolist(), start=1):
        kappa = N * price * m * total ** (-4 / 3)
        if kappa >= _PEAK:
            continue  # nothing is stationary with m classes
        x = _root(kappa, 3)
        theta = total * (1 - x) / m
        fit = (m * theta**2 + roots[m:].square().sum().item()) / (2 * N)
        lowest = min(lowest, fit + 1.5 * price * (total * x) ** (2 / 3))
    return lowest


_PEAK = 0.75 * 0.25 ** (1 / 3)  # of (1 - x) x^(1/3)


def _check(problem: DeepUFM) -> None:
    if problem.loss != "mse":
        raise ArgumentError(f"loss must be 'mse' for this closed form, got {problem.loss!r}")
    if problem.relu and problem.num_layers > 2:
        raise ArgumentError(
            f"relu must be False with more than two matrices, got L = {problem.num_layers}: no closed form is known, "
            "the linear one is not optimal for many classes; solve the problem numerically"
        )


def _kappas(problem: DeepUFM) -> list[float]:
    F = problem.num_layers + 1
    price = math.prod(decay ** (1 / F) for decay in problem.decays)
    return [problem.num_samples * price * n ** (1 / F - 1) for n in problem.counts]


def _root(kappa: float, F: int) -> float:
    """Return the larger root x of (1 - x) x^(1 - 2/F) = kappa, which must be below the peak at (F - 2)/(2F - 2)."""
    if F == 2:
        return 1 - kappa
    return bisect(lambda x: kappa - (1 - x) * x ** (1 - 2 / F), (F - 2) / (2 * F - 2), 1.0)


def _factors(problem: DeepUFM, scales: Tensor) -> tuple[Tensor, ...]:
    """Return nonnegative diagonal factors, all of the same price, with logits diag(scales)."""
    K, d, F = problem.num_classes, problem.dim, problem.num_layers + 1
    roots, active = counts_of(problem).sqrt(), scales > 0
    columns = active.cumsum(dim=0)[active] - 1
    geometric = math.prod(decay ** (1 / F) for decay in problem.decays)
    values = [math.sqrt(geometric / decay) * (roots * scales)[active] ** (1 / F) for decay in problem.decays]
    H, W = (torch.zeros(K, d, dtype=torch.float64) for _ in range(2))
    H[active, columns] = values[0] / roots[active]
    W[active, columns] = values[-1]
    inner = []
    for value in values[1:-1]:
        inner.append(torch.zeros(d, d, dtype=torch.float64))
        inner[-1][columns, columns] = value
    return (H, *inner, W)


def _solution(problem: DeepUFM, factors: tuple[Tensor, ...], facts: dict[str, float], proved: bool) -> Solution:
    H, *matrices = factors
    squares = [norms(problem, matrices[-1], H)["squared_norm_H"], *(M.square().sum().item() for M in matrices)]
    facts |= {f"squared_norm_factor_{index}": value for index, value in enumerate(squares)}
    loss = deep_objective(problem, factors).item()
    reason = "the classes decouple: fit and penalty see the singular values of the logits and their alignment"
    if not proved:
        reason = "the optimum of the linear model, with nonnegative factors; that no other is better is observed only"
    bound = loss if proved else relu_bound(problem)
    H = last_features(problem, factors)
    return Solution(problem, matrices[-1], H, None, loss, proved, reason, bound, facts, factors=factors)
