"""Collapse metrics of class vectors alone: their norms and angles, and how far they are from a simplex ETF.

*Vectors* are either :class:`ClassMoments`, which stand for their centred class means, or a matrix ``(K, d)`` such as
``classifier.weight``, used as it is. The other conventions are those of :mod:`tightframe.functional.collapse`.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from tightframe._checks import as_tensor, check_choice, check_features, check_finite
from tightframe.functional.moments import ClassMoments
from tightframe.linalg import BLOCK, pair_sq_distances, pooled_var_mean, scale_to_one


def nc2_equinorm(vectors: ClassMoments | Tensor, *, correction: int = 1) -> Tensor:
    """Equal norms: standard deviation of the class vectors' norms over their mean (Papyan, Han & Donoho 2020, fig. 2).

    Args:
        vectors: moments or ``(K, d)``.
        correction: 1 for the sample standard deviation of published code, 0 for the population's.

    Returns:
        A number >= 0; 0 at collapse, nan if all vectors are zero.
    """
    norms = torch.linalg.vector_norm(matrix_of(vectors), dim=1)
    if norms.numel() < 2:
        return undefined(norms)
    return norms.std(correction=correction) / norms.mean()


def nc2_equiangularity(vectors: ClassMoments | Tensor) -> Tensor:
    """Equal angles: standard deviation of the cosines over all pairs (Papyan, Han & Donoho 2020, fig. 3).

    Returns:
        A number in [0, 1]; 0 if all angles are equal, whatever they are; nan if a vector is zero.
    """
    directions = unit_rows(_scaled(vectors))
    if len(directions) < 2:
        return undefined(directions)
    return pooled_var_mean(squares for _, _, squares in pair_sq_distances(directions))[0].sqrt() / 2


def nc2_max_angle(vectors: ClassMoments | Tensor) -> Tensor:
    """Maximal angles: mean over pairs of ``|cos + 1/(K - 1)|`` (Papyan, Han & Donoho 2020, fig. 4).

    Returns:
        A number in [0, 2]; 0 for a simplex ETF; nan if a vector is zero.
    """
    directions = unit_rows(_scaled(vectors))
    num_vectors = len(directions)
    if num_vectors < 2:
        return undefined(directions)
    ideal = 2 * num_vectors / (num_vectors - 1)
    errors = torch.stack([(squares - ideal).abs().sum() for _, _, squares in pair_sq_distances(directions)])
    return errors.sum() / (num_vectors * (num_vectors - 1))


def nc2_gram(vectors: ClassMoments | Tensor) -> Tensor:
    r"""Distance of the normalised Gram matrix from the simplex ETF's (Zhu et al. 2021, eq. 12).

    .. math:: \Bigl\lVert \frac{G}{\lVert G\rVert_F}-\frac{I-\mathbf 1\mathbf 1^\top/K}{\sqrt{K-1}}\Bigr\rVert_F,
        \qquad G=MM^\top

    Zhu et al. take the classifier's rows for M, Kothapalli 2023 the centred class means.

    Returns:
        A number in [0, 2]; 0 for a simplex ETF of any scale; nan if all vectors are zero.
    """
    matrix = matrix_of(vectors)
    return distance_from_simplex(matrix, matrix)


def nc2_etf_gap(vectors: ClassMoments | Tensor, variant: str = "relative") -> Tensor:
    r"""Relative distance g to the nearest simplex ETF under rotation and scaling, by orthogonal Procrustes.

    .. math:: g=\min_{s,\,R^\top R=I}\frac{\lVert M-s\,QR^\top\rVert_F}{\lVert M\rVert_F}
        =\frac{\sqrt{\sum_i(\sigma_i-\bar\sigma)^2+\lVert M^\top\mathbf 1\rVert^2/K}}{\lVert M\rVert_F}

    where Q is an orthonormal basis of the sum-zero vectors and :math:`\sigma` are the K - 1 singular values of
    :math:`Q^\top M`. No difference of large numbers is taken, so the gap is right down to rounding.

    Args:
        vectors: moments or ``(K, d)``.
        variant: ``"relative"`` is g; ``"squared"`` the squared distance of M and ETF, each of Frobenius norm 1,
            :math:`2-2\sqrt{1-g^2}` (the "ETF distance" of Markou, Ajanthan & Gould 2024).

    Returns:
        A number in [0, 1], or in [0, 2] squared; 0 for a simplex ETF; nan if d < K - 1, where none exists, or if all
        vectors are zero.
    """
    check_choice("variant", variant, ("relative", "squared"))
    matrix = _scaled(vectors)
    num_vectors, dim = matrix.shape
    if num_vectors < 2 or dim < num_vectors - 1:
        return undefined(matrix)
    mean = matrix.mean(dim=0)
    singular_values = torch.linalg.svdvals(matrix - mean)[: num_vectors - 1]
    spread = (singular_values - singular_values.mean()).square().sum() + num_vectors * mean.square().sum()
    gap = spread.sqrt() / torch.linalg.matrix_norm(matrix)
    return gap if variant == "relative" else 2 * gap.square() / (1 + (1 - gap.square()).clamp(min=0).sqrt())


def nc2_min_separation(vectors: ClassMoments | Tensor) -> Tensor:
    """Smallest distance between two class directions on the unit sphere (Liu et al. 2023).

    Returns:
        A number in [0, 2]; sqrt(2 K/(K - 1)) for a simplex ETF; nan if a vector is zero.
    """
    directions = unit_rows(_scaled(vectors))
    return _least_square(directions).sqrt() if len(directions) > 1 else undefined(directions)


def gnc2(vectors: ClassMoments | Tensor, kernel: str = "log", statistic: str = "mean") -> Tensor:
    r"""Hyperspherical energy of the class directions (Liu et al. 2023; Wu & Papyan 2024).

    Over pairs at distance :math:`\rho` on the unit sphere, the kernel is :math:`\log(1/\rho)` (``"log"``),
    :math:`\rho` (``"distance"``) or :math:`\rho^{-(d-2)}` (``"riesz"``). The Riesz energy leaves the range of floating
    point at a few hundred dimensions, so its *logarithm* is returned, computed in log space.

    Args:
        vectors: moments or ``(K, d)``.
        kernel: ``"log"``, ``"distance"`` or ``"riesz"``.
        statistic: ``"mean"`` or ``"variance"`` over pairs (population); for Riesz the logarithm of either.

    Returns:
        A number; nan if a vector is zero; infinite, but for ``"distance"``, if two directions coincide.
    """
    check_choice("kernel", kernel, ("log", "distance", "riesz"))
    check_choice("statistic", statistic, ("mean", "variance"))
    directions = unit_rows(_scaled(vectors))
    if len(directions) < 2 or bool(directions.isnan().any()):
        return undefined(directions)
    if kernel == "distance":
        distances = (squares.sqrt() for _, _, squares in pair_sq_distances(directions))
        return pooled_var_mean(distances)[statistic == "mean"]
    exponent = 1 if kernel == "log" else directions.shape[1] - 2
    energies = (squares.log().mul_(-exponent / 2) for _, _, squares in pair_sq_distances(directions))
    if kernel == "log":
        value = pooled_var_mean(energies)[statistic == "mean"]
    elif statistic == "mean":
        value = torch.stack([part.flatten().logsumexp(dim=0) for part in energies]).logsumexp(dim=0)
        value = value - math.log(math.comb(len(directions), 2))
    else:
        largest = _least_square(directions).log() * (-exponent / 2)
        variance, _ = pooled_var_mean(part.sub_(largest).exp_() for part in energies)
        value = 2 * largest + variance.log()
    return value.where(~value.isnan(), torch.inf)  # only infinite energies, of equal directions, give nan here


def nc0(weight: Tensor) -> Tensor:
    r"""Length of the sum of the classifier's rows, :math:`\lVert W^\top\mathbf 1\rVert_2`; 0 for a simplex ETF."""
    return torch.linalg.vector_norm(matrix_of(weight, "weight").sum(dim=0))


def matrix_of(vectors: ClassMoments | Tensor, name: str = "vectors") -> Tensor:
    """Return the vectors ``(K', d)`` that a metric looks at, in float64."""
    if isinstance(vectors, ClassMoments):
        return vectors.centered_means() if bool(vectors.present.any()) else vectors.mean[:0]
    matrix = as_tensor(vectors, name).detach()
    check_features(matrix, name=name)
    check_finite(matrix, name=name)
    return matrix.double()


def _scaled(vectors: ClassMoments | Tensor) -> Tensor:
    """Return the vectors in a scale in which no sum of products leaves the range of float64."""
    matrix = matrix_of(vectors)
    return matrix * scale_to_one(matrix)


def unit_rows(matrix: Tensor) -> Tensor:
    """Return the rows divided by their norms; nan where they are zero."""
    return matrix / torch.linalg.vector_norm(matrix, dim=1, keepdim=True)


def _least_square(directions: Tensor) -> Tensor:
    return torch.stack([squares.min() for _, _, squares in pair_sq_distances(directions)]).min()


def distance_from_simplex(left: Tensor, right: Tensor) -> Tensor:
    """Return the distance of the normalised products ``left @ right.T (K, K)`` of vectors from the simplex ETF's."""
    num_classes, dim = left.shape
    if num_classes < 2:
        return undefined(left)
    left, right = left * scale_to_one(left), right * scale_to_one(right)
    # The products are a multiple of the ETF's, and what is at right angles to that.
    root = (num_classes - 1) ** 0.5
    along = (left.flatten() @ right.flatten() - left.sum(dim=0) @ right.sum(dim=0) / num_classes).item() / root
    rest = None
    if num_classes > dim + 1:  # of too low a rank for an ETF, so that this difference keeps its digits
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
    """Return the answer of a metric that has none."""
    return torch.full((), torch.nan, dtype=torch.float64, device=like.device)
