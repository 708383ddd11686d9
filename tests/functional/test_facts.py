"""What is kept of a state of class moments is that of the state."""

import copy

import pytest
import torch

from tightframe.functional import collapse_metrics, vci
from tightframe.functional.collapse import _unpredicted
from tightframe.moments import ClassMoments

K, DIM = 4, 6
LABELS = torch.arange(60) % K


def draw(seed, dim=DIM):
    generator = torch.Generator().manual_seed(seed)
    means = torch.randn(K, dim, generator=generator, dtype=torch.float64)
    return means[LABELS] + torch.randn(60, dim, generator=generator, dtype=torch.float64)


def values(moments):
    return {id: value.item() for id, value in collapse_metrics(moments).items()}


@pytest.mark.parametrize(
    "change",
    [
        lambda moments: moments.update(draw(1), LABELS),
        lambda moments: moments.merge(ClassMoments.from_samples(draw(1), LABELS, K)),
        lambda moments: moments.packed.copy_(ClassMoments.from_samples(draw(1), LABELS, K).packed),
    ],
)
@pytest.mark.parametrize("inference", [False, True])
def test_metrics_are_of_the_moments_as_they_are(change, inference):
    with torch.inference_mode(inference):
        moments = ClassMoments.from_samples(draw(0), LABELS, K)
        before = values(moments)
        copied = copy.deepcopy(moments)
        change(moments)
        fresh = ClassMoments(K, DIM, scatter=True, packed=moments.packed.clone())
        assert values(moments) == values(fresh) != before
        assert values(copied) == before


def test_vci_of_a_regular_scatter_and_of_one_with_dead_units():
    h = draw(0)
    moments = ClassMoments.from_samples(h, LABELS, K)
    centers = moments.centered_means()
    within, between = moments.scatter / 60, centers.T @ centers / K
    expected = 1 - torch.trace(torch.linalg.solve(within + between, between)) / (K - 1)
    torch.testing.assert_close(vci(moments), expected, rtol=1e-12, atol=0)
    wide = torch.cat([h, torch.full((60, 3), 0.5, dtype=torch.float64)], dim=1)
    torch.testing.assert_close(vci(ClassMoments.from_samples(wide, LABELS, K)), expected, rtol=1e-12, atol=0)


def test_the_two_ways_to_what_of_a_scatter_is_not_predicted_agree(monkeypatch):
    moments = ClassMoments.from_samples(draw(0), LABELS, K)
    directions = torch.linalg.svd(moments.centered_means(), full_matrices=False).Vh[: K - 1]
    by_inverse = _unpredicted(moments, directions)
    factor = torch.linalg.cholesky_ex
    monkeypatch.setattr(torch.linalg, "cholesky_ex", lambda matrix: factor(-matrix))  # which fails
    torch.testing.assert_close(by_inverse, _unpredicted(moments, directions), rtol=1e-10, atol=1e-12)
