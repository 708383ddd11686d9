import math

import numpy as np
import pytest
from studies.theory.linear_heads import head_of, imbalance, measure, train
from studies.theory.networks import digits

from studies.theory import FIGURES, linear_heads
from tightframe.ufm import certify_head

K, PER_CLASS = 10, 4


@pytest.fixture(scope="module")
def data():
    return digits((PER_CLASS,) * K)


def trained(data, depth, **options):
    settings = {"width": 32, "warm_up": 300, "steps": 1200, "decay": 1e-3} | options
    return train(*data, depth, 0, **settings)


@pytest.fixture(scope="module")
def three_layers(data):
    return trained(data, 3)


def test_bounds_hold_of_a_trained_network(three_layers, data):
    row = measure(three_layers[0], *data)
    assert row["NC1"] <= row["bound of NC1"] <= row["bound of NC1 a priori"]
    # A bound is nan where training has not come far enough for one.
    assert not row["means"] > row["bound of means"]
    assert not row["cosine"] < row["bound of cosine"]
    assert not row["matrix"] > row["bound of matrix"]


def test_what_is_measured_is_what_the_certificate_is_of(three_layers, data):
    network, (images, labels) = three_layers[0], data
    found = certify_head(head_of(network), network.body(images.double()).detach(), labels)
    of_certificate = [bound.measured for bound in (found.nc1, found.nc2, found.nc3, found.conditioning)]
    row = measure(network, *data)
    assert [row[name] for name in ("NC1", "means", "cosine", "matrix")] == pytest.approx(of_certificate, rel=1e-9)
    assert row["imbalance"] == pytest.approx(found.imbalance, rel=1e-9)


def test_a_head_of_one_layer_is_measured_too(data):
    network, course = trained(data, 1, warm_up=200, steps=0)
    assert course == [{"t": 0.0, "imbalance": 0.0}]
    row = measure(network, *data)
    (W, H), y = (x.numpy() for x in network.point(data[0].double())), data[1].numpy()
    M = np.stack([H[y == k].mean(axis=0) for k in range(K)])
    assert row["NC1"] == pytest.approx(np.square(H - M[y]).sum() / np.square(M[y] - H.mean(axis=0)).sum())
    assert row["means"] == pytest.approx(np.divide(*np.linalg.svd(M)[1][[0, -1]]))
    assert row["matrix"] == pytest.approx(np.divide(*np.linalg.svd(W)[1][[0, -1]]))
    cosines = (M * W).sum(axis=1) / np.linalg.norm(M, axis=1) / np.linalg.norm(W, axis=1)
    assert row["cosine"] == pytest.approx(cosines.min())
    assert math.isnan(row["bound of NC1"])


def test_imbalance_is_the_largest_of_neighbours(three_layers):
    network, course = three_layers
    A, B, C = (matrix.numpy() for matrix in head_of(network))
    wanted = max(np.linalg.norm(B.T @ B - A @ A.T, 2), np.linalg.norm(C.T @ C - B @ B.T, 2))
    assert imbalance(head_of(network)) == course[-1]["imbalance"] == pytest.approx(wanted)


def test_imbalance_decays_as_under_gradient_flow(data):
    decay = 5e-4
    _, course = trained(data, 2, warm_up=600, steps=2000, decay=decay)
    times, values = (np.array([row[name] for row in course]) for name in ("t", "imbalance"))
    assert times[-1] == pytest.approx(0.5 * linear_heads.RATE * 2000 / (1 - linear_heads.MOMENTUM), rel=1e-3)
    slopes = np.diff(np.log(values[6:-4])) / np.diff(times[6:-4])
    assert slopes == pytest.approx(np.full(slopes.shape, -2 * decay), rel=0.1)


def test_figure_draws_what_was_computed(monkeypatch):
    small = {"DEPTHS": (1, 2), "SAMPLES": 4, "STARTS": 2}
    for name, value in small.items():
        monkeypatch.setattr(linear_heads, name, value)
    monkeypatch.setattr(
        linear_heads, "train", lambda x, y, depth, seed: train(x, y, depth, seed, width=12, warm_up=300, steps=400)
    )
    assert FIGURES["linear-head"] is linear_heads.linear_head
    nc1, means, cosine, matrix, by_depth, by_time = linear_heads.linear_head(0)
    for chart in (nc1, means, cosine, matrix, by_depth):
        assert all(list(line.x) == [1, 1, 2, 2] for line in chart.lines)
    for i in (2, 3):
        assert nc1.lines[0].y[i] <= nc1.lines[1].y[i] <= nc1.lines[2].y[i]
        assert not means.lines[0].y[i] > means.lines[1].y[i]
        assert not cosine.lines[0].y[i] < cosine.lines[1].y[i]
        assert not matrix.lines[0].y[i] > matrix.lines[1].y[i]
    assert by_time.lines[0].y[-1] == pytest.approx(sum(by_depth.lines[0].y[2:]) / 2)
