"""Dot regression and logit-adjusted cross-entropy: by hand, as modules, and under casts."""

from __future__ import annotations

import math

import pytest
import torch

from tightframe.errors import ArgumentError, DeviceError, DtypeError, LabelError, ShapeError
from tightframe.nn import (
    DotRegressionLoss,
    FeatureLoss,
    FrameClassifier,
    LinearClassifier,
    LogitAdjustedCrossEntropy,
    NormalizedLinear,
    SimplexETFClassifier,
)

K, D = 4, 6
LABELS = torch.tensor([0, 0, 0, 1, 1, 3])
forms = pytest.mark.parametrize("form", ["published", "paper", "plain"])


def features(dtype=torch.float64):
    return torch.randn(LABELS.numel(), D, dtype=torch.float64, generator=torch.Generator().manual_seed(1)).to(dtype)


def classifier(**options):
    return SimplexETFClassifier(D, K, dtype=torch.float64, **options)


def cosines(h):
    return (torch.nn.functional.normalize(h) * classifier().weight[LABELS]).sum(dim=1)


def one_vector(*vector):
    """A classifier of one learned class vector, of any length."""
    made = LinearClassifier(len(vector), 1, bias=False, dtype=torch.float64)
    with torch.no_grad():
        made.weight.copy_(torch.tensor([vector]))
    return made


@pytest.mark.parametrize("form", ["published", "paper"])
def test_default_is_half_the_mean_squared_gap_of_the_cosine(form):
    h = features()
    loss = DotRegressionLoss(form=form)
    assert isinstance(loss, FeatureLoss)
    wanted = (cosines(h) - 1).square().mean() / 2
    torch.testing.assert_close(loss(h, LABELS, classifier()), wanted, rtol=0, atol=1e-15)
    assert torch.equal(loss(h, LABELS, classifier(scale=9.0)), loss(h, LABELS, classifier()))
    assert list(loss.parameters()) == []
    assert dict(loss.state_dict()) == {}


@pytest.mark.parametrize("form", ["published", "paper"])
def test_gradient_at_unit_features_is_minus_one_minus_cosine_times_the_class_vector(form):
    h = torch.nn.functional.normalize(features()).requires_grad_()
    DotRegressionLoss(form=form, normalize=False)(h, LABELS, classifier()).backward()
    wanted = -(1 - cosines(h.detach())).unsqueeze(1) * classifier().weight[LABELS]
    torch.testing.assert_close(6 * h.grad, wanted, rtol=0, atol=1e-15)


# m = (0, 2), h = (3, 4): mᵀh = 8, ‖m‖ = 2, s = 5. By hand (8 - 10)² / 5 / 2, then (8 - 2)² / 2 / 2, then -8. With s and
# ‖m‖ constant the gradients are one factor times m and times h: (8 - 10) / 5, then (8 - 2) / 2, then -1.
@pytest.mark.parametrize(("form", "cost", "factor"), [("published", 0.4, -0.4), ("paper", 9, 3), ("plain", -8, -1)])
def test_forms_and_their_gradients_by_hand(form, cost, factor):
    h = torch.tensor([[3.0, 4.0]], dtype=torch.float64, requires_grad=True)
    learned = one_vector(0.0, 2.0)
    loss = DotRegressionLoss(form=form, normalize=False)(h, torch.tensor([0]), learned)
    assert loss.item() == pytest.approx(cost, abs=1e-15)
    loss.backward()
    torch.testing.assert_close(h.grad, factor * learned.weight.detach(), rtol=0, atol=1e-15)
    torch.testing.assert_close(learned.weight.grad, factor * h.detach(), rtol=0, atol=1e-15)


def test_zero_features_and_zero_targets():
    h = torch.zeros(1, 2, dtype=torch.float64, requires_grad=True)
    label, learned = torch.tensor([0]), one_vector(0.0, 2.0)
    loss = DotRegressionLoss(normalize=False)(h, label, learned)
    assert loss.item() == pytest.approx(2e-8, rel=1e-12)
    loss.backward()
    torch.testing.assert_close(h.grad, -2 * learned.weight.detach())
    assert DotRegressionLoss(form="paper")(torch.ones(1, 2), label, one_vector(0.0, 0.0)).isnan()
    assert DotRegressionLoss()(torch.ones(0, 2), label[:0], learned).isnan()


@forms
def test_zero_features_have_zero_gradient_when_normalised(form):
    h = features()
    h[0] = 0
    h.requires_grad_()
    DotRegressionLoss(form=form, reg=0.1)(h, LABELS, classifier()).backward()
    assert h.grad[0].tolist() == [0.0] * D
    assert torch.isfinite(h.grad).all()


def test_batch_balancing_is_the_mean_over_present_classes():
    cost = (cosines(features()) - 1).square() / 2
    wanted = (cost[:3].mean() + cost[3:5].mean() + cost[5]) / 3
    for labels in (LABELS, LABELS.to(torch.uint8)):
        loss = DotRegressionLoss(balancing="batch")(features(), labels, classifier())
        torch.testing.assert_close(loss, wanted, rtol=0, atol=1e-15)


@pytest.mark.parametrize("counts", [[30, 20, 5, 5], [100_001, 3, 7, 11], [6, 3, 0, 3]])
def test_global_balancing_uses_the_counts_given_also_after_a_cast(counts):
    h = features()
    mean = sum(counts) / sum(n > 0 for n in counts)
    cost = (cosines(h) - 1).square() / 2
    wanted = (cost * torch.tensor([mean / counts[y] for y in LABELS.tolist()], dtype=torch.float64)).mean()
    for given in (counts, torch.tensor(counts, dtype=torch.int32)):
        loss = DotRegressionLoss(balancing="global", class_counts=given).bfloat16()(h, LABELS, classifier())
        torch.testing.assert_close(loss, wanted, rtol=1e-14, atol=0)


@forms
@pytest.mark.parametrize("balancing", ["batch", "global"])
def test_lengths_scale_the_targets_in_every_form(form, balancing):
    # Three classes of six samples, (6/3) / n_c, or (12/4) / n_c: the length is that of the class vector.
    counts = [6, 4, 1, 1] if balancing == "global" else None
    r = {"batch": [2 / 3, 1, 1, 2], "global": [1 / 2, 3 / 4, 3, 3]}[balancing]
    longer = FrameClassifier(
        torch.tensor(r, dtype=torch.float64).sqrt()[:, None] * classifier().weight, dtype=torch.float64
    )
    loss = DotRegressionLoss(form=form, balancing=balancing, class_counts=counts, normalize=False)
    wanted = DotRegressionLoss(form=form, normalize=False)(features(), LABELS, longer)
    torch.testing.assert_close(loss(features(), LABELS, classifier()), wanted, rtol=1e-13, atol=0)


def test_norm_penalty():
    h = features()
    gap = DotRegressionLoss(reg=0.25)(h, LABELS, classifier()) - DotRegressionLoss()(h, LABELS, classifier())
    torch.testing.assert_close(gap, 0.25 * h.norm(dim=1).mean(), rtol=0, atol=1e-15)


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


def test_half_precision_and_autocast_are_computed_in_float32():
    fixed = SimplexETFClassifier(D, K).bfloat16()
    loss = DotRegressionLoss(balancing="batch", reg=0.1)
    h = features(torch.bfloat16)
    wanted = loss(h.float(), LABELS, fixed)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value = loss(h, LABELS, fixed)
    assert value.dtype == torch.float32
    assert torch.equal(value, wanted)


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
        ({"balancing": "global", "class_counts": [1, -2]}, r"class_counts must be >= 0, got -2 for class 1 \(1 such"),
        ({"reg": -0.1}, "reg must be finite and >= 0"),
        ({"reg": math.nan}, "reg must be finite and >= 0"),
    ],
)
def test_bad_options(options, message):
    with pytest.raises(ArgumentError, match=message):
        DotRegressionLoss(**options)
    with pytest.raises(ShapeError, match="class_counts must have K = 4 entries for this classifier, got 5"):
        DotRegressionLoss(balancing="global", class_counts=[1] * 5)(features(), LABELS, classifier())


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (lambda h, y: (h[:, :5], y), ShapeError, "features must have width d = 6, got 5"),
        (lambda h, y: (h.long(), y), DtypeError, "features"),
        (lambda h, y: (h, y[:3]), ShapeError, "labels"),
        (lambda h, y: (h, y.double()), DtypeError, "labels"),
        (lambda h, y: (h, y.to("meta")), DeviceError, "labels are on meta"),
        (lambda h, y: (h, y + 1), LabelError, r"labels must lie in 0\.\.3 .* got 4"),
    ],
)
def test_bad_inputs(change, error, message):
    with pytest.raises(error, match=message):
        DotRegressionLoss()(*change(features(), LABELS), classifier())


def test_repr():
    assert "form='published', balancing='none', normalize=True, reg=0.0" in repr(DotRegressionLoss())
    assert "(tau=1.5)" in repr(LogitAdjustedCrossEntropy([1, 2], tau=1.5))
    assert LogitAdjustedCrossEntropy([1, 2]).tau == 1.0


# z = (0, ln 2) and prior (3/4, 1/4) give scores e^z π^τ of 3/4 and 2/4, then 9/16 and 2/16, then 1 and 2.
@pytest.mark.parametrize(("tau", "odds"), [(1.0, 5 / 2), (2.0, 5.5), (0.0, 3 / 2)])
def test_logit_adjusted_cross_entropy_by_hand(tau, odds):
    logits = torch.tensor([[0.0, math.log(2)]], dtype=torch.float64)
    for counts in ([3, 1], torch.tensor([3, 1], dtype=torch.int32)):
        loss = LogitAdjustedCrossEntropy(counts, tau)
        for labels in (torch.tensor([1]), torch.tensor([[0.0, 1.0]], dtype=torch.float64)):
            assert loss(logits, labels).item() == pytest.approx(math.log(odds), abs=1e-15)
    assert dict(loss.state_dict()) == {}


def test_logit_adjusted_cross_entropy_under_a_cast_autocast_and_compile():
    torch._dynamo.reset()
    loss = LogitAdjustedCrossEntropy([100_001, 3])
    logits, labels = torch.tensor([[0.5, -0.25]]), torch.tensor([1])
    wanted = loss(logits, labels)
    torch.testing.assert_close(torch.compile(loss, fullgraph=True, backend="eager")(logits, labels), wanted)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(loss.bfloat16()(logits.bfloat16(), labels), wanted)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (([4, 0, 2],), ArgumentError, r"class_counts must be >= 1, got 0 for class 1 \(1 such classes\)"),
        *((([1, 1], tau), ArgumentError, "tau must be finite") for tau in (-1.0, math.inf, math.nan, True)),
        (([0.5, 0.5],), DtypeError, "class_counts"),
        (([[1], [2]],), ShapeError, "class_counts"),
    ],
)
def test_logit_adjusted_cross_entropy_refuses_bad_arguments(arguments, error, message):
    with pytest.raises(error, match=message):
        LogitAdjustedCrossEntropy(*arguments)
    with pytest.raises(ShapeError, match="logits must have width d = 2, got 3"):
        LogitAdjustedCrossEntropy([1, 1])(torch.zeros(1, 3), torch.tensor([0]))
    with pytest.raises(DtypeError, match="logits"):
        LogitAdjustedCrossEntropy([1, 1])(torch.zeros(1, 2).long(), torch.tensor([0]))
