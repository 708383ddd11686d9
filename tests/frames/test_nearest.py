from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tightframe.errors import ArgumentError, DeviceError, DimensionError, DtypeError, NonFiniteError, ShapeError
from tightframe.frames import NearestETF, is_simplex_etf, nearest_simplex_etf

from ..problems import draw, law, rotation, simplex
from .nearest_literal import (
    by_svd,
    centering,
    distance_from_exact,
    means_of,
    normalized,
    objective,
    pulled,
    random_frames,
    simplex_gram,
    zero_sum,
)

SIZES = [(2, 1), (2, 7), (3, 2), (3, 3), (5, 4), (5, 5), (6, 9), (10, 64), (33, 32)]
SPECTRA = {
    "even": [1.0, 0.9, 1.1],
    "just inside the Gram matrix's reach": [1.0, 2e-3, 1.02e-3],
    "just outside": [1.0, 2e-3, 0.98e-3],
    "graded": [1.0, 1e-4, 1e-8],
}


def assert_simplex(frame, atol=1e-12):
    wanted = simplex_gram(frame.shape[-2]).expand(*frame.shape[:-2], -1, -1)
    torch.testing.assert_close(frame @ frame.mT, wanted, rtol=0, atol=atol)
    assert frame.sum(dim=-2).abs().max() < atol


def relative(found, wanted):
    return float((found - wanted).norm() / wanted.norm())


# The answer ----------------------------------------------------------------------------------------------------------


def test_two_classes_by_hand():
    means = torch.tensor([[13.0, 4.0], [7.0, -4.0]], dtype=torch.float64)
    wanted = torch.tensor([[0.6, 0.8], [-0.6, -0.8]], dtype=torch.float64)
    nearest = nearest_simplex_etf(means)
    torch.testing.assert_close(nearest.frame, wanted, rtol=0, atol=1e-15)
    assert nearest.alignment.item() == pytest.approx(1, abs=1e-15)
    # Half a previous vector (0, 1) added to the direction (0.6, 0.8) of the means.
    previous = torch.tensor([[0.0, 1.0], [0.0, -1.0]], dtype=torch.float64)
    nearest = nearest_simplex_etf(means, previous=previous, proximal=0.5)
    length = math.hypot(0.6, 1.3)
    wanted = torch.tensor([[0.6, 1.3], [-0.6, -1.3]], dtype=torch.float64) / length
    torch.testing.assert_close(nearest.frame, wanted, rtol=0, atol=1e-15)
    assert nearest.alignment.item() == pytest.approx((0.36 + 1.04) / length, abs=1e-15)
    assert nearest.smallest_singular_value.item() == pytest.approx(length, abs=1e-15)


@pytest.mark.parametrize(("K", "d"), SIZES)
def test_frame_is_a_simplex_etf_with_exact_gram(K, d):
    nearest = nearest_simplex_etf(draw(K, d, seed=K))
    assert_simplex(nearest.frame)
    assert is_simplex_etf(nearest.frame, tol=1e-12)
    assert nearest.rank.item() == K - 1


@pytest.mark.parametrize("spectrum", SPECTRA.values(), ids=SPECTRA)
@pytest.mark.parametrize("d", [3, 6])
def test_frame_is_a_simplex_etf_however_ill_conditioned(spectrum, d):
    for seed in range(5):
        nearest = nearest_simplex_etf(means_of(spectrum, d, seed))
        assert_simplex(nearest.frame)
        assert nearest.rank.item() == 3


@pytest.mark.parametrize(("K", "d"), SIZES)
def test_numbers_beside_the_frame_are_those_of_an_svd(K, d):
    means = draw(K, d, seed=K)
    nearest = nearest_simplex_etf(means)
    singular = np.linalg.svd(normalized(means).numpy(), compute_uv=False)[: K - 1]
    # ⟨H̃, U M̃⟩ is the nuclear norm of H̃ over √(K-1), and directly the cosine of means and frame.
    assert nearest.alignment.item() == pytest.approx(singular.sum() / math.sqrt(K - 1), abs=1e-13)
    cosine = (normalized(means) * nearest.frame).sum() / nearest.frame.norm()
    assert nearest.alignment.item() == pytest.approx(cosine.item(), abs=1e-13)
    assert 2 - 2 * nearest.alignment.item() == pytest.approx(objective(means, nearest.frame).item(), abs=1e-13)
    assert nearest.smallest_singular_value.item() == pytest.approx(singular[-1] * math.sqrt(K - 1), abs=1e-12)


@pytest.mark.parametrize("proximal", [0.05, 1.0, 8.0])
@pytest.mark.parametrize("spectrum", [[1.0, 0.6, 0.3], [1.0, 1e-4, 1e-6]])
def test_numbers_beside_the_frame_with_a_pull(proximal, spectrum):
    means, previous = means_of(spectrum, 6), simplex(4, 6, seed=9)
    nearest = nearest_simplex_etf(means, previous=previous, proximal=proximal)
    A = pulled(means, previous, 2 * proximal / 3)
    singular = torch.linalg.svdvals(A)
    # ⟨G, U*⟩ of the pulled matrix is its nuclear norm; the alignment is the means' part of it alone.
    V = zero_sum(4).T @ nearest.frame * math.sqrt(3 / 4)
    assert (A * V).sum().item() == pytest.approx(singular.sum().item(), rel=1e-13)
    assert nearest.smallest_singular_value.item() == pytest.approx(singular[-1].item() * 3 / 2, rel=1e-9)
    cosine = (normalized(means) * nearest.frame).sum() / nearest.frame.norm()
    assert nearest.alignment.item() == pytest.approx(cosine.item(), abs=1e-13)


@pytest.mark.parametrize(("K", "d"), SIZES)
def test_an_etf_is_its_own_nearest(K, d):
    W = simplex(K, d, seed=K)
    nearest = nearest_simplex_etf(3 * W + draw(d))
    torch.testing.assert_close(nearest.frame, W, rtol=0, atol=1e-13)
    assert nearest.alignment.item() == pytest.approx(1, abs=1e-14)
    assert nearest.smallest_singular_value.item() == pytest.approx(1, abs=1e-13)
    pulled_to_itself = nearest_simplex_etf(W, previous=W, proximal=0.7)
    assert pulled_to_itself.alignment.item() == pytest.approx(1, abs=1e-14)
    assert pulled_to_itself.smallest_singular_value.item() == pytest.approx(1.7, abs=1e-13)


def test_alignment_is_never_above_one():
    # A distance √(2 - 2 alignment) of a converged network must not be nan by rounding.
    alignments = [nearest_simplex_etf((1 + i) * simplex(2 + i % 9, 12, seed=i)).alignment for i in range(100)]
    assert max(alignments) <= 1


@pytest.mark.parametrize("delta", [0.0, 1e-3, 0.3])
@pytest.mark.parametrize(("K", "d"), [(2, 1), (4, 3), (5, 9)])
def test_no_other_frame_does_better(K, d, delta):
    means, previous = draw(K, d, seed=1), simplex(K, d, seed=2)
    frame = nearest_simplex_etf(means, previous=previous, proximal=delta * (K - 1) / 2).frame
    best = objective(means, frame, previous, delta)
    others = [random_frames(1000, K, d)]
    for step in (1e-1, 1e-3, 1e-5):  # about the answer, brought back onto the frames by an SVD
        V = zero_sum(K).T @ frame + step * draw(200, K - 1, d, seed=3)
        P, _, R = torch.linalg.svd(V, full_matrices=False)
        others.append(math.sqrt(K / (K - 1)) * zero_sum(K) @ P @ R)
    assert objective(means, torch.cat(others), previous, delta).min() >= best - 1e-14


@pytest.mark.parametrize(("K", "d"), [(2, 3), (4, 4), (5, 9)])
def test_unreduced_form_of_the_paper_has_this_classifier(K, d):
    means = draw(K, d, seed=4)
    s, c = math.sqrt(K / (K - 1)), 2 / math.sqrt(K - 1)
    P, _, R = torch.linalg.svd(c * normalized(means).T, full_matrices=False)
    torch.testing.assert_close(nearest_simplex_etf(means).frame, s * centering(K) @ (P @ R).T, rtol=0, atol=1e-12)


@pytest.mark.parametrize("delta", [1e-3, 0.1])
@pytest.mark.parametrize(("K", "d"), [(3, 3), (4, 7)])
def test_unreduced_form_with_a_pull_whose_null_direction_leaves_the_means_alone(K, d, delta):
    # With U_0 1 orthogonal to the means the paper's two terms share no more than the classifier.
    means = draw(K, d, seed=4)
    s, c, B = math.sqrt(K / (K - 1)), 2 / math.sqrt(K - 1), zero_sum(K)
    null = torch.linalg.qr(torch.cat([normalized(means).T @ B, draw(d, 1, seed=5)], dim=1))[0][:, -1]
    V_0 = torch.linalg.qr(torch.cat([null.unsqueeze(1), draw(d, K - 1, seed=6)], dim=1))[0][:, 1:]
    U_0 = V_0 @ B.T + null.unsqueeze(1) / math.sqrt(K)
    torch.testing.assert_close(U_0.T @ U_0, torch.eye(K, dtype=torch.float64), rtol=0, atol=1e-13)
    P, _, R = torch.linalg.svd(c * normalized(means).T + delta * U_0, full_matrices=False)
    found = nearest_simplex_etf(means, previous=s * centering(K) @ U_0.T, proximal=delta * (K - 1) / 2).frame
    torch.testing.assert_close(found, s * centering(K) @ (P @ R).T, rtol=0, atol=1e-12)


def test_a_vanishing_pull_leaves_the_frame():
    means, previous = draw(4, 6), simplex(4, 6, seed=9)
    free = nearest_simplex_etf(means)
    assert torch.equal(nearest_simplex_etf(means, previous=previous).frame, free.frame)
    moved = [
        (nearest_simplex_etf(means, previous=previous, proximal=p).frame - free.frame).norm() for p in (1e-6, 1e-9)
    ]
    assert 1e-7 < moved[0] < 1e-5
    assert moved[1] / moved[0] == pytest.approx(1e-3, rel=1e-3)
    for proximal in (1e6, 1e12):
        far = nearest_simplex_etf(means, previous=previous, proximal=proximal)
        assert (far.frame - previous).norm() < 3 / proximal + 1e-15


@law
@given(
    K=st.integers(2, 7),
    extra=st.integers(-1, 4),
    seed=st.integers(0, 99),
    proximal=st.sampled_from([0.0, 0.2, 3.0]),
    scale=st.sampled_from([1e-9, 1.0, 1e9]),
)
def test_laws(K, extra, seed, proximal, scale):
    d = K + extra
    means, previous = draw(K, d, seed=seed), simplex(K, d, seed=seed + 1)
    nearest = nearest_simplex_etf(means, previous=previous, proximal=proximal)
    torch.testing.assert_close(nearest.frame, by_svd(means, previous, 2 * proximal / (K - 1)), rtol=0, atol=1e-10)
    R, order = rotation(d, seed + 2), torch.randperm(K, generator=torch.Generator().manual_seed(seed))
    for moved, anchor, wanted in (
        (means @ R, previous @ R, nearest.frame @ R),
        (means[order], previous[order], nearest.frame[order]),
        (scale * (means + draw(d, seed=seed + 3)), previous, nearest.frame),
    ):
        found = nearest_simplex_etf(moved, previous=anchor, proximal=proximal)
        torch.testing.assert_close(found.frame, wanted, rtol=0, atol=1e-10)
        assert found.alignment.item() == pytest.approx(nearest.alignment.item(), abs=1e-12)


# How accurate --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("condition", [10.0, 100.0, 990.0, 1010.0, 1e4, 1e6, 1e8])
@pytest.mark.parametrize("d", [3, 5])
def test_error_against_eighty_digits(condition, d):
    # The Gram matrix squares the condition number, the SVD does not.
    bound = 1e-15 + (1e-16 * condition**2 if condition < 1e3 else 1e-15 * condition)
    for spectrum in ([1.0, 1.5 / condition, 1 / condition], [1.0, condition**-0.5, 1 / condition]):
        means = means_of(spectrum, d)
        assert distance_from_exact(nearest_simplex_etf(means).frame, means) < bound


@pytest.mark.parametrize("proximal", [0.05, 1.0, 30.0])
def test_error_against_eighty_digits_with_a_pull(proximal):
    means, previous = means_of([1.0, 0.5, 1e-5], 5), simplex(4, 5, seed=9)
    frame = nearest_simplex_etf(means, previous=previous, proximal=proximal).frame
    assert distance_from_exact(frame, means, previous, proximal) < 1e-12


@pytest.mark.parametrize(
    ("scale", "dtype", "atol"),
    [
        *((s, torch.float64, 1e-13) for s in (1e-300, 1e-200, 1e-160, 1e-155, 1e155, 1e160, 1e200, 1e300)),
        *((s, torch.float32, 1e-6) for s in (1e-30, 1e30)),
    ],
)
def test_scale_does_not_matter(scale, dtype, atol):
    means = draw(4, 6).to(dtype)
    wanted, found = nearest_simplex_etf(means), nearest_simplex_etf(means * scale)
    torch.testing.assert_close(found.frame, wanted.frame, rtol=0, atol=atol)
    assert found.alignment.item() == pytest.approx(wanted.alignment.item(), abs=atol)
    assert found.smallest_singular_value.item() == pytest.approx(wanted.smallest_singular_value.item(), rel=10 * atol)
    assert found.rank.item() == 3


def test_small_differences_on_a_huge_offset():
    # Sixteenths on 2 ** 18 are exact in float32, so nothing but the arithmetic can lose them.
    small = (draw(5, 7) * 16).round() / 16
    wanted = nearest_simplex_etf(small).frame
    found = nearest_simplex_etf((small + 2.0**18).float()).frame
    torch.testing.assert_close(found, wanted.float(), rtol=0, atol=1e-7)
    found = nearest_simplex_etf(small + 2.0**40).frame
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-12)


# Inputs of every kind ------------------------------------------------------------------------------------------------


def test_result_is_a_frame_with_facts():
    nearest = nearest_simplex_etf(draw(4, 6))
    assert isinstance(nearest, NearestETF)
    assert nearest.as_matrix() is nearest.frame
    torch.testing.assert_close(nearest.logits(draw(3, 6)), draw(3, 6) @ nearest.frame.T)
    assert torch.equal(nearest.rows(torch.tensor([2])), nearest.frame[2:3])
    text = repr(nearest)
    assert "NearestETF(num_classes=4, dim=6" in text
    assert f"alignment={nearest.alignment.item()}, " in text
    assert text.endswith("rank=3)")
    assert "<td>rank</td><td>3</td>" in nearest._repr_html_()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("default", [torch.float32, torch.float64])
def test_dtypes_and_shapes(dtype, default):
    means, previous = draw(2, 3, 4, 6).to(dtype), simplex(4, 6, seed=1).to(dtype)
    torch.set_default_dtype(default)
    try:
        nearest = nearest_simplex_etf(means, previous=previous, proximal=0.1)
    finally:
        torch.set_default_dtype(torch.float32)
    wide = dtype if dtype in (torch.float32, torch.float64) else torch.float32
    facts = nearest.frame, nearest.alignment, nearest.smallest_singular_value, nearest.rank
    assert [x.dtype for x in facts] == [wide, wide, torch.float64, torch.int64]
    assert [x.shape for x in facts] == [(2, 3, 4, 6), (2, 3), (2, 3), (2, 3)]
    wanted = nearest_simplex_etf(means.double(), previous=previous.double(), proximal=0.1)
    torch.testing.assert_close(nearest.frame, wanted.frame.to(wide), rtol=0, atol=0)
    torch.testing.assert_close(nearest.alignment, wanted.alignment.to(wide), rtol=0, atol=0)


@pytest.mark.parametrize("proximal", [0.0, 0.4])
@pytest.mark.parametrize("common", [True, False])
def test_a_batch_is_its_elements(proximal, common):
    means = draw(2, 3, 5, 7)
    means[0, 1, 4] = means[0, 1, 2]
    means[1, 2] = means_of([1.0, 0.5, 0.1, 1e-7], 7)
    previous = random_frames(6, 5, 7).reshape(2, 3, 5, 7)
    previous = previous[1, 1] if common else previous
    found = nearest_simplex_etf(means, previous=previous, proximal=proximal)
    assert proximal or found.rank.tolist() == [[4, 3, 4], [4, 4, 4]]
    for i in range(2):
        for j in range(3):
            anchor = previous if common else previous[i, j]
            one = nearest_simplex_etf(means[i, j], previous=anchor, proximal=proximal)
            torch.testing.assert_close(found.frame[i, j], one.frame, rtol=0, atol=1e-8)
            torch.testing.assert_close(found.alignment[i, j], one.alignment, rtol=0, atol=1e-12)
            assert found.rank[i, j] == one.rank
    assert nearest_simplex_etf(means[:0]).frame.shape == (0, 3, 5, 7)


def test_strides_do_not_matter_and_inputs_stay_as_they_are():
    means, previous = draw(4, 6), simplex(4, 6, seed=1)
    wanted = nearest_simplex_etf(means, previous=previous, proximal=0.3).frame
    strided, wide = means.T.contiguous().T, means.repeat_interleave(2, dim=1)[:, ::2]
    for x in (strided, wide, means.clone().requires_grad_()):
        kept, anchor = x.detach().clone(), previous.clone()
        found = nearest_simplex_etf(x, previous=anchor, proximal=0.3).frame
        torch.testing.assert_close(found, wanted, rtol=0, atol=1e-14)
        assert torch.equal(x, kept)
        assert torch.equal(anchor, previous)
    expanded = nearest_simplex_etf(means.expand(3, 4, 6), previous=previous, proximal=0.3).frame
    torch.testing.assert_close(expanded, wanted.expand(3, 4, 6), rtol=0, atol=1e-14)


def test_autocast_lowers_nothing():
    means = draw(5, 7).float()
    wanted = nearest_simplex_etf(means).frame
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(nearest_simplex_etf(means).frame, wanted)


def test_compiled_function_gives_the_same():
    def loss(means, previous):
        nearest = nearest_simplex_etf(2 * means, previous=previous, proximal=0.2)
        return (nearest.frame * means).sum() + nearest.alignment

    means, previous = draw(4, 5).requires_grad_(), simplex(4, 5)
    compiled = torch.compile(loss, backend="eager", fullgraph=False)
    values = [f(means, previous) for f in (compiled, loss)]
    torch.testing.assert_close(*values, rtol=0, atol=1e-14)
    grads = [torch.autograd.grad(value, means)[0] for value in values]
    torch.testing.assert_close(*grads, rtol=0, atol=1e-13)


# Errors --------------------------------------------------------------------------------------------------------------

GOOD = draw(4, 6)


@pytest.mark.parametrize("argument", ["class_means", "previous"])
@pytest.mark.parametrize(
    ("bad", "error", "message"),
    [
        ([[1.0, 0.0], [0.0, 1.0]], DtypeError, "got list"),
        (torch.ones(4, 6, dtype=torch.int64), DtypeError, r"int64.*\.float\(\)"),
        (torch.ones(4, 6, dtype=torch.complex64), DtypeError, "complex64"),
        (torch.ones(6), ShapeError, r"got \(6,\)"),
        (torch.ones(1, 6), ShapeError, r"K >= 2, got \(1, 6\)"),
        (torch.ones(5, 3), DimensionError, r"d >= K - 1 = 4, got d = 3.*widen"),
        (GOOD.clone().index_fill_(0, torch.tensor(1), math.nan), NonFiniteError, "got 6 NaN or infinite of 24"),
        (GOOD.clone().index_fill_(1, torch.tensor(1), -math.inf), NonFiniteError, "got 4 NaN or infinite of 24"),
    ],
)
def test_tensors_must_be_finite_floating_point_and_wide_enough(argument, bad, error, message):
    arguments = {"class_means": GOOD, argument: bad}
    with pytest.raises(error, match=rf"^{argument} .*{message}"):
        nearest_simplex_etf(arguments.pop("class_means"), **arguments)


@pytest.mark.parametrize("shape", [(3, 6), (4, 7), (1, 4, 6), (2, 4, 6)])
def test_previous_must_fit(shape):
    with pytest.raises(ShapeError, match=rf"previous must have shape \(4, 6\).*got \({shape[0]}, "):
        nearest_simplex_etf(GOOD, previous=torch.ones(shape))


def test_previous_must_lie_beside_the_means():
    with pytest.raises(DeviceError, match="previous is on meta and class_means on cpu"):
        nearest_simplex_etf(GOOD, previous=torch.ones(4, 6, device="meta"))


@pytest.mark.parametrize("proximal", [-1e-9, math.nan, math.inf, True])
def test_proximal_must_be_a_finite_number(proximal):
    with pytest.raises(ArgumentError, match="proximal must be finite and >= 0, got"):
        nearest_simplex_etf(GOOD, previous=GOOD, proximal=proximal)


def test_proximal_needs_previous():
    with pytest.raises(ArgumentError, match=r"proximal = 0.5 needs previous.*got None"):
        nearest_simplex_etf(GOOD, proximal=0.5)


@pytest.mark.parametrize("gradient", ["approximate", None, True])
def test_gradient_must_be_known(gradient):
    with pytest.raises(ArgumentError, match="gradient must be one of 'exact', 'none', got"):
        nearest_simplex_etf(GOOD, gradient=gradient)
