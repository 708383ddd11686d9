from __future__ import annotations

import copy
import itertools
import math
import random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tightframe.errors import ArgumentError, DeviceError, DtypeError, ShapeError
from tightframe.frames import (
    hierarchy_aware_frame,
    is_simplex_etf,
    is_unit_norm,
    max_separation_asymptote,
    suggest_gamma,
    tree_max_separation,
)
from tightframe.hierarchy import Tree

from .frame_test_case import FrameTestCase

PAIRS = Tree.from_nested({"E": ["A", "B"], "F": ["C", "D"]})
GAMMAS = (1e-4, 0.3, 1.0, 5.0, 30.0)


def double(distances, dim=None, **options):
    return hierarchy_aware_frame(distances, dim, dtype=torch.float64, **options)


def flat(num_classes):
    return 1 - torch.eye(num_classes, dtype=torch.float64)


def bipartite():
    """Return steps between the nodes of K_{2,3}, which no points have as squared distances."""
    D = torch.full((5, 5), 2.0, dtype=torch.float64)
    D[:2, 2:] = D[2:, :2] = 1.0
    return D.fill_diagonal_(0)


def random_tree(seed, most=14):
    draw = random.Random(seed)
    while True:
        parents = [-1] + [
            draw.randrange(max(0, i - draw.randrange(1, 8)), i) for i in range(1, draw.randrange(3, most))
        ]
        if parents.count(0) > 1 or len(set(parents)) < len(parents) - 1:
            return Tree(parents)


def exponential(distances, gamma):
    return torch.exp(-gamma * distances / distances.max())


def test_published_numbers_on_the_tree_of_two_pairs():
    found = double(PAIRS.distances(), gamma=2.0)
    assert found.asymptote == pytest.approx(-0.6938745, abs=5e-8)
    assert 1 - 1 / found.asymptote == pytest.approx(2.4411827, abs=5e-8)
    gram = found.frame @ found.frame.T
    assert gram[0, 1].item() == pytest.approx(-0.0707329, abs=5e-8)
    assert gram[0, 2].item() == pytest.approx(-0.4646335, abs=5e-8)
    assert found.gamma == 2.0

    found = double(PAIRS.distances(), gamma=1.0)
    assert found.asymptote == pytest.approx(-1.4129666, abs=5e-8)
    assert found.gram[2, 3].item() == pytest.approx(0.0505716, abs=5e-8)
    assert found.gram[1, 3].item() == pytest.approx(-0.5252858, abs=5e-8)


def test_grid_ends_at_minus_one_as_published():
    found = double(PAIRS.distances(), gamma=1.0, asymptote="grid")
    assert found.asymptote == -1.0
    assert found.gram[0, 1].item() == pytest.approx(0.2130613, abs=5e-8)
    assert found.gram[0, 2].item() == pytest.approx(-0.2642411, abs=5e-8)


@pytest.mark.parametrize(("num_classes", "cosine"), [(100, -0.0050981), (2, -0.2642411)])
def test_grid_misses_the_simplex_as_published(num_classes, cosine):
    found = double(flat(num_classes), asymptote="grid")
    assert found.gram[0, 1].item() == pytest.approx(cosine, abs=5e-8)
    assert found.error < 1e-13


@pytest.mark.parametrize("seed", range(6))
def test_grid_is_the_lowest_of_all_hundred_values(seed):
    D = random_tree(seed, most=25).distances()
    E = exponential(D, 3.0)
    values = torch.linspace(-1 / (len(D) - 1), -1, 100, dtype=torch.float64).tolist()
    feasible = [s for s in values if torch.linalg.eigvalsh((1 - s) * E + s)[0] >= -1e-6]
    assert double(D, gamma=3.0, asymptote="grid").asymptote == min(feasible)


def test_published_cosines_by_distance():
    tree = Tree.from_levels([[a, b, c, d] for a, b, c, d in itertools.product(range(2), repeat=4) for _ in range(2)])
    D = tree.distances()
    found = double(D, gamma=2.0, asymptote=-0.300071)
    cosines = [found.gram[level == D].unique().item() for level in range(1, 6)]
    assert cosines == pytest.approx([0.57139, 0.28409, 0.09150, -0.03759, -0.12413], abs=5e-6)


@pytest.mark.parametrize("gamma", GAMMAS)
@pytest.mark.parametrize("num_classes", [2, 3, 7, 100])
def test_no_levels_give_the_simplex(num_classes, gamma):
    for dim in (num_classes - 1, num_classes, num_classes + 5):
        found = double(3 * flat(num_classes), dim, gamma=gamma)
        assert is_simplex_etf(found.frame, tol=1e-12)
        assert found.frame.shape == (num_classes, dim)
        assert found.violations == 0
    assert (found.gram - flat(num_classes) * -1 / (num_classes - 1)).fill_diagonal_(0).abs().max() < 1e-12


def test_recursion_equals_dense_solve_on_a_thousand_trees():
    for seed in range(1000):
        tree = random_tree(seed)
        gamma = GAMMAS[seed % 3 + 1]
        mode = ("depth", "height")[seed % 2]
        dense = max_separation_asymptote(tree.distances(mode), gamma)
        assert tree_max_separation(tree, gamma, mode) == pytest.approx(dense, rel=1e-9, abs=1e-9)


def test_recursion_below_a_chain_of_single_children():
    tree = Tree.from_nested({"root": {"X": {"Y": {"E": ["A", "B"], "F": ["C", "D"]}}}})
    assert tree_max_separation(tree, 2.0) == pytest.approx(-0.6938745, abs=5e-8)


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10**6), gamma=st.sampled_from(GAMMAS[:-1]), mode=st.sampled_from(["depth", "height"]))
def test_laws_of_maximum_separation(seed, gamma, mode):
    D = random_tree(seed, most=30).distances(mode)
    num_classes = len(D)
    found = double(D, num_classes - 1, gamma=gamma)
    W, G = found.frame, found.gram
    assert is_unit_norm(W, tol=1e-12)
    assert (W @ W.T - G).abs().max() < 1e-12
    assert found.error < 1e-12
    assert found.violations == 0
    values = torch.linalg.eigvalsh(G)
    assert values[0] > -1e-12
    assert values[0] < 1e-12 < values[1]
    # The same s and cosines by the textbook's inverse, and the weights whose sum of rows vanishes.
    E = exponential(D, gamma)
    weights = torch.linalg.solve(E, torch.ones(num_classes, dtype=torch.float64))
    assert found.asymptote == pytest.approx(-1 / (weights.sum().item() - 1), rel=1e-9 / min(gamma, 1))
    assert (weights > 0).all()
    assert (weights / weights.sum() @ W).abs().max() < 1e-9
    cosine = {level: G[level == D] for level in D.unique().tolist()}
    for level, values in cosine.items():
        assert values.max() == values.min(), level
    means = [cosine[level][0].item() for level in sorted(cosine)]
    assert all(a > b for a, b in itertools.pairwise(means))


class TestHierarchyAwareFrame(FrameTestCase):
    def make_frame(self):
        return double(PAIRS.distances(), 6, gamma=2.0)

    def expected_gram(self):
        E = exponential(PAIRS.distances(), 2.0)
        s = -1 / (torch.linalg.inv(E).sum() - 1)
        return (1 - s) * E + s

    def test_facts(self):
        found = self.make_frame()
        assert "GramFrame(num_classes=4, dim=6, dtype=torch.float64, error=" in repr(found)
        assert "asymptote=-0.693875, gamma=2)" in repr(found)
        assert "<td>gamma</td><td>2</td>" in found._repr_html_()
        for other in (found.to(dtype=torch.float32), copy.deepcopy(found)):
            facts = ("error", "violations", "asymptote", "gamma")
            assert [getattr(other, name) for name in facts] == [getattr(found, name) for name in facts]


def test_unit_of_distances_does_not_matter():
    D = random_tree(5, most=20).distances()
    torch.testing.assert_close(double(D * 1e6).gram, double(D).gram, rtol=0, atol=1e-13)


def test_any_asymptote_that_vectors_allow():
    D = PAIRS.distances()
    found = double(D, gamma=2.0, asymptote=0.25)
    torch.testing.assert_close(found.gram, 0.75 * exponential(D, 2.0) + 0.25)
    assert found.error < 1e-14
    with pytest.raises(ArgumentError, match=r"λ_min = -0\.1325;.*raise the asymptote.*repair='shrink'"):
        double(D, gamma=2.0, asymptote=-0.75)
    repaired = double(D, gamma=2.0, asymptote=-0.75, repair="shrink")
    assert is_unit_norm(repaired.frame, tol=1e-12)
    assert repaired.asymptote == -0.75


def test_positive_asymptote_where_only_constants_are_in_the_way():
    # Squared distances of nearly collinear points: their circumscribed sphere is large.
    gap = 0.1 * (torch.arange(4.0, dtype=torch.float64).unsqueeze(1) - torch.arange(4.0)).abs() ** 1.95
    D = -torch.log1p(-gap)
    gamma = D.max().item()
    assert torch.linalg.eigvalsh(exponential(D, gamma))[0] < 0
    found = double(D, 3, gamma=gamma)
    assert 0 < found.asymptote < 1
    assert found.asymptote == pytest.approx(1 - torch.linalg.inv(gap).sum().item(), rel=1e-9)
    assert found.error < 1e-12
    assert torch.linalg.eigvalsh(found.gram)[0] > -1e-12
    with pytest.raises(ArgumentError, match="λ_min"):
        double(D, 3, gamma=gamma, asymptote=0.0)


@pytest.mark.parametrize("asymptote", ["max-separation", "grid"])
def test_what_no_vectors_have_is_refused_with_the_eigenvalue(asymptote):
    D = bipartite()
    s = 0.0 if asymptote == "max-separation" else -1 / 4
    lowest = torch.linalg.eigvalsh((1 - s) * exponential(D, 0.5) + s)[0].item()
    assert lowest < 0
    with pytest.raises(ArgumentError) as error:
        hierarchy_aware_frame(D, gamma=0.5, asymptote=asymptote)
    for part in ("distances", f"λ_min = {lowest:.4g}", "raise gamma", "ultrametric", "'shrink'", "'nearest'"):
        assert part in str(error.value)
    assert double(D, gamma=6.0, asymptote=asymptote).error < 1e-12


@pytest.mark.parametrize("repair", ["shrink", "clip", "nearest"])
@pytest.mark.parametrize("asymptote", ["max-separation", "grid", -0.2])
def test_repairs_give_frames_and_say_how_far_they_are(repair, asymptote):
    D = bipartite()
    found = double(D, gamma=0.5, asymptote=asymptote, repair=repair)
    s = -0.2 if asymptote == -0.2 else 0.0
    wanted = (1 - s) * exponential(D, 0.5) + s
    assert found.asymptote == s
    assert is_unit_norm(found.frame, tol=1e-12)
    torch.testing.assert_close(found.frame @ found.frame.T, found.gram, rtol=0, atol=1e-12)
    assert found.error == pytest.approx((found.gram - wanted).abs().max().item(), abs=1e-12)
    assert found.error > 1e-3
    assert (found.violations == 0) or repair != "shrink"


def test_max_separation_refuses_what_no_asymptote_mends():
    with pytest.raises(ArgumentError, match="λ_min"):
        max_separation_asymptote(bipartite(), 0.5)


def test_too_small_a_dimension_is_reported():
    D = Tree.from_levels([[k // 20, k // 4] for k in range(40)]).distances()
    found = double(D, 20, gamma=2.0)
    assert is_unit_norm(found.frame, tol=1e-12)
    reached = found.frame @ found.frame.T
    assert found.error == pytest.approx((reached - found.gram).abs().max().item(), rel=1e-12)
    assert 0.01 < found.error < 0.2
    assert torch.equal(found.frame, double(D, 20, gamma=2.0).frame)
    assert double(D, 39, gamma=2.0).error < 1e-12
    worse = double(D, 3, gamma=2.0)
    assert worse.error > found.error
    assert 0 < worse.violations < 1


def test_violations_are_counted_one_by_one():
    D = random_tree(11, most=40).distances()
    found = double(D, 2, gamma=1.0)
    C = found.frame @ found.frame.T
    triples = [t for t in itertools.permutations(range(len(D)), 3) if D[t[0], t[1]] < D[t[0], t[2]]]
    broken = sum(bool(C[i, j] <= C[i, k]) for i, j, k in triples)
    assert broken > 0
    assert found.violations == pytest.approx(broken / len(triples), rel=1e-12)


def test_orientation_comes_from_the_generator_alone():
    D = PAIRS.distances()
    first, again = (double(D, generator=torch.Generator().manual_seed(3)).frame for _ in range(2))
    assert torch.equal(first, again)
    assert not torch.allclose(first, double(D).frame)
    single = hierarchy_aware_frame(D.float(), generator=torch.Generator().manual_seed(3))
    assert single.frame.dtype == single.gram.dtype == torch.float32
    torch.testing.assert_close(single.frame, first.float(), rtol=0, atol=1e-6)


def test_suggested_gamma_has_the_widest_spread():
    assert suggest_gamma(PAIRS.distances()) == pytest.approx(2 * math.log(2), abs=1e-6)
    uneven = torch.tensor([[0.0, 1.0, 10.0], [1.0, 0.0, 10.0], [10.0, 10.0, 0.0]])
    assert suggest_gamma(uneven) == pytest.approx(math.log(10) / 0.9, abs=1e-6)
    assert suggest_gamma(flat(5)) == 1.0
    assert double(PAIRS.distances(), gamma=None).gamma == suggest_gamma(PAIRS.distances())
    D = Tree.from_levels([[a, b, c] for a, b, c in itertools.product(range(2), repeat=3) for _ in range(2)]).distances()
    levels = torch.tensor([0.25, 0.5, 0.75, 1.0], dtype=torch.float64)
    best = suggest_gamma(D)
    spread = [torch.exp(-gamma * levels).var() for gamma in (best * 0.99, best, best * 1.01)]
    assert spread[1] > max(spread[0], spread[2])
    assert suggest_gamma(D * 7) == pytest.approx(best, rel=1e-9)


@pytest.mark.parametrize("gamma", [0, -1.0, math.inf, math.nan, True])
def test_wrong_gamma(gamma):
    for call in (hierarchy_aware_frame, max_separation_asymptote):
        with pytest.raises(ArgumentError, match="gamma must be finite and > 0"):
            call(PAIRS.distances(), gamma=gamma)
    with pytest.raises(ArgumentError, match="gamma must be finite and > 0"):
        tree_max_separation(PAIRS, gamma)


@pytest.mark.parametrize("asymptote", [1.0, -math.inf, math.nan, True, "max", None])
def test_wrong_asymptote(asymptote):
    with pytest.raises(ArgumentError, match="asymptote must be 'max-separation', 'grid' or a finite number below 1"):
        hierarchy_aware_frame(PAIRS.distances(), asymptote=asymptote)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda D: hierarchy_aware_frame(D, repair="mend"), ArgumentError, "repair must be one of"),
        (lambda D: hierarchy_aware_frame(D, 0), ArgumentError, "dim must be an integer >= 1"),
        (lambda D: tree_max_separation(PAIRS, mode="width"), ArgumentError, "mode must be one of"),
        (lambda D: hierarchy_aware_frame(D + torch.triu(D)), ArgumentError, "must be symmetric"),
        (lambda D: hierarchy_aware_frame(D.long()), DtypeError, "distances"),
        (lambda D: suggest_gamma(torch.zeros(1, 1)), ShapeError, "K >= 2"),
        (lambda D: hierarchy_aware_frame(torch.zeros(1, 1)), ShapeError, "K >= 2"),
        (lambda D: tree_max_separation(Tree([-1, 0])), ArgumentError, "at least 2 classes"),
    ],
)
def test_wrong_arguments(call, error, message):
    with pytest.raises(error, match=message):
        call(PAIRS.distances())


@pytest.mark.gpu
def test_frame_follows_the_distances_to_their_device():
    D = PAIRS.distances().cuda()
    assert hierarchy_aware_frame(D).frame.is_cuda
    assert not hierarchy_aware_frame(D, device="cpu").frame.is_cuda
    with pytest.raises(DeviceError):
        hierarchy_aware_frame(D, generator=torch.Generator("cuda"))
