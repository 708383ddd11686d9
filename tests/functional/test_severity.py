from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.functional import severity_literal as literal
from tests.problems import law
from tightframe import functional as F
from tightframe.errors import ArgumentError, DtypeError, LabelError, NonFiniteError, ShapeError
from tightframe.functional.ranking import Ranking, inversions
from tightframe.hierarchy import Tree

D = literal.four_leaves().distances()
A = torch.tensor([0])


def scores_in_order(*classes):
    """Scores ``(1, K)`` that rank the classes so."""
    scores = torch.empty(1, len(classes))
    scores[0, list(classes)] = torch.arange(len(classes), 0, -1).float()
    return scores


def scores_of_ranks(ranks):
    """Scores of the four leaves that meet the ranks, for label A, in this order; of C and D the first first."""
    places = {"0": [0], "1": [1], "2": [2, 3]}
    return scores_in_order(*[places[rank].pop(0) for rank in ranks])


def problem(seed, ties=False):
    """Scores, labels and distances: of a random tree, or of none."""
    g = torch.Generator().manual_seed(seed)
    if seed % 2:
        distances = literal.random_tree(g, 6 + seed % 13).distances("height" if seed % 3 else "depth")
    else:
        distances = literal.random_distances(g, 2 + seed % 7, levels=1 + seed % 5)
    K = len(distances)
    scores = torch.randint(4, (5, K), generator=g).float() if ties else torch.randn(5, K, generator=g)
    return scores, torch.randint(K, (5,), generator=g), distances


# ---------------------------------------------------------------- worked by hand

WORKED = {
    "0122": (1, 1, 1),
    "0212": (0.75, 0.6667, 0.7),
    "0221": (0.791667, 0.6667, 0.8),
    "1022": (0.5, 0, 0.4),
    "1202": (0.333333, 0, 0.2),
    "1220": (0.416667, 0, 0.4),
    "2012": (0.083333, 0, 0),
    "2021": (0.125, 0, 0),
    "2102": (0.166667, 0, 0),
    "2120": (0.25, 0, 0.2),
    "2201": (0, 0, 0),
    "2210": (0, 0, 0),
}


@pytest.mark.parametrize("mode", ["depth", "height"])
@pytest.mark.parametrize("ranks", WORKED)
def test_hops_worked_table(ranks, mode):
    distances = literal.four_leaves().distances(mode)
    scores = scores_of_ranks(ranks)
    whole, at_two, at_three = WORKED[ranks]
    assert F.hops(scores, A, distances).item() == pytest.approx(whole, abs=5e-7)
    assert F.hops(scores, A, distances, (2, 3)).tolist() == [pytest.approx([at_two, at_three], abs=5e-5)]


def test_raw_hops_goes_below_zero():
    assert F.hops(scores_of_ranks("2201"), A, D, clip=False).item() == pytest.approx(-0.041667, abs=5e-7)
    assert F.hops(scores_of_ranks("2210"), A, D, clip=False).item() == pytest.approx(0, abs=1e-15)
    # Slots of e = 0, 1, 2 hold ranks 2, 0, 1: lost 2 + 1/2 + 1/4, of 5/2 by reversal.
    assert F.hops(scores_of_ranks("2012"), A, D, 3, clip=False).item() == pytest.approx(-0.1, rel=1e-14)
    # Slots of e = 0, 1 hold ranks 2, 0: lost 2 + .5, of 1.5 at most by reversal.
    assert F.hops(scores_of_ranks("2012"), A, D, 2, clip=False).item() == pytest.approx(1 - 2.5 / 1.5, rel=1e-14)


@pytest.mark.parametrize(("ranks", "value"), [("0122", 1), ("0212", 0.8), ("0221", 0.6), ("2012", 0.6), ("2120", 0.2)])
def test_concordance_worked(ranks, value):
    assert F.pair_concordance(scores_of_ranks(ranks), A, D).item() == pytest.approx(value, rel=1e-14)


def test_a_sample_by_hand():
    # Label 0; ranked C, A, D, B: distances 2, 0, 2, 1, similarities 0, 1, 0, 1/2.
    scores = scores_in_order(2, 0, 3, 1)
    assert F.top1_error(scores, A).tolist() == [1]
    assert F.mistake_severity(scores, A, D).item() == 2
    assert F.hierarchical_distance(scores, A, D, (1, 2, 3, 4)).tolist() == [[2, 1, 4 / 3, 5 / 4]]
    assert F.best_of_k(scores, A, D, (1, 2, 3, 4)).tolist() == [[2, 0, 0, 0]]
    assert F.hierarchical_precision(scores, A, D, (1, 2, 3, 4)).tolist() == [[0, 2 / 3, 2 / 3, 1]]
    assert F.hierarchical_recall(scores, A, D, (1, 2, 3, 4)).tolist() == [[0, 2 / 3, 2 / 3, 1]]
    assert F.hierarchical_recall(scores, A, D, 2).tolist() == [2 / 3]


def test_severity_and_shares_by_hand():
    scores = torch.eye(4)[[0, 0, 1, 2, 3, 3]]
    labels = torch.tensor([0, 1, 1, 0, 2, 0])
    values = F.severity_metrics(scores, labels, D)
    assert values["near_mistakes"].mean() == values["far_mistakes"].mean() == 2 / 6
    assert F.top1_error(scores, labels).tolist() == [0, 1, 0, 1, 1, 1]
    assert F.mistake_severity(scores, labels, D).item() == 1.5
    assert math.isnan(F.mistake_severity(torch.eye(4), torch.arange(4), D).item())


def test_top_k_returns_a_column_for_each_k():
    scores = torch.randn(7, 4, generator=torch.Generator().manual_seed(1))
    labels = torch.arange(7) % 4
    for function in (F.hierarchical_distance, F.best_of_k, F.hierarchical_precision, F.hierarchical_recall, F.hops):
        several = function(scores, labels, D, (3, 1, 4))
        assert several.shape == (7, 3)
        for i, k in enumerate((3, 1, 4)):
            one = function(scores, labels, D, k)
            assert one.shape == (7,)
            assert one.dtype == torch.float64
            assert torch.equal(several[:, i], one)


# ---------------------------------------------------------------- laws


@pytest.mark.parametrize("ties", [False, True])
def test_all_metrics_are_their_formulas(ties):
    for seed in range(60):
        scores, labels, distances = problem(seed, ties)
        K = len(distances)
        found = F.severity_metrics(scores, labels, distances, (1, 2, 3, K, K + 1))
        for i, label in enumerate(labels.tolist()):
            wanted = literal.metrics(scores[i], label, distances, sorted({k for k in (1, 2, 3, K) if k <= K}))
            assert found.keys() == wanted.keys()
            for name, value in wanted.items():
                assert found[name][i].item() == pytest.approx(value, rel=1e-12, abs=1e-14), (seed, name)


@law
@given(st.integers(0, 10**6), st.booleans())
def test_distance_at_one_is_severity_times_error(seed, ties):
    scores, labels, distances = problem(seed, ties)
    error = F.top1_error(scores, labels).mean()
    first = F.hierarchical_distance(scores, labels, distances).mean()
    severity = F.mistake_severity(scores, labels, distances)
    if error == 0:
        assert math.isnan(severity.item())
        assert first == 0
    else:
        assert first.item() == pytest.approx((severity * error).item(), rel=1e-13)


@law
@given(st.lists(st.integers(0, 40), min_size=0, max_size=30))
def test_inversions_are_counted_pair_by_pair(row):
    wanted = sum(a > b for i, a in enumerate(row) for b in row[i + 1 :])
    assert inversions(torch.tensor([row, row[::-1]], dtype=torch.int64).reshape(2, len(row)))[0].item() == wanted


def test_many_classes_at_distances_of_their_own():
    K, g = 300, torch.Generator().manual_seed(3)
    points = torch.rand(K, 1, generator=g, dtype=torch.float64)
    distances = (points - points.T).abs()
    scores, labels = torch.randn(2, K, generator=g), torch.tensor([7, 200])
    found = F.pair_concordance(scores, labels, distances)
    for i in range(2):
        values = literal.ranked(scores[i], labels[i].item(), distances)
        assert found[i].item() == pytest.approx(literal.concordance(values), rel=1e-13)
        assert 0 <= F.hops(scores, labels, distances)[i] <= 1


# ---------------------------------------------------------------- ties and types


def test_of_equal_scores_the_lower_class_ranks_first():
    scores = torch.zeros(1, 40)
    distances = 1 + (torch.arange(40.0)[:, None] - torch.arange(40.0)).abs().double()
    distances.fill_diagonal_(0)
    assert Ranking(scores, A, distances).distances.tolist() == [distances[0].tolist()]
    assert F.top1_error(scores, A).tolist() == [0]
    assert F.top1_error(scores, torch.tensor([1])).tolist() == [1]
    assert F.hierarchical_distance(scores, torch.tensor([3]), distances, 4).tolist() == [(4 + 3 + 2) / 4]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_types(dtype):
    scores = torch.tensor([[1.0, 3.0, 2.0, 0.0]], dtype=dtype, requires_grad=True)
    for labels in (torch.tensor([3], dtype=torch.uint8), torch.tensor([3], dtype=torch.int32)):
        values = F.severity_metrics(scores, labels, D.to(dtype), (1, 3))
        assert values["hierarchical_distance@3"].tolist() == [5 / 3]
        for value in values.values():
            assert value.dtype == torch.float64
            assert not value.requires_grad


def test_no_sample():
    scores, labels = torch.empty(0, 4), torch.empty(0, dtype=torch.int64)
    for value in F.severity_metrics(scores, labels, D, (1, 4)).values():
        assert value.shape == (0,)
    assert math.isnan(F.mistake_severity(scores, labels, D).item())


def test_one_class():
    one, scores = torch.zeros(1, 1, dtype=torch.float64), torch.ones(2, 1)
    labels = torch.tensor([0, 0])
    assert F.hops(scores, labels, one).tolist() == [1, 1]
    assert F.hierarchical_distance(scores, labels, one).tolist() == [0, 0]
    assert F.pair_concordance(scores, labels, one).isnan().all()
    assert F.hierarchical_precision(scores, labels, one).isnan().all()
    values = F.severity_metrics(scores, labels, one)
    for name in ("error", "near_mistakes", "far_mistakes"):
        assert values[name].tolist() == [0, 0]


# ---------------------------------------------------------------- floors


@law
@given(st.integers(0, 10**6))
def test_floors_by_brute_force(seed):
    _, _, distances = problem(seed)
    K = len(distances)
    counts = torch.randint(0, 5, (K,), generator=torch.Generator().manual_seed(seed)) + (torch.arange(K) == 0)
    rows = [sorted(row) for row in distances.tolist()]
    for k in {1, 2, K}:
        floors = [sum(row[:k]) / k for row in rows]
        assert F.ideal_hierarchical_distance(distances, k).item() == pytest.approx(sum(floors) / K, rel=1e-13)
        weighted = sum(n * f for n, f in zip(counts.tolist(), floors, strict=True)) / counts.sum().item()
        found = F.ideal_hierarchical_distance(distances, k, counts)
        assert found.item() == pytest.approx(weighted, rel=1e-13, abs=1e-15)
    # No scores are better than the ideal ones.
    scores, labels, distances = problem(seed)
    floor = F.hierarchical_distance(-distances[labels], labels, distances, 2)
    assert (F.hierarchical_distance(scores, labels, distances, 2) >= floor - 1e-13).all()


def test_floors_of_a_balanced_tree_of_a_hundred_classes():
    # 2 / 4 / 20 / 100 nodes: k = 5 is the superclass; 20 adds 15 of its 20 cousins at distance 2.
    paths = [(str(k // 50), str(k // 25), str(k // 5), str(k)) for k in range(100)]
    distances = Tree.from_paths(paths).distances()
    floors = F.ideal_hierarchical_distance(distances, (1, 5, 20))
    assert floors.tolist() == pytest.approx([0, 0.8, (4 + 15 * 2) / 20], rel=1e-14)
    assert F.ideal_hierarchical_distance(distances, 5, torch.rand(100)).item() == pytest.approx(0.8, rel=1e-14)


# ---------------------------------------------------------------- bad input

CALLS = {
    "mistake_severity": F.mistake_severity,
    "hierarchical_distance": F.hierarchical_distance,
    "best_of_k": F.best_of_k,
    "hierarchical_precision": F.hierarchical_precision,
    "hierarchical_recall": F.hierarchical_recall,
    "hops": F.hops,
    "pair_concordance": F.pair_concordance,
    "severity_metrics": F.severity_metrics,
    "top1_error": lambda scores, labels, _: F.top1_error(scores, labels),
}


Z, Y = torch.randn(3, 4, generator=torch.Generator().manual_seed(0)), torch.tensor([0, 1, 3])


@pytest.mark.parametrize(
    ("scores", "labels", "distances", "error", "message"),
    [
        (Z, torch.tensor([0, 1, 4]), D, LabelError, r"labels must lie in 0\.\.3"),
        (Z, torch.tensor([0, -1, 1]), D, LabelError, r"labels must lie in 0\.\.3"),
        (Z, Y.float(), D, DtypeError, "labels must be an integer tensor"),
        (Z, Y.bool(), D, DtypeError, "labels must be an integer tensor"),
        (Z, Y[:2], D, ShapeError, "labels must have shape"),
        (Z[0], Y, D, ShapeError, "scores must have shape"),
        (Z.long(), Y, D, DtypeError, "scores must be a floating-point tensor"),
        (Z.index_fill(0, torch.tensor([1]), torch.nan), Y, D, NonFiniteError, "scores must be finite"),
        (Z.index_fill(0, torch.tensor([1]), torch.inf), Y, D, NonFiniteError, "scores must be finite"),
        (torch.ones(3, 5), Y, D, ShapeError, "scores must have width d = 4, got 5"),
        (Z, Y, torch.zeros(4, 4), ArgumentError, "distances"),
        (Z, Y, D[:3], ShapeError, "distances"),
    ],
)
def test_bad_samples(scores, labels, distances, error, message):
    for name, call in CALLS.items():
        if name != "top1_error" or ("distances" not in message and "width" not in message):
            with pytest.raises(error, match=message):
                call(scores, labels, distances)


@pytest.mark.parametrize("k", [0, -1, 5, 1.0, True, "1", None])
@pytest.mark.parametrize("several", [False, True])
def test_bad_k(k, several):
    top_k = [1, k] if several else k
    for name in ("hierarchical_distance", "best_of_k", "hierarchical_precision", "hierarchical_recall", "hops"):
        if name != "hops" or top_k is not None:
            with pytest.raises(ArgumentError, match="top_k must be"):
                CALLS[name](torch.randn(2, 4), torch.tensor([0, 1]), D, top_k)
    with pytest.raises(ArgumentError, match="top_k must be"):
        F.ideal_hierarchical_distance(D, top_k)


def test_bad_weights():
    with pytest.raises(ShapeError, match=r"weights must have shape \(K,\) = \(4,\), got \(3,\)"):
        F.ideal_hierarchical_distance(D, 1, torch.ones(3))
    for bad in ([0.0, 0, 0, 0], [1.0, -1, 1, 1], [1.0, torch.nan, 1, 1], [1.0, torch.inf, 1, 1]):
        with pytest.raises(ArgumentError, match="weights must be finite, >= 0 and not all 0"):
            F.ideal_hierarchical_distance(D, 1, torch.tensor(bad))
    with pytest.raises(ArgumentError, match="distances"):
        F.ideal_hierarchical_distance(torch.ones(4, 4), 1)
