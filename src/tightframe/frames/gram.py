"""Frames with a given Gram matrix: exact if the dimension allows it, otherwise near it."""

from __future__ import annotations

import math
from typing import Any, final

import torch
import torch.nn.functional as F
from torch import Tensor

from tightframe.errors import ArgumentError, DtypeError, ShapeError, check_choice, check_finite, check_positive
from tightframe.frames.operator import MatrixFrame
from tightframe.hierarchy import check_distances
from tightframe.linalg import haar_orthonormal

REPAIRS = ("raise", "shrink", "clip", "nearest")

SLACK = 1e-6  # an eigenvalue of cosines down to -SLACK counts as a rounded zero, as in the published code
_RESOLUTION = 1e-9  # cosines closer than this count as equal
_COUNTED, _DRAWN = 256, 2**22  # largest K for which every order relation is counted; relations drawn for a larger K
_STEPS = 200  # of L-BFGS, and of alternating projections


@final
class GramFrame(MatrixFrame):
    """A frame made for a given Gram matrix, and how it fits; the functions of this file and ``hierarchical`` make it.

    Attributes:
        frame: W ``(K, d)``.
        gram: ``(K, K)`` inner products that W aims at: those asked for, or their repair.
        error: Largest difference between a cosine of two rows of W and the one asked for, repair included.
        violations: Share of the order relations that W breaks, in [0, 1]. A relation is a triple of classes i, j, k
            whose cosines asked for say that j is nearer to i than k is, by more than 1e-9; W breaks it if its own
            cosines do not say so. All are counted for K <= 256, otherwise those of a fixed draw of 2^22 triples.
        asymptote: Limit s of the cosines of a hierarchy-aware frame at a large distance; nan for other frames.
        gamma: Rate γ of these cosines; nan for other frames.
    """

    def __init__(
        self,
        frame: Tensor,
        gram: Tensor,
        error: float,
        violations: float,
        asymptote: float = math.nan,
        gamma: float = math.nan,
    ) -> None:
        self._set(frame)
        self._gram = gram
        self.error = error
        self.violations = violations
        self.asymptote = asymptote
        self.gamma = gamma

    @property
    def gram(self) -> Tensor:
        """The inner products ``(K, K)`` that W aims at."""
        return self._gram

    def to(self, *, dtype: torch.dtype | None = None, device: torch.device | str | None = None) -> GramFrame:
        """Return the same frame in another dtype or on another device."""
        frame = super().to(dtype=dtype, device=device)
        frame._gram = self._gram.to(dtype=dtype, device=device)
        return frame

    def _facts(self) -> dict[str, Any]:
        names = ("error", "violations", "asymptote", "gamma")
        return super()._facts() | {name: f"{value:.6g}" for name in names if (value := getattr(self, name)) == value}


def frame_of_gram(
    gram: Tensor,
    dim: int | None = None,
    *,
    repair: str = "raise",
    generator: torch.Generator | None = None,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
) -> GramFrame:
    r"""Return K vectors whose inner products are given.

    For :math:`d \ge \operatorname{rank} G` these are :math:`W = R\,Q^\top` with a factor :math:`R R^\top = G` and
    random orthonormal columns Q, and :math:`W W^\top = G` to rounding. For smaller d no vectors have these products.
    Then the rows of R are projected on d random dimensions, and L-BFGS turns their directions, in at most 200 steps, to
    minimise :math:`\sum_{i \ne j} (\cos_{ij} - G_{ij} / \sqrt{G_{ii} G_{jj}})^4`, a smooth stand-in for the largest
    error; lengths are kept. ``error`` and ``violations`` of the result tell how near it is. The order of the cosines
    may change.

    A Gram matrix has no negative eigenvalue. If the smallest eigenvalue :math:`\lambda` of the cosines is below -1e-6,
    ``repair`` may replace the cosines: ``"shrink"`` moves them towards zero by :math:`1/(1 - \lambda)`, which keeps
    their order; ``"clip"`` sets negative eigenvalues to zero and rescales the diagonal to 1; ``"nearest"`` takes the
    nearest correlation matrix in Frobenius norm, by alternating projections (Higham, IMA J. Numer. Anal. 22, 2002).

    Args:
        gram: Inner products ``(K, K)``, floating point, symmetric, finite, with a positive diagonal, K >= 2.
        dim: Feature dimension d >= 1; None is K, which is always enough.
        repair: Word ``"raise"``, ``"shrink"``, ``"clip"`` or ``"nearest"``.
        generator: Source of the random dimensions, on the CPU; None is a new one with seed 0.
        dtype: Floating-point type of frame and gram, which are computed in float64; None is PyTorch's default.
        device: Device of the result; None is that of ``gram``.

    Raises:
        DtypeError, ShapeError, NonFiniteError: if ``gram`` is not as above.
        ArgumentError: if it is not symmetric, its diagonal is not positive, an eigenvalue is negative with
            ``repair="raise"``, or another argument is outside its range.
        DeviceError: if the generator is not on the CPU.

    Example:
        >>> gram = torch.tensor([[1.0, -1.0], [-1.0, 4.0]], dtype=torch.float64)
        >>> frame = frame_of_gram(gram, dtype=torch.float64).frame
        >>> torch.allclose(frame @ frame.T, gram)
        True
    """
    check_choice("repair", repair, REPAIRS)
    _check_gram(gram)
    wanted = gram.detach().to("cpu", torch.float64)
    lengths = wanted.diagonal().sqrt()
    cosines = wanted / lengths / lengths.unsqueeze(1)
    cosines = ((cosines + cosines.T) / 2).fill_diagonal_(1)
    found = in_dimension(cosines, *factor(cosines, repair, "gram", "correct it"), dim, generator)
    frame = found.frame * lengths.unsqueeze(1)
    aim = found.gram * lengths * lengths.unsqueeze(1)
    found = GramFrame(frame, aim, found.error, found.violations)
    return found.to(dtype=dtype or torch.get_default_dtype(), device=gram.device if device is None else device)


def barz_denzler_frame(
    heights: Tensor,
    dim: int | None = None,
    *,
    repair: str = "raise",
    generator: torch.Generator | None = None,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
) -> GramFrame:
    r"""Return unit class vectors with cosines :math:`1 - D / \max D` (Barz & Denzler, WACV 2019, arXiv 1809.09924).

    In the paper D is the height of the lowest common ancestor: ``tree.distances("height")``. Distances by depth are
    another frame if the leaves are not equally deep. :class:`~tightframe.nn.CorrelationLoss` trains features to it.

    Args:
        heights: Heights D ``(K, K)``, floating point, symmetric, zero on the diagonal alone, in any unit, K >= 2.
            Those of a tree need no repair.
        dim: Feature dimension d >= 1; None is K, and below K the cosines may be approximate.
        repair: Word as in :func:`frame_of_gram`.
        generator: Source of the orientation, as in :func:`frame_of_gram`.
        dtype: Floating-point type of frame and gram, which are computed in float64; None is PyTorch's default.
        device: Device of the result; None is that of ``heights``.

    Raises:
        DtypeError, ShapeError, ArgumentError: if ``heights`` is not a valid distance matrix, or as in
            :func:`frame_of_gram`.

    Example:
        >>> heights = torch.tensor([[0.0, 1.0, 2.0], [1.0, 0.0, 2.0], [2.0, 2.0, 0.0]])
        >>> W = barz_denzler_frame(heights, dtype=torch.float64).frame
        >>> torch.allclose(W @ W.T, 1 - heights.double() / 2)
        True
    """
    check_distances(heights, at_least=2, name="heights")
    wide = heights.detach().double()
    options = {"repair": repair, "generator": generator, "dtype": dtype, "device": device}
    return frame_of_gram(1 - wide / wide.max(), dim, **options)  # type: ignore[arg-type]


def factor(cosines: Tensor, repair: str, name: str, remedy: str) -> tuple[Tensor, Tensor]:
    """Return cosines in float64 on the CPU, repaired if necessary, and unit rows ``(K, rank)`` that have them.

    ``name`` and ``remedy`` are for the error.
    """
    values, vectors = torch.linalg.eigh(cosines)
    if values[0] < -SLACK:
        if repair == "raise":
            raise indefinite(name, values[0].item(), remedy)
        cosines = _repaired(cosines, values, vectors, repair)
        values, vectors = torch.linalg.eigh(cosines)
    kept = values > len(values) * torch.finfo(values.dtype).eps * values[-1]
    return cosines, F.normalize(vectors[:, kept] * values[kept].sqrt(), dim=1)


def in_dimension(
    cosines: Tensor, gram: Tensor, rows: Tensor, dim: int | None, generator: torch.Generator | None
) -> GramFrame:
    """Put unit rows that have the cosines ``gram`` into d dimensions, and compare with the cosines asked for."""
    if dim is None:
        dim = len(cosines)
    check_positive("dim", dim)
    if generator is None:
        generator = torch.Generator(device="cpu").manual_seed(0)
    rank = rows.shape[1]
    if dim >= rank:
        frame = rows @ haar_orthonormal(dim, rank, generator).T
    else:
        frame = _compressed(rows @ haar_orthonormal(rank, dim, generator), gram)
    reached = frame @ frame.T
    error = (reached - cosines).abs().max().item()
    # An error this small cannot swap two cosines that are further apart than the resolution.
    violations = 0.0 if error < _RESOLUTION / 2 else _violations(cosines, reached)
    return GramFrame(frame, gram, error, violations)


def indefinite(name: str, lowest: float, remedy: str) -> ArgumentError:
    """Return the error about cosines that no vectors have."""
    return ArgumentError(
        f"{name} must give the cosines of some vectors, which have no negative eigenvalue, got λ_min = {lowest:.4g}; "
        f"{remedy}, or pass repair='shrink', which keeps their order, 'clip' or 'nearest'"
    )


def _repaired(cosines: Tensor, values: Tensor, vectors: Tensor, repair: str) -> Tensor:
    if repair == "shrink":
        return (cosines / (1 - values[0])).fill_diagonal_(1)
    if repair == "clip":
        return _rescaled(_clipped(values, vectors))
    return _nearest_correlation(cosines)


def _nearest_correlation(cosines: Tensor) -> Tensor:
    """Project in turn on matrices without a negative eigenvalue, by Dykstra's correction, and on unit diagonals."""
    unit, correction = cosines, torch.zeros_like(cosines)
    for _ in range(_STEPS):
        shifted = unit - correction
        positive = _clipped(*torch.linalg.eigh(shifted))
        correction = positive - shifted
        previous, unit = unit, positive.clone().fill_diagonal_(1)
        if torch.linalg.matrix_norm(unit - previous) <= _RESOLUTION * torch.linalg.matrix_norm(unit):
            break
    return _rescaled(_clipped(*torch.linalg.eigh(unit)))


def _clipped(values: Tensor, vectors: Tensor) -> Tensor:
    root = vectors * values.clamp(min=0).sqrt()
    return root @ root.T


def _rescaled(gram: Tensor) -> Tensor:
    scale = gram.diagonal().rsqrt()
    scaled = gram * scale * scale.unsqueeze(1)
    return ((scaled + scaled.T) / 2).fill_diagonal_(1)


def _compressed(start: Tensor, cosines: Tensor) -> Tensor:
    """Return unit rows ``(K, d)`` whose cosines are near those given; the search begins at ``start``."""
    rows = F.normalize(start, dim=1).requires_grad_()
    optimizer = torch.optim.LBFGS(
        [rows],
        max_iter=_STEPS,
        history_size=10,
        tolerance_grad=1e-12,
        tolerance_change=1e-12,
        line_search_fn="strong_wolfe",
    )

    def loss() -> Tensor:
        optimizer.zero_grad()
        unit = F.normalize(rows, dim=1)
        value = (unit @ unit.T - cosines).square().square().sum()
        value.backward()
        return value

    with torch.enable_grad():
        optimizer.step(loss)
    return F.normalize(rows.detach(), dim=1)


def _violations(wanted: Tensor, reached: Tensor) -> float:
    """Return the share of the order relations of ``wanted`` that ``reached`` breaks; both ``(K, K)``."""
    num_classes = len(wanted)
    if num_classes <= _COUNTED:
        total = broken = 0
        for i in range(num_classes):
            others = torch.arange(num_classes, device="cpu") != i
            meant, wrong = _relations(*(row[others].unsqueeze(1) - row[others] for row in (wanted[i], reached[i])))
            total, broken = total + meant, broken + wrong
    else:
        generator = torch.Generator(device="cpu").manual_seed(0)
        i, j, k = torch.randint(num_classes, (3, _DRAWN), device="cpu", generator=generator)
        proper = (i != j) & (i != k)
        i, j, k = i[proper], j[proper], k[proper]
        total, broken = _relations(wanted[i, j] - wanted[i, k], reached[i, j] - reached[i, k])
    return broken / total if total else 0.0


def _relations(wanted: Tensor, reached: Tensor) -> tuple[int, int]:
    """Count the differences that are not rounding, and those of them that have the wrong sign."""
    meant = wanted.abs() > _RESOLUTION
    return int(meant.sum()), int((meant & (wanted.sign() * reached <= 0)).sum())


def _check_gram(gram: Tensor) -> None:
    if not isinstance(gram, Tensor) or not gram.is_floating_point():
        seen = gram.dtype if isinstance(gram, Tensor) else type(gram).__name__
        raise DtypeError(f"gram must be a floating-point tensor, got {seen}; convert with gram.double()")
    if gram.ndim != 2 or gram.shape[0] != gram.shape[1] or len(gram) < 2:
        raise ShapeError(f"gram must have shape (K, K) with K >= 2, got {tuple(gram.shape)}")
    check_finite(gram, "gram")
    diagonal = gram.diagonal()
    if diagonal.min() <= 0:
        i = int(diagonal.argmin())
        raise ArgumentError(f"gram must have a positive diagonal, the squared lengths, got {diagonal[i]} for class {i}")
    gap = (gram - gram.T).abs()
    if gap.max() > SLACK * gram.abs().max():
        i, j = divmod(int(gap.argmax()), len(gram))
        raise ArgumentError(
            f"gram must be symmetric, got {gram[i, j].item()} for classes {i} and {j} but {gram[j, i].item()} for "
            f"{j} and {i}; use (gram + gram.T) / 2"
        )
