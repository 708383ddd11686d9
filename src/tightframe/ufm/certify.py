"""Certificates: how far above the minimum a point of a model can be, proved from the point alone."""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from torch import Tensor

from tightframe.errors import ArgumentError
from tightframe.ufm.certificate import Certificate, Witness, verdict
from tightframe.ufm.certify_deep import deep_certificate
from tightframe.ufm.certify_margin import certify_margin
from tightframe.ufm.critical import Point, find_witness, top_pair, witness_along
from tightframe.ufm.duality import dual_bound, nuclear_budget
from tightframe.ufm.objective import objective
from tightframe.ufm.problems import (
    ULPM,
    CrossEntropyUFM,
    DeepUFM,
    LayerPeeled,
    MaxMargin,
    MeanSquaredUFM,
    Problem,
    ReLUImbalanced,
)
from tightframe.ufm.solution import Solution, on_cpu


@on_cpu
def certify(problem: Problem, solution: Solution) -> Certificate:
    r"""Return what is proved of a point: its duality gap, how critical it is, and a way down if it is a saddle.

    The gap is an upper bound of loss minus minimum at any point, critical or not. With :math:`A = -\nabla F`, the slope
    of the fit by the logits, and :math:`\tau = \lVert \mathrm{diag}(c)^{-1/2} A\rVert_{op}`:

    - cross-entropy, squared error: :func:`~tightframe.ufm.duality.dual_bound`, and :math:`\sigma =
      \sqrt{\lambda_W\lambda_H}`;
    - ReLU features: the same, where :math:`\tau` is a maximum over nonnegative vectors, or an upper bound of it;
    - layer-peeled: :math:`\langle\nabla F, Z\rangle + K\sqrt{E_W E_H}\,\tau` of Frank and Wolfe, :math:`\sigma` the
      multiplier of the budgets;
    - ULPM and maximal margin: the norm at margin 1 less the dual of the min-norm separation problem;
    - deep: no convex dual, and the bound that :func:`~tightframe.ufm.closed_form.closed_form` knows, if any.

    The bound is the better one of the point's own and that of the class means of its features, which are a point of the
    same model with no larger loss; with ReLU features the latter alone.

    Args:
        problem: any model of :mod:`tightframe.ufm.problems`.
        solution: any point of it: from a closed form, a solver, a network. Only its tensors are used; what it says of
            itself is not trusted.

    Raises:
        ArgumentError: if a deep solution has no factors.
        ShapeError: if the tensors are not those of the problem.

    Example:
        >>> from tightframe.ufm.problems import CrossEntropyUFM
        >>> from tightframe.ufm.solution import Solution
        >>> problem = CrossEntropyUFM((2, 2), dim=2, weight_decay=0.1, feature_decay=0.1)
        >>> zero = torch.zeros(2, 2, dtype=torch.float64)
        >>> certificate = certify(problem, Solution(problem, zero, zero, None, math.log(2), False, "the start"))
        >>> certificate.is_global(), certificate.stationarity
        (False, 0.0)
        >>> abs(certificate.witness.curvature - 2 * (certificate.sigma - certificate.operator_norm)) < 1e-12
        True
    """
    if isinstance(problem, DeepUFM):
        return deep_certificate(problem, solution.factors)
    if isinstance(problem, ULPM | MaxMargin):
        return certify_margin(problem, solution.W, solution.H)
    point = Point.of(problem, solution.W, solution.H, solution.bias)
    if isinstance(problem, CrossEntropyUFM | MeanSquaredUFM):
        return _penalised(problem, point)
    if isinstance(problem, ReLUImbalanced):
        return _relu(problem, point)
    if isinstance(problem, LayerPeeled):
        return _layer_peeled(problem, point)
    raise ArgumentError(f"problem must be a model of tightframe.ufm, got {type(problem).__name__}")


def best_bound(point: Point) -> float:
    """Return the better lower bound of a point and of the class means of its features."""
    problem, features = point.problem, point.unweighted
    if len(features) == problem.num_classes:
        return dual_bound(problem, point.W, features, point.bias)
    means = torch.stack([part.mean(dim=0) for part in features.split(list(problem.counts))])
    bound = dual_bound(problem, point.W, means, point.bias)
    # With nonnegative features the bound of N rows takes the eigenvalues of an (N, N) matrix.
    if isinstance(problem, ReLUImbalanced):
        return bound
    return max(bound, dual_bound(problem, point.W, features, point.bias))


def nonnegative_norm(slope: Tensor, labels: Tensor) -> tuple[float, float]:
    r"""Return bounds, lower and upper, of the largest ‖slopeᵀ v‖ over nonnegative unit v ``(R,)``.

    Blocks are the rows of one class, whose inner products are positive, so that each has a nonnegative top vector. The
    lower bound is the largest norm of a block. With M the inner products of all rows, the upper one is the smaller of
    the largest eigenvalues of M and of the matrix ``(K, K)`` of norms of blocks, off the diagonal without their
    negative entries. It is equal to the lower one where no inner product across classes is positive.

    Args:
        slope: minus the slope by Y ``(R, K)``.
        labels: class of each row, rising.
    """
    parts = slope.split(labels.bincount().tolist())
    compared = torch.zeros(len(parts), len(parts), dtype=slope.dtype)
    for k, part in enumerate(parts):
        compared[k, k] = top_pair(part)[0] ** 2
        for j in range(k):
            compared[k, j] = compared[j, k] = torch.linalg.matrix_norm((part @ parts[j].T).clamp_(min=0))
    lower = compared.diagonal().max().sqrt().item()
    comparison = torch.linalg.eigvalsh(compared)[-1].clamp(min=0).sqrt().item()
    upper = min(top_pair(slope)[0], comparison)
    return lower, max(lower, upper)


def _penalised(problem: CrossEntropyUFM | MeanSquaredUFM, point: Point) -> Certificate:
    decays = problem.weight_decay, problem.feature_decay
    sigma, tau = math.sqrt(decays[0] * decays[1]), top_pair(point.slope)[0]
    witness = find_witness(point, *decays) if tau > sigma else None
    loss = objective(problem, point.W, point.unweighted, point.bias).item()
    return _certificate(
        point,
        loss,
        best_bound(point),
        decays,
        tau,
        sigma,
        _norm(*point.gradients(*decays), point.bias_gradient()),
        witness=witness,
    )


def _relu(problem: ReLUImbalanced, point: Point) -> Certificate:
    decays = problem.weight_decay, problem.feature_decay
    sigma, (lower, tau) = math.sqrt(decays[0] * decays[1]), nonnegative_norm(point.slope, point.labels)
    gradient_W, gradient_H = point.gradients(*decays)
    # What a step of length 1/λ_H, stopped at 0, does: a feature at 0 can only rise, and one near it hardly fall.
    gradient_H = torch.minimum(gradient_H, decays[1] * point.H.clamp(min=0))
    features = point.unweighted
    return _certificate(
        point,
        objective(problem, point.W, features).item(),
        best_bound(point),
        decays,
        tau,
        sigma,
        _norm(gradient_W, gradient_H),
        violation=max(0.0, -features.min().item()),
        witness=_relu_witness(point, decays) if lower > sigma else None,
        facts={"operator_norm.lower": lower},
    )


def _relu_witness(point: Point, decays: tuple[float, float]) -> Witness | None:
    """Return the witness along a coordinate of feature space that nothing uses, where features may rise from 0."""
    used = (point.W != 0).any(dim=0) | (point.H != 0).any(dim=0)
    if bool(used.all()):
        return None
    pairs = [top_pair(part) for part in point.slope.split(point.labels.bincount().tolist())]
    best = max(range(len(pairs)), key=lambda k: pairs[k][0])
    _, part, u = pairs[best]
    v = torch.zeros(len(point.H), dtype=torch.float64)
    sign = 1.0 if part.sum() >= 0 else -1.0
    v[point.labels == best] = (sign * part).clamp(min=0)
    a = torch.zeros(point.problem.dim, dtype=torch.float64)
    a[int((~used).nonzero()[0])] = 1
    return witness_along(point, *decays, v, sign * u, a, keep_sign=True)


def _layer_peeled(problem: LayerPeeled, point: Point) -> Certificate:
    squares = point.W.square().sum().item(), point.H.square().sum().item()
    budgets = problem.num_classes * problem.weight_budget, problem.num_classes * problem.feature_budget
    shares = [square / budget for square, budget in zip(squares, budgets, strict=True)]
    # The multipliers that make the gradients orthogonal to W and to H.
    pull = (point.slope * (point.logits * point.roots)).sum().item()
    decays = (pull / squares[0], pull / squares[1]) if min(squares) > 0 and pull > 0 else (0.0, 0.0)
    sigma, tau = math.sqrt(decays[0] * decays[1]), top_pair(point.slope)[0]
    loss = objective(problem, point.W, point.unweighted).item()
    return _certificate(
        point,
        loss,
        best_bound(point),
        decays,
        tau,
        sigma,
        _norm(*point.gradients(*decays)),
        violation=max(0.0, *(share - 1 for share in shares)),
        witness=find_witness(point, *decays, tangent=True) if tau > sigma else None,
        facts={
            "weight_budget.used": shares[0],
            "feature_budget.used": shares[1],
            "frank_wolfe_gap": nuclear_budget(problem) * tau - pull,
        },
    )


def _certificate(
    point: Point,
    loss: float,
    lower_bound: float,
    decays: tuple[float, float],
    tau: float,
    sigma: float,
    stationarity: float,
    *,
    violation: float = 0.0,
    witness: Witness | None = None,
    facts: dict[str, float] | None = None,
) -> Certificate:
    balance = point.balance(*decays)
    blank = Certificate(point.problem, loss, lower_bound, stationarity, tau, sigma, balance, "", violation, witness)
    scale = decays[0] * point.W.square().sum().item() + decays[1] * point.H.square().sum().item()
    relative = {"balance.relative": balance / scale if scale > 0 else 0.0}
    return replace(blank, explanation=verdict(blank), facts={**relative, **(facts or {})})


def _norm(*parts: Tensor) -> float:
    return math.sqrt(sum(part.square().sum().item() for part in parts))
