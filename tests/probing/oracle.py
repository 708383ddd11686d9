"""Rows of a measurement from their formulas, by loops over samples, classes and pairs in float64."""

from __future__ import annotations

from itertools import combinations
from typing import NamedTuple

import numpy as np
import pytest
from torch import Tensor

JUDGED_BY_MEANS = ("ncc.accuracy", "nc4.agreement", "cosine_margin")


class Samples(NamedTuple):
    """Features ``(N, d)`` at the classifier's input, labels ``(N,)``, and what the model returned ``(N, K)``."""

    features: Tensor
    labels: Tensor
    logits: Tensor


def rows(samples, weight, bias=None, train=None, probabilities=False):
    """Return values by metric id.

    Args:
        samples: those measured.
        weight: ``(K, d)`` of the classifier.
        bias: ``(K,)``, if it has one.
        train: samples whose means judge, those measured by default.
        probabilities: whether the model returned probabilities in place of logits.
    """
    h, z, W = (_array(t) for t in (samples.features, samples.logits, weight))
    y = samples.labels.numpy()
    means, A, center = _means(h, y)
    judges, _, origin = (means, A, center) if train is None else _means(_array(train.features), train.labels.numpy())
    classes, N = sorted(means), len(y)
    K = len(classes)
    residuals = [h[i] - means[y[i]] for i in range(N)]
    within = sum(np.outer(r, r) for r in residuals) / N
    between = sum(np.outer(a, a) for a in A) / K
    variance = {k: np.mean([r @ r for r, label in zip(residuals, y, strict=True) if label == k]) for k in classes}
    pairs = [
        (variance[j] + variance[k]) / (2 * np.sum((means[j] - means[k]) ** 2)) for j, k in combinations(classes, 2)
    ]
    lengths = [np.linalg.norm(a) for a in A]
    W_present = W[classes]
    apart = W_present / np.linalg.norm(W_present) - A / np.linalg.norm(A)
    at_center = W_present @ center + (0 if bias is None else _array(bias)[classes])
    nearest = [min(judges, key=lambda k: np.linalg.norm(x - judges[k])) for x in h]
    decided = z.argmax(axis=1)
    vectors = W - W.mean(axis=0)
    margins, losses = [], []
    for i in range(N):
        x = h[i] - origin
        cosines = [x @ w / np.linalg.norm(x) / np.linalg.norm(w) for w in vectors]
        margins.append(cosines.pop(y[i]) - max(cosines))
        losses.append(-np.log(z[i, y[i]]) if probabilities else np.log(np.sum(np.exp(z[i] - z[i, y[i]]))))
    return {
        "nc1.ratio": np.trace(within) / np.trace(between),
        "nc1.pinv": np.trace(within @ np.linalg.pinv(between, rcond=1e-9, hermitian=True)) / K,
        "nc2.equinorm.means": np.std(lengths, ddof=1) / np.mean(lengths),
        "nc3.distance": np.sum(apart**2),
        "bias_collapse": np.linalg.norm(at_center),
        "cdnv": np.mean(pairs),
        "ncc.accuracy": np.mean(nearest == y),
        "nc4.agreement": np.mean(nearest == decided),
        "cosine_margin": np.mean(margins),
        "accuracy": np.mean(decided == y),
        "cross_entropy": np.mean(losses),
    }


def assert_rows(records, expected, rel=1e-7, **columns):
    """Compare the rows of the classifier's input with those of the oracle, all in one message."""
    found = {name: records.value(name, layer="features", **columns) for name in expected}
    assert found == pytest.approx(expected, rel=rel, abs=1e-10)


def _means(h, y):
    """Return the class means by class, the centred ones as rows, and their centre."""
    means = {k: sum(x for x, label in zip(h, y, strict=True) if label == k) / np.sum(y == k) for k in sorted(set(y))}
    center = sum(means.values()) / len(means)
    return means, np.stack([means[k] - center for k in sorted(means)]), center


def _array(tensor):
    return tensor.detach().double().numpy()
