from __future__ import annotations

import io

import pytest
import torch

from tests.hierarchy.tree_literal import TEST_TREE
from tightframe.errors import ArgumentError, DimensionError, LabelError
from tightframe.hierarchy.index import sibling_log_softmax
from tightframe.nn import ConditionalSoftmaxClassifier, HierCOSClassifier, NodeClassifier

from . import test_classifiers as laws
from .hierarchical_material import DISTANCES, OTHER, RELABELLED, TREE, D, K, by_number, material

TREE_MAKERS = {
    "nodes": lambda tree=TREE, **options: NodeClassifier(D, tree, **options),
    "conditional": lambda tree=TREE, **options: ConditionalSoftmaxClassifier(D, tree, **options),
    "hier-cos": lambda tree=TREE, **options: HierCOSClassifier(D, tree, **options),
}
of_trees = pytest.mark.parametrize("make", TREE_MAKERS.values(), ids=TREE_MAKERS)
GENERAL_LAWS = [
    laws.test_interface,
    laws.test_class_vectors_are_rows_of_the_weight,
    laws.test_copies_pickles_and_saves,
    laws.test_module_casts_and_moves,
    laws.test_wrong_features,
]


@pytest.mark.parametrize("law", GENERAL_LAWS, ids=lambda law: law.__name__)
@of_trees
def test_tree_classifiers_keep_the_laws(make, law):
    law(make)


@of_trees
def test_compiles_to_one_graph(make):
    laws.test_compiles_to_one_graph(make)


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
        edges = sibling_log_softmax(nodes.float(), classifier.tree)
        leaf = classifier.tree.paths[:, 0]
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


def test_labels_of_class_vectors_are_checked():
    with pytest.raises(LabelError):
        HierCOSClassifier(D, TREE).class_vectors(torch.tensor([K]))
