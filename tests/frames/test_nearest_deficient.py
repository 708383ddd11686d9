"""Means that do not determine every direction of their nearest simplex ETF."""

from __future__ import annotations

import math

import pytest
import torch

from tightframe.frames import nearest_simplex_etf

from ..problems import draw, rotation, simplex
from .nearest_literal import means_of, objective, random_frames, simplex_gram, zero_sum


def assert_simplex(frame):
    torch.testing.assert_close(frame @ frame.mT, simplex_gram(frame.shape[-2]), rtol=0, atol=1e-12)


def whole(*shape, seed=0):
    """Small integers, exact in every dtype."""
    return (4 * draw(*shape, seed=seed)).round()


def duplicated(K=5, d=7, seed=0):
    """The last class is the second."""
    means = whole(K, d, seed=seed)
    means[-1] = means[1]
    return means


def unseen(K=5, d=7, seed=0):
    """Two classes lie at the mean of the others, as a tracker leaves those without samples."""
    means = whole(K, d, seed=seed)
    means[:2] = 0
    means[2] = -means[3:].sum(dim=0)
    return means


def merged(K=6, d=9, seed=0):
    """All classes at two places."""
    return whole(2, d, seed=seed)[torch.arange(K) % 2]


CASES = {"duplicated": (duplicated(), 3), "unseen": (unseen(), 2), "merged": (merged(), 1)}


@pytest.mark.parametrize(("means", "rank"), CASES.values(), ids=CASES)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_rank_is_reported_and_the_frame_is_whole_and_optimal(means, rank, dtype):
    nearest = nearest_simplex_etf(means.to(dtype))
    assert nearest.rank.item() == rank
    assert nearest.smallest_singular_value.item() < 1e-14
    K, d = means.shape
    frame = nearest.frame.double()
    atol = 1e-12 if dtype == torch.float64 else 1e-6
    torch.testing.assert_close(frame @ frame.T, simplex_gram(K), rtol=0, atol=atol)
    assert objective(means, random_frames(1000, K, d)).min() >= objective(means, frame) - atol
    singular = torch.linalg.svdvals(means - means.mean(dim=0))
    cosine = (singular.sum() / singular.norm()).item() / math.sqrt(K - 1)
    assert nearest.alignment.item() == pytest.approx(cosine, abs=atol)


@pytest.mark.parametrize("offset", [0.0, 10.0, 1e3, 1e6])
@pytest.mark.parametrize("d", [4, 8])
def test_duplicates_are_seen_at_any_offset(offset, d):
    for seed in range(20):
        means = draw(5, d, seed=seed) + offset * draw(d, seed=seed + 1)
        means[4] = means[1]
        assert nearest_simplex_etf(means).rank.item() == 3


def test_rounding_in_the_dtype_of_the_means_is_no_direction():
    means = draw(5, 7)
    for dtype, other, rank in ((torch.float32, torch.float32, 3), (torch.float32, torch.float64, 4)):
        rounded = means.to(dtype)
        rounded[4] = rounded[1] * (1 + torch.finfo(dtype).eps)
        assert nearest_simplex_etf(rounded.to(other)).rank.item() == rank


@pytest.mark.parametrize("K", [2, 3, 4, 7, 10])
@pytest.mark.parametrize("value", [0.0, 0.1, -1e5 / 3])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_all_equal_is_no_direction_at_all(K, value, dtype):
    means = torch.full((K, 11), value, dtype=dtype)
    previous = simplex(K, 11).to(dtype)
    nearest = nearest_simplex_etf(means, previous=previous)
    torch.testing.assert_close(nearest.frame, previous, rtol=0, atol=1e-13 if dtype == torch.float64 else 1e-7)
    assert math.isnan(nearest.alignment.item())
    assert nearest.rank.item() == 0
    assert nearest.smallest_singular_value.item() == 0


def test_all_equal_with_a_pull_keeps_previous_and_carries_no_gradient():
    means, previous = torch.full((4, 6), 0.5, dtype=torch.float64, requires_grad=True), simplex(4, 6)
    nearest = nearest_simplex_etf(means, previous=previous, proximal=0.3)
    torch.testing.assert_close(nearest.frame, previous, rtol=0, atol=1e-14)
    assert math.isnan(nearest.alignment.item())
    (nearest.frame * draw(4, 6)).sum().backward()
    assert torch.equal(means.grad, torch.zeros(4, 6, dtype=torch.float64))


def planes(count=3600):
    """Every orthogonal map of the plane, on a grid of angles, with and without reflection."""
    angle = torch.arange(count, dtype=torch.float64) * (2 * math.pi / count)
    turn = torch.stack([angle.cos(), -angle.sin(), angle.sin(), angle.cos()], dim=-1).reshape(-1, 2, 2)
    return torch.cat([turn, turn @ torch.diag(torch.tensor([1.0, -1.0], dtype=torch.float64))])


@pytest.mark.parametrize("seed", range(4))
def test_previous_decides_what_is_free_brute_force(seed):
    # d = K - 1 and two free directions: the optimal frames are one O(2), of which the grid sees all.
    means, previous = unseen(5, 4, seed), simplex(5, 4, seed=seed + 20)
    found = nearest_simplex_etf(means, previous=previous).frame
    B = zero_sum(5)
    Q, _, R = torch.linalg.svd(B.T @ means)
    completions = Q[:, :2] @ R[:2] + Q[:, 2:] @ planes() @ R[2:]
    frames = math.sqrt(5 / 4) * B @ completions
    optimal = objective(means, frames)
    torch.testing.assert_close(optimal, objective(means, found).expand_as(optimal), rtol=0, atol=1e-13)
    distances = (frames - previous).norm(dim=(-2, -1))
    assert (frames[distances.argmin()] - found).norm() < 5e-3
    assert (found - previous).norm() <= distances.min() + 1e-12


@pytest.mark.parametrize(("means", "rank"), CASES.values(), ids=CASES)
def test_previous_decides_what_is_free_in_more_dimensions(means, rank):
    K, d = means.shape
    previous = simplex(K, d, seed=20)
    found = nearest_simplex_etf(means, previous=previous).frame
    assert_simplex(found)
    B = zero_sum(K)
    Q, _, R = torch.linalg.svd(B.T @ means)
    known, outside = Q[:, :rank] @ R[:rank], R[rank:]
    free = Q[:, rank:] @ torch.linalg.qr(draw(2000, d - rank, K - 1 - rank, seed=1))[0].mT @ outside
    others = math.sqrt(K / (K - 1)) * B @ (known + free)
    assert (found - previous).norm() < (others - previous).norm(dim=(-2, -1)).min()
    # And exactly: the free part is the polar factor of previous, seen between the free directions.
    P, _, S = torch.linalg.svd(Q[:, rank:].T @ B.T @ previous @ outside.T, full_matrices=False)
    wanted = math.sqrt(K / (K - 1)) * B @ (known + Q[:, rank:] @ P @ S @ outside)
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-12)


def test_a_class_without_samples_keeps_its_side_of_previous():
    # Means of three of four classes that are an ETF of their own, the last at their centre: only its sign is open.
    three = torch.cat([simplex(3, 2), torch.zeros(3, 1, dtype=torch.float64)], dim=1)
    means = torch.cat([three, torch.zeros(1, 3, dtype=torch.float64)])
    for side in (1.0, -1.0):
        previous = simplex(4, 3)
        previous = previous @ rotation_to(previous[3], torch.tensor([0.0, 0.0, side], dtype=torch.float64))
        frame = nearest_simplex_etf(means, previous=previous).frame
        torch.testing.assert_close(frame[3], previous[3], rtol=0, atol=1e-13)
        wanted = torch.cat([math.sqrt(8) / 3 * three[:, :2], torch.full((3, 1), -side / 3, dtype=torch.float64)], dim=1)
        torch.testing.assert_close(frame[:3], wanted, rtol=0, atol=1e-13)


def rotation_to(source, target):
    """The reflection that maps one unit vector of the rows to another."""
    difference = source - target
    eye = torch.eye(len(source), dtype=torch.float64)
    return (
        eye if difference.norm() < 1e-12 else eye - 2 * torch.outer(difference, difference) / difference.square().sum()
    )


@pytest.mark.parametrize("size", [1e-5, 3e-6, 1.1e-6, 5e-7, 1e-11, 0.0])
def test_a_previous_that_hardly_shows_a_free_direction_leaves_a_whole_frame(size):
    # Of three directions the means know the first; previous shows the second, and the third by `size` alone.
    for seed in range(10):
        rows, turn, B = rotation(6, seed), rotation(3, seed + 1), zero_sum(4)
        tilted = size * rows[2] + math.sqrt(1 - size**2) * rows[0]
        previous = math.sqrt(4 / 3) * B @ turn @ torch.stack([rows[3], rows[1], tilted])
        nearest = nearest_simplex_etf(B @ torch.outer(turn[:, 0], rows[0]), previous=previous)
        assert nearest.rank.item() == 1
        assert_simplex(nearest.frame)
        V = math.sqrt(3 / 4) * turn.T @ B.T @ nearest.frame
        torch.testing.assert_close(V[:2], rows[:2], rtol=0, atol=1e-9)
        if size > 1e-6:
            torch.testing.assert_close(V[2], rows[2], rtol=0, atol=1e-9)


@pytest.mark.parametrize("previous", [None, torch.zeros(5, 7), duplicated()])
@pytest.mark.parametrize("means", [duplicated(), torch.zeros(5, 7, dtype=torch.float64)])
def test_what_previous_leaves_open_is_a_fixed_draw(means, previous):
    wanted = nearest_simplex_etf(means, previous=previous).frame
    assert_simplex(wanted)
    torch.manual_seed(123)
    state = torch.get_rng_state()
    assert torch.equal(nearest_simplex_etf(means, previous=previous).frame, wanted)
    assert torch.equal(torch.get_rng_state(), state)
    with torch.device("meta"):
        assert torch.equal(nearest_simplex_etf(means, previous=previous).frame, wanted)


def test_a_pull_determines_what_the_means_leave_open():
    means, previous = duplicated(), simplex(5, 7, seed=20)
    for proximal in (1e-3, 0.5):
        frame = nearest_simplex_etf(means, previous=previous, proximal=proximal).frame
        assert_simplex(frame)
        delta = proximal / 2
        best = objective(means, frame, previous, delta)
        assert objective(means, random_frames(1000, 5, 7), previous, delta).min() > best
    free = nearest_simplex_etf(means, previous=previous).frame
    gap = [(nearest_simplex_etf(means, previous=previous, proximal=p).frame - free).norm().item() for p in (1e-4, 1e-6)]
    assert gap[0] < 1e-3
    assert gap[1] < 1e-5


@pytest.mark.parametrize("pull", [0.5, 1.0])
def test_a_pull_may_also_cancel_a_direction(pull):
    # A mode of the means opposite to previous and as long as the pull: two minimisers, and neither is preferred.
    turn, rows, B = rotation(3), rotation(6, 1), zero_sum(4)
    previous = math.sqrt(4 / 3) * B @ turn @ rows[:3]
    for off in (0.0, 1e-12, 1e-9, 1e-6):
        last = pull * (1 + off)
        rest = math.sqrt((3 - last**2) / 2)
        means = B @ (turn * torch.tensor([rest, rest, -last], dtype=torch.float64)) @ rows[:3]
        means.requires_grad_()
        nearest = nearest_simplex_etf(means, previous=previous, proximal=pull)
        assert_simplex(nearest.frame.detach())
        assert nearest.smallest_singular_value.item() == pytest.approx(pull * off, abs=1e-14)
        assert nearest.rank.item() == (2 if off == 0 else 3)
        (nearest.frame * draw(4, 6, seed=3)).sum().backward()
        assert torch.isfinite(means.grad).all()
        assert means.grad.norm() < 100 / (pull * off or 1.0)


# The gradient of what is known ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(("means", "rank"), CASES.values(), ids=CASES)
def test_open_directions_carry_no_gradient_and_the_rest_is_bounded(means, rank):
    K, d = means.shape
    x = means.clone().requires_grad_()
    grad = draw(K, d, seed=3)
    (g,) = torch.autograd.grad((nearest_simplex_etf(x, previous=simplex(K, d)).frame * grad).sum(), x)
    Q, s, R = torch.linalg.svd(zero_sum(K).T @ means)
    inside = Q.T @ zero_sum(K).T @ g
    assert (inside[rank:] @ R[rank:].T).abs().max() < 1e-12  # what would open a new direction
    assert inside[:rank].norm() > 0.1
    assert g.norm() < 4 * grad.norm() / s[rank - 1]


@pytest.mark.parametrize(("rank", "closed"), [(3, 1), (1, 1), (2, 3)])
@pytest.mark.parametrize("extra", [0, 3])
def test_gradient_is_exact_along_changes_that_open_no_direction(rank, closed, extra):
    # At previous = frame the completion moves by no more than it must, which is what the derivative says.
    K, d = rank + closed + 1, rank + closed + extra
    means = means_of([1.0, 0.8, 0.5][:rank] + [0.0] * closed, d, seed=rank)
    frame = nearest_simplex_etf(means).frame
    x, grad = means.clone().requires_grad_(), draw(K, d, seed=3)
    (g,) = torch.autograd.grad((nearest_simplex_etf(x, previous=frame).frame * grad).sum(), x)
    left, right, h = zero_sum(K) @ draw(K - 1, K, seed=4), draw(d, d, seed=5), 1e-5
    exp = torch.linalg.matrix_exp
    moved = (exp(step * left) @ means @ exp(step * right) for step in (h, -h))
    ahead, behind = (nearest_simplex_etf(m, previous=frame) for m in moved)
    assert ahead.rank.item() == behind.rank.item() == rank
    slope = ((ahead.frame - behind.frame) * grad).sum() / (2 * h)
    wanted = (g * (left @ means + means @ right)).sum()
    assert wanted.item() == pytest.approx(slope.item(), rel=1e-6, abs=1e-6)


def test_all_equal_carries_no_gradient():
    x = torch.full((3, 4), 0.1, dtype=torch.float64, requires_grad=True)
    (nearest_simplex_etf(x, previous=simplex(3, 4)).frame * draw(3, 4)).sum().backward()
    assert torch.equal(x.grad, torch.zeros(3, 4, dtype=torch.float64))


def test_a_deficient_element_leaves_the_gradients_of_its_batch():
    means, grad = torch.stack([draw(5, 7, seed=8), duplicated(), draw(5, 7, seed=9)]), draw(5, 7, seed=3)
    x = means.clone().requires_grad_()
    (g,) = torch.autograd.grad((nearest_simplex_etf(x).frame * grad).sum(), x)
    for i in (0, 2):
        y = means[i].clone().requires_grad_()
        (alone,) = torch.autograd.grad((nearest_simplex_etf(y).frame * grad).sum(), y)
        torch.testing.assert_close(g[i], alone, rtol=0, atol=1e-10)
