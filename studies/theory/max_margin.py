"""Figures of the SELI geometry: what imbalanced counts make of it, and how slowly a vanishing penalty leads there."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from tightframe.ufm.closed_form import closed_form
from tightframe.ufm.forms.common import centering
from tightframe.ufm.forms.margin import margin_certificate, step_geometry
from tightframe.ufm.objective import counts_of
from tightframe.ufm.problems import CrossEntropyUFM, MaxMargin
from torch import Tensor

from tightframe.report.charts import Chart, HeatMap, Line
from tightframe.ufm.solution import Solution
from tightframe.ufm.solve import solve

_RATIOS = (1, 2, 3, 5, 10, 20, 50, 100, 200, 500, 1000)
_PROFILES = ((12, 12, 3, 3), (100, 100, 1, 1), (50, 20, 5, 1))
_EXPONENTS = (2, 3, 4, 6, 9, 14, 24, 48, 96)
_PAIRS = {"majority": (0, 1), "minority": (2, 3), "cross": (0, 2)}


def seli(seed: int) -> list[Chart | HeatMap]:
    """SELI Gram matrices, angles against R, and the 1/log(1/λ) path (Thrampoulidis et al. 2022).

    Nothing is drawn at random.
    """
    counts = _PROFILES[0]
    exact = closed_form(MaxMargin(counts, dim=len(counts)))
    maps = [
        HeatMap(f"SELI, class vectors, n = {counts}", unit(exact.gram_W)),
        HeatMap("SELI, class means", unit(exact.gram_H)),
        HeatMap("cross-entropy, λ = 0.01, class vectors", unit(penalised(counts, 1e-2).gram_W)),
    ]
    solved = {p: [penalised((ratio, ratio, 1, 1), p) for ratio in _RATIOS] for p in (1e-4, 1e-12)}
    vectors = {penalty: [solution.gram_W for solution in path] for penalty, path in solved.items()}
    means = {penalty: [solution.gram_H for solution in path] for penalty, path in solved.items()}
    return [*maps, _angles("w", "class vectors", vectors), _angles("h", "class means", means), _path()]


def _angles(which: str, name: str, solved: Mapping[float, Sequence[Tensor]]) -> Chart:
    """Draw cosines of counts (R, R, 1, 1): SELI, and cross-entropy at the penalties solved."""
    steps = [step_geometry(ratio, 0.5, 4) for ratio in _RATIOS]
    lines = []
    for pair, (i, j) in _PAIRS.items():
        lines.append(Line(f"{pair}, SELI", _RATIOS, [step_cosine(step, which, pair) for step in steps], group=pair))
        for penalty, grams in solved.items():
            label = f"the same, λ = {penalty:g}" if pair == "majority" else ""
            points, cosines = penalty < 1e-9, [cosine(gram, i, j) for gram in grams]
            lines.append(Line(label, _RATIOS, cosines, group=pair, points=points, dashed=True))
    return Chart(name, "R, majority over minority count", "cosine", lines, log_x=True)


def _path() -> Chart:
    """Draw how far the penalised minimum is from SELI, with the derived slope of the law as a dashed line."""
    penalties = [10.0**-exponent for exponent in _EXPONENTS]
    paces = [1 / math.log(1 / penalty) for penalty in penalties]
    lines = []
    for counts in _PROFILES:
        name, slope, ends = str(counts), path_slope(counts), [0.0, paces[0]]
        lines.append(Line(f"n = {name}", paces, path_distances(counts, penalties), group=name, points=True))
        lines.append(Line(f"{slope:.3f} / log(1/λ)", ends, [slope * x for x in ends], name, dashed=True))
    return Chart("regularisation path", "1 / log(1/λ)", "distance to SELI of W Wᵀ / ‖W Wᵀ‖", lines)


def path_distances(counts: Sequence[int], penalties: Sequence[float]) -> list[float]:
    """Return how far the minimum of cross-entropy with λ_W = λ_H = λ is from SELI, in W Wᵀ of Frobenius norm 1."""
    target = unit(closed_form(MaxMargin(tuple(counts), dim=len(counts))).gram_W)
    return [torch.linalg.matrix_norm(unit(penalised(counts, penalty).gram_W) - target).item() for penalty in penalties]


def path_slope(counts: Sequence[int]) -> float:
    r"""Return s with distance = s/log(1/λ) + o(1/log(1/λ)) on the regularisation path of cross-entropy.

    A sample of class k misses by :math:`q_{kj} = \sigma |B_{kj}| / \omega` towards class j at the minimum, with B the
    dual certificate of the largest margin up to terms that vanish, so its margins are
    :math:`\log(1/\sigma) - \log|B_{kj}| + \log\omega`. The logits are therefore :math:`\log(1/\lambda)\,(P + X /
    \log(1/\lambda))` with :math:`X = (\log|B|) P` up to multiples of P, and s is the norm of the derivative of
    :math:`(Z^\top D Z)^{1/2}`, normalised, at Z = P along X. It is 0 for equal counts.

    Args:
        counts: ``n_k``, weights being equal.
    """
    problem = MaxMargin(tuple(counts), dim=len(counts))
    P, D = centering(len(counts)), counts_of(problem).diag()
    X = margin_certificate(problem).fill_diagonal_(-1).neg().log() @ P
    A, change = P @ D @ P, P @ D @ X
    squares, V = torch.linalg.eigh(A)
    roots = squares.clamp(min=0).sqrt()
    roots[0] = 0.0  # of the vector of ones, which is in the kernel of all of these
    sums = roots.unsqueeze(1) + roots
    sums[0, 0] = 1.0
    # The derivative G' of G = A^(1/2) solves G G' + G' G = A'.
    derivative = V @ ((V.T @ (change + change.T) @ V) / sums) @ V.T
    G = (V * roots) @ V.T
    norm = torch.linalg.matrix_norm(G)
    across = derivative - G * (G * derivative).sum() / norm**2
    return (torch.linalg.matrix_norm(across) / norm).item()


def penalised(counts: Sequence[int], penalty: float) -> Solution:
    """Return the minimum of cross-entropy with λ_W = λ_H = ``penalty``."""
    return solve(CrossEntropyUFM(tuple(counts), dim=len(counts), weight_decay=penalty, feature_decay=penalty))


def cosine(gram: Tensor, i: int, j: int) -> float:
    """Return the cosine of two of the vectors that the Gram matrix is of."""
    return (gram[i, j] / (gram[i, i] * gram[j, j]).sqrt()).item()


def step_cosine(step: dict[str, float], which: str, pair: str) -> float:
    """Return the cosine of a ``step_geometry``; ``pair`` is ``"majority"``, ``"minority"`` or ``"cross"``."""
    if pair == "cross":
        return step[f"{which}_cross"] / math.sqrt(step[f"{which}_majority"] * step[f"{which}_minority"])
    return step[f"{which}_{pair}_pair"] / step[f"{which}_{pair}"]


def unit(matrix: Tensor) -> Tensor:
    """Return the matrix divided by its Frobenius norm."""
    return matrix / torch.linalg.matrix_norm(matrix)
