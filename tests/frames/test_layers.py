from __future__ import annotations

import math
from functools import partial
from types import SimpleNamespace

import pytest
import torch

from tightframe.errors import ArgumentError, DeviceError, DimensionError, DtypeError, NonFiniteError, ShapeError
from tightframe.frames import control_weight, is_simplex_etf, nearest_simplex_weight, simplex_etf, simplex_weight
from tightframe.frames.layers import canonical_product, num_vertices
from tightframe.linalg import haar_orthonormal

SHAPES = [(2, 2), (3, 2), (2, 3), (5, 5), (6, 4), (4, 6), (16, 16), (12, 7), (7, 12), (13, 5), (5, 48)]
float64 = torch.float64


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def draw(*shape, seed=7):
    return torch.randn(*shape, dtype=float64, generator=generator(seed))


def centering(k):
    return math.sqrt(k / (k - 1)) * (torch.eye(k, dtype=float64) - 1 / k)


def vertices(weight):
    return weight if weight.shape[0] < weight.shape[1] else weight.T


CONSTRUCTIONS = {
    "haar": lambda out, inside: simplex_weight(out, inside, dtype=float64),
    "canonical": lambda out, inside: simplex_weight(out, inside, kind="canonical", dtype=float64),
    "aligned": lambda out, inside: nearest_simplex_weight(draw(out, inside), gain=1.0),
}


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("kind", CONSTRUCTIONS)
def test_full_width_simplexes(kind, shape):
    W = CONSTRUCTIONS[kind](*shape)
    k = min(shape)
    assert W.shape == shape
    gram = vertices(W) @ vertices(W).T
    torch.testing.assert_close(gram, (k * torch.eye(k, dtype=float64) - 1) / (k - 1), rtol=0, atol=1e-12)
    assert vertices(W).sum(dim=0).abs().max() < 1e-12
    singular = torch.linalg.svdvals(W)
    torch.testing.assert_close(singular[:-1], torch.full((k - 1,), math.sqrt(k / (k - 1)), dtype=float64))
    assert singular[-1] < 1e-12
    assert W.square().sum().item() == pytest.approx(k, rel=1e-12)


def test_canonical_is_the_padded_centred_identity():
    for shape in ((5, 3), (3, 5), (4, 4)):
        wanted = torch.zeros(shape, dtype=float64)
        k = min(shape)
        wanted[:k, :k] = centering(k)
        torch.testing.assert_close(simplex_weight(*shape, kind="canonical", dtype=float64), wanted, rtol=0, atol=1e-15)


def test_haar_is_an_orthonormal_map_after_centring_and_before_it():
    for shape in ((6, 4), (4, 6)):
        W = simplex_weight(*shape, generator=generator(3), dtype=float64)
        V = vertices(W)
        assert torch.equal(V, simplex_etf(4, 6, generator=generator(3), dtype=float64))
        torch.testing.assert_close(math.sqrt(3 / 4) * centering(4) @ V, V, rtol=0, atol=1e-14)


@pytest.mark.parametrize("shape", [(5, 4), (5, 5), (5, 9), (2, 1)])
def test_classifier_has_all_rows_as_vertices(shape):
    W = simplex_weight(*shape, kind="classifier", generator=generator(1), dtype=float64)
    assert is_simplex_etf(W, tol=1e-12)
    assert torch.equal(W, simplex_etf(*shape, generator=generator(1), dtype=float64))


def test_class_rank():
    for shape in ((7, 9), (9, 7), (3, 4)):
        W = simplex_weight(*shape, kind="class-rank", num_classes=4, gain=2.0, dtype=float64)
        singular = torch.linalg.svdvals(W)
        torch.testing.assert_close(singular[:3], torch.full((3,), 2 * math.sqrt(4 / 3), dtype=float64))
        assert singular[3:].sum() < 1e-12
        assert W.square().sum().item() == pytest.approx(4 * 4)


def test_class_rank_is_a_simplex_between_two_uniform_maps():
    # No direction of either side is preferred: the mean square of an entry is that of the whole, all over.
    squares = torch.stack(
        [
            simplex_weight(3, 4, kind="class-rank", num_classes=3, generator=generator(s), dtype=float64) ** 2
            for s in range(600)
        ]
    )
    torch.testing.assert_close(squares.mean(dim=0), torch.full((3, 4), 3 / 12, dtype=float64), rtol=0.15, atol=0)


@pytest.mark.parametrize("kind", ["haar", "canonical", "classifier", "class-rank"])
def test_gain_multiplies_and_the_squared_norm_is_the_number_of_vertices(kind):
    options = {"kind": kind, "num_classes": 3 if kind == "class-rank" else None}
    one, three = (simplex_weight(4, 6, gain=gain, dtype=float64, **options) for gain in (1.0, 3))
    torch.testing.assert_close(three, 3 * one, rtol=1e-15, atol=0)
    assert one.square().sum().item() == pytest.approx(num_vertices(4, 6, **options))


@pytest.mark.parametrize(
    "build",
    [
        simplex_weight,
        partial(simplex_weight, kind="classifier"),
        partial(simplex_weight, kind="class-rank", num_classes=3),
        partial(control_weight, kind="orthogonal"),
        partial(control_weight, kind="gaussian"),
    ],
    ids=lambda build: build.keywords["kind"] if isinstance(build, partial) else "haar",
)
def test_draws_depend_on_the_generator_alone(build):
    state = torch.get_rng_state()
    wanted = build(4, 6, generator=generator(0), dtype=float64)
    assert torch.equal(build(4, 6, dtype=float64), wanted)
    assert torch.equal(build(4, 6), wanted.float())
    assert torch.equal(build(4, 6, dtype=torch.bfloat16), wanted.bfloat16())
    with torch.device("meta"):
        assert build(4, 6).is_meta
        assert torch.equal(build(4, 6, dtype=float64, device="cpu"), wanted)
    assert torch.equal(torch.get_rng_state(), state)
    assert not torch.allclose(build(4, 6, generator=generator(1), dtype=float64), wanted)
    one = generator()
    assert not torch.allclose(build(4, 6, generator=one), build(4, 6, generator=one))
    assert build(5, 4).is_contiguous()
    assert build(4, 6).is_contiguous()


@pytest.mark.parametrize("shape", [(4, 6), (6, 4), (5, 5), (1, 3), (3, 1)])
def test_controls_have_the_norm_of_a_simplex(shape):
    k = min(shape)
    orthogonal, gaussian = (
        control_weight(*shape, kind=kind, gain=2.0, dtype=float64) for kind in ("orthogonal", "gaussian")
    )
    assert orthogonal.shape == gaussian.shape == shape
    torch.testing.assert_close(torch.linalg.svdvals(orthogonal), torch.full((k,), 2.0, dtype=float64))
    assert gaussian.square().sum().item() == pytest.approx(4 * k, rel=1e-12)


def test_the_gaussian_control_is_gaussian():
    entries = control_weight(60, 50, kind="gaussian", dtype=float64).flatten()
    spread = entries / math.sqrt(1 / 60)
    assert spread.mean().item() == pytest.approx(0, abs=4 / math.sqrt(3000))
    assert (spread**4).mean().item() == pytest.approx(3, abs=4 * math.sqrt(96 / 3000))
    assert torch.linalg.svdvals(entries.view(60, 50)).min() < 0.2


def test_arguments_out_of_range():
    for name, sizes in (("out_features", (0, 3)), ("in_features", (3, 1.5))):
        with pytest.raises(ArgumentError, match=f"{name} must be an integer >= 1"):
            simplex_weight(*sizes)
    with pytest.raises(ArgumentError, match=r"kind must be one of .*'class-rank', 'classifier', got 'orthogonal'"):
        simplex_weight(3, 3, kind="orthogonal")
    with pytest.raises(ArgumentError, match="kind must be one of 'orthogonal', 'gaussian', got 'haar'"):
        control_weight(3, 3, kind="haar")
    for gain in (0, -1.0, math.inf, math.nan, True, "unit"):
        for build in (
            lambda g: simplex_weight(3, 3, gain=g),
            lambda g: control_weight(3, 3, kind="gaussian", gain=g),
            lambda g: nearest_simplex_weight(torch.eye(3), gain=g),
        ):
            with pytest.raises(ArgumentError, match="gain must be a finite number > 0"):
                build(gain)
    with pytest.raises(ArgumentError, match="num_classes is for kind='class-rank', got 3 with kind='haar'"):
        simplex_weight(4, 4, num_classes=3)
    for classes in (None, 2.0):
        with pytest.raises(ArgumentError, match="kind='class-rank' needs num_classes"):
            simplex_weight(4, 4, kind="class-rank", num_classes=classes)
    with pytest.raises(ArgumentError, match="num_classes must be an integer >= 2"):
        simplex_weight(4, 4, kind="class-rank", num_classes=1)
    with pytest.raises(ArgumentError, match="out_features must be an integer >= 2, got 1"):
        simplex_weight(1, 4, kind="classifier")
    elsewhere = SimpleNamespace(device=torch.device("cuda"))
    for build in (simplex_weight, partial(control_weight, kind="gaussian"), partial(control_weight, kind="orthogonal")):
        with pytest.raises(DeviceError, match="generator must be on the CPU"):
            build(4, 4, generator=elsewhere)


@pytest.mark.parametrize("shape", [(1, 4), (4, 1)])
@pytest.mark.parametrize("kind", ["haar", "canonical"])
def test_one_vertex_is_no_simplex(kind, shape):
    with pytest.raises(DimensionError, match="needs out_features, in_features >= 2"):
        simplex_weight(*shape, kind=kind)


def test_too_few_dimensions():
    with pytest.raises(DimensionError, match=r"out_features = 5 vertices needs 4 dimensions.*in_features = 3"):
        simplex_weight(5, 3, kind="classifier")
    with pytest.raises(DimensionError, match="num_classes = 6 vertices needs 5 dimensions"):
        simplex_weight(4, 9, kind="class-rank", num_classes=6)
    assert simplex_weight(5, 4, kind="classifier").shape == (5, 4)
    assert simplex_weight(5, 9, kind="class-rank", num_classes=6).shape == (5, 9)


class TestNearest:
    @pytest.mark.parametrize("shape", [(6, 4), (4, 6), (5, 5)], ids=str)
    def test_is_the_closed_form(self, shape):
        weight = draw(*shape)
        tall = weight if shape[0] >= shape[1] else weight.T
        k = min(shape)
        center = torch.eye(k, dtype=float64) - 1 / k
        P, sigma, Qt = torch.linalg.svd(tall @ center, full_matrices=False)
        wanted = sigma.sum() / (k - 1) * P @ Qt @ center
        found = nearest_simplex_weight(weight)
        torch.testing.assert_close(found, wanted if tall is weight else wanted.T, rtol=0, atol=1e-12)
        assert found.norm().item() / math.sqrt(k) == pytest.approx(sigma.sum().item() / math.sqrt(k * (k - 1)))

    @pytest.mark.parametrize("gain", [None, 0.7])
    @pytest.mark.parametrize("shape", [(6, 4), (4, 6), (5, 5)], ids=str)
    def test_nothing_near_or_far_is_nearer(self, shape, gain):
        weight = 0.5 * draw(*shape) + 0.3
        found = nearest_simplex_weight(weight, gain=gain)
        best = (weight - found).norm()
        k, n = min(shape), max(shape)
        ones = generator(1)
        # A simplex nearby: the whole turned a little, and a little longer or shorter where the gain is free.
        A = torch.randn(500, n, n, dtype=float64, generator=ones) * torch.logspace(-4, 0, 500, dtype=float64).view(
            -1, 1, 1
        )
        nearby = torch.linalg.matrix_exp(A - A.mT) @ vertices(found).T
        if gain is None:
            nearby = nearby * (1 + 0.1 * torch.randn(500, 1, 1, dtype=float64, generator=ones))
        U = torch.linalg.qr(torch.randn(2000, n, k, dtype=float64, generator=ones)).Q
        far = U @ centering(k)
        best_gains = (far * vertices(weight).T).sum(dim=(1, 2), keepdim=True) / k
        far = far * (best_gains if gain is None else gain)
        for others in (nearby, far):
            distances = (others - vertices(weight).T).flatten(1).norm(dim=1)
            assert (distances > best).all()
        assert is_simplex_etf(vertices(found) / (found.norm() / math.sqrt(k)), tol=1e-10)

    def test_a_simplex_is_nearest_to_itself(self):
        for shape in ((6, 4), (4, 6), (5, 5)):
            W = simplex_weight(*shape, gain=3.0, dtype=float64)
            torch.testing.assert_close(nearest_simplex_weight(W), W, rtol=0, atol=1e-12)
            torch.testing.assert_close(nearest_simplex_weight(-W, gain=2.0), -2 / 3 * W, rtol=0, atol=1e-12)

    @pytest.mark.parametrize("shape", [(6, 4), (4, 6), (5, 5)], ids=str)
    def test_of_low_rank_it_is_one_of_the_nearest_and_always_the_same(self, shape):
        weight = draw(shape[0], 1) @ draw(1, shape[1], seed=8)
        found = nearest_simplex_weight(weight)
        k, n = min(shape), max(shape)
        center = torch.eye(k, dtype=float64) - 1 / k
        nuclear = torch.linalg.svdvals(vertices(weight).T @ center).sum()
        assert found.norm().item() / math.sqrt(k) == pytest.approx(nuclear.item() / math.sqrt(k * (k - 1)), rel=1e-9)
        assert is_simplex_etf(vertices(found) / (found.norm() / math.sqrt(k)), tol=1e-10)
        assert torch.equal(found, nearest_simplex_weight(weight))
        far = torch.linalg.qr(draw(500, n, k)).Q @ centering(k)
        far = far * ((far * vertices(weight).T).sum(dim=(1, 2), keepdim=True) / k)
        assert ((far - vertices(weight).T).flatten(1).norm(dim=1) > (weight - found).norm()).all()

    @pytest.mark.parametrize(
        "weight",
        [torch.zeros(4, 6), torch.zeros(6, 4), torch.arange(5.0).repeat(4, 1), torch.arange(5.0).repeat(5, 1).T],
        ids=["wide zero", "tall zero", "equal rows", "equal columns"],
    )
    def test_equal_vertices_have_no_best_gain(self, weight):
        with pytest.raises(ArgumentError, match=r"vertices that differ.*pass gain=1\.0"):
            nearest_simplex_weight(weight)
        assert is_simplex_etf(vertices(nearest_simplex_weight(weight, gain=1.0)), tol=1e-5)

    def test_dtype_and_gradient(self):
        for dtype in (torch.float32, torch.bfloat16, torch.float16):
            weight = draw(4, 6).to(dtype).requires_grad_()
            found = nearest_simplex_weight(weight)
            assert found.dtype == dtype
            assert not found.requires_grad
            torch.testing.assert_close(
                found.double(), nearest_simplex_weight(weight.double()), rtol=0, atol=4 * torch.finfo(dtype).eps
            )
        assert nearest_simplex_weight(draw(6, 4)).is_contiguous()

    def test_what_is_no_weight_is_refused(self):
        with pytest.raises(NonFiniteError, match="finite"):
            nearest_simplex_weight(torch.tensor([[1.0, math.nan], [0.0, 1.0]]))
        with pytest.raises(DtypeError, match="weight must be a floating-point tensor"):
            nearest_simplex_weight(torch.ones(3, 3, dtype=torch.int64))
        for shape in ((3,), (2, 3, 3), (1, 3), (3, 1)):
            with pytest.raises(ShapeError, match="weight must have shape"):
                nearest_simplex_weight(torch.ones(shape))


class TestCanonicalProduct:
    @pytest.mark.parametrize("shape", [(2, 2), (5, 3), (3, 5), (4, 4)], ids=str)
    @pytest.mark.parametrize("batch", [(), (3,), (2, 3), (0,)], ids=str)
    def test_is_the_product_with_the_weight(self, shape, batch):
        x = draw(*batch, shape[1])
        wanted = x @ simplex_weight(*shape, kind="canonical", dtype=float64).T
        torch.testing.assert_close(canonical_product(x, shape[0]), wanted, rtol=0, atol=1e-13)

    @pytest.mark.parametrize("shape", [(1024, 512), (512, 1024), (1024, 1024)], ids=str)
    def test_in_float32_it_is_the_dense_one_to_1e_6(self, shape):
        x = draw(8, shape[1])
        wanted = x @ simplex_weight(*shape, kind="canonical", dtype=float64).T
        found = canonical_product(x.float(), shape[0])
        assert (found - wanted).abs().max() <= 1e-6 * wanted.abs().max()

    def test_half_precision_is_summed_in_float32(self):
        x = draw(3, 6).bfloat16()
        assert torch.equal(canonical_product(x, 4), canonical_product(x.float(), 4))


def test_random_isometries_are_those_of_linalg():
    assert torch.equal(
        control_weight(6, 4, kind="orthogonal", generator=generator(2), dtype=float64),
        haar_orthonormal(6, 4, generator(2)),
    )
