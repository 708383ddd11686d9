from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.functional import severity_literal as literal
from tests.problems import law
from tightframe import functional as F
from tightframe.errors import ArgumentError, DtypeError, NonFiniteError, ShapeError

D = literal.four_leaves().distances()
LOGITS = torch.tensor([[2.0, 1.0, 0.0, -1.0], [0.5, 0.0, 3.0, 1.0]])


def problem(seed, levels=5):
    g = torch.Generator().manual_seed(seed)
    tree = literal.random_tree(g, 5 + seed % 12)
    K = tree.num_classes
    return torch.randint(levels, (4, K), generator=g).float(), torch.randint(K, (4,), generator=g), tree.distances()


def test_risks_of_the_worked_example():
    wanted = [[0.4752887, 0.8823201, 1.7936529, 1.8487387], [1.8311585, 1.8566461, 0.3149283, 0.9972670]]
    found = F.conditional_risk(LOGITS, D)
    assert found.dtype == torch.float64
    # The published digits come from float32, in which alone they all are met.
    torch.testing.assert_close(-found, torch.tensor(wanted, dtype=torch.float64), rtol=0, atol=3e-7)
    single = LOGITS.softmax(dim=1) @ D.float()
    torch.testing.assert_close(single, torch.tensor(wanted), rtol=0, atol=2e-7)
    a, b, c, d = math.exp(2), math.exp(1), 1, math.exp(-1)
    by_hand = [b + 2 * c + 2 * d, a + 2 * c + 2 * d, 2 * a + 2 * b + d, 2 * a + 2 * b + c]
    assert (-found[0]).tolist() == pytest.approx([risk / (a + b + c + d) for risk in by_hand], rel=1e-14)


@law
@given(st.integers(0, 10**6))
def test_risk_is_the_expected_distance(seed):
    logits, _, distances = problem(seed)
    found = F.conditional_risk(logits, distances)
    for i, row in enumerate(logits):
        assert (-found[i]).tolist() == pytest.approx(literal.risk(row, distances), rel=1e-13, abs=1e-15)


def test_risk_is_finite_differentiable_and_float64_under_autocast():
    extreme = torch.tensor([[1e4, -1e4, 0.0, 0.0]])
    assert F.conditional_risk(extreme, D).tolist() == [[-0.0, -1, -2, -2]]
    logits = LOGITS.double().requires_grad_()
    assert torch.autograd.gradcheck(lambda z: F.conditional_risk(z, D), logits)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = F.conditional_risk(LOGITS, D)
    assert torch.equal(found, F.conditional_risk(LOGITS, D))


def test_tree_order_of_the_worked_example():
    found = F.tree_order(torch.cat([LOGITS, torch.tensor([[0.0, 1.0, 5.0, -1.0]])]), D)
    assert found.dtype == torch.float64
    # The first: A, its sibling, C, D. The second: C, D, A, B. The third: C, D though least likely, B, A.
    assert found.tolist() == [[0, -1, -2, -3], [-2, -3, 0, -1], [-3, -2, 0, -1]]


@law
@given(st.integers(0, 10**6), st.integers(1, 6))
def test_tree_order_is_its_rule(seed, levels):
    logits, labels, distances = problem(seed, levels)
    found = F.tree_order(logits, distances)
    for i, row in enumerate(logits):
        assert found[i].argsort(descending=True).tolist() == literal.tree_ordered(row, distances)
    assert torch.equal(F.top1_error(found, labels), F.top1_error(logits, labels))


@pytest.mark.parametrize(
    ("logits", "distances", "error", "message"),
    [
        (torch.ones(2, 5), D, ShapeError, "logits must have width d = 4, got 5"),
        (torch.ones(4), D, ShapeError, "logits must have shape"),
        (torch.ones(2, 4).long(), D, DtypeError, "logits must be a floating-point tensor"),
        (torch.full((2, 4), torch.nan), D, NonFiniteError, "logits must be finite"),
        (torch.full((2, 4), -torch.inf), D, NonFiniteError, "logits must be finite"),
        (torch.ones(2, 4), D + 1, ArgumentError, "distances"),
    ],
)
def test_bad_input(logits, distances, error, message):
    for rule in (F.conditional_risk, F.tree_order):
        with pytest.raises(error, match=message):
            rule(logits, distances)
        assert rule(torch.ones(0, 4), D).shape == (0, 4)
