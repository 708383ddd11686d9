from __future__ import annotations

import math

import pytest
import torch

from tightframe.errors import ArgumentError, DtypeError, NonFiniteError, ShapeError
from tightframe.frames import barz_denzler_frame, frame_of_gram, is_unit_norm
from tightframe.frames.gram import _violations
from tightframe.hierarchy import Tree


def double(gram, dim=None, **options):
    return frame_of_gram(gram, dim, dtype=torch.float64, **options)


def vectors(num_classes, dim, seed=0):
    return torch.randn(num_classes, dim, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def impossible():
    """Return cosines 0.9, 0.9 and 0 of three, the first near to both others, which are orthogonal."""
    return torch.tensor([[1.0, 0.9, 0.9], [0.9, 1.0, 0.0], [0.9, 0.0, 1.0]], dtype=torch.float64)


@pytest.mark.parametrize("dim", [3, 5, 7, 20])
def test_products_of_any_vectors_from_their_rank_on(dim):
    V = vectors(7, 3)
    found = double(V @ V.T, dim)
    assert found.frame.shape == (7, dim)
    torch.testing.assert_close(found.frame @ found.frame.T, V @ V.T, rtol=0, atol=1e-12)
    torch.testing.assert_close(found.gram, V @ V.T, rtol=0, atol=1e-12)
    assert found.error < 1e-12
    assert found.violations == 0


def test_one_dimension_less_keeps_the_lengths():
    V = vectors(7, 3)
    found = double(V @ V.T, 2)
    torch.testing.assert_close(found.frame.norm(dim=1), V.norm(dim=1))
    assert found.error > 1e-3


def test_compression_finds_what_is_nearest():
    # Four orthogonal directions in the plane: the fourth powers of the cosines are least for angles of 45 degrees.
    found = double(torch.eye(4, dtype=torch.float64), 2)
    assert found.error == pytest.approx(math.sqrt(0.5), abs=1e-6)
    assert found.violations == 0
    assert double(torch.eye(2, dtype=torch.float64), 1).error == 1.0


def test_compression_works_without_gradients_and_in_float32():
    with torch.no_grad():
        found = frame_of_gram(torch.eye(5), 3)
    assert found.frame.dtype == torch.float32
    assert not found.frame.requires_grad
    assert is_unit_norm(found.frame, tol=1e-6)


def test_shrinking_is_exact():
    G = impossible()
    lowest = 1 - 0.9 * math.sqrt(2)
    found = double(G, repair="shrink")
    torch.testing.assert_close(found.gram, (G / (1 - lowest)).fill_diagonal_(1))
    assert torch.linalg.eigvalsh(found.gram)[0].abs() < 1e-12
    assert found.violations == 0


def test_clipping_is_exact():
    # The eigenvector of 1 - 0.9 √2 is (√2, -1, -1) / 2; without it the diagonal is scaled back to 1.
    G = impossible()
    v = torch.tensor([math.sqrt(2), -1, -1], dtype=torch.float64) / 2
    raised = G - (1 - 0.9 * math.sqrt(2)) * torch.outer(v, v)
    scale = raised.diagonal().rsqrt()
    torch.testing.assert_close(double(G, repair="clip").gram, raised * scale * scale.unsqueeze(1))


def test_nearest_is_higham_s_example():
    # The tridiagonal matrix of ones and its nearest correlation matrix, to the four digits of the paper.
    G = torch.tensor([[1.0, 1.0, 0.0], [1.0, 1.0, 1.0], [0.0, 1.0, 1.0]], dtype=torch.float64)
    found = double(G, repair="nearest")
    expected = [[1.0, 0.7607, 0.1573], [0.7607, 1.0, 0.7607], [0.1573, 0.7607, 1.0]]
    torch.testing.assert_close(found.gram, torch.tensor(expected, dtype=torch.float64), rtol=0, atol=6e-5)


@pytest.mark.parametrize("repair", ["shrink", "clip", "nearest"])
def test_repairs_are_correlations_that_a_frame_has(repair):
    draw = torch.rand(30, 30, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    G = ((draw + draw.T) / 2).fill_diagonal_(1)
    found = double(G, repair=repair)
    assert torch.linalg.eigvalsh(found.gram)[0] > -1e-12
    assert is_unit_norm(found.frame, tol=1e-12)
    torch.testing.assert_close(found.frame @ found.frame.T, found.gram, rtol=0, atol=1e-12)
    assert found.error == pytest.approx((found.gram - G).abs().max().item(), abs=1e-12)


def test_nearest_is_nearest_of_the_three():
    draw = torch.rand(30, 30, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    G = ((draw + draw.T) / 2).fill_diagonal_(1)
    distance = [(double(G, repair=repair).gram - G).norm().item() for repair in ("nearest", "clip", "shrink")]
    assert distance == sorted(distance)
    assert distance[0] < distance[1]


def test_rounding_needs_no_repair():
    V = vectors(6, 2).float()
    found = double(V @ V.T)
    assert found.error < 1e-6


def test_order_counts_on_a_sample_agree_with_all_of_them():
    wanted = vectors(300, 300)
    wanted = wanted + wanted.T
    reached = wanted + vectors(300, 300, seed=1)
    share = _violations(wanted, reached)
    few = sum(_violations(wanted[a : a + 100, a : a + 100], reached[a : a + 100, a : a + 100]) for a in (0, 100, 200))
    assert share == pytest.approx(few / 3, abs=0.01)
    assert _violations(wanted, wanted) == 0
    assert _violations(wanted, -wanted) == 1


def test_negative_eigenvalue_is_named():
    with pytest.raises(ArgumentError, match=r"gram must give the cosines.*λ_min = -0\.2728.*'clip' or 'nearest'"):
        frame_of_gram(impossible())


@pytest.mark.parametrize(
    ("gram", "error", "message"),
    [
        ([[1.0]], DtypeError, "got list"),
        (torch.eye(3).long(), DtypeError, "int64"),
        (torch.ones(2, 3), ShapeError, r"\(2, 3\)"),
        (torch.ones(1, 1), ShapeError, "K >= 2"),
        (torch.full((2, 2), math.nan), NonFiniteError, "gram"),
        (torch.tensor([[1.0, 0.0], [0.0, 0.0]]), ArgumentError, "for class 1"),
        (torch.tensor([[1.0, 0.5], [0.4, 1.0]]), ArgumentError, "classes 0 and 1"),
    ],
)
def test_wrong_gram(gram, error, message):
    with pytest.raises(error, match=message):
        frame_of_gram(gram)


def test_wrong_options():
    with pytest.raises(ArgumentError, match="repair must be one of"):
        frame_of_gram(torch.eye(3), repair="mend")
    with pytest.raises(ArgumentError, match="dim must be an integer"):
        frame_of_gram(torch.eye(3), 1.5)


def test_barz_denzler_cosines_are_one_minus_the_relative_height():
    # Unequal depth, the published tiered-ImageNet case: by height A and B are at 1/3 of the largest distance, not 2/3.
    tree = Tree.from_nested({"R": {"E": ["A", "B"], "X": {"Y": {"Z": ["C", "D"]}}}})
    heights = tree.distances("height")
    for dim in (None, 3, 9):
        found = barz_denzler_frame(heights, dim, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
        if dim != 3:
            torch.testing.assert_close(found.frame @ found.frame.T, 1 - heights / 4, rtol=0, atol=1e-14)
    assert found.gram[0, 1].item() == 0.75
    wanted = frame_of_gram(1 - heights / 4, 9, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    assert torch.equal(found.frame, wanted.frame)
    assert math.isnan(found.gamma)
    assert "gamma" not in repr(found)
    assert barz_denzler_frame(heights.float()).frame.dtype == torch.float32
    crooked = torch.tensor([[0.0, 1.0, 9.0], [1.0, 0.0, 1.0], [9.0, 1.0, 0.0]])
    assert barz_denzler_frame(crooked, repair="shrink").frame.isfinite().all()


@pytest.mark.parametrize(
    ("heights", "error", "message"),
    [
        (torch.zeros(3, 3), ArgumentError, "heights must be positive"),
        (torch.zeros(3, 3).long(), DtypeError, "heights must be a floating-point tensor"),
        (torch.zeros(1, 1), ShapeError, r"heights must have shape .* with K >= 2"),
        (torch.tensor([[0.0, 1.0, 9.0], [1.0, 0.0, 1.0], [9.0, 1.0, 0.0]]), ArgumentError, "λ_min"),
    ],
)
def test_wrong_heights(heights, error, message):
    with pytest.raises(error, match=message):
        barz_denzler_frame(heights)
