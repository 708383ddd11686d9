"""The library of logits among which deep cross-entropy has its minima, and the weights that attain them.

Half the sum of squared norms of F = L + 1 factors, the product of which is Z, is at least F/2 Σ s^(2/F) over the
singular values s of Z, and a linear model attains it if d is at least the rank of Z. Deep cross-entropy is therefore
cross-entropy of the logits with a price on their Schatten quasi-norm, which prefers low rank the more, the deeper the
model is.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from tightframe.errors import ArgumentError, check_positive


@dataclass(frozen=True, eq=False)
class Structure:
    """Logits of all classes at unit scale, of a linear model.

    Args:
        name: Name by which its losses and scales are reported.
        logits: ``(K, K)`` float64, row k those of class k; the own logit must be the largest in each row.
        spectrum: the singular values > 0 of the logits, ``(r,)``.

    Raises:
        ArgumentError: if the own logit is not the largest: no scale would make a class known.
    """

    name: str
    logits: Tensor
    spectrum: Tensor

    def __post_init__(self) -> None:
        """Check the margin."""
        if not self.margin > 0:
            raise ArgumentError(
                f"logits of structure {self.name!r} must have the largest entry of each row on the diagonal, got a "
                f"margin of {self.margin}"
            )

    @property
    def rank(self) -> int:
        """Rank of the logits."""
        return len(self.spectrum)

    @property
    def min_dim(self) -> int:
        """The least d of a model that has these logits."""
        return self.rank

    @property
    def margin(self) -> float:
        """The least amount by which an own logit surpasses another."""
        return margins(self.logits).min().item()

    def cost(self, num_layers: int) -> float:
        r"""Return :math:`\sum_i s_i^{2/(L+1)}`, at unit scale and one sample a class."""
        return self.spectrum.pow(2 / (num_layers + 1)).sum().item()

    def quasi_norm(self, num_layers: int) -> float:
        r"""Return the cost at margin 1, :math:`\sum_i (s_i / \text{margin})^{2/(L+1)}`.

        Gradient flow of deep linear cross-entropy without decay tends to where it is least (Garrod & Keating 2024).

        Example:
            >>> [round(structure.quasi_norm(5), 2) for structure in (dnc(10), pairs(10), polygon(10))]
            [9.0, 6.3, 5.94]
        """
        return self.cost(num_layers) / self.margin ** (2 / (num_layers + 1))

    def factors(self, scale: float, count: int, num_layers: int, dim: int) -> tuple[Tensor, ...]:
        """Return the cheapest ``(H_1, W_1, ..., W_L)`` with these logits: all have the same singular values."""
        U, S, Vh = torch.linalg.svd(self.logits)
        r = self.rank
        shared = (scale * math.sqrt(count) * S[:r]) ** (1 / (num_layers + 1))
        H, last = (torch.zeros(len(S), dim, dtype=torch.float64) for _ in range(2))
        H[:, :r], last[:, :r] = U[:, :r] * shared / math.sqrt(count), Vh[:r].T * shared
        middle = torch.zeros(dim, dim, dtype=torch.float64)
        middle[:r, :r] = shared.diag()
        return H, *(middle.clone() for _ in range(num_layers - 1)), last


@dataclass(frozen=True, eq=False)
class ReLUStructure:
    r"""Logits of all classes at unit scale, of a model with a ReLU before each matrix but the first.

    Nothing is ever cut off: features :math:`A \ge 0` before the first ReLU, which :math:`M \ge 0` leaves as they are,
    and an output O with :math:`A O^\top` the logits. The three are ``(K, D)``, ``(D, D)``, ``(K, D)``, for D <= d.

    Args:
        name: Name by which its losses and scales are reported.
        features: A.
        middle: M, with A Mᵀ = A.
        output: O.
    """

    name: str
    features: Tensor
    middle: Tensor
    output: Tensor

    @property
    def logits(self) -> Tensor:
        """``A @ O.T``."""
        return self.features @ self.output.T

    @property
    def min_dim(self) -> int:
        """The least d of a model that has these logits in this way: D."""
        return self.features.shape[1]

    def cost(self, num_layers: int) -> float:
        r"""Return :math:`(\lVert A\rVert_* \lVert M\rVert^{L-2} \lVert O\rVert)^{2/(L+1)}` of L >= 2 layers.

        It plays the part of :math:`\sum_i s_i^{2/(L+1)}` of linear models: F times it are the squared norms of all
        factors, which are equal, at unit scale and one sample a class.
        """
        check_positive("num_layers", num_layers, 2)
        norms = self.middle.norm() ** (num_layers - 2) * self.output.norm()
        return float(torch.linalg.matrix_norm(self.features, "nuc") * norms) ** (2 / (num_layers + 1))

    def factors(self, scale: float, count: int, num_layers: int, dim: int) -> tuple[Tensor, ...]:
        """Return ``(H_1, W_1, ..., W_L)`` with these logits, each of the same norm."""
        norm = math.sqrt(self.cost(num_layers) * (scale * math.sqrt(count)) ** (2 / (num_layers + 1)))
        U, S, Vh = torch.linalg.svd(self.features, full_matrices=False)
        shares = norm * (S / S.sum()).sqrt()
        D = self.min_dim
        H, last = (torch.zeros(len(self.output), dim, dtype=torch.float64) for _ in range(2))
        first, middle = (torch.zeros(dim, dim, dtype=torch.float64) for _ in range(2))
        H[:, : len(S)], first[:D, : len(S)] = U * shares / math.sqrt(count), Vh.T * shares
        middle[:D, :D] = norm * self.middle / self.middle.norm()
        last[:, :D] = norm * self.output / self.output.norm()
        return H, first, *(middle.clone() for _ in range(num_layers - 2)), last


def margins(logits: Tensor) -> Tensor:
    """Return own logit less each other ``(K, K - 1)``, in each row rising."""
    differences = logits.diagonal().unsqueeze(1) - logits
    off = ~torch.eye(len(logits), dtype=torch.bool)
    return differences[off].reshape(len(logits), -1).sort(dim=1).values


def dnc(num_classes: int) -> Structure:
    """Return deep neural collapse: the centring matrix P = I - 11ᵀ/K, of rank K - 1 and margin 1.

    Args:
        num_classes: K >= 2.
    """
    check_positive("num_classes", num_classes, 2)
    return Structure("dnc", _centering(num_classes), torch.ones(num_classes - 1, dtype=torch.float64))


def groups(num_classes: int, size: int) -> Structure:
    """Return logits that tell classes apart within groups alone: 1 for the own, -1/(g - 1) for the others of its group.

    Classes of other groups have 0, which is less than the own: the margin is 1. The last group is of the classes that
    are left; if that is a single one, its logits are 1 for itself and 0 else.

    Args:
        num_classes: K >= 3.
        size: g, classes of a group, 2 <= g < K.

    Raises:
        ArgumentError: if a group is of one class or of all.
    """
    check_positive("num_classes", num_classes, 3)
    if not 2 <= size < num_classes:
        raise ArgumentError(f"size must be in 2..K - 1 = {num_classes - 1}, got {size}; the group of all K is dnc")
    sizes = [min(size, num_classes - start) for start in range(0, num_classes, size)]
    blocks = [m / (m - 1) * _centering(m) if m > 1 else torch.ones(1, 1, dtype=torch.float64) for m in sizes]
    spectrum = [m / (m - 1) if m > 1 else 1.0 for m in sizes for _ in range(max(m - 1, 1))]
    name = "pairs" if size == 2 else f"groups_{size}"
    return Structure(name, torch.block_diag(*blocks), torch.tensor(sorted(spectrum, reverse=True), dtype=torch.float64))


def pairs(num_classes: int) -> Structure:
    """Return groups of two: blocks ((1, -1), (-1, 1)), with a single 1 if K >= 3 is odd; of rank ⌈K/2⌉."""
    return groups(num_classes, 2)


def polygon(num_classes: int) -> Structure:
    """Return the inner products of K unit vectors at equal angles in the plane: rank 2, the least that has a margin.

    Args:
        num_classes: K >= 3. It is ``dnc`` but for the scale for K = 3, and ``pairs`` in another order for K = 4.
    """
    check_positive("num_classes", num_classes, 3)
    index = torch.arange(num_classes, dtype=torch.float64)
    logits = (2 * math.pi / num_classes * (index.unsqueeze(1) - index)).cos()
    return Structure("polygon", logits, torch.full((2,), num_classes / 2, dtype=torch.float64))


def relu_dnc(num_classes: int) -> ReLUStructure:
    """Return deep neural collapse over nonnegative features: orthogonal ones, in D = K dimensions.

    Args:
        num_classes: K >= 2.
    """
    check_positive("num_classes", num_classes, 2)
    eye = torch.eye(num_classes, dtype=torch.float64)
    return ReLUStructure("dnc", eye, eye, _centering(num_classes))


def relu_pairs(num_classes: int) -> ReLUStructure:
    r"""Return the logits of ``pairs`` over nonnegative features of rank ⌈K/2⌉ + 1 (Súkeník et al. 2024).

    With X the blocks ((1, -1), (-1, 1)) of :func:`pairs`, the features are :math:`A = X + 11^\top`, the middle
    :math:`M = (X + \tfrac2K 11^\top)/2` and the output X/2. Odd K are K + 1 without the last class, for which D is
    K + 1.

    Args:
        num_classes: K >= 2.
    """
    check_positive("num_classes", num_classes, 2)
    even = num_classes + num_classes % 2
    X = torch.block_diag(*[2 * _centering(2)] * (even // 2))
    return ReLUStructure("pairs", (X + 1)[:num_classes], (X + 2 / even) / 2, X[:num_classes] / 2)


def relu_min_classes(num_layers: int) -> int:
    """Return the least even K for which ``relu_pairs`` are cheaper than deep neural collapse of a linear model.

    The latter bounds from below what deep neural collapse costs with ReLUs, so that it is not optimal from there on: at
    an equal scale the fit of the pairs is the better one too.

    Args:
        num_layers: L >= 4; with fewer layers there is none.

    Example:
        >>> [relu_min_classes(num_layers) for num_layers in (4, 5, 6, 8)]
        [14, 10, 8, 6]
    """
    check_positive("num_layers", num_layers, 4)
    num_classes = 4
    while relu_pairs(num_classes).cost(num_layers) >= num_classes - 1:
        num_classes += 2
    return num_classes


def library(num_classes: int, relu: bool = False) -> list[Structure] | list[ReLUStructure]:
    """Return the structures of linear or ReLU models; of linear ones deep neural collapse, groups and the polygon.

    Groups are pairs, triples, and those whose size divides K; of K <= 16, where others were tried, none was ever best.
    """
    if relu:
        return [relu_dnc(num_classes), relu_pairs(num_classes)]
    sizes = [size for size in range(2, num_classes) if size <= 3 or num_classes % size == 0]
    shapes = [dnc(num_classes), *(groups(num_classes, size) for size in sizes)]
    return [*shapes, polygon(num_classes)] if num_classes >= 3 else shapes


def solution_dimension(rank: int, dim: int, num_layers: int) -> int:
    """Return the dimension of the manifold of cheapest factors of given logits of a rank r: L (r d - r(r + 1)/2).

    Between each two neighbours among the L + 1 factors lies a frame of r orthonormal vectors in d dimensions: a point
    of a Stiefel manifold, also where singular values repeat.

    Example:
        >>> solution_dimension(rank=3, dim=5, num_layers=2)
        18
    """
    if not 1 <= rank <= dim:
        raise ArgumentError(f"rank must be in 1..d = {dim}, got {rank}")
    return num_layers * (rank * dim - rank * (rank + 1) // 2)


def _centering(n: int) -> Tensor:
    return torch.eye(n, dtype=torch.float64) - 1 / n
