from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch

from tightframe.errors import ArgumentError, DimensionError, ShapeError
from tightframe.ufm import CrossEntropyUFM, DeepUFM
from tightframe.ufm.deep import deep_logits, deep_objective
from tightframe.ufm.deep_cross_entropy import (
    best_scale,
    deep_form,
    lower_bound,
    stable_scale,
    stationary_decay,
    structures,
)
from tightframe.ufm.logit_structures import (
    Structure,
    dnc,
    groups,
    library,
    margins,
    pairs,
    polygon,
    relu_dnc,
    relu_min_classes,
    relu_pairs,
    solution_dimension,
)

from ..problems import draw, rotation

GOLDEN = {  # K = 10, n = 5, λ = 2⁻¹⁰: deep neural collapse, pairs, polygon
    1: (0.13987, 0.15052, 0.43483),
    2: (0.09066, 0.08001, 0.14196),
    5: (0.07197, 0.05085, 0.04533),
}


def model(K, n=1, d=None, L=2, decay=1e-3, **options):
    return DeepUFM((n,) * K, K if d is None else d, (decay,) * (L + 1), **options)


def drawn_factors(problem, rows, seed=0, scale=1.0):
    K, d, L = problem.num_classes, problem.dim, problem.num_layers
    shapes = [(rows, d), *[(d, d)] * (L - 1), (K, d)]
    return tuple(scale * draw(*shape, seed=seed + i) for i, shape in enumerate(shapes))


def literal_objective(problem, factors):
    """The equation, sample by sample, in numpy."""
    H, *matrices = (factor.detach().numpy() for factor in factors)
    labels = np.repeat(np.arange(problem.num_classes), problem.counts)
    if len(H) == problem.num_classes:
        H = H[labels]
    total = 0.0
    for h, y in zip(H, labels, strict=True):
        for index, W in enumerate(matrices):
            h = W @ (np.maximum(h, 0) if problem.relu and index else h)
        if problem.loss == "mse":
            total += 0.5 * np.square(h - np.eye(problem.num_classes)[y]).sum()
        else:
            total += np.log(np.exp(h).sum()) - h[y]
    penalty = sum(c / 2 * np.square(F).sum() for c, F in zip(problem.decays, [H, *matrices], strict=True))
    return total / problem.num_samples + penalty


def scale_brute_force(logits, cost, problem):
    """The least objective over a fine grid of scales, without derivative; of equal decays."""
    K, n, F = problem.num_classes, problem.counts[0], len(problem.decays)
    alpha = np.concatenate([[0.0], np.geomspace(1e-2, 3e2, 12_000)])
    S = logits.numpy()
    fit = sum(np.log(np.exp(np.outer(alpha, S[k] - S[k, k])).sum(axis=1)) for k in range(K)) / K
    values = fit + problem.decays[0] * F / 2 * cost * (alpha * math.sqrt(n)) ** (2 / F)
    return alpha[values.argmin()], values.min()


def descend(problem, factors, steps=600):
    factors = [factor.clone().requires_grad_() for factor in factors]
    optimiser = torch.optim.LBFGS(
        factors, max_iter=steps, tolerance_grad=1e-13, tolerance_change=1e-18, line_search_fn="strong_wolfe"
    )

    def closure():
        optimiser.zero_grad()
        value = deep_objective(problem, factors)
        value.backward()
        return value

    optimiser.step(closure)
    return deep_objective(problem, factors).item()


def hessian_eigenvalues(problem, factors):
    sizes = [factor.numel() for factor in factors]

    def of_vector(vector):
        parts = vector.split(sizes)
        return deep_objective(problem, [p.view_as(f) for p, f in zip(parts, factors, strict=True)])

    point = torch.cat([factor.flatten() for factor in factors])
    return torch.linalg.eigvalsh(torch.autograd.functional.hessian(of_vector, point, vectorize=True))


def gradient_norm(problem, factors):
    leaves = [factor.clone().requires_grad_() for factor in factors]
    return torch.cat([g.flatten() for g in torch.autograd.grad(deep_objective(problem, leaves), leaves)]).norm().item()


def factors_at(structure, scale, problem):
    return structure.factors(scale, problem.counts[0], problem.num_layers, problem.dim)


# The objective -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("loss", ["cross-entropy", "mse"])
@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize("L", [1, 2, 4])
def test_objective_is_the_equation(loss, relu, L):
    problem = DeepUFM((2, 3, 1), 4, tuple(0.1 * (i + 1) for i in range(L + 1)), loss=loss, relu=relu)
    for rows in (3, 6):
        factors = drawn_factors(problem, rows, seed=L)
        assert deep_objective(problem, factors).item() == pytest.approx(literal_objective(problem, factors), rel=1e-12)
    by_class = drawn_factors(problem, 3, seed=9)
    by_sample = (by_class[0].repeat_interleave(torch.tensor([2, 3, 1]), dim=0), *by_class[1:])
    assert deep_objective(problem, by_class).item() == pytest.approx(deep_objective(problem, by_sample).item())


def test_objective_is_differentiable_in_all_factors():
    problem = model(3, n=2, L=3, relu=True)
    factors = [factor.requires_grad_() for factor in drawn_factors(problem, 3)]
    assert torch.autograd.gradcheck(lambda *f: deep_objective(problem, f), factors)


def test_factors_of_another_model_are_refused():
    problem = model(3, n=2, d=4, L=2)
    H, W_1, W_2 = drawn_factors(problem, 3)
    for factors, named in (
        ((H, W_1), "L = 2"),
        ((H[:, :3], W_1, W_2), "H_1"),
        ((H, W_1[:3], W_2), "W_1"),
        ((H, W_1, W_2[:2]), "W_2"),
        ((H[:2], W_1, W_2), "K = 3"),
    ):
        with pytest.raises(ShapeError, match=named):
            deep_objective(problem, factors)


# The library ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("K", range(2, 13))
def test_spectra_and_margins_are_those_of_the_logits(K):
    shapes = [dnc(K)] + ([polygon(K)] if K >= 3 else []) + [groups(K, size) for size in range(2, K)]
    for shape in shapes:
        singular = torch.linalg.svdvals(shape.logits)
        torch.testing.assert_close(singular[: shape.rank], shape.spectrum, rtol=0, atol=1e-12)
        assert singular[shape.rank :].abs().sum() < 1e-12
        least = min((shape.logits[k, k] - shape.logits[k, j]).item() for k in range(K) for j in range(K) if j != k)
        assert shape.margin == pytest.approx(least, abs=1e-14)
        assert shape.margin > 0
    assert dnc(K).rank == K - 1
    if K >= 3:
        assert pairs(K).rank == math.ceil(K / 2)
        assert polygon(K).rank == 2
        assert polygon(K).margin == pytest.approx(1 - math.cos(2 * math.pi / K), abs=1e-14)


def test_pairs_are_the_blocks_of_the_paper():
    block = torch.tensor([[1.0, -1.0], [-1.0, 1.0]], dtype=torch.float64)
    torch.testing.assert_close(pairs(4).logits, torch.block_diag(block, block))
    torch.testing.assert_close(pairs(5).logits, torch.block_diag(block, block, torch.ones(1, 1).double()))


def test_polygon_of_three_and_four_classes_are_old_acquaintances():
    torch.testing.assert_close(polygon(3).logits, 1.5 * dnc(3).logits)
    order = [0, 2, 1, 3]
    torch.testing.assert_close(polygon(4).logits[order][:, order], pairs(4).logits, rtol=0, atol=1e-15)


def test_quasi_norms_at_margin_one():
    found = {
        L: tuple(round(shape.quasi_norm(L), 2) for shape in (dnc(10), pairs(10), polygon(10))) for L in (1, 2, 5, 10)
    }
    assert found[1][:2] == (9, 10)
    assert found[2][:2] == (9, 7.94)
    assert found[5][1:] == (6.3, 5.94)
    assert found[10][2] == 3.62
    # Scale is no matter, and neither is the order of classes.
    twice = Structure("twice", 2 * polygon(10).logits, 2 * polygon(10).spectrum)
    assert twice.quasi_norm(5) == pytest.approx(polygon(10).quasi_norm(5), rel=1e-14)


def test_pairs_are_cheaper_than_collapse_from_six_classes_on_and_of_three_layers_from_four():
    for K, L in itertools.product(range(3, 14), range(1, 7)):
        cheaper = pairs(K).cost(L) < dnc(K).cost(L) - 1e-12
        assert cheaper == ({1: math.inf, 2: 6}.get(L, 4) <= K)
        assert cheaper == (K // 2 * 2 ** (2 / (L + 1)) + K % 2 < K - 1)


def test_logits_without_margin_are_no_structure():
    with pytest.raises(ArgumentError, match="diagonal"):
        Structure("ties", torch.ones(3, 3).double(), torch.tensor([3.0]).double())
    with pytest.raises(ArgumentError, match="size"):
        groups(4, 4)


# The best scale ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("L", GOLDEN)
def test_losses_of_the_paper(L):
    problem = model(10, n=5, L=L, decay=2**-10)
    found = tuple(round(best_scale(shape, problem).loss, 5) for shape in (dnc(10), pairs(10), polygon(10)))
    assert found == GOLDEN[L]
    assert deep_form(problem).loss == pytest.approx(min(GOLDEN[L]), abs=5e-6)


def test_losses_are_the_formulas_of_the_paper():
    K, n, L, decay = 10, 5, 2, 2**-10
    problem, power = model(K, n=n, L=L, decay=decay), 2 / (L + 1)
    a, found = best_scale(dnc(K), problem)[:2]
    wanted = math.log1p((K - 1) * math.exp(-a)) + decay * (L + 1) / 2 * (K - 1) * (a * math.sqrt(n)) ** power
    assert found == pytest.approx(wanted, abs=1e-13)
    b, found = best_scale(pairs(K), problem)[:2]
    wanted = math.log1p(math.exp(-2 * b) + (K - 2) * math.exp(-b))
    wanted += decay * (L + 1) / 2 * (K / 2) * (2 * b * math.sqrt(n)) ** power
    assert found == pytest.approx(wanted, abs=1e-13)


@pytest.mark.parametrize("L", [1, 2, 6])
def test_best_scale_is_that_of_a_grid(L):
    generator = torch.Generator().manual_seed(L)
    for K, n in ((3, 1), (5, 4), (9, 2)):
        own = 3 * torch.eye(K).double() + torch.rand(K, K, generator=generator, dtype=torch.float64)
        shapes = [dnc(K), pairs(K), polygon(K), Structure("drawn", own, torch.linalg.svdvals(own))]
        for shape, decay in itertools.product(shapes, (1e-5, 0.05)):
            problem = model(K, n=n, L=L, decay=decay)
            cost = (np.linalg.svd(shape.logits.numpy(), compute_uv=False) ** (2 / (L + 1)))[: shape.rank].sum()
            scale, loss = scale_brute_force(shape.logits, cost, problem)
            found = best_scale(shape, problem)
            # A grid misses the minimum by the square of half its step.
            assert loss - 1e-6 < found.loss <= loss + 1e-13
            assert found.value == pytest.approx(scale, rel=1e-3)


@pytest.mark.parametrize(("K", "L", "n"), [(2, 2, 1), (3, 2, 5), (10, 5, 5), (4, 3, 2), (10, 20, 1)])
def test_two_scales_are_stationary_below_the_fold(K, L, n):
    fold = best_scale(dnc(K), model(K, n=n, L=L))
    assert fold.fold * math.exp(fold.fold) / (math.exp(fold.fold) + K - 1) == pytest.approx((L - 1) / (L + 1), rel=1e-7)
    for factor in (0.97, 0.5, 1e-3, 1e-12):
        decay = factor * fold.fold_decay
        low, high = best_scale(dnc(K), model(K, n=n, L=L, decay=decay)).stationary
        assert low < fold.fold < high
        for scale in (low, high):
            lhs = decay * n ** (1 / (L + 1))
            assert lhs == pytest.approx(scale ** ((L - 1) / (L + 1)) / (math.exp(scale) + K - 1), rel=1e-10)
            assert stationary_decay(scale, model(K, n=n, L=L)) == pytest.approx(decay, rel=1e-10)
    above = best_scale(dnc(K), model(K, n=n, L=L, decay=1.03 * fold.fold_decay))
    assert above.stationary == ()
    assert (above.value, above.loss) == (0, math.log(K))


@pytest.mark.parametrize("L", [1, 2, 5])
def test_zero_takes_over_where_it_is_said_to(L):
    for K, shape in itertools.product((3, 6, 10), (dnc, pairs, polygon)):
        threshold = best_scale(shape(K), model(K, n=3, L=L)).zero_decay
        above = best_scale(shape(K), model(K, n=3, L=L, decay=1.03 * threshold))
        below = best_scale(shape(K), model(K, n=3, L=L, decay=0.97 * threshold))
        assert (above.value, above.loss) == (0, math.log(K))
        assert below.value > 0
        assert below.loss < math.log(K) - 1e-5
        assert threshold <= below.fold_decay


def test_tiny_decays_and_many_classes_have_a_scale():
    for K, L, decay in ((3, 2, 1e-200), (300, 40, 1e-9), (64, 1, 1e-12), (7, 9, 1e-60)):
        problem, shape = model(K, L=L, d=2, decay=decay), polygon(K)
        found = best_scale(shape, problem)
        assert 0 < found.loss < math.log(K)
        # The scale in units of the margin is the logarithm of the decay, but for its own logarithms.
        assert found.value * shape.margin == pytest.approx(-math.log(decay), abs=5 + 3 * math.log(K * found.value))


def test_scale_knows_no_order_of_classes_and_no_unit():
    problem, shape = model(7, n=2, L=3), pairs(7)
    order = torch.randperm(7, generator=torch.Generator().manual_seed(0))
    permuted = Structure("permuted", shape.logits[order][:, order], shape.spectrum)
    tripled = Structure("tripled", 3 * shape.logits, 3 * shape.spectrum)
    wanted = best_scale(shape, problem)
    assert best_scale(permuted, problem).loss == pytest.approx(wanted.loss, abs=1e-14)
    assert best_scale(tripled, problem).loss == pytest.approx(wanted.loss, abs=1e-14)
    assert best_scale(tripled, problem).value == pytest.approx(wanted.value / 3, rel=1e-12)


# Factors -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("L", [1, 2, 4])
@pytest.mark.parametrize("K", [3, 5, 6])
def test_factors_have_the_logits_and_the_loss(K, L):
    for d, shape in itertools.product((K, K + 2), library(K)):
        problem = model(K, n=3, d=d, L=L, decay=2e-3)
        scale = best_scale(shape, problem)
        factors = factors_at(shape, scale.value, problem)
        torch.testing.assert_close(deep_logits(problem, factors), scale.value * shape.logits, rtol=0, atol=1e-12)
        assert literal_objective(problem, factors) == pytest.approx(scale.loss, abs=1e-10)
        full = [factors[0].repeat_interleave(3, dim=0), *factors[1:]]
        spectra = torch.stack([torch.linalg.svdvals(factor)[: shape.rank] for factor in full])
        torch.testing.assert_close(spectra, spectra[:1].expand_as(spectra), rtol=1e-12, atol=0)


@pytest.mark.parametrize("shape", [dnc(6), pairs(6), groups(6, 3)], ids=lambda shape: shape.name)
@pytest.mark.parametrize("L", [1, 2, 3])
def test_collapse_and_groups_are_stationary_and_cannot_be_factored_cheaper(shape, L):
    problem = model(6, n=2, L=L, decay=3e-3)
    scale = best_scale(shape, problem)
    factors = factors_at(shape, scale.value, problem)
    assert gradient_norm(problem, factors) < 1e-10
    for seed in range(5):  # an invertible change of basis keeps the product, and costs
        A = torch.eye(6).double() + 0.1 * draw(6, 6, seed=seed)
        changed = (factors[0] @ A, factors[1] @ torch.linalg.inv(A).T, *factors[2:])
        assert deep_objective(problem, changed) > scale.loss
        Q = rotation(6, seed)
        turned = (factors[0] @ Q, factors[1] @ Q, *factors[2:])
        assert deep_objective(problem, turned).item() == pytest.approx(scale.loss, abs=1e-13)


def test_only_the_product_of_the_decays_counts():
    decays = (0.02, 3e-4, 1e-3, 5e-3)
    uneven = deep_form(DeepUFM((4,) * 6, 7, decays))
    even = deep_form(model(6, n=4, d=7, L=3, decay=math.prod(decays) ** 0.25))
    assert uneven.loss == pytest.approx(even.loss, abs=1e-13)
    assert uneven.problem.mean_decay == pytest.approx(math.prod(decays) ** 0.25, rel=1e-14)
    torch.testing.assert_close(uneven.logits, even.logits, rtol=0, atol=1e-11)
    assert literal_objective(uneven.problem, uneven.factors) == pytest.approx(uneven.loss, abs=1e-10)
    assert gradient_norm(uneven.problem, uneven.factors) < 1e-10
    prices = [
        decay * factor.square().sum().item() * (4 if index == 0 else 1)
        for index, (decay, factor) in enumerate(zip(decays, uneven.factors, strict=True))
    ]
    assert prices == pytest.approx([prices[0]] * 4, rel=1e-12)


# Minima by proof -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("K", "n", "d"), [(2, 3, 1), (4, 1, 3), (5, 4, 8)])
def test_one_layer_is_the_closed_form_of_cross_entropy(K, n, d):
    weight, feature = 4e-3, 1e-3
    solution = deep_form(DeepUFM((n,) * K, d, (feature, weight)))
    c = math.sqrt(n * weight * feature)
    a = math.log(1 / c - K + 1)
    wanted = math.log1p((K - 1) * math.exp(-a)) + math.sqrt(n * weight * feature) * (K - 1) * a
    assert solution.exact
    assert solution.loss == pytest.approx(wanted, abs=1e-12)
    assert solution.lower_bound == pytest.approx(wanted, abs=1e-12)
    assert solution.W.square().sum().item() == pytest.approx(math.sqrt(n * feature / weight) * (K - 1) * a, rel=1e-9)
    centering = torch.eye(K).double() - 1 / K
    torch.testing.assert_close(solution.logits, a * centering, rtol=0, atol=1e-9)
    found = min(descend(solution.problem, drawn_factors(solution.problem, K, seed)) for seed in range(3))
    assert found == pytest.approx(wanted, abs=1e-10)


@pytest.mark.parametrize(("K", "n"), [(2, 3), (6, 1)])
def test_one_layer_is_zero_where_the_decay_is_large(K, n):
    threshold = 1 / (K * math.sqrt(n))
    above, below = (deep_form(model(K, n=n, L=1, decay=factor * threshold)) for factor in (1.03, 0.97))
    assert above.exact
    assert above.loss == math.log(K)
    assert not above.logits.any()
    assert below.exact
    assert below.loss < math.log(K) - 1e-5
    assert below.facts["zero_decay"] == pytest.approx(threshold, rel=1e-12)


@pytest.mark.parametrize("L", [2, 3, 4])
def test_two_classes_are_solved_at_any_depth(L):
    problem = model(2, n=3, d=2, L=L, decay=0.01)
    solution = deep_form(problem)
    assert solution.exact
    found = [descend(problem, drawn_factors(problem, 2, seed=10 * seed)) for seed in range(6)]
    assert min(found) == pytest.approx(solution.loss, abs=1e-10)


def test_zero_is_proved_beyond_its_threshold_and_not_below():
    threshold = deep_form(model(5, n=2, L=3)).facts["zero_decay.proved"]
    above, below = (deep_form(model(5, n=2, L=3, decay=factor * threshold)) for factor in (1.03, 0.97))
    assert above.exact
    assert above.loss == above.lower_bound == math.log(5)
    assert below.loss == math.log(5)
    assert not below.exact
    assert "not known" in below.reason
    assert deep_form(model(5, n=2, d=1, L=3, decay=1.03 * threshold)).exact


@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize(("K", "L", "decay"), [(3, 2, 0.01), (5, 3, 3e-3), (4, 4, 0.02), (4, 1, 0.02)])
def test_nothing_lies_below_the_lower_bound(K, L, decay, relu):
    problem = model(K, n=2, d=K + 1, L=L, decay=decay, relu=relu)
    bound = lower_bound(problem).loss
    assert deep_form(problem).lower_bound == pytest.approx(bound, abs=1e-14)
    for seed, size in itertools.product(range(8), (0.1, 0.5, 1.0, 3.0)):
        assert deep_objective(problem, drawn_factors(problem, 2 * K, seed, size)) > bound
    # What the bound is made of: the fit by the nuclear norm, and that by the norms.
    for seed in range(8):
        factors = drawn_factors(problem, K, seed)
        norms = [factor.norm().item() for factor in factors]
        logits = deep_logits(problem, factors)
        nuclear = torch.linalg.matrix_norm(logits, "nuc").item()
        fit = torch.nn.functional.cross_entropy(logits, torch.arange(K)).item()
        assert nuclear <= math.prod(norms)
        assert fit >= math.log1p((K - 1) * math.exp(-nuclear / (K - 1)))
    for seed in range(1):
        assert descend(problem, drawn_factors(problem, 2 * K, seed), steps=150) > bound - 1e-12
    assert descend(problem, deep_form(problem).factors, steps=150) > bound - 1e-12


# How stable deep neural collapse is ----------------------------------------------------------------------------------

CONFIGURATIONS = [(4, 2, 3, 1), (4, 2, 5, 2), (5, 2, 4, 1), (4, 3, 4, 1), (5, 3, 4, 2), (6, 2, 5, 1), (4, 4, 3, 3)]


@pytest.mark.parametrize(("K", "L", "d", "n"), CONFIGURATIONS)
def test_collapse_loses_its_stability_at_the_scale_told(K, L, d, n):
    assert stable_scale(K, L) == pytest.approx(K * (L - 1) / (L + 1))
    negative = []
    for factor in (1.03, 0.97):
        scale = factor * stable_scale(K, L)
        problem = model(K, n=n, d=d, L=L)
        problem = model(K, n=n, d=d, L=L, decay=stationary_decay(scale, problem))
        assert scale > best_scale(dnc(K), problem).fold
        factors = factors_at(dnc(K), scale, problem)
        assert gradient_norm(problem, factors) < 1e-12
        eigenvalues = hessian_eigenvalues(problem, factors)
        negative.append(int((eigenvalues < -1e-9 * eigenvalues.abs().max()).sum()))
    assert negative == [0, K * (K - 3) // 2]


@pytest.mark.parametrize(("K", "L", "wanted"), [(3, 2, 2), (3, 3, 2), (3, 5, 2), (3, 8, 2), (2, 2, 1), (2, 4, 1)])
def test_few_classes_lose_it_in_other_directions(K, L, wanted):
    negative = []
    for factor in (1.03, 0.97):
        scale = factor * stable_scale(K, L)
        problem = model(K, d=K + 1, L=L, decay=stationary_decay(scale, model(K, L=L)))
        assert (scale > best_scale(dnc(K), problem).fold) == (K == 3 or factor > 1)
        eigenvalues = hessian_eigenvalues(problem, factors_at(dnc(K), scale, problem))
        negative.append(int((eigenvalues < -1e-9 * eigenvalues.abs().max()).sum()))
    assert negative == [0, wanted]
    if K == 2:
        assert stable_scale(K, L) == pytest.approx(best_scale(dnc(K), model(K, L=L)).fold, rel=1e-9)


def test_samples_on_their_own_change_no_sign():
    K, L, n = 4, 2, 2
    for factor, wanted in ((1.03, 0), (0.97, 2)):
        scale = factor * stable_scale(K, L)
        problem = model(K, n=n, d=3, L=L, decay=stationary_decay(scale, model(K, n=n, L=L)))
        H, *matrices = factors_at(dnc(K), scale, problem)
        eigenvalues = hessian_eigenvalues(problem, (H.repeat_interleave(n, dim=0), *matrices))
        assert int((eigenvalues < -1e-9 * eigenvalues.abs().max()).sum()) == wanted


@pytest.mark.parametrize(
    ("shape", "d", "L", "wanted"),
    [(dnc(4), 5, 2, 18), (dnc(3), 4, 3, 15), (dnc(3), 3, 2, 6), (pairs(4), 4, 3, 15), (pairs(6), 6, 2, 24)],
    ids=lambda value: getattr(value, "name", str(value)),
)
def test_solutions_fill_as_many_dimensions_as_the_hessian_is_flat_in(shape, d, L, wanted):
    assert solution_dimension(shape.rank, d, L) == wanted
    problem = model(len(shape.logits), d=d, L=L, decay=1e-3)
    factors = factors_at(shape, best_scale(shape, problem).value, problem)
    eigenvalues = hessian_eigenvalues(problem, factors)
    size = eigenvalues.abs() / eigenvalues.abs().max()
    assert int((size < 1e-10).sum()) == wanted
    assert size.sort().values[wanted] > 1e-6


# ReLU models ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [relu_dnc(5), relu_pairs(6), relu_pairs(5), relu_pairs(2)], ids=lambda s: s.name)
@pytest.mark.parametrize("L", [2, 3, 5])
def test_relu_factors_have_the_logits_and_the_loss(shape, L):
    K = len(shape.logits)
    for decay, d in ((1e-4, shape.min_dim), (1e-3, shape.min_dim + 2)):
        problem = model(K, n=3, d=d, L=L, decay=decay, relu=True)
        scale = best_scale(shape, problem)
        assert scale.value > 0
        factors = factors_at(shape, scale.value, problem)
        torch.testing.assert_close(deep_logits(problem, factors), scale.value * shape.logits, rtol=0, atol=1e-12)
        assert literal_objective(problem, factors) == pytest.approx(scale.loss, abs=1e-10)
        norms = [3 * factors[0].square().sum().item(), *(factor.square().sum().item() for factor in factors[1:])]
        assert norms == pytest.approx([norms[0]] * (L + 1), rel=1e-12)
        for factor in (0.9, 1.1):  # at the best scale, no other is cheaper
            assert deep_objective(problem, factors_at(shape, factor * scale.value, problem)) > scale.loss


@pytest.mark.parametrize(("K", "L"), [(4, 2), (6, 3), (10, 5), (14, 4)])
def test_relu_pairs_have_the_norm_of_the_paper(K, L):
    n, beta = 3, 1.7
    t = beta * math.sqrt(n) * 2 * K * math.sqrt(2 * K) * (2 * K + 4) ** ((L - 2) / 2) / 2 ** (L - 1)
    t = t ** (2 / (L + 1))
    problem = model(K, n=n, L=L, relu=True)
    for index, factor in enumerate(factors_at(relu_pairs(K), beta, problem)):
        assert factor.square().sum().item() * (n if index == 0 else 1) == pytest.approx(t, rel=1e-12)
    torch.testing.assert_close(relu_pairs(K).logits, pairs(K).logits)
    rank = torch.linalg.matrix_rank(relu_pairs(K).features)
    assert rank == K // 2 + 1


def test_relu_pairs_beat_collapse_from_the_classes_of_the_paper_on():
    table = {4: 14, 5: 10, 6: 8, 8: 6}
    assert {L: relu_min_classes(L) for L in table} == table
    for L, K in table.items():
        for number, wins in ((K - 2, False), (K, True), (K + 8, True)):
            a = 30.0  # both fits are perfect: the price decides
            linear = math.log1p((number - 1) * math.exp(-a)) + 1e-3 * (L + 1) / 2 * (number - 1) * a ** (2 / (L + 1))
            problem = model(number, L=L, decay=1e-3, relu=True)
            found = literal_objective(problem, factors_at(relu_pairs(number), a, problem))
            assert (found < linear) == wins
    with pytest.raises(ArgumentError, match="num_layers"):
        relu_min_classes(3)


@pytest.mark.parametrize(("L", "least"), [(4, 16), (5, 10), (6, 10), (9, 10)])
def test_relu_pairs_beat_collapse_at_any_parity(L, least):
    for K in (least, least + 1, least + 7, least + 10):
        assert relu_pairs(K).cost(L) < K - 1
        linear = best_scale(dnc(K), model(K, n=5, L=L, decay=1e-3))
        solution = deep_form(model(K, n=5, d=K + 1, L=L, decay=1e-3, relu=True))
        assert solution.loss < linear.loss
        assert solution.reason.startswith("pairs")


def test_relu_form_is_a_point_of_the_relu_model():
    problem = DeepUFM((3,) * 4, 6, (1e-3, 2e-3, 5e-4), relu=True)
    solution = deep_form(problem)
    assert literal_objective(problem, solution.factors) == pytest.approx(solution.loss, abs=1e-10)
    torch.testing.assert_close(solution.logits, deep_logits(problem, solution.factors), rtol=0, atol=1e-12)
    assert not solution.exact
    assert solution.lower_bound < solution.loss
    one = deep_form(DeepUFM((3,) * 4, 3, (1e-3, 2e-3), relu=True))  # no ReLU stands there
    assert one.exact
    assert one.loss == pytest.approx(deep_form(DeepUFM((3,) * 4, 3, (1e-3, 2e-3))).loss, abs=1e-15)


# The form ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("K", "L", "best"), [(10, 1, "dnc"), (10, 2, "pairs"), (10, 5, "polygon"), (4, 2, "dnc")])
def test_form_is_the_best_of_the_library(K, L, best):
    problem = model(K, n=5, d=K + 1, L=L, decay=2**-10)
    solution, scaled = deep_form(problem), structures(problem)
    assert solution.reason.startswith(best)
    losses = [entry.scale.loss for entry in scaled]
    assert losses == sorted(losses)
    assert solution.loss == losses[0]
    for structure, scale in scaled:
        assert solution.facts[f"loss.{structure.name}"] == scale.loss
    assert solution.exact == (L == 1)
    assert solution.lower_bound <= solution.loss
    torch.testing.assert_close(solution.logits, deep_logits(problem, solution.factors), rtol=0, atol=1e-12)
    assert literal_objective(problem, solution.factors) == pytest.approx(solution.loss, abs=1e-10)
    assert solution.facts["stable_scale.dnc"] == stable_scale(K, L)
    if L == 1:
        assert solution.facts["stable_decay.dnc"] == pytest.approx(1 / (K * math.sqrt(5)), rel=1e-14)


def test_structures_that_do_not_fit_are_left_out():
    names = {d: {entry.structure.name for entry in structures(model(6, d=d, L=5))} for d in (2, 3, 4, 5)}
    assert names == {
        2: {"polygon"},
        3: {"polygon", "pairs"},
        4: {"polygon", "pairs", "groups_3"},
        5: {"polygon", "pairs", "groups_3", "dnc"},
    }
    assert not deep_form(model(6, d=2, L=1, decay=1e-3)).exact
    with pytest.raises(DimensionError, match="at least 2"):
        deep_form(model(6, d=1, L=3))
    with pytest.raises(DimensionError, match="at least 6"):
        deep_form(model(6, d=5, L=3, relu=True))


def test_form_is_not_called_exact_where_another_structure_is_better():
    problem = model(8, L=4, decay=1e-3)
    solution = deep_form(problem)
    assert not solution.exact
    assert "not known" in solution.reason
    angle = torch.arange(8, dtype=torch.float64) * math.pi / 4  # a square antiprism, in three dimensions
    height = 0.2725 * (-1.0) ** torch.arange(8, dtype=torch.float64).unsqueeze(1)
    antiprism = (1 - 0.2725) * (angle.unsqueeze(1) - angle).cos() + height * height.T / 0.2725
    scale = best_scale(Structure("antiprism", antiprism, torch.linalg.svdvals(antiprism)[:3]), problem)
    assert solution.lower_bound < scale.loss < solution.loss - 1e-3


def test_collapse_metrics_of_the_form_are_zero():
    metrics = deep_form(model(4, n=3, L=2, d=5, decay=1e-4)).collapse()
    for name in ("nc1.ratio", "nc2.gram.means", "nc2.gram.classifier", "nc3.gram", "nc3.distance"):
        assert metrics[name] == pytest.approx(0, abs=1e-12)


def test_other_problems_are_refused():
    with pytest.raises(ArgumentError, match="cross-entropy"):
        deep_form(model(4, loss="mse"))
    with pytest.raises(ArgumentError, match="CrossEntropyUFM"):
        best_scale(dnc(3), CrossEntropyUFM((2, 2, 2), 3, 0.1, 0.1))
    with pytest.raises(ArgumentError, match="counts"):
        deep_form(DeepUFM((2, 3, 3), 3, (0.1, 0.1, 0.1)))
    with pytest.raises(ArgumentError, match="K = 4"):
        best_scale(dnc(3), model(4))
    with pytest.raises(ArgumentError, match="rank"):
        solution_dimension(4, 3, 2)
    assert margins(dnc(3).logits).shape == (3, 2)
