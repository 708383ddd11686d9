from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tightframe.linalg import pair_sq_distances

from .problems import draw, law


def literal(points):
    x = points.double().numpy().astype(np.longdouble)
    return np.square(x[:, None, :] - x[None, :, :]).sum(axis=-1)


def pairwise_sq_distances(points):
    """Put the blocks together."""
    found = torch.full((len(points), len(points)), -1.0, dtype=torch.float64).fill_diagonal_(0)
    for i, j, squares in pair_sq_distances(points):
        assert bool((found[i, j] == -1).all())
        found[i, j] = squares
        found[j, i] = squares
    return found


def assert_ten_digits(points):
    found, wanted = pairwise_sq_distances(points).numpy(), literal(points)
    assert np.all(np.abs(found - wanted) <= 1e-10 * wanted)


@pytest.mark.parametrize("shape", [(1, 3), (2, 1), (7, 4), (60, 512)])
def test_against_all_differences(shape):
    assert_ten_digits(draw(*shape))


@pytest.mark.parametrize("gap", [10.0**-k for k in range(13)])
def test_a_close_pair_among_distant_points(gap):
    points = draw(20, 64)
    points[7] = points[3] + gap * draw(64, seed=1)
    assert_ten_digits(points)


@pytest.mark.parametrize("offset", [1e3, 1e6])
def test_a_common_offset(offset):
    assert_ten_digits(offset + draw(20, 16))


def test_an_outlier_far_from_all_others():
    points = draw(20, 16)
    points[0] = 1e7
    assert_ten_digits(points)


def test_more_close_pairs_than_are_handled_at_once():
    points = 1e-6 * draw(130, 8)  # 8385 pairs
    points[0] = 1.0
    assert_ten_digits(points)


@law
@given(st.integers(0, 10**6), st.integers(2, 12), st.integers(1, 9), st.integers(-9, 0))
def test_law(seed, n, d, exponent):
    points = draw(n, d, seed=seed)
    points[n // 2 :] = points[: n - n // 2] + 10.0**exponent * draw(n - n // 2, d, seed=seed + 1)
    assert_ten_digits(points)
    found = pairwise_sq_distances(points)
    assert torch.equal(found.diagonal(), torch.zeros(n, dtype=torch.float64))
    torch.testing.assert_close(found, found.T, rtol=1e-14, atol=0)
    assert bool((found >= 0).all())


def test_equal_points_lie_at_distance_zero_exactly():
    points = 1000 + draw(4, 9)
    points[2] = points[0]
    found = pairwise_sq_distances(points)
    assert found[0, 2] == 0
    assert found[2, 0] == 0
    assert int((found == 0).sum()) == 6


def test_input_is_untouched_and_nan_spreads():
    points = draw(4, 3)
    before = points.clone()
    pairwise_sq_distances(points)
    assert torch.equal(points, before)
    points[1, 1] = torch.nan
    assert bool(pairwise_sq_distances(points)[0, 1].isnan())
