import itertools

import pytest
import torch
from studies.theory.deep import (
    deep_model,
    gradient_descent,
    gradients,
    losses_by_depth,
)

from studies.theory import FIGURES, deep
from tightframe.ufm import DeepUFM
from tightframe.ufm.deep import deep_objective
from tightframe.ufm.deep_cross_entropy import best_scale, structures
from tightframe.ufm.logit_structures import Structure


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def random_factors(problem, starts):
    rows = [problem.num_samples, *[problem.dim] * (problem.num_layers - 1), problem.num_classes]
    g = generator(3)
    return [torch.randn(starts, number, problem.dim, generator=g, dtype=torch.float64) for number in rows]


@pytest.mark.parametrize("decays", [(0.1, 0.2), (0.1, 0.2, 0.3), (0.01, 0.02, 0.5, 0.3)])
def test_gradients_are_those_of_the_objective(decays):
    problem = DeepUFM((2,) * 3, 4, decays)
    factors = random_factors(problem, starts=2)
    slopes = gradients(problem, factors)
    for start in range(2):
        point = [factor[start].clone().requires_grad_() for factor in factors]
        automatic = torch.autograd.grad(deep_objective(problem, point), point)
        for slope, wanted in zip(slopes, automatic, strict=True):
            torch.testing.assert_close(slope[start], wanted, rtol=0, atol=1e-14)


@pytest.mark.parametrize("L", [1, 2])
def test_descent_ends_at_the_best_structure_where_nothing_is_better(L):
    problem = DeepUFM((2,) * 3, 4, (0.01,) * (L + 1))
    run = gradient_descent(problem, 4000, 2, generator())
    best = structures(problem)[0]
    assert run.steps[0] == 0
    assert run.steps[-1] == 4000
    assert bool((run.losses[1:] <= run.losses[:-1]).all())
    torch.testing.assert_close(
        run.losses[-1], torch.full((2,), best.scale.loss, dtype=torch.float64), rtol=0, atol=1e-9
    )
    wanted = best.scale.value * 2**0.5 * torch.linalg.svdvals(best.structure.logits)
    torch.testing.assert_close(run.spectra[-1], wanted.expand(2, 3), rtol=0, atol=1e-3)
    assert run.ranks[-1].tolist() == [best.structure.rank] * 2


def test_best_structure_has_a_lower_rank_the_deeper_the_model():
    problems = {depth: deep_model(depth) for depth in (1, 2, 4, 5, 12)}
    losses = losses_by_depth(problems)
    best = [min(losses, key=lambda name: losses[name][i]) for i in range(len(problems))]
    assert best == ["dnc", "pairs", "pairs", "polygon", "polygon"]


def test_edges_of_the_simplex_of_five_corners_are_better_than_the_library():
    edges = list(itertools.combinations(range(5), 2))
    common = [[len(set(a) & set(b)) - 0.8 for b in edges] for a in edges]
    logits = torch.tensor(common, dtype=torch.float64)
    assert torch.linalg.matrix_rank(logits) == 4
    edges = Structure("edges", logits, torch.full((4,), 3.0, dtype=torch.float64))
    margins = {L: structures(deep_model(L))[0].scale.loss - best_scale(edges, deep_model(L)).loss for L in (2, 3, 4, 5)}
    assert {L: margin > 0 for L, margin in margins.items()} == {2: False, 3: True, 4: True, 5: False}
    assert best_scale(edges, deep_model(3)).loss == pytest.approx(0.0587052238, abs=1e-10)


def test_figure_draws_what_was_computed(monkeypatch):
    for name, value in {
        "STEPS": 200,
        "EARLY": 120,
        "DEPTHS": (1, 2, 5),
        "SOLVED_DEPTHS": (2,),
        "SOLVER_STARTS": 1,
    }.items():
        monkeypatch.setattr(deep, name, value)
    assert FIGURES["low-rank"] is deep.low_rank
    objective, ranks, by_width, spectra, by_depth, rank_by_depth = deep.low_rank(0)
    levels = {line.label.split(",")[0]: line.y[0] for line in objective.lines if line.dashed}
    golden = {"pairs": 0.08001, "deep neural collapse": 0.09066, "polygon": 0.14196}
    assert levels == {name: pytest.approx(loss, abs=5e-6) for name, loss in golden.items()}
    descents = [line for line in objective.lines if not line.dashed]
    assert len(descents) == len(deep.WIDTHS) * deep.STARTS
    assert all(min(line.x) >= 100 and max(line.x) == 200 for line in descents)
    assert len(ranks.lines) == len(descents)
    last = [int(line.y[-1]) for line in ranks.lines]
    *points, mean = [line for line in by_width.lines if line.group == "200"]
    assert [line.y[width] for width in range(3) for line in points] == last
    assert list(mean.y) == [sum(last[i : i + 3]) / 3 for i in (0, 3, 6)]
    assert len(spectra.lines) == len(descents) + 2
    losses = {line.label: list(line.y) for line in by_depth.lines}
    assert losses["L-BFGS"][0] == pytest.approx(losses["pairs"][1], abs=1e-7)
    assert all(
        bound <= min(each) + 1e-12
        for bound, *each in zip(losses.pop("proved lower bound"), losses["pairs"], strict=True)
    )
    assert list(rank_by_depth.lines[0].y) == [9, 5, 2]
