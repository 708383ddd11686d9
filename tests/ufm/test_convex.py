"""Global minima: against brute force, against the formulas of the balanced models, and on both sides of thresholds."""

import math
from dataclasses import replace

import pytest
import torch

from tests.ufm.brute import minimise
from tightframe.errors import ArgumentError, DimensionError
from tightframe.ufm import ULPM, CrossEntropyUFM, LayerPeeled, MeanSquaredUFM, ReLUImbalanced
from tightframe.ufm.bound import dual_bound
from tightframe.ufm.convex import ConvexSolver
from tightframe.ufm.problem import objective


def solved(problem, **options):
    solution = ConvexSolver(**options).solve(problem)
    b = () if solution.bias is None else (solution.bias,)
    assert solution.loss == pytest.approx(objective(problem, solution.W, solution.H, *b).item(), rel=1e-12)
    assert solution.lower_bound == pytest.approx(dual_bound(problem, solution.W, solution.H, *b), rel=1e-11, abs=1e-14)
    return solution


def cosine(solution, i, j):
    return torch.nn.functional.cosine_similarity(solution.W[i], solution.W[j], dim=0).item()


# Brute force ---------------------------------------------------------------------------------------------------------

BRUTE = [
    CrossEntropyUFM((5, 3, 2, 1), 4, 0.02, 0.01),
    CrossEntropyUFM((5, 3, 3, 1), 4, 0.02, 0.01, (0.1, 0.05, 0.05, 0.2)),
    CrossEntropyUFM((6, 2, 2), 3, 0.01, 0.02, None, 0.0),
    CrossEntropyUFM((6, 2, 1), 3, 0.01, 0.02, (0.02, 0.3, 0.1), 0.05),
    CrossEntropyUFM((9, 1, 1, 1), 4, 0.03, 0.03),
    MeanSquaredUFM((5, 3, 2, 1), 4, 0.02, 0.01),
    MeanSquaredUFM((5, 3, 3), 3, 0.02, 0.01, (0.1, 0.05, 0.05), 0.0),
    MeanSquaredUFM((5, 3, 1), 3, 0.02, 0.01, None, 0.04),
]


@pytest.mark.parametrize("problem", BRUTE, ids=str)
def test_agrees_with_brute_force(problem):
    found, solution = minimise(problem, starts=2, iterations=1500), solved(problem)
    assert solution.exact
    assert solution.loss == pytest.approx(found.loss, abs=1e-10)
    assert solution.loss - solution.lower_bound <= 1e-9 * solution.loss
    gram = found.classifier @ found.classifier.T
    torch.testing.assert_close(solution.gram_W, gram, rtol=0, atol=1e-5)
    rows = torch.tensor(problem.counts).cumsum(0) - 1
    # Cross-entropy does not see what all logits of a row share, which a free bias leaves open.
    apart = solution.logits - found.logits[rows]
    if problem.bias_decay == 0:
        apart = apart - apart.mean(dim=1, keepdim=True)
    assert apart.abs().max() < 1e-5
    if solution.bias is not None and problem.bias_decay:
        torch.testing.assert_close(solution.bias, found.bias, rtol=0, atol=1e-5)


# Formulas of the balanced models -------------------------------------------------------------------------------------


@pytest.mark.parametrize(("K", "n", "bias_decay"), [(2, 3, None), (4, 5, None), (10, 7, 0.0), (7, 1, 0.2)])
def test_balanced_cross_entropy_is_the_simplex(K, n, bias_decay):
    problem = CrossEntropyUFM((n,) * K, K, 0.012, 0.003, None, bias_decay)
    solution, c = solved(problem), math.sqrt(n * 0.012 * 0.003)
    a = math.log(1 / c - K + 1)
    wanted = math.log1p((K - 1) * math.exp(-a)) + math.sqrt(0.012 * 0.003) * (K - 1) * math.sqrt(n) * a
    assert solution.loss == pytest.approx(wanted, abs=1e-13)
    centering = torch.eye(K, dtype=torch.float64) - 1 / K
    torch.testing.assert_close(solution.H @ solution.W.T, a * centering, rtol=0, atol=1e-7)
    assert solution.W.square().sum().item() == pytest.approx(math.sqrt(0.003 / 0.012) * (K - 1) * math.sqrt(n) * a)


@pytest.mark.parametrize("bias_decay", [None, 0.0, 0.05, 0.9])
def test_balanced_squared_error_goes_from_simplex_to_orthogonal_frame(bias_decay):
    K, n, decays = 5, 4, (0.01, 0.02)
    sigma = math.sqrt(decays[0] * decays[1])
    c = K * math.sqrt(n) * sigma
    t, centering = 1 - c, torch.eye(K, dtype=torch.float64) - 1 / K
    kink = c / (1 - c)
    assert 0.05 < 0.95 * kink < 1.05 * kink < 0.9
    if bias_decay is None:
        tau, beta = t, 0.0
    elif bias_decay == 0:
        tau, beta = 0.0, 1 / K
    elif bias_decay > kink:
        tau, beta = 1 - c - c / bias_decay, c / (K * bias_decay)
    else:
        tau, beta = 0.0, 1 / (K * (1 + bias_decay))
    solution = solved(MeanSquaredUFM((n,) * K, K, *decays, None, bias_decay))
    loss = ((K - 1) * (t - 1) ** 2 + (tau + K * beta - 1) ** 2) / (2 * K)
    loss += sigma * math.sqrt(n) * ((K - 1) * t + tau) + (bias_decay or 0) * K * beta**2 / 2
    assert solution.loss == pytest.approx(loss, abs=1e-13)
    torch.testing.assert_close(solution.H @ solution.W.T, t * centering + tau / K, rtol=0, atol=1e-7)


@pytest.mark.parametrize("factor", [0.95, 1.05])
def test_kink_of_the_bias_penalty(factor):
    K, n = 5, 4
    c = K * math.sqrt(n * 0.0002)
    solution = solved(MeanSquaredUFM((n,) * K, K, 0.01, 0.02, None, factor * c / (1 - c)))
    assert (int(solution.facts["rank"]) == K) == (factor > 1)


@pytest.mark.parametrize("counts", [(3, 3, 3), (9, 4, 1)])
def test_imbalanced_squared_error_decouples(counts):
    sigma, N = 0.05, sum(counts)
    problem = MeanSquaredUFM(counts, 3, sigma, sigma)
    x = [max(0.0, 1 - N * sigma / math.sqrt(n)) for n in counts]
    torch.testing.assert_close(solved(problem).logits, torch.tensor(x, dtype=torch.float64).diag(), rtol=0, atol=1e-9)


# Thresholds ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("factor", [0.97, 1.03])
@pytest.mark.parametrize("bias_decay", [None, 0.0])
def test_zero_solution(factor, bias_decay):
    counts = (9, 5, 2, 2)
    P, D = torch.eye(4).double() - 1 / 4, torch.tensor(counts).double().diag()
    top = torch.linalg.eigvalsh(P @ D @ P)[-1].item()
    if bias_decay == 0:  # what the bias leaves is the spread about the prior
        root, shares = D.sqrt(), torch.tensor(counts).double() / 18
        top = torch.linalg.matrix_norm(root @ (torch.eye(4).double() - shares), 2).item() ** 2
    sigma = factor * math.sqrt(top) / 18
    solution = solved(CrossEntropyUFM(counts, 4, sigma, sigma, None, bias_decay))
    assert (solution.facts["rank"] == 0) == (factor > 1)


@pytest.mark.parametrize("weights", [None, (0.02, 0.02, 0.05, 0.05)])
@pytest.mark.parametrize("factor", [0.97, 1.03])
def test_minority_collapse(weights, factor):
    counts = (20, 20, 3, 3)
    weight = 1 / 46 if weights is None else weights[-1]
    sigma = factor * weight * math.sqrt(3)
    solution = solved(CrossEntropyUFM(counts, 4, sigma, sigma, weights))
    apart = (solution.W[2] - solution.W[3]).norm().item()
    assert apart < 1e-12 if factor > 1 else apart > 0.1
    assert cosine(solution, 0, 1) < 0


@pytest.mark.parametrize(
    ("majority", "feature_budget", "threshold"), [(3, 1, 4.136), (5, 1, 1.735), (5, 5, 12.192), (3, 10, 6350.97)]
)
@pytest.mark.parametrize("factor", [0.97, 1.03])
def test_minority_collapse_under_budgets(majority, feature_budget, threshold, factor):
    ratio = factor * threshold
    weights = (1.0,) * majority + (1 / ratio,) * (10 - majority)
    solution = solved(LayerPeeled((1,) * 10, 10, 1.0, float(feature_budget), weights))
    assert solution.exact
    assert (cosine(solution, 8, 9) > 1 - 1e-9) == (factor > 1)


# Under budgets -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("K", "budgets"), [(2, (3.0, 0.5)), (4, (1.0, 2.0)), (9, (0.2, 0.3)), (5, (10.0, 10.0))])
def test_balanced_budgets_give_the_simplex(K, budgets):
    solution = solved(LayerPeeled((3,) * K, K, *budgets))
    wanted = math.log1p((K - 1) * math.exp(-K / (K - 1) * math.sqrt(budgets[0] * budgets[1])))
    assert solution.loss == pytest.approx(wanted, rel=1e-10)
    assert solution.W.square().sum().item() == pytest.approx(K * budgets[0], rel=1e-12)
    assert solution.H.square().sum().item() == pytest.approx(K * budgets[1], rel=1e-12)


def test_the_multiplier_is_the_penalty_of_the_same_minimum():
    counts = (12, 5, 2, 2, 1)
    budgeted = solved(LayerPeeled(counts, 5, 1.0, 1.5))
    # Under budgets a class counts its features' mean square; with as many samples as price 1 it is the penalised model.
    weights = tuple(n / 22 for n in counts)
    mu = budgeted.facts["multiplier"]
    penalised = solved(CrossEntropyUFM((1,) * 5, 5, mu, mu, weights))
    torch.testing.assert_close(penalised.logits, budgeted.logits, rtol=0, atol=1e-6)


# Invariances ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [CrossEntropyUFM, MeanSquaredUFM])
@pytest.mark.parametrize("bias_decay", [None, 0.0, 0.01])
def test_permutation_and_rescaling(kind, bias_decay):
    counts, order = (30, 8, 8, 2, 1), [3, 1, 4, 0, 2]
    problem = kind(counts, 5, 0.004, 0.002, None, bias_decay)
    solution = solved(problem)
    moved = solved(replace(problem, counts=tuple(counts[k] for k in order)))
    assert moved.loss == pytest.approx(solution.loss, rel=1e-12)
    torch.testing.assert_close(moved.gram_W, solution.gram_W[order][:, order], rtol=0, atol=1e-6)
    N = sum(counts)
    decay = None if bias_decay is None else N * bias_decay
    summed = solved(kind(counts, 5, N * 0.004, N * 0.002, (1.0,) * 5, decay))
    assert summed.loss == pytest.approx(N * solution.loss, rel=1e-12)
    torch.testing.assert_close(summed.logits, solution.logits, rtol=0, atol=1e-6)
    # Only the product of the decays decides the logits.
    traded = solved(replace(problem, weight_decay=0.04, feature_decay=0.0002))
    assert traded.loss == pytest.approx(solution.loss, rel=1e-12)
    ratio = (traded.W.square().sum() / solution.W.square().sum()).item()
    assert ratio == pytest.approx(math.sqrt(0.0002 / 0.04 / (0.002 / 0.004)), rel=1e-6)


@pytest.mark.parametrize("kind", [CrossEntropyUFM, MeanSquaredUFM])
def test_merging_equal_classes_changes_nothing(kind):
    counts = (40, 40, 6, 6, 6, 1)
    weights = [1 / 99] * 6
    merged = solved(kind(counts, 6, 0.003, 0.003, tuple(weights), 0.01))
    # Weights that differ by a billionth are no longer merged.
    apart = solved(kind(counts, 6, 0.003, 0.003, tuple(w * (1 + 1e-9 * k) for k, w in enumerate(weights)), 0.01))
    assert (merged.facts["groups"], apart.facts["groups"]) == (3, 6)
    assert apart.loss == pytest.approx(merged.loss, rel=1e-8)
    torch.testing.assert_close(apart.logits, merged.logits, rtol=0, atol=1e-5)


# Any problem ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(16))
def test_random_problems_are_certified(seed):
    generator = torch.Generator().manual_seed(seed)

    def uniform(low, high):
        return low + (high - low) * torch.rand((), generator=generator, dtype=torch.float64).item()

    K = int(uniform(2, 12))
    ratio = 10 ** uniform(0, 4)
    counts = tuple(math.ceil(ratio ** uniform(0, 1)) for _ in range(K))
    sigma = 10 ** uniform(-4, 0.2) * math.sqrt(max(counts)) / sum(counts)
    weights = None if seed % 2 else tuple(10 ** uniform(-1, 1) / sum(counts) for _ in range(K))
    decay = (None, 0.0, 10 ** uniform(-5, 1))[seed % 3]
    kind = (CrossEntropyUFM, MeanSquaredUFM)[seed // 3 % 2]
    assert solved(kind(counts, K, 3 * sigma, sigma / 3, weights, decay)).exact
    assert solved(LayerPeeled(counts, K, 10 ** uniform(-1, 1), 10 ** uniform(-1, 1), weights)).exact


def test_many_classes_to_rounding():
    generator = torch.Generator().manual_seed(1)
    counts = torch.randint(1, 101, (60,), generator=generator).tolist()
    for decays in ((5e-4, 1e-5), (2e-3, 1e-3)):
        solution = solved(CrossEntropyUFM(tuple(counts), 60, *decays), tolerance=1e-11)
        assert solution.exact
        assert solution.loss - solution.lower_bound <= 1e-11 * solution.loss


def test_where_probabilities_underflow_descent_in_the_factors_helps():
    counts = (2810,) * 18 + (1, 1)
    solution = solved(CrossEntropyUFM(counts, 20, 5.9e-6, 3.4e-6, None, 0.0))
    assert solution.exact
    assert solution.iterations > 0


def test_what_is_known_when_it_stops_too_early():
    problem = CrossEntropyUFM((50, 20, 5, 5, 1), 5, 1e-3, 1e-3)
    best = solved(problem)
    early = solved(problem, max_iterations=1)
    assert not early.exact
    assert early.reason.startswith("max_iterations = 1 reached; duality gap")
    assert early.iterations == 1
    assert early.lower_bound < best.loss < early.loss
    assert early.facts["duality_gap"] == pytest.approx(early.loss - early.lower_bound)


# Errors --------------------------------------------------------------------------------------------------------------


def test_width_below_the_rank_is_an_error_and_above_it_is_not():
    problem = CrossEntropyUFM((50, 20, 5, 5), 2, 1e-3, 1e-3)
    with pytest.raises(DimensionError, match=r"dim must be at least the rank 3.*got d = 2.*0\.0790708"):
        ConvexSolver().solve(problem)
    collapsed = CrossEntropyUFM((50, 50, 1, 1), 2, 0.02, 0.02)
    assert solved(collapsed).facts["rank"] == 2  # d = 2 < K - 1, but the minorities share all they have


@pytest.mark.parametrize("problem", [ULPM((2, 1), 2), ReLUImbalanced((2, 1), 2, 0.1, 0.1)])
def test_problem_must_be_convex_in_the_logits(problem):
    with pytest.raises(ArgumentError, match=rf"problem must be convex.*{type(problem).__name__}.*use MultistartLBFGS"):
        ConvexSolver().solve(problem)


@pytest.mark.parametrize("options", [{"tolerance": 0.0}, {"tolerance": math.nan}, {"max_iterations": -1}])
def test_options_are_checked(options):
    with pytest.raises(ArgumentError, match=next(iter(options))):
        ConvexSolver(**options)
