"""Unconstrained features in 10 classes reach their loss in as many steps as the nearest-ETF paper's method does.

The expected steps are those of an independent implementation (full batch, AGD with gain 10, features of length 5).
"""

import math

import pytest
import torch
from torch.nn.functional import cross_entropy

from tightframe.data import FreeSamples
from tightframe.nn import NearestETFClassifier, NormalizedLinear, SimplexETFClassifier
from tightframe.training import AGD, FreeFeatures, scaled_orthogonal_

K, d, TAU = 10, 512, 5.0
FLOOR = math.log1p((K - 1) * math.exp(-TAU * K / (K - 1)))
FOLLOWING = {"scale": TAU, "proximal": 1e-3 * (K - 1) / 2}
METHODS = {
    "learned": (lambda: NormalizedLinear(d, K, scale=TAU, projected=True), (44, 176, 388), 10),
    "canonical": (lambda: SimplexETFClassifier(d, K, orientation="canonical", scale=TAU), (16, 99, 344), 3),
    "nearest": (lambda: NearestETFClassifier(d, K, **FOLLOWING), (15, 97, 341), 2),
    "nearest, exact": (lambda: NearestETFClassifier(d, K, gradient="exact", **FOLLOWING), (15, 97, 341), 2),
    "nearest, frozen": (lambda: NearestETFClassifier(d, K, freeze_after=1, **FOLLOWING), (15, 97, 341), 2),
}


def train(method, steps):
    """Return loss and accuracy at each step, before the update."""
    samples = FreeSamples(num_classes=K, samples_per_class=100).load().train
    indices, labels = samples.tensors
    torch.manual_seed(0)
    # In float64, so that no rounding moves a step.
    features, classifier = FreeFeatures(len(samples), d).double(), METHODS[method][0]().double()
    parameters = [*features.parameters(), *classifier.parameters()]
    scaled_orthogonal_(parameters, seed=0)
    classifier.project_()
    optimizer = AGD(parameters, gain=10.0)
    curve = []
    for _ in range(steps):
        optimizer.zero_grad()
        logits = classifier(features(indices), labels)
        loss = cross_entropy(logits, labels)
        loss.backward()
        optimizer.step()
        classifier.project_()
        curve.append((loss.item(), (logits.argmax(dim=1) == labels).float().mean().item()))
    return curve


def first(curve, excess):
    """Return the first step whose loss is above the floor by a share of what chance is above it."""
    bound = FLOOR + excess * (math.log(K) - FLOOR)
    return next(step for step, (loss, _) in enumerate(curve) if loss <= bound)


@pytest.mark.parametrize("method", METHODS)
def test_steps_to_a_hundredth_of_the_excess_loss(method):
    _, expected, perfect = METHODS[method]
    curve = train(method, expected[1] + 4)
    assert [first(curve, excess) for excess in (0.1, 0.01)] == [pytest.approx(step, abs=2) for step in expected[:2]]
    assert next(step for step, (_, accuracy) in enumerate(curve) if accuracy == 1) == pytest.approx(perfect, abs=2)


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
def test_steps_to_a_thousandth_of_the_excess_loss(method):
    expected = METHODS[method][1]
    curve = train(method, expected[2] + 4)
    assert first(curve, 0.001) == pytest.approx(expected[2], abs=2)
