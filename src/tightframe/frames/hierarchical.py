"""Frames whose cosines follow a hierarchy of the classes: the nearer two classes are in it, the larger their cosine."""

from __future__ import annotations

import bisect
import math

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from tightframe.errors import ArgumentError, check_choice, check_range
from tightframe.frames.gram import REPAIRS, SLACK, GramFrame, factor, in_dimension, indefinite
from tightframe.hierarchy import Tree, check_distances

ASYMPTOTES = ("max-separation", "grid")
_GRID = 100
_REMEDY = "raise gamma, use ultrametric distances such as Tree.distances()"

# Similarities are kept as gaps 1 - exp(-γ D / d_max): these are exact for small γ, too. The cosines are
# 1 - (1 - s) gap, where (1 - s) E + s J would cancel.


def hierarchy_aware_frame(
    distances: Tensor,
    dim: int | None = None,
    *,
    gamma: float | None = 1.0,
    asymptote: str | float = "max-separation",
    repair: str = "raise",
    generator: torch.Generator | None = None,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
) -> GramFrame:
    r"""Return class vectors whose cosines fall exponentially with the distance of the classes.

    The mapping of HAFrame (Liang & Davis, ICCV 2023) with the all-ones matrix J,

    .. math:: W W^\top = G = (1 - s) E + s J, \qquad E_{ij} = e^{-\gamma D_{ij} / d_{\max}}.

    ``asymptote="max-separation"`` takes the smallest s that vectors allow, in closed form, see
    :func:`max_separation_asymptote`. G then has rank K - 1, a weighted sum of the class vectors is zero, and without
    levels in the hierarchy the frame is the simplex ETF for every γ. ``"grid"`` takes the lowest of the 100 values from
    -1/(K-1) to -1 for which no eigenvalue of G is below -1e-6, as published; it is coarser and ends at -1.

    Ultrametric distances, those of a tree, always give a frame for d >= K - 1 (K for another asymptote above the
    smallest); others may not. For d below the rank, and for a ``repair``, see :func:`~tightframe.frames.frame_of_gram`.
    If no s is possible, a repair starts from E, which is s = 0. At maximum separation the frame spans K - 1 dimensions:
    with d = K features may hide in the one left over, so measure their alignment in the span, or take d = K - 1.

    The published classifier is ``FrameClassifier(frame, normalize=False)`` behind a
    :class:`~tightframe.nn.FeatureTransform`, trained by :class:`~tightframe.nn.CosineGramLoss`.

    Args:
        distances: Distances D ``(K, K)``, floating point, symmetric, zero on the diagonal alone, in any unit, K >= 2;
            for example ``Tree.distances()``.
        dim: Feature dimension d >= 1; None is K.
        gamma: Rate γ > 0. Small values give cosines linear in the distance; large ones separate only the nearest
            classes from the rest. None is :func:`suggest_gamma`.
        asymptote: Word ``"max-separation"`` or ``"grid"``, or s itself, below 1.
        repair: Word ``"raise"``, ``"shrink"``, ``"clip"`` or ``"nearest"``, for cosines that no vectors have.
        generator: Source of the orientation, on the CPU; None is a new one with seed 0.
        dtype: Floating-point type of frame and gram, which are computed in float64; None is PyTorch's default.
        device: Device of the result; None is that of ``distances``.

    Returns:
        A frame with facts: ``gram``, ``asymptote``, ``gamma``, ``error`` and ``violations``.

    Raises:
        DtypeError, ShapeError: if ``distances`` is not a floating-point matrix ``(K, K)`` with K >= 2.
        ArgumentError: if its values are not as above, no vectors have such cosines and ``repair="raise"``, or another
            argument is outside its range.
        DeviceError: if the generator is not on the CPU.

    Example:
        >>> tree = Tree.from_nested({"E": ["A", "B"], "F": ["C", "D"]})
        >>> found = hierarchy_aware_frame(tree.distances(), dim=3, gamma=2.0, dtype=torch.float64)
        >>> (found.frame @ found.frame.T)[0]
        tensor([ 1.0000, -0.0707, -0.4646, -0.4646], dtype=torch.float64)
        >>> round(found.asymptote, 4)
        -0.6939
    """
    check_choice("repair", repair, REPAIRS)
    gamma = suggest_gamma(distances) if gamma is None else gamma
    gap = _gap(distances, gamma)
    rows = None
    if asymptote == "max-separation":
        s, rows = _circumscribed(gap) or (None, None)
    else:
        s = _on_grid(gap) if asymptote == "grid" else _checked(asymptote)
    if s is None:
        if repair == "raise":
            highest = -1 / (len(gap) - 1) if asymptote == "grid" else 0.0
            raise indefinite("distances", _lowest_eigenvalue(gap, highest), _REMEDY)
        s = 0.0
    cosines = gram = 1 - (1 - s) * gap
    if rows is None:
        gram, rows = factor(cosines, repair, "distances", _REMEDY + ", raise the asymptote")
    found = in_dimension(cosines, gram, rows, dim, generator)
    found.asymptote, found.gamma = s, float(gamma)
    return found.to(dtype=dtype or torch.get_default_dtype(), device=distances.device if device is None else device)


def max_separation_asymptote(distances: Tensor, gamma: float = 1.0) -> float:
    r"""Return the smallest s for which vectors of cosines :math:`(1 - s) E + s J` exist.

    For E as in :func:`hierarchy_aware_frame`, if :math:`x^\top E x > 0` for all :math:`x \ne 0` that sum to zero,

    .. math:: s^* = -1 / (\kappa - 1), \qquad \kappa = \mathbf 1^\top E^{-1} \mathbf 1,

    computed from J - E, which is exact for small γ too: points with the entries of 2 (1 - s) (J - E) as squared
    distances have a circumscribed sphere, and s* makes its radius 1. It may be below -1, and is positive if E itself
    has a negative eigenvalue. O(K^3), by a Cholesky factor.

    Args:
        distances: Distances D ``(K, K)`` as in :func:`hierarchy_aware_frame`.
        gamma: Rate γ > 0.

    Raises:
        DtypeError, ShapeError, ArgumentError: as in :func:`hierarchy_aware_frame`, and if there is no such s.

    Example:
        >>> max_separation_asymptote(1 - torch.eye(5, dtype=torch.float64), gamma=1.0)
        -0.9774...
    """
    gap = _gap(distances, gamma)
    found = _circumscribed(gap)
    if found is None:
        raise indefinite("distances", _lowest_eigenvalue(gap, 0.0), _REMEDY)
    return found[0]


def tree_max_separation(tree: Tree, gamma: float = 1.0, mode: str = "depth") -> float:
    r"""Return the result of :func:`max_separation_asymptote` for the distances of a tree, in O(N) without matrices.

    With :math:`e_v = e^{-\gamma h_v / d_{\max}}` for the distance :math:`h_v` of classes that part at v, and
    :math:`c_v = e_v - e_{parent(v)}`, :math:`E = \sum_v c_v \mathbf 1_v \mathbf 1_v^\top`, so the sums
    :math:`K_v = \mathbf 1^\top (\cdot)^{-1} \mathbf 1` of the classes below v follow from those of its children:
    :math:`1 / c_v` at a leaf, :math:`S / (1 + c_v S)` above with their sum S.

    Args:
        tree: Tree of K >= 2 classes.
        gamma: Rate γ > 0.
        mode: Word ``"depth"`` or ``"height"``, see :meth:`Tree.distances`.

    Raises:
        ArgumentError: if an argument is outside its range.

    Example:
        >>> tree = Tree.from_nested({"E": ["A", "B"], "F": ["C", "D"]})
        >>> round(tree_max_separation(tree, gamma=2.0), 7)
        -0.6938745
    """
    check_choice("mode", mode, ("depth", "height"))
    check_range("gamma", gamma, gamma > 0, "> 0")
    if tree.num_classes < 2:
        raise ArgumentError(f"tree must have at least 2 classes, got {tree.num_classes}")
    height = tree.height if mode == "height" else tree.depth.max() - tree.depth
    height = np.where(tree.height > 0, height, 0).astype(np.float64)
    farthest = height[np.bincount(tree.parents[1:], minlength=len(height)) > 1].max()
    # Nodes above the first fork have no pair of classes of their own.
    height = np.minimum(height, farthest) * (gamma / farthest)
    parents = tree.parents[1:]
    steps = np.exp(-height[parents]) * np.expm1(height[parents] - height[1:])
    sums = [0.0] * len(height)
    for node in range(len(height) - 1, 0, -1):
        below, step = sums[node], float(steps[node - 1])
        sums[tree.parents[node]] += below / (1 + step * below) if below else 1 / step
    # As in the dense form: the root's term less J is -(1 - e_root).
    top = -math.expm1(-height[0])
    return 1 - sums[0] / (top * sums[0] - 1)


def suggest_gamma(distances: Tensor) -> float:
    r"""Return the γ that spreads the cosines of the levels of a hierarchy most.

    As γ tends to 0 the values :math:`e^{-\gamma D / d_{\max}}` of all distances tend to 1; as it grows they tend to 0.
    Between the two lies the γ returned, for which their variance over the distinct distances, each counted once, is
    largest. Cosines of a given asymptote are linear in these values, so their variance is largest, too. For two
    levels it is :math:`\ln(d_2 / d_1) / (1 - d_1 / d_2)`; for 2, 3, 5, 7 and 12 equally spaced ones it is 1.39, 1.69,
    2.06, 2.29 and 2.60, where HAFrame's choices by data set were 1, 2, 5 and 3 for depths 3, 5, 7 and 12. Start a
    search on validation data from it: the best γ depends on how much severity counts against accuracy, which no tree
    can tell.

    Args:
        distances: Distances D ``(K, K)`` as in :func:`hierarchy_aware_frame`.

    Returns:
        γ, or 1.0 if there is one level only: its frame of maximum separation does not depend on γ.

    Raises:
        DtypeError, ShapeError, ArgumentError: if ``distances`` is not a valid distance matrix of K >= 2 classes.

    Example:
        >>> tree = Tree.from_nested({"E": ["A", "B"], "F": ["C", "D"]})
        >>> round(suggest_gamma(tree.distances()), 3)
        1.386
    """
    check_distances(distances, at_least=2)
    i, j = torch.triu_indices(len(distances), len(distances), offset=1, device=distances.device)
    levels = distances.detach()[i, j].double().cpu()
    levels = torch.unique((levels / levels.max()).round(decimals=9))
    levels = levels[levels > 0]
    if len(levels) < 2:
        return 1.0
    low, high = math.log(0.1), math.log(50 / float(levels[0]))
    for _ in range(8):
        grid = torch.linspace(low, high, 33, dtype=torch.float64, device="cpu")
        spread = torch.stack([torch.exp(-gamma * levels).var() for gamma in grid.exp()])
        best, step = float(grid[spread.argmax()]), (high - low) / 32
        low, high = best - step, best + step
    return math.exp(best)


def _gap(distances: Tensor, gamma: float) -> Tensor:
    """Return ``1 - exp(-γ D / d_max)`` in float64 on the CPU."""
    check_distances(distances, at_least=2)
    check_range("gamma", gamma, gamma > 0, "> 0")
    D = distances.detach().to("cpu", torch.float64)
    return -torch.expm1(D * (-gamma / D.max()))


def _circumscribed(gap: Tensor) -> tuple[float, Tensor] | None:
    """Return the smallest s and unit rows ``(K, K - 1)`` with its cosines, None if there is no s.

    The cosines 1 - (1 - s) F belong to unit vectors of squared distances 2 (1 - s) F. Points with squared distances 2 F
    span a simplex, and it touches the unit sphere from within in all corners once it is so large that its circumradius
    is 1. With the last point as origin L holds the others, and z is the circumcentre.
    """
    base = gap[:-1, -1]
    L, info = torch.linalg.cholesky_ex(base + base.unsqueeze(1) - gap[:-1, :-1])
    if info or L.diagonal().min() ** 2 <= len(gap) * torch.finfo(gap.dtype).eps * gap.max():
        return None
    z = torch.linalg.solve_triangular(L, base.unsqueeze(1), upper=False).T
    rows = F.pad(L, (0, 0, 0, 1)) - z
    return 1 - 1 / float(z.square().sum()), F.normalize(rows, dim=1)


def _checked(asymptote: object) -> float:
    if isinstance(asymptote, bool) or not isinstance(asymptote, int | float) or not -math.inf < asymptote < 1:
        choices = ", ".join(map(repr, ASYMPTOTES))
        raise ArgumentError(f"asymptote must be {choices} or a finite number below 1, got {asymptote!r}")
    return float(asymptote)


def _on_grid(gap: Tensor) -> float | None:
    """Return the lowest possible of the published values.

    The smallest eigenvalue is concave in s and zero at s = 1, so the possible values are those above one: halving finds
    it.
    """
    grid = torch.linspace(-1 / (len(gap) - 1), -1, _GRID, dtype=torch.float64, device="cpu").tolist()
    first = bisect.bisect_left(grid, True, key=lambda s: _lowest_eigenvalue(gap, s) < -SLACK)
    return grid[first - 1] if first else None


def _lowest_eigenvalue(gap: Tensor, s: float) -> float:
    return float(torch.linalg.eigvalsh(1 - (1 - s) * gap)[0])
