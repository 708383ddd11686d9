"""What the nearest ETF is raced against finds the same: the published trust region and the published derivative."""

import math

import pytest
import torch

from tightframe.frames import nearest_simplex_etf
from tightframe.nn import NearestETFClassifier

peers = pytest.importorskip("benchmarks.nearest", reason="needs pymanopt")


def frames(d, K, delta, **options):
    """Return the ETF in closed form and that of the trust region."""
    task = peers.problem(d, K, **options)
    previous, proximal = peers.frame_of(task.previous), delta * (K - 1) / 2
    found = nearest_simplex_etf(task.means, previous=previous, proximal=proximal, gradient="none").frame
    U = peers.trust_region(peers.normalized(task.means).numpy(), task.previous.numpy(), delta)
    return found, torch.from_numpy(U), task


@pytest.mark.parametrize("delta", [1e-3, 0.3])
def test_trust_region_reaches_the_closed_form(delta):
    found, U, task = frames(12, 5, delta, apart=True)
    torch.testing.assert_close(U.T @ U, torch.eye(5, dtype=torch.float64), rtol=0, atol=1e-12)
    torch.testing.assert_close(peers.frame_of(U), found, rtol=0, atol=1e-6)
    assert (found - peers.frame_of(task.previous)).norm() > 0.01  # there was something to find


def test_objective_is_that_of_the_paper():
    d, K, delta = 6, 4, 0.25
    generator = torch.Generator().manual_seed(0)
    H, U, U0 = torch.randn(3, d, K, dtype=torch.float64, generator=generator)
    M = (torch.eye(K, dtype=torch.float64) - 1 / K) / math.sqrt(K - 1)
    expected = (H - U @ M).square().sum() + delta / 2 * (U - U0).square().sum()
    assert peers.objective(H.numpy(), U.numpy(), U0.numpy(), delta) == pytest.approx(expected.item(), rel=1e-14)


@pytest.mark.parametrize(("d", "K"), [(10, 3), (30, 12)])
def test_derivative_of_the_declarative_node_is_ours(d, K):
    ours, theirs = (call() for call in peers.backwards(d, K, torch.float64))
    assert ours.abs().max() > 0.1
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-10 * theirs.abs().max().item())


def test_both_train_free_features_alike():
    N, d, K, steps = 24, 12, 4, 4
    ours = NearestETFClassifier(d, K, proximal=1e-3 * (K - 1) / 2, dtype=torch.float64)
    losses, etfs = peers.trajectory(ours, N, d, K, steps)
    their_losses, their_etfs = peers.trajectory(peers.TrustRegionClassifier(d, K), N, d, K, steps)
    assert losses.shape == (steps,)
    torch.testing.assert_close(their_losses, losses, rtol=0, atol=1e-6)
    torch.testing.assert_close(their_etfs, etfs, rtol=0, atol=1e-4)
    assert (etfs[-1] - etfs[0]).norm() > 0.01


def test_objectives_agree():
    objective, apart = peers.agreement(12, 5)
    assert objective.met
    assert objective.ours == objective.peer
    assert float(apart.ratio) < 1e-6
