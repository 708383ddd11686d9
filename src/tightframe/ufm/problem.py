"""An unconstrained-feature model: its classes, its penalties or budgets, and its objective.

A model whose fit is convex has a minimum where all samples of a class share their feature (Jensen), so that H has one
row a class. With ``c_k`` the price of that row, Z = H Wᵀ ``(K, K)`` and Y = diag(√c) Z,

    min over W, H  of  F(H Wᵀ) + λ_W/2 ‖W‖² + λ_H/2 Σ c_k ‖h_k‖²   =   min over Y  of  F(diag(1/√c) Y) + σ ‖Y‖_*

with σ = √(λ_W λ_H), as soon as d is at least the rank of an optimal Y.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor

from tightframe.errors import (
    ArgumentError,
    DimensionError,
    DtypeError,
    ShapeError,
    as_tensor,
    check_positive,
    shown,
)
from tightframe.ufm.losses import CrossEntropy, Loss, Rows


@dataclass(frozen=True, repr=False)
class Problem:
    """Base of all models: free features of ``n_k`` samples of each class, in d dimensions.

    Args:
        counts: ``n_k`` of the K >= 2 classes, each at least 1.
        dim: Feature dimension d >= 1. Each closed form says how large it must be.

    Raises:
        ArgumentError: if an argument is outside its range; an empty class is named.
    """

    counts: tuple[int, ...]
    dim: int

    def __post_init__(self) -> None:
        """Make plain numbers and tuples of numpy's and PyTorch's, and check counts and weights."""
        for field in fields(self):
            object.__setattr__(self, field.name, _plain(getattr(self, field.name)))
        counts = tuple(self.counts)
        if len(counts) < 2:
            raise ArgumentError(f"counts must be of at least two classes, got {len(counts)}")
        for k, count in enumerate(counts):
            if isinstance(count, bool) or not isinstance(count, int) or count < 1:
                raise ArgumentError(
                    f"counts must be integers >= 1, got {count!r} for class {k}; leave an empty class out"
                )
        object.__setattr__(self, "counts", counts)
        check_positive("dim", self.dim)
        if self.sample_weights is not None:
            weights = tuple(self.sample_weights)
            if len(weights) != len(counts):
                raise ArgumentError(f"sample_weights must be one for each of {len(counts)} classes, got {len(weights)}")
            for weight in weights:
                check_penalty("sample_weights", weight)
            object.__setattr__(self, "sample_weights", weights)

    def __repr__(self) -> str:
        """Return class and arguments, long ones cut."""
        known = ", ".join(f"{field.name}={shown(getattr(self, field.name))}" for field in fields(self))
        return f"{type(self).__name__}({known})"

    @property
    def num_classes(self) -> int:
        """K."""
        return len(self.counts)

    @property
    def num_samples(self) -> int:
        """N."""
        return sum(self.counts)

    @property
    def balanced(self) -> bool:
        """Whether all classes have the same count."""
        return len(set(self.counts)) == 1

    # The parts of a model; a model that has a part says so by a field or a property of the same name.

    @property
    def criterion(self) -> Loss:
        """Loss of a row of logits."""
        return CrossEntropy()

    @property
    def has_objective(self) -> bool:
        """Whether there is one matrix, and a fit: :func:`objective` is then defined."""
        return True

    @property
    def nonnegative(self) -> bool:
        """Whether features must be >= 0."""
        return False

    @property
    def convex(self) -> bool:
        """Whether one matrix is behind the features and the fit has a minimum, so that a convex dual bounds it."""
        return False

    @property
    def sample_weights(self) -> tuple[float, ...] | None:
        """Weight ω_k of one sample of each class ``(K,)``; None is 1/N."""
        return None

    @property
    def penalties(self) -> tuple[float, float]:
        """λ_W and λ_H; 0 where budgets or nothing hold the norms."""
        return 0.0, 0.0

    @property
    def bias_decay(self) -> float | None:
        """Penalty λ_b; None is no bias."""
        return None

    @property
    def radius(self) -> float | None:
        """Largest ‖Y‖_* under budgets; None if there are none."""
        return None

    @property
    def split(self) -> float:
        """‖W‖² / Σ c_k ‖h_k‖² at every minimum."""
        return self.penalties[1] / self.penalties[0] if self.penalties[0] else 1.0

    @property
    def sigma(self) -> float:
        """σ = √(λ_W λ_H), the price of a unit of nuclear norm."""
        return math.sqrt(self.penalties[0]) * math.sqrt(self.penalties[1])  # the product may underflow

    @property
    def n(self) -> Tensor:
        """``n_k`` as float64 ``(K,)``."""
        return torch.tensor(self.counts, dtype=torch.float64)

    @property
    def shapes(self) -> list[tuple[int, int]]:
        """Shapes of H, with one row for each class, and of the matrices towards the output."""
        return [(self.num_classes, self.dim)] * 2

    @property
    def class_weights(self) -> Tensor:
        """``n_k ω_k`` ``(K,)``, the weight of the mean fit of a class."""
        if self.sample_weights is None:
            return self.n / self.num_samples
        return self.n * torch.tensor(self.sample_weights, dtype=torch.float64)

    @property
    def prices(self) -> Tensor:
        """Price ``c_k`` of ‖h_k‖² where all samples of class k share that feature ``(K,)``."""
        return self.n

    @property
    def strengths(self) -> Tensor:
        """ω_k √n_k ``(K,)``: the pull of class k where its samples share a feature, with which σ is compared."""
        return self.class_weights / self.n.sqrt()

    @property
    def uniform_weight(self) -> float | None:
        """Weight of a sample if all samples have the same, else None."""
        weights = self.sample_weights or (1 / self.num_samples,)
        return weights[0] if len(set(weights)) == 1 else None

    def rows(self, number: int | None = None) -> Rows:
        """Return the rows of features, class by class: one for each of K classes (None), or one for each of N samples.

        Raises:
            ShapeError: if ``number`` is neither K nor N.
        """
        classes = torch.arange(self.num_classes)
        if number in (None, self.num_classes):
            return Rows(classes, self.class_weights, self.prices)
        if number != self.num_samples:
            raise ShapeError(
                f"H must have a row for each of K = {self.num_classes} classes or N = {self.num_samples} samples, "
                f"got {number}"
            )
        own = classes.repeat_interleave(torch.tensor(self.counts))
        return Rows(own, (self.class_weights / self.n)[own], (self.prices / self.n)[own])

    def require_dim(self, needed: int, what: str) -> None:
        """Raise :class:`DimensionError` unless d is at least ``needed``, of which ``what`` says why."""
        if self.dim < needed:
            raise DimensionError(
                f"dim must be at least {needed} for {what} of K = {self.num_classes} classes, got d = {self.dim}; "
                "the closed form needs that many dimensions: widen the features, or solve the problem numerically"
            )


@dataclass(frozen=True, repr=False)
class Penalised(Problem):
    """Base of the models with one matrix and penalties."""

    weight_decay: float
    feature_decay: float
    sample_weights: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        """Check the penalties too."""
        super().__post_init__()
        check_penalty("weight_decay", self.weight_decay)
        check_penalty("feature_decay", self.feature_decay)

    @property
    def convex(self) -> bool:
        """True."""
        return True

    @property
    def penalties(self) -> tuple[float, float]:
        """λ_W and λ_H."""
        return self.weight_decay, self.feature_decay


@dataclass(frozen=True, repr=False)
class PenalisedWithBias(Penalised):
    """Base of the models with one matrix, penalties, and a bias if that has a penalty, which may be 0."""

    bias_decay: float | None = None

    def __post_init__(self) -> None:
        """Check the penalty on the bias too."""
        super().__post_init__()
        if self.bias_decay is not None and (isinstance(self.bias_decay, bool) or self.bias_decay != 0):
            check_penalty("bias_decay", self.bias_decay, "None, 0 or a finite number > 0")


def _plain(value: Any) -> Any:
    """Return numbers of numpy and PyTorch as Python's, and sequences as tuples of these."""
    if hasattr(value, "tolist"):
        value = value.tolist()
    return tuple(map(_plain, value)) if isinstance(value, list | tuple) else value


def double(values: Any, name: str) -> Tensor:
    """Return a tensor, an array or lists of numbers as float64, differentiable; the numerics below are in that.

    Args:
        values: Numbers in equal rows.
        name: Name of the argument, for the error.

    Raises:
        DtypeError: if they are none.
    """
    tensor = as_tensor(values, name)
    if tensor.is_complex():
        raise DtypeError(f"{name} must hold real numbers, got {tensor.dtype}")
    return tensor.double()


def check_penalty(name: str, value: float, wanted: str = "a finite number > 0") -> None:
    """Raise :class:`ArgumentError` unless ``value`` is a finite number > 0; ``wanted`` says more of what is allowed."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
        raise ArgumentError(f"{name} must be {wanted}, got {value!r}")


def objective(problem: Problem, W: Tensor, H: Tensor, bias: Tensor | None = None) -> Tensor:
    """Return the objective of a model with one matrix at a point, a 0-d tensor, differentiable.

    Args:
        problem: Model with a fit. Under budgets the objective is the fit alone, whether the budgets are kept or not.
        W: Class vectors ``(K, d)``.
        H: Features ``(K, d)`` or ``(N, d)``, class by class.
        bias: Bias ``(K,)`` where the problem has one.
    """
    if not problem.has_objective:
        raise ArgumentError(f"problem must be a one-layer model with a fit, got {type(problem).__name__}")
    return objective_of_rows(problem, problem.rows(len(H)), W, H, bias)


def objective_of_rows(problem: Problem, rows: Rows, W: Tensor, H: Tensor, bias: Tensor | None = None) -> Tensor:
    """Return :func:`objective` where the rows of the features are known already."""
    W, H = double(W, "W"), double(H, "H")
    logits = H @ W.T if bias is None else H @ W.T + double(bias, "bias")
    value = problem.criterion.fit(rows, logits)
    weight_decay, feature_decay = problem.penalties
    value = value + weight_decay / 2 * W.square().sum()
    value = value + feature_decay / 2 * (rows.prices * H.square().sum(dim=1)).sum()
    return value if bias is None else value + (problem.bias_decay or 0.0) / 2 * bias.square().sum()


def factorise(problem: Problem, Z: Tensor) -> tuple[Tensor, Tensor]:
    """Return W ``(K, d)`` and H ``(K, d)`` with H Wᵀ = Z that cost the least: half the squared norms are ‖Y‖_*.

    Args:
        problem: Model, which decides d, the prices and how the norm is split.
        Z: Logits without bias ``(K, K)``, row k those of class k; its rank must be at most d.
    """
    root = problem.prices.sqrt().unsqueeze(1)
    U, S, Vh = torch.linalg.svd(root * Z)
    # The square root would turn the rounding error of a zero into an eighth digit.
    S = S.where(len(S) * torch.finfo(S.dtype).eps * S[0] < S, 0)
    rank = min(problem.dim, len(S))
    if rank < len(S) and S[rank] > 1e-8 * S[0]:
        raise ShapeError(f"Z must have rank at most d = {problem.dim}, got singular values {S.tolist()}")
    shares, ratio = S[:rank].sqrt(), problem.split**0.25
    W, H = (torch.zeros(len(S), problem.dim, dtype=torch.float64) for _ in range(2))
    W[:, :rank] = ratio * Vh[:rank].T * shares
    H[:, :rank] = U[:, :rank] * shares / (ratio * root)
    return W, H
