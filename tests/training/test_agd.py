"""Automatic Gradient Descent: one step by hand, the start, and going on from a state."""

import copy
import math

import pytest
import torch
from torch import nn

from tests.training.models import TRAIN, VALIDATION, Weights, quiet, trainer
from tightframe.errors import ArgumentError
from tightframe.linalg import haar_orthonormal
from tightframe.nn import NormalizedLinear
from tightframe.training import AGD, MLP, ClassifierModule, make_loader, scaled_orthogonal_


class Bare(MLP):
    """Two layers without bias."""

    def __init__(self):
        super().__init__(4, [6, 5], batch_norm=True)
        for i in (2, 5):
            self[i] = nn.BatchNorm1d(self[i].num_features, affine=False)


def zeros(*shapes, **options):
    return [nn.Parameter(torch.zeros(shape, **options)) for shape in shapes]


def stepped(parameters, gradients, **options):
    """How far each tensor moves with given gradients."""
    scaled_orthogonal_(parameters)
    optimizer = AGD(parameters, **options)
    before = [p.detach().clone() for p in parameters]
    for parameter, gradient in zip(parameters, gradients, strict=True):
        parameter.grad = gradient
    optimizer.step()
    return [(p - q).detach() for p, q in zip(parameters, before, strict=True)]


# --- the step ---


def test_a_step_by_hand():
    # s = 2 and 1/2, the norms are 5 and 4, so G = (10 + 2) / 2 = 6 and the step is log((1 + 5) / 2) = log 3.
    tensors = zeros((4, 1), (1, 4), dtype=torch.float64)
    first = torch.tensor([[3.0], [0.0], [4.0], [0.0]], dtype=torch.float64)
    second = torch.tensor([[0.0, 4.0, 0.0, 0.0]], dtype=torch.float64)
    moved = stepped(tensors, [first, second], gain=7.0)
    torch.testing.assert_close(moved[0], -7 * math.log(3) / 2 * 2 * first / 5, rtol=1e-13, atol=0)
    torch.testing.assert_close(moved[1], -7 * math.log(3) / 2 / 2 * second / 4, rtol=1e-13, atol=1e-15)


def test_the_step_of_a_convolution_is_one_of_each_position():
    # s = sqrt(4 / 1) / 2 = 1; the norms of the four positions are 1, 2, 3 and 0, so G = 6.
    (kernel,) = zeros((4, 1, 2, 2), dtype=torch.float64)
    gradient = torch.zeros(4, 1, 2, 2, dtype=torch.float64)
    gradient[0, 0, 0, 0], gradient[1, 0, 0, 1], gradient[2, 0, 1, 0] = 1.0, -2.0, 3.0
    (moved,) = stepped([kernel], [gradient], gain=1.0)
    torch.testing.assert_close(moved, -math.log(3) * gradient.sign(), rtol=1e-13, atol=0)


def test_a_small_gradient_keeps_its_digits():
    (moved,) = stepped(zeros((2, 2)), [torch.tensor([[1e-12, 0.0], [0.0, 0.0]])], gain=1e12)
    assert moved[0, 0].item() == pytest.approx(-1.0, rel=1e-5)


def test_no_gradient_is_like_a_zero_one():
    gradient = torch.eye(2, dtype=torch.float64)
    moved = [
        stepped(zeros((2, 2), (3, 3), dtype=torch.float64), [gradient, other])
        for other in (None, gradient.new_zeros(3, 3))
    ]
    for first, second in moved:
        eta = math.log((1 + math.sqrt(1 + 4 * math.sqrt(2) / 2)) / 2)
        torch.testing.assert_close(first, -10 * eta / 2 * gradient / math.sqrt(2), rtol=1e-13, atol=1e-15)
        assert not second.any()


def test_nothing_moves_where_every_gradient_is_zero_or_missing():
    assert not stepped(zeros((2, 2)), [torch.zeros(2, 2)])[0].any()
    assert not stepped(zeros((2, 2)), [None])[0].any()


def test_groups_share_the_sum_and_have_their_own_gain():
    tensors = zeros((1, 1), (1, 1), dtype=torch.float64)
    groups = [{"params": [tensors[0]]}, {"params": [tensors[1]], "gain": 3.0}]
    optimizer = AGD(groups, gain=1.0)
    before = [p.item() for p in tensors]
    for parameter in tensors:
        parameter.grad = torch.full((1, 1), 2.0, dtype=torch.float64)
    optimizer.step()
    eta = math.log(2)  # of G = (2 + 2) / 2
    assert [b - p.item() for b, p in zip(before, tensors, strict=True)] == pytest.approx([eta / 2, 3 * eta / 2])


def test_the_closure_is_called_with_gradients_and_returns_the_loss():
    weight = nn.Parameter(torch.eye(2, dtype=torch.float64))
    optimizer = AGD([weight])

    def closure():
        optimizer.zero_grad()
        loss = weight.square().sum()
        loss.backward()
        return loss

    first = optimizer.step(closure)
    assert first.item() == pytest.approx(2.0)
    assert closure().item() != pytest.approx(2.0)


def test_half_precision_takes_its_norms_in_float32():
    gradient = torch.full((64, 64), 2000.0, dtype=torch.float16)  # whose norm, 128000, is infinite in float16
    (moved,) = stepped(zeros((64, 64), dtype=torch.float16), [gradient], gain=10.0)
    eta = math.log((1 + math.sqrt(1 + 4 * 128000)) / 2)
    torch.testing.assert_close(moved.float(), torch.full((64, 64), -10 * eta / 64), rtol=1e-2, atol=0)


# --- the start ---


@pytest.mark.parametrize("shape", [(6, 3), (3, 6), (4, 4), (6, 2, 3, 3), (2, 6, 3, 3), (5, 2, 7)])
def test_the_start_is_orthogonal_at_each_position(shape):
    (tensor,) = zeros(shape, dtype=torch.float64)
    scaled_orthogonal_([tensor])
    outputs, inputs, *kernel = shape
    scale = math.sqrt(outputs / inputs / math.prod(kernel))
    for matrix in tensor.detach().flatten(2).unbind(-1) if kernel else [tensor.detach()]:
        singular_values = torch.linalg.svdvals(matrix)
        torch.testing.assert_close(singular_values, torch.full_like(singular_values, scale), rtol=1e-12, atol=0)


def test_positions_of_a_kernel_and_equal_tensors_start_apart():
    tensors = zeros((3, 3, 2, 1), (3, 3, 2, 1))
    scaled_orthogonal_(tensors)
    drawn = torch.cat([t.detach().flatten(2) for t in tensors], dim=-1).unbind(-1)
    assert len({tuple(matrix.flatten().tolist()) for matrix in drawn}) == 4


def test_the_start_is_that_of_the_seed_whatever_the_dtype():
    expected = math.sqrt(5 / 3) * haar_orthonormal(5, 3, torch.Generator().manual_seed(4))
    for dtype in (torch.float64, torch.float32, torch.bfloat16):
        torch.manual_seed(0)
        state = torch.get_rng_state()
        (tensor,) = zeros((5, 3), dtype=dtype)
        scaled_orthogonal_([tensor], seed=4)
        assert torch.equal(tensor, expected.to(dtype))
        assert torch.equal(torch.get_rng_state(), state)
    scaled_orthogonal_([tensor], seed=5)
    assert not torch.equal(tensor, expected.to(dtype))


def test_parameters_of_a_module_are_taken_in_their_order():
    model = nn.Sequential(nn.Linear(3, 4, bias=False), nn.Linear(4, 2, bias=False))
    scaled_orthogonal_(model.parameters(), seed=1)
    generator = torch.Generator().manual_seed(1)
    assert torch.equal(model[0].weight, (math.sqrt(4 / 3) * haar_orthonormal(4, 3, generator)).float())
    assert torch.equal(model[1].weight, (math.sqrt(2 / 4) * haar_orthonormal(4, 2, generator).T).float())
    assert all(p.requires_grad and p.grad_fn is None for p in model.parameters())


def test_the_optimiser_itself_overwrites_nothing():
    weight = nn.Parameter(torch.ones(2, 2))
    optimizer = AGD([weight])
    late = nn.Parameter(torch.ones(2, 2))
    optimizer.add_param_group({"params": [late]})
    assert torch.equal(weight, torch.ones(2, 2))
    assert torch.equal(late, torch.ones(2, 2))
    late.grad = torch.ones(2, 2)
    optimizer.step()
    assert torch.equal(weight, torch.ones(2, 2))
    assert (late < 1).all()


# --- going on ---


def network():
    torch.manual_seed(1)
    return nn.Sequential(nn.Conv2d(1, 4, 3, bias=False), nn.ReLU(), nn.Flatten(), nn.Linear(16, 3, bias=False))


def train(model, optimizer, steps):
    generator = torch.Generator().manual_seed(2)
    for _ in range(steps):
        optimizer.zero_grad()
        images = torch.randn(8, 1, 4, 4, generator=generator)
        nn.functional.cross_entropy(model(images), torch.arange(8) % 3).backward()
        optimizer.step()


def test_going_on_from_a_state_is_bitwise_the_same():
    whole = network()
    scaled_orthogonal_(whole.parameters())
    optimizer = AGD(whole.parameters(), gain=3.0)
    train(whole, optimizer, 3)
    weights, state = copy.deepcopy(whole.state_dict()), copy.deepcopy(optimizer.state_dict())
    train(whole, optimizer, 2)

    resumed = network()
    resumed.load_state_dict(weights)
    fresh = AGD(resumed.parameters(), gain=1.0)
    fresh.load_state_dict(state)
    train(resumed, fresh, 2)
    assert fresh.state_dict() == optimizer.state_dict()
    for name, value in whole.state_dict().items():
        assert torch.equal(resumed.state_dict()[name], value), name


@quiet
def test_a_lightning_training_goes_on_as_if_never_stopped(tmp_path):
    def module():
        torch.manual_seed(0)
        classifier = NormalizedLinear(5, 3, projected=True)
        return ClassifierModule(Bare(), classifier, nn.CrossEntropyLoss(), AGD, seed=0)

    def fit(epochs, path=None):
        weights = Weights()
        fitted = trainer(weights, max_epochs=epochs)
        fitted.fit(module(), make_loader(TRAIN, 10, seed=0), make_loader(VALIDATION, 10), ckpt_path=path)
        return fitted, weights

    whole, expected = fit(3)
    half, _ = fit(2)
    half.save_checkpoint(tmp_path / "half.ckpt")
    _, found = fit(3, tmp_path / "half.ckpt")
    for name, value in expected.after[3].items():
        assert torch.equal(found.after[3][name], value), name
    assert whole.global_step > half.global_step


# --- refusals ---


def test_no_tensor_is_refused():
    with pytest.raises(ArgumentError, match="params must hold at least one tensor, got none"):
        AGD([])
    frozen = nn.Linear(2, 2).requires_grad_(False)
    with pytest.raises(ArgumentError, match="frozen"):
        AGD(p for p in frozen.parameters() if p.requires_grad)


@pytest.mark.parametrize("shape", [(), (3,)])
def test_a_tensor_without_out_and_in_is_refused_by_its_shape(shape):
    first, other = zeros((2, 2), shape)
    with pytest.raises(ArgumentError, match=r"got \(3?,?\).*bias=False.*affine=False"):
        AGD([first, other])
    with pytest.raises(ArgumentError, match=r"got \(3?,?\).*bias=False.*affine=False"):
        scaled_orthogonal_([first, other])
    assert not first.any()  # nothing is overwritten on the way to an error
    optimizer = AGD([first])
    with pytest.raises(ArgumentError, match="affine=False"):
        optimizer.add_param_group({"params": [other]})


@pytest.mark.parametrize("gain", [0, -1.0, math.inf, math.nan, True, "10"])
def test_the_gain_must_be_positive_and_finite(gain):
    with pytest.raises(ArgumentError, match=f"gain must be a finite number > 0, got {gain!r}"):
        AGD(zeros((2, 2)), gain=gain)


@pytest.mark.parametrize("seed", [-1, 0.5, None])
def test_the_seed_must_be_a_natural_number(seed):
    with pytest.raises(ArgumentError, match="seed"):
        scaled_orthogonal_(zeros((2, 2)), seed=seed)
