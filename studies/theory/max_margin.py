"""Figures of the SELI geometry: what imbalanced counts make of it, and how slowly a vanishing penalty leads there."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor

from studies.theory.panels import Rows, curves
from tightframe.report.charts import Chart, HeatMap
from tightframe.ufm import CrossEntropyUFM, MaxMargin, Solution, closed_form, solve
from tightframe.ufm.margin import margin_certificate
from tightframe.ufm.solution import centering

RATIOS = (1, 2, 3, 5, 10, 20, 50, 100, 200, 500, 1000)
PROFILES = ((12, 12, 3, 3), (100, 100, 1, 1), (50, 20, 5, 1))
EXPONENTS = (2, 3, 4, 6, 9, 14, 24, 48, 96)
PAIRS = {"majority": (0, 1), "minority": (2, 3), "cross": (0, 2)}


def seli(seed: int) -> list[Chart | HeatMap]:
    """SELI Gram matrices, angles against R, and the 1/log(1/λ) path (Thrampoulidis et al. 2022).

    Nothing is drawn at random.
    """
    counts = PROFILES[0]
    exact, penalties = largest_margin(counts), [10.0**-exponent for exponent in EXPONENTS]
    charts: list[Chart | HeatMap] = [
        HeatMap(f"SELI, class vectors, n = {counts}", unit(exact.gram_W)),
        HeatMap("SELI, class means", unit(exact.gram_H)),
        HeatMap("cross-entropy, λ = 0.01, class vectors", unit(penalised(counts, 1e-2).gram_W)),
    ]
    limit, near, nearer = angles(largest_margin), *(angles(partial(penalised, penalty=p)) for p in (1e-4, 1e-12))
    for name in ("class vectors", "class means"):
        lines = curves(limit, "R", name, label="{}, SELI")
        lines += curves(near, "R", name, label="", dashed=True) + curves(nearer, "R", name, label="", points=True)
        title = f"{name}; λ = 1e-4 dashed, 1e-12 points"
        charts.append(Chart(title, "R, majority over minority count", "cosine", lines, log_x=True))
    paths = {}
    for counts in PROFILES:
        slope, paces = path_slope(counts), [1 / math.log(1 / penalty) for penalty in penalties]
        paths[f"n = {counts}, dashed {slope:.3f} / log(1/λ)"] = [
            {"pace": pace, "distance": distance, "tangent": slope * pace}
            for pace, distance in zip(paces, path_distances(counts, penalties), strict=True)
        ]
    lines = curves(paths, "pace", "distance", points=True) + curves(paths, "pace", "tangent", label="", dashed=True)
    title, y = "regularisation path", "distance to SELI of W Wᵀ / ‖W Wᵀ‖"
    return [*charts, Chart(title, "1 / log(1/λ)", y, lines)]


def angles(minimum: Callable[[Sequence[int]], Solution]) -> dict[str, Rows]:
    """Return the cosines of pairs of class vectors and class means at the minimum for counts (R, R, 1, 1)."""
    groups: dict[str, list[dict[str, float]]] = {pair: [] for pair in PAIRS}
    for ratio in RATIOS:
        solution = minimum((ratio, ratio, 1, 1))
        for pair, (i, j) in PAIRS.items():
            vectors, means = (cosine(gram, i, j) for gram in (solution.gram_W, solution.gram_H))
            groups[pair].append({"R": ratio, "class vectors": vectors, "class means": means})
    return dict(groups)


def largest_margin(counts: Sequence[int]) -> Solution:
    """Return the SELI geometry."""
    return closed_form(MaxMargin(tuple(counts), dim=len(counts)))


def path_distances(counts: Sequence[int], penalties: Sequence[float]) -> list[float]:
    """Return how far the minimum of cross-entropy with λ_W = λ_H = λ is from SELI, in W Wᵀ of Frobenius norm 1."""
    target = unit(largest_margin(counts).gram_W)
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
    P, D = centering(len(counts)), problem.n.diag()
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


def unit(matrix: Tensor) -> Tensor:
    """Return the matrix divided by its Frobenius norm."""
    return matrix / torch.linalg.matrix_norm(matrix)
