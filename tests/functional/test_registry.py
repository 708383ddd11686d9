from __future__ import annotations

import math
from itertools import combinations

import numpy as np
import pytest
import torch

from tightframe._checks import ArgumentError, NonFiniteError, ShapeError
from tightframe.functional import PRESETS, ClassMoments, bias_collapse, cdnv, collapse_metrics, nc1, vci
from tightframe.functional.registry import evaluate, select
from tightframe.functional.samples import Judge

from ..problems import draw, scattered, simplex

PROBLEM = scattered(draw(4, 6), [40, 20, 7, 3], 0.8, offset=0.4)
W, B = draw(4, 6, seed=5), draw(4, seed=6)

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
    }


def papyan_notebook():
    _, product = papyan()
    kept = {"nc2.equinorm.means", "nc2.equinorm.classifier", "nc2.max_angle.means", "nc2.max_angle.classifier"}
    values = {name: value for name, value in papyan2020().items() if name in kept | {"nc3.distance"}}
    return values | {"nc1.pinv_sum": product}


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
    }


def nearest_simplex_distance(X):
    """Squared distance of X and U M, both of Frobenius norm 1, at the best U of all with orthonormal columns."""
    C = len(X)
    X = X / np.linalg.norm(X)
    M = (np.eye(C) - 1 / C) / math.sqrt(C - 1)
    left, _, right = np.linalg.svd(X.T @ M, full_matrices=False)
    return np.linalg.norm(X.T - left @ right @ M) ** 2


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
    }


def rhubarbwu():
    by_class = features_by_class()
    means = np.stack([H.mean(axis=0) for H in by_class])
    A = means - means.mean(axis=0)
    within, between = covariance(means), A.T @ A / 4
    variances = [((H - mean) ** 2).sum(axis=1).mean() for H, mean in zip(by_class, means, strict=True)]
    pairs = list(combinations(range(4), 2))
    unit = A / np.linalg.norm(A, axis=1, keepdims=True)
    kernel = np.array([np.log(1 / np.linalg.norm(unit[i] - unit[j])) for i, j in pairs])
    V = W.numpy()
    similarities = (V / np.linalg.norm(V, axis=1, keepdims=True) * unit).sum(axis=1)
    return {
        "nc1.pinv": np.trace(np.linalg.pinv(between, rcond=1e-10) @ within) / 4,
        "nc1.ratio": np.trace(within) / np.trace(between),
        "cdnv": np.mean([(variances[i] + variances[j]) / 2 / ((means[i] - means[j]) ** 2).sum() for i, j in pairs]),
        "nc2.gram.means": against_simplex(A @ A.T),
        "gnc2.log.means": kernel.mean(),
        "gnc2.log_variance.means": ((kernel - kernel.mean()) ** 2).sum() / 6,
        "nc3.gram": against_simplex(V @ A.T),
        "nc3.alignment_variance": torch.from_numpy(similarities).var().item(),
    }


LITERAL = {
    "papyan2020": papyan2020,
    "papyan_notebook": papyan_notebook,
    "zhu2021": zhu2021,
    "markou2024": markou2024,
    "rhubarbwu": rhubarbwu,
}


def test_every_preset_is_checked_here():
    assert set(PRESETS) == set(LITERAL)


@pytest.mark.parametrize("preset", PRESETS)
def test_a_preset_is_what_the_published_code_computes(preset):
    found = collapse_metrics(PROBLEM.moments(), W, B, preset=preset)
    wanted = LITERAL[preset]()
    assert set(found) == set(wanted)
    for name, value in wanted.items():
        assert found[name].item() == pytest.approx(value, rel=1e-11), name
        assert (found[name].dtype, found[name].shape) == (torch.float64, torch.Size())


def test_conventions_differ_where_classes_are_imbalanced():
    values = {preset: collapse_metrics(PROBLEM.moments(), W, B, preset=preset) for preset in PRESETS}
    paper, notebook = values["papyan2020"]["nc1.pinv"], values["papyan_notebook"]["nc1.pinv_sum"]
    assert notebook.item() == pytest.approx(4 * paper.item(), rel=1e-14)
    assert abs(values["zhu2021"]["nc1.pinv"] / paper - 1) > 0.01
    assert abs(values["zhu2021"]["nc3.gram"] / values["rhubarbwu"]["nc3.gram"] - 1) > 1e-3


# ---------------------------------------------------------------- what is computed from what


@pytest.mark.parametrize("preset", [None, *PRESETS])
@pytest.mark.parametrize("scatter", [False, True])
@pytest.mark.parametrize("weight", [False, True])
def test_metrics_that_lack_their_input_are_left_out(preset, scatter, weight):
    found = set(collapse_metrics(PROBLEM.moments(scatter), W if weight else None, B, preset=preset))
    whole = OF_MEANS | OF_SCATTER | OF_CLASSIFIER if preset is None else set(LITERAL[preset]())
    classifier = {name for name in whole if name.endswith(".classifier") or name[:3] in ("nc3", "nc0", "bia")}
    scattered = {name for name in whole if name.startswith(("nc1.pinv", "vci"))}
    assert found == whole - (set() if scatter else scattered) - (set() if weight else classifier)


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
    special = {"nc1.rank": 4} | {f"nc2.min_separation.{which}": edge for which in ("means", "classifier")}
    special |= {f"gnc2.log.{which}": -math.log(edge) for which in ("means", "classifier")}
    for name, value in collapse_metrics(moments, 0.4 * points, torch.zeros(5)).items():
        assert value.item() == pytest.approx(special.get(name, 0), abs=1e-13), name


@pytest.mark.parametrize("preset", [None, *PRESETS])
def test_the_classifier_row_of_an_absent_class_counts_for_nothing(preset):
    dense = collapse_metrics(PROBLEM.moments(), W, B, preset=preset)
    place = torch.tensor([0, 1, 3, 4])
    moments = ClassMoments.from_samples(PROBLEM.features, place[PROBLEM.labels], 6, scatter=True)
    weight, bias = torch.full((6, 6), 1e3, dtype=torch.float64), torch.full((6,), 1e3, dtype=torch.float64)
    weight[place], bias[place] = W, B
    sparse = collapse_metrics(moments, weight, bias, preset=preset)
    assert {name for name in dense if sparse[name].item() != pytest.approx(dense[name].item(), rel=1e-11)} == set()


@pytest.mark.parametrize("preset", [None, "zhu2021"])
def test_parameters_of_a_model_are_taken_as_they_are(preset):
    layer = torch.nn.Linear(6, 4)
    with torch.no_grad():
        layer.weight.copy_(W)
        layer.bias.copy_(B)
    found = collapse_metrics(PROBLEM.moments(), layer.weight, layer.bias, preset=preset)
    wanted = collapse_metrics(PROBLEM.moments(), W.float().double(), B.float().double(), preset=preset)
    assert {name: value.item() for name, value in found.items()} == {n: v.item() for n, v in wanted.items()}
    assert not any(value.requires_grad for value in found.values())


def test_no_sample_gives_nan_throughout():
    for moments in (
        ClassMoments(4, 6, scatter=True),
        ClassMoments.from_samples(draw(3, 6), torch.ones(3).long(), 4, True),
    ):
        assert all(math.isnan(value.item()) for value in collapse_metrics(moments).values())


# ---------------------------------------------------------------- bad input


def test_unknown_preset():
    for preset in ("papyan", "", "PAPYAN2020"):
        with pytest.raises(ArgumentError, match=r"preset must be None or one of papyan2020, .*, got"):
            collapse_metrics(PROBLEM.moments(), preset=preset)


@pytest.mark.parametrize("preset", [None, *PRESETS])
@pytest.mark.parametrize("shape", [(5, 6), (3, 6), (4, 5), (4,)])
def test_a_weight_of_another_shape_is_refused(preset, shape):
    with pytest.raises(ShapeError, match="must have shape"):
        collapse_metrics(PROBLEM.moments(), torch.ones(shape), preset=preset)


def test_a_diverged_weight_is_refused():
    with pytest.raises(NonFiniteError):
        collapse_metrics(PROBLEM.moments(), torch.full((4, 6), float("nan")))
