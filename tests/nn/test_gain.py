from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from tightframe.errors import ArgumentError
from tightframe.nn import variance_preserving_gain


def normal_cdf(x):
    return (1 + math.erf(x / math.sqrt(2))) / 2


def leaky(slope):
    mean = (1 - slope) / math.sqrt(2 * math.pi)
    return (1 + slope**2) / 2 - mean**2


def relu_above(bend):
    """Variance of max(z - bend, 0)."""
    density, tail = math.exp(-(bend**2) / 2) / math.sqrt(2 * math.pi), 1 - normal_cdf(bend)
    mean = density - bend * tail
    return (1 + bend**2) * tail - bend * density - mean**2


JUMP = normal_cdf(0.3137) * normal_cdf(-0.3137)


@pytest.mark.parametrize(
    ("activation", "variance"),
    [
        ("relu", (math.pi - 1) / (2 * math.pi)),
        (F.relu, (math.pi - 1) / (2 * math.pi)),
        (nn.ReLU(inplace=True), (math.pi - 1) / (2 * math.pi)),
        (nn.LeakyReLU(0.1), leaky(0.1)),
        (nn.LeakyReLU(-1.0), leaky(-1.0)),  # the absolute value
        (lambda z: z, 1.0),
        (lambda z: -3 * z + 5, 9.0),
        (torch.square, 2.0),
        (torch.sin, (1 - math.exp(-2)) / 2),
        (torch.exp, math.e**2 - math.e),
        (lambda z: torch.exp(3 * z), math.exp(18) - math.exp(9)),
        (torch.sign, 1.0),
        (lambda z: (z > 0.3137).double(), JUMP),  # a jump at no edge of a panel
        (lambda z: (z > 0.3137).float(), JUMP),
        (lambda z: (z - 0.123).clamp(min=0), relu_above(0.123)),
        (lambda z: z + 1e4, 1.0),
        (lambda z: 1e-30 * z, 1e-60),
    ],
)
def test_exact_values(activation, variance):
    assert variance_preserving_gain(activation) == pytest.approx(1 / math.sqrt(variance), rel=1e-8)


@pytest.mark.parametrize(("name", "function"), [("gelu", F.gelu), ("silu", F.silu)])
def test_smooth_activations_are_those_of_gauss_hermite(name, function):
    import numpy as np

    nodes, weights = np.polynomial.hermite_e.hermegauss(150)
    values = function(torch.from_numpy(nodes)).numpy()
    weights = weights / weights.sum()
    variance = weights @ values**2 - (weights @ values) ** 2
    assert variance_preserving_gain(name) == pytest.approx(variance**-0.5, rel=1e-8)
    assert variance_preserving_gain(function) == variance_preserving_gain(name)


def test_gelu_is_about_1_70():
    assert variance_preserving_gain("gelu") == pytest.approx(1.7009, abs=1e-4)
    assert variance_preserving_gain() == pytest.approx(1.7129, abs=1e-4)


def test_a_sample_agrees():
    sample = F.mish(torch.randn(10**6, generator=torch.Generator().manual_seed(0), dtype=torch.float64))
    assert variance_preserving_gain(nn.Mish()) * sample.std().item() == pytest.approx(1, abs=0.005)


@pytest.mark.parametrize(
    ("activation", "message"),
    [
        ("elu", "activation must be one of 'relu', 'gelu', 'silu', got 'elu'"),
        (5, "activation must be a name or a function, got 5"),
        (torch.log, "activation must be finite, got nan at z = -20"),
        (lambda z: 1 / (z > 0).double(), "activation must be finite, got inf"),
        (torch.zeros_like, "activation must vary, got the constant 0"),
        (lambda z: torch.full_like(z, math.pi), r"activation must vary, got the constant 3\.14159"),
        (lambda z: torch.exp(z * z / 4), r"activation must grow slower than exp\(z²/4\)"),
        (lambda z: torch.exp(z * z), "activation must grow slower"),
        (torch.sum, r"must return a tensor of shape \(1280,\) as given, got \(\)"),
        (lambda z: 3.0, "must return a tensor of shape .*, got float"),
    ],
)
@pytest.mark.filterwarnings("error")
def test_what_has_no_variance_to_preserve(activation, message):
    with pytest.raises(ArgumentError, match=message):
        variance_preserving_gain(activation)
