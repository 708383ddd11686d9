"""What flows back through the nearest ETF, in which precision, and under torch.compile."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F

from ..problems import draw
from .nearest_material import (
    TAU,
    assert_equal_states,
    batch,
    classifier,
    close,
    d,
    state_of,
    unit,
)

# --- gradients ---


@pytest.mark.parametrize("gradient", ["none", "exact"])
@pytest.mark.parametrize("step", [0, 5])
def test_without_gradient_weight_and_bias_are_constants(gradient, step):
    made = classifier(*range(step), gradient=gradient)
    features, labels = batch(9)
    features.requires_grad_()
    F.cross_entropy(made(features, labels), labels).backward()
    fixed = batch(9)[0].requires_grad_()
    F.cross_entropy(TAU * unit(fixed) @ made.weight.T + made.bias, labels).backward()
    if gradient == "none":
        close(features.grad, fixed.grad)
    else:
        assert (features.grad - fixed.grad).norm() > 1e-3 * fixed.grad.norm()
    assert not made.weight.requires_grad
    assert not made.bias.requires_grad


OPTIONS = [{}, {"momentum": 0.6, "scale": 2.0}, {"proximal": 0.4}, {"proximal": 0.4, "momentum": 0.6}]


@pytest.mark.parametrize(("options", "step"), list(zip(OPTIONS, (0, 5, 0, 5), strict=True)))
def test_exact_gradient_of_the_whole_step_against_finite_differences(options, step):
    made = classifier(*range(step), gradient="exact", **options)
    features, labels = batch(9)

    def loss(h):
        return F.cross_entropy(copy.deepcopy(made)(h, labels), labels, reduction="sum")

    leaf = features.clone().requires_grad_()
    loss(leaf).backward()
    step_size, found = 1e-5, torch.empty_like(features)
    for index in range(features.numel()):
        shift = torch.zeros(features.numel(), dtype=torch.float64)
        shift[index] = step_size
        shift = shift.view_as(features)
        found.view(-1)[index] = (loss(features + shift) - loss(features - shift)).detach() / (2 * step_size)
    torch.testing.assert_close(leaf.grad, found, rtol=1e-6, atol=1e-8)


def test_exact_gradient_of_every_logit():
    made = classifier(0, 1, gradient="exact", proximal=0.2)
    labels = torch.tensor([0, 1, 2, 3, 1])
    features = draw(5, d).requires_grad_()
    assert torch.autograd.gradcheck(lambda h: copy.deepcopy(made)(h, labels), features)


def test_where_it_rests_the_gradient_is_direct():
    for options in ({"update_every": 3}, {"freeze_after": 2}):
        made = classifier(0, 1, gradient="exact", **options)
        features, labels = batch(2)
        made(features.requires_grad_(), labels).square().sum().backward()
        fixed = batch(2)[0].requires_grad_()
        (TAU * unit(fixed) @ made.weight.T + made.bias).square().sum().backward()
        close(features.grad, fixed.grad, atol=1e-12)


@pytest.mark.parametrize("gradient", ["none", "exact"])
def test_no_graph_is_built_without_gradients(gradient):
    one, other = classifier(0, gradient=gradient), classifier(0, gradient=gradient)
    with torch.no_grad():
        logits = one(batch(1)[0].requires_grad_(), batch(1)[1])
    assert not logits.requires_grad
    assert torch.equal(logits, other(*batch(1)))
    assert_equal_states(state_of(one), state_of(other))


@pytest.mark.parametrize("options", [{}, {"gradient": "exact", "proximal": 0.3}, {"update_every": 2}])
def test_an_older_graph_survives_newer_batches(options):
    made, apart = classifier(0, **options), classifier(0, **options)
    wanted, losses, leaves = [], [], []
    for seed in (1, 2):
        features, labels = batch(seed)
        F.cross_entropy(apart(features.requires_grad_(), labels), labels).backward()
        wanted.append(features.grad)
    for seed in (1, 2):
        features, labels = batch(seed)
        leaves.append(features.requires_grad_())
        losses.append(F.cross_entropy(made(features, labels), labels))
    for loss in losses:
        loss.backward()
    for leaf, grad in zip(leaves, wanted, strict=True):
        assert torch.equal(leaf.grad, grad)


def test_differentiating_the_exact_gradient_again_is_refused():
    made = classifier(0, gradient="exact")
    features, labels = batch(1)
    loss = made(features.requires_grad_(), labels).square().sum()
    (grad,) = torch.autograd.grad(loss, features, create_graph=True)
    with pytest.raises(RuntimeError):
        grad.square().sum().backward()


# --- precision ---


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("gradient", ["none", "exact"])
def test_half_features_are_computed_in_float32(dtype, gradient):
    one, other = (classifier(0, dtype=torch.float32, gradient=gradient) for _ in range(2))
    half, labels = batch(1, dtype=dtype)
    wide = half.float().requires_grad_()
    half.requires_grad_()
    logits = one(half, labels)
    wanted = other(wide, labels)
    assert logits.dtype == dtype
    assert torch.equal(logits, wanted.to(dtype))
    assert one.prepare(half).dtype == torch.float32
    assert_equal_states(state_of(one), state_of(other))
    logits.sum().backward()
    wanted.sum().backward()
    assert torch.equal(half.grad, wide.grad.to(dtype))


@pytest.mark.parametrize("gradient", ["none", "exact"])
def test_autocast_lowers_nothing(gradient):
    one, other = (classifier(0, dtype=torch.float32, gradient=gradient) for _ in range(2))
    grads = []
    for module, enabled in ((one, True), (other, False)):
        features, labels = batch(1, dtype=torch.float32)
        features.requires_grad_()
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=enabled):
            logits = module(features, labels)
            assert logits.dtype == torch.float32
            evaluated = module.eval()(features)
        logits.square().sum().backward()
        grads.append((logits, evaluated, features.grad))
    for a, b in zip(*grads, strict=True):
        assert torch.equal(a, b)
    assert_equal_states(state_of(one), state_of(other))


# --- torch.compile ---


@pytest.mark.parametrize("options", [{"gradient": "none"}, {"gradient": "exact", "freeze_after": 8}])
def test_compiled_steps_are_those_of_eager_and_compiled_once(options):
    torch._dynamo.reset()
    graphs = []

    def backend(graph, _):
        graphs.append(graph)
        return graph.forward

    eager = classifier(dtype=torch.float32, **options)
    module = copy.deepcopy(eager)
    compiled = torch.compile(module, backend=backend)
    for seed in range(12):
        leaves = []
        for step in (eager, compiled):
            features, labels = batch(seed, dtype=torch.float32)
            leaves.append(features.requires_grad_())
            logits = step(features, labels)
            F.cross_entropy(logits, labels).backward()
            leaves.append(logits)
        assert torch.equal(leaves[1], leaves[3])
        torch.testing.assert_close(leaves[0].grad, leaves[2].grad)
        if seed == 2:
            after_three = len(graphs)
    assert 0 < after_three <= 3  # what comes before the step, and what comes after it
    assert len(graphs) <= after_three + bool(module.frozen)  # logits have no gradient by the weight once it rests
    assert_equal_states(state_of(eager), state_of(module))
    assert torch.equal(compiled(batch(3, dtype=torch.float32)[0]), eager(batch(3, dtype=torch.float32)[0]))
