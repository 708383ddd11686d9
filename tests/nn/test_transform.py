from __future__ import annotations

import pytest
import torch
from torch import nn

from tightframe.errors import ArgumentError, DtypeError, ShapeError
from tightframe.nn import FeatureTransform, ResidualBlock


def test_layers_and_numbers_of_parameters():
    transform = FeatureTransform(7, 4)
    kinds = [type(layer).__name__ for block in transform.blocks for layer in block]
    assert kinds == ["Linear", "BatchNorm1d", "PReLU"] * 4
    # A projection with batch norm; then four maps, each with batch norm and a slope a feature.
    assert sum(p.numel() for p in transform.parameters()) == 7 * 4 + 2 * 4 + 4 * (4 * 4 + 2 * 4 + 4)
    assert transform.out_features == 4
    assert all(layer.bias is None for layer in transform.modules() if isinstance(layer, nn.Linear))


def test_output_in_eval_mode():
    torch.manual_seed(0)
    transform = FeatureTransform(7, 4).eval()
    h = torch.randn(5, 7)
    shrink = (1 + 1e-5) ** -0.5  # of batch norm before any batch
    x = h @ transform.project[0].weight.T * shrink
    for block in transform.blocks:
        y = x
        for linear, prelu in ((block[0], block[2]), (block[3], block[5])):
            y = y @ linear.weight.T * shrink
            y = torch.where(y > 0, y, prelu.weight * y)
        x = x + y
    torch.testing.assert_close(transform(h), x)
    assert (x < 0).any()


def test_a_block_whose_branch_is_zero_is_the_identity():
    block = ResidualBlock(3)
    nn.init.zeros_(block[4].weight)
    h = torch.randn(4, 3)
    torch.testing.assert_close(block(h), h)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: FeatureTransform(0, 4), ArgumentError, "in_features must be an integer >= 1"),
        (lambda: FeatureTransform(7, 0), ArgumentError, "dim must be an integer >= 1"),
        (lambda: FeatureTransform(7, 2.0), ArgumentError, "dim must be an integer >= 1"),
        (lambda: ResidualBlock(0), ArgumentError, "dim must be an integer >= 1"),
        (lambda: FeatureTransform(7, 4)(torch.zeros(2, 6)), ShapeError, "d = 7"),
        (lambda: FeatureTransform(7, 4)(torch.zeros(2, 7, dtype=torch.int64)), DtypeError, "int64"),
    ],
)
def test_bad_input(call, error, message):
    with pytest.raises(error, match=message):
        call()
