"""The figure of deep linear cross-entropy: the ranks that gradient descent passes through, and that depth prefers."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from studies.theory.networks import descent
from studies.theory.panels import Rows, curves
from tightframe.report.charts import Chart, HeatMap, Line
from tightframe.ufm import DeepUFM
from tightframe.ufm.deep_cross_entropy import lower_bound, structures
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

_NAMES = {"dnc": "deep neural collapse", "groups_3": "triples", "pairs": "pairs", "polygon": "polygon"}


def low_rank(seed: int) -> list[Chart | HeatMap]:
    """Rank and loss of deep linear models by width, best logits by depth: Garrod & Keating 2024, figures 1, 2, 5.

    K = 10, n = 5, L = 2, λ = 2⁻¹⁰: gradient descent of step 0.5 on the deep linear model of cross-entropy, every sample
    with features of its own, from N(0, 1/d) entries; three starts at each width, 20,000 steps. Dashed lines are
    structures at their best scale. The last two charts are over the depth L at d = 10; points are the best of four
    descents by L-BFGS. A minute.

    Args:
        seed: Seed of all starts.
    """
    generator = torch.Generator().manual_seed(seed)
    runs = {width: gradient_descent(deep_model(NUM_LAYERS, width), STEPS, STARTS, generator) for width in WIDTHS}
    return [*_by_width(runs), *_by_depth(generator)]


def deep_model(num_layers: int, dim: int = NUM_CLASSES) -> DeepUFM:
    """Return the model of the figure with L layers of width d."""
    return DeepUFM((COUNT,) * NUM_CLASSES, dim, (DECAY,) * (num_layers + 1))


def gradient_descent(problem: DeepUFM, steps: int, starts: int, generator: torch.Generator) -> list[Rows]:
    """Descend on a linear model of cross-entropy, of equal decays, from Gaussian starts of variance 1/d.

    Args:
        problem: Model; every sample has features of its own.
        steps: Number of steps, each of size ``RATE``.
        starts: Number S of descents at once.
        generator: Generator of the starts.

    Returns:
        Rows of each start: ``step``, ``objective``, ``rank`` of the logits of all samples and their singular values,
        named 1 to K.
    """
    rows_of = [problem.num_samples, *[problem.dim] * (problem.num_layers - 1), problem.num_classes]
    shapes = [(starts, rows, problem.dim) for rows in rows_of]
    factors = [torch.randn(shape, generator=generator, dtype=torch.float64) / problem.dim**0.5 for shape in shapes]
    labels = torch.arange(problem.num_classes).repeat_interleave(torch.tensor(problem.counts)).repeat(starts)
    parameters = [factor.requires_grad_() for factor in factors]

    def logits() -> Tensor:
        hidden, *matrices = parameters
        for matrix in matrices:
            hidden = hidden @ matrix.mT
        return hidden

    def fits() -> Tensor:
        losses = F.cross_entropy(logits().flatten(end_dim=1), labels, reduction="none")
        return losses.unflatten(0, (starts, -1)).mean(dim=1)

    # The decays are the optimizer's. The sum over starts mixes no two of them.
    optimizer = torch.optim.SGD(parameters, lr=RATE, weight_decay=problem.decays[0])
    watched = {0, min(EARLY, steps), steps, *np.geomspace(1, max(steps, 1), 40).astype(int).tolist()}
    runs: list[list[dict[str, float]]] = [[] for _ in range(starts)]
    for step in descent(lambda: fits().sum(), optimizer, steps):
        if step in watched:
            with torch.no_grad():
                squares = torch.stack([factor.square().sum(dim=(1, 2)) for factor in parameters]).sum(dim=0)
                objectives = fits() + problem.decays[0] / 2 * squares
                spectra = torch.linalg.svdvals(logits())
            for run, value, spectrum in zip(runs, objectives.tolist(), spectra, strict=True):
                named = {str(i): s for i, s in enumerate(spectrum.tolist(), start=1)}
                run.append({"step": step, "objective": value, "rank": numerical_rank(spectrum), **named})
    return list(runs)


def numerical_rank(spectrum: Tensor) -> int:
    """Return how many of the singular values ``(K,)`` are above ``CUTOFF`` times the largest."""
    return int((spectrum > CUTOFF * spectrum.max()).sum())


def losses_by_depth(depths: Sequence[int]) -> Rows:
    """Return the objective of each structure of the library at its best scale, and a proved bound, by depth."""
    rows = []
    for depth in depths:
        scaled = structures(deep_model(depth))
        losses = {structure.name: scale.loss for structure, scale in scaled}
        best = int(torch.linalg.matrix_rank(scaled[0].structure.logits))
        rows.append({"depth": depth, "rank": best, "bound": lower_bound(deep_model(depth)).loss, **losses})
    return rows


def _by_width(runs: dict[int, list[Rows]]) -> list[Chart]:
    """Return the charts of gradient descent: objective, rank, rank against width, and the last spectra."""
    best = {structure.name: (structure, scale) for structure, scale in structures(deep_model(NUM_LAYERS))}
    objectives, ranks, spectra = [], [], []
    for width, starts in runs.items():
        for start, rows in enumerate(starts):
            group, label = {f"d = {width}": rows[1:]}, "" if start else "{}"
            # Before 100 steps, the objective is that of the start.
            late = {f"d = {width}": [row for row in rows if row["step"] >= 100]}
            objectives += curves(late, "step", "objective", label=label)
            ranks += curves(group, "step", "rank", label=label)
            values = {f"d = {width}": [{"index": i, "value": rows[-1][str(i)]} for i in range(1, NUM_CLASSES + 1)]}
            spectra += curves(values, "index", "value", label=label)
    for name in ("pairs", "dnc", "polygon"):
        loss = best[name][1].loss
        objectives.append(Line(f"{_NAMES[name]}, {loss:.5f}", [100, STEPS], [loss] * 2, dashed=True))
    for name in ("pairs", "dnc"):
        structure, scale = best[name]
        values = scale.value * COUNT**0.5 * torch.linalg.svdvals(structure.logits)
        spectra.append(Line(_NAMES[name], range(1, NUM_CLASSES + 1), values, points=True))
    points, means = {}, {}
    for step in sorted({min(EARLY, STEPS), STEPS}):
        ranks_of = {
            width: [row["rank"] for rows in starts for row in rows if row["step"] == step]
            for width, starts in runs.items()
        }
        name = f"after {step} steps"
        points[name] = [{"width": width, "rank": rank} for width, ranks in ranks_of.items() for rank in ranks]
        means[name] = [{"width": width, "rank": fmean(ranks)} for width, ranks in ranks_of.items()]
    against = curves(points, "width", "rank", points=True) + curves(means, "width", "rank", label="")
    return [
        Chart(f"objective, L = {NUM_LAYERS}", "step", "objective", objectives, log_x=True),
        Chart(f"rank of the logits, cutoff {CUTOFF:g}", "step", "rank", ranks, log_x=True),
        Chart("rank against width", "width d", "rank", against),
        Chart("singular values at the end", "index", "singular value", spectra),
    ]


def _by_depth(generator: torch.Generator) -> list[Chart]:
    """Return the charts over the depth: objective and rank of the best structures and of the best of some descents."""
    solver = MultistartLBFGS(starts=SOLVER_STARTS, max_iterations=500, tolerance=1e-7, generator=generator)
    found = []
    for depth in SOLVED_DEPTHS:
        best = solver.solve(deep_model(depth))
        rank = numerical_rank(torch.linalg.svdvals(best.logits))
        found.append({"depth": depth, "objective": best.loss, "rank": rank})
    known, descents = {"": losses_by_depth(DEPTHS)}, {"L-BFGS": found}
    losses = [line for name, label in _NAMES.items() for line in curves({label: known[""]}, "depth", name)]
    losses += curves(descents, "depth", "objective", points=True)
    losses += curves(known, "depth", "bound", label="proved lower bound", dashed=True)
    ranks = curves(known, "depth", "rank", label="best structure") + curves(descents, "depth", "rank", points=True)
    return [
        Chart("objective against depth, d = 10", "layers L", "objective", losses, log_y=True),
        Chart("rank of the best logits against depth", "layers L", "rank", ranks),
    ]
