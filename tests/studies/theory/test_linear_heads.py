import math

import numpy as np
import pytest
import torch
from studies.theory.linear_heads import measure, train

from studies.theory import FIGURES, linear_heads
from tests.problems import draw
from tightframe.ufm.heads import certify_head

K, PER_CLASS = 3, 12


@pytest.fixture(scope="module")
def data():
    labels = torch.arange(K).repeat_interleave(PER_CLASS)
    centres = draw(K, 6, seed=1)
    return (0.5 * centres[labels] + 0.1 * draw(len(labels), 6, seed=2)).float(), labels


def networks(data, depth, **options):
    settings = {"width": 8, "starts": 2, "warm_up": 300, "steps": 1200, "decay": 2e-3} | options
    return train(*data, depth, torch.Generator().manual_seed(0), **settings)


@pytest.fixture(scope="module")
def three_layers(data):
    return networks(data, 3)


def test_bounds_hold_of_trained_networks(three_layers, data):
    for head, entering in three_layers.points():
        certificate, measured = certify_head(head, entering, data[1]), measure(head, entering, data[1])
        assert measured.nc1 <= certificate.nc1.bound <= certificate.nc1_a_priori.bound
        # A bound is nan where training has not come far enough for one.
        assert not measured.means > certificate.nc2.bound
        assert not measured.cosine < certificate.nc3.bound
        assert not measured.matrix > certificate.conditioning.bound


def test_what_is_measured_is_what_the_certificate_is_of(three_layers, data):
    for head, entering in three_layers.points():
        certificate, measured = certify_head(head, entering, data[1]), measure(head, entering, data[1])
        of_certificate = (certificate.nc1, certificate.nc2, certificate.nc3, certificate.conditioning)
        assert tuple(measured) == pytest.approx(tuple(bound.measured for bound in of_certificate), rel=1e-9)


def test_a_head_of_one_layer_is_measured_too(data):
    network = networks(data, 1, warm_up=200, steps=0)
    assert len(network.matrices) == 1
    assert network.imbalances.tolist() == [[0.0, 0.0]]
    ((W,), H), *_ = network.points()
    W, H, y = W.double().numpy(), H.double().numpy(), data[1].numpy()
    M = np.stack([H[y == k].mean(axis=0) for k in range(K)])
    measured = measure(*network.points()[0], data[1])
    assert measured.nc1 == pytest.approx(np.square(H - M[y]).sum() / np.square(M[y] - H.mean(axis=0)).sum())
    assert measured.means == pytest.approx(np.divide(*np.linalg.svd(M)[1][[0, -1]]))
    assert measured.matrix == pytest.approx(np.divide(*np.linalg.svd(W)[1][[0, -1]]))
    cosines = (M * W).sum(axis=1) / np.linalg.norm(M, axis=1) / np.linalg.norm(W, axis=1)
    assert measured.cosine == pytest.approx(cosines.min())


def test_imbalance_is_the_largest_of_neighbours(three_layers, data):
    for index, (head, entering) in enumerate(three_layers.points()):
        wanted = certify_head(head, entering, data[1]).imbalance
        assert three_layers.imbalances[-1, index].item() == pytest.approx(wanted, rel=1e-9)
        A, B, C = (matrix.double().numpy() for matrix in head)
        assert wanted == pytest.approx(max(np.linalg.norm(B.T @ B - A @ A.T, 2), np.linalg.norm(C.T @ C - B @ B.T, 2)))


def test_imbalance_decays_as_under_gradient_flow(data):
    decay = 5e-4
    network = networks(data, 2, warm_up=600, steps=2000, decay=decay)
    times, values = np.array(network.times), network.imbalances.numpy()
    assert times[-1] == pytest.approx(0.5 * linear_heads.RATE * 2000 / (1 - linear_heads.MOMENTUM), rel=1e-3)
    slopes = np.diff(np.log(values[6:]), axis=0) / np.diff(times[6:])[:, None]
    assert slopes == pytest.approx(np.full(slopes.shape, -2 * decay), rel=0.1)


def test_figure_draws_what_was_computed(monkeypatch):
    small = {"DEPTHS": (1, 2), "SAMPLES": 4, "STARTS": 2}
    for name, value in small.items():
        monkeypatch.setattr(linear_heads, name, value)
    real = linear_heads.train
    monkeypatch.setattr(
        linear_heads, "train", lambda x, y, depth, g: real(x, y, depth, g, width=12, starts=2, warm_up=300, steps=400)
    )
    assert FIGURES["linear-head"] is linear_heads.linear_head
    charts = linear_heads.linear_head(0)
    nc1, means, cosine, matrix, by_depth, by_time = charts
    for chart in (nc1, means, cosine, matrix):
        assert list(chart.lines[0].x) == [1, 1, 2, 2]
        assert all(list(line.x) == [2] for line in chart.lines[1:])
    assert max(nc1.lines[0].y[2:]) <= nc1.lines[1].y[0] <= nc1.lines[2].y[0]
    assert not max(means.lines[0].y[2:]) > means.lines[1].y[0]
    assert not min(cosine.lines[0].y[2:]) < cosine.lines[1].y[0]
    assert list(by_depth.lines[0].x) == [2, 2]
    assert by_time.lines[0].y[-1].item() == pytest.approx(sum(by_depth.lines[0].y) / 2)
    assert math.isnan(matrix.lines[1].y[0]) or matrix.lines[1].y[0] >= max(matrix.lines[0].y[2:])
