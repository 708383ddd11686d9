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
from tightframe.ufm.problems import Problem

P = ParamSpec("P")
R = TypeVar("R")


def on_cpu(function: Callable[P, R]) -> Callable[P, R]:
    """Make a function create its tensors on the CPU, whatever PyTorch's default device is."""

    @wraps(function)
    def wrapped(*args: P.args, **options: P.kwargs) -> R:
        with torch.device("cpu"):
            return function(*args, **options)

    return wrapped


@dataclass(frozen=True)
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
    W: Tensor = field(repr=False)
    H: Tensor = field(repr=False)
    bias: Tensor | None = field(repr=False)
    loss: float
    exact: bool
    reason: str
    lower_bound: float = -math.inf
    facts: Mapping[str, float] = field(default_factory=dict)
    iterations: int = 0
    residual: float = math.nan
    factors: tuple[Tensor, ...] = field(default=(), repr=False)

    def _repr_html_(self) -> str:
        """Return the facts as a table, for notebooks."""
        known = {"loss": self.loss, "lower bound": self.lower_bound, "exact": self.exact, **self.facts}
        return html_table([str(self.problem), ""], [*known.items(), ("reason", self.reason)])

    @property
    def labels(self) -> Tensor:
        """Class of each row of H."""
        return labels_of_rows(self.problem, self.H)

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
        H, labels = self.H, self.labels
        if len(H) == self.problem.num_classes:
            labels = labels.repeat_interleave(torch.tensor(self.problem.counts))
            H = H[labels]
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


def labels_of_rows(problem: Problem, H: Tensor) -> Tensor:
    """Return the class of each row of H ``(K, d)`` or ``(N, d)``, class by class."""
    classes = torch.arange(problem.num_classes)
    if len(H) == problem.num_classes:
        return classes
    return classes.repeat_interleave(torch.tensor(problem.counts))
