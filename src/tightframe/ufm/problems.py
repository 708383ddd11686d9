"""The unconstrained-feature models: what is minimised, over which variables, at what price."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from tightframe.errors import ArgumentError, check_choice, check_positive


@dataclass(frozen=True)
class Problem:
    """Base of all models: free features of ``n_k`` samples of each class, in d dimensions.

    Args:
        counts: ``n_k`` of the K >= 2 classes, each at least 1.
        dim: d >= 1. How large it must be for a closed form to exist is that form's to say.

    Raises:
        ArgumentError: if an argument is outside its range; an empty class is named.
    """

    counts: tuple[int, ...]
    dim: int

    def __post_init__(self) -> None:
        """Make the counts a tuple and check them."""
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


@dataclass(frozen=True)
class _Penalised(Problem):
    weight_decay: float
    feature_decay: float
    sample_weights: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("weight_decay", "feature_decay"):
            check_penalty(name, getattr(self, name))
        object.__setattr__(self, "sample_weights", checked_weights(self.sample_weights, self.num_classes))


@dataclass(frozen=True)
class _PenalisedWithBias(_Penalised):
    bias_decay: float | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.bias_decay is not None and self.bias_decay != 0:
            check_penalty("bias_decay", self.bias_decay)


@dataclass(frozen=True)
class CrossEntropyUFM(_PenalisedWithBias):
    r"""Cross-entropy with penalties on classifier and features (Zhu et al. 2021, arXiv 2105.02375).

    .. math:: \sum_i \omega_{y_i}\, \mathrm{CE}(W h_i + b, y_i) + \tfrac{\lambda_W}{2}\lVert W\rVert^2
        + \tfrac{\lambda_H}{2}\lVert H\rVert^2 + \tfrac{\lambda_b}{2}\lVert b\rVert^2

    Args:
        counts: ``n_k``.
        dim: d.
        weight_decay: :math:`\lambda_W > 0`.
        feature_decay: :math:`\lambda_H > 0`.
        sample_weights: :math:`\omega_k > 0` of one sample of each class, ``(K,)``; None is 1/N, the mean over samples.
            Papers that write a sum have weights of 1.
        bias_decay: :math:`\lambda_b`; None is no bias, 0 a free one.
    """


@dataclass(frozen=True)
class MeanSquaredUFM(_PenalisedWithBias):
    r"""Squared error against one-hot targets with penalties (Zhou et al. 2022; Tirer & Bruna 2022).

    .. math:: \sum_i \tfrac{\omega_{y_i}}{2}\lVert W h_i + b - e_{y_i}\rVert^2 + \tfrac{\lambda_W}{2}\lVert W\rVert^2
        + \tfrac{\lambda_H}{2}\lVert H\rVert^2 + \tfrac{\lambda_b}{2}\lVert b\rVert^2

    The arguments are those of :class:`CrossEntropyUFM`.
    """


@dataclass(frozen=True)
class ReLUImbalanced(_Penalised):
    r"""Cross-entropy of nonnegative features, H >= 0, without bias (Dang et al. 2024).

    The arguments are those of :class:`CrossEntropyUFM`.
    """


@dataclass(frozen=True)
class LayerPeeled(Problem):
    r"""The layer-peeled model: cross-entropy under budgets (Fang et al. 2021, arXiv 2101.12699).

    .. math:: \min \sum_i \omega_{y_i}\, \mathrm{CE}(W h_i, y_i) \quad \text{s.t.}\quad
        \tfrac1K \sum_k \lVert w_k\rVert^2 \le E_W,\quad
        \tfrac1K \sum_k \tfrac1{n_k} \sum_{i: y_i = k} \lVert h_i\rVert^2 \le E_H

    Args:
        counts: ``n_k``.
        dim: d.
        weight_budget: :math:`E_W > 0`.
        feature_budget: :math:`E_H > 0`.
        sample_weights: Weights as in :class:`CrossEntropyUFM`; oversampling class k by r is a weight r times as large.
    """

    weight_budget: float
    feature_budget: float
    sample_weights: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("weight_budget", "feature_budget"):
            check_penalty(name, getattr(self, name))
        object.__setattr__(self, "sample_weights", checked_weights(self.sample_weights, self.num_classes))


@dataclass(frozen=True)
class ULPM(Problem):
    r"""The unconstrained layer-peeled model: the sum of cross-entropies, nothing else (Ji et al. 2022).

    .. math:: \sum_i \mathrm{CE}(W h_i, y_i)

    Its infimum 0 is not attained; gradient flow goes to infinity in a direction that :class:`MaxMargin` decides.
    """


@dataclass(frozen=True)
class MaxMargin(Problem):
    r"""The unconstrained-feature support vector machine (Thrampoulidis et al. 2022).

    .. math:: \min \tfrac12\lVert W\rVert^2 + \tfrac12\lVert H\rVert^2 \quad \text{s.t.}\quad
        (w_{y_i} - w_j)^\top h_i \ge 1 \quad \forall i,\ j \ne y_i
    """


@dataclass(frozen=True)
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
        check_choice("loss", self.loss, ("cross-entropy", "mse"))

    @property
    def num_layers(self) -> int:
        """L, the number of matrices."""
        return len(self.decays) - 1


def check_penalty(name: str, value: float) -> None:
    """Raise :class:`ArgumentError` unless ``value`` is a finite number > 0."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
        raise ArgumentError(f"{name} must be a finite number > 0, got {value!r}")


def checked_weights(weights: Sequence[float] | None, num_classes: int) -> tuple[float, ...] | None:
    """Return the weights as a tuple; raise :class:`ArgumentError` unless there is one > 0 for each class."""
    if weights is None:
        return None
    weights = tuple(weights)
    if len(weights) != num_classes:
        raise ArgumentError(f"sample_weights must be one for each of {num_classes} classes, got {len(weights)}")
    for weight in weights:
        check_penalty("sample_weights", weight)
    return weights
