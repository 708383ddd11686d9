from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from tightframe.errors import ArgumentError
from tightframe.report.geometry import SimplexFrame, centred_cosines, reference_simplex, simplex_view
from tightframe.runs.snapshots import Snapshot

from .material import simplex


def snapshot(
    vectors: torch.Tensor, means: torch.Tensor, *, noise: float = 0.0, epoch: int = 0, per_class: int = 5
) -> Snapshot:
    labels = torch.arange(len(means)).repeat(per_class)
    generator = torch.Generator().manual_seed(0)
    features = means[labels] + noise * torch.randn(len(labels), means.shape[1], generator=generator)
    return Snapshot(epoch, means, vectors, features, labels)


def only_frame(*args: object, **kwargs: object) -> SimplexFrame:
    view = simplex_view([snapshot(*args, **kwargs)])  # type: ignore[arg-type]
    assert view is not None
    (frame,) = view.frames
    return frame


@pytest.mark.parametrize("count", [1, 2, 3, 4, 7])
def test_reference_simplex_is_regular(count: int) -> None:
    vertices = reference_simplex(count)
    assert vertices.shape == (count, count - 1)
    if count > 1:
        gram = (np.eye(count) * count - 1) / (count - 1)
        np.testing.assert_allclose(vertices @ vertices.T, gram, atol=1e-14)


def test_centred_cosines_ignore_offset_and_scale() -> None:
    etf = simplex(dim=12, num_classes=10).double().numpy()
    expected = (np.eye(10) * 10 - 1) / 9
    np.testing.assert_allclose(centred_cosines(3 * etf + 100), expected, atol=1e-5)


def test_centred_cosines_leave_absent_classes_out() -> None:
    vectors = np.vstack([np.eye(3), np.full((1, 3), np.nan)])
    cosines = centred_cosines(vectors)
    np.testing.assert_allclose(cosines[:3, :3], (np.eye(3) * 3 - 1) / 2, atol=1e-15)
    assert np.isnan(cosines[3]).all()
    assert np.isnan(centred_cosines(np.ones((2, 3)))).all()


def test_collapsed_features_sit_on_the_vertices() -> None:
    etf = simplex()
    frame = only_frame(2.0 * etf, 5.0 * etf + 3.0)
    vertices = reference_simplex(4)
    np.testing.assert_allclose(frame.vectors, vertices, atol=1e-5)
    np.testing.assert_allclose(frame.means, vertices, atol=1e-5)
    for k, points in enumerate(frame.points):
        np.testing.assert_allclose(points, np.tile(vertices[k], (5, 1)), atol=1e-5)


def test_fixed_classifier_stands_still_while_features_move() -> None:
    etf = simplex().double()
    generator = torch.Generator().manual_seed(1)
    frames = [only_frame(etf, torch.randn(10, 32, generator=generator).double(), noise=0.3) for _ in range(3)]
    for frame in frames[1:]:
        np.testing.assert_allclose(frame.vectors, frames[0].vectors, atol=1e-12)
        assert not np.allclose(frame.means, frames[0].means)


def test_projection_keeps_all_angles_and_lengths_of_the_class_vectors() -> None:
    vectors = torch.randn(4, 20, generator=torch.Generator().manual_seed(2)).double()
    frame = only_frame(vectors, vectors)
    centred = (vectors - vectors.mean(0)).numpy()
    gram = centred @ centred.T
    np.testing.assert_allclose(frame.vectors @ frame.vectors.T, 4 * gram / np.trace(gram), atol=1e-12)


def test_turning_the_network_changes_nothing() -> None:
    generator = torch.Generator().manual_seed(3)
    vectors, means = torch.randn(2, 6, 8, generator=generator).double()
    rotation = torch.linalg.qr(torch.randn(8, 8, generator=generator).double())[0]
    plain, turned = only_frame(vectors, means), only_frame(vectors @ rotation, means @ rotation)
    np.testing.assert_allclose(plain.vectors, turned.vectors, atol=1e-12)
    np.testing.assert_allclose(plain.means, turned.means, atol=1e-12)


def test_small_steps_of_the_classifier_make_small_steps_of_the_view() -> None:
    generator = torch.Generator().manual_seed(4)
    vectors, step = torch.randn(2, 4, 16, generator=generator).double()
    before, after = (only_frame(vectors + t * step, vectors) for t in (0.0, 1e-4))
    assert np.abs(before.vectors - after.vectors).max() < 1e-3
    assert np.abs(before.means - after.means).max() < 1e-3


@pytest.mark.parametrize(("num_classes", "dim", "drawn"), [(2, 5, 2), (3, 5, 3), (9, 2, 3), (4, 1, 2), (4, 3, 4)])
def test_few_classes_or_dimensions_degrade(num_classes: int, dim: int, drawn: int) -> None:
    vectors, means = torch.randn(2, num_classes, dim, generator=torch.Generator().manual_seed(5))
    view = simplex_view([snapshot(vectors, means)])
    assert view is not None
    assert view.classes == tuple(range(drawn))
    assert view.vertices.shape == view.frames[0].means.shape == (drawn, drawn - 1)
    assert view.frames[0].points[0].shape == (5, drawn - 1)


def test_absent_classes_are_passed_over_and_those_with_features_preferred() -> None:
    etf = simplex()
    means = etf.clone()
    means[0] = math.nan
    view = simplex_view([snapshot(etf, means)])
    assert view is not None
    assert view.classes == (1, 2, 3, 4)
    seen = snapshot(etf, etf)
    part = Snapshot(0, etf, etf, seen.features[seen.labels >= 7], seen.labels[seen.labels >= 7])
    view = simplex_view([part])
    assert view is not None
    assert view.classes == (7, 8, 9, 0)
    assert len(view.frames[0].points[3]) == 0


def test_limits_and_epochs() -> None:
    etf = simplex()
    many = [snapshot(etf, etf, epoch=epoch, per_class=50) for epoch in (0, 5)]
    view = simplex_view(many, [9, 2], per_class=40)
    assert view is not None
    assert view.classes == (9, 2)
    assert [frame.epoch for frame in view.frames] == [0, 5]
    assert [len(points) for points in view.frames[0].points] == [40, 40]


def test_what_cannot_be_drawn() -> None:
    etf = simplex()
    assert simplex_view([]) is None
    assert simplex_view([snapshot(etf, torch.full_like(etf, math.nan))]) is None
    assert simplex_view([snapshot(etf, torch.ones_like(etf))]) is None
    assert simplex_view([snapshot(torch.zeros_like(etf), etf)]) is None
    diverged = Snapshot(1, torch.full_like(etf, math.inf), etf, etf, torch.arange(10))
    view = simplex_view([snapshot(etf, etf), diverged], [0, 1])
    assert view is not None
    assert [frame.epoch for frame in view.frames] == [0]


def test_features_that_are_not_finite_are_left_out() -> None:
    etf = simplex()
    taken = snapshot(etf, etf)
    taken.features[0] = math.nan
    view = simplex_view([taken])
    assert view is not None
    assert [len(points) for points in view.frames[0].points] == [4, 5, 5, 5]


@pytest.mark.parametrize("classes", [[0], [0, 0], [0, 10], [-1, 2], [0, 1, 2, 3, 4]])
def test_classes_must_be_two_to_four_of_them(classes: list[int]) -> None:
    with pytest.raises(ArgumentError, match=r"classes must be 2 to 4 .* 0\.\.9 \(K = 10, d = 32\), got"):
        simplex_view([snapshot(simplex(), simplex())], classes)


def test_half_precision_snapshots() -> None:
    etf = simplex()
    frame = only_frame(etf.bfloat16(), etf.half())
    np.testing.assert_allclose(frame.means, reference_simplex(4), atol=0.02)
