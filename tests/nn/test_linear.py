from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from tightframe.errors import ArgumentError, DimensionError, DtypeError, NonFiniteError, ShapeError
from tightframe.frames import control_weight, nearest_simplex_weight, simplex_weight
from tightframe.nn import ETFLinear, variance_preserving_gain

STORAGES = {"dense": "haar", "implicit": "canonical"}
SIZES = [(6, 4), (4, 6), (6, 6)]
storages = pytest.mark.parametrize("storage", STORAGES)
learned = pytest.mark.parametrize("learn_scale", [False, True], ids=["fixed", "learned"])
sizes = pytest.mark.parametrize("size", SIZES, ids=str)


def build(storage, inside=6, out=4, **options):
    return ETFLinear(inside, out, kind=STORAGES[storage], storage=storage, **options)


def draw(*shape, seed=7, dtype=torch.float32):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)).to(dtype)


class TestProduct:
    @sizes
    @learned
    @storages
    def test_is_that_with_the_weight(self, storage, learn_scale, size):
        layer = build(storage, *size, learn_scale=learn_scale, dtype=torch.float64)
        for batch in ((), (3,), (2, 3), (0,)):
            x = draw(*batch, size[0], dtype=torch.float64)
            torch.testing.assert_close(layer(x), x @ layer.weight.T + layer.bias, rtol=0, atol=1e-12)
        assert layer.weight.shape == (size[1], size[0])
        no_bias = build(storage, *size, bias=False, learn_scale=learn_scale)
        assert no_bias.bias is None
        torch.testing.assert_close(no_bias(draw(3, size[0])), draw(3, size[0]) @ no_bias.weight.T)

    @sizes
    def test_implicit_is_the_dense_one(self, size):
        dense = ETFLinear(*size, kind="canonical")
        implicit = build("implicit", *size)
        implicit.bias = dense.bias
        torch.testing.assert_close(implicit(draw(5, size[0])), dense(draw(5, size[0])), rtol=0, atol=1e-6)
        torch.testing.assert_close(implicit.weight, dense.weight, rtol=0, atol=1e-6)

    @sizes
    @storages
    def test_vertices_are_as_long_as_the_gain(self, storage, size):
        W = build(storage, *size, gain=2.5, dtype=torch.float64).weight
        V = W if size[1] < size[0] else W.T
        k = min(size)
        gram = (k * torch.eye(k, dtype=torch.float64) - 1) / (k - 1)
        torch.testing.assert_close(V @ V.T, 2.5**2 * gram, rtol=0, atol=1e-12)

    def test_seeds_differ_and_return(self):
        assert torch.equal(build("dense", seed=3).weight, build("dense", seed=3).weight)
        assert not torch.equal(build("dense", seed=3).weight, build("dense", seed=4).weight)

    def test_kinds(self):
        for kind in ("haar", "canonical", "classifier"):
            layer = ETFLinear(6, 4, kind=kind, gain=2.0, seed=3)
            wanted = simplex_weight(4, 6, kind=kind, gain=2.0, generator=torch.Generator().manual_seed(3))
            assert torch.equal(layer.weight, wanted)
        rank = ETFLinear(6, 4, kind="class-rank", num_classes=3, gain="unit")
        assert torch.linalg.matrix_rank(rank.weight) == 2
        for kind in ("orthogonal", "gaussian"):
            layer = ETFLinear(6, 4, kind=kind, gain=2.0, seed=3)
            wanted = control_weight(4, 6, kind=kind, gain=2.0, generator=torch.Generator().manual_seed(3))
            assert torch.equal(layer.weight, wanted)

    @storages
    def test_construction_draws_the_bias_alone_from_the_global_generator(self, storage):
        torch.manual_seed(0)
        layer = build(storage)
        after = torch.get_rng_state()
        torch.manual_seed(0)
        assert torch.equal(layer.bias, torch.empty(4).uniform_(-1 / math.sqrt(6), 1 / math.sqrt(6)))
        assert torch.equal(torch.get_rng_state(), after)

    @learned
    @storages
    def test_gradients(self, storage, learn_scale):
        layer = build(storage, learn_scale=learn_scale, dtype=torch.float64)
        names = [name for name, p in layer.named_parameters() if p.requires_grad]
        assert names == ["bias", "log_scale"][: 1 + learn_scale]

        def call(x, *values):
            return torch.func.functional_call(layer, dict(zip(names, values, strict=True)), x)

        inputs = [draw(3, 6, dtype=torch.float64).requires_grad_(), *(p for p in layer.parameters() if p.requires_grad)]
        assert torch.autograd.gradcheck(call, inputs)
        assert torch.autograd.gradgradcheck(call, inputs)

    @storages
    def test_nothing_of_the_batch_is_kept_for_backward(self, storage):
        def kept(layer):
            sizes = []
            with torch.autograd.graph.saved_tensors_hooks(
                lambda t: sizes.append(t.untyped_storage().nbytes()) or t, lambda t: t
            ):
                layer(draw(1000, 6).requires_grad_()).sum().backward()
            return max(sizes, default=0)

        assert kept(build(storage)) <= 4 * 6 * 6
        assert kept(nn.Linear(6, 4)) == 4 * 6 * 1000

    def test_learned_scale_is_positive_and_starts_at_the_gain(self):
        layer = ETFLinear(6, 4, gain=0.3, learn_scale=True)
        assert layer.scale.item() == pytest.approx(0.3)
        before = layer.weight.detach().clone()
        with torch.no_grad():
            layer.log_scale.add_(math.log(2))
        torch.testing.assert_close(layer.weight, 2 * before)
        assert ETFLinear(6, 4, gain=0.3).scale == 0.3

    def test_refuses_other_inputs(self):
        for storage in STORAGES:
            with pytest.raises(ShapeError, match=r"input must have shape \(…, d = 6\), got \(3, 4\)"):
                build(storage)(torch.zeros(3, 4))
            with pytest.raises(DtypeError, match=r"input must be floating point, got torch\.int64"):
                build(storage)(torch.zeros(3, 6, dtype=torch.int64))


class TestGain:
    def test_names(self):
        relu, gelu = variance_preserving_gain("relu"), variance_preserving_gain("gelu")
        assert ETFLinear(6, 4).gain == relu
        assert ETFLinear(6, 4, activation="gelu").gain == ETFLinear(6, 4, activation=F.gelu).gain == gelu
        assert ETFLinear(6, 4, gain="unit").gain == 1.0
        assert ETFLinear(6, 4, gain=3).gain == 3.0

    @pytest.mark.parametrize(
        ("size", "options"),
        [
            ((64, 256), {}),
            ((256, 64), {}),
            ((256, 64), {"kind": "gaussian"}),
            ((64, 65), {"kind": "classifier"}),
            ((64, 65), {"kind": "class-rank", "num_classes": 10}),
        ],
        ids=str,
    )
    def test_match_init_has_the_norm_of_a_new_linear(self, size, options):
        layer = ETFLinear(*size, gain="match-init", **options)
        torch.manual_seed(0)
        assert layer.weight.norm().item() == pytest.approx(math.sqrt(size[1] / 3), rel=1e-5)
        assert layer.weight.norm().item() == pytest.approx(nn.Linear(*size).weight.norm().item(), rel=0.02)

    def test_scale_drifts_by_less_than_5_percent_over_8_layers(self):
        width, drift = 512, {}
        for gain in ("variance-preserving", math.sqrt(2)):
            h = start = draw(256, width)
            with torch.no_grad():
                for seed in range(8):
                    h = build("dense", width, width, gain=gain, bias=False, seed=seed)(h.relu())
            drift[gain] = (h.std() / start.std()).item() - 1
        assert abs(drift["variance-preserving"]) <= 0.05
        assert drift[math.sqrt(2)] < -0.7

    def test_rectangular_layers_have_the_variance_that_is_documented(self):
        x = draw(4096, 256).relu()
        narrow, wide = ETFLinear(256, 64, bias=False)(x), ETFLinear(256, 1024, bias=False)(x)
        assert narrow.var(dim=0).mean().item() == pytest.approx(1, rel=0.03)
        assert wide.var(dim=0).mean().item() == pytest.approx(256 / 1024, rel=0.03)

    def test_bad_gains(self):
        for gain in (0.0, -1, math.inf, math.nan, True, None):
            with pytest.raises(ArgumentError, match="gain must be a finite number > 0"):
                ETFLinear(6, 4, gain=gain)
        with pytest.raises(ArgumentError, match="gain must be one of 'variance-preserving', 'unit', 'match-init'"):
            ETFLinear(6, 4, gain="he")
        with pytest.raises(ArgumentError, match="activation must be one of"):
            ETFLinear(6, 4, activation="elu")


class TestFromLinear:
    def test_takes_sizes_bias_dtype_and_mode(self):
        linear = nn.Linear(6, 4, dtype=torch.float64).eval()
        layer = ETFLinear.from_linear(linear, seed=5)
        assert torch.equal(layer.weight, ETFLinear(6, 4, seed=5, dtype=torch.float64).weight)
        assert torch.equal(layer.bias, linear.bias)
        assert layer.bias is not linear.bias
        assert layer.bias.requires_grad
        assert not layer.training
        assert ETFLinear.from_linear(nn.Linear(6, 4, bias=False)).bias is None
        assert ETFLinear.from_linear(nn.Linear(6, 4, device="meta")).weight.is_meta
        assert ETFLinear.from_linear(linear).gain == variance_preserving_gain("relu")

    @sizes
    @learned
    def test_aligned_is_the_nearest(self, learn_scale, size):
        linear = nn.Linear(*size)
        layer = ETFLinear.from_linear(linear, kind="aligned", learn_scale=learn_scale)
        torch.testing.assert_close(layer.weight, nearest_simplex_weight(linear.weight))
        assert layer.weight.norm().item() == pytest.approx(layer.gain * math.sqrt(min(size)), rel=1e-6)
        assert layer.kind == "aligned"
        assert [n for n, p in layer.named_parameters() if p.requires_grad] == ["bias", "log_scale"][: 1 + learn_scale]
        again = ETFLinear.from_linear(layer, kind="aligned")
        torch.testing.assert_close(again.weight, layer.weight)
        assert torch.equal(again.bias, layer.bias)

    @pytest.mark.parametrize("kind", ["aligned", "haar", "classifier", "gaussian"])
    def test_gains(self, kind):
        linear = nn.Linear(6, 4)
        for gain, wanted in ((2.0, 2.0), ("unit", 1.0), ("variance-preserving", 1.70092624)):
            layer = ETFLinear.from_linear(linear, kind=kind, gain=gain, activation="gelu")
            assert layer.weight.norm().item() == pytest.approx(2 * wanted, rel=1e-6)
        matched = ETFLinear.from_linear(linear, kind=kind, gain="match-init")
        assert matched.weight.norm().item() == pytest.approx(linear.weight.norm().item(), rel=1e-6)
        if kind == "aligned":
            torch.testing.assert_close(layer.weight, nearest_simplex_weight(linear.weight, gain=layer.gain))

    def test_a_trained_start_comes_from_export(self):
        for storage in STORAGES:
            layer = build(storage, learn_scale=True)
            linear = layer.export()
            assert type(linear) is nn.Linear
            assert all(p.requires_grad for p in linear.parameters())
            assert linear.bias is not layer.bias
            torch.testing.assert_close(linear(draw(3, 6)), layer(draw(3, 6)))
        assert ETFLinear(6, 4, bias=False).export().bias is None
        plain = ETFLinear(6, 4)
        assert plain.export().weight.data_ptr() != plain.weight.data_ptr()

    def test_refused(self):
        with pytest.raises(ArgumentError, match=r"linear must be an nn\.Linear, got Conv1d"):
            ETFLinear.from_linear(nn.Conv1d(2, 2, 1))
        linear = nn.Linear(6, 4)
        with pytest.raises(ArgumentError, match="kind='aligned' needs storage='dense'"):
            ETFLinear.from_linear(linear, kind="aligned", storage="implicit")
        with pytest.raises(ArgumentError, match="kind must be one of"):
            ETFLinear.from_linear(linear, kind="nearest")
        with torch.no_grad():
            linear.weight.zero_()
        with pytest.raises(ArgumentError, match="vertices that differ"):
            ETFLinear.from_linear(linear, kind="aligned")
        with pytest.raises(ArgumentError, match=r"gain must be a finite number > 0, got 0\.0"):
            ETFLinear.from_linear(linear, gain="match-init")
        with torch.no_grad():
            linear.weight[0, 0] = math.nan
        with pytest.raises(NonFiniteError):
            ETFLinear.from_linear(linear, kind="aligned")


class TestArguments:
    def test_out_of_range(self):
        with pytest.raises(ArgumentError, match="kind='aligned' needs a weight to align with"):
            ETFLinear(6, 4, kind="aligned")
        with pytest.raises(ArgumentError, match="kind must be one of"):
            ETFLinear(6, 4, kind="random")
        with pytest.raises(ArgumentError, match="storage must be one of"):
            ETFLinear(6, 4, storage="sparse")
        for seed in (-1, 1.5, None):
            with pytest.raises(ArgumentError, match="seed must be an integer >= 0"):
                ETFLinear(6, 4, seed=seed)
        with pytest.raises(ArgumentError, match="num_classes"):
            ETFLinear(6, 4, kind="class-rank")
        with pytest.raises(ArgumentError, match="num_classes is for kind='class-rank'"):
            ETFLinear(6, 4, num_classes=3)
        with pytest.raises(ArgumentError, match="in_features must be an integer >= 1"):
            ETFLinear(0, 4)

    def test_kind_and_storage_must_fit(self):
        with pytest.raises(ArgumentError, match="storage='implicit' needs kind='canonical', got 'haar'"):
            ETFLinear(6, 4, storage="implicit")

    def test_no_simplex_in_so_few_dimensions(self):
        with pytest.raises(DimensionError, match="out_features = 5 vertices needs 4 dimensions"):
            ETFLinear(3, 5, kind="classifier")
        with pytest.raises(DimensionError, match="num_classes = 6 vertices needs 5"):
            ETFLinear(9, 4, kind="class-rank", num_classes=6)
        for storage in STORAGES:
            with pytest.raises(DimensionError, match="needs out_features, in_features >= 2"):
                build(storage, 1, 4)
