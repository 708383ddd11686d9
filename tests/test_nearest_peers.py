"""What the nearest ETF is raced against finds the same: the published trust region and the published derivative."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from tightframe.frames import nearest_simplex_etf
from tightframe.nn import ClassMeanTracker, NearestETFClassifier
from tightframe.training import AGD, FreeFeatures

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


class TrustRegionClassifier:
    """NearestETFClassifier, gradient "none", as far as training goes, with the published solve in it."""

    def __init__(self, dim, num_classes):
        self.tracker = ClassMeanTracker(num_classes, dim)
        self.U = None

    def __call__(self, features, labels):
        prepared = 5 * F.normalize(features, dim=-1)
        means, center = self.tracker(prepared.detach(), labels)
        H = peers.normalized(means).numpy()
        if self.U is None:  # the published first step: a solve of its own, then one that is held to it
            self.U = peers.trust_region(H, np.eye(*H.shape), delta=0.0)
        self.U = peers.trust_region(H, self.U)
        self.weight = peers.frame_of(torch.from_numpy(self.U))
        return F.linear(prepared, self.weight, -self.weight @ center)


def trajectory(classifier, N, d, K, steps):
    """Train free features in full batches; return the loss and the ETF of every step."""
    torch.manual_seed(0)
    features = FreeFeatures(N, d).double()
    optimizer = AGD(features.parameters(), gain=10.0)
    labels = torch.arange(N) % K
    losses, frames = [], []
    for _ in range(steps):
        loss = F.cross_entropy(classifier(features.weight, labels), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.detach())
        frames.append(classifier.weight)
    return torch.stack(losses), torch.stack(frames)


def test_both_train_free_features_alike():
    N, d, K, steps = 24, 12, 4, 4
    ours = NearestETFClassifier(d, K, proximal=1e-3 * (K - 1) / 2, dtype=torch.float64)
    losses, etfs = trajectory(ours, N, d, K, steps)
    their_losses, their_etfs = trajectory(TrustRegionClassifier(d, K), N, d, K, steps)
    assert losses.shape == (steps,)
    torch.testing.assert_close(their_losses, losses, rtol=0, atol=1e-6)
    torch.testing.assert_close(their_etfs, etfs, rtol=0, atol=1e-4)
    assert (etfs[-1] - etfs[0]).norm() > 0.01


def test_objectives_agree():
    task = peers.problem(12, 5, apart=True)
    H, start = peers.normalized(task.means).numpy(), task.previous.numpy()
    theirs = peers.trust_region(H, start)
    ours = peers.orthonormal(task.solve(), torch.eye(12, dtype=torch.float64)[-1]).numpy()
    values = [peers.objective(H, side, start) for side in (ours, theirs)]
    assert abs(values[0] - values[1]) < 1e-10
