"""Certificate: a proof of how far a point of a model is above the minimum, and a direction that leads down."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import Tensor

from tightframe.files import html_table
from tightframe.ufm.problem import Problem

_ROUNDING = 1e-12  # up to which a constraint is kept


@dataclass(frozen=True)
class Witness:
    r"""A direction of negative curvature: along it the objective f falls, although its slope may be zero.

    .. math:: f(W + t\,\Delta W, H + t\,\Delta H) = f + \text{slope}\; t + \tfrac12\,\text{curvature}\; t^2 + O(t^3)

    Where budgets hold the point, f is the Lagrangian and the direction is tangent to them.

    Args:
        dW: Direction of W, ``(K, d)``.
        dH: Direction of the features, of their shape.
        slope: Slope along the direction, at most 0; 0 up to rounding where a direction of feature space is unused by W
            and H.
        curvature: Curvature along it, below 0; :math:`2(\sigma-\tau)` in an unused direction, with :math:`\tau` the
            operator norm.
    """

    dW: Tensor = field(repr=False)  # noqa: N815
    dH: Tensor = field(repr=False)  # noqa: N815
    slope: float
    curvature: float


@dataclass(frozen=True, repr=False)
class Certificate:
    r"""Facts that :func:`~tightframe.ufm.certify.certify` proves of a point.

    Features are weighed by the square root of what their squares cost, :math:`\tilde h = \sqrt{c}\, h`, so that every
    number is the same whether the samples of a class are listed one by one or share one row.

    Args:
        problem: the model.
        loss: the objective at the point. Of margin models the price :math:`(\lVert W\rVert^2 +
            \lVert\tilde H\rVert^2)/2` of the point scaled to margin 1, infinite if no scaling separates.
        lower_bound: no point of the model has a smaller objective; ``-inf`` if no bound is known.
        stationarity: norm of the gradient in W, :math:`\tilde H` and bias (in all factors of a deep model), projected
            where features are nonnegative, of the Lagrangian under budgets; of margin models
            :math:`1 - \cos(\theta, -\nabla L)`.
        operator_norm: :math:`\tau`, that of the slope of the fit. A stationary point with :math:`\tau \le \sigma` is a
            global minimum. Nan if the model has none.
        sigma: :math:`\sigma = \sqrt{\lambda_W \lambda_H}`; with multipliers for penalties where there are none.
        balance: :math:`\lVert\lambda_W W^\top W - \lambda_H \tilde H^\top \tilde H\rVert_F`, which is 0 at every
            stationary point; of the diagonal alone with nonnegative features; the largest over neighbouring factors of
            a deep model.
        violation: Distance from the constraints: a budget's excess as a share of it, the most negative
            feature that should not be, or the margin's distance from 1.
        witness: a direction of negative curvature, if one was found.
        remarks: Sentences that belong to the verdict.
        facts: Further numbers by name.
    """

    problem: Problem
    loss: float
    lower_bound: float
    stationarity: float
    operator_norm: float
    sigma: float
    balance: float
    violation: float = 0.0
    witness: Witness | None = field(default=None, repr=False)
    remarks: tuple[str, ...] = ()
    facts: Mapping[str, float] = field(default_factory=dict)

    def __repr__(self) -> str:
        return f"Certificate({self.explanation}; loss={self.loss:.10g}, lower_bound={self.lower_bound:.10g})"

    def _repr_html_(self) -> str:
        """Return the verdict and its numbers as a table, for notebooks."""
        names = (
            "loss",
            "lower_bound",
            "relative_gap",
            "stationarity",
            "operator_norm",
            "sigma",
            "balance",
            "violation",
        )
        rows = [(name, getattr(self, name)) for name in names]
        return html_table([self.explanation, ""], [*rows, *self.facts.items()])

    @property
    def gap(self) -> float:
        """Loss minus lower bound, at least 0: the point is at most so much above the minimum."""
        # Where the bound is the minimum, rounding may put it above the loss.
        return max(0.0, self.loss - self.lower_bound) if self.loss < math.inf else math.inf

    @property
    def relative_gap(self) -> float:
        """The gap as a share of the loss; infinite with it."""
        if self.gap in (0.0, math.inf):
            return self.gap
        return self.gap / self.loss

    def is_global(self, tolerance: float = 1e-9) -> bool:
        """Return whether the point is proved to be a global minimum, up to a relative gap and violation."""
        return self.relative_gap <= tolerance and self.violation <= tolerance

    @property
    def explanation(self) -> str:
        """The verdict in a few words."""
        if self.loss == math.inf or self.lower_bound == -math.inf:
            return "; ".join(["not bounded", *self.remarks])
        parts = []
        if self.violation > _ROUNDING:
            parts.append(f"breaks a constraint by {self.violation:.2g}")
        if self.is_global():
            parts.append(f"a global minimum up to a relative gap of {self.relative_gap:.1e}")
        else:
            parts.append(f"at most {self.gap:.3g} ({self.relative_gap:.3g} of the loss) above the minimum")
            if self.operator_norm > self.sigma * (1 + 1e-9):
                times = self.operator_norm / self.sigma if self.sigma else math.inf
                parts.append(f"the operator norm is {times:.6g} times σ")
            if self.witness is not None:
                parts.append(f"a direction of curvature {self.witness.curvature:.3g} leads down")
        return "; ".join([*parts, *self.remarks])
