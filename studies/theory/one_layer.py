"""Figures of the one-layer models: collapse with its predicted norms, the kink of a penalised bias, dying classes."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from tightframe.ufm.closed_form import closed_form
from tightframe.ufm.forms.common import strengths_of
from tightframe.ufm.objective import feature_prices, objective
from tightframe.ufm.problems import CrossEntropyUFM, MeanSquaredUFM, ReLUImbalanced
from torch import Tensor, nn

from studies.theory.networks import balanced_digits
from tightframe.report.charts import Chart, HeatMap, Line
from tightframe.ufm.network import NetworkCertificate, certify_network
from tightframe.ufm.solution import Solution
from tightframe.ufm.solve import solve

_DESCENT_STEPS, _NETWORK_STEPS = 4000, 1500

_KINK_CONSTANTS = (0.1, 0.3, 0.5)

# 12 classes, geometrically but for the integers.
_COUNTS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 64, 128)
_RELU_DECAY = 0.008


def balanced_norms(seed: int) -> list[Chart | HeatMap]:
    """NC metrics and norms along training, beside the predicted norms (Zhu et al. 2021; Zhou et al. 2022).

    Gradient descent on both models, and two networks on 500 digits: it trains, for about a minute.
    """
    cross_entropy = descend(CrossEntropyUFM((10,) * 5, 8, 4e-4, 4e-4), 10.0, _DESCENT_STEPS, seed)
    squared = {
        name: descend(MeanSquaredUFM((10,) * 5, 8, 1e-3, 1e-3, bias_decay=bias_decay), 1.5, _DESCENT_STEPS, seed)
        for name, bias_decay in (("free bias", 0.0), ("no bias", None))
    }
    networks = {
        "decay of W and H": train_digits(seed, _NETWORK_STEPS, features=True),
        "decay of all weights": train_digits(seed, _NETWORK_STEPS, features=False),
    }
    return [
        Chart("cross-entropy", "steps", "", _collapse_lines({"": cross_entropy}), log_x=True, log_y=True),
        Chart("squared error", "steps", "", _collapse_lines(squared), log_x=True, log_y=True),
        Chart("networks on digits", "steps", "", _collapse_lines(_points(networks)), log_x=True, log_y=True),
        Chart("cross-entropy: norms", "steps", "squared norm", _norm_lines({"": cross_entropy}), log_x=True),
        Chart("squared error: norms", "steps", "squared norm", _norm_lines(squared), log_x=True),
        Chart("networks: norm of W", "steps", "squared norm", _network_lines(networks), log_x=True),
    ]


Path = list[tuple[int, Solution]]


def descend(problem: CrossEntropyUFM | MeanSquaredUFM, rate: float, steps: int, seed: int) -> Path:
    """Return points of gradient descent on class vectors and the features of all samples, from a small Gaussian draw.

    Args:
        problem: the model.
        rate: of learning, the same for all parameters.
        steps: the points are at 25 steps up to this one, equidistant in the logarithm.
        seed: of the draw.
    """
    generator = torch.Generator().manual_seed(seed)
    W = torch.randn(problem.num_classes, problem.dim, generator=generator, dtype=torch.float64)
    H = torch.randn(problem.num_samples, problem.dim, generator=generator, dtype=torch.float64)
    parameters = [0.3 * W / math.sqrt(problem.dim), 0.3 * H]
    if problem.bias_decay is not None:
        parameters.append(torch.zeros(problem.num_classes, dtype=torch.float64))
    kept, path = _steps_kept(steps), []
    for step in range(1, steps + 1):
        leaves = [part.requires_grad_() for part in parameters]
        slopes = torch.autograd.grad(objective(problem, *leaves), leaves)
        parameters = [part.detach() - rate * slope for part, slope in zip(leaves, slopes, strict=True)]
        if step in kept:
            W, H, *bias = parameters
            value = objective(problem, *parameters).item()
            path.append((step, Solution(problem, W, H, bias[0] if bias else None, value, False, "gradient descent")))
    return path


NetworkPath = list[tuple[int, NetworkCertificate]]


def train_digits(seed: int, steps: int, *, features: bool, samples: int = 50) -> NetworkPath:
    """Return certificates of a small network at steps of its training on digits, all samples in each step.

    Two hidden layers of 128 with batch normalisation and ReLU, 16 features, no bias in the classifier.

    Args:
        seed: of the initialisation.
        steps: the certificates are of 25 steps up to this one, equidistant in the logarithm.
        features: whether the penalty is on classifier and features, by Adam, as in the model; else it is the weight
            decay of all parameters, by SGD.
        samples: of each class.
    """
    inputs, labels = balanced_digits(samples)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        body = nn.Sequential(
            *(nn.Linear(64, 128), nn.BatchNorm1d(128), nn.ReLU()),
            *(nn.Linear(128, 128), nn.BatchNorm1d(128), nn.ReLU()),
            nn.Linear(128, 16),
        )
        classifier = nn.Linear(16, 10, bias=False)
    parameters = [*body.parameters(), *classifier.parameters()]
    decay, feature_decay = 5e-3, 1e-4
    optimizer: torch.optim.Optimizer = torch.optim.SGD(parameters, lr=0.05, momentum=0.9, weight_decay=decay)
    if features:
        optimizer = torch.optim.Adam(parameters, lr=3e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    kept, path = _steps_kept(steps), []
    for step in range(1, steps + 1):
        H, W = body(inputs), classifier.weight
        loss = nn.functional.cross_entropy(H @ W.T, labels)
        if features:
            loss = loss + decay / 2 * W.square().sum() + feature_decay / 2 * H.square().sum()
        if step in kept:
            given = feature_decay if features else None
            found = certify_network(H.detach(), labels, W.detach(), weight_decay=decay, feature_decay=given)
            path.append((step, found))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return path


def _steps_kept(steps: int) -> set[int]:
    return {round(steps ** (i / 24)) for i in range(25)}


def _points(networks: dict[str, NetworkPath]) -> dict[str, Path]:
    return {name: [(step, found.point) for step, found in path] for name, path in networks.items()}


def _collapse_lines(paths: dict[str, Path]) -> list[Line]:
    """Return NC1, NC2 and NC3 along paths, the second path dashed."""
    metrics = {"nc1.ratio": "NC1", "nc2.gram.classifier": "NC2 of W", "nc3.distance": "NC3"}
    lines = []
    for index, (name, path) in enumerate(paths.items()):
        steps, values = [step for step, _ in path], [solution.collapse() for _, solution in path]
        for metric, label in metrics.items():
            curve = [value.get(metric, math.nan) for value in values]
            lines.append(Line(f"{label}, {name}" if name else label, steps, curve, group=metric, dashed=index > 0))
    return lines


def _norm_lines(paths: dict[str, Path]) -> list[Line]:
    """Return the squared norms of W and H along paths as points, and those that theory predicts joined."""
    lines = []
    for name, path in paths.items():
        steps, end = [step for step, _ in path], closed_form(path[0][1].problem).facts
        suffix = f", {name}" if name else ""
        for key, of in (("W", lambda s: s.W), ("H", lambda s: s.H)):
            norms = [of(solution).square().sum().item() for _, solution in path]
            group = f"{key} {name}"
            lines.append(Line(f"‖{key}‖²{suffix}", steps, norms, group=group, points=True))
            lines.append(Line("", [steps[0], steps[-1]], [end[f"squared_norm_{key}"]] * 2, group=group))
    return lines


def _network_lines(networks: dict[str, NetworkPath]) -> list[Line]:
    lines = []
    for name, path in networks.items():
        steps = [step for step, _ in path]
        norms = [found.point.W.square().sum().item() for _, found in path]
        wanted = [math.nan if (p := found.predicted) is None else p.W.square().sum().item() for _, found in path]
        lines.append(Line(f"‖W‖², {name}", steps, norms, group=name, points=True))
        lines.append(Line("predicted", steps, wanted, group=name))
    return lines


def bias_kink(seed: int) -> list[Chart | HeatMap]:
    """From simplex ETF to orthogonal frame over the penalty of the bias, with a kink (Tirer & Bruna 2022; Zhou 2022).

    Closed form joined, points solved as convex problems. Nothing is drawn at random.
    """
    measures: dict[str, tuple[str, Callable[[Solution], float]]] = {
        "angles": ("cosine of two class vectors", lambda s: (s.gram_W[0, 1] / s.gram_W[0, 0]).item()),
        "between the frames": ("mean part of W Wᵀ / simplex part", mean_share),
        "bias": ("bias of each class", lambda s: math.nan if s.bias is None else s.bias.mean().item()),
    }
    fine, coarse = (torch.logspace(-2, 2, steps, dtype=torch.float64).tolist() for steps in (81, 17))
    problems = {c: kink_problem(c) for c in _KINK_CONSTANTS}
    joined = {c: _swept(problem, fine, closed_form) for c, problem in problems.items()}
    solved = {c: _swept(problem, coarse, solve) for c, problem in problems.items()}
    marks = {f"c = {c:g}": closed_form(problem).facts["kink_bias_decay"] for c, problem in problems.items()}
    return [
        Chart(
            title,
            "penalty of the bias",
            label,
            [
                *(Line(f"c = {c:g}", fine, [measure(s) for s in joined[c]], group=str(c)) for c in problems),
                *(Line("", coarse, [measure(s) for s in solved[c]], group=str(c), points=True) for c in problems),
            ],
            log_x=True,
            marks=marks,
        )
        for title, (label, measure) in measures.items()
    ]


def kink_problem(constant: float) -> MeanSquaredUFM:
    """Return the squared-error model of 4 classes of 10 samples with c = K √(n λ_W λ_H), its bias penalised."""
    decay = constant / (4 * math.sqrt(10))
    return MeanSquaredUFM((10,) * 4, dim=4, weight_decay=decay, feature_decay=decay, bias_decay=1.0)


def mean_share(solution: Solution) -> float:
    """Return how the part of ``W Wᵀ`` along the vector of ones compares with the rest: 0 of an ETF, 1 of a frame."""
    values = torch.linalg.eigvalsh(solution.gram_W)
    along = solution.gram_W.mean().item() * len(values)
    return along / ((values.sum().item() - along) / (len(values) - 1))


def _swept(
    problem: MeanSquaredUFM, decays: Sequence[float], method: Callable[[MeanSquaredUFM], Solution]
) -> list[Solution]:
    return [method(replace(problem, bias_decay=decay)) for decay in decays]


def relu_death(seed: int) -> list[Chart | HeatMap]:
    """Norms, angles and the death of classes against n_k, with nonnegative features (Dang et al. 2024).

    Closed form joined, points reached by projected gradient descent; beside it twins that merge with linear features.
    """
    problem = ReLUImbalanced(_COUNTS, 2 * len(_COUNTS), _RELU_DECAY, _RELU_DECAY)
    exact, found = closed_form(problem), descend_nonnegative(problem, seed)
    stuck = descend_nonnegative(replace(problem, dim=len(_COUNTS)), seed)
    marks = {"death": exact.facts["death_count"]}

    def lines(name: str, measure: Callable[[Solution], Tensor]) -> list[Line]:
        return [
            Line(name, _COUNTS, measure(exact), group=name),
            Line("", _COUNTS, measure(found), group=name, points=True),
        ]

    means = lines("‖h_k‖²", lambda s: s.gram_H.diagonal())
    lost = Line("descent with d = K", _COUNTS, stuck.gram_H.diagonal(), group="stuck", points=True)
    vectors = lines("‖w_k‖²", lambda s: s.gram_W.diagonal())
    sure = lines("softmax", lambda s: s.logits.softmax(dim=1).diagonal())
    angles = [
        *lines("w_k and h_k", alignments),
        *lines("w_k and w of the largest class", largest_cosines),
        *lines("h_k and its nearest other", nearest_cosines),
    ]
    return [
        Chart("class means", "n_k", "squared norm", [lost, *means], log_x=True, marks=marks),
        Chart("class vectors", "n_k", "squared norm", vectors, log_x=True, marks=marks),
        Chart("angles", "n_k", "cosine", angles, log_x=True, marks=marks),
        Chart("samples", "n_k", "probability of the own class", sure, log_x=True, marks=marks),
        _death_over_penalties(problem, seed),
        _merging_twins(),
    ]


def _death_over_penalties(problem: ReLUImbalanced, seed: int) -> Chart:
    """Draw the features of some classes over σ, and where each dies."""
    K, chosen = problem.num_classes, (2, 5, 8, 11)
    fine, coarse = torch.logspace(-3, -1.3, 69).tolist(), torch.logspace(-2.9, -1.4, 7).tolist()

    def norms(sigmas: Sequence[float], method: Callable[[ReLUImbalanced], Solution]) -> Tensor:
        problems = [replace(problem, weight_decay=sigma, feature_decay=sigma) for sigma in sigmas]
        return torch.stack([method(each).gram_H.diagonal() for each in problems])

    exact, found = norms(fine, closed_form), norms(coarse, lambda each: descend_nonnegative(each, seed))
    lines, marks = [], {}
    for k in chosen:
        name = f"n = {problem.counts[k]}"
        lines.append(Line(name, fine, exact[:, k], group=name))
        lines.append(Line("", coarse, found[:, k], group=name, points=True))
        marks[name] = (strengths_of(problem)[k] * math.sqrt(1 - 1 / K)).item()
    return Chart("class means, other penalties", "σ = √(λ_W λ_H)", "squared norm", lines, log_x=True, marks=marks)


def _merging_twins() -> Chart:
    """Draw how far apart the class vectors of two classes alike are where features may be negative."""
    gaps, collapse_count = twin_gaps(_RELU_DECAY / 2)
    lines = [Line("‖w_k - w_k'‖²", _COUNTS, gaps, points=True)]
    return Chart(
        "linear features, twins", "n_k", "squared distance", lines, log_x=True, marks={"merged": collapse_count}
    )


def twin_gaps(decay: float) -> tuple[list[float], float]:
    """Return the squared distance of the class vectors of twins at the minimum of cross-entropy, and the threshold.

    Each count of the figure is there twice, so that with half the decay N σ is what it is there.
    """
    problem = CrossEntropyUFM(_COUNTS * 2, 2 * len(_COUNTS), decay, decay)
    first, second = solve(problem).W.chunk(2)
    return (first - second).square().sum(dim=1).tolist(), closed_form(problem).facts["collapse_count"]


def descend_nonnegative(problem: ReLUImbalanced, seed: int, steps: int = 1200) -> Solution:
    """Return where gradient descent with momentum comes to rest, features being clipped at 0 after each step.

    It starts in the first K directions of feature space, and comes to rest. From d = 2K on each class is then pushed a
    little into a direction of its own, and all descend again: where W and H have no part in some direction, a point
    that is not global is a saddle, which descent alone never leaves.

    Args:
        problem: weights of 1/N.
        seed: of the start.
        steps: of each descent.
    """
    generator, K = torch.Generator().manual_seed(seed), problem.num_classes
    W, Y = (torch.zeros(K, problem.dim, dtype=torch.float64) for _ in range(2))
    W[:, :K] = 0.3 * torch.randn(K, K, generator=generator, dtype=torch.float64)
    Y[:, :K] = 0.3 * torch.rand(K, K, generator=generator, dtype=torch.float64)
    W, Y = _nonnegative_rest(problem, W, Y, steps)
    if problem.dim >= 2 * K:
        Y[:, K : 2 * K] += 1e-3 * torch.eye(K, dtype=torch.float64)
        W, Y = _nonnegative_rest(problem, W, Y, steps)
    H = Y / feature_prices(problem).sqrt().unsqueeze(1)
    return Solution(problem, W, H, None, objective(problem, W, H).item(), False, "projected gradient descent")


def _nonnegative_rest(problem: ReLUImbalanced, W: Tensor, Y: Tensor, steps: int) -> tuple[Tensor, Tensor]:
    """Return class vectors and features times the root of their price after descent with momentum 0.9."""
    roots, rate = feature_prices(problem).sqrt().unsqueeze(1), 0.03 * problem.num_samples
    speeds = [torch.zeros_like(W), torch.zeros_like(Y)]
    for _ in range(steps):
        leaves = [W.requires_grad_(), Y.requires_grad_()]
        slopes = torch.autograd.grad(objective(problem, W, Y / roots), leaves)
        speeds = [0.9 * speed - rate * slope for speed, slope in zip(speeds, slopes, strict=True)]
        W, Y = W.detach() + speeds[0], Y.detach() + speeds[1]
        speeds[1] = speeds[1].where(Y > 0, 0)
        Y = Y.clamp(min=0)
    return W, Y


def alignments(solution: Solution) -> Tensor:
    """Return the cosine of each class vector with its class mean ``(K,)``; nan of a dead class."""
    lengths = solution.gram_W.diagonal().sqrt() * _living(solution)
    return (solution.W * solution.class_means).sum(dim=1) / lengths


def nearest_cosines(solution: Solution) -> Tensor:
    """Return the largest cosine of each class mean with another living class's ``(K,)``; nan of a dead class."""
    lengths = _living(solution)
    cosines = solution.gram_H / torch.outer(lengths, lengths)
    return cosines.fill_diagonal_(-1).nan_to_num(nan=-1).amax(dim=1).where(~lengths.isnan(), torch.nan)


def _living(solution: Solution) -> Tensor:
    """Return the norm of each class mean, nan of those that are dead up to what a descent leaves."""
    lengths = solution.gram_H.diagonal().sqrt()
    return lengths.where(lengths > 1e-3, torch.nan)


def largest_cosines(solution: Solution) -> Tensor:
    """Return the cosine of each class vector with that of the last class ``(K,)``; nan of that one."""
    directions = nn.functional.normalize(solution.W)
    cosines = directions @ directions[-1]
    cosines[-1] = torch.nan
    return cosines
