"""A closed form beside brute force."""

from __future__ import annotations

import torch

from tightframe.ufm import DeepUFM, MaxMargin

from ..brute import labels_of, minimise, value

LOSS, GEOMETRY = 1e-10, 1e-5


def centering(K):
    return torch.eye(K, dtype=torch.float64) - 1 / K


def assert_close(found, wanted, atol=1e-12):
    torch.testing.assert_close(found, wanted, rtol=0, atol=atol)


def assert_minimum(solution, starts=2, seed=0, iterations=400, **options):
    """Check that brute force reaches the loss, logits and Gram matrices of a solution that says it is exact."""
    problem = solution.problem
    assert solution.exact
    assert solution.lower_bound == solution.loss
    assert_loss_is_the_objective(solution)
    found = minimise(problem, starts, seed, iterations, **options)
    assert abs(found.loss - solution.loss) < LOSS
    free = getattr(problem, "bias_decay", None) == 0
    logits = [Z - Z.mean(dim=1, keepdim=True) if free else Z for Z in (found.logits, samples(solution.logits, problem))]
    assert_close(*logits, atol=GEOMETRY)
    if not isinstance(problem, DeepUFM):
        assert_close(found.classifier @ found.classifier.T, solution.gram_W, atol=GEOMETRY)
        H = samples(solution.H, problem)
        assert_close(found.H @ found.H.T, H @ H.T, atol=GEOMETRY)
    return found


def assert_loss_is_the_objective(solution):
    problem = solution.problem
    assert not isinstance(problem, MaxMargin)
    H, *matrices = solution.factors or (solution.H, solution.W)
    assert abs(value(problem, samples(H, problem), matrices, solution.bias).item() - solution.loss) < 1e-14


def samples(rows, problem):
    """Return rows of classes ``(K, …)`` as rows of samples."""
    return rows[labels_of(problem)]
