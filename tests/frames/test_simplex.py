from __future__ import annotations

import math

import pytest
import torch

from tightframe.errors import ArgumentError, DimensionError
from tightframe.frames import SimplexETF, is_simplex_etf, is_tight, simplex_etf
from tightframe.linalg import helmert_basis

from .frame_test_case import FrameTestCase

SIZES = [(2, 1), (2, 2), (2, 9), (3, 2), (3, 3), (5, 4), (5, 5), (5, 6), (10, 64), (101, 100), (100, 128)]


def simplex_gram(num_classes):
    eye = torch.eye(num_classes, dtype=torch.float64)
    return num_classes / (num_classes - 1) * (eye - 1 / num_classes)


class SimplexCase(FrameTestCase):
    num_classes: int
    dim: int
    orientation: str

    def make_frame(self):
        return SimplexETF(self.num_classes, self.dim, orientation=self.orientation, dtype=torch.float64)

    def expected_gram(self):
        return simplex_gram(self.num_classes)

    def test_predicates(self):
        assert is_simplex_etf(self.make_frame(), tol=1e-12)
        assert is_tight(self.make_frame(), tol=1e-12)


class TestCanonicalWide(SimplexCase):
    num_classes, dim, orientation = 5, 8, "canonical"


class TestCanonicalSquare(SimplexCase):
    num_classes, dim, orientation = 4, 4, "canonical"


class TestCanonicalTight(SimplexCase):
    num_classes, dim, orientation = 6, 5, "canonical"


class TestCanonicalPair(SimplexCase):
    num_classes, dim, orientation = 2, 1, "canonical"


class TestHaarWide(SimplexCase):
    num_classes, dim, orientation = 5, 8, "haar"


class TestHaarTight(SimplexCase):
    num_classes, dim, orientation = 6, 5, "haar"


class TestHaarPair(SimplexCase):
    num_classes, dim, orientation = 2, 1, "haar"


@pytest.mark.parametrize("orientation", ["canonical", "haar"])
@pytest.mark.parametrize(("num_classes", "dim"), SIZES)
def test_gram_over_many_sizes(num_classes, dim, orientation):
    W = simplex_etf(num_classes, dim, orientation=orientation, dtype=torch.float64)
    assert W.shape == (num_classes, dim)
    torch.testing.assert_close(W @ W.T, simplex_gram(num_classes), rtol=0, atol=1e-12)
    assert W.sum(dim=0).abs().max() < 1e-12


def test_gram_is_exact_to_the_last_bit():
    gram = SimplexETF(3, 2, orientation="haar", dtype=torch.float64).gram
    assert gram.tolist() == [[1.0, -0.5, -0.5], [-0.5, 1.0, -0.5], [-0.5, -0.5, 1.0]]


def test_canonical_wide_is_the_padded_centred_identity():
    W = simplex_etf(3, 5, orientation="canonical", dtype=torch.float64)
    off, on = -math.sqrt(1.5) / 3, math.sqrt(1.5) * 2 / 3
    wanted = [[on, off, off, 0, 0], [off, on, off, 0, 0], [off, off, on, 0, 0]]
    torch.testing.assert_close(W, torch.tensor(wanted, dtype=torch.float64), rtol=0, atol=1e-15)


def recursive_simplex(num_classes):
    """Columns are class vectors (Kasarla et al. 2022): [[1, -1/k], [0, sqrt(1 - 1/k²) P_{k-1}]]."""
    P = torch.tensor([[1.0, -1.0]], dtype=torch.float64)
    for k in range(2, num_classes):
        top = torch.full((1, k + 1), -1 / k, dtype=torch.float64)
        top[0, 0] = 1.0
        bottom = torch.cat([torch.zeros(k - 1, 1, dtype=torch.float64), math.sqrt(1 - 1 / k**2) * P], dim=1)
        P = torch.cat([top, bottom])
    return P.T


@pytest.mark.parametrize("num_classes", [2, 3, 4, 10, 100])
def test_canonical_tight_is_the_recursive_simplex(num_classes):
    W = simplex_etf(num_classes, num_classes - 1, orientation="canonical", dtype=torch.float64)
    torch.testing.assert_close(W, recursive_simplex(num_classes), rtol=0, atol=1e-14)


def test_canonical_keeps_no_matrix():
    frame = SimplexETF(50_000, 60_000, orientation="canonical", dtype=torch.float64)
    assert not frame.stored
    h = torch.arange(60_000, dtype=torch.float64)
    logits = frame.logits(h)
    mean = 49_999 / 2
    radius = math.sqrt(50_000 / 49_999)
    torch.testing.assert_close(logits[[0, -1]], torch.tensor([-mean, mean], dtype=torch.float64) * radius)
    row = frame.rows(torch.tensor([49_999]))[0]
    assert row @ h == pytest.approx(float(logits[-1]), rel=1e-12)


def test_haar_is_helmert_times_the_drawn_columns():
    W = simplex_etf(4, 6, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    R = math.sqrt(3 / 4) * W.T @ helmert_basis(4)
    torch.testing.assert_close(R.T @ R, torch.eye(3, dtype=torch.float64), rtol=0, atol=1e-13)


def test_seed_zero_is_the_default_and_seeds_differ():
    default = simplex_etf(4, 6)
    assert torch.equal(default, simplex_etf(4, 6))
    assert torch.equal(default, simplex_etf(4, 6, generator=torch.Generator().manual_seed(0)))
    assert not torch.allclose(default, simplex_etf(4, 6, generator=torch.Generator().manual_seed(1)))


def test_a_generator_advances():
    generator = torch.Generator().manual_seed(0)
    assert not torch.equal(simplex_etf(4, 6, generator=generator), simplex_etf(4, 6, generator=generator))


def test_the_draw_is_float64_then_cast_whatever_dtype_or_default():
    wanted = simplex_etf(7, 9, dtype=torch.float64)
    assert torch.equal(simplex_etf(7, 9, dtype=torch.float32), wanted.float())
    assert torch.equal(simplex_etf(7, 9, dtype=torch.bfloat16), wanted.bfloat16())
    default = torch.get_default_dtype()
    try:
        torch.set_default_dtype(torch.float64)
        assert torch.equal(simplex_etf(7, 9), wanted)
        torch.set_default_dtype(torch.float16)
        assert torch.equal(simplex_etf(7, 9, dtype=torch.float64), wanted)
        assert simplex_etf(7, 9).dtype == torch.float16
    finally:
        torch.set_default_dtype(default)


def test_default_device_decides_only_where_it_lies():
    with torch.device("meta"):
        assert simplex_etf(4, 5).device.type == "meta"
        assert torch.equal(simplex_etf(4, 5, device="cpu"), simplex_etf(4, 5, device=torch.device("cpu")))
        inside = simplex_etf(4, 5, device="cpu")
        canonical = simplex_etf(4, 3, orientation="canonical", device="cpu")
    assert torch.equal(inside, simplex_etf(4, 5))
    assert torch.equal(canonical, simplex_etf(4, 3, orientation="canonical"))


def test_haar_frames_have_no_preferred_direction():
    # For a uniform unit vector w in R^d the cosine with a fixed direction has mean 0 and variance 1/d.
    dim, draws = 32, 400
    generator = torch.Generator().manual_seed(0)
    first = torch.stack([simplex_etf(3, dim, generator=generator, dtype=torch.float64)[0] for _ in range(draws)])
    for direction in (torch.ones(dim, dtype=torch.float64) / math.sqrt(dim), torch.eye(dim, dtype=torch.float64)[0]):
        cosines = first @ direction
        assert abs(float(cosines.mean())) < 4 / math.sqrt(dim * draws)
        assert float(cosines.square().mean()) * dim == pytest.approx(1, abs=4 * math.sqrt(2 / draws))


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        *(((K, 5), ArgumentError, "num_classes must be an integer >= 2") for K in (0, 1, -3, 2.0, True)),
        ((2, 0), ArgumentError, "dim must be an integer >= 1"),
        ((5, 3), DimensionError, r"K = 5 needs dim >= K - 1 = 4, got dim = 3.*general frame"),
    ],
)
def test_sizes_that_no_simplex_has(arguments, error, message):
    with pytest.raises(error, match=message):
        simplex_etf(*arguments)
    with pytest.raises(ArgumentError, match="orientation must be one of 'canonical', 'haar', got 'random'"):
        simplex_etf(3, 3, orientation="random")
