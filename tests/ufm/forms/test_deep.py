from __future__ import annotations

import math

import pytest
import torch

from tightframe.errors import ArgumentError, DimensionError
from tightframe.ufm import DeepUFM, MeanSquaredUFM
from tightframe.ufm.deep import deep_squared_form, relu_bound
from tightframe.ufm.mean_squared import mean_squared_form

from ..brute import logits_of, minimise, value
from .comparison import GEOMETRY, LOSS, assert_close, assert_loss_is_the_objective, assert_minimum, samples


def problem_of(counts, dim, decays, **options):
    return DeepUFM(counts, dim, decays, loss="mse", **options)


@pytest.mark.parametrize(
    ("counts", "dim", "decays"),
    [
        ((2, 2, 2), 3, (0.02, 0.05)),
        ((3, 3, 3), 4, (0.05, 0.03, 0.04)),
        ((2, 2), 3, (0.03, 0.02, 0.05, 0.04)),
        ((6, 3, 1), 4, (0.05, 0.03, 0.04)),
        ((6, 3, 1), 3, (0.05, 0.03, 0.04, 0.02)),  # the last class is zero
    ],
)
def test_minimum(counts, dim, decays):
    solution = deep_squared_form(problem_of(counts, dim, decays))
    found = assert_minimum(solution, starts=3)
    H, *matrices = solution.factors
    assert_close(logits_of(solution.problem, H, matrices), solution.logits)
    # At a critical point the factors are balanced, so that their spectra follow from the logits; brute force agrees.
    for mine, theirs in zip(matrices, found.matrices, strict=True):
        values = [torch.linalg.svdvals(M)[: len(counts)] for M in (mine, theirs)]
        assert_close(*values, atol=GEOMETRY)


@pytest.mark.parametrize("F", [2, 3, 4, 7])
@pytest.mark.parametrize(("K", "n"), [(2, 1), (4, 5)])
def test_balanced_form_is_the_printed_one(F, K, n):
    decays = tuple(0.004 * (1 + i) / n for i in range(F))
    solution, Lambda = deep_squared_form(problem_of((n,) * K, K + 1, decays)), math.prod(decays)
    kappa, x = K * (n * Lambda) ** (1 / F), solution.facts["scale"]
    assert solution.facts["kappa"] == pytest.approx(kappa, rel=1e-13)
    assert (F - 2) / (F - 1) < x < 1
    assert (1 - x) * x ** (1 - 2 / F) == pytest.approx(kappa, abs=1e-14)
    assert_close(solution.logits, x * torch.eye(K, dtype=torch.float64))
    for index, decay in enumerate(decays):
        squared = K * Lambda ** (1 / F) * (math.sqrt(n) * x) ** (2 / F) / decay
        assert solution.facts[f"squared_norm_factor_{index}"] == pytest.approx(squared, rel=1e-12)
    loss = (x - 1) ** 2 / 2 + K * F / 2 * Lambda ** (1 / F) * (math.sqrt(n) * x) ** (2 / F)
    assert solution.loss == pytest.approx(loss, abs=1e-12)
    assert_loss_is_the_objective(solution)


@pytest.mark.parametrize(("F", "threshold"), [(2, 1.0), (3, 2 ** (-4 / 3)), (4, (2 / 3) ** 0.5 / 3)])
def test_zero_is_optimal_from_its_threshold_on(F, threshold):
    n, K = 2, 2
    for factor, zero in ((1.03, True), (0.97, False)):
        decay = factor * threshold / (K * n ** (1 / F))
        problem = problem_of((n,) * K, 3, (decay,) * F)
        solution = deep_squared_form(problem)
        assert solution.facts["zero_kappa"] == pytest.approx(threshold, abs=1e-14)
        assert solution.facts["kappa"] == pytest.approx(factor * threshold, rel=1e-12)
        assert (solution.loss == 0.5) == zero
        found = minimise(problem, starts=6, iterations=200)
        # Zero has a basin of its own that random starts miss, and the jump to it is from a positive x.
        assert (
            (found.loss > 0.5 - LOSS) if zero else (abs(found.loss - solution.loss) < LOSS and found.loss < 0.5 - 1e-4)
        )


def test_a_class_dies_at_its_count():
    counts, decays = (8, 4, 2), (0.05, 0.06, 0.07)
    death = deep_squared_form(problem_of(counts, 3, decays)).facts["death_count"]
    for factor, dead in ((1.03, True), (0.97, False)):
        # Kappa goes as the cube root of the product of the decays, and the count as kappa^(3/2).
        scaled = tuple(d * (factor * 2 / death) ** (2 / 3) for d in decays)
        solution = deep_squared_form(problem_of(counts, 3, scaled))
        assert solution.facts["death_count"] == pytest.approx(2 * factor, rel=1e-12)
        assert solution.facts["active_classes"] == 3 - dead
        found = minimise(solution.problem, starts=6, iterations=150, width=6)
        assert abs(found.loss - solution.loss) < LOSS


@pytest.mark.parametrize("counts", [(3, 3, 3), (7, 3, 1)])
@pytest.mark.parametrize("relu", [False, True])
def test_one_matrix_is_the_model_without_depth(counts, relu):
    deep = deep_squared_form(problem_of(counts, 3, (0.02, 0.05), relu=relu))
    flat = mean_squared_form(MeanSquaredUFM(counts, 3, weight_decay=0.05, feature_decay=0.02))
    assert deep.exact
    assert deep.loss == pytest.approx(flat.loss, abs=1e-14)
    assert_close(deep.gram_W, flat.gram_W)
    assert_close(deep.gram_H, flat.gram_H)


# ReLU ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("counts", "decay"), [((2, 2, 2), 0.06), ((3, 2, 1), 0.02)])
def test_two_layers_with_relu_reach_the_linear_optimum_and_no_less(counts, decay):
    problem = problem_of(counts, 4, (decay,) * 3, relu=True)
    solution = deep_squared_form(problem)
    linear = deep_squared_form(problem_of(counts, 4, (decay,) * 3))
    assert_loss_is_the_objective(solution)
    assert solution.loss == linear.loss
    assert all(factor.min() >= 0 for factor in solution.factors)
    assert not solution.exact
    found = minimise(problem, starts=8, iterations=150)
    assert abs(found.loss - solution.loss) < LOSS
    assert_close(found.logits, samples(solution.logits, problem), atol=GEOMETRY)
    assert 0 < solution.lower_bound < found.loss


@pytest.mark.parametrize("counts", [(2, 2, 2), (6, 3, 1)])
def test_relu_bound_is_the_minimum_of_its_own_problem(counts):
    """By a fine grid over the shared threshold θ and by gradient descent on y."""
    for price in (1e-4, 0.01, 0.03, 0.1):
        problem = problem_of(counts, 3, (price,) * 3, relu=True)
        roots = torch.tensor(counts, dtype=torch.float64).sqrt()
        theta = torch.linspace(0, roots.max().item(), 20001, dtype=torch.float64).unsqueeze(1)
        y = (roots - theta).clamp(min=0)
        values = (y - roots).square().sum(dim=1) / (2 * sum(counts)) + 1.5 * price * y.sum(dim=1) ** (2 / 3)
        assert relu_bound(problem) == pytest.approx(values.min().item(), abs=1e-6)
        assert relu_bound(problem) <= values.min().item() + 1e-12


def test_relu_bound_holds_at_random_points():
    generator = torch.Generator().manual_seed(0)
    problem = problem_of((3, 2, 1), 4, (0.01, 0.02, 0.01), relu=True)
    for scale in (0.1, 0.5, 1.0, 2.0):
        for _ in range(50):
            H, W1, W2 = (
                scale * torch.randn(shape, generator=generator, dtype=torch.float64)
                for shape in ((6, 4), (4, 4), (3, 4))
            )
            assert value(problem, H, (W1, W2)) > relu_bound(problem)


# Errors --------------------------------------------------------------------------------------------------------------


def test_more_layers_with_relu_are_refused():
    with pytest.raises(ArgumentError, match="relu must be False with more than two matrices, got L = 3"):
        deep_squared_form(problem_of((2, 2), 2, (0.1,) * 4, relu=True))
    with pytest.raises(ArgumentError, match=r"loss must be 'mse' .*got 'cross-entropy'"):
        deep_squared_form(DeepUFM((2, 2), 2, (0.1,) * 3))


def test_too_few_dimensions():
    with pytest.raises(DimensionError, match=r"dim must be at least 3 .*got d = 2"):
        deep_squared_form(problem_of((2, 2, 2), 2, (0.01,) * 3))
    assert deep_squared_form(problem_of((2, 2, 2), 1, (1.0,) * 3)).loss == 0.5
