from __future__ import annotations

import copy
import io
import math
import pickle

import pytest
import torch
import torch.distributed as dist
from torch import nn

from tightframe._checks import ArgumentError, DimensionError, DtypeError, LabelError, ShapeError
from tightframe.frames import MatrixFrame, SimplexETF, is_simplex_etf, is_unit_norm, simplex_etf
from tightframe.nn import Classifier, FrameClassifier, LinearClassifier, NormalizedLinear, SimplexETFClassifier

K, D = 5, 8
MATRIX = torch.randn(K, D, generator=torch.Generator().manual_seed(9))

MAKERS = {
    "haar": lambda **options: SimplexETFClassifier(D, K, **options),
    "canonical": lambda **options: SimplexETFClassifier(D, K, orientation="canonical", **options),
    "tight": lambda **options: SimplexETFClassifier(D, D + 1, orientation="canonical", **options),
    "matrix": lambda **options: FrameClassifier(MATRIX, **options),
    "implicit": lambda **options: FrameClassifier(SimplexETF(K, D, orientation="canonical"), **options),
    "normalized": lambda **options: NormalizedLinear(D, K, **{"scale": 1.0, **options}),
}
scaled = pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS.keys())
every = pytest.mark.parametrize(
    "make", [*MAKERS.values(), lambda: LinearClassifier(D, K)], ids=[*MAKERS.keys(), "linear"]
)


def features(*shape, dtype=torch.float32):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(3)).to(dtype)


@every
def test_interface(make):
    classifier = make()
    assert isinstance(classifier, Classifier)
    assert classifier.in_features == D
    assert classifier.weight.shape == (classifier.out_features, D)
    for batch in ((), (4,), (2, 3)):
        assert classifier(features(*batch, D)).shape == (*batch, classifier.out_features)


@every
def test_class_vectors_are_rows_of_the_weight(make):
    classifier = make()
    labels = torch.tensor([1, 0, 4, 1])
    torch.testing.assert_close(classifier.class_vectors(labels), classifier.weight[labels], rtol=0, atol=0)
    with pytest.raises(LabelError):
        classifier.class_vectors(torch.tensor([classifier.out_features]))
    with pytest.raises(DtypeError):
        classifier.class_vectors(torch.tensor([1.0]))


@scaled
@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("learn_scale", [True, False])
def test_logits_are_scale_times_features_times_weight(make, normalize, learn_scale):
    options = {"scale": 2.5, "learn_scale": learn_scale}
    if make is MAKERS["normalized"]:
        if not normalize:
            pytest.skip("it always normalises")
    else:
        options["normalize"] = normalize
    classifier = make(**options)
    h = features(4, D)
    wanted = 2.5 * (nn.functional.normalize(h) if normalize else h) @ classifier.weight.T
    torch.testing.assert_close(classifier(h), wanted, rtol=1e-5, atol=1e-6)
    assert classifier.bias is None


@scaled
def test_export_gives_the_same_logits_on_unit_features_and_the_same_argmax(make):
    classifier = make(scale=3.0)
    linear = classifier.export()
    assert type(linear) is nn.Linear
    assert linear.bias is None
    h = features(50, D)
    torch.testing.assert_close(linear(nn.functional.normalize(h)), classifier(h), rtol=1e-5, atol=1e-6)
    assert torch.equal(linear(h).argmax(dim=1), classifier(h).argmax(dim=1))
    with torch.no_grad():
        linear.weight.zero_()
    assert classifier.weight.abs().sum() > 0


def test_export_without_normalisation_gives_the_same_logits():
    classifier = SimplexETFClassifier(D, K, scale=3.0, normalize=False)
    h = features(6, D)
    torch.testing.assert_close(classifier.export()(h), classifier(h), rtol=1e-5, atol=1e-5)


@scaled
def test_zero_features_have_zero_logits_and_zero_gradient(make):
    h = features(3, D)
    h[1] = 0
    h.requires_grad_()
    classifier = make()
    logits = classifier(h)
    assert logits[1].tolist() == [0.0] * classifier.out_features
    logits.square().sum().backward()
    nn.functional.cross_entropy(classifier(h), torch.tensor([0, 1, 2])).backward()
    assert h.grad[1].tolist() == [0.0] * D
    assert torch.isfinite(h.grad).all()
    assert h.grad[0].abs().max() > 0


@scaled
def test_gradient(make):
    classifier = make(scale=2.0).double()
    assert torch.autograd.gradcheck(classifier, features(3, D, dtype=torch.float64).requires_grad_())


@scaled
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_features_are_computed_in_float32(make, dtype):
    classifier = make(scale=2.0)
    h = features(4, D, dtype=dtype)
    assert torch.equal(classifier(h), classifier(h.float()).to(dtype))


@scaled
def test_half_norms_do_not_overflow(make):
    h = torch.full((1, D), 6e4, dtype=torch.float16)
    classifier = make()
    wanted = nn.functional.normalize(h.double()) @ classifier.weight.double().T
    torch.testing.assert_close(classifier(h).double(), wanted, rtol=2e-3, atol=1e-3)


@scaled
def test_autocast_lowers_nothing(make):
    classifier = make()
    h = features(4, D)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(classifier(h), classifier.float()(h))
        inside = classifier(h)
    assert torch.equal(inside, classifier(h))


@every
@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_compiles_to_one_graph(make, backend):
    torch._dynamo.reset()
    classifier = make()
    compiled = torch.compile(classifier, fullgraph=True, backend=backend)
    h, g = features(4, D).requires_grad_(), features(4, D).requires_grad_()
    compiled(h).square().sum().backward()
    classifier(g).square().sum().backward()
    torch.testing.assert_close(compiled(h), classifier(h))
    torch.testing.assert_close(h.grad, g.grad)


@every
def test_copies_pickles_and_saves(make):
    classifier = make()
    h = features(4, D)
    buffer = io.BytesIO()
    torch.save(classifier, buffer)
    buffer.seek(0)
    others = [copy.deepcopy(classifier), pickle.loads(pickle.dumps(classifier))]
    for other in [*others, torch.load(buffer, weights_only=False)]:
        assert torch.equal(other(h), classifier(h))


@every
def test_module_casts_and_moves(make):
    classifier = make().double()
    assert classifier.weight.dtype == classifier.class_vectors(torch.tensor([0])).dtype == torch.float64
    assert classifier.to("meta").weight.device.type == "meta"
    assert classifier(torch.empty(2, D, device="meta", dtype=torch.float64)).shape == (2, classifier.out_features)


@scaled
def test_wrong_features(make):
    with pytest.raises(ShapeError, match=f"d = {D}"):
        make()(torch.zeros(2, D - 1))
    with pytest.raises(DtypeError, match="int64"):
        make()(torch.zeros(2, D, dtype=torch.int64))


@scaled
@pytest.mark.parametrize("scale", [0.0, -1.0, math.inf, math.nan, True, "1"])
def test_scale_must_be_positive(make, scale):
    with pytest.raises(ArgumentError, match="scale must be a finite number > 0"):
        make(scale=scale)


@pytest.mark.parametrize("name", ["haar", "canonical", "tight", "matrix", "implicit"])
def test_fixed_classifiers_have_no_trainable_parameter(name):
    assert list(MAKERS[name]().parameters()) == []
    assert [key for key, _ in MAKERS[name](learn_scale=True).named_parameters()] == ["log_scale"]


def test_learned_scale_starts_where_told_and_learns():
    classifier = SimplexETFClassifier(D, K, scale=4.0, learn_scale=True)
    assert float(classifier.scale) == pytest.approx(4.0, rel=1e-6)
    classifier(features(3, D)).square().sum().backward()
    assert classifier.log_scale.grad.abs() > 0
    with torch.no_grad():
        classifier.log_scale.fill_(-50.0)
    assert float(classifier.scale) > 0


def test_repr():
    text = repr(SimplexETFClassifier(D, K, scale=2.5))
    assert f"in_features={D}, out_features={K}, scale=2.5, normalize=True, orientation='haar'" in text
    assert "scale=learned" in repr(NormalizedLinear(D, K, learn_scale=True))


class TestSimplexETFClassifier:
    def test_weight_is_the_frame_of_the_seed(self):
        for seed in (0, 5):
            wanted = simplex_etf(K, D, generator=torch.Generator().manual_seed(seed))
            assert torch.equal(SimplexETFClassifier(D, K, seed=seed).weight, wanted)
        assert torch.equal(
            SimplexETFClassifier(D, K, orientation="canonical").weight, simplex_etf(K, D, orientation="canonical")
        )

    def test_construction_leaves_the_global_generator_alone(self):
        state = torch.get_rng_state()
        SimplexETFClassifier(D, K)
        assert torch.equal(torch.get_rng_state(), state)

    def test_frame_in_full_precision(self):
        classifier = SimplexETFClassifier(D, K, dtype=torch.float64)
        assert is_simplex_etf(classifier.frame, tol=1e-12)
        assert is_simplex_etf(SimplexETFClassifier(D, K, orientation="canonical").double().frame, tol=1e-12)

    def test_state_restores_the_haar_frame_bit_for_bit(self):
        one, other = SimplexETFClassifier(D, K, seed=1), SimplexETFClassifier(D, K, seed=2)
        assert not torch.equal(one.weight, other.weight)
        assert list(one.state_dict()) == ["class_matrix"]
        other.load_state_dict(one.state_dict())
        assert torch.equal(one.weight, other.weight)
        assert torch.equal(one(features(3, D)), other(features(3, D)))

    def test_canonical_state_is_empty_and_loads(self):
        classifier = SimplexETFClassifier(D, K, orientation="canonical")
        assert dict(classifier.state_dict()) == {}
        classifier.load_state_dict({})

    def test_state_of_the_other_orientation_or_shape_is_refused(self):
        haar, canonical = SimplexETFClassifier(D, K), SimplexETFClassifier(D, K, orientation="canonical")
        with pytest.raises(RuntimeError, match=r"Unexpected key.*class_matrix"):
            canonical.load_state_dict(haar.state_dict())
        with pytest.raises(RuntimeError, match=r"Missing key.*class_matrix"):
            haar.load_state_dict(canonical.state_dict())
        with pytest.raises(RuntimeError, match="size mismatch for class_matrix"):
            haar.load_state_dict(SimplexETFClassifier(D, K - 1).state_dict())

    def test_built_on_meta_then_loaded(self):
        wanted = SimplexETFClassifier(D, K, seed=4)
        with torch.device("meta"):
            classifier = SimplexETFClassifier(D, K)
        classifier.to_empty(device="cpu").load_state_dict(wanted.state_dict())
        assert torch.equal(classifier(features(2, D)), wanted(features(2, D)))

    def test_from_linear_takes_sizes_dtype_and_options(self):
        linear = nn.Linear(D, K, dtype=torch.float64)
        classifier = SimplexETFClassifier.from_linear(linear, seed=5, scale=2.0)
        assert torch.equal(classifier.weight, SimplexETFClassifier(D, K, seed=5, dtype=torch.float64).weight)
        assert classifier.scale == 2.0
        assert SimplexETFClassifier.from_linear(nn.Linear(D, K, device="meta")).weight.device.type == "meta"

    def test_bad_arguments(self):
        with pytest.raises(DimensionError, match="K = 5 needs dim >= K - 1 = 4, got dim = 3"):
            SimplexETFClassifier(3, 5)
        with pytest.raises(ArgumentError, match="orientation"):
            SimplexETFClassifier(D, K, orientation="random")
        for seed in (-1, 1.0, None):
            with pytest.raises(ArgumentError, match="seed must be an integer >= 0"):
                SimplexETFClassifier(D, K, seed=seed)
        with pytest.raises(ArgumentError, match="num_classes"):
            SimplexETFClassifier(D, 1)
        with pytest.raises(ArgumentError, match="linear must be an nn.Linear, got Conv1d"):
            SimplexETFClassifier.from_linear(nn.Conv1d(2, 2, 1))


class TestFrameClassifier:
    def test_holds_a_copy_without_gradient(self):
        matrix = MATRIX.clone().requires_grad_()
        classifier = FrameClassifier(matrix)
        with torch.no_grad():
            matrix.zero_()
        assert torch.equal(classifier.weight, MATRIX)
        assert not classifier.weight.requires_grad

    def test_loading_a_state_does_not_change_the_frame_given(self):
        frame = MatrixFrame(MATRIX.clone())
        FrameClassifier(frame).load_state_dict({"class_matrix": torch.zeros(K, D)})
        assert torch.equal(frame.as_matrix(), MATRIX)

    def test_lengths_of_the_rows_are_kept(self):
        classifier = FrameClassifier(2 * torch.eye(3))
        assert classifier(torch.tensor([5.0, 0.0, 0.0])).tolist() == [2.0, 0.0, 0.0]

    def test_a_haar_frame_becomes_a_buffer_and_a_canonical_one_nothing(self):
        assert list(FrameClassifier(SimplexETF(K, D)).state_dict()) == ["class_matrix"]
        assert list(FrameClassifier(SimplexETF(K, D, orientation="canonical")).state_dict()) == []

    def test_bad_matrix(self):
        with pytest.raises(ShapeError, match="matrix must have shape"):
            FrameClassifier(torch.zeros(3))
        with pytest.raises(DtypeError, match="matrix"):
            FrameClassifier(torch.zeros(3, 3, dtype=torch.int64))


class TestNormalizedLinear:
    def test_weight_has_unit_rows_whatever_the_parameter(self):
        classifier = NormalizedLinear(D, K)
        with torch.no_grad():
            classifier.vectors.mul_(7.0)
        assert is_unit_norm(classifier.frame)
        assert list(classifier.state_dict()) == ["vectors"]

    def test_gradient_reaches_the_vectors_and_is_orthogonal_to_them(self):
        classifier = NormalizedLinear(D, K, dtype=torch.float64)
        classifier(features(4, D, dtype=torch.float64))[:, 1].sum().backward()
        grad = classifier.vectors.grad
        assert grad[1].abs().max() > 0
        assert abs(float(grad[1] @ classifier.vectors[1])) < 1e-13
        assert grad[[0, 2, 3, 4]].abs().max() == 0

    def test_class_vectors_send_gradients_to_their_rows_only(self):
        classifier = NormalizedLinear(D, K)
        with torch.no_grad():
            classifier.vectors[0] = float("nan")
        classifier.class_vectors(torch.tensor([3]))[:, 0].sum().backward()
        assert classifier.vectors.grad[[0, 1, 2, 4]].abs().max() == 0
        assert classifier.vectors.grad[3].abs().max() > 0

    def test_a_zero_vector_has_zero_logits_and_gradient(self):
        classifier = NormalizedLinear(D, K)
        with torch.no_grad():
            classifier.vectors[2] = 0
        logits = classifier(features(4, D))
        assert logits[:, 2].tolist() == [0.0] * 4
        logits.sum().backward()
        assert classifier.vectors.grad[2].tolist() == [0.0] * D

    def test_from_linear_starts_at_its_directions(self):
        linear = nn.Linear(D, K, dtype=torch.float64)
        classifier = NormalizedLinear.from_linear(linear, scale=2.0)
        torch.testing.assert_close(classifier.weight, nn.functional.normalize(linear.weight))
        assert classifier.vectors.dtype == torch.float64
        assert classifier.vectors is not linear.weight

    def test_bad_sizes(self):
        with pytest.raises(ArgumentError, match="dim"):
            NormalizedLinear(0, K)
        with pytest.raises(ArgumentError, match="num_classes"):
            NormalizedLinear(D, 0)


class TestLinearClassifier:
    @pytest.mark.parametrize("bias", [True, False])
    def test_is_nn_linear_with_the_same_start_and_keys(self, bias):
        torch.manual_seed(0)
        linear = nn.Linear(D, K, bias=bias)
        torch.manual_seed(0)
        classifier = LinearClassifier(D, K, bias=bias)
        assert list(classifier.state_dict()) == list(linear.state_dict())
        assert torch.equal(classifier(features(3, D)), linear(features(3, D)))
        classifier.load_state_dict(linear.state_dict())

    @pytest.mark.parametrize("bias", [True, False])
    def test_from_linear_and_export_copy(self, bias):
        linear = nn.Linear(D, K, bias=bias, dtype=torch.float64)
        h = features(3, D, dtype=torch.float64)
        classifier = LinearClassifier.from_linear(linear)
        exported = classifier.export()
        wanted = linear(h).detach()
        with torch.no_grad():
            linear.weight.zero_()
        assert torch.equal(classifier(h), wanted)
        assert torch.equal(exported(h), wanted)

    def test_bad_arguments(self):
        with pytest.raises(ArgumentError, match="dim"):
            LinearClassifier(0, K)
        with pytest.raises(ArgumentError, match="num_classes"):
            LinearClassifier(D, 0)
        with pytest.raises(ArgumentError, match="linear must be"):
            LinearClassifier.from_linear(nn.Identity())


def test_trains_under_ddp_without_trainable_classifier_parameters():
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        for orientation in ("haar", "canonical"):
            classifier = SimplexETFClassifier(D, K, orientation=orientation)
            weight = classifier.weight.clone()
            model = nn.parallel.DistributedDataParallel(nn.Sequential(nn.Linear(3, D), classifier))
            optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
            nn.functional.cross_entropy(model(features(4, 3)), torch.tensor([0, 1, 2, 3])).backward()
            optimizer.step()
            assert torch.equal(classifier.weight, weight)
    finally:
        dist.destroy_process_group()
