import itertools

import pytest
import torch
from studies.theory.deep import deep_model, gradient_descent, losses_by_depth

from studies.theory import FIGURES, deep
from tightframe.ufm import DeepUFM
from tightframe.ufm.deep import deep_objective
from tightframe.ufm.deep_cross_entropy import best_scale, structures
from tightframe.ufm.logit_structures import Structure


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("L", [1, 2])
def test_descent_ends_at_the_best_structure_where_nothing_is_better(L):
    problem = DeepUFM((2,) * 3, 4, (0.01,) * (L + 1))
    runs, best = gradient_descent(problem, 4000, 2, generator()), structures(problem)[0]
    wanted = best.scale.value * 2**0.5 * torch.linalg.svdvals(best.structure.logits)
    for rows in runs:
        objectives = [row["objective"] for row in rows]
        assert [rows[0]["step"], rows[-1]["step"]] == [0, 4000]
        assert objectives == sorted(objectives, reverse=True)
        assert objectives[-1] == pytest.approx(best.scale.loss, abs=1e-9)
        assert [rows[-1][str(i)] for i in (1, 2, 3)] == pytest.approx(wanted.tolist(), abs=1e-3)
        assert rows[-1]["rank"] == best.structure.rank


def test_objective_is_that_of_the_model():
    problem = DeepUFM((2,) * 3, 4, (0.1,) * 3)
    rows = gradient_descent(problem, 0, 1, generator(3))[0]
    g = generator(3)
    factors = [torch.randn(1, rows, 4, generator=g, dtype=torch.float64)[0] / 2 for rows in (6, 4, 3)]
    assert [row["objective"] for row in rows] == [pytest.approx(deep_objective(problem, factors).item(), rel=1e-12)]


def test_best_structure_has_a_lower_rank_the_deeper_the_model():
    rows = losses_by_depth((1, 2, 4, 5, 12))
    names = ("dnc", "groups_3", "groups_5", "pairs", "polygon")
    assert [min(names, key=row.get) for row in rows] == ["dnc", "pairs", "pairs", "polygon", "polygon"]
    assert [row["rank"] for row in rows] == [9, 5, 5, 2, 2]


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
    points, mean = [line for line in by_width.lines if line.group == "after 200 steps"]
    assert list(points.y) == last
    assert list(mean.y) == [sum(last[i : i + 3]) / 3 for i in (0, 3, 6)]
    assert len(spectra.lines) == len(descents) + 2
    losses = {line.label: list(line.y) for line in by_depth.lines}
    assert losses["L-BFGS"][0] == pytest.approx(losses["pairs"][1], abs=1e-7)
    assert all(
        bound <= min(each) + 1e-12
        for bound, *each in zip(losses.pop("proved lower bound"), losses["pairs"], strict=True)
    )
    assert list(rank_by_depth.lines[0].y) == [9, 5, 2]
