from __future__ import annotations

import copy
import pickle
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tightframe.errors import DtypeError, ShapeError
from tightframe.moments import ClassMoments

from .problems import HARD, UNEVEN, assert_same, batches, collapsed, draw, exact_statistics, law

DTYPES = [torch.float64, torch.float32, torch.float16, torch.bfloat16]


def assert_exact(moments, features, labels, rtol=1e-12):
    """Compare with two passes in extended precision; errors are in units of the within-class spread."""
    exact = exact_statistics(features, labels)
    assert moments.present.nonzero().squeeze(1).tolist() == exact.classes.tolist()
    assert moments.count[moments.present].tolist() == exact.count.tolist()
    assert not moments.mean[~moments.present].any()
    resolution = np.finfo(np.float64).eps * float(np.abs(exact.mean).max())
    mean = moments.mean[moments.present].numpy()
    np.testing.assert_allclose(mean, exact.mean, rtol=0, atol=rtol * float(np.sqrt(exact.trace.max())) + resolution)
    np.testing.assert_allclose(moments.trace[moments.present].numpy(), exact.trace, rtol=rtol, atol=0)
    if moments.has_scatter:
        z = exact.residuals.astype(np.float64)
        scatter = z.T @ z
        np.testing.assert_allclose(moments.scatter.numpy(), scatter, rtol=0, atol=rtol * float(np.abs(scatter).max()))


def test_by_hand():
    moments = ClassMoments(3, 2, scatter=True)
    moments.update(torch.tensor([[0.0, 0.0], [2.0, 4.0], [7.0, 7.0]]), torch.tensor([2, 2, 0]))
    assert moments.count.tolist() == [1, 0, 2]
    assert moments.present.tolist() == [True, False, True]
    assert moments.mean.tolist() == [[7, 7], [0, 0], [1, 2]]
    assert moments.trace.tolist() == [0, 0, pytest.approx(10, rel=1e-15)]
    torch.testing.assert_close(moments.scatter, torch.tensor([[2.0, 4.0], [4.0, 8.0]]).double(), rtol=1e-15, atol=0)
    assert moments.global_mean().tolist() == [4.0, 4.5]
    torch.testing.assert_close(moments.global_mean("sample"), torch.tensor([9.0, 11.0]).double() / 3)
    assert moments.centered_means().tolist() == [[3, 2.5], [-3, -2.5]]


@pytest.mark.parametrize("dtype", DTYPES)
def test_features_of_every_precision_are_summed_in_float64(dtype):
    features = UNEVEN.features.to(dtype)
    moments = ClassMoments.from_samples(features, UNEVEN.labels, 5, scatter=True)
    assert {t.dtype for t in (moments.packed, moments.count, moments.mean, moments.trace)} == {torch.float64}
    assert_exact(moments, features, UNEVEN.labels)


class Image(torch.Tensor):
    pass


class Category(torch.Tensor):
    pass


LABELS = UNEVEN.labels.numpy()
FEATURES = UNEVEN.features.numpy()


@pytest.mark.parametrize(
    ("features", "labels"),
    [
        *((FEATURES, LABELS.astype(dtype)) for dtype in ("u1", "i1", "u2", "i2", "u4", "i4", "u8", ">i8")),
        (UNEVEN.features, UNEVEN.labels.to(torch.uint16)),
        (FEATURES.tolist(), LABELS.tolist()),
        (list(FEATURES), tuple(LABELS)),
        (FEATURES[::-1], LABELS[::-1]),
        (FEATURES.astype(">f8"), np.broadcast_to(LABELS, (1, 64))[0]),
        (UNEVEN.features.as_subclass(Image), UNEVEN.labels.as_subclass(Category)),
        (torch.nn.Parameter(UNEVEN.features), UNEVEN.labels),
    ],
)
def test_samples_come_in_tensors_arrays_and_lists_of_every_type(features, labels, recwarn):
    assert_same(ClassMoments.from_samples(features, labels, 5), UNEVEN.moments())
    moments = ClassMoments(5, 7, scatter=True)
    moments.update(features, labels)
    assert_same(moments, UNEVEN.moments())
    assert not recwarn.list


@pytest.mark.parametrize("name", HARD)
def test_hard_problems(name):
    problem = HARD[name]()
    assert_exact(problem.moments(), problem.features, problem.labels)


@pytest.mark.parametrize("sizes", [1, 2, 13, 64])
@pytest.mark.parametrize("offset", [0.0, 1000.0])
def test_order_and_size_of_the_batches_do_not_matter(sizes, offset):
    features, labels = UNEVEN.features + offset, UNEVEN.labels
    wanted = ClassMoments.from_samples(features, labels, 5, scatter=True)
    order = torch.randperm(labels.numel(), generator=torch.Generator().manual_seed(sizes))
    moments = ClassMoments(5, 7, scatter=True)
    for h, y in batches(features[order], labels[order], sizes):
        moments.update(h, y)
    assert_same(moments, wanted)


@pytest.mark.parametrize("offset", [0.0, 1e3, 1e6])
def test_reading_in_the_middle_changes_nothing(offset):
    sigma = 1.0 if offset == 0 else 1e-3
    features = offset + draw(3, 4)[UNEVEN.labels % 3] + sigma * draw(64, 4, seed=9)
    labels = UNEVEN.labels % 3
    moments = ClassMoments(3, 4, scatter=True)
    for h, y in batches(features, labels, 5):
        moments.update(h, y)
        assert bool((moments.trace >= 0).all())
        assert moments.mean.shape == (3, 4)
        assert moments.scatter.shape == (4, 4)
    # Each reading rounds the means to float64 once more, and later samples are measured from there.
    rtol = max(1e-12, 64 * torch.finfo(torch.float64).eps * offset / sigma)
    assert_exact(moments, features, labels, rtol=rtol)


def test_from_samples_is_update_also_where_it_goes_in_pieces():
    features, labels = draw(300, 5000), torch.arange(300) % 3  # more values than one piece holds
    moments = ClassMoments(3, 5000)
    moments.update(features, labels)
    assert_same(ClassMoments.from_samples(features, labels, 3, scatter=False), moments)


@pytest.mark.parametrize("chunk", [1, 500, 10**6])
@pytest.mark.parametrize("scatter", [False, True])
def test_a_batch_that_goes_in_pieces(scatter, chunk, monkeypatch):
    monkeypatch.setattr("tightframe.moments.CHUNK", chunk)  # with scatter a piece has 256 rows or more
    features, labels = draw(700, 30) + 3, torch.arange(700) % 3
    moments = ClassMoments(3, 30, scatter=scatter)
    moments.update(features, labels)
    assert_exact(moments, features, labels)


def test_threads_and_moments_share_no_number():
    problems = [(draw(60, d) + d, torch.arange(60) % 3) for d in (5, 9, 7)]
    together = [ClassMoments(3, h.shape[1]) for h, _ in problems]

    def update(i):
        for part in range(0, 60, 6):
            together[i].update(*(t[part : part + 6] for t in problems[i]))

    with ThreadPoolExecutor(3) as pool:
        list(pool.map(update, [0, 1, 2]))
    for moments, (features, labels) in zip(together, problems, strict=True):
        assert_exact(moments, features, labels)


def test_features_are_untouched_and_need_no_gradient():
    features = UNEVEN.features.clone().requires_grad_()
    moments = ClassMoments.from_samples(features, UNEVEN.labels, 5, scatter=True)
    assert torch.equal(features.detach(), UNEVEN.features)
    assert not moments.packed.requires_grad
    assert not moments.mean.requires_grad


def test_strided_features():
    wide = draw(30, 14)
    labels = torch.arange(60)[::2] % 3
    wanted = ClassMoments.from_samples(wide[:, ::2].contiguous(), labels.contiguous(), 3)
    assert_same(ClassMoments.from_samples(wide[:, ::2], labels, 3), wanted, rtol=0)
    assert_same(ClassMoments.from_samples(wide.T[::2].T, labels, 3), wanted, rtol=0)


def test_updates_inside_and_outside_of_inference_mode():
    moments = ClassMoments(5, 7, scatter=True)
    halves = list(batches(UNEVEN.features, UNEVEN.labels, 32))
    with torch.inference_mode():
        moments.update(*halves[0])
    moments.update(*halves[1])
    assert_same(moments, UNEVEN.moments())


def test_autocast_lowers_nothing():
    with torch.autocast("cpu", dtype=torch.bfloat16):
        moments = UNEVEN.moments()
        assert moments.global_mean().dtype == torch.float64
    assert_same(moments, UNEVEN.moments(), rtol=0)


# ---------------------------------------------------------------- no variance is negative, and collapse is exactly 0


@law
@given(
    st.integers(0, 10**6),
    st.integers(1, 40),
    st.floats(-1e6, 1e6),
    st.integers(-6, 2),
    st.integers(1, 9),
    st.sampled_from(["update", "read", "merge"]),
    st.sampled_from([torch.float64, torch.float32]),
)
def test_no_variance_is_ever_negative(seed, N, offset, exponent, size, how, dtype):
    labels = torch.arange(N) % 3
    features = (offset + 10.0**exponent * draw(N, 3, seed=seed)).to(dtype)
    features[N // 2 :] = features[: N - N // 2].clone()  # duplicates, some of them across classes
    moments = ClassMoments(3, 3, scatter=True)
    for h, y in batches(features, labels, size):
        if how == "merge":
            moments.merge(ClassMoments.from_samples(h, y, 3, scatter=True))
        else:
            moments.update(h, y)
        if how == "read":
            assert bool((moments.trace >= 0).all())
    assert bool((moments.trace >= 0).all())
    assert bool((moments.scatter.diagonal() >= 0).all())
    exact = exact_statistics(features, labels)
    # Means are rounded to float64, which an offset makes coarse; the squares know it to second order when summed.
    noise = np.finfo(np.float64).eps * abs(offset)
    limit = 1e-12 * exact.trace + 64 * noise * np.sqrt(exact.trace) + 64 * noise**2 * N
    assert np.all(np.abs(moments.trace[moments.present].numpy() - exact.trace) <= limit)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("offset", "how"), [(0.0, "read"), (0.1, "update"), (0.1, "merge"), (1e4, "read")])
def test_exact_collapse_has_variance_zero_exactly(dtype, offset, how):
    problem = collapsed(n=7)
    features = (problem.features / 3 + offset).to(dtype)
    moments = ClassMoments(4, 6, scatter=True)
    for h, y in batches(features, problem.labels, 3):
        if how == "merge":
            moments.merge(ClassMoments.from_samples(h, y, 4, scatter=True))
        else:
            moments.update(h, y)
        if how == "read":
            assert moments.count.sum() > 0
    assert moments.trace.tolist() == [0.0] * 4
    assert not moments.scatter.any()
    assert torch.equal(moments.mean, features[:4].double())


# ---------------------------------------------------------------- merging, copying, storing


@pytest.mark.parametrize("scatter", [False, True])
@pytest.mark.parametrize("sizes", [[64], [1, 63], [5, 20, 39], [0, 64, 0], [16] * 4])
def test_merged_shards_are_the_whole(scatter, sizes):
    order = UNEVEN.labels.argsort()  # so that some shards lack most classes
    moments = ClassMoments(5, 7, scatter=scatter)
    for h, y in batches(UNEVEN.features[order], UNEVEN.labels[order], sizes):
        shard = ClassMoments.from_samples(h, y, 5, scatter=scatter)
        before = pickle.loads(pickle.dumps(shard))
        moments.merge(shard)
        assert_same(shard, before, rtol=0)
    assert_same(moments, UNEVEN.moments(scatter=scatter))
    assert_exact(moments, UNEVEN.features, UNEVEN.labels)


def test_merging_with_empty_on_either_side_changes_no_bit():
    moments, empty = UNEVEN.moments(), ClassMoments(5, 7, scatter=True)
    moments.merge(empty)
    assert_same(moments, UNEVEN.moments(), rtol=0)
    empty.merge(moments)
    assert_same(empty, moments, rtol=0)
    assert_same(moments, UNEVEN.moments(), rtol=0)


def test_the_coarsest_precision_is_remembered():
    features, labels = UNEVEN.features, UNEVEN.labels
    moments = ClassMoments(5, 7)
    assert moments.eps.item() == 0
    moments.update(features.bfloat16(), torch.full_like(labels, -100), ignore_index=-100)
    assert moments.eps.item() == 0
    for dtype in (torch.float64, torch.float32, torch.float64):
        moments.update(features.to(dtype), labels)
    assert pickle.loads(pickle.dumps(moments)).eps.item() == torch.finfo(torch.float32).eps
    for dtype, coarsest in ((torch.float64, torch.float32), (torch.float16, torch.float16)):
        moments.merge(ClassMoments.from_samples(features.to(dtype), labels, 5, scatter=False))
        assert moments.eps.item() == torch.finfo(coarsest).eps


def test_merging_with_itself_doubles():
    moments, twice = UNEVEN.moments(), UNEVEN.moments()
    moments.merge(moments)
    twice.update(UNEVEN.features, UNEVEN.labels)
    assert_same(moments, twice)


@pytest.mark.parametrize("other", [(4, 7, True), (5, 6, True), (5, 7, False)])
def test_only_alike_moments_merge(other):
    K, d, scatter = other
    with pytest.raises(ShapeError, match=r"other must be like ClassMoments\(num_classes=5, dim=7, scatter=True\)"):
        UNEVEN.moments().merge(ClassMoments(K, d, scatter=scatter))


@pytest.mark.parametrize("read", [False, True])
@pytest.mark.parametrize(
    "clone",
    [
        lambda m: pickle.loads(pickle.dumps(m)),
        copy.deepcopy,
        lambda m: ClassMoments(5, 7, scatter=True, packed=m.packed.clone()),
    ],
    ids=["pickle", "deepcopy", "packed"],
)
def test_copies_go_on_where_the_original_stopped(clone, read):
    moments = ClassMoments.from_samples(UNEVEN.features[:30], UNEVEN.labels[:30], 5, scatter=True)
    if read:
        assert moments.count.sum() == 30
    twin = clone(moments)
    before = moments.packed.clone()
    twin.update(UNEVEN.features[30:], UNEVEN.labels[30:])
    assert_same(twin, UNEVEN.moments())
    assert torch.equal(moments.packed, before)
    moments.update(UNEVEN.features[30:], UNEVEN.labels[30:])
    assert_same(moments, twin, rtol=0)


def test_packed_is_used_in_place():
    packed = torch.zeros(ClassMoments.packed_size(5, 7, False), dtype=torch.float64)
    moments = ClassMoments(5, 7, packed=packed)
    assert moments.packed is packed
    moments.update(UNEVEN.features, UNEVEN.labels)
    assert_same(ClassMoments(5, 7, packed=packed), UNEVEN.moments(scatter=False), rtol=0)


def test_packed_is_checked():
    with pytest.raises(DtypeError, match=r"packed must be float64, got torch\.float32"):
        ClassMoments(2, 3, packed=torch.zeros(ClassMoments.packed_size(2, 3, False)))
    with pytest.raises(ShapeError, match=r"packed must have shape .* for K = 2, d = 3"):
        ClassMoments(2, 3, scatter=True, packed=torch.zeros(ClassMoments.packed_size(2, 3, False)).double())
