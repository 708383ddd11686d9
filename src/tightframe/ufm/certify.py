"""Certificates: how far above the minimum a point of a model can be, proved from the point alone."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from tightframe.errors import ArgumentError
from tightframe.ufm.bound import dual_bound
from tightframe.ufm.certificate import Certificate, Witness
from tightframe.ufm.certify_deep import deep_certificate
from tightframe.ufm.certify_margin import certify_margin
from tightframe.ufm.critical import Point, find_witness, top_pair, witness_along
from tightframe.ufm.deep import DeepUFM
from tightframe.ufm.layer_peeled import LayerPeeled
from tightframe.ufm.margin import ULPM, MaxMargin
from tightframe.ufm.problem import Problem, objective
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
        problem: any model of :mod:`tightframe.ufm`.
        solution: any point of it: from a closed form, a solver, a network. Only its tensors are used; what it says of
            itself is not trusted.

    Raises:
        ArgumentError: if a deep solution has no factors.
        ShapeError: if the tensors are not those of the problem.

    Example:
        >>> from tightframe.ufm import CrossEntropyUFM
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
    if not problem.convex:
        raise ArgumentError(f"problem must be a model of tightframe.ufm, got {type(problem).__name__}")
    point = Point.of(problem, solution.W, solution.H, solution.bias)
    facts: dict[str, float] = {}
    decays, violation = problem.penalties, 0.0
    if isinstance(problem, LayerPeeled):
        decays, violation, facts = _multipliers(problem, point)
    sigma, tau = math.sqrt(decays[0]) * math.sqrt(decays[1]), top_pair(point.slope)[0]
    gradient_W, gradient_H = point.gradients(*decays)
    if problem.nonnegative:
        lower, tau = nonnegative_norm(point.slope, point.rows.own)
        facts = {"operator_norm.lower": lower}
        violation = max(0.0, -point.unweighted.min().item())
        # What a step of length 1/λ_H, stopped at 0, does: a feature at 0 can only rise, and one near it hardly fall.
        gradient_H = torch.minimum(gradient_H, decays[1] * point.H.clamp(min=0))
        witness = _relu_witness(point, decays) if lower > sigma else None
    else:
        witness = find_witness(point, *decays, tangent=problem.radius is not None) if tau > sigma else None
    squares = (part.square().sum().item() for part in (gradient_W, gradient_H, point.bias_gradient()))
    balance = point.balance(*decays)
    scale = decays[0] * point.W.square().sum().item() + decays[1] * point.H.square().sum().item()
    return Certificate(
        problem,
        loss=objective(problem, point.W, point.unweighted, point.bias).item(),
        lower_bound=best_bound(point),
        stationarity=math.sqrt(sum(squares)),
        operator_norm=tau,
        sigma=sigma,
        balance=balance,
        violation=violation,
        witness=witness,
        facts={"balance.relative": balance / scale if scale > 0 else 0.0, **facts},
    )


def best_bound(point: Point) -> float:
    """Return the better lower bound of a point and of the class means of its features."""
    problem, features = point.problem, point.unweighted
    if len(features) == problem.num_classes:
        return dual_bound(problem, point.W, features, point.bias)
    means = torch.stack([part.mean(dim=0) for part in features.split(list(problem.counts))])
    bound = dual_bound(problem, point.W, means, point.bias)
    # With nonnegative features the bound of N rows takes the eigenvalues of an (N, N) matrix.
    if problem.nonnegative:
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


def _relu_witness(point: Point, decays: tuple[float, float]) -> Witness | None:
    """Return the witness along a coordinate of feature space that nothing uses, where features may rise from 0."""
    used = (point.W != 0).any(dim=0) | (point.H != 0).any(dim=0)
    if bool(used.all()):
        return None
    pairs = [top_pair(part) for part in point.slope.split(point.rows.own.bincount().tolist())]
    best = max(range(len(pairs)), key=lambda k: pairs[k][0])
    _, part, u = pairs[best]
    v = torch.zeros(len(point.H), dtype=torch.float64)
    sign = 1.0 if part.sum() >= 0 else -1.0
    v[point.rows.own == best] = (sign * part).clamp(min=0)
    a = torch.zeros(point.problem.dim, dtype=torch.float64)
    a[int((~used).nonzero()[0])] = 1
    return witness_along(point, *decays, v, sign * u, a, keep_sign=True)


def _multipliers(problem: LayerPeeled, point: Point) -> tuple[tuple[float, float], float, dict[str, float]]:
    """Return the multipliers that make the gradients orthogonal to W and to H, the excess of a budget, and facts."""
    squares = point.W.square().sum().item(), point.H.square().sum().item()
    budgets = problem.num_classes * problem.weight_budget, problem.num_classes * problem.feature_budget
    shares = [square / budget for square, budget in zip(squares, budgets, strict=True)]
    pull = (point.slope * (point.logits * point.rows.roots)).sum().item()
    decays = (pull / squares[0], pull / squares[1]) if min(squares) > 0 and pull > 0 else (0.0, 0.0)
    facts = {
        "weight_budget.used": shares[0],
        "feature_budget.used": shares[1],
        "frank_wolfe_gap": problem.radius * top_pair(point.slope)[0] - pull,
    }
    return decays, max(0.0, *(share - 1 for share in shares)), facts
