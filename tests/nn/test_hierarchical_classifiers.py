from __future__ import annotations

import copy
import io
import pickle

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from tests.hierarchy.tree_literal import TEST_TREE
from tightframe.errors import ArgumentError, DimensionError, DtypeError, LabelError, ShapeError
from tightframe.frames import frame_of_gram, hierarchy_aware_frame, is_simplex_etf, suggest_gamma
from tightframe.hierarchy.index import sibling_log_softmax
from tightframe.nn import (
    BarzDenzlerClassifier,
    ConditionalSoftmaxClassifier,
    HierarchyAwareClassifier,
    HierCOSClassifier,
    NodeClassifier,
)

from . import test_classifiers as laws
from .hierarchical_material import DISTANCES, OTHER, RELABELLED, TREE, D, K, by_number, material

TREE_MAKERS = {
    "nodes": lambda tree=TREE, **options: NodeClassifier(D, tree, **options),
    "conditional": lambda tree=TREE, **options: ConditionalSoftmaxClassifier(D, tree, **options),
    "hier-cos": lambda tree=TREE, **options: HierCOSClassifier(D, tree, **options),
}
FRAME_MAKERS = {
    "haframe": lambda **options: HierarchyAwareClassifier(D, DISTANCES, **{"normalize": True, **options}),
    "barz-denzler": lambda **options: BarzDenzlerClassifier(D, DISTANCES, **options),
}
of_trees = pytest.mark.parametrize("make", TREE_MAKERS.values(), ids=TREE_MAKERS)
of_frames = pytest.mark.parametrize("make", FRAME_MAKERS.values(), ids=FRAME_MAKERS)
GENERAL_LAWS = [
    laws.test_interface,
    laws.test_class_vectors_are_rows_of_the_weight,
    laws.test_copies_pickles_and_saves,
    laws.test_module_casts_and_moves,
    laws.test_wrong_features,
]
FRAME_LAWS = [
    *GENERAL_LAWS,
    laws.test_prepared_features_are_what_the_class_vectors_meet,
    laws.test_features_are_taken_as_they_are_on_request,
    laws.test_export_gives_the_same_logits_on_unit_features_and_the_same_argmax,
    laws.test_zero_features_have_zero_logits_and_zero_gradient,
    laws.test_gradient,
    laws.test_half_norms_do_not_overflow,
    laws.test_autocast_lowers_nothing,
    laws.test_fixed_classifiers_have_no_trainable_parameter,
]


@pytest.mark.parametrize("law", GENERAL_LAWS, ids=lambda law: law.__name__)
@of_trees
def test_tree_classifiers_keep_the_laws(make, law):
    law(make)


@pytest.mark.parametrize("law", FRAME_LAWS, ids=lambda law: law.__name__)
@of_frames
def test_frame_classifiers_keep_the_laws(make, law):
    law(make)


@pytest.mark.parametrize("make", [*TREE_MAKERS.values(), *FRAME_MAKERS.values()], ids=[*TREE_MAKERS, *FRAME_MAKERS])
def test_compiles_to_one_graph(make):
    laws.test_compiles_to_one_graph(make, "eager")


@of_frames
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_features_are_computed_in_float32(make, dtype):
    laws.test_half_features_are_computed_in_float32(make, dtype)


@of_trees
def test_gradient_of_tree_classifiers(make):
    classifier = make().double()
    h = material(3)[0].requires_grad_()
    assert torch.autograd.gradcheck(classifier, h)
    assert torch.autograd.gradcheck(classifier.prepare, h)


@of_trees
def test_state_of_the_same_tree_loads_and_another_is_refused(make):
    torch.manual_seed(0)
    one, other = make(), make(**({"seed": 1} if make is TREE_MAKERS["hier-cos"] else {}))
    h = material(dtype=torch.float32)[0]
    assert not torch.equal(one(h), other(h))
    buffer = io.BytesIO()
    torch.save(one.state_dict(), buffer)
    buffer.seek(0)
    other.load_state_dict(torch.load(buffer, weights_only=True))
    assert torch.equal(one(h), other(h))
    with pytest.raises(ArgumentError, match="state must be of the same tree"):
        make(OTHER).load_state_dict(one.state_dict())
    with pytest.raises(ArgumentError, match="state must be of the same tree"):
        make(RELABELLED).load_state_dict(one.state_dict())


@of_trees
def test_index_tensors_stay_integers_and_move(make):
    classifier = make().half()
    assert {b.dtype for name, b in classifier.named_buffers() if "tree" in name} == {torch.int64}
    assert all(b.device.type == "meta" for b in classifier.to("meta").buffers())
    assert make(device="meta")(torch.empty(2, D, device="meta")).shape == (2, K)


@of_trees
def test_bad_sizes_and_trees(make):
    with pytest.raises(ArgumentError, match=r"tree must be a tightframe\.Tree, got Tensor"):
        make(DISTANCES)
    kind = type(make())
    with pytest.raises(ArgumentError, match="dim must be an integer >= 1, got 0"):
        kind(0, TREE)


class TestNodeClassifier:
    def test_leaves_are_rows_of_the_nodes(self):
        classifier = NodeClassifier(D, TREE).double()
        h, _ = material()
        logits = classifier.node_logits(h)
        assert logits.shape == (6, 9)
        torch.testing.assert_close(logits, h @ classifier.nodes.weight.T + classifier.nodes.bias)
        torch.testing.assert_close(classifier(h), logits[:, by_number("ABCDE")])
        torch.testing.assert_close(classifier.export()(h), classifier(h))
        assert NodeClassifier(D, TREE, bias=False).bias is None

    def test_internal_nodes_are_never_predicted(self):
        classifier = NodeClassifier(D, TREE)
        with torch.no_grad():
            classifier.nodes.bias[by_number(["root", "x", "y", "z"])] = 1e6
        assert classifier(material(dtype=torch.float32)[0]).abs().max() < 100


class TestConditionalSoftmaxClassifier:
    def test_probabilities_are_products_along_the_path(self):
        classifier = ConditionalSoftmaxClassifier(D, TREE).double()
        h, _ = material()
        z = dict(zip(TREE.names[1:], (h @ classifier.nodes.weight.T + classifier.nodes.bias).T, strict=True))

        def given(name, *siblings):
            return z[name].exp() / sum(z[s].exp() for s in (name, *siblings))

        wanted = torch.stack(
            [
                given("x", "z") * given("y", "C") * given("A", "B"),
                given("x", "z") * given("y", "C") * given("B", "A"),
                given("x", "z") * given("C", "y"),
                given("z", "x") * given("D", "E"),
                given("z", "x") * given("E", "D"),
            ],
            dim=1,
        )
        torch.testing.assert_close(classifier(h).exp(), wanted, rtol=1e-12, atol=0)
        torch.testing.assert_close(wanted.sum(dim=1), torch.ones(6, dtype=torch.float64))

    def test_flat_tree_is_a_softmax(self):
        flat = TREE.from_nested({"root": list("ABCDE")})
        classifier = ConditionalSoftmaxClassifier(D, flat)
        h = material(dtype=torch.float32)[0]
        torch.testing.assert_close(classifier(h), classifier.nodes(h).log_softmax(dim=1))

    def test_weight_is_the_linear_part(self):
        classifier = ConditionalSoftmaxClassifier(D, TREE).double()
        weight = classifier.nodes.weight
        rows = [weight[[i - 1 for i in by_number(path)]].sum(dim=0) for path in ("xyA", "xyB", "xC", "zD", "zE")]
        torch.testing.assert_close(classifier.weight, torch.stack(rows))
        bias = classifier.nodes.bias
        torch.testing.assert_close(classifier.bias[2], bias[[i - 1 for i in by_number("xC")]].sum())
        assert ConditionalSoftmaxClassifier(D, TREE, bias=False).bias is None

    def test_half_logits_are_added_up_in_float32(self):
        classifier = ConditionalSoftmaxClassifier(D, TREE)
        h = material(dtype=torch.float32)[0]
        with torch.autocast("cpu", dtype=torch.bfloat16):
            nodes, found = classifier.nodes(h), classifier(h)
        assert found.dtype == torch.float32
        assert nodes.dtype == torch.bfloat16
        edges = sibling_log_softmax(nodes.float(), classifier.tree.index)
        leaf = classifier.tree.index.paths[:, 0]
        torch.testing.assert_close(edges[:, leaf][:, 3], found.exp()[:, 3:].sum(dim=1).log(), rtol=1e-5, atol=1e-6)

    def test_cannot_be_exported(self):
        with pytest.raises(ArgumentError, match="cannot be exported"):
            ConditionalSoftmaxClassifier(D, TREE).export()


class TestHierCOSClassifier:
    def test_golden_scores(self):
        classifier = HierCOSClassifier(6, TEST_TREE, dtype=torch.float64)
        o = dict(zip("EFABCD", (2, 0.5, 1.5, 1, -0.25, 0.75), strict=True))
        o = torch.tensor([o[name] for name in TEST_TREE.names[1:]], dtype=torch.float64)
        scores = classifier(o @ classifier.rotation)
        wanted = torch.tensor([2.5, 2.236068, 0.559017, 0.901388], dtype=torch.float64)
        torch.testing.assert_close(scores, wanted, rtol=0, atol=5.1e-7)

    def test_rotation_is_orthogonal_and_of_the_seed(self):
        one = HierCOSClassifier(D, TREE, dtype=torch.float64)
        torch.testing.assert_close(one.rotation @ one.rotation.T, torch.eye(D, dtype=torch.float64))
        assert torch.equal(one.rotation, HierCOSClassifier(D, TREE, seed=0, dtype=torch.float64).rotation)
        assert not torch.equal(one.rotation, HierCOSClassifier(D, TREE, seed=1, dtype=torch.float64).rotation)
        assert list(one.parameters()) == []

    def test_coordinates_prepared_features_and_scores(self):
        classifier = HierCOSClassifier(D, TREE, dtype=torch.float64)
        h, _ = material()
        o = h @ classifier.rotation.T
        torch.testing.assert_close(classifier.coordinates(h), o)
        torch.testing.assert_close(classifier.prepare(h), o.abs())
        paths = [[i - 1 for i in by_number(path)] for path in ("xyA", "xyB", "xC", "zD", "zE")]
        torch.testing.assert_close(classifier(h), torch.stack([o[:, p].norm(dim=1) for p in paths], dim=1))
        for row, places in zip(classifier.weight, paths, strict=True):
            wanted = torch.zeros(D, dtype=torch.float64)
            wanted[places] = len(places) ** -0.5
            torch.testing.assert_close(row, wanted)

    def test_autocast_and_half_features_lower_nothing(self):
        classifier = HierCOSClassifier(D, TREE)
        h = material(dtype=torch.float32)[0]
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert torch.equal(classifier(h), classifier.float()(h))
            inside = classifier(h)
        assert torch.equal(inside, classifier(h))
        assert torch.equal(classifier(h.half()), classifier(h.half().float()).half())

    def test_zero_features_have_zero_scores_and_gradient(self):
        h = torch.zeros(2, D, requires_grad=True)
        scores = HierCOSClassifier(D, TREE)(h)
        scores.sum().backward()
        assert scores.abs().max() == 0
        assert h.grad.abs().max() == 0

    def test_nan_is_not_hidden(self):
        assert HierCOSClassifier(D, TREE)(torch.full((D,), torch.nan)).isnan().all()

    def test_dimension_must_be_the_number_of_nodes(self):
        with pytest.raises(DimensionError, match=r"dim must be N - 1 = 8, a direction for each node but .* got 9"):
            HierCOSClassifier(9, TREE)
        with pytest.raises(ArgumentError, match="seed"):
            HierCOSClassifier(D, TREE, seed=-1)

    def test_cannot_be_exported(self):
        with pytest.raises(ArgumentError, match="cannot be exported"):
            HierCOSClassifier(D, TREE).export()


class TestHierarchyAwareClassifier:
    def test_is_the_frame_of_the_seed(self):
        options = {"gamma": 2.0, "asymptote": -0.1}
        found = HierarchyAwareClassifier(D, DISTANCES, seed=3, **options, dtype=torch.float64)
        wanted = hierarchy_aware_frame(
            DISTANCES, D, generator=torch.Generator().manual_seed(3), **options, dtype=torch.float64
        )
        assert torch.equal(found.weight, wanted.frame)
        assert torch.equal(found.gram, wanted.gram)
        for name in ("asymptote", "gamma", "error", "violations"):
            assert getattr(found, name).item() == getattr(wanted, name)

    def test_features_are_not_normalised_and_not_scaled(self):
        classifier = HierarchyAwareClassifier(D, DISTANCES, dtype=torch.float64)
        h, _ = material()
        torch.testing.assert_close(classifier(h), h @ classifier.weight.T)
        assert classifier.bias is None
        assert list(classifier.parameters()) == []

    def test_flat_distances_give_the_simplex(self):
        flat = torch.ones(K, K, dtype=torch.float64) - torch.eye(K, dtype=torch.float64)
        classifier = HierarchyAwareClassifier(K - 1, flat, gamma=3.0, dtype=torch.float64)
        assert is_simplex_etf(classifier.frame, tol=1e-12)

    def test_gamma_may_be_suggested(self):
        classifier = HierarchyAwareClassifier(D, DISTANCES, gamma=None)
        assert classifier.gamma.item() == suggest_gamma(DISTANCES)

    def test_low_dimension_reports_its_error(self):
        classifier = HierarchyAwareClassifier(2, DISTANCES, dtype=torch.float64)
        gap = (classifier.weight @ classifier.weight.T - classifier.gram).abs().max()
        assert classifier.error.item() == pytest.approx(gap.item(), rel=1e-12)
        assert classifier.error > 0.01

    def test_state_restores_everything_bit_for_bit(self):
        one = HierarchyAwareClassifier(D, DISTANCES, gamma=2.0, seed=1)
        other = HierarchyAwareClassifier(D, DISTANCES, asymptote=-0.05)
        names = ["asymptote", "class_matrix", "error", "gamma", "gram", "violations"]
        assert sorted(one.state_dict()) == names
        other.load_state_dict(one.state_dict())
        for copied in (other, copy.deepcopy(one), pickle.loads(pickle.dumps(one))):
            for name in names:
                assert torch.equal(getattr(copied, name), getattr(one, name))

    def test_bad_arguments(self):
        with pytest.raises(ShapeError, match="distances"):
            HierarchyAwareClassifier(D, DISTANCES[:3])
        with pytest.raises(ArgumentError, match="gamma"):
            HierarchyAwareClassifier(D, DISTANCES, gamma=0.0)
        with pytest.raises(ArgumentError, match="dim must be an integer >= 1"):
            HierarchyAwareClassifier(0, DISTANCES)
        with pytest.raises(ArgumentError, match="seed"):
            HierarchyAwareClassifier(D, DISTANCES, seed=-1)
        with pytest.raises(ArgumentError, match="asymptote"):
            HierarchyAwareClassifier(D, DISTANCES, asymptote="lowest")
        crooked = torch.tensor([[0, 1, 9], [1, 0, 1], [9, 1, 0]], dtype=torch.float64)
        with pytest.raises(ArgumentError, match="λ_min"):
            HierarchyAwareClassifier(D, crooked, asymptote=-0.9)
        assert HierarchyAwareClassifier(D, crooked, asymptote=-0.9, repair="shrink").weight.isfinite().all()


class TestBarzDenzlerClassifier:
    def test_cosines_are_one_minus_the_relative_distance(self):
        classifier = BarzDenzlerClassifier(D, DISTANCES, seed=2, dtype=torch.float64)
        wanted = 1 - DISTANCES / 3
        torch.testing.assert_close(classifier.weight @ classifier.weight.T, wanted)
        torch.testing.assert_close(classifier.gram, wanted)
        generator = torch.Generator().manual_seed(2)
        assert torch.equal(classifier.weight, frame_of_gram(wanted, D, generator=generator, dtype=torch.float64).frame)

    def test_state_and_logits(self):
        classifier = BarzDenzlerClassifier(D, DISTANCES, scale=3.0)
        h = material(dtype=torch.float32)[0]
        torch.testing.assert_close(classifier(h), 3 * F.normalize(h) @ classifier.weight.T)
        other = BarzDenzlerClassifier(D, DISTANCES, scale=3.0, seed=1)
        other.load_state_dict(classifier.state_dict())
        assert torch.equal(other(h), classifier(h))
        assert isinstance(classifier.export(), nn.Linear)

    def test_bad_arguments(self):
        with pytest.raises(ArgumentError, match="distances must be positive"):
            BarzDenzlerClassifier(D, torch.zeros(3, 3))
        with pytest.raises(DtypeError, match="distances"):
            BarzDenzlerClassifier(D, DISTANCES.long())
        with pytest.raises(ArgumentError, match="dim"):
            BarzDenzlerClassifier(-1, DISTANCES)


def test_labels_of_class_vectors_are_checked():
    with pytest.raises(LabelError):
        HierCOSClassifier(D, TREE).class_vectors(torch.tensor([K]))
