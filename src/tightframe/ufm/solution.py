"""Solution: one point of a model and its facts, from a closed form or a solver."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import wraps
from typing import ParamSpec, TypeVar

import torch
from torch import Tensor

from tightframe import functional as F
from tightframe.files import html_table
from tightframe.moments import ClassMoments
from tightframe.ufm.bound import best_bias, dual_bound
from tightframe.ufm.problem import Problem, factorise, objective

P = ParamSpec("P")
R = TypeVar("R")


def on_cpu(function: Callable[P, R]) -> Callable[P, R]:
    """Make a function create its tensors on the CPU, whatever PyTorch's default device is."""

    @wraps(function)
    def wrapped(*args: P.args, **options: P.kwargs) -> R:
        with torch.device("cpu"):
            return function(*args, **options)

    return wrapped


@dataclass(frozen=True, repr=False)
class Solution:
    """A point of a model.

    Everything is float64 on the CPU, and rows are classes or samples, as in the rest of the package: the logits are
    ``H @ W.T``, the transpose of the papers' Z = WH.

    Args:
        problem: Model of the point.
        W: Class vectors ``(K, d)``; of a deep model, its last matrix.
        H: Features; of a deep model, those that its last matrix receives: one for each class, which all its samples
            share, ``(K, d)``; or one for each sample, class by class, ``(N, d)``.
        bias: Bias ``(K,)``, or None where the model has none.
        loss: Value of the objective.
        exact: Whether the point is the global minimum, by proof; ``reason`` says by which, or why not.
        reason: Reason for this point: the theorem, or the condition that stopped the solver.
        lower_bound: Number below which no point of the model has its objective.
        facts: Further numbers by name: thresholds, norms, roots.
        iterations: Number of iterations of the solver; 0 for a closed form.
        residual: Norm of the gradient, in the solver's own measure; nan if it has none.
        factors: Factors ``(H_1, W_1, ..., W_L)`` of a deep model.
    """

    problem: Problem
    W: Tensor
    H: Tensor
    bias: Tensor | None
    loss: float
    exact: bool
    reason: str
    lower_bound: float = -math.inf
    facts: Mapping[str, float] = field(default_factory=dict)
    iterations: int = 0
    residual: float = math.nan
    factors: tuple[Tensor, ...] = ()

    def __repr__(self) -> str:
        shapes = f"W {tuple(self.W.shape)}, H {tuple(self.H.shape)}"
        bound = f"lower_bound={self.lower_bound:.10g}, exact={self.exact}"
        return f"Solution({shapes}, loss={self.loss:.10g}, {bound}, {self.reason}; {self.problem})"

    def _repr_html_(self) -> str:
        """Return the facts as a table, for notebooks."""
        known = {"loss": self.loss, "lower bound": self.lower_bound, "exact": self.exact, **self.facts}
        return html_table([str(self.problem), ""], [*known.items(), ("reason", self.reason)])

    @property
    def labels(self) -> Tensor:
        """Class of each row of H."""
        return self.problem.rows(len(self.H)).own

    @property
    def logits(self) -> Tensor:
        """``H @ W.T + bias``, one row for each of H."""
        Z = self.H @ self.W.T
        return Z if self.bias is None else Z + self.bias

    @property
    def class_means(self) -> Tensor:
        """Mean feature of each class ``(K, d)``."""
        return self.moments.mean

    @property
    def moments(self) -> ClassMoments:
        """Class moments of the features, with the counts of the problem."""
        labels = self.problem.rows(self.problem.num_samples).own
        H = self.H[labels] if len(self.H) == self.problem.num_classes else self.H
        return ClassMoments.from_samples(H, labels, self.problem.num_classes)

    @property
    def gram_W(self) -> Tensor:  # noqa: N802  # W is the literature's letter
        """Inner products of the class vectors ``(K, K)``."""
        return self.W @ self.W.T

    @property
    def gram_H(self) -> Tensor:  # noqa: N802
        """Inner products of the class means ``(K, K)``."""
        return self.class_means @ self.class_means.T

    def collapse(self) -> dict[str, float]:
        """Return the collapse metrics of features and classifier, from the code that judges networks."""
        return {name: value.item() for name, value in F.collapse_metrics(self.moments, self.W, self.bias).items()}


def solution_at(problem: Problem, Z: Tensor, facts: Mapping[str, float], *, exact: bool, reason: str) -> Solution:
    """Return the cheapest factors of logits Z ``(K, K)`` and the best bias for them, if the model has one."""
    W, H = factorise(problem, Z)
    return solution_of(problem, W, H, best_bias(problem, problem.rows(), Z), facts, exact=exact, reason=reason)


def solution_of(
    problem: Problem,
    W: Tensor,
    H: Tensor,
    bias: Tensor | None,
    facts: Mapping[str, float],
    *,
    exact: bool,
    reason: str,
) -> Solution:
    """Return a point with its objective, its norms, and its bound if not ``exact``."""
    loss = objective(problem, W, H, bias).item()
    bound = loss if exact else dual_bound(problem, W, H, bias)
    return Solution(problem, W, H, bias, loss, exact, reason, bound, {**facts, **norms(problem, W, H)})


def norms(problem: Problem, W: Tensor, H: Tensor) -> dict[str, float]:
    """Return ``‖W‖²`` and ``‖H‖²``, the latter over all samples."""
    squares = (problem.prices * H.square().sum(dim=1)).sum()
    return {"squared_norm_W": W.square().sum().item(), "squared_norm_H": squares.item()}


def centering(num_classes: int) -> Tensor:
    """Return P = I - 11ᵀ/K."""
    return torch.eye(num_classes, dtype=torch.float64) - 1 / num_classes


def bisect(function: Callable[[float], float], low: float, high: float) -> float:
    """Return where an increasing function that is negative at ``low`` and positive at ``high`` changes sign."""
    while True:
        middle = low + (high - low) / 2
        if not low < middle < high:
            return middle
        if function(middle) < 0:
            low = middle
        else:
            high = middle
