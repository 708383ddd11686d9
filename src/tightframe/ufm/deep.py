"""Deep models: several factors; with squared error a root for each class, zero below a threshold, and ReLUs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from tightframe.errors import ArgumentError, ShapeError, check_choice
from tightframe.ufm.losses import CrossEntropy, Loss, SquaredError
from tightframe.ufm.problem import Problem, check_penalty, double
from tightframe.ufm.solution import Solution, bisect, norms


@dataclass(frozen=True, repr=False)
class DeepUFM(Problem):
    r"""Several factors, each with a penalty: :math:`Z = W_L \cdots W_1 H_1`.

    .. math:: \tfrac1N \sum_i \ell(z_i, y_i) + \tfrac12 \sum_f \lambda_f \lVert W_f\rVert^2
        + \tfrac{\lambda_0}2 \lVert H_1\rVert^2

    With the squared error, deep linear (Tirer & Bruna 2022; Dang et al. 2023); with cross-entropy, Garrod & Keating
    2024 and Súkeník et al. 2024. All widths are d.

    Args:
        counts: ``n_k``.
        dim: d.
        decays: :math:`\lambda_0` of the features, then :math:`\lambda_1, \ldots, \lambda_L` of the L >= 1 matrices
            towards the output.
        loss: ``"cross-entropy"``, or ``"mse"`` for half the squared error against one-hot targets.
        relu: Whether a ReLU stands before each matrix but the first, :math:`W_L \varphi(\cdots \varphi(W_1 H_1))`.
    """

    decays: tuple[float, ...]
    loss: str = "cross-entropy"
    relu: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "decays", tuple(self.decays))
        if len(self.decays) < 2:
            raise ArgumentError(f"decays must be of the features and at least one matrix, got {self.decays}")
        for decay in self.decays:
            check_penalty("decays", decay)
        if not isinstance(self.relu, bool):
            raise ArgumentError(f"relu must be true or false, got {self.relu!r}")
        check_choice("loss", self.loss, ("cross-entropy", "mse"))

    @property
    def num_layers(self) -> int:
        """L, the number of matrices."""
        return len(self.decays) - 1

    @property
    def mean_decay(self) -> float:
        """Geometric mean of the decays: equal decays of this size have the same logits and objective."""
        return math.exp(math.fsum(map(math.log, self.decays)) / len(self.decays))

    @property
    def linear(self) -> bool:
        """Whether no ReLU stands before any matrix but the first."""
        return not self.relu or self.num_layers == 1

    @property
    def has_objective(self) -> bool:
        """False: :func:`deep_objective` is the one of several matrices."""
        return False

    @property
    def criterion(self) -> Loss:
        """Loss of a row of logits."""
        return SquaredError() if self.loss == "mse" else CrossEntropy()

    @property
    def shapes(self) -> list[tuple[int, int]]:
        """Shapes of H_1, with one row for each class, and of the matrices towards the output."""
        rows = [self.num_classes, *[self.dim] * (self.num_layers - 1), self.num_classes]
        return [(number, self.dim) for number in rows]


def deep_logits(problem: DeepUFM, factors: Sequence[Tensor]) -> Tensor:
    r"""Return the logits ``(K, K)`` or ``(N, K)`` of a deep model, one row for each of its features.

    Args:
        problem: says how many factors there are, and whether a ReLU stands before each matrix but the first.
        factors: :math:`H_1` ``(K, d)`` or ``(N, d)``, :math:`W_1, \ldots, W_{L-1}` ``(d, d)``, :math:`W_L` ``(K, d)``.

    Raises:
        ShapeError: if the factors are not these.
    """
    return last_features(problem, factors) @ factors[-1].T


def last_features(problem: DeepUFM, factors: Sequence[Tensor]) -> Tensor:
    """Return what the last matrix receives, ``(K, d)`` or ``(N, d)``; arguments and errors of :func:`deep_logits`."""
    factors = [double(factor, "factors") for factor in factors]
    _check_factors(problem, factors)
    hidden, *matrices = factors
    for matrix in matrices[:-1]:
        hidden = hidden @ matrix.T
        if problem.relu:
            hidden = torch.relu(hidden)
    return hidden


def deep_objective(problem: DeepUFM, factors: Sequence[Tensor]) -> Tensor:
    r"""Return the objective of a deep model at a point, a 0-d tensor, differentiable in all factors.

    .. math:: \tfrac1N \sum_i \ell(z_i, y_i) + \tfrac12 \sum_{l=1}^L \lambda_l \lVert W_l\rVert^2
        + \tfrac{\lambda_0}2 \lVert H_1\rVert^2

    Args:
        problem: squared error or cross-entropy, linear or ReLU.
        factors: :math:`H_1` ``(K, d)``, each row shared by the samples of a class, or ``(N, d)``, class by class; then
            :math:`W_1, \ldots, W_{L-1}` ``(d, d)`` and :math:`W_L` ``(K, d)``.

    Raises:
        ShapeError: if the factors are not these.

    Example:
        >>> problem = DeepUFM((3, 3), dim=2, decays=(0.1, 0.1, 0.1))
        >>> eye = torch.eye(2, dtype=torch.float64)
        >>> round(deep_objective(problem, (eye, eye, eye)).item(), 6)  # log(1 + 1/e) + 0.05 * (3 * 2 + 2 + 2)
        0.813262
    """
    factors = [double(factor, "factors") for factor in factors]
    logits, H = deep_logits(problem, factors), factors[0]
    rows = problem.rows(len(H))
    value = problem.criterion.fit(rows, logits)
    value = value + problem.decays[0] / 2 * (rows.prices * H.square().sum(dim=1)).sum()
    for decay, matrix in zip(problem.decays[1:], factors[1:], strict=True):
        value = value + decay / 2 * matrix.square().sum()
    return value


def _check_factors(problem: DeepUFM, factors: Sequence[Tensor]) -> None:
    shapes = problem.shapes
    if len(factors) != len(shapes):
        raise ShapeError(f"factors must be H_1 and L = {problem.num_layers} matrices, got {len(factors)} tensors")
    if factors[0].ndim != 2 or factors[0].shape[1] != problem.dim:
        raise ShapeError(f"H_1 must have shape (K, d) or (N, d) with d = {problem.dim}, got {tuple(factors[0].shape)}")
    for index, (matrix, shape) in enumerate(zip(factors[1:], shapes[1:], strict=True), start=1):
        if matrix.shape != shape:
            raise ShapeError(f"W_{index} must have shape {shape}, got {tuple(matrix.shape)}")


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
    F = problem.num_layers + 1
    kappas = [problem.num_samples * problem.mean_decay * n ** (1 / F - 1) for n in problem.counts]
    threshold = ((F - 2) / (F - 1)) ** (1 - 2 / F) / (F - 1)
    scales = torch.tensor([_root(kappa, F) if kappa < threshold else 0.0 for kappa in kappas], dtype=torch.float64)
    active = int((scales > 0).sum())
    problem.require_dim(active, "the orthogonal features of the active classes")
    factors = _factors(problem, scales)
    facts: dict[str, float] = {"zero_kappa": threshold, "active_classes": active}
    facts["death_count"] = problem.counts[0] * (kappas[0] / threshold) ** (F / (F - 1))
    if problem.balanced:
        facts |= {"kappa": kappas[0], "scale": scales[0].item()}
    squares = [W.square().sum().item() for W in factors]
    squares[0] = norms(problem, factors[-1], factors[0])["squared_norm_H"]
    facts |= {f"squared_norm_factor_{index}": value for index, value in enumerate(squares)}
    loss = deep_objective(problem, factors).item()
    bound = loss
    reason = "the classes decouple: fit and penalty see the singular values of the logits and their alignment"
    if not problem.linear:
        bound = relu_bound(problem)
        reason = "the optimum of the linear model, with nonnegative factors; that no other is better is observed only"
    H = last_features(problem, factors)
    return Solution(problem, factors[-1], H, None, loss, problem.linear, reason, bound, facts, factors=factors)


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
    roots = problem.n.sqrt().sort(descending=True).values
    N, price = problem.num_samples, problem.mean_decay
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


def _root(kappa: float, F: int) -> float:
    """Return the larger root x of (1 - x) x^(1 - 2/F) = kappa, which must be below the peak at (F - 2)/(2F - 2)."""
    if F == 2:
        return 1 - kappa
    return bisect(lambda x: kappa - (1 - x) * x ** (1 - 2 / F), (F - 2) / (2 * F - 2), 1.0)


def _factors(problem: DeepUFM, scales: Tensor) -> tuple[Tensor, ...]:
    """Return nonnegative diagonal factors, all of the same price, with logits diag(scales)."""
    roots, F = problem.n.sqrt(), problem.num_layers + 1
    classes = (scales > 0).nonzero().squeeze(1)
    columns = torch.arange(len(classes))
    factors = tuple(torch.zeros(shape, dtype=torch.float64) for shape in problem.shapes)
    for index, (factor, decay) in enumerate(zip(factors, problem.decays, strict=True)):
        rows = classes if index in (0, F - 1) else columns
        factor[rows, columns] = math.sqrt(problem.mean_decay / decay) * (roots * scales)[classes] ** (1 / F)
    factors[0].div_(roots.unsqueeze(1))
    return factors
