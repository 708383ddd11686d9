r"""Two groups of classes in the layer-peeled model: four scalars, found on an explicit curve.

Let all :math:`K_A` classes of group A weigh R times as much as each of the :math:`K_B` of group B, R >= 1. The problem
in the logits is convex and symmetric under permutations within a group, so some minimum is too; with the centring
matrices :math:`C_A, C_B` and the unit vector :math:`u \propto (1_A / K_A, -1_B / K_B)` it is

.. math:: Z = a C_A \oplus b C_B + (x 1_A - y 1_B) u^\top, \qquad
    \lVert Z\rVert_* = (K_A - 1) a + (K_B - 1) b + s, \quad s = \sqrt{K_A x^2 + K_B y^2},

one row for each class. Let q be the probabilities of a sample, :math:`q_o` that of another class of its group and
:math:`q_c` that of the whole other group, and :math:`\gamma = \sqrt{K / (K_A K_B)}`. With the multiplier μ of the norm,

.. math:: K_A q_o + q_c = \mu, \quad \gamma q_c = \mu x / s \quad\text{(A)}, \qquad
    K_B q_o + q_c = R \mu, \quad \gamma q_c = R \mu y / s \quad\text{(B)}.

Given the direction of (x, y), the quotient of two equations of a group is linear in its a (or b) and s, and so is the
norm. That leaves one equation, μ of A = μ of B, in the one unknown t = log(y / x). It has one root, for the problem is
strictly convex; its bracket is known, and bisection finds it to the last digit.

As the norm grows, a is positive first, then s, then b. Where b joins, μ = 1/R: there minority collapse ends.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from tightframe.ufm.solution import bisect

_LARGEST = 700.0  # exponent of e that float64 still holds


@dataclass(frozen=True)
class TwoGroups:
    """A minimum: a, b, x, y as above."""

    majority: int
    minority: int
    a: float
    b: float
    x: float
    y: float

    @property
    def joint(self) -> float:
        """s, the singular value that tells the groups apart."""
        return math.hypot(math.sqrt(self.majority) * self.x, math.sqrt(self.minority) * self.y)

    @property
    def rank(self) -> int:
        """How many singular values of the logits are positive."""
        return (self.majority - 1) * (self.a > 0) + (self.minority - 1) * (self.b > 0) + (self.joint > 0)

    @property
    def majority_cosine(self) -> float:
        """Cosine between the class vectors of two majority classes; nan where they are zero or there is one only."""
        return _cosine(self.a, self.joint, self.majority, self.minority)

    @property
    def minority_cosine(self) -> float:
        """Cosine between the class vectors of two minority classes; nan where they are zero or there is one only."""
        return _cosine(self.b, self.joint, self.minority, self.majority)


def threshold_point(majority: int, minority: int, norm: float) -> tuple[float, float]:
    """Return t and log R of the minimum of that nuclear norm where b is about to leave 0, for two minority classes.

    There (B) says γ q_c = y / s, which gives s for each y, and (A) gives the rest. All of it grows with y.
    """
    gamma = _gamma(majority, minority)

    def at(y: float) -> tuple[float, float, float, float]:
        cB = gamma / (1 + minority / majority * math.exp(min(gamma * y, _LARGEST)))
        cA = math.sqrt((1 - minority * cB * cB) / majority)
        s = y / cB
        return _within(s, cA, majority, minority), s, cA, cB

    def excess(y: float) -> float:
        a, s, *_ = at(y)
        return (majority - 1) * a + s - norm

    high = 1 / gamma
    while excess(high) < 0:
        high *= 2
    a, s, cA, cB = at(bisect(excess, 0.0, high))
    return math.log(cB / cA), -_log_multiplier(a, s, math.log(cA), majority, minority)


def two_groups(majority: int, minority: int, ratio: float, norm: float) -> TwoGroups:
    """Return the minimum of that nuclear norm.

    Args:
        majority: K_A >= 1.
        minority: K_B >= 1.
        ratio: R >= 1, the weight of a majority class over that of a minority class.
        norm: r > 0.
    """
    apart = _without_joint(majority, minority, ratio, norm)
    if apart is not None:
        return apart
    # Equal weights have this t, and larger ones of A turn (x, y) towards x.
    low, high, collapsed = -math.inf, math.log(majority / minority), True
    if minority > 1:
        threshold, log_ratio = threshold_point(majority, minority, norm)
        collapsed = math.log(ratio) >= log_ratio
        low, high = (low, threshold) if collapsed else (threshold, high)

    def difference(t: float) -> float:
        return _on_curve(t, majority, minority, ratio, norm, collapsed)[1]

    if low == -math.inf:
        step = 1.0
        while difference(high - step) > 0:
            step *= 2
        low = high - step
    return _on_curve(bisect(difference, low, high), majority, minority, ratio, norm, collapsed)[0]


def _without_joint(majority: int, minority: int, ratio: float, norm: float) -> TwoGroups | None:
    """Return the point that tells the majority classes apart and does nothing else, where that is the minimum."""
    if majority == 1:
        return None
    a, gamma = norm / (majority - 1), _gamma(majority, minority)
    other = -math.log(1 + (majority - 1) * math.exp(-a) + minority * math.exp(a / majority - a))  # log q of own class
    others, cross = math.exp(other - a), minority * math.exp(other + a / majority - a)
    multiplier = majority * others + cross
    pull = gamma * math.hypot(
        math.sqrt(majority) * cross, math.sqrt(minority) / ratio * majority / (majority + minority)
    )
    return TwoGroups(majority, minority, a, 0.0, 0.0, 0.0) if pull <= multiplier else None


def _on_curve(
    t: float, majority: int, minority: int, ratio: float, norm: float, collapsed: bool
) -> tuple[TwoGroups, float]:
    """Return the point of the curve at t = log(y / x), and log μ of A less log μ of B; -1 where s would be negative."""
    log_A = -math.log(majority + minority * math.exp(2 * t)) / 2
    log_B = t + log_A  # cB itself may be less than any float
    cA, cB = math.exp(log_A), math.exp(log_B)
    constant, slope = norm, 1.0
    sides = [(cA, majority, minority)] if collapsed else [(cA, majority, minority), (cB, minority, majority)]
    for c, own, other in sides:
        constant += (own - 1) * own * _offset(c, own, other)
        slope += (own - 1) * own * _gamma(majority, minority) * c
    s = constant / slope
    a = _within(s, cA, majority, minority)
    b = 0.0 if collapsed else _within(s, cB, minority, majority)
    difference = -1.0
    if s > 0:
        difference = _log_multiplier(a, s, log_A, majority, minority) - _log_multiplier(b, s, log_B, minority, majority)
        difference += math.log(ratio)
    return TwoGroups(majority, minority, a, b, s * cA, s * cB), difference


def _gamma(majority: int, minority: int) -> float:
    return math.sqrt((majority + minority) / (majority * minority))


def _offset(c: float, own: int, other: int) -> float:
    """Return log of own q_o / q_c at a = s = 0 over what it is to be, γ / c - 1; 0 if there is one class only."""
    return math.log(other / own * (_gamma(own, other) / c - 1)) if own > 1 else 0.0


def _within(s: float, c: float, own: int, other: int) -> float:
    """Return a (or b) of a group, from s and x / s (or y / s)."""
    return max(own * (_gamma(own, other) * c * s - _offset(c, own, other)), 0.0) if own > 1 else 0.0


def _log_multiplier(a: float, s: float, log_c: float, own: int, other: int) -> float:
    """Return log of γ q_c s / x of group A from a, s and log x / s, or with b and y that of B."""
    gamma = _gamma(own, other)
    within, across = -a, -a * (1 - 1 / own) - gamma * math.exp(log_c) * s
    total = 1 + (own - 1) * math.exp(within) + other * math.exp(across)
    return math.log(other * gamma) - log_c + across - math.log(total)


def _cosine(own: float, joint: float, size: int, other: int) -> float:
    share = joint * other / (size * (size + other))
    length = own * (1 - 1 / size) + share
    return (share - own / size) / length if length > 0 and size > 1 else math.nan
