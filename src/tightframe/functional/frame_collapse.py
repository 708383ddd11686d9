r"""Collapse of class means onto a given frame, such as a hierarchy-aware one.

Conventions of every function here:

- nothing is centred: the rows of such a frame need not sum to zero, so raw class means :math:`\mu_c` are used;
- absent classes are left out, of the means and of the frame's rows alike;
- ``in_span=True`` first projects the means onto the span of the frame's rows. If the frame's rank is below d (a frame
  of largest separation in d = K has rank K - 1), features may have parts in directions that no logit sees, which
  change their raw angles;
- a mean has no part in the span if its projection is no larger than rounding, also of the features;
- the span holds the frame's singular directions above 1e-6 of the largest, and above the rounding of its entries;
- a limit 0/0, or fewer than two present classes, gives nan.
"""

from __future__ import annotations

import torch
from torch import Tensor

from tightframe.errors import as_tensor, check_choice
from tightframe.functional.collapse import mean_rounding, rows_of_present
from tightframe.functional.geometry import of_present, undefined, unit_rows
from tightframe.linalg import pair_sq_distances, pooled_var_mean
from tightframe.moments import ClassMoments


def frame_cosine_error(
    moments: ClassMoments, frame: Tensor, statistic: str = "mean", *, in_span: bool = False
) -> Tensor:
    r"""Error of the cosines of class means, over all pairs :math:`i<j` of classes.

    .. math:: \delta_{ij}=\cos(\mu_i,\mu_j)-\cos(w_i,w_j)

    Args:
        moments: Class moments of the classifier's input.
        frame: Frame ``(K, d)`` with rows :math:`w_c`.
        statistic: Statistic, ``"mean"`` of :math:`|\delta|`, or ``"std"`` of :math:`\delta` (population).
        in_span: Whether to project the means, see the module.

    Returns:
        A 0-d float64 tensor in [0, 2]; 0 at collapse; nan if a mean is zero.

    Example:
        >>> moments = ClassMoments.from_samples(torch.tensor([[2.0, 0.0], [0.0, 3.0]]), torch.tensor([0, 1]), 2)
        >>> frame_cosine_error(moments, torch.tensor([[0.6, 0.8], [-0.8, 0.6]])).item() < 1e-7
        True
    """
    check_choice("statistic", statistic, ("mean", "std"))
    return _cosine_error(*_directions(moments, frame, in_span), statistic)


def frame_duality(moments: ClassMoments, frame: Tensor, *, in_span: bool = False) -> Tensor:
    r"""Distance of the normalised frame from the normalised raw class means.

    .. math:: \Bigl\lVert\frac{W}{\lVert W\rVert_F}-\frac{M}{\lVert M\rVert_F}\Bigr\rVert_F^2

    Args:
        moments: Class moments of the classifier's input.
        frame: Frame ``(K, d)``.
        in_span: Whether to project the means, see the module.

    Returns:
        A 0-d float64 tensor in [0, 4]; 0 at collapse; nan if all means are zero.
    """
    return _duality(*_rows_and_means(moments, frame, in_span))


def frame_alignment(moments: ClassMoments, frame: Tensor, *, in_span: bool = False) -> Tensor:
    r"""Cosine :math:`\cos(\mu_c,w_c)` of every present class.

    Args:
        moments: Class moments of the classifier's input.
        frame: Frame ``(K, d)``.
        in_span: Whether to project the means, see the module.

    Returns:
        ``(K',)`` float64 in [-1, 1]; 1 at collapse; nan where a mean is zero.

    Example:
        >>> moments = ClassMoments.from_samples(torch.tensor([[3.0, 4.0], [-3.0, 4.0]]), torch.tensor([0, 1]), 2)
        >>> frame = torch.tensor([[1.0, 0.0], [-1.0, 0.0]])  # of rank 1
        >>> frame_alignment(moments, frame)
        tensor([0.6000, 0.6000], dtype=torch.float64)
        >>> frame_alignment(moments, frame, in_span=True)
        tensor([1., 1.], dtype=torch.float64)
    """
    return torch.linalg.vecdot(*_directions(moments, frame, in_span))


def outside_span(moments: ClassMoments, frame: Tensor, variant: str = "means") -> Tensor:
    r"""Share of squared norm that lies outside the span of the frame's rows, where no logit sees it.

    Args:
        moments: Class moments of the classifier's input; with ``scatter=True`` for the features.
        frame: Frame ``(K, d)``.
        variant: Vectors to take, ``"means"``: the class means,
            :math:`\sum_c\lVert\mu_c-P\mu_c\rVert^2/\sum_c\lVert\mu_c\rVert^2`; ``"features"``: all samples.

    Returns:
        A 0-d float64 tensor in [0, 1]; nan if all is zero.

    Raises:
        ArgumentError: if the variant is unknown, or if it needs a scatter that the moments lack.

    Example:
        >>> moments = ClassMoments.from_samples(torch.tensor([[3.0, 4.0], [-3.0, 4.0]]), torch.tensor([0, 1]), 2)
        >>> outside_span(moments, torch.tensor([[1.0, 0.0], [-1.0, 0.0]]))
        tensor(0.6400, dtype=torch.float64)
    """
    check_choice("variant", variant, ("means", "features"))
    rows_of_present(moments, frame, "frame")
    return _outside(moments, _span(frame), variant)


def frame_metrics(moments: ClassMoments, frame: Tensor) -> dict[str, Tensor]:
    """Compute the metrics of this module by id; alignments are averaged over classes.

    Args:
        moments: Class moments of the classifier's input; with a scatter, ``frame.outside.features`` is computed too.
        frame: Frame ``(K, d)``.

    Returns:
        From metric id to a 0-d float64 tensor; ids that end in ``.span`` are of the projected means.
    """
    values = {}
    rows, basis = rows_of_present(moments, frame, "frame"), _span(frame)
    for suffix, means in (("", of_present(moments).means), (".span", _inside(moments, basis))):
        directions = unit_rows(rows), unit_rows(means)
        values[f"frame.cosine_error{suffix}"] = _cosine_error(*directions, "mean")
        values[f"frame.cosine_spread{suffix}"] = _cosine_error(*directions, "std")
        values[f"frame.duality{suffix}"] = _duality(rows, means)
        values[f"frame.alignment{suffix}"] = torch.linalg.vecdot(*directions).mean()
    values["frame.outside.means"] = _outside(moments, basis, "means")
    if moments.has_scatter:
        values["frame.outside.features"] = _outside(moments, basis, "features")
    return values


def _cosine_error(rows: Tensor, means: Tensor, statistic: str) -> Tensor:
    """Return the error of the cosines of unit vectors."""
    if len(rows) < 2:
        return undefined(rows)
    pairs = zip(pair_sq_distances(rows), pair_sq_distances(means), strict=True)
    errors = (wanted - found for (_, _, wanted), (_, _, found) in pairs)  # twice those of the cosines
    if statistic == "std":
        return pooled_var_mean(errors)[0].sqrt() / 2
    return torch.stack([part.abs().sum() for part in errors]).sum() / (len(rows) * (len(rows) - 1))


def _duality(rows: Tensor, means: Tensor) -> Tensor:
    difference = rows / torch.linalg.matrix_norm(rows) - means / torch.linalg.matrix_norm(means)
    return difference.square().sum() if len(rows) > 1 else undefined(rows)


def _outside(moments: ClassMoments, basis: Tensor, variant: str) -> Tensor:
    means = of_present(moments).means
    outside = (means - means @ basis.T @ basis).square().sum(dim=1)
    total = means.square().sum(dim=1)
    if variant == "means":
        return outside.sum() / total.sum()
    count, scatter = of_present(moments).counts, moments.scatter
    # Rounding alone makes a trace outside negative.
    within = (scatter.trace() - torch.linalg.vecdot(basis, basis @ scatter).sum()).clamp(min=0)
    return (count @ outside + within) / (count @ total + scatter.trace())


def _rows_and_means(moments: ClassMoments, frame: Tensor, in_span: bool) -> tuple[Tensor, Tensor]:
    """Return the frame's rows and the raw means of the present classes, both ``(K', d)``."""
    rows = rows_of_present(moments, frame, "frame")
    return rows, _inside(moments, _span(frame)) if in_span else of_present(moments).means


def _directions(moments: ClassMoments, frame: Tensor, in_span: bool) -> tuple[Tensor, Tensor]:
    rows, means = _rows_and_means(moments, frame, in_span)
    return unit_rows(rows), unit_rows(means)


def _inside(moments: ClassMoments, basis: Tensor) -> Tensor:
    """Return the projections of the means on the span of a basis; zero where only rounding is left."""
    means = of_present(moments).means
    inside = means @ basis.T @ basis
    # The projection of a mean orthogonal to the span is rounding, of the mean or of the features, without direction.
    share, within = mean_rounding(moments)
    share = share.clamp(min=(moments.dim * torch.finfo(torch.float64).eps) ** 2)
    counts = inside.square().sum(dim=1) > share * (means.square().sum(dim=1) + within)
    return torch.where(counts.unsqueeze(1), inside, 0.0)


def _span(frame: Tensor) -> Tensor:
    """Return orthonormal rows ``(r, d)`` that span the rows of the whole frame, absent classes included."""
    frame = as_tensor(frame, "frame").detach()
    rows = frame.double()
    _, singular_values, directions = torch.linalg.svd(rows, full_matrices=False)
    rounding = torch.finfo(frame.dtype).eps / 2 * torch.linalg.matrix_norm(rows)
    return directions[singular_values > torch.maximum(1e-6 * singular_values[:1].sum(), rounding)]
