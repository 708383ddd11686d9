"""Collapse metrics of the moments of features, some of them together with the classifier.

Conventions of every function here and in :mod:`tightframe.functional.geometry`:

- it returns a 0-d float64 tensor on the device of its input;
- absent classes are left out, of the means and of the classifier's rows alike, and K counts the classes present;
- a limit 0/0, or fewer than two present classes, gives nan: there is no hidden epsilon;
- ``weighting`` names the global mean that centres the class means: ``"class"`` (the mean of the class means) or
  ``"sample"``. They differ if classes are imbalanced.
"""

from __future__ import annotations

import torch
from torch import Tensor

from tightframe.errors import DeviceError, ShapeError, as_tensor, check_choice, check_positive
from tightframe.functional.geometry import (
    Vectors,
    centered_vectors,
    distance_from_simplex,
    kept,
    matrix_of,
    of_present,
    undefined,
    unit_rows,
)
from tightframe.linalg import pair_sq_distances, scale_to_one
from tightframe.moments import ClassMoments


def nc1(moments: ClassMoments, variant: str = "pinv", *, weighting: str = "class") -> Tensor:
    r"""Variability collapse: within-class scatter in units of the scatter of the class means.

    ========== ============================================================= ==========================================
    variant    formula                                                       source
    ========== ============================================================= ==========================================
    pinv       :math:`\tfrac1K \operatorname{tr}(\Sigma_W\Sigma_B^+)`        Papyan, Han & Donoho 2020; Zhu et al. 2021
    pinv_sum   :math:`\operatorname{tr}(\Sigma_W\Sigma_B^+)`                 the notebook of Papyan et al.
    ratio      :math:`\operatorname{tr}\Sigma_W/\operatorname{tr}\Sigma_B`   Tirer, Huang & Niles-Weed 2023
    ========== ============================================================= ==========================================

    :math:`\Sigma_W` averages over samples, :math:`\Sigma_B=A^\top A/K` over classes. The pseudo-inverse comes from the
    singular values of A itself; :func:`between_class_rank` is the number of those that count.

    Args:
        moments: Class moments, with ``scatter=True`` unless the variant is ``ratio``.
        variant: Name in the table.
        weighting: Global mean, see the module.

    Returns:
        A number >= 0; 0 if every class has collapsed to a point, nan if all class means coincide.

    Raises:
        ArgumentError: if the variant is unknown, or if it needs a scatter that the moments lack.

    Example:
        >>> h = torch.tensor([[0.0, 0.0], [0.0, 2.0], [4.0, 0.0], [4.0, 2.0]])
        >>> moments = ClassMoments.from_samples(h, torch.tensor([0, 0, 1, 1]), 2, scatter=True)
        >>> nc1(moments, "ratio")
        tensor(0.2500, dtype=torch.float64)
        >>> nc1(moments, "pinv")  # the classes differ along another axis than their samples do
        tensor(0., dtype=torch.float64)
    """
    check_choice("variant", variant, ("pinv", "pinv_sum", "ratio"))
    _, num_present, count, _, _ = of_present(moments)
    if num_present < 2:
        return undefined(moments.packed)
    total = count.sum()
    if variant == "ratio":
        between = _centered(moments, weighting).square().sum() / num_present
        return moments.trace.sum() / total / between if between > 0 else undefined(between)
    scatter = moments.scatter
    singular_values, directions = _between_class_svd(moments, weighting)
    if singular_values.numel() == 0:
        return undefined(scatter)
    # A quadratic form of a scatter is negative by rounding alone.
    within = torch.linalg.vecdot(directions, directions @ scatter).clamp(min=0) / total
    value = num_present * (within / singular_values.square()).sum()
    return value / num_present if variant == "pinv" else value


def between_class_rank(moments: ClassMoments, *, weighting: str = "class") -> Tensor:
    """Return the number of directions that the centred class means span, as :func:`nc1` counts them; at most K - 1.

    A singular value counts if rounding alone cannot make it: rounding of the means and the decomposition, in float64,
    and of the features, in the coarsest type they came in. A feature is rounded in proportion to its whole size, and
    the errors of many samples average out. So bfloat16 features can tell means apart that differ by less than its
    epsilon.
    """
    if of_present(moments).number < 2:
        return undefined(moments.packed)
    singular_values, _ = _between_class_svd(moments, weighting)
    return singular_values.new_tensor(float(singular_values.numel()))


def _centered(moments: ClassMoments, weighting: str) -> Tensor:
    vectors = centered_vectors(moments, weighting)
    return vectors.rows / vectors.scale


@kept
def _between_class_svd(moments: ClassMoments, weighting: str) -> tuple[Tensor, Tensor]:
    """Return the singular values ``(r,)`` that count and right singular vectors ``(r, d)`` of the centred means."""
    centered, means = _centered(moments, weighting), of_present(moments).means
    _, singular_values, directions = torch.linalg.svd(centered, full_matrices=False)
    # Rounding of the means: in proportion to their own size, and to the deviations that were summed for them.
    size = torch.linalg.matrix_norm(means) + moments.trace.sum().sqrt()
    noise = torch.finfo(torch.float64).eps * (max(centered.shape) * singular_values[0] + 4 * size)
    # The spectral norm of independent errors is near their longest row plus their longest column.
    share, within = mean_rounding(moments)
    rows = (share * (means.square().sum(dim=1) + within)).max()
    columns = (share @ means.square()).max() + share @ within
    noise = torch.maximum(noise, rows.sqrt() + columns.sqrt())
    rank = min(int((singular_values > noise).sum()), centered.shape[0] - 1)
    return singular_values[:rank], directions[:rank]


def mean_rounding(moments: ClassMoments) -> tuple[Tensor, Tensor]:
    r"""Return the share of a class's mean square ``(K',)`` that rounding of its features leaves in the mean's square.

    A feature is known to :math:`\epsilon` of its type times its size: a share :math:`\epsilon^2` of the mean square.
    The mean of n independent errors keeps the n-th part of it. Errors are independent if rounding moves samples apart;
    the variance of the class, divided by that of the rounding, bounds how many do.

    Returns:
        Shares, and the variance within each class, both ``(K',)``.
    """
    _, _, count, mean, trace = of_present(moments)
    unit, within = moments.eps.square(), trace / count
    square = mean.square().sum(dim=1) + within
    errors = torch.minimum(count, 1 + within / (unit * square))
    return unit / errors.nan_to_num(1), within  # if all features are zero, so is their rounding


def cdnv(moments: ClassMoments, *, power: int = 1) -> Tensor:
    r"""Class-distance normalised variance, averaged over pairs of classes (Galanti, György & Hutter 2022, eq. 3).

    .. math:: \operatorname{mean}_{i\ne j} \frac{v_i+v_j}{2\,\lVert\mu_i-\mu_j\rVert^{2p}}, \qquad
        v_k=\mathbb E\lVert h-\mu_k\rVert^2

    Args:
        moments: Class moments; no scatter is needed.
        power: Power p; 1 is Galanti's, 2 that of the code of Wu & Papyan 2024.

    Returns:
        A number >= 0; infinite if two classes share their mean, nan if both have also collapsed.
    """
    check_positive("power", power)
    _, num_present, count, means, trace = of_present(moments)
    variances = trace / count
    if num_present < 2:
        return undefined(moments.packed)
    scale = scale_to_one(means)
    variances, pairs = variances * scale * scale, pair_sq_distances(means * scale)
    ratios = torch.stack([((variances[i] + variances[j]) / squares.pow(power)).sum() for i, j, squares in pairs])
    return ratios.sum() / (num_present * (num_present - 1)) * torch.full_like(ratios[0], scale) ** (2 * power - 2)


def vci(moments: ClassMoments, variant: str = "bound", *, weighting: str = "class") -> Tensor:
    r"""Variability collapse index (Xu & Liu 2023, eq. 5): 1 minus the share of the total scatter between classes.

    .. math:: 1-\frac{\operatorname{tr}(\Sigma_T^+\Sigma_B)}{r}, \qquad \Sigma_T=\Sigma_W+\Sigma_B

    Near collapse that is a difference of equal numbers, so the share *within* classes is summed instead. With the
    directions V and singular values of the centred means that count, :math:`\Sigma_B=V\Lambda V^\top`,

    .. math:: \frac{\operatorname{tr}\bigl((\Lambda+C)^{-1}C\bigr)+r-\operatorname{rank}\Sigma_B}{r}, \qquad
        C=V^\top\Sigma_WV-V^\top\Sigma_WP\,(P\Sigma_WP)^+P\Sigma_WV, \quad P=I-VV^\top,

    where C is the scatter in V that the directions outside of V do not predict.

    Args:
        moments: Class moments with ``scatter=True``.
        variant: Divisor r, ``"bound"``: min(d, K - 1), as in published code; ``"rank"``: rank of :math:`\Sigma_B`.
        weighting: Global mean, see the module.

    Returns:
        A number in [0, 1]; 0 at collapse, and accurate to its last digits near it. With ``"bound"`` merged class
        means raise it. nan if all features are one point.
    """
    check_choice("variant", variant, ("bound", "rank"))
    num_present = of_present(moments).number
    if num_present < 2:
        return undefined(moments.packed)
    singular_values, directions = _between_class_svd(moments, weighting)
    rank = singular_values.numel() if variant == "rank" else min(moments.dim, num_present - 1)
    if rank == 0 or not (singular_values.numel() or bool(moments.trace.any())):
        return undefined(moments.packed)
    left = _unpredicted(moments, directions)
    shares = torch.linalg.solve(left + (singular_values.square() / num_present).diag(), left)
    return (shares.trace() + (rank - singular_values.numel())) / rank


def _unpredicted(moments: ClassMoments, directions: Tensor) -> Tensor:
    """Return C of :func:`vci` from the within-class scatter per sample and the directions V of the means ``(r, d)``."""
    _, _, count, means, _ = of_present(moments)
    size, scatter = count.sum(), moments.scatter
    variances = scatter.diagonal() / size
    of_features = moments.eps.square() * (count @ means.square() / size + variances).max()
    varies = (variances > 0) | (means != means[0]).any(dim=0)  # a unit that gives one number to all samples does not
    if not varies.all():
        scatter, directions = scatter[varies][:, varies], directions[:, varies]
    within = scatter / size
    if len(directions) < len(within):
        # If every direction holds far more than rounding, C is the inverse of a block of the inverse.
        floor = torch.maximum(1e-8 * within.trace(), 2 * of_features)
        _, fails = torch.linalg.cholesky_ex(within - torch.eye(len(within)).to(within) * floor)
        if not fails:
            solved = torch.linalg.solve_triangular(torch.linalg.cholesky(within), directions.T, upper=False)
            return torch.linalg.inv(solved.T @ solved)
    across = directions @ within
    inside = across @ directions.T
    if len(directions) == len(within):
        return inside
    mixed = across - inside @ directions
    outside = within.addmm_(directions.T, mixed, alpha=-1).addmm_(across.T, directions, alpha=-1)
    eigenvalues, basis = torch.linalg.eigh(outside)
    # A direction outside must exceed rounding: of the scatter, and of the features along any one coordinate.
    rounding = moments.dim * torch.finfo(torch.float64).eps * (eigenvalues[-1] + variances.max())
    counted = eigenvalues > torch.maximum(rounding, of_features)
    predicted = mixed @ basis[:, counted] / eigenvalues[counted].sqrt()
    return inside.addmm(predicted, predicted.T, alpha=-1)


def nc3_distance(
    moments: ClassMoments, weight: Tensor | Vectors, variant: str = "squared", *, weighting: str = "class"
) -> Tensor:
    r"""Self-duality: distance of the normalised classifier from the normalised class means.

    .. math:: \Bigl\lVert\frac{W}{\lVert W\rVert_F}-\frac{A}{\lVert A\rVert_F}\Bigr\rVert_F^2

    Args:
        moments: Class moments of the classifier's input.
        weight: Weight of the classifier ``(K, d)``.
        variant: Distance, ``"squared"`` (Papyan, Han & Donoho 2020, fig. 5) or ``"norm"``, its square root.
        weighting: Global mean, see the module.

    Returns:
        A number in [0, 4] (squared); 0 at collapse; nan if either matrix is zero.
    """
    check_choice("variant", variant, ("squared", "norm"))
    rows, means = (vectors.rows for vectors in _rows_and_means(moments, weight, weighting))
    if rows.shape[0] < 2:
        return undefined(rows)
    distance = torch.linalg.matrix_norm(rows / torch.linalg.matrix_norm(rows) - means / torch.linalg.matrix_norm(means))
    return distance.square() if variant == "squared" else distance


def nc3_gram(moments: ClassMoments, weight: Tensor | Vectors, *, weighting: str = "class") -> Tensor:
    r"""Self-duality as in Zhu et al. 2021 (eq. 13): :func:`~tightframe.functional.nc2_gram` of :math:`WA^\top`.

    Returns:
        A number in [0, 2]; 0 at collapse; nan if the product is zero.
    """
    rows, means = _rows_and_means(moments, weight, weighting)
    return distance_from_simplex(rows.rows, means.rows)


def nc3_alignment(
    moments: ClassMoments, weight: Tensor | Vectors, statistic: str = "mean", *, weighting: str = "class"
) -> Tensor:
    """Self-duality class by class, from the cosines between each class's row and its centred mean.

    Args:
        moments: Class moments of the classifier's input.
        weight: Weight of the classifier ``(K, d)``.
        statistic: Number to return, ``"mean"``: 1 minus the mean cosine (GNC3, Jiang et al. 2024), in [0, 2] and 0 at
            collapse; ``"variance"``: sample variance of the cosines; ``"dot_variance"``: sample variance of the dot
            products, with neither row nor mean normalised ("uniform duality", Wu & Papyan 2024).
        weighting: Global mean, see the module.
    """
    check_choice("statistic", statistic, ("mean", "variance", "dot_variance"))
    rows, means = _rows_and_means(moments, weight, weighting)
    if len(rows.rows) < 2:
        return undefined(rows.rows)
    if statistic == "dot_variance":
        return torch.linalg.vecdot(rows.rows / rows.scale, means.rows / means.scale).var()
    # One minus each cosine, as half the squared distance on the unit sphere: no digit is lost where cosines are near 1.
    gaps = (rows.directions - means.directions).square().sum(dim=1) / 2
    return gaps.mean() if statistic == "mean" else gaps.var()


def bias_collapse(
    moments: ClassMoments, weight: Tensor | Vectors, bias: Tensor | None = None, *, weighting: str = "class"
) -> Tensor:
    r"""Length of the logits at the global mean, :math:`\lVert W\mu_G+b\rVert_2`; 0 at collapse (Zhu et al. 2021).

    Some code reports this under the name NC4.
    """
    bias = None if bias is None else as_tensor(bias, "bias")
    if bias is not None and bias.shape != (moments.num_classes,):
        raise ShapeError(f"bias must have shape (K,) = ({moments.num_classes},), got {tuple(bias.shape)}")
    check_choice("weighting", weighting, ("class", "sample"))
    vectors = vectors_of_present(moments, weight)
    if len(vectors.rows) < 2:
        return undefined(vectors.rows)
    logits = vectors.rows @ moments.global_mean(weighting) / vectors.scale
    if bias is not None:
        logits = logits + bias.detach().double()[of_present(moments).which]
    scale = scale_to_one(logits)
    return torch.linalg.vector_norm(logits * scale) / scale


def nc5(moments: ClassMoments, outlier_mean: Tensor) -> Tensor:
    """Mean over classes of ``|cos(mean of the class, mean of outliers)|``, uncentred (Ben Ammar et al. 2024, eq. 5).

    Args:
        moments: Class moments of the classifier's input on its own classes.
        outlier_mean: Mean feature of out-of-distribution samples ``(d,)``.

    Returns:
        A number in [0, 1]; 0 if outliers are orthogonal to every class; nan if a mean is zero.
    """
    outlier_mean = as_tensor(outlier_mean, "outlier_mean")
    if outlier_mean.shape != (moments.dim,):
        raise ShapeError(f"outlier_mean must have shape (d,) = ({moments.dim},), got {tuple(outlier_mean.shape)}")
    direction = unit_rows(outlier_mean.detach().double().unsqueeze(0))
    means = unit_rows(of_present(moments).means)
    return (means @ direction.T).abs().mean() if means.numel() else undefined(means)


def _rows_and_means(moments: ClassMoments, weight: Tensor | Vectors, weighting: str) -> tuple[Vectors, Vectors]:
    """Return the classifier's rows and the centred means of the present classes, both ``(K', d)``."""
    check_choice("weighting", weighting, ("class", "sample"))
    return vectors_of_present(moments, weight), centered_vectors(moments, weighting)


def vectors_of_present(moments: ClassMoments, weight: Tensor | Vectors) -> Vectors:
    """Return the rows of a weight that belong to present classes; :class:`Vectors` are returned as they are."""
    return weight if isinstance(weight, Vectors) else Vectors(rows_of_present(moments, weight))


def rows_of_present(moments: ClassMoments, weight: Tensor, name: str = "weight") -> Tensor:
    """Return the rows of a classifier's weight ``(K, d)`` that belong to present classes, in float64."""
    weight = as_tensor(weight, name)
    expected = (moments.num_classes, moments.dim)
    if weight.shape != expected:
        raise ShapeError(f"{name} must have shape (K, d) = {expected}, got {tuple(weight.shape)}")
    if weight.device != moments.device:
        raise DeviceError(
            f"{name} is on {weight.device} and the moments on {moments.device}; move one with .to(device)"
        )
    return matrix_of(weight, name)[of_present(moments).which]
