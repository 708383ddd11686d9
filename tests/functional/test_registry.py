from __future__ import annotations

import math
from dataclasses import replace
from importlib.util import find_spec, module_from_spec
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
import torch

from tightframe.errors import ArgumentError
from tightframe.functional import PRESETS, bias_collapse, cdnv, collapse_metrics, nc1, rows, vci
from tightframe.functional.registry import Metric, describe, evaluate, select, table
from tightframe.functional.samples import Judge
from tightframe.moments import ClassMoments

from ..problems import draw, scattered, simplex

PUBLISHED = [name for name in PRESETS if name not in ("default", "layer")]
ALL = ("means", "scatter", "weight", "samples", "logits")
PROBLEM = scattered(draw(4, 6), [40, 20, 7, 3], 0.8, offset=0.4)
W, B = draw(4, 6, seed=5), draw(4, seed=6)

LOGITS = PROBLEM.features @ W.T + B


def measured(preset, have=ALL):
    """Every row of a preset, those of samples averaged over batches."""
    rows = select(preset, have)
    moments = PROBLEM.moments("scatter" in have)
    weight = W if "weight" in have else None
    values = {id: value.item() for id, value in evaluate(rows, moments, weight=weight, bias=B).items()}
    if "samples" in have:
        judge = Judge(moments, weight)
        batches = zip(PROBLEM.features.split(32), PROBLEM.labels.split(32), LOGITS.split(32), strict=True)
        looks = [judge.look(rows, *batch) for batch in batches]
        values |= {id: torch.cat([look[id] for look in looks]).mean().item() for id in looks[0]}
    return values


OF_VECTORS = {"nc2.equinorm", "nc2.equiangularity", "nc2.max_angle", "nc2.gram", "nc2.etf_gap", "nc2.min_separation"}
OF_VECTORS |= {"gnc2.log"}
OF_MEANS = {"nc1.ratio", "nc1.rank", "cdnv"} | {f"{name}.means" for name in OF_VECTORS}
OF_SCATTER = {"nc1.pinv", "vci"}
OF_CLASSIFIER = {f"{name}.classifier" for name in OF_VECTORS}
OF_CLASSIFIER |= {"nc0", "nc3.distance", "nc3.gram", "nc3.alignment", "bias_collapse"}


# ---------------------------------------------------------------- what each published code does, step by step


def features_by_class():
    return [PROBLEM.features[PROBLEM.labels == k].numpy() for k in range(4)]


def covariance(means):
    """Average over all samples of the outer products of their deviations from their class mean."""
    total = np.zeros((6, 6))
    for H, mean in zip(features_by_class(), means, strict=True):
        for h in H:
            total += np.outer(h - mean, h - mean)
    return total / 70


def coherence(V):
    """Mean over ordered pairs of |cos + 1/(C - 1)|."""
    unit = V / np.linalg.norm(V, axis=1, keepdims=True)
    gram = unit @ unit.T + 1 / 3
    return (np.abs(gram).sum() - np.abs(np.diag(gram)).sum()) / (4 * 3)


def variation_of_norms(V):
    norms = torch.from_numpy(V).norm(dim=1)
    return (norms.std() / norms.mean()).item()  # torch's default divides by C - 1


def spread_of_cosines(V):
    return np.std([a @ b / np.linalg.norm(a) / np.linalg.norm(b) for a, b in combinations(V, 2)])


def against_simplex(gram):
    return np.linalg.norm(gram / np.linalg.norm(gram) - (np.eye(4) - 1 / 4) / math.sqrt(3))


def nearest_means():
    means = np.stack([H.mean(axis=0) for H in features_by_class()])
    return np.array([np.linalg.norm(means - h, axis=1).argmin() for h in PROBLEM.features.numpy()])


def accuracy():
    return np.mean(LOGITS.argmax(dim=1).numpy() == PROBLEM.labels.numpy())


def mismatch():
    return np.mean(nearest_means() != LOGITS.argmax(dim=1).numpy())


def papyan():
    means = np.stack([H.mean(axis=0) for H in features_by_class()])
    A = means - means.mean(axis=0)
    between = A.T @ A / 4
    # Their code keeps the C - 1 largest singular values.
    values, vectors = np.linalg.eigh(between)
    inverse = vectors[:, -3:] @ np.diag(1 / values[-3:]) @ vectors[:, -3:].T
    return A, np.trace(covariance(means) @ inverse)


def papyan2020():
    A, product = papyan()
    V = W.numpy()
    return {
        "nc1.pinv": product / 4,
        "nc2.equinorm.means": variation_of_norms(A),
        "nc2.equinorm.classifier": variation_of_norms(V),
        "nc2.equiangularity.means": spread_of_cosines(A),
        "nc2.equiangularity.classifier": spread_of_cosines(V),
        "nc2.max_angle.means": coherence(A),
        "nc2.max_angle.classifier": coherence(V),
        "nc3.distance": np.linalg.norm(V / np.linalg.norm(V) - A / np.linalg.norm(A)) ** 2,
        "ncc.mismatch": mismatch(),
        "accuracy": accuracy(),
    }


def papyan_notebook():
    _, product = papyan()
    values = papyan2020() | {"nc1.pinv_sum": product}
    return {name: v for name, v in values.items() if name != "nc1.pinv" and "equiangularity" not in name}


def zhu2021():
    means = np.stack([H.mean(axis=0) for H in features_by_class()])
    center = PROBLEM.features.numpy().mean(axis=0)
    A = means - center
    between = sum(np.outer(a, a) for a in A) / 4
    V = W.numpy()
    return {
        "nc1.pinv": np.trace(covariance(means) @ np.linalg.pinv(between, rcond=1e-10)) / 4,
        "nc2.gram.classifier": against_simplex(V @ V.T),
        "nc3.gram": against_simplex(V @ A.T),
        "bias_collapse": np.linalg.norm(V @ center + B.numpy()),
        "accuracy": accuracy(),
    }


def nearest_simplex_distance(X):
    """Squared distance of X and U M, both of Frobenius norm 1, at the best U of all with orthonormal columns."""
    C = len(X)
    X = X / np.linalg.norm(X)
    M = (np.eye(C) - 1 / C) / math.sqrt(C - 1)
    left, _, right = np.linalg.svd(X.T @ M, full_matrices=False)
    return np.linalg.norm(X.T - left @ right @ M) ** 2


def mean_margin():
    features, V = PROBLEM.features.numpy(), W.numpy() - W.numpy().mean(axis=0)
    margins = []
    for h, y in zip(features - features.mean(axis=0), PROBLEM.labels, strict=True):
        cosines = [h @ v / np.linalg.norm(h) / np.linalg.norm(v) for v in V]
        margins.append(cosines[y] - max(c for k, c in enumerate(cosines) if k != y))
    return np.mean(margins)


def markou2024():
    means = np.stack([H.mean(axis=0) for H in features_by_class()])
    A = means - PROBLEM.features.numpy().mean(axis=0)
    V = W.numpy()
    within, between = covariance(means), A.T @ A / 4
    explained = np.trace(np.linalg.pinv(within + between, rcond=1e-10) @ between)
    return zhu2021() | {
        "nc2.equinorm.means": variation_of_norms(A),
        "nc2.equinorm.classifier": variation_of_norms(V),
        "nc2.etf_distance.means": nearest_simplex_distance(A),
        "nc2.etf_distance.classifier": nearest_simplex_distance(V),
        "vci": 1 - explained / min(6, 3),
        "ncc.mismatch": mismatch(),
        "cosine_margin": mean_margin(),
    }


def rhubarbwu():
    by_class = features_by_class()
    means = np.stack([H.mean(axis=0) for H in by_class])
    A = means - means.mean(axis=0)
    within, between = covariance(means), A.T @ A / 4
    variances = [((H - mean) ** 2).sum(axis=1).mean() for H, mean in zip(by_class, means, strict=True)]
    pairs = list(combinations(range(4), 2))
    unit = A / np.linalg.norm(A, axis=1, keepdims=True)
    distances = np.array([np.linalg.norm(unit[i] - unit[j]) for i, j in pairs])
    kernel = np.log(1 / distances)
    V = W.numpy()
    products = (PROBLEM.features.numpy() @ V.T).argmax(axis=1)
    return {
        "nc1.pinv": np.trace(np.linalg.pinv(between, rcond=1e-10) @ within) / 4,
        "nc1.ratio": np.trace(within) / np.trace(between),
        "cdnv": np.mean([(variances[i] + variances[j]) / 2 / ((means[i] - means[j]) ** 2).sum() for i, j in pairs]),
        "nc2.gram.means": against_simplex(A @ A.T),
        "gnc2.log.means": kernel.mean(),
        "gnc2.log_variance.means": ((kernel - kernel.mean()) ** 2).sum() / 6,
        "nc3.gram": against_simplex(V @ A.T),
        "gnc2.distance.means": distances.mean(),
        "gnc2.distance_variance.means": ((distances - distances.mean()) ** 2).sum() / 6,
        "nc3.dot_variance": torch.from_numpy((V * A).sum(axis=1)).var().item(),
        "nc4.agreement_without_bias": np.mean(nearest_means() == products),
    }


LITERAL = {
    "papyan2020": papyan2020,
    "papyan_notebook": papyan_notebook,
    "zhu2021": zhu2021,
    "markou2024": markou2024,
    "rhubarbwu": rhubarbwu,
}


@pytest.mark.parametrize("preset", PUBLISHED)
def test_a_preset_is_what_the_published_code_computes(preset):
    assert measured(preset) == pytest.approx(LITERAL[preset](), rel=1e-11)


# ---------------------------------------------------------------- what is computed from what


OF_SAMPLES = {
    "means samples": {"ncc.accuracy"},
    "means samples weight": {"cosine_margin"},
    "means samples logits": {"nc4.agreement"},
    "samples logits": {"accuracy", "cross_entropy"},
}


@pytest.mark.parametrize(
    "have", ["means", "means scatter", "means weight", "scatter weight means", "samples logits", " ".join(ALL)]
)
def test_metrics_that_lack_their_input_are_left_out(have):
    there = set(have.split())
    of = {"means": OF_MEANS, "means scatter": OF_SCATTER, "means weight": OF_CLASSIFIER} | OF_SAMPLES
    wanted = set().union(*(ids for needs, ids in of.items() if there >= set(needs.split())))
    assert set(measured("default", there)) == wanted


def test_a_layer_is_judged_by_its_means_alone():
    assert set(measured("layer")) == OF_MEANS | OF_SCATTER | {"ncc.error"}
    assert measured("layer")["ncc.error"] == pytest.approx(1 - measured("default")["ncc.accuracy"], rel=1e-14)


def test_a_list_of_ids_with_options_of_their_own():
    found = measured(["cdnv", ("nc1.pinv", {"weighting": "sample"}), "nc2.{gram,max_angle}.means", "accuracy"])
    assert list(found) == ["cdnv", "nc1.pinv", "nc2.gram.means", "nc2.max_angle.means", "accuracy"]
    assert found["nc1.pinv"] == nc1(PROBLEM.moments(), weighting="sample").item()
    for ids, message in ((["nc2.gram"], "near it are nc2.gram.means"), (["loss"], "is not computed from features")):
        with pytest.raises(ArgumentError, match=message):
            select(ids, ALL)


def test_one_row_is_all_that_a_new_metric_needs(monkeypatch):
    norm = Metric("norm", frozenset({"samples"}), "length", function=lambda look: look.features.norm(dim=1))
    monkeypatch.setattr(rows, "METRICS", (*rows.METRICS, replace(norm, presets=("default",))))
    spec = find_spec("tightframe.functional.registry")
    fresh = module_from_spec(spec)
    spec.loader.exec_module(fresh)
    (row,) = (row for row in fresh.select("default", ["samples"]) if row.id == "norm")
    found = Judge(None).look([row], PROBLEM.features)["norm"]
    torch.testing.assert_close(found, PROBLEM.features.norm(dim=1), rtol=1e-15, atol=0)
    assert fresh.describe("norm").label == "length"
    assert "| `norm` |" in fresh.table()


def test_rows_that_need_means_ask_for_them():
    with pytest.raises(ArgumentError, match="moments must be given"):
        Judge(None).look(select(["ncc.accuracy"], ALL), PROBLEM.features, PROBLEM.labels)


def test_defaults_are_class_weighted():
    moments = PROBLEM.moments()
    found = collapse_metrics(moments, W, B)
    for name, value in {"nc1.pinv": nc1(moments), "nc1.ratio": nc1(moments, "ratio"), "cdnv": cdnv(moments)}.items():
        assert found[name].item() == value.item()
    assert found["vci"].item() == vci(moments).item()
    assert found["bias_collapse"].item() == bias_collapse(moments, W, B).item()
    assert collapse_metrics(moments, W)["bias_collapse"].item() == bias_collapse(moments, W).item()
    assert found["nc1.rank"].item() == 3
    shared = set(found) & set(LITERAL["rhubarbwu"]())
    assert shared >= {"nc1.pinv", "nc1.ratio", "cdnv", "nc2.gram.means", "gnc2.log.means", "nc3.gram"}
    for name in shared:
        assert found[name].item() == pytest.approx(LITERAL["rhubarbwu"]()[name], rel=1e-11), name


def test_all_defaults_at_exact_collapse():
    points = simplex(5, 7)
    moments = ClassMoments.from_samples(points.repeat(3, 1), torch.arange(5).repeat(3), 5, scatter=True)
    edge = math.sqrt(2 * 5 / 4)
    values = collapse_metrics(moments, 0.4 * points, torch.zeros(5))
    assert (describe("nc1.rank", 5).ideal, describe("gnc2.log.means", 5).ideal) == (4, pytest.approx(-math.log(edge)))
    for name, value in values.items():
        assert value.item() == pytest.approx(describe(name, 5).ideal, abs=1e-13), name


@pytest.mark.parametrize("preset", [None, *PUBLISHED])
def test_the_classifier_row_of_an_absent_class_counts_for_nothing(preset):
    dense = collapse_metrics(PROBLEM.moments(), W, B, preset=preset)
    place = torch.tensor([0, 1, 3, 4])
    moments = ClassMoments.from_samples(PROBLEM.features, place[PROBLEM.labels], 6, scatter=True)
    weight, bias = torch.full((6, 6), 1e3, dtype=torch.float64), torch.full((6,), 1e3, dtype=torch.float64)
    weight[place], bias[place] = W, B
    sparse = collapse_metrics(moments, weight, bias, preset=preset)
    assert {name for name in dense if sparse[name].item() != pytest.approx(dense[name].item(), rel=1e-11)} == set()


def test_no_sample_gives_nan_throughout():
    for moments in (
        ClassMoments(4, 6, scatter=True),
        ClassMoments.from_samples(draw(3, 6), torch.ones(3).long(), 4, True),
    ):
        assert all(math.isnan(value.item()) for value in collapse_metrics(moments).values())


# ---------------------------------------------------------------- what is said of a metric


def test_descriptions():
    assert describe("nc2.equinorm.means").label == "NC2 norms"
    assert describe("nc2.equinorm.classifier").label == "NC2 norms, classifier"
    assert (describe("frame.alignment.span").label, describe("frame.alignment.span").ideal) == (
        "frame alignment, in its span",
        1.0,
    )
    assert describe("hierarchical_distance@5").label == "HD@5"
    assert describe("hops@20.crm").label == "HOPS@20, CRM"
    assert describe("error.tree-order").label == "error, tree order"
    for unknown in ("brand.new", "hops@5.dice"):
        assert (describe(unknown).label, describe(unknown).ideal) == (unknown, None)
    assert describe("cosine_margin").ideal is None
    assert describe("cosine_margin", 10).ideal == pytest.approx(10 / 9)
    assert describe("nc2.min_separation.means", 2).ideal == pytest.approx(2.0)
    assert describe("loss", 10).ideal is None


def test_the_documentation_prints_the_table():
    documented = (Path(__file__).parents[2] / "docs" / "metrics.md").read_text(encoding="utf-8")
    assert table() in documented, "replace the tables of docs/metrics.md by what functional.registry.table() returns"


# ---------------------------------------------------------------- bad input


def test_unknown_preset():
    for preset in ("papyan", "", "PAPYAN2020"):
        with pytest.raises(ArgumentError, match=r"preset must be .* one of default, .*, got"):
            collapse_metrics(PROBLEM.moments(), preset=preset)
    with pytest.raises(ArgumentError, match="did you mean 'papyan2020'"):
        select("papyan20", ALL)
