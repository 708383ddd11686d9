"""Certificates of margins: how near a direction is to the largest margin that any direction of its norm has."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from tightframe.ufm.certificate import Certificate
from tightframe.ufm.critical import Point, find_witness, top_pair
from tightframe.ufm.losses import CrossEntropy
from tightframe.ufm.margin import ULPM, MaxMargin, margin_certificate


class Separation(NamedTuple):
    """The dual of the min-norm separation problem at some weights of its constraints.

    Attributes:
        dual: lower bound of (‖W‖² + ‖H̃‖²)/2 at margin 1.
        misalignment: 1 - cos between the point and the slope that the weights put together, in [0, 2]; 0 at a KKT point
            with its multipliers.
        sigma: multiplier of the norm.
        operator_norm: of the weighted constraints; sigma at the global maximum of the margin.
    """

    dual: float
    misalignment: float
    sigma: float
    operator_norm: float


def certify_margin(problem: ULPM | MaxMargin, W: Tensor, H: Tensor) -> Certificate:
    r"""Return the certificate of a direction, scaled to margin 1: its norm less a dual bound.

    .. math:: p = \frac{\lVert W\rVert^2 + \lVert\tilde H\rVert^2}{2\,\text{margin}}, \qquad
        D = \frac{\sum_{ij} \alpha_{ij}}{\lVert A\rVert_{op}}, \qquad
        A = \sum_{i,\,j \ne y_i} \alpha_{ij}\, (e_{y_i} - e_j) e_i^\top

    D <= p for all :math:`\alpha \ge 0`. They are the softmax's, :math:`q_{ij}`, and those of the simplex encoding
    (Thrampoulidis et al. 2022), of which D is the optimum. Of :class:`ULPM`, stationarity, :math:`\tau`,
    :math:`\sigma` and the witness are those of the loss on the sphere through the point, where :math:`\nabla L =
    -\sigma (W, \tilde H)` at a critical point. Of :class:`MaxMargin` they belong to the simplex encoding's
    multipliers, and there is no witness.

    A direction that leaves a sample misclassified has no multiple with margin 1: it is refused, with loss and gap
    infinite and the reason as explanation.

    Args:
        problem: balanced or not; any d.
        W: ``(K, d)``.
        H: ``(K, d)`` or ``(N, d)``, class by class.
    """
    point = Point.of(problem, W, H, None)
    margins = margins_of(point)
    margin = margins.min().item()
    square = point.W.square().sum().item() + point.H.square().sum().item()
    softmax, shift = softmax_separation(point)
    encoding = separation(point, encoding_multipliers(problem)[point.rows.own])
    facts = {"margin": margin, "dual.softmax": softmax.dual, "dual.simplex_encoding": encoding.dual}
    facts |= {"kkt.softmax": softmax.misalignment, "kkt.simplex_encoding": encoding.misalignment}

    of_loss = isinstance(problem, ULPM)
    chosen, unit = (softmax, math.exp(shift)) if of_loss else (encoding, 1.0)
    sigma, tau = unit * chosen.sigma, unit * chosen.operator_norm
    return Certificate(
        problem,
        loss=square / (2 * margin) if margin > 0 else math.inf,
        lower_bound=max(softmax.dual, encoding.dual),
        stationarity=chosen.misalignment,
        operator_norm=tau,
        sigma=sigma,
        balance=point.balance(1.0, 1.0) / margin if margin > 0 else math.inf,
        violation=0.0 if of_loss else abs(1 - margin),
        witness=find_witness(point, sigma, sigma, tangent=True) if of_loss and tau > sigma else None,
        remarks=() if margin > 0 else (_refusal(point, margins),),
        facts=facts,
    )


def margins_of(point: Point) -> Tensor:
    """Return own logit less the largest other ``(R, 1)``."""
    own = point.rows.column
    return point.logits.gather(1, own) - point.logits.scatter(1, own, -torch.inf).amax(dim=1, keepdim=True)


def softmax_separation(point: Point) -> tuple[Separation, float]:
    """Return the dual bound of the softmax's weights, and the logarithm of the factor that was taken out of them."""
    log_q = CrossEntropy().log_shares(point.rows, point.logits)[1].scatter(1, point.rows.column, -torch.inf)
    shift = log_q.max()  # late in a flow all of them may underflow, but only their ratios count
    return separation(point, (log_q - shift).exp()), shift.item()


def separation(point: Point, alpha: Tensor) -> Separation:
    """Return the dual bound of weights ``alpha (R, K)`` >= 0 of the constraints, and how the point fits them.

    Args:
        point: Point of a margin model.
        alpha: one row for each of the point's; the entry of the own class must be 0.
    """
    own = point.rows.column
    total = alpha.sum(dim=1, keepdim=True)
    # Each sample of a class has the row's weights: its sum counts c times, its square with √c.
    slope = point.rows.roots * (-alpha).scatter(1, own, total)
    tau = top_pair(slope)[0]
    theta = torch.cat([point.W, point.H])
    pull = torch.cat([slope.T @ point.H, slope @ point.W])
    size, strength = torch.linalg.matrix_norm(theta), torch.linalg.matrix_norm(pull)
    # The square of the difference of unit vectors keeps the digits that 1 - cos would lose.
    misalignment = (pull / strength - theta / size).square().sum() / 2
    mu = 2 * (slope * (point.H @ point.W.T)).sum() / size.square()
    dual = (point.rows.roots.square() * total).sum().item() / tau if tau > 0 else 0.0
    return Separation(dual, misalignment.item(), mu.item(), tau)


def encoding_multipliers(problem: ULPM | MaxMargin) -> Tensor:
    """Return the optimal multipliers ``(K, K)`` of the constraints of one sample of each class, zero for its own class.

    Any that rounding makes negative are 0, so that the bound they give is one.
    """
    return -margin_certificate(problem).fill_diagonal_(0).clamp_(max=0)


def _refusal(point: Point, margins: Tensor) -> str:
    row = int(margins.argmin())
    label = int(point.rows.own[row])
    other = int(point.logits[row].scatter(0, point.rows.own[row], -torch.inf).argmax())
    return (
        f"refused: no multiple of this point separates the classes, as row {row} of H, of class {label}, has a margin "
        f"of {margins[row].item():.3g} against class {other}; train until every sample is classified correctly"
    )
