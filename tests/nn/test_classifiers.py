from __future__ import annotations

import copy
import io
import math
import pickle

import pytest
import torch
import torch.distributed as dist
from torch import nn

from tightframe.errors import ArgumentError, DtypeError, LabelError, ShapeError
from tightframe.frames import SimplexETF
from tightframe.nn import Classifier, FrameClassifier, LinearClassifier, NormalizedLinear, SimplexETFClassifier

K, D = 5, 8
MATRIX = torch.randn(K, D, generator=torch.Generator().manual_seed(9))

MAKERS = {
    "haar": lambda **options: SimplexETFClassifier(D, K, **options),
    "canonical": lambda **options: SimplexETFClassifier(D, K, orientation="canonical", **options),
    "tight": lambda **options: SimplexETFClassifier(D, D + 1, orientation="canonical", **options),
    "matrix": lambda **options: FrameClassifier(MATRIX, **options),
    "implicit": lambda **options: FrameClassifier(SimplexETF(K, D, orientation="canonical"), **options),
    "normalized": lambda scale=1.0, **options: NormalizedLinear(D, K, scale=scale, **options),
}
FIXED = [name for name in MAKERS if name != "normalized"]
fixed = pytest.mark.parametrize("make", [MAKERS[name] for name in FIXED], ids=FIXED)
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
@pytest.mark.parametrize("learn_scale", [True, False])
def test_logits_are_scale_times_unit_features_times_weight(make, learn_scale):
    classifier = make(scale=2.5, learn_scale=learn_scale)
    h = features(4, D)
    wanted = 2.5 * nn.functional.normalize(h) @ classifier.weight.T
    torch.testing.assert_close(classifier(h), wanted, rtol=1e-5, atol=1e-6)
    assert classifier.bias is None


@fixed
def test_features_are_taken_as_they_are_on_request(make):
    classifier = make(scale=2.5, normalize=False)
    h = features(4, D)
    torch.testing.assert_close(classifier(h), 2.5 * h @ classifier.weight.T, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(classifier.export()(h), classifier(h), rtol=1e-5, atol=1e-5)


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


@every
def test_prepared_features_are_what_the_class_vectors_meet(make):
    classifier = make()
    h = features(4, D)
    wanted = classifier.prepare(h) @ classifier.weight.T
    if classifier.bias is not None:
        wanted = wanted + classifier.bias
    torch.testing.assert_close(classifier(h), wanted, rtol=1e-5, atol=1e-6)


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
def test_compiles_to_one_graph(make):
    torch._dynamo.reset()
    classifier = make()
    compiled = torch.compile(classifier, fullgraph=True, backend="aot_eager")
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
def test_scale_must_be_positive(make):
    for scale in (0.0, -1.0, math.inf, math.nan, True):
        with pytest.raises(ArgumentError, match="scale must be finite and > 0"):
            make(scale=scale)


@fixed
def test_fixed_classifiers_have_no_trainable_parameter(make):
    assert list(make().parameters()) == []
    assert [key for key, _ in make(learn_scale=True).named_parameters()] == ["log_scale"]


def test_learned_scale_starts_where_told_and_learns():
    classifier = SimplexETFClassifier(D, K, scale=4.0, learn_scale=True)
    assert classifier.scale.item() == pytest.approx(4.0, rel=1e-6)
    classifier(features(3, D)).square().sum().backward()
    assert classifier.log_scale.grad.abs() > 0
    with torch.no_grad():
        classifier.log_scale.fill_(-50.0)
    assert classifier.scale.item() > 0


def test_repr():
    text = repr(SimplexETFClassifier(D, K, scale=2.5))
    assert f"in_features={D}, out_features={K}, scale=2.5, normalize=True, orientation='haar'" in text
    assert "scale=learned" in repr(NormalizedLinear(D, K, learn_scale=True))


def step_under_ddp(classifier):
    # The wrapper must be freed before its process group: the other order deadlocks now and then.
    model = nn.parallel.DistributedDataParallel(nn.Sequential(nn.Linear(3, D), classifier))
    nn.functional.cross_entropy(model(features(4, 3)), torch.tensor([0, 1, 2, 3])).backward()
    torch.optim.SGD(model.parameters(), lr=0.1).step()
    return model.module[0].weight.grad


def test_trains_under_ddp_without_trainable_classifier_parameters():
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        for orientation in ("haar", "canonical"):
            classifier = SimplexETFClassifier(D, K, orientation=orientation)
            weight = classifier.weight.clone()
            assert step_under_ddp(classifier).abs().max() > 0
            assert torch.equal(classifier.weight, weight)
    finally:
        dist.destroy_process_group()
