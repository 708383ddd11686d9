"""Every collapse metric from its formula, in numpy and by loops, beside the package's own."""

from __future__ import annotations

import math
from itertools import combinations

import numpy as np

from tightframe.functional import (
    between_class_rank,
    bias_collapse,
    cdnv,
    gnc2,
    nc1,
    nc2_equiangularity,
    nc2_equinorm,
    nc2_etf_gap,
    nc2_gram,
    nc2_max_angle,
    nc2_min_separation,
    nc3_alignment,
    nc3_distance,
    nc3_gram,
    nc5,
    vci,
)

from ..problems import draw, exact_statistics, scattered

NAN = float("nan")


def unit(x):
    return x / np.sqrt((x**2).sum())


def equinorm(M, ddof):
    norms = [np.sqrt(m @ m) for m in M]
    return np.std(norms, ddof=ddof) / np.mean(norms)


def from_simplex(G):
    K = len(G)
    return np.linalg.norm(G / np.linalg.norm(G) - (np.eye(K) - np.ones((K, K)) / K) / math.sqrt(K - 1))


def etf_gap(M):
    """Solve the Procrustes problem and build the nearest simplex ETF itself."""
    K = len(M)
    Q = np.linalg.svd(np.eye(K) - 1 / K)[0][:, : K - 1]
    U, S, Vt = np.linalg.svd(Q.T @ M, full_matrices=False)
    nearest = S.mean() * Q @ U @ Vt
    return np.linalg.norm(M - nearest) / np.linalg.norm(M)


def pair_cosines(M):
    return np.array([unit(a) @ unit(b) for a, b in combinations(M, 2)])


def pair_distances(M):
    return np.array([np.sqrt(((unit(a) - unit(b)) ** 2).sum()) for a, b in combinations(M, 2)])


OF_VECTORS = {
    "equinorm": (nc2_equinorm, lambda M: equinorm(M, 1)),
    "equinorm, population": (
        lambda M: nc2_equinorm(M, correction=0),
        lambda M: equinorm(M, 0),
    ),
    "equiangularity": (nc2_equiangularity, lambda M: np.std(pair_cosines(M))),
    "max angle": (nc2_max_angle, lambda M: np.abs(pair_cosines(M) + 1 / (len(M) - 1)).mean()),
    "gram": (nc2_gram, lambda M: from_simplex(M @ M.T)),
    "etf gap": (nc2_etf_gap, lambda M: etf_gap(M) if M.shape[1] >= len(M) - 1 else NAN),
    "min separation": (nc2_min_separation, lambda M: pair_distances(M).min()),
    "log energy": (gnc2, lambda M: np.log(1 / pair_distances(M)).mean()),
    "log energy, variance": (
        lambda M: gnc2(M, "log", "variance"),
        lambda M: np.log(1 / pair_distances(M)).var(),
    ),
    "distance": (lambda M: gnc2(M, "distance"), lambda M: pair_distances(M).mean()),
    "distance, variance": (lambda M: gnc2(M, "distance", "variance"), lambda M: pair_distances(M).var()),
    "riesz energy": (
        lambda M: gnc2(M, "riesz"),
        lambda M: np.log((pair_distances(M) ** -float(M.shape[1] - 2)).mean()),
    ),
    "riesz energy, variance": (
        lambda M: gnc2(M, "riesz", "variance"),
        lambda M: np.log((pair_distances(M) ** -float(M.shape[1] - 2)).var()),
    ),
}


class Literal:
    """The moments of a problem as plain loops see them, with covariances and their pseudo-inverses."""

    def __init__(self, problem, weighting="class"):
        exact = exact_statistics(problem.features, problem.labels)
        self.classes, self.n = exact.classes, exact.count
        self.K, self.N = len(exact.classes), problem.labels.numel()
        self.mean = exact.mean.astype(np.float64)
        self.variance = exact.trace.astype(np.float64) / self.n
        share = {"class": np.ones(self.K) / self.K, "sample": self.n / self.N}[weighting]
        self.G = share @ self.mean
        self.A = self.mean - self.G
        z = exact.residuals.astype(np.float64)
        self.within = sum(np.outer(row, row) for row in z) / self.N
        self.between = sum(np.outer(a, a) for a in self.A) / self.K

    def pinv(self, matrix):
        return np.linalg.pinv(matrix, rcond=1e-10, hermitian=True)

    def cdnv(self, power):
        terms = []
        for i, j in combinations(range(self.K), 2):
            distance = ((self.mean[i] - self.mean[j]) ** 2).sum()
            terms.append((self.variance[i] + self.variance[j]) / (2 * distance**power))
        return np.mean(terms)

    def vci(self, rank):
        explained = np.trace(self.pinv(self.within + self.between) @ self.between)
        return 1 - explained / rank

    def nc3_distance(self, W):
        return ((W / np.linalg.norm(W) - self.A / np.linalg.norm(self.A)) ** 2).sum()

    def cosines(self, W):
        return np.array([unit(w) @ unit(a) for w, a in zip(W, self.A, strict=True)])


# In each: of the package from (moments, W, b, weighting), and from (literal, W, b) where W and b hold present rows.
OF_MOMENTS = {
    "nc1": (
        lambda m, W, b, g: nc1(m, weighting=g),
        lambda o, W, b: np.trace(o.within @ o.pinv(o.between)) / o.K,
    ),
    "nc1, sum": (
        lambda m, W, b, g: nc1(m, "pinv_sum", weighting=g),
        lambda o, W, b: np.trace(o.within @ o.pinv(o.between)),
    ),
    "nc1, ratio": (
        lambda m, W, b, g: nc1(m, "ratio", weighting=g),
        lambda o, W, b: np.trace(o.within) / np.trace(o.between),
    ),
    "rank": (
        lambda m, W, b, g: between_class_rank(m, weighting=g),
        lambda o, W, b: np.linalg.matrix_rank(o.A, tol=1e-8),
    ),
    "cdnv": (lambda m, W, b, g: cdnv(m), lambda o, W, b: o.cdnv(1)),
    "cdnv, power 2": (lambda m, W, b, g: cdnv(m, power=2), lambda o, W, b: o.cdnv(2)),
    "vci": (lambda m, W, b, g: vci(m, weighting=g), lambda o, W, b: o.vci(min(o.A.shape[1], o.K - 1))),
    "vci, rank": (
        lambda m, W, b, g: vci(m, "rank", weighting=g),
        lambda o, W, b: o.vci(np.linalg.matrix_rank(o.A, tol=1e-8)),
    ),
    "nc3 distance": (lambda m, W, b, g: nc3_distance(m, W, weighting=g), lambda o, W, b: o.nc3_distance(W)),
    "nc3 distance, norm": (
        lambda m, W, b, g: nc3_distance(m, W, "norm", weighting=g),
        lambda o, W, b: math.sqrt(o.nc3_distance(W)),
    ),
    "nc3 gram": (lambda m, W, b, g: nc3_gram(m, W, weighting=g), lambda o, W, b: from_simplex(W @ o.A.T)),
    "nc3 alignment": (
        lambda m, W, b, g: nc3_alignment(m, W, weighting=g),
        lambda o, W, b: 1 - o.cosines(W).mean(),
    ),
    "nc3 alignment, variance": (
        lambda m, W, b, g: nc3_alignment(m, W, "variance", weighting=g),
        lambda o, W, b: o.cosines(W).var(ddof=1),
    ),
    "bias collapse": (
        lambda m, W, b, g: bias_collapse(m, W, b, weighting=g),
        lambda o, W, b: np.linalg.norm([w @ o.G + c for w, c in zip(W, b, strict=True)]),
    ),
    "bias collapse, no bias": (
        lambda m, W, b, g: bias_collapse(m, W, weighting=g),
        lambda o, W, b: np.linalg.norm([w @ o.G for w in W]),
    ),
    "nc5": (
        lambda m, W, b, g: nc5(m, draw(m.dim, seed=6)),
        lambda o, W, b: np.mean([abs(unit(m) @ unit(draw(W.shape[1], seed=6).numpy())) for m in o.mean]),
    ),
}

RANDOM = {
    "balanced": lambda: scattered(draw(5, 8), [12] * 5, 0.7, offset=0.5),
    "imbalanced": lambda: scattered(draw(4, 9), [50, 9, 3, 1], 0.7, offset=0.5),
    "absent classes": lambda: scattered(draw(6, 7), [9, 0, 20, 5, 6, 0], 0.7),
    "K > d": lambda: scattered(draw(8, 3), [9] * 7 + [2], 0.7),
    "d = K - 1": lambda: scattered(draw(5, 4), [9, 8, 7, 6, 5], 0.7),
    "two classes": lambda: scattered(draw(2, 4), [9, 3], 0.7),
}
