"""Gradient flow of the unconstrained layer-peeled model, in logarithmic time: decades of t cost what a decade costs."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from tightframe.errors import ArgumentError, ShapeError, check_positive, check_range, require_extra
from tightframe.ufm.bound import descent
from tightframe.ufm.certify_margin import margins_of, softmax_separation
from tightframe.ufm.critical import Point
from tightframe.ufm.margin import ULPM
from tightframe.ufm.problem import Problem, check_penalty, objective
from tightframe.ufm.solution import Solution


@dataclass(frozen=True)
class Trajectory:
    r"""A flow at T times, from 0 on.

    Args:
        problem: whose flow it is.
        times: t ``(T,)``.
        W: ``(T, K, d)``.
        H: ``(T, R, d)``, rows of classes or samples.
        losses: sum of cross-entropies ``(T,)``, to the last digit however small.
        norms: :math:`\lVert W\rVert^2 + \lVert H\rVert^2` over all samples ``(T,)``.
        margins: the smallest of a sample ``(T,)``.
        primal: norm at margin 1, :math:`p = (\lVert W\rVert^2 + \lVert H\rVert^2) / (2\,\text{margin})`; inf where a
            sample is misclassified.
        dual: its lower bound D from the softmax weights, as of :func:`~tightframe.ufm.certify_margin.certify_margin`.
        misalignments: 1 - cos of the point and minus its gradient.
        drifts: Distance of :math:`W^\top W - H^\top H` from its start, relative to :math:`\lVert W\rVert^2 +
            \lVert H\rVert^2` at that time, in Frobenius norm: the integrator's error, for the flow keeps it.
        evaluations: Number of gradients that the integrator took.
        reason: Reason for its end.
    """

    problem: ULPM
    times: Tensor
    W: Tensor
    H: Tensor
    losses: Tensor
    norms: Tensor
    margins: Tensor
    primal: Tensor
    dual: Tensor
    misalignments: Tensor
    drifts: Tensor
    evaluations: int
    reason: str

    @property
    def gaps(self) -> Tensor:
        """By at most so much is the norm at margin 1 above the smallest possible: p - D >= 0 ``(T,)``."""
        return self.primal - self.dual


@dataclass(frozen=True)
class LogTimeFlow:
    r"""Gradient flow of :class:`ULPM` by Dormand and Prince's method of order 8 in :math:`s = \log(1 + t)`.

    The loss falls as 1/(t log t), so that in s the flow has a pace of order 1 for ever, while steps in t would have to
    be as long as 1/L.

    Args:
        final_time: t > 0 at the end.
        records: Number of times that are kept beside 0, equidistant in s.
        tolerance: error of a step relative to the norm of (W, H).
        start: (W, H) to start from, H ``(K, d)`` or ``(N, d)``; None draws them.
        scale: standard deviation of the draw's entries times √d.
        per_sample: Whether a draw has a feature of its own for every sample, not for every class.
        generator: Generator of the draw, on the CPU; None is one of seed 0.
    """

    final_time: float = 1e12
    records: int = 120
    tolerance: float = 1e-11
    start: tuple[Tensor, Tensor] | None = None
    scale: float = 1.0
    per_sample: bool = False
    generator: torch.Generator | None = None

    def __post_init__(self) -> None:
        check_penalty("final_time", self.final_time)
        check_positive("records", self.records)
        check_range("tolerance", self.tolerance, 1e-13 <= self.tolerance < 1, "in [1e-13, 1)")
        check_penalty("scale", self.scale)

    def solve(self, problem: Problem) -> Solution:
        """Return the end of the flow; ``facts`` hold time, margin, p, D, misalignment and drift there.

        Raises:
            ArgumentError, ShapeError: as :meth:`run`.
        """
        trajectory = self.run(problem)
        H, W = trajectory.H[-1], trajectory.W[-1]
        end = Point.of(problem, W, H, None)
        last = {
            name: getattr(trajectory, name)[-1].item()
            for name in ("times", "norms", "margins", "primal", "dual", "gaps", "misalignments", "drifts")
        }
        facts = {name.rstrip("s") if name != "gaps" else "separation_gap": value for name, value in last.items()}
        return Solution(
            trajectory.problem,
            W,
            H,
            None,
            trajectory.losses[-1].item(),
            exact=False,
            reason=f"{trajectory.reason}; the infimum 0 is not attained",
            lower_bound=0.0,
            facts=facts | {"largest_drift": trajectory.drifts.max().item()},
            iterations=trajectory.evaluations,
            residual=math.hypot(*(part.norm().item() for part in end.gradients(0.0, 0.0))),
        )

    def run(self, problem: Problem) -> Trajectory:
        """Return the flow at all recorded times; if it fails, up to there, with the reason.

        Raises:
            ArgumentError: if the problem is no :class:`ULPM`, or the flow overflows.
            ShapeError: if a given start does not fit it.
            MissingExtraError: if scipy is not installed.
        """
        if not isinstance(problem, ULPM):
            raise ArgumentError(f"problem must be a ULPM for LogTimeFlow, got {type(problem).__name__}")
        integrate = require_extra("scipy.integrate", "theory").solve_ivp
        W, H = self._start(problem)
        rows, K = problem.rows(len(H)), problem.num_classes
        start = torch.cat([W, rows.roots * H])

        def velocity(s: float, flat: np.ndarray) -> np.ndarray:
            state = torch.from_numpy(flat).view_as(start)
            W, H = state[:K], state[K:]
            A = descent(problem, rows, H @ W.T / rows.roots) / rows.roots
            speed = torch.cat([A.T @ H, A @ W]).mul_(math.exp(s))
            if not bool(speed.isfinite().all()):
                raise ArgumentError(f"start must be small enough for a finite flow, got overflow at s = {s:.3g}")
            return speed.flatten().numpy()

        marks = torch.linspace(0, math.log1p(self.final_time), self.records + 1, dtype=torch.float64)
        ends, options = (0.0, marks[-1].item()), {"rtol": self.tolerance, "atol": self.tolerance}
        found = integrate(velocity, ends, start.flatten().numpy(), method="DOP853", t_eval=marks.numpy(), **options)
        states = torch.from_numpy(found.y.T.copy()).view(-1, *start.shape)
        reason = f"t = {self.final_time:g} reached" if found.success else f"the integrator failed: {found.message}"
        W, features = states[:, :K], states[:, K:]
        points = [Point.of(problem, w, h, None) for w, h in zip(W, features / rows.roots, strict=True)]
        separations = [softmax_separation(point)[0] for point in points]
        norms, kept = states.square().sum(dim=(1, 2)), W.mT @ W - features.mT @ features
        margins = torch.stack([margins_of(point).min() for point in points])
        return Trajectory(
            problem,
            times=marks[: len(states)].expm1(),
            W=W,
            H=features / rows.roots,
            losses=torch.stack([objective(problem, point.W, point.unweighted) for point in points]),
            norms=norms,
            margins=margins,
            primal=(norms / (2 * margins)).where(margins > 0, math.inf),
            dual=torch.tensor([found.dual for found in separations], dtype=torch.float64),
            misalignments=torch.tensor([found.misalignment for found in separations], dtype=torch.float64),
            drifts=torch.linalg.matrix_norm(kept - kept[0]) / norms,
            evaluations=found.nfev,
            reason=reason,
        )

    def _start(self, problem: ULPM) -> tuple[Tensor, Tensor]:
        if self.start is not None:
            W, H = (part.detach().double() for part in self.start)
            if W.shape != (problem.num_classes, problem.dim) or H.ndim != 2 or H.shape[1] != problem.dim:
                raise ShapeError(
                    f"start must be W (K, d) = {(problem.num_classes, problem.dim)} and H of d columns, "
                    f"got {tuple(W.shape)} and {tuple(H.shape)}"
                )
            return W, H
        generator = self.generator or torch.Generator().manual_seed(0)
        rows = problem.num_samples if self.per_sample else problem.num_classes
        size = self.scale / math.sqrt(problem.dim)
        W = size * torch.randn(problem.num_classes, problem.dim, generator=generator, dtype=torch.float64)
        return W, size * torch.randn(rows, problem.dim, generator=generator, dtype=torch.float64)
