"""The figure of deep linear cross-entropy: the ranks that gradient descent passes through, and that depth prefers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from tightframe.ufm.problems import DeepUFM
from tightframe.ufm.structures import deep_logits, deep_objective, lower_bound, structures
from torch import Tensor

from tightframe.report.charts import Chart, HeatMap, Line
from tightframe.ufm.descent import MultistartLBFGS

NUM_CLASSES, COUNT, DECAY, NUM_LAYERS = 10, 5, 2.0**-10, 2
RATE = 0.5
WIDTHS = (10, 30, 70)
STEPS = 20_000
EARLY = 6_000  # steps after which the ranks are compared too
STARTS = 3  # of gradient descent, at each width
DEPTHS = tuple(range(1, 13))
SOLVED_DEPTHS = (1, 2, 3, 4, 5, 6, 8)
SOLVER_STARTS = 4
CUTOFF = 1e-2  # of the largest singular value, below which one does not count for the rank

_NAMES = {"dnc": "deep neural collapse", "groups_3": "triples"}


def low_rank(seed: int) -> list[Chart | HeatMap]:
    """Rank and loss of deep linear models by width, best logits by depth: Garrod & Keating 2024, figures 1, 2, 5.

    K = 10, n = 5, L = 2, λ = 2⁻¹⁰: gradient descent of step 0.5 on the deep linear model of cross-entropy, every sample
    with features of its own, from N(0, 1/d) entries; three starts at each width, 20,000 steps. Dashed lines are
    structures at their best scale. The last two charts are over the depth L at d = 10; points are the best of four
    descents by L-BFGS. Half a minute.

    Args:
        seed: of all starts.
    """
    generator = torch.Generator().manual_seed(seed)
    runs = {width: gradient_descent(deep_model(NUM_LAYERS, width), STEPS, STARTS, generator) for width in WIDTHS}
    problems = {depth: deep_model(depth) for depth in DEPTHS}
    found = {depth: lowest_found(problems[depth], generator) for depth in SOLVED_DEPTHS}
    of_width = [_losses(runs), _ranks(runs), _ranks_by_width(runs), _spectra(runs)]
    return [*of_width, _losses_by_depth(problems, found), _ranks_by_depth(problems, found)]


def deep_model(num_layers: int, dim: int = NUM_CLASSES) -> DeepUFM:
    """Return the model of the figure with L layers of width d."""
    return DeepUFM((COUNT,) * NUM_CLASSES, dim, (DECAY,) * (num_layers + 1))


class Descent(NamedTuple):
    """What gradient descent passes through from S starts.

    Attributes:
        steps: after how many steps each record was made, ``(T,)``.
        losses: objective ``(T, S)``.
        spectra: singular values of the logits of all samples ``(T, S, K)``.
    """

    steps: Sequence[int]
    losses: Tensor
    spectra: Tensor

    @property
    def ranks(self) -> Tensor:
        """Singular values above ``CUTOFF`` times the largest ``(T, S)``."""
        return numerical_rank(self.spectra)


def numerical_rank(spectra: Tensor) -> Tensor:
    """Return how many of the singular values ``(..., K)`` are above ``CUTOFF`` times the largest."""
    return (spectra > CUTOFF * spectra.amax(dim=-1, keepdim=True)).sum(dim=-1)


def gradient_descent(problem: DeepUFM, steps: int, starts: int, generator: torch.Generator) -> Descent:
    """Descend on a linear model of cross-entropy, of equal decays, from Gaussian starts of variance 1/d, and watch.

    Args:
        problem: every sample has features of its own.
        steps: each of size ``RATE``.
        starts: S, descents at once.
        generator: of the starts.
    """
    rows = [problem.num_samples, *[problem.dim] * (problem.num_layers - 1), problem.num_classes]
    shapes = [(starts, number, problem.dim) for number in rows]
    factors = [torch.randn(shape, generator=generator, dtype=torch.float64) / problem.dim**0.5 for shape in shapes]
    watched = sorted({0, min(EARLY, steps), steps, *np.geomspace(1, max(steps, 1), 40).astype(int).tolist()})
    losses, spectra = [], []
    for step in range(steps + 1):
        if step in watched:
            each = [[factor[start] for factor in factors] for start in range(starts)]
            losses.append(torch.stack([deep_objective(problem, point) for point in each]))
            spectra.append(torch.stack([torch.linalg.svdvals(deep_logits(problem, point)) for point in each]))
        slopes = gradients(problem, factors)
        factors = [torch.add(factor, slope, alpha=-RATE) for factor, slope in zip(factors, slopes, strict=True)]
    return Descent(watched, torch.stack(losses), torch.stack(spectra))


def gradients(problem: DeepUFM, factors: Sequence[Tensor]) -> list[Tensor]:
    """Return the gradient of the objective of a linear model of cross-entropy by ``(H_1, W_1, ..., W_L)``.

    Written out, because the automatic one takes ten times as long.

    Args:
        problem: of L layers.
        factors: ``(S, N, d)``, ``(S, d, d)``, ..., ``(S, K, d)``, of S points at once.
    """
    hidden, *matrices = factors
    inputs = [hidden]
    for matrix in matrices:
        inputs.append(inputs[-1] @ matrix.mT)
    targets = torch.eye(problem.num_classes, dtype=hidden.dtype).repeat_interleave(torch.tensor(problem.counts), dim=0)
    error = (inputs.pop().softmax(dim=-1) - targets) / problem.num_samples
    slopes = []
    for matrix in reversed(matrices):
        slopes.append(error.mT @ inputs.pop())
        error = error @ matrix
    slopes = [error, *reversed(slopes)]
    return [slope + decay * factor for slope, decay, factor in zip(slopes, problem.decays, factors, strict=True)]


class Lowest(NamedTuple):
    """The best point that descents by L-BFGS found."""

    loss: float
    rank: int


def lowest_found(problem: DeepUFM, generator: torch.Generator) -> Lowest:
    """Return the best of ``SOLVER_STARTS`` descents by L-BFGS, which need not be the minimum."""
    solver = MultistartLBFGS(starts=SOLVER_STARTS, max_iterations=500, tolerance=1e-7, generator=generator)
    solution = solver.solve(problem)
    return Lowest(solution.loss, int(numerical_rank(torch.linalg.svdvals(solution.logits))))


def _losses(runs: dict[int, Descent]) -> Chart:
    late = [step >= 100 for step in next(iter(runs.values())).steps]  # before, the objective is that of the start
    lines = _by_width(runs, lambda run: run.losses, late)
    ends = [100, next(iter(runs.values())).steps[-1]]
    for structure, scale in structures(deep_model(NUM_LAYERS)):
        if structure.name in ("pairs", "dnc", "polygon"):
            name = _NAMES.get(structure.name, structure.name)
            lines.append(Line(f"{name}, {scale.loss:.5f}", ends, [scale.loss] * 2, dashed=True))
    return Chart(f"objective, L = {NUM_LAYERS}", "step", "objective", lines, log_x=True)


def _ranks(runs: dict[int, Descent]) -> Chart:
    started = [step >= 1 for step in next(iter(runs.values())).steps]
    lines = _by_width(runs, lambda run: run.ranks, started)
    return Chart(f"rank of the logits, cutoff {CUTOFF:g}", "step", "rank", lines, log_x=True)


def _by_width(runs: dict[int, Descent], what: Callable[[Descent], Tensor], kept: Sequence[bool]) -> list[Line]:
    lines = []
    for width, run in runs.items():
        steps = [step for step, keep in zip(run.steps, kept, strict=True) if keep]
        for start, values in enumerate(what(run)[torch.tensor(kept)].T):
            lines.append(Line(f"d = {width}" if start == 0 else "", steps, values, group=str(width)))
    return lines


def _ranks_by_width(runs: dict[int, Descent]) -> Chart:
    steps, lines = next(iter(runs.values())).steps, []
    for step in sorted({min(EARLY, steps[-1]), steps[-1]}):
        ranks = [run.ranks[steps.index(step)].tolist() for run in runs.values()]
        means = [sum(row) / len(row) for row in ranks]
        for start, points in enumerate(zip(*ranks, strict=True)):
            label = f"after {step} steps" if start == 0 else ""
            lines.append(Line(label, list(runs), points, group=str(step), points=True))
        lines.append(Line("their mean", list(runs), means, group=str(step)))
    return Chart("rank against width", "width d", "rank", lines)


def _spectra(runs: dict[int, Descent]) -> Chart:
    index = range(1, NUM_CLASSES + 1)
    lines = []
    for width, run in runs.items():
        for start, values in enumerate(run.spectra[-1]):
            lines.append(Line(f"d = {width}" if start == 0 else "", index, values, group=str(width)))
    for structure, scale in structures(deep_model(NUM_LAYERS)):
        if structure.name in ("pairs", "dnc"):
            values = scale.value * COUNT**0.5 * torch.linalg.svdvals(structure.logits)
            lines.append(Line(_NAMES.get(structure.name, structure.name), index, values, points=True))
    return Chart("singular values at the end", "index", "singular value", lines)


def losses_by_depth(problems: dict[int, DeepUFM]) -> dict[str, list[float]]:
    """Return the objective of each structure of the library at its best scale, for each of the models."""
    scaled = [{structure.name: scale.loss for structure, scale in structures(p)} for p in problems.values()]
    return {name: [losses[name] for losses in scaled] for name in scaled[0]}


def _losses_by_depth(problems: dict[int, DeepUFM], found: dict[int, Lowest]) -> Chart:
    losses = losses_by_depth(problems)
    lines = [Line(_NAMES.get(name, name), DEPTHS, losses[name]) for name in ("dnc", "groups_3", "pairs", "polygon")]
    lines.append(Line("L-BFGS", list(found), [best.loss for best in found.values()], points=True))
    bounds = [lower_bound(problem).loss for problem in problems.values()]
    lines.append(Line("proved lower bound", DEPTHS, bounds, dashed=True))
    return Chart("objective against depth, d = 10", "layers L", "objective", lines, log_y=True)


def _ranks_by_depth(problems: dict[int, DeepUFM], found: dict[int, Lowest]) -> Chart:
    ranks = [int(torch.linalg.matrix_rank(structures(p)[0].structure.logits)) for p in problems.values()]
    lines = [
        Line("best structure", DEPTHS, ranks),
        Line("L-BFGS", list(found), [best.rank for best in found.values()], points=True),
    ]
    return Chart("rank of the best logits against depth", "layers L", "rank", lines)
