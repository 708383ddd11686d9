"""Collapse metrics of class vectors alone: their norms and angles, and how far they are from a simplex ETF.

*Vectors* are :class:`ClassMoments`, which stand for their centred class means; or a matrix ``(K, d)`` such as
``classifier.weight``, used as it is; or :class:`Vectors`, which are kept for several metrics. The other conventions are
those of :mod:`tightframe.functional.collapse`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from functools import cached_property, wraps
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor

from tightframe.errors import as_tensor, check_choice, check_features, check_finite
from tightframe.linalg import BLOCK, pair_sq_distances, pooled_var_mean, scale_to_one
from tightframe.moments import ClassMoments

T = TypeVar("T")


class Present(NamedTuple):
    """Moments of the classes that have samples, to read and not to change.

    Args:
        which: Index of these classes among the K.
        number: Number K' of them.
        counts: Samples of each ``(K',)``.
        means: Class means ``(K', d)``.
        traces: Sums of squared distances from these ``(K',)``.
    """

    which: Tensor | slice
    number: int
    counts: Tensor
    means: Tensor
    traces: Tensor


def kept(function: Callable[..., T]) -> Callable[..., T]:
    """Keep the result of a function of moments and options until the moments change; do not change the result.

    Nothing is kept for tensors made in inference mode, because their changes are not counted.
    """

    @wraps(function)
    def once(moments: ClassMoments, *options: Any) -> T:
        packed = moments._settle().packed
        version = -1 if packed.is_inference() else packed._version
        if version != moments._facts[0] or version < 0:
            moments._facts = version, {}
        known = moments._facts[1]
        if (function, options) not in known:
            known[function, options] = function(moments, *options)
        return known[function, options]

    return once


@kept
def of_present(moments: ClassMoments) -> Present:
    """Return the moments of the present classes; if all are present they are views."""
    present = moments.present
    number = int(present.sum())
    which = slice(None) if number == moments.num_classes else present
    return Present(which, number, moments.count[which], moments.mean[which], moments.trace[which])


class Vectors:
    """Class vectors, with what several metrics compute from them, kept after the first use.

    Args:
        matrix: Vectors ``(K', d)``, finite, in float64.

    Attributes:
        scale: Power of two that brings the largest entry near 1.
        rows: Vectors times this scale, whose sums of products stay in the range of float64.
    """

    def __init__(self, matrix: Tensor) -> None:
        self.scale = scale_to_one(matrix)
        self.rows = matrix * self.scale

    @cached_property
    def directions(self) -> Tensor:
        """Vectors divided by their norms; nan where they are zero."""
        return unit_rows(self.rows)

    @property
    def squares(self) -> Iterable[Tensor]:
        """Squared distances between the directions, each pair once, block by block; kept if there are few."""
        return self._few_squares if len(self.rows) ** 2 <= BLOCK else self._squares()

    @cached_property
    def _few_squares(self) -> list[Tensor]:
        return list(self._squares())

    def _squares(self) -> Iterable[Tensor]:
        return (squares for _, _, squares in pair_sq_distances(self.directions))


def nc2_equinorm(vectors: ClassMoments | Tensor | Vectors, *, correction: int = 1) -> Tensor:
    """Equal norms: standard deviation of the class vectors' norms over their mean (Papyan, Han & Donoho 2020, fig. 2).

    Args:
        vectors: Class moments, or vectors ``(K, d)``.
        correction: Correction of the standard deviation: 1, as in published code, or 0 for the population's.

    Returns:
        A number >= 0; 0 at collapse, nan if all vectors are zero.
    """
    norms = torch.linalg.vector_norm(as_vectors(vectors).rows, dim=1)
    if norms.numel() < 2:
        return undefined(norms)
    return norms.std(correction=correction) / norms.mean()


def nc2_equiangularity(vectors: ClassMoments | Tensor | Vectors) -> Tensor:
    """Equal angles: standard deviation of the cosines over all pairs (Papyan, Han & Donoho 2020, fig. 3).

    Returns:
        A number in [0, 1]; 0 if all angles are equal, whatever they are; nan if a vector is zero.
    """
    vectors = as_vectors(vectors)
    return pooled_var_mean(vectors.squares)[0].sqrt() / 2 if len(vectors.rows) > 1 else undefined(vectors.rows)


def nc2_max_angle(vectors: ClassMoments | Tensor | Vectors) -> Tensor:
    """Maximal angles: mean over pairs of ``|cos + 1/(K - 1)|`` (Papyan, Han & Donoho 2020, fig. 4).

    Returns:
        A number in [0, 2]; 0 for a simplex ETF; nan if a vector is zero.
    """
    vectors = as_vectors(vectors)
    num_vectors = len(vectors.rows)
    if num_vectors < 2:
        return undefined(vectors.rows)
    ideal = 2 * num_vectors / (num_vectors - 1)
    errors = torch.stack([(squares - ideal).abs().sum() for squares in vectors.squares])
    return errors.sum() / (num_vectors * (num_vectors - 1))


def nc2_gram(vectors: ClassMoments | Tensor | Vectors) -> Tensor:
    r"""Distance of the normalised Gram matrix from the simplex ETF's (Zhu et al. 2021, eq. 12).

    .. math:: \Bigl\lVert \frac{G}{\lVert G\rVert_F}-\frac{I-\mathbf 1\mathbf 1^\top/K}{\sqrt{K-1}}\Bigr\rVert_F,
        \qquad G=MM^\top

    Zhu et al. take the classifier's rows for M, Kothapalli 2023 the centred class means.

    Returns:
        A number in [0, 2]; 0 for a simplex ETF of any scale; nan if all vectors are zero.
    """
    rows = as_vectors(vectors).rows
    return distance_from_simplex(rows, rows)


def nc2_etf_gap(vectors: ClassMoments | Tensor | Vectors, variant: str = "relative") -> Tensor:
    r"""Relative distance g to the nearest simplex ETF under rotation and scaling, by orthogonal Procrustes.

    .. math:: g=\min_{s,\,R^\top R=I}\frac{\lVert M-s\,QR^\top\rVert_F}{\lVert M\rVert_F}
        =\frac{\sqrt{\sum_i(\sigma_i-\bar\sigma)^2+\lVert M^\top\mathbf 1\rVert^2/K}}{\lVert M\rVert_F}

    where Q is an orthonormal basis of the sum-zero vectors and :math:`\sigma` are the K - 1 singular values of
    :math:`Q^\top M`. No large numbers are subtracted, so the gap is accurate to rounding.

    Args:
        vectors: Class moments, or vectors ``(K, d)``.
        variant: Distance, ``"relative"``: g; ``"squared"``: squared distance of M and ETF, each of Frobenius norm 1,
            :math:`2-2\sqrt{1-g^2}` (the "ETF distance" of Markou, Ajanthan & Gould 2024).

    Returns:
        A number in [0, 1], or in [0, 2] squared; 0 for a simplex ETF; nan if d < K - 1, where none exists, or if all
        vectors are zero.
    """
    check_choice("variant", variant, ("relative", "squared"))
    matrix = as_vectors(vectors).rows
    num_vectors, dim = matrix.shape
    if num_vectors < 2 or dim < num_vectors - 1:
        return undefined(matrix)
    mean = matrix.mean(dim=0)
    singular_values = torch.linalg.svdvals(matrix - mean)[: num_vectors - 1]
    spread = (singular_values - singular_values.mean()).square().sum() + num_vectors * mean.square().sum()
    gap = spread.sqrt() / torch.linalg.matrix_norm(matrix)
    return gap if variant == "relative" else 2 * gap.square() / (1 + (1 - gap.square()).clamp(min=0).sqrt())


def nc2_min_separation(vectors: ClassMoments | Tensor | Vectors) -> Tensor:
    """Smallest distance between two class directions on the unit sphere (Liu et al. 2023).

    Returns:
        A number in [0, 2]; sqrt(2 K/(K - 1)) for a simplex ETF; nan if a vector is zero.
    """
    vectors = as_vectors(vectors)
    return _least_square(vectors).sqrt() if len(vectors.rows) > 1 else undefined(vectors.rows)


def gnc2(vectors: ClassMoments | Tensor | Vectors, kernel: str = "log", statistic: str = "mean") -> Tensor:
    r"""Hyperspherical energy of the class directions (Liu et al. 2023; Wu & Papyan 2024).

    Over pairs at distance :math:`\rho` on the unit sphere, the kernel is :math:`\log(1/\rho)` (``"log"``),
    :math:`\rho` (``"distance"``) or :math:`\rho^{-(d-2)}` (``"riesz"``). The Riesz energy leaves the range of floating
    point at a few hundred dimensions, so its *logarithm* is returned.

    Args:
        vectors: Class moments, or vectors ``(K, d)``.
        kernel: Kernel ``"log"``, ``"distance"`` or ``"riesz"``.
        statistic: Statistic over pairs, ``"mean"`` or ``"variance"`` (population); for Riesz its logarithm.

    Returns:
        A number; nan if a vector is zero; infinite, except for ``"distance"``, if two directions coincide.
    """
    check_choice("kernel", kernel, ("log", "distance", "riesz"))
    check_choice("statistic", statistic, ("mean", "variance"))
    vectors = as_vectors(vectors)
    num_vectors, dim = vectors.rows.shape
    if num_vectors < 2 or bool(vectors.directions.isnan().any()):
        return undefined(vectors.rows)
    if kernel == "distance":
        return pooled_var_mean(squares.sqrt() for squares in vectors.squares)[statistic == "mean"]
    exponent = 1 if kernel == "log" else dim - 2
    energies = (squares.log().mul_(-exponent / 2) for squares in vectors.squares)
    if kernel == "log":
        value = pooled_var_mean(energies)[statistic == "mean"]
    elif statistic == "mean":
        value = torch.stack([part.flatten().logsumexp(dim=0) for part in energies]).logsumexp(dim=0)
        value = value - math.log(math.comb(num_vectors, 2))
    else:
        largest = _least_square(vectors).log() * (-exponent / 2)
        variance, _ = pooled_var_mean(part.sub_(largest).exp_() for part in energies)
        value = 2 * largest + variance.log()
    return value.where(~value.isnan(), torch.inf)  # nan comes only from infinite energies, of equal directions


def nc0(weight: Tensor | Vectors) -> Tensor:
    r"""Length of the sum of the classifier's rows, :math:`\lVert W^\top\mathbf 1\rVert_2`; 0 for a simplex ETF."""
    vectors = as_vectors(weight, "weight")
    return torch.linalg.vector_norm(vectors.rows.sum(dim=0)) / vectors.scale


def as_vectors(vectors: ClassMoments | Tensor | Vectors, name: str = "vectors") -> Vectors:
    """Return the vectors that a metric looks at."""
    if isinstance(vectors, ClassMoments):
        return centered_vectors(vectors)
    return vectors if isinstance(vectors, Vectors) else Vectors(matrix_of(vectors, name))


@kept
def centered_vectors(moments: ClassMoments, weighting: str = "class") -> Vectors:
    """Return the centred class means of moments."""
    present = of_present(moments)
    return Vectors(moments.centered_means(weighting) if present.number else present.means)


def matrix_of(vectors: Tensor, name: str = "vectors") -> Tensor:
    """Return a matrix ``(K', d)`` that is finite, in float64."""
    matrix = as_tensor(vectors, name).detach()
    check_features(matrix, name=name)
    check_finite(matrix, name=name)
    return matrix.double()


def unit_rows(matrix: Tensor) -> Tensor:
    """Return the rows divided by their norms; nan where they are zero."""
    return matrix / torch.linalg.vector_norm(matrix, dim=1, keepdim=True)


def _least_square(vectors: Vectors) -> Tensor:
    return torch.stack([squares.min() for squares in vectors.squares]).min()


def distance_from_simplex(left: Tensor, right: Tensor) -> Tensor:
    """Return the distance of the normalised products ``left @ right.T (K, K)`` from the simplex ETF's.

    Args:
        left: Vectors ``(K, d)``, whose largest entry is near 1.
        right: Vectors like those.
    """
    num_classes, dim = left.shape
    if num_classes < 2:
        return undefined(left)
    # The products are a multiple of the ETF's plus a part orthogonal to it.
    root = (num_classes - 1) ** 0.5
    along = (left.flatten() @ right.flatten() - left.sum(dim=0) @ right.sum(dim=0) / num_classes).item() / root
    rest = None
    if num_classes > dim + 1:  # the rank is too low for an ETF, so this difference keeps its digits
        of_left, of_right = left.T @ left, right.T @ right
        total = (of_left * of_right).sum()
        if total > 1e-6 * torch.linalg.matrix_norm(of_left) * torch.linalg.matrix_norm(of_right):
            rest = math.sqrt(total.item() - along**2)
    if rest is None:
        rest = 0.0
        for start in range(0, num_classes, height := max(1, BLOCK // num_classes)):
            block = (left[start : start + height] @ right.T).add_(along / (num_classes * root))
            block.diagonal(start).sub_(along / root)
            rest = math.hypot(rest, torch.linalg.vector_norm(block).item())
    norm = math.hypot(along, rest)
    return left.new_tensor(math.hypot(along / norm - 1, rest / norm)) if norm else undefined(left)


def undefined(like: Tensor) -> Tensor:
    """Return nan, the value of a metric that is not defined."""
    return torch.full((), torch.nan, dtype=torch.float64, device=like.device)
