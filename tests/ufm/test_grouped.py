"""Merged classes: the same fit, slope, curvature and norm as without merging."""

import pytest
import torch
import torch.nn.functional as F

from tightframe.ufm import CrossEntropyUFM, LayerPeeled, MeanSquaredUFM
from tightframe.ufm.grouped import Grouped, Point

PROBLEMS = [
    CrossEntropyUFM((5, 2, 2, 5, 5, 1), 6, 0.1, 0.1, None, 0.0),
    CrossEntropyUFM((5, 2, 2, 5), 6, 0.1, 0.1, (0.1, 0.2, 0.3, 0.1)),
    MeanSquaredUFM((3, 3, 3, 1), 4, 0.1, 0.1, None, 0.1),
    LayerPeeled((3, 3, 3), 4, 1.0, 1.0),
]


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def fit(problem, logits):
    """Return the fit of the logits of all classes."""
    labels = torch.arange(problem.num_classes)
    if isinstance(problem, MeanSquaredUFM):
        losses = (logits - torch.eye(len(labels)).double()).square().sum(dim=1) / 2
    else:
        losses = F.cross_entropy(logits, labels, reduction="none")
    return problem.class_weights @ losses


def point_of(grouped, seed):
    packed = draw(len(grouped.sizes), len(grouped.sizes) + 2, seed=seed)
    packed[:, -2] = packed[:, -2].abs() * (grouped.sizes > 1)
    return Point(packed)


@pytest.mark.parametrize("problem", PROBLEMS)
def test_fit_norm_and_logits_are_those_of_all_classes(problem):
    grouped = Grouped(problem)
    assert grouped.sizes.sum() == problem.num_classes > len(grouped.sizes)
    point = point_of(grouped, 1)
    Z, bias = grouped.unfold(point)
    loss, _ = grouped.shares(grouped.logits(point))
    assert loss == pytest.approx(fit(problem, Z + bias).item(), rel=1e-13)
    Y = problem.prices.sqrt().unsqueeze(1) * Z
    norm = torch.linalg.matrix_norm(point.Y, "nuc") + (grouped.sizes - 1) @ point.alpha
    assert norm.item() == pytest.approx(torch.linalg.matrix_norm(Y, "nuc").item(), rel=1e-13)
    torch.testing.assert_close(grouped.fold(Z, bias).packed, point.packed, rtol=0, atol=1e-13)


@pytest.mark.parametrize("problem", PROBLEMS)
def test_folding_is_the_mean_over_permutations(problem):
    grouped = Grouped(problem)
    Z, mean = draw(problem.num_classes, problem.num_classes, seed=2), 0
    swaps = [torch.arange(problem.num_classes)]
    for group in range(len(grouped.sizes)):
        members = (grouped.group == group).nonzero().flatten()
        shifted = []
        for swap in swaps:
            for first in range(len(members)):
                for turned in {0, 1} if len(members) > 2 else {0}:
                    order = members.roll(first)
                    moved = swap.clone()
                    moved[members] = swap[order.flip(0) if turned else order]
                    shifted.append(moved)
        swaps = shifted
    for swap in swaps:  # of up to three classes these are all permutations
        mean = mean + Z[swap][:, swap] / len(swaps)
    torch.testing.assert_close(grouped.unfold(grouped.fold(Z))[0], mean, rtol=0, atol=1e-13)


@pytest.mark.parametrize("problem", PROBLEMS)
def test_slope_and_curvature_are_those_of_autograd(problem):
    grouped, scale = Grouped(problem), torch.ones(())
    point, move = point_of(grouped, 3), point_of(grouped, 4)

    def loss(packed):
        Z, bias = grouped.unfold(Point(packed))
        return fit(problem, Z + bias) * scale

    _, shares = grouped.shares(grouped.logits(point))
    slope = grouped.slope(shares).packed
    wanted = torch.autograd.functional.jacobian(loss, point.packed)
    active = F.pad((grouped.sizes > 1).double().unsqueeze(1), (0, 1), value=1.0)
    wanted[:, -2:] *= active
    slope[:, -2:] *= active
    torch.testing.assert_close(slope, wanted, rtol=0, atol=1e-12)
    bent = grouped.curved(shares, move).packed
    _, bent_wanted = torch.autograd.functional.hvp(loss, point.packed, move.packed)
    bent[:, -2:] *= active
    bent_wanted[:, -2:] *= active
    torch.testing.assert_close(bent, bent_wanted, rtol=0, atol=1e-12)


def test_curvature_keeps_its_digits_where_a_class_is_almost_certain():
    grouped = Grouped(CrossEntropyUFM((1, 2), 2, 0.1, 0.1))
    logits = torch.tensor([[0.0, 0.0, 40.0], [0.0, 0.0, 0.0]], dtype=torch.float64)
    _, shares = grouped.shares(logits)
    move = torch.tensor([[0.0, 1.0, 0.0], [0.0, 0.0, 0.0]], dtype=torch.float64)
    bent = grouped.criterion.curved(grouped.rows, shares, move)
    q = torch.tensor(40.0, dtype=torch.float64).neg().exp()
    torch.testing.assert_close(bent[0], q / 3 * torch.tensor([0.0, 1.0, -1.0]).double(), rtol=1e-14, atol=0)
