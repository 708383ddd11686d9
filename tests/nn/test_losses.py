from __future__ import annotations

import math

import pytest
import torch

from tightframe.errors import ArgumentError, DeviceError, DtypeError, LabelError, ShapeError
from tightframe.functional.losses import dot_regression, length_weights, length_weights_from_counts
from tightframe.nn import (
    DotRegressionLoss,
    FeatureLoss,
    FrameClassifier,
    LogitAdjustedCrossEntropy,
    NormalizedLinear,
    SimplexETFClassifier,
)

K, D = 4, 6
LABELS = torch.tensor([0, 0, 0, 1, 1, 3])


def features(dtype=torch.float64):
    return torch.randn(LABELS.numel(), D, dtype=torch.float64, generator=torch.Generator().manual_seed(1)).to(dtype)


def classifier(**options):
    return SimplexETFClassifier(D, K, dtype=torch.float64, **options)


def cosines(h):
    return (torch.nn.functional.normalize(h) * classifier().weight[LABELS]).sum(dim=1)


def test_default_is_half_the_mean_squared_gap_of_the_cosine():
    h = features()
    loss = DotRegressionLoss()
    assert isinstance(loss, FeatureLoss)
    wanted = (cosines(h) - 1).square().mean() / 2
    torch.testing.assert_close(loss(h, LABELS, classifier()), wanted, rtol=0, atol=1e-15)
    assert list(loss.parameters()) == []
    assert dict(loss.state_dict()) == {}


def test_the_scale_of_the_classifier_does_not_matter():
    loss, h = DotRegressionLoss(), features()
    assert torch.equal(loss(h, LABELS, classifier(scale=9.0)), loss(h, LABELS, classifier()))


def test_batch_balancing_is_the_mean_over_present_classes():
    h = features()
    cost = (cosines(h) - 1).square() / 2
    wanted = (cost[:3].mean() + cost[3:5].mean() + cost[5]) / 3
    loss = DotRegressionLoss(balancing="batch")(h, LABELS, classifier())
    torch.testing.assert_close(loss, wanted, rtol=0, atol=1e-15)


def test_global_balancing_uses_the_counts_given():
    h = features()
    counts = [30, 20, 5, 5]
    cost = (cosines(h) - 1).square() / 2
    wanted = (cost * torch.tensor([15 / counts[y] for y in LABELS.tolist()])).mean()
    for given in (counts, torch.tensor(counts)):
        loss = DotRegressionLoss(balancing="global", class_counts=given)(h, LABELS, classifier())
        torch.testing.assert_close(loss, wanted, rtol=0, atol=1e-15)


@pytest.mark.parametrize("form", ["published", "paper", "plain"])
@pytest.mark.parametrize("normalize", [True, False])
def test_is_the_function_on_scaled_rows(form, normalize):
    h = features()
    unit = torch.nn.functional.normalize(h) if normalize else h
    targets = length_weights(LABELS, K)[LABELS].unsqueeze(1) * classifier().weight[LABELS]
    loss = DotRegressionLoss(form=form, balancing="batch", normalize=normalize)
    wanted = dot_regression(unit, targets, form=form)
    torch.testing.assert_close(loss(h, LABELS, classifier()), wanted, rtol=0, atol=1e-14)


def test_norm_penalty():
    h = features()
    gap = DotRegressionLoss(reg=0.25)(h, LABELS, classifier()) - DotRegressionLoss()(h, LABELS, classifier())
    torch.testing.assert_close(gap, 0.25 * h.norm(dim=1).mean(), rtol=0, atol=1e-15)


def test_mixup_by_two_calls_has_the_lengths_of_the_first_labels():
    other = LABELS[torch.tensor([5, 0, 1, 2, 3, 4])]
    assert torch.equal(length_weights(other, K), length_weights(LABELS, K))


@pytest.mark.parametrize("options", [{}, {"balancing": "batch"}, {"balancing": "global", "class_counts": [3, 2, 4, 1]}])
def test_never_reads_rows_of_other_classes(options):
    matrix = classifier().weight.clone()
    broken = matrix.clone()
    broken[2] = float("nan")
    h = features().requires_grad_()
    loss = DotRegressionLoss(**options)
    value = loss(h, LABELS, FrameClassifier(broken))
    assert torch.equal(value, loss(h, LABELS, FrameClassifier(matrix)))
    value.backward()
    assert torch.isfinite(h.grad).all()


def test_learned_vectors_of_other_classes_get_no_gradient():
    learned = NormalizedLinear(D, K, dtype=torch.float64)
    DotRegressionLoss()(features(), LABELS, learned).backward()
    assert learned.vectors.grad[2].tolist() == [0.0] * D
    assert learned.vectors.grad[[0, 1, 3]].abs().max() > 0


@pytest.mark.parametrize("form", ["published", "paper", "plain"])
def test_zero_features_have_zero_gradient_when_normalised(form):
    h = features()
    h[0] = 0
    h.requires_grad_()
    DotRegressionLoss(form=form, reg=0.1)(h, LABELS, classifier()).backward()
    assert h.grad[0].tolist() == [0.0] * D
    assert torch.isfinite(h.grad).all()


def test_half_precision_and_autocast_are_computed_in_float32():
    fixed = SimplexETFClassifier(D, K)
    loss = DotRegressionLoss(balancing="batch", reg=0.1)
    h = features(torch.bfloat16)
    wanted = loss(h.float(), LABELS, fixed)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value = loss(h, LABELS, fixed)
    assert value.dtype == torch.float32
    assert torch.equal(value, wanted)


def test_casting_the_loss_keeps_the_counts():
    counts = [100_001, 3, 7, 11]
    loss = DotRegressionLoss(balancing="global", class_counts=counts).bfloat16()
    h = features()
    targets = length_weights_from_counts(torch.tensor(counts))[LABELS].unsqueeze(1) * classifier().weight[LABELS]
    wanted = dot_regression(torch.nn.functional.normalize(h), targets)
    torch.testing.assert_close(loss(h, LABELS, classifier()), wanted, rtol=1e-14, atol=0)


@pytest.mark.parametrize("balancing", ["none", "batch", "global"])
def test_compiles_to_one_graph(balancing):
    torch._dynamo.reset()
    counts = [3, 2, 4, 1] if balancing == "global" else None
    loss = DotRegressionLoss(balancing=balancing, class_counts=counts)
    compiled = torch.compile(loss, fullgraph=True, backend="eager")
    fixed = classifier()
    torch.testing.assert_close(compiled(features(), LABELS, fixed), loss(features(), LABELS, fixed))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"form": "squared"}, "form must be one of"),
        ({"balancing": "class"}, "balancing must be one of"),
        ({"balancing": "global"}, "class_counts must be given exactly with balancing='global'"),
        ({"class_counts": [1, 2]}, "class_counts must be given exactly with balancing='global'"),
        ({"balancing": "global", "class_counts": [1, -2]}, "class_counts must be >= 0"),
        ({"reg": -0.1}, "reg must be finite and >= 0"),
        ({"reg": math.nan}, "reg must be finite and >= 0"),
    ],
)
def test_bad_options(options, message):
    with pytest.raises(ArgumentError, match=message):
        DotRegressionLoss(**options)


def test_bad_counts():
    with pytest.raises(DtypeError, match="class_counts"):
        DotRegressionLoss(balancing="global", class_counts=[1.5, 2.0])
    with pytest.raises(ShapeError, match="class_counts"):
        DotRegressionLoss(balancing="global", class_counts=[[1, 2]])
    with pytest.raises(ShapeError, match="class_counts must have K = 4 entries for this classifier, got 5"):
        DotRegressionLoss(balancing="global", class_counts=[1] * 5)(features(), LABELS, classifier())


def test_bad_inputs():
    loss, h = DotRegressionLoss(), features()
    with pytest.raises(ShapeError, match="features must have width d = 6, got 5"):
        loss(h[:, :5], LABELS, classifier())
    with pytest.raises(DtypeError, match="features"):
        loss(h.long(), LABELS, classifier())
    with pytest.raises(ShapeError, match="labels"):
        loss(h, LABELS[:3], classifier())
    with pytest.raises(DtypeError, match="labels"):
        loss(h, LABELS.double(), classifier())
    with pytest.raises(DeviceError, match="labels are on meta"):
        loss(h, LABELS.to("meta"), classifier())
    with pytest.raises(LabelError, match="got 4"):
        loss(h, LABELS + 1, classifier())


def test_repr():
    assert "form='published', balancing='none', normalize=True, reg=0" in repr(DotRegressionLoss())
    assert "num_classes=2, tau=1.5" in repr(LogitAdjustedCrossEntropy([1, 2], tau=1.5))


def test_logit_adjusted_cross_entropy_by_hand():
    logits = torch.tensor([[0.0, math.log(2)]], dtype=torch.float64)
    for counts in ([3, 1], torch.tensor([3, 1], dtype=torch.int32)):
        loss = LogitAdjustedCrossEntropy(counts)
        assert loss(logits, torch.tensor([1])).item() == pytest.approx(math.log(5 / 2), abs=1e-15)
    assert dict(loss.state_dict()) == {}


def test_logit_adjusted_cross_entropy_survives_a_cast_and_autocast():
    loss = LogitAdjustedCrossEntropy([100_001, 3])
    logits, labels = torch.tensor([[0.5, -0.25]], dtype=torch.float64), torch.tensor([1])
    wanted = loss(logits, labels)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(loss.bfloat16()(logits, labels), wanted)


def test_logit_adjusted_cross_entropy_compiles_to_one_graph():
    torch._dynamo.reset()
    loss = LogitAdjustedCrossEntropy([3, 1])
    compiled = torch.compile(loss, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(torch.eye(2), torch.tensor([0, 1])), loss(torch.eye(2), torch.tensor([0, 1])))


def test_logit_adjusted_cross_entropy_refuses_bad_arguments():
    with pytest.raises(ArgumentError, match=r"class_counts must be >= 1, got 0 for class 1"):
        LogitAdjustedCrossEntropy([4, 0, 2])
    with pytest.raises(ArgumentError, match="tau"):
        LogitAdjustedCrossEntropy([1, 1], tau=-1.0)
    with pytest.raises(DtypeError, match="class_counts"):
        LogitAdjustedCrossEntropy([0.5, 0.5])
    with pytest.raises(ShapeError, match="class_counts"):
        LogitAdjustedCrossEntropy([[1], [2]])
    with pytest.raises(ShapeError, match="logits must have width d = 2, got 3"):
        LogitAdjustedCrossEntropy([1, 1])(torch.zeros(1, 3), torch.tensor([0]))
