"""Gradient flow of the unconstrained layer-peeled model, in logarithmic time: decades of t cost what a decade costs."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from tightframe.errors import ArgumentError, ShapeError, check_positive, check_range
from tightframe.ufm.duality import descent_of_fit, log_probabilities
from tightframe.ufm.objective import row_weights
from tightframe.ufm.problems import ULPM, Problem, check_penalty
from tightframe.ufm.solution import Solution, labels_of_rows

# Dormand & Prince 1980: order 5, the difference of the last row to the embedded one of order 4 being the error.
_STAGES = (
    (1 / 5,),
    (3 / 40, 9 / 40),
    (44 / 45, -56 / 15, 32 / 9),
    (19372 / 6561, -25360 / 2187, 64448 / 6561, -212 / 729),
    (9017 / 3168, -355 / 33, 46732 / 5247, 49 / 176, -5103 / 18656),
    (35 / 384, 0.0, 500 / 1113, 125 / 192, -2187 / 6784, 11 / 84),
)
_NODES = (1 / 5, 3 / 10, 4 / 5, 8 / 9, 1.0, 1.0)
_ERROR = (71 / 57600, 0.0, -71 / 16695, 71 / 1920, -17253 / 339200, 22 / 525, -1 / 40)


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
        steps: Number of steps of the integrator.
        reason: why it ended.
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
    steps: int
    reason: str

    @property
    def gaps(self) -> Tensor:
        """By at most so much is the norm at margin 1 above the smallest possible: p - D >= 0 ``(T,)``."""
        return self.primal - self.dual


@dataclass(frozen=True)
class LogTimeFlow:
    r"""Gradient flow of :class:`ULPM` by Dormand and Prince's pair of orders 5 and 4 in :math:`s = \log(1 + t)`.

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
        max_steps: Largest number of steps of the integrator.
    """

    final_time: float = 1e12
    records: int = 120
    tolerance: float = 1e-11
    start: tuple[Tensor, Tensor] | None = None
    scale: float = 1.0
    per_sample: bool = False
    generator: torch.Generator | None = None
    max_steps: int = 100_000

    def __post_init__(self) -> None:
        check_penalty("final_time", self.final_time)
        check_positive("records", self.records)
        check_range("tolerance", self.tolerance, 1e-14 <= self.tolerance < 1, "in [1e-14, 1)")
        check_penalty("scale", self.scale)
        check_positive("max_steps", self.max_steps)

    def solve(self, problem: Problem) -> Solution:
        """Return the end of the flow; ``facts`` hold time, margin, p, D, misalignment and drift there.

        Raises:
            ArgumentError, ShapeError: as :meth:`run`.
        """
        trajectory = self.run(problem)
        H, W = trajectory.H[-1], trajectory.W[-1]
        weights, prices = row_weights(problem, H)
        A = descent_of_fit(problem, H @ W.T, labels_of_rows(problem, H), weights)
        gradient = math.hypot((A.T @ H).norm().item(), ((A @ W) / prices.sqrt().unsqueeze(1)).norm().item())
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
            iterations=trajectory.steps,
            residual=gradient,
        )

    def run(self, problem: Problem) -> Trajectory:
        """Return the flow at all recorded times; if it fails, up to there, with the reason.

        Raises:
            ArgumentError: if the problem is no :class:`ULPM`.
            ShapeError: if a given start does not fit it.
        """
        if not isinstance(problem, ULPM):
            raise ArgumentError(f"problem must be a ULPM for LogTimeFlow, got {type(problem).__name__}")
        field = _Field(problem, *self._start(problem))
        states, reason, steps = [field.start], f"t = {self.final_time:g} reached", 0
        marks = torch.linspace(0, math.log1p(self.final_time), self.records + 1, dtype=torch.float64).tolist()
        step, s = 1e-4 * marks[1], 0.0
        state, slope = field.start, field(0.0, field.start)
        for mark in marks[1:]:
            while s < mark:
                if steps == self.max_steps:
                    reason = f"max_steps = {self.max_steps} reached at t = {math.expm1(s):.3g}"
                    break
                # Two equal steps, not a long and a tiny one, to the next mark.
                left = mark - s
                size = left if step >= left else min(step, left / 2)
                moved, end, error = field.step(s, state, slope, size)
                steps += 1
                ratio = error / self.tolerance
                if ratio <= 1:
                    s, state, slope = (mark if size == left else s + size), moved, end
                step = size * min(5.0, max(0.2, 0.9 * max(ratio, 1e-10) ** -0.2)) if math.isfinite(ratio) else size / 10
                if not step > 1e-14 * max(s, 1e-6):
                    reason = f"the step became too small at t = {math.expm1(s):.3g}"
                    break
            if s < mark:
                break
            states.append(state)
        times = torch.tensor(marks[: len(states)], dtype=torch.float64).expm1()
        return field.trajectory(times, states, steps, reason)

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


class _Field:
    """The flow's velocity in s = log(1 + t), on W and √c H stacked as one matrix ``(K + R, d)``."""

    def __init__(self, problem: ULPM, W: Tensor, H: Tensor) -> None:
        self.problem = problem
        self.weights, prices = row_weights(problem, H)
        self.labels, self.root = labels_of_rows(problem, H), prices.sqrt().unsqueeze(1)
        self.start = torch.cat([W, self.root * H])

    def parts(self, state: Tensor) -> tuple[Tensor, Tensor]:
        """Return W and √c H."""
        return state[: self.problem.num_classes], state[self.problem.num_classes :]

    def descent(self, state: Tensor) -> Tensor:
        """Return minus the gradient by the logits over √c, of which the velocity is a product with the state."""
        W, H = self.parts(state)
        return descent_of_fit(self.problem, H @ W.T / self.root, self.labels, self.weights) / self.root

    def __call__(self, s: float, state: Tensor) -> Tensor:
        W, H = self.parts(state)
        A = self.descent(state)
        return torch.cat([A.T @ H, A @ W]).mul_(math.exp(s))

    def step(self, s: float, state: Tensor, slope: Tensor, size: float) -> tuple[Tensor, Tensor, float]:
        """Return the state a step on, the velocity there, and the step's error relative to the state's norm."""
        slopes = [slope]
        moved = state
        for node, row in zip(_NODES, _STAGES, strict=True):
            moved = state + size * _combined(row, slopes)
            slopes.append(self(s + node * size, moved))
        error = size * _combined(_ERROR, slopes).norm() / state.norm()
        return moved, slopes[-1], error.item()

    def trajectory(self, times: Tensor, states: list[Tensor], steps: int, reason: str) -> Trajectory:
        """Return what is known at all recorded states."""
        W, H = zip(*map(self.parts, states), strict=True)
        measured = torch.tensor([list(self._measured(state)) for state in states], dtype=torch.float64)
        losses, norms, margins, primal, dual, misalignments = measured.unbind(dim=1)
        kept = torch.stack([w.T @ w - h.T @ h for w, h in zip(W, H, strict=True)])
        drifts = torch.linalg.matrix_norm(kept - kept[0]) / norms
        features = torch.stack([h / self.root for h in H])
        return Trajectory(
            self.problem,
            times,
            torch.stack(W),
            features,
            losses,
            norms,
            margins,
            primal,
            dual,
            misalignments,
            drifts,
            steps,
            reason,
        )

    def _measured(self, state: Tensor) -> Iterator[float]:
        """Yield loss, norm, margin, p, D and misalignment."""
        W, H = self.parts(state)
        logits, own = H @ W.T / self.root, self.labels.unsqueeze(1)
        losses, _ = log_probabilities(logits, self.labels)
        square = state.square().sum()
        margin = (logits.gather(1, own) - logits.scatter(1, own, -torch.inf).amax(dim=1, keepdim=True)).min()
        A = self.descent(state)
        A = A / A.abs().max()  # only ratios count, and its square may be below the smallest number
        weight = (A * self.root).gather(1, own).sum()
        velocity = torch.cat([A.T @ H, A @ W])
        yield (self.weights @ losses).item()
        yield square.item()
        yield margin.item()
        yield (square / (2 * margin)).item() if margin > 0 else math.inf
        yield (weight / torch.linalg.matrix_norm(A, 2)).item()
        yield 1 - (velocity * state).sum().item() / (velocity.norm() * state.norm()).item()


def _combined(row: tuple[float, ...], slopes: list[Tensor]) -> Tensor:
    total = row[0] * slopes[0]
    for weight, slope in zip(row[1:], slopes[1 : len(row)], strict=True):
        if weight:
            total.add_(slope, alpha=weight)
    return total
