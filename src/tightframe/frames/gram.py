"""Frames with a given Gram matrix: exact where the dimension allows it, else near it, and how near."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from tightframe.errors import ArgumentError, DtypeError, ShapeError, check_choice, check_finite, check_positive
from tightframe.linalg import haar_orthonormal

REPAIRS = ("raise", "shrink", "clip", "nearest")

SLACK = 1e-6  # an eigenvalue of cosines down to -SLACK counts as rounded, as in the published code
_RESOLUTION = 1e-9  # cosines closer than this are not meant to be told apart
_COUNTED, _DRAWN = 256, 2**22  # classes up to which every order relation is looked at, and how many above
_STEPS = 200  # of L-BFGS, and of alternating projections


class GramFrame(NamedTuple):
    """A frame and how it fits the Gram matrix asked for.

    Attributes:
        frame: W ``(K, d)``.
        gram: ``(K, K)`` what W aims at: the Gram matrix asked for, or its repair.
        error: largest difference between a cosine of two rows of W and the one asked for, repair included.
        violations: share of the order relations broken, in [0, 1]. A relation is a triple of classes i, j, k whose
            cosines asked for say that j is nearer to i than k is, by more than 1e-9; it is broken unless the cosines of
            W say so too. All are counted for K <= 256, else those of a fixed draw of 2^22 triples.
    """

    frame: Tensor
    gram: Tensor
    error: float
    violations: float


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
    Then the rows of R are projected on d random dimensions, and the directions found by L-BFGS in at most 200 steps
    whose cosines minimise :math:`\sum_{i \ne j} (\cos_{ij} - G_{ij} / \sqrt{G_{ii} G_{jj}})^4`, a smooth stand-in for
    the largest error; lengths are kept. ``error`` and ``violations`` tell what came of it: nothing forces the order of
    the cosines to survive.

    A Gram matrix has no negative eigenvalue. If the smallest eigenvalue :math:`\lambda` of the cosines is one,
    ``repair`` may put others in their place (down to -1e-6 it is taken for rounding): ``"shrink"`` moves them towards
    zero by :math:`1/(1 - \lambda)`, which keeps their order; ``"clip"`` sets negative eigenvalues to zero and rescales
    the diagonal to 1; ``"nearest"`` takes the nearest correlation matrix in Frobenius norm, by alternating projections
    (Higham, IMA J. Numer. Anal. 22, 2002).

    Args:
        gram: ``(K, K)`` floating point, symmetric, finite, with a positive diagonal, K >= 2.
        dim: d >= 1; None is K, which is always enough.
        repair: ``"raise"``, ``"shrink"``, ``"clip"`` or ``"nearest"``.
        generator: source of the random dimensions, on the CPU; None is a fresh one with seed 0.
        dtype: floating-point type of frame and gram, which are computed in float64; None is PyTorch's default.
        device: where to put them; None is that of ``gram``.

    Raises:
        DtypeError, ShapeError, NonFiniteError: if ``gram`` is not as above.
        ArgumentError: if it is not symmetric, its diagonal not positive, an eigenvalue negative under
            ``repair="raise"``, or another argument outside its range.
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
    return in_dtype(found._replace(frame=frame, gram=aim), dtype, gram.device if device is None else device)


def factor(cosines: Tensor, repair: str, name: str, remedy: str) -> tuple[Tensor, Tensor]:
    """Return cosines in float64 on the CPU, repaired if need be, and unit rows ``(K, rank)`` that have them.

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
    """Turn unit rows that have the cosines ``gram`` into d dimensions, and compare with the cosines asked for."""
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
    # An error this small cannot turn two cosines round that are further apart than the resolution.
    violations = 0.0 if error < _RESOLUTION / 2 else _violations(cosines, reached)
    return GramFrame(frame, gram, error, violations)


def in_dtype(found: GramFrame, dtype: torch.dtype | None, device: torch.device | str | None) -> GramFrame:
    """Return the same frame in another dtype, None being PyTorch's default, and on another device."""
    dtype = torch.get_default_dtype() if dtype is None else dtype
    return found._replace(frame=found.frame.to(device, dtype), gram=found.gram.to(device, dtype))


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
    """Project in turn on matrices without negative eigenvalue, with Dykstra's correction, and of unit diagonal."""
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
    """Return unit rows ``(K, d)`` whose cosines are near those given, from rows to start with."""
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
    """Return how many differences are meant, and how many of these have the wrong sign."""
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
