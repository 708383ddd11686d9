from __future__ import annotations

import math

import pytest
import torch

from tightframe.errors import ArgumentError, DtypeError, ShapeError
from tightframe.frames import (
    MatrixFrame,
    coherence,
    is_equiangular,
    is_simplex_etf,
    is_tight,
    is_unit_norm,
    simplex_etf,
    welch_bound,
)

from .frame_test_case import FrameTestCase

OCTAHEDRON = torch.cat([torch.eye(3, dtype=torch.float64), -torch.eye(3, dtype=torch.float64)])


class TestMatrixFrameOfUnequalRows(FrameTestCase):
    def make_frame(self):
        return MatrixFrame(torch.tensor([[3.0, 4.0], [0.0, 2.0], [1.0, -1.0]], dtype=torch.float64))

    def expected_gram(self):
        return torch.tensor([[25.0, 8.0, -1.0], [8.0, 4.0, -2.0], [-1.0, -2.0, 2.0]], dtype=torch.float64)


class TestMatrixFrameOfMoreClassesThanDimensions(FrameTestCase):
    def make_frame(self):
        return MatrixFrame(OCTAHEDRON)

    def expected_gram(self):
        eye = torch.eye(3, dtype=torch.float64)
        return torch.cat([torch.cat([eye, -eye], dim=1), torch.cat([-eye, eye], dim=1)])


def test_gradients_flow_into_the_matrix():
    matrix = torch.randn(3, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).requires_grad_()
    MatrixFrame(matrix).rows(torch.tensor([1, 1])).sum().backward()
    assert matrix.grad.tolist() == [[0.0, 0.0], [2.0, 2.0], [0.0, 0.0]]


@pytest.mark.parametrize("matrix", [torch.zeros(2, 2, dtype=torch.int64), [[1.0]]])
def test_matrix_must_be_floating_point(matrix):
    with pytest.raises(DtypeError, match="matrix must be a floating-point tensor"):
        MatrixFrame(matrix)


@pytest.mark.parametrize("shape", [(3,), (1, 2, 3), (0, 3), (3, 0)])
def test_matrix_must_be_two_dimensional_and_not_empty(shape):
    with pytest.raises(ShapeError, match="matrix must have shape"):
        MatrixFrame(torch.zeros(shape))


def test_unit_norm():
    assert is_unit_norm(OCTAHEDRON)
    assert is_unit_norm(torch.tensor([[1.0 + 1e-3]]), tol=1e-2)
    assert is_unit_norm(torch.tensor([[1.0], [2.0]]), explain=True) == (
        False,
        "row 1 has length 2, off 1 by 1 > tol = 1e-05",
    )


def test_tight():
    verdict, reason = is_tight(OCTAHEDRON, tol=1e-14, explain=True)
    assert verdict
    assert "off 2 by" in reason
    # Tight on a span smaller than the space, for fewer and for more classes than dimensions.
    assert is_tight(torch.eye(3)[:2])
    assert is_tight(torch.tensor([[1.0, 0.0], [-1.0, 0.0], [2.0, 0.0]]))
    assert is_tight(3.0 * OCTAHEDRON)
    assert not is_tight(torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.0, 1.0]]))
    assert is_tight(torch.zeros(2, 3), explain=True) == (False, "every row is zero")


def test_tight_deviation_is_the_documented_number():
    # S = diag(4, 1): c = 17/5, the deviation ‖S² − cS‖ / (c ‖S‖) with S² − cS = diag(12/5, -12/5).
    deviation = math.sqrt(2) * (12 / 5) / (17 / 5 * math.sqrt(17))
    matrix = torch.tensor([[2.0, 0.0], [0.0, 1.0]])
    assert is_tight(matrix, tol=deviation + 1e-6)
    assert not is_tight(matrix, tol=deviation - 1e-6)


def test_equiangular():
    assert is_equiangular(torch.tensor([[2.0, 0.0], [0.0, 3.0]]))
    assert is_equiangular(torch.tensor([[2.0, 0.0]]))
    assert not is_equiangular(OCTAHEDRON)
    assert not is_equiangular(torch.tensor([[1.0, 0.0], [0.0, 0.0]]))


def test_simplex():
    assert is_simplex_etf(simplex_etf(5, 7, dtype=torch.float64), tol=1e-14)
    assert is_simplex_etf(simplex_etf(100, 128, dtype=torch.float32))
    assert not is_simplex_etf(2 * simplex_etf(5, 7))
    assert not is_simplex_etf(torch.eye(3))
    assert not is_simplex_etf(OCTAHEDRON)
    assert is_simplex_etf(torch.tensor([[1.0]]), explain=True) == (False, "a simplex needs K >= 2 classes, got 1")
    assert "row 0 has length 2" in is_simplex_etf(2 * torch.eye(2), explain=True)[1]


def test_predicates_see_nan():
    broken = torch.tensor([[1.0, 0.0], [float("nan"), 0.0]])
    for predicate in (is_unit_norm, is_tight, is_equiangular, is_simplex_etf):
        assert predicate(broken) is False


def test_coherence():
    assert coherence(OCTAHEDRON) == 1.0
    assert coherence(OCTAHEDRON, signed=True) == 0.0
    assert coherence(MatrixFrame(torch.tensor([[1.0, 0.0], [3.0, 3.0]]))) == pytest.approx(math.sqrt(0.5), abs=1e-15)
    assert coherence(simplex_etf(5, 4, dtype=torch.float64)) == pytest.approx(0.25, abs=1e-14)
    with pytest.raises(ArgumentError, match="K >= 2"):
        coherence(torch.ones(1, 2))


def test_welch_bound():
    assert welch_bound(6, 3) == pytest.approx(1 / math.sqrt(5), abs=1e-15)
    assert welch_bound(3, 3) == welch_bound(1, 1) == welch_bound(2, 5) == 0.0
    for num_classes in (2, 5, 40):
        assert welch_bound(num_classes, num_classes - 1) == pytest.approx(1 / (num_classes - 1), abs=1e-15)
    with pytest.raises(ArgumentError, match="num_classes"):
        welch_bound(0, 3)
    with pytest.raises(ArgumentError, match="dim"):
        welch_bound(3, 0)
