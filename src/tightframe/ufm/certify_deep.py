"""Certificate of a point of a deep model, which has no convex dual: is it stationary, balanced, and stable?"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor

from tightframe.errors import ArgumentError
from tightframe.ufm.certificate import Certificate
from tightframe.ufm.deep import DeepUFM, deep_logits, deep_objective, deep_squared_form
from tightframe.ufm.deep_cross_entropy import lower_bound, stable_scale
from tightframe.ufm.problem import double

_SAME = 1e-6  # share of the logits by which collapse may miss its form


def deep_certificate(problem: DeepUFM, factors: Sequence[Tensor]) -> Certificate:
    r"""Return stationarity and balance of the factors of a deep model, and its gap to the best bound that is known.

    There is no convex dual, so the bound is not made of the point: of squared error it is that of
    :func:`~tightframe.ufm.forms.deep.deep_squared_form`, of balanced cross-entropy
    :func:`~tightframe.ufm.structures.lower_bound`, which few points attain, else none. The gradient is one by
    :math:`\tilde H_1` and all matrices. At a stationary point of a linear model
    :math:`\lambda_{l+1} W_{l+1}^\top W_{l+1} = \lambda_l W_l W_l^\top` for all neighbours; of a ReLU between them the
    diagonals are equal. Of deep neural collapse in a linear model, logits :math:`\alpha P`, the facts hold the scale
    and that from which on its Hessian has no negative eigenvalue.

    Args:
        problem: linear or ReLU, with squared error or cross-entropy.
        factors: :math:`(H_1, W_1, \ldots, W_L)`.

    Raises:
        ArgumentError: if there are none.
        ShapeError: if they are not those of the problem.
    """
    if not factors:
        raise ArgumentError(
            "solution must hold the factors (H_1, W_1, ..., W_L) of a deep model, got none; pass factors=..."
        )
    factors = [double(factor, "factors") for factor in factors]
    leaves = [factor.detach().requires_grad_() for factor in factors]
    loss = deep_objective(problem, leaves)
    gradients = list(torch.autograd.grad(loss, leaves))
    roots = problem.rows(len(leaves[0])).roots
    gradients[0] = gradients[0] / roots
    facts = _collapse(problem, factors)
    remarks = ["a deep model has no convex dual, the bound is not made of the point"]
    if facts:
        stable = facts["dnc.scale"] >= facts["dnc.stable_scale"]
        remarks.append(f"deep neural collapse, {'stable' if stable else 'a saddle'} if stationary")
    return Certificate(
        problem,
        loss=loss.item(),
        lower_bound=_bound(problem),
        stationarity=math.sqrt(sum(gradient.square().sum().item() for gradient in gradients)),
        operator_norm=math.nan,
        sigma=math.nan,
        balance=_balance(problem, [roots * factors[0], *factors[1:]]),
        remarks=tuple(remarks),
        facts=facts,
    )


def _bound(problem: DeepUFM) -> float:
    # More dimensions only lower the minimum, and the forms want at least K.
    wide = replace(problem, dim=max(problem.dim, problem.num_classes))
    try:
        return deep_squared_form(wide).lower_bound if problem.loss == "mse" else lower_bound(wide).loss
    except ArgumentError:
        return -math.inf


def _collapse(problem: DeepUFM, factors: Sequence[Tensor]) -> dict[str, float]:
    """Return the scale of deep neural collapse and that from which on it is stable, if the factors are that."""
    if problem.loss != "cross-entropy" or not problem.balanced or not problem.linear:
        return {}
    logits = deep_logits(problem, factors)
    labels = problem.rows(len(logits)).own
    wanted = F.one_hot(labels, problem.num_classes).to(logits) - 1 / problem.num_classes
    scale = ((logits * wanted).sum() / wanted.square().sum()).item()
    if not scale > 0 or torch.linalg.matrix_norm(logits - scale * wanted) > _SAME * torch.linalg.matrix_norm(logits):
        return {}
    return {"dnc.scale": scale, "dnc.stable_scale": stable_scale(problem.num_classes, problem.num_layers)}


def _balance(problem: DeepUFM, factors: Sequence[Tensor]) -> float:
    worst = 0.0
    for index in range(problem.num_layers):
        # Columns of H_1 are rows here: its products over samples are those of the papers' H Hᵀ.
        below = factors[index] if index else factors[0].T
        difference = problem.decays[index + 1] * factors[index + 1].T @ factors[index + 1]
        difference = difference - problem.decays[index] * below @ below.T
        if problem.relu and index:
            difference = difference.diagonal().unsqueeze(0)
        worst = max(worst, torch.linalg.matrix_norm(difference).item())
    return worst
