from __future__ import annotations

import math

import pytest
import torch
from torch.autograd import gradcheck

from tightframe.frames import nearest_simplex_etf

from ..problems import draw, simplex
from .nearest_literal import by_svd, means_of, random_frames, slope_in_many_digits

SIZES = [(2, 1), (2, 4), (3, 2), (4, 3), (4, 4), (5, 8)]
PULLS = [0.0, 0.05, 1.0, 30.0]


def gradient(means, weights, previous=None, proximal=0.0):
    x = means.clone().requires_grad_()
    frame = nearest_simplex_etf(x, previous=previous, proximal=proximal).frame
    return torch.autograd.grad((frame * weights).sum(), x)[0]


def arguments(K, d, proximal):
    return draw(K, d, seed=K + d), draw(K, d, seed=50), simplex(K, d, seed=60), proximal


@pytest.mark.parametrize("proximal", PULLS)
@pytest.mark.parametrize(("K", "d"), SIZES)
def test_gradcheck(K, d, proximal):
    means, _, previous, _ = arguments(K, d, proximal)
    means.requires_grad_()
    assert gradcheck(lambda x: nearest_simplex_etf(x, previous=previous, proximal=proximal).frame, means)


@pytest.mark.parametrize("proximal", [0.0, 1.5])
def test_gradcheck_of_a_batch(proximal):
    means, previous = draw(2, 2, 3, 4).requires_grad_(), random_frames(4, 3, 4).reshape(2, 2, 3, 4)
    assert gradcheck(lambda x: nearest_simplex_etf(x, previous=previous, proximal=proximal).frame, means)
    assert gradcheck(lambda x: nearest_simplex_etf(x.expand(2, 3, 4), previous=previous[0]).frame, means[0, 0])


@pytest.mark.parametrize("condition", [500.0, 1e4, 1e6])
@pytest.mark.parametrize("d", [3, 5])
def test_gradcheck_near_a_singular_matrix(condition, d):
    # The k-th derivative grows as condition ** k, so the step must shrink with it and rounding shows through.
    means = means_of([1.0, 1.5 / condition, 1 / condition], d).requires_grad_()
    eps = 1e-4 / condition
    atol = 1e-5 * condition
    assert gradient(means.detach(), draw(4, d)).norm() > 100 * atol
    assert gradcheck(lambda x: nearest_simplex_etf(x).frame, means, eps=eps, atol=atol, rtol=1e-4)


@pytest.mark.parametrize("proximal", PULLS)
@pytest.mark.parametrize(("K", "d"), SIZES)
def test_same_as_autograd_through_the_svd(K, d, proximal):
    means, weights, previous, _ = arguments(K, d, proximal)
    x = means.clone().requires_grad_()
    frame = by_svd(x, previous, 2 * proximal / (K - 1))
    (wanted,) = torch.autograd.grad((frame * weights).sum(), x)
    found = gradient(means, weights, previous, proximal)
    torch.testing.assert_close(found, wanted, rtol=1e-10, atol=1e-11)


@pytest.mark.parametrize("condition", [10.0, 100.0, 990.0, 1010.0, 1e4, 1e6, 1e8])
@pytest.mark.parametrize("d", [3, 5])
def test_error_against_eighty_digits(condition, d):
    bound = 1e-14 + (1e-15 * condition**2 if condition < 1e3 else 1e-14 * condition)
    means, weights, direction = means_of([1.0, 1.5 / condition, 1 / condition], d), draw(4, d), draw(4, d, seed=1)
    found = gradient(means, weights)
    wanted = slope_in_many_digits(means, weights, direction)
    assert abs((found * direction).sum().item() - wanted) < bound * found.norm() * direction.norm()


@pytest.mark.parametrize("proximal", PULLS[1:])
def test_error_against_eighty_digits_with_a_pull(proximal):
    means, weights, previous, _ = arguments(4, 5, proximal)
    found, direction = gradient(means, weights, previous, proximal), draw(4, 5, seed=1)
    wanted = slope_in_many_digits(means, weights, direction, previous, proximal)
    assert abs((found * direction).sum().item() - wanted) < 1e-13 * found.norm() * direction.norm()


@pytest.mark.parametrize("proximal", PULLS)
@pytest.mark.parametrize(("K", "d"), SIZES)
def test_offset_and_scale_of_the_means_carry_no_gradient(K, d, proximal):
    means, weights, previous, _ = arguments(K, d, proximal)
    found = gradient(means, weights, previous, proximal)
    assert found.norm() > 1e-4 or d == 1  # where nothing but the sign is left
    assert found.sum(dim=0).abs().max() < 1e-13
    assert (found * means).sum().abs() < 1e-12


def test_float32_is_close_to_float64():
    for proximal in PULLS:
        means, weights, previous, _ = arguments(5, 8, proximal)
        wanted = gradient(means.float().double(), weights.float().double(), previous.float().double(), proximal)
        found = gradient(means.float(), weights.float(), previous.float(), proximal)
        assert found.dtype == torch.float32
        torch.testing.assert_close(found, wanted.float(), rtol=1e-6, atol=1e-7 * wanted.abs().max().item())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_gets_a_gradient_of_its_dtype(dtype):
    means, weights = draw(5, 8).to(dtype), draw(5, 8, seed=1).to(dtype)
    wanted = gradient(means.float(), weights.float())
    found = gradient(means, weights)
    assert found.dtype == dtype
    assert torch.equal(found, wanted.to(dtype))


@pytest.mark.parametrize("scale", [1e-200, 1e-30, 1e30, 1e200])
def test_scale_of_the_means_divides_the_gradient(scale):
    means, weights = draw(4, 6), draw(4, 6, seed=1)
    torch.testing.assert_close(
        gradient(means * scale, weights) * scale, gradient(means, weights), rtol=1e-9, atol=1e-12
    )


def test_strided_and_expanded_gradients():
    means, weights, previous, _ = arguments(5, 8, 0.5)
    wanted = gradient(means, weights, previous, 0.5)
    torch.testing.assert_close(gradient(means, weights.T.contiguous().T, previous, 0.5), wanted, rtol=0, atol=1e-14)
    x = means.clone().requires_grad_()
    frame = nearest_simplex_etf(x, previous=previous, proximal=0.5).frame
    frame.sum(dim=1)[0].backward()  # an expanded incoming gradient
    expanded = torch.zeros(5, 8, dtype=torch.float64)
    expanded[0] = 1
    torch.testing.assert_close(x.grad, gradient(means, expanded, previous, 0.5), rtol=0, atol=1e-13)


def test_only_the_frame_and_only_the_means_carry_a_gradient():
    means, previous = draw(4, 6).requires_grad_(), simplex(4, 6).requires_grad_()
    nearest = nearest_simplex_etf(means, previous=previous, proximal=0.5)
    assert nearest.frame.requires_grad
    assert not nearest.alignment.requires_grad
    assert not nearest.smallest_singular_value.requires_grad
    nearest.frame[0, 0].backward()
    assert means.grad is not None
    assert previous.grad is None
    assert not nearest_simplex_etf(means.detach(), previous=previous, proximal=0.5).frame.requires_grad


def test_constant_results():
    means = draw(4, 6).requires_grad_()
    wanted = nearest_simplex_etf(means)
    constant = nearest_simplex_etf(means, gradient="none")
    assert wanted.frame.requires_grad
    with torch.no_grad():
        silent = nearest_simplex_etf(means)
    for other in (constant, silent, nearest_simplex_etf(means.detach())):
        assert not other.frame.requires_grad
        assert not other.alignment.requires_grad
        assert torch.equal(other.frame, wanted.frame)
        assert torch.equal(other.alignment, wanted.alignment)


def test_the_second_derivative_is_refused():
    means, weights = draw(4, 6).requires_grad_(), draw(4, 6, seed=1).requires_grad_()
    (g,) = torch.autograd.grad((nearest_simplex_etf(means).frame * weights).sum(), means, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        g.sum().backward()


def test_two_backward_passes_add_up():
    means, weights = draw(4, 6).requires_grad_(), draw(4, 6, seed=1)
    loss = (nearest_simplex_etf(means, previous=simplex(4, 6), proximal=0.5).frame * weights).sum()
    loss.backward(retain_graph=True)
    once = means.grad.clone()
    loss.backward()
    torch.testing.assert_close(means.grad, 2 * once, rtol=0, atol=1e-14)


def test_a_step_along_the_gradient_turns_the_frame_as_it_says():
    # Two classes in the plane: W turns with the angle of the difference of the means, half a step for each class.
    angle, length = 0.3, 2.0
    direction = torch.tensor([math.cos(angle), math.sin(angle)], dtype=torch.float64)
    normal = torch.tensor([-math.sin(angle), math.cos(angle)], dtype=torch.float64)
    means = torch.stack([length / 2 * direction, -length / 2 * direction])
    found = gradient(means, torch.stack([normal, torch.zeros(2, dtype=torch.float64)]))
    torch.testing.assert_close(found, torch.stack([normal, -normal]) / length, rtol=0, atol=1e-15)
