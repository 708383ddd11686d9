from __future__ import annotations

import math

import pytest
import torch

from tightframe.errors import ArgumentError, DeviceError, DtypeError, LabelError, ShapeError
from tightframe.frames import simplex_etf
from tightframe.functional.losses import (
    dot_regression,
    length_weights,
    length_weights_from_counts,
    logit_adjusted_cross_entropy,
)


def draw(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def unit(x):
    return x / x.norm(dim=1, keepdim=True)


@pytest.mark.parametrize("form", ["published", "paper"])
def test_gradient_at_unit_features_is_minus_one_minus_cosine_times_the_class_vector(form):
    h = unit(draw(6, 8)).requires_grad_()
    w = unit(draw(6, 8, seed=1))
    dot_regression(h, w, form=form).backward()
    cos = (h.detach() * w).sum(dim=1, keepdim=True)
    torch.testing.assert_close(6 * h.grad, -(1 - cos) * w, rtol=0, atol=1e-15)


def test_unit_features_cost_half_the_squared_gap_of_the_cosine():
    h, w = unit(draw(6, 8)), unit(draw(6, 8, seed=1))
    wanted = ((h * w).sum(dim=1) - 1).square().mean() / 2
    for form in ("published", "paper"):
        torch.testing.assert_close(dot_regression(h, w, form=form), wanted, rtol=0, atol=1e-15)


def test_published_form_by_hand():
    # m = (0, 2), h = (3, 4): mᵀh = 8, ‖m‖ = 2, s = 5, so the cost is (8 - 10)² / 5 / 2 = 0.4.
    h = torch.tensor([[3.0, 4.0]], dtype=torch.float64, requires_grad=True)
    m = torch.tensor([[0.0, 2.0]], dtype=torch.float64, requires_grad=True)
    loss = dot_regression(h, m)
    assert loss.item() == pytest.approx(0.4, abs=1e-15)
    loss.backward()
    # s and ‖m‖ are constants: the gradient in h is (mᵀh - ‖m‖ s) / s · m, in m the same factor times h.
    torch.testing.assert_close(h.grad, -0.4 * m.detach(), rtol=0, atol=1e-15)
    torch.testing.assert_close(m.grad, -0.4 * h.detach(), rtol=0, atol=1e-15)


def test_paper_form_by_hand():
    # b = ‖m‖ √E_H = 2 · 3 = 6: (8 - 6)² / (2 · 6) = 1/3.
    h = torch.tensor([[3.0, 4.0]], dtype=torch.float64)
    m = torch.tensor([[0.0, 2.0]], dtype=torch.float64)
    assert dot_regression(h, m, form="paper", feature_energy=9.0).item() == pytest.approx(1 / 3, abs=1e-15)


def test_plain_form_by_hand():
    h = torch.tensor([[3.0, 4.0], [1.0, 0.0]], dtype=torch.float64, requires_grad=True)
    m = torch.tensor([[0.0, 2.0], [1.0, 1.0]], dtype=torch.float64)
    loss = dot_regression(h, m, form="plain")
    assert loss.item() == -4.5
    loss.backward()
    assert torch.equal(h.grad, -m / 2)


def test_published_form_at_a_zero_feature():
    h = torch.zeros(1, 2, dtype=torch.float64, requires_grad=True)
    m = torch.tensor([[0.0, 2.0]], dtype=torch.float64)
    loss = dot_regression(h, m)
    assert loss.item() == pytest.approx(2e-8, rel=1e-12)
    loss.backward()
    torch.testing.assert_close(h.grad, -2 * m)


def test_documented_nans():
    assert math.isnan(dot_regression(torch.ones(1, 2), torch.zeros(1, 2), form="paper"))
    assert math.isnan(dot_regression(torch.ones(0, 2), torch.zeros(0, 2)))


def test_half_precision_is_summed_in_float32():
    h, w = draw(4, 8).half(), draw(4, 8, seed=1).bfloat16()
    assert dot_regression(h, w).dtype == torch.float32
    assert torch.equal(dot_regression(h, w), dot_regression(h.float(), w.float()))


def test_lengths_by_hand():
    # B = 6, two of three classes present: r² = 3 / n_c.
    r = length_weights(torch.tensor([0, 0, 0, 0, 2, 2]), 3)
    torch.testing.assert_close(r, torch.tensor([0.75, 1.0, 1.5], dtype=torch.float64).sqrt(), rtol=0, atol=1e-15)
    assert length_weights(torch.zeros(0, dtype=torch.int64), 2).tolist() == [1.0, 1.0]
    torch.testing.assert_close(length_weights(torch.tensor([1, 1], dtype=torch.uint8), 2), torch.ones(2).double())


def test_lengths_from_counts_by_hand():
    # N / K = 4.
    r = length_weights_from_counts(torch.tensor([8, 2, 2]))
    torch.testing.assert_close(r, torch.tensor([0.5, 2.0, 2.0], dtype=torch.float64).sqrt(), rtol=0, atol=1e-15)
    torch.testing.assert_close(length_weights_from_counts(torch.tensor([5, 0])), torch.ones(2).double())


def test_batch_lengths_make_the_loss_class_balanced():
    K, d = 7, 9
    labels = torch.tensor([0] * 17 + [2] * 5 + [3] + [6] * 9)
    h = unit(draw(labels.numel(), d))
    W = simplex_etf(K, d, dtype=torch.float64)
    cost = ((h * W[labels]).sum(dim=1) - 1).square() / 2
    wanted = torch.stack([cost[labels == c].mean() for c in (0, 2, 3, 6)]).mean()
    targets = length_weights(labels, K)[labels].unsqueeze(1) * W[labels]
    torch.testing.assert_close(dot_regression(h, targets), wanted, rtol=0, atol=1e-15)


def test_dot_regression_refuses_bad_arguments():
    h = torch.ones(2, 3)
    with pytest.raises(ArgumentError, match="form must be one of"):
        dot_regression(h, h, form="squared")
    for energy in (0.0, -1.0, float("nan")):
        with pytest.raises(ArgumentError, match="feature_energy"):
            dot_regression(h, h, form="paper", feature_energy=energy)
    with pytest.raises(DtypeError, match="features"):
        dot_regression(h.long(), h)
    with pytest.raises(DtypeError, match="targets"):
        dot_regression(h, h.long())
    with pytest.raises(ShapeError, match="features"):
        dot_regression(h[0], h)
    with pytest.raises(ShapeError, match="targets must have width d = 3, got 2"):
        dot_regression(h, h[:, :2])
    with pytest.raises(ShapeError, match=r"targets must have the shape of features \(2, 3\), got \(1, 3\)"):
        dot_regression(h, h[:1])
    with pytest.raises(DeviceError, match="targets are on meta"):
        dot_regression(h, h.to("meta"))


def test_lengths_refuse_bad_arguments():
    with pytest.raises(ArgumentError, match="num_classes"):
        length_weights(torch.tensor([0]), 0)
    with pytest.raises(LabelError, match="got 3"):
        length_weights(torch.tensor([0, 3]), 3)
    with pytest.raises(DtypeError, match="labels"):
        length_weights(torch.tensor([0.0]), 3)
    with pytest.raises(ShapeError, match="labels"):
        length_weights(torch.tensor([[0]]), 3)
    with pytest.raises(ArgumentError, match="class_counts must be >= 0, got -2"):
        length_weights_from_counts(torch.tensor([1, -2]))
    with pytest.raises(DtypeError, match="class_counts"):
        length_weights_from_counts(torch.tensor([1.0]))
    with pytest.raises(ShapeError, match="class_counts"):
        length_weights_from_counts(torch.tensor(1))


def test_logit_adjustment_by_hand():
    # Adjusted scores e^z π^τ: with z = (0, ln 2), π = (3/4, 1/4): 3/4 and 2/4; the label is class 1.
    logits = torch.tensor([[0.0, math.log(2)]], dtype=torch.float64)
    counts, label = torch.tensor([3, 1]), torch.tensor([1])
    assert logit_adjusted_cross_entropy(logits, label, counts).item() == pytest.approx(math.log(5 / 2), abs=1e-15)
    # τ = 2: 9/16 and 2/16.
    assert logit_adjusted_cross_entropy(logits, label, counts, 2.0).item() == pytest.approx(math.log(5.5), abs=1e-15)
    assert logit_adjusted_cross_entropy(logits, label, counts, 0.0).item() == pytest.approx(math.log(3 / 2), abs=1e-15)


def test_logit_adjustment_takes_probabilities_and_half_precision():
    logits, counts = draw(4, 3), torch.tensor([5, 2, 1])
    labels = torch.tensor([0, 1, 2, 1])
    one_hot = torch.nn.functional.one_hot(labels).double()
    torch.testing.assert_close(
        logit_adjusted_cross_entropy(logits, one_hot, counts), logit_adjusted_cross_entropy(logits, labels, counts)
    )
    half = logits.bfloat16()
    wanted = logit_adjusted_cross_entropy(half.float(), labels, counts)
    assert torch.equal(logit_adjusted_cross_entropy(half, labels, counts), wanted)


def test_logit_adjustment_refuses_bad_arguments():
    logits, labels, counts = torch.zeros(1, 2), torch.tensor([0]), torch.tensor([1, 1])
    with pytest.raises(ArgumentError, match=r"got 0 for class 1 \(1 such classes\)"):
        logit_adjusted_cross_entropy(logits, labels, torch.tensor([4, 0]))
    for tau in (-1.0, float("inf"), float("nan"), True):
        with pytest.raises(ArgumentError, match="tau must be finite"):
            logit_adjusted_cross_entropy(logits, labels, counts, tau)
    with pytest.raises(ShapeError, match="logits must have width d = 3, got 2"):
        logit_adjusted_cross_entropy(logits, labels, torch.tensor([1, 1, 1]))
    with pytest.raises(DtypeError, match="logits"):
        logit_adjusted_cross_entropy(logits.long(), labels, counts)
    with pytest.raises(DtypeError, match="class_counts"):
        logit_adjusted_cross_entropy(logits, labels, counts.float())
