"""Figures of the one-layer models: collapse with its predicted norms, the kink of a penalised bias, dying classes."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
import torch.nn.functional as F

from studies.theory.certificates import certified_course, collapse_of
from studies.theory.networks import Shape, descent
from studies.theory.panels import Rows, curves
from tightframe.report.charts import Chart, HeatMap
from tightframe.ufm import CrossEntropyUFM, MeanSquaredUFM, ReLUImbalanced, Solution, closed_form, solve
from tightframe.ufm.problem import objective

DESCENT_STEPS, NETWORK_STEPS = 4000, 1500
KINK_CONSTANTS = (0.1, 0.3, 0.5)
COUNTS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 64, 128)  # of 12 classes, geometrically but for the integers
RELU_DECAY = 0.008


def balanced_norms(seed: int) -> list[Chart | HeatMap]:
    """NC metrics and norms along training, beside the predicted norms (Zhu et al. 2021; Zhou et al. 2022).

    Gradient descent on both models, and two networks on 500 digits: it trains, for about a minute.
    """
    squared = MeanSquaredUFM((10,) * 5, 8, 1e-3, 1e-3)
    marks = geometric(NETWORK_STEPS)
    groups: dict[str, dict[str, Rows]] = {
        "cross-entropy": {"": model_course(CrossEntropyUFM((10,) * 5, 8, 4e-4, 4e-4), 10.0, seed)},
        "squared error": {
            "free bias": model_course(replace(squared, bias_decay=0.0), 1.5, seed),
            "no bias": model_course(squared, 1.5, seed),
        },
        "networks on digits": {
            name: certified_course(Shape(relu=False), seed, 5e-3, NETWORK_STEPS, marks, feature_decay=feature_decay)
            for name, feature_decay in (("decay of W and H", 1e-4), ("decay of all weights", None))
        },
    }
    charts: list[Chart | HeatMap] = []
    for title, courses in groups.items():
        lines = curves(courses, "step", "NC1", "NC2 of W", "NC3", label="{1} {0}")
        charts.append(Chart(title, "steps", "", lines, log_x=True, log_y=True))
    for title, courses in groups.items():
        # The features of a network have no penalty of the model's.
        norms = ("‖W‖²",) if "networks" in title else ("‖W‖²", "‖H‖²")
        lines = [
            *(line for norm in norms for line in curves(courses, "step", norm, label=f"{norm} {{}}", points=True)),
            *(line for norm in norms for line in curves(courses, "step", f"predicted {norm}", label="")),
        ]
        charts.append(Chart(f"{title}: norms", "steps", "squared norm", lines, log_x=True))
    return charts


def geometric(steps: int) -> set[int]:
    """Return 25 steps up to the last one, equidistant in the logarithm."""
    return {round(steps ** (i / 24)) for i in range(25)}


def model_course(problem: CrossEntropyUFM | MeanSquaredUFM, rate: float, seed: int) -> Rows:
    """Return collapse and norms along :func:`descend`."""
    least = closed_form(problem)
    return [{"step": step} | collapse_of(point, least) for step, point in descend(problem, rate, DESCENT_STEPS, seed)]


def descend(
    problem: CrossEntropyUFM | MeanSquaredUFM, rate: float, steps: int, seed: int
) -> list[tuple[int, Solution]]:
    """Return points of gradient descent on class vectors and the features of all samples, from a small Gaussian draw.

    Args:
        problem: Model.
        rate: Learning rate of all parameters.
        steps: Number of steps; the points are at :func:`geometric` ones.
        seed: Seed of the draw.
    """
    generator = torch.Generator().manual_seed(seed)
    W = torch.randn(problem.num_classes, problem.dim, generator=generator, dtype=torch.float64)
    H = torch.randn(problem.num_samples, problem.dim, generator=generator, dtype=torch.float64)
    parameters = [0.3 * W / math.sqrt(problem.dim), 0.3 * H]
    if problem.bias_decay is not None:
        parameters.append(torch.zeros(problem.num_classes, dtype=torch.float64))
    optimizer = torch.optim.SGD([parameter.requires_grad_() for parameter in parameters], lr=rate)
    kept, path = geometric(steps), []
    for step in descent(lambda: objective(problem, *parameters), optimizer, steps):
        if step in kept:
            W, H, *bias = (parameter.detach().clone() for parameter in parameters)
            value = objective(problem, W, H, *bias).item()
            path.append((step, Solution(problem, W, H, *(bias or [None]), value, False, "gradient descent")))
    return path


def bias_kink(seed: int) -> list[Chart | HeatMap]:
    """From simplex ETF to orthogonal frame over the penalty of the bias, with a kink (Tirer & Bruna 2022; Zhou 2022).

    Closed form joined, points solved as convex problems. Nothing is drawn at random.
    """
    fine, coarse = (torch.logspace(-2, 2, steps, dtype=torch.float64).tolist() for steps in (81, 17))
    problems = {f"c = {c:g}": kink_problem(c) for c in KINK_CONSTANTS}
    joined = {name: _over_bias_decay(problem, fine, closed_form) for name, problem in problems.items()}
    solved = {name: _over_bias_decay(problem, coarse, solve) for name, problem in problems.items()}
    marks = {name: closed_form(problem).facts["kink_bias_decay"] for name, problem in problems.items()}
    titles = {
        "angles": "cosine of two class vectors",
        "between the frames": "mean part of W Wᵀ / simplex part",
        "bias": "bias of each class",
    }
    return [
        Chart(
            title,
            "penalty of the bias",
            name,
            curves(joined, "decay", name) + curves(solved, "decay", name, label="", points=True),
            log_x=True,
            marks=marks,
        )
        for title, name in titles.items()
    ]


def kink_problem(constant: float) -> MeanSquaredUFM:
    """Return the squared-error model of 4 classes of 10 samples with c = K √(n λ_W λ_H), its bias penalised."""
    decay = constant / (4 * math.sqrt(10))
    return MeanSquaredUFM((10,) * 4, dim=4, weight_decay=decay, feature_decay=decay, bias_decay=1.0)


def _over_bias_decay(
    problem: MeanSquaredUFM, decays: Sequence[float], method: Callable[[MeanSquaredUFM], Solution]
) -> Rows:
    rows = []
    for decay in decays:
        solution = method(replace(problem, bias_decay=decay))
        gram = solution.gram_W
        rows.append(
            {
                "decay": decay,
                "cosine of two class vectors": (gram[0, 1] / gram[0, 0]).item(),
                "mean part of W Wᵀ / simplex part": mean_share(solution),
                "bias of each class": math.nan if solution.bias is None else solution.bias.mean().item(),
            }
        )
    return rows


def mean_share(solution: Solution) -> float:
    """Return how the part of ``W Wᵀ`` along the vector of ones compares with the rest: 0 of an ETF, 1 of a frame."""
    values = torch.linalg.eigvalsh(solution.gram_W)
    along = solution.gram_W.mean().item() * len(values)
    return along / ((values.sum().item() - along) / (len(values) - 1))


def relu_death(seed: int) -> list[Chart | HeatMap]:
    """Norms, angles and the death of classes against n_k, with nonnegative features (Dang et al. 2024).

    Closed form joined, points reached by projected gradient descent; beside it twins that merge with linear features.
    """
    problem = ReLUImbalanced(COUNTS, 2 * len(COUNTS), RELU_DECAY, RELU_DECAY)
    least = closed_form(problem)
    exact, found = {"": class_rows(least)}, {"": class_rows(descend_nonnegative(problem, seed))}
    stuck = {"descent with d = K": class_rows(descend_nonnegative(replace(problem, dim=len(COUNTS)), seed))}
    marks = {"death": least.facts["death_count"]}
    charts: list[Chart | HeatMap] = []
    for title, y, *names in (
        ("class means", "squared norm", "‖h_k‖²"),
        ("class vectors", "squared norm", "‖w_k‖²"),
        ("angles", "cosine", "w_k and h_k", "w_k and w of the largest class", "h_k and its nearest other"),
        ("samples", "probability of the own class", "softmax"),
    ):
        lines = curves(exact, "n_k", *names, label="{1}") + curves(found, "n_k", *names, label="", points=True)
        if title == "class means":
            lines += curves(stuck, "n_k", *names, points=True)
        charts.append(Chart(title, "n_k", y, lines, log_x=True, marks=marks))
    gaps, merged = twin_gaps(RELU_DECAY / 2)
    twins = {"‖w_k - w_k'‖²": [{"n_k": n, "gap": gap} for n, gap in zip(COUNTS, gaps, strict=True)]}
    lines = curves(twins, "n_k", "gap", points=True)
    chart = Chart("linear features, twins", "n_k", "squared distance", lines, log_x=True, marks={"merged": merged})
    return [*charts, _death_over_penalties(problem, seed), chart]


def class_rows(solution: Solution) -> Rows:
    """Return norms, cosines and probability of each class, one row a class; cosines are nan of a dead class."""
    lengths = solution.gram_H.diagonal().sqrt()
    lengths = lengths.where(lengths > 1e-3, torch.nan)  # below is what a descent leaves
    directions = F.normalize(solution.W)
    with_largest = directions @ directions[-1]
    with_largest[-1] = torch.nan
    others = (solution.gram_H / torch.outer(lengths, lengths)).fill_diagonal_(-1).nan_to_num(nan=-1)
    columns = {
        "n_k": torch.tensor(solution.problem.counts),
        "‖h_k‖²": solution.gram_H.diagonal(),
        "‖w_k‖²": solution.gram_W.diagonal(),
        "softmax": solution.logits.softmax(dim=1).diagonal(),
        "w_k and h_k": (solution.W * solution.class_means).sum(dim=1) / solution.gram_W.diagonal().sqrt() / lengths,
        "w_k and w of the largest class": with_largest,
        "h_k and its nearest other": others.amax(dim=1).where(~lengths.isnan(), torch.nan),
    }
    return [dict(zip(columns, row, strict=True)) for row in zip(*(c.tolist() for c in columns.values()), strict=True)]


def _death_over_penalties(problem: ReLUImbalanced, seed: int) -> Chart:
    """Return the chart of the features of some classes over σ, and of the σ at which each dies."""
    chosen = {f"n = {problem.counts[k]}": k for k in (2, 5, 8, 11)}

    def norms(sigmas: Sequence[float], method: Callable[[ReLUImbalanced], Solution]) -> dict[str, Rows]:
        found = {s: method(replace(problem, weight_decay=s, feature_decay=s)).gram_H.diagonal() for s in sigmas}
        return {
            name: [{"sigma": sigma, "norm": norms[k].item()} for sigma, norms in found.items()]
            for name, k in chosen.items()
        }

    lines = curves(norms(torch.logspace(-3, -1.3, 69).tolist(), closed_form), "sigma", "norm")
    reached = norms(torch.logspace(-2.9, -1.4, 7).tolist(), lambda each: descend_nonnegative(each, seed))
    lines += curves(reached, "sigma", "norm", label="", points=True)
    deaths = problem.strengths * math.sqrt(1 - 1 / problem.num_classes)
    marks = {name: deaths[k].item() for name, k in chosen.items()}
    return Chart("class means, other penalties", "σ = √(λ_W λ_H)", "squared norm", lines, log_x=True, marks=marks)


def twin_gaps(decay: float) -> tuple[list[float], float]:
    """Return the squared distance of the class vectors of twins at the minimum of cross-entropy, and the threshold.

    Each count of the figure is there twice, so that with half the decay N σ is as large as there.
    """
    problem = CrossEntropyUFM(COUNTS * 2, 2 * len(COUNTS), decay, decay)
    first, second = solve(problem).W.chunk(2)
    return (first - second).square().sum(dim=1).tolist(), closed_form(problem).facts["collapse_count"]


def descend_nonnegative(problem: ReLUImbalanced, seed: int, steps: int = 1200) -> Solution:
    """Return where gradient descent with momentum comes to rest, features being clipped at 0 after each step.

    It starts in the first K directions of feature space, and comes to rest. From d = 2K on each class is then pushed a
    little into a direction of its own, and all descend again: where W and H have no part in some direction, a point
    that is not global is a saddle, which descent alone never leaves.

    Args:
        problem: Model with weights of 1/N.
        seed: Seed of the start.
        steps: Number of steps of each descent.
    """
    generator, K = torch.Generator().manual_seed(seed), problem.num_classes
    W, Y = (torch.zeros(K, problem.dim, dtype=torch.float64) for _ in range(2))
    W[:, :K] = 0.3 * torch.randn(K, K, generator=generator, dtype=torch.float64)
    Y[:, :K] = 0.3 * torch.rand(K, K, generator=generator, dtype=torch.float64)
    roots = problem.prices.sqrt().unsqueeze(1)  # Y is H times these
    pushes = [torch.zeros(K, problem.dim, dtype=torch.float64)]
    if problem.dim >= 2 * K:
        pushes.append(1e-3 * torch.eye(K, problem.dim, dtype=torch.float64).roll(K, dims=1))
    for push in pushes:
        Y = Y + push
        parameters = [W.requires_grad_(), Y.requires_grad_()]
        optimizer = torch.optim.SGD(parameters, lr=0.03 * problem.num_samples, momentum=0.9)
        for step in descent(lambda W=W, Y=Y: objective(problem, W, Y / roots), optimizer, steps):
            if step > 0:
                optimizer.state[Y]["momentum_buffer"][Y <= 0] = 0
                Y.data.clamp_(min=0)
        W, Y = W.detach(), Y.detach()
    H = Y / roots
    return Solution(problem, W, H, None, objective(problem, W, H).item(), False, "projected gradient descent")
