"""Losses that use a hierarchy: against published numbers, their definitions in fifty digits, and as modules."""

from __future__ import annotations

import copy
import math

import pytest
import torch
import torch.nn.functional as F

from tests.hierarchy import tree_literal as literal
from tests.hierarchy.tree_literal import TEST_TREE, TREES, UNBALANCED, batch, mean
from tightframe.errors import ArgumentError, DtypeError, LabelError, ShapeError
from tightframe.frames import hierarchy_aware_frame
from tightframe.nn import (
    ConditionalSoftmaxClassifier,
    CorrelationLoss,
    CosineGramLoss,
    FeatureLoss,
    FrameClassifier,
    HACELoss,
    HierCOSClassifier,
    HierCOSLoss,
    HXELoss,
    LinearClassifier,
    NearestETFClassifier,
    NodeClassifier,
    NormalizedLinear,
    SoftLabelLoss,
)

from .hierarchical_material import DISTANCES, OTHER, TREE, D, K, material

every_tree = pytest.mark.parametrize("tree", TREES, ids=range(len(TREES)))
LOGITS = torch.tensor([[2, 1, 0, -1], [0.5, 0, 3, 1]], dtype=torch.float64)
LABELS = torch.tensor([1, 2])


def hxe(logits, labels, tree, alpha):
    return HXELoss(tree, alpha)(logits, labels)


def hace(logits, labels, tree, d_il):
    """The loss of these very logits, of the leaves or of all nodes."""
    if logits.shape[1] == tree.num_classes:
        classifier = FrameClassifier(torch.eye(tree.num_classes), normalize=False, dtype=logits.dtype)
    else:
        classifier = NodeClassifier(logits.shape[1], tree, bias=False, dtype=logits.dtype)
        torch.nn.init.eye_(classifier.nodes.weight)
    return HACELoss(tree, d_il)(logits, labels, classifier)


def hier_cos(coordinates, labels, tree, alpha):
    """The loss of these very coordinates."""
    classifier = HierCOSClassifier(coordinates.shape[1], tree, dtype=coordinates.dtype)
    torch.nn.init.eye_(classifier.rotation)
    return HierCOSLoss(tree, alpha)(coordinates, labels, classifier)


def by_name(tree, names, rows):
    """Return columns given by node name in the order of the tree's numbers; the root may be left out."""
    rows = torch.tensor(rows, dtype=torch.float64)
    own = ["R" if node == 0 else name for node, name in enumerate(tree.names)]
    return rows[:, [names.index(name) for name in own if name in names]]


class TestGolden:
    def test_soft_labels(self):
        # At logits that are equal the gradient is softmax - q. The first is 0.85326653: float32 digits were printed.
        logits = torch.zeros(1, 4, dtype=torch.float64, requires_grad=True)
        SoftLabelLoss(TEST_TREE.distances(), 4.0)(logits, torch.tensor([0])).backward()
        wanted = torch.tensor([0.8532666, 0.1154771, 0.0156281, 0.0156281], dtype=torch.float64)
        torch.testing.assert_close(0.25 - logits.grad[0], wanted, rtol=0, atol=1e-7)

    @pytest.mark.parametrize(("alpha", "wanted"), [(0.1, 0.1145028), (0.5, 0.0913879)])
    def test_hxe(self, alpha, wanted):
        assert hxe(LOGITS, LABELS, TEST_TREE, alpha).item() == pytest.approx(wanted, abs=5.1e-8)

    @pytest.mark.parametrize(
        ("d_il", "nodes", "leaves"),
        [
            (0.2, 0.2411173, 0.1866458),
            (0.5, 0.5697255, 0.4488533),
            (0.7, 0.7667525, 0.6118175),
            (1.0, 1.0292252, 0.8385026),
        ],
    )
    def test_hace(self, d_il, nodes, leaves):
        rows = [[2, 1, 0, -1, 0.5, 0, 0], [0.5, 0, 3, 1, 0, -0.5, 0.2]]
        logits = by_name(TEST_TREE, "ABCDEFR", rows)
        assert hace(logits, LABELS, TEST_TREE, d_il).item() == pytest.approx(nodes, abs=5.1e-8)
        assert hace(LOGITS, LABELS, TEST_TREE, d_il).item() == pytest.approx(leaves, abs=5.1e-8)

    def test_hier_cos(self):
        o = by_name(TEST_TREE, "EFABCD", [[2, 0.5, 1.5, 1, -0.25, 0.75], [-1, 2, 0.2, 0, 1, -3]])
        y = torch.tensor([0, 3])
        for i, (divergence, reg) in enumerate([(0.7608320, 1.5263934), (0.2458666, 0.9847114)]):
            one = o[i : i + 1], y[i : i + 1], TEST_TREE
            assert hier_cos(*one, 0.0).item() == pytest.approx(divergence, abs=5.1e-8)
            assert (hier_cos(*one, 1.0) - hier_cos(*one, 0.0)).item() == pytest.approx(reg, abs=5.1e-8)
        assert hier_cos(o, y, TEST_TREE, 0.05).item() == pytest.approx(0.5661270, abs=5.1e-8)

    def test_hier_cos_of_leaves_at_different_depths(self):
        o = by_name(UNBALANCED, "ECAB", [[0.3, 1.2, 0.4, -0.1], [1, 0.2, 0.3, 0.9]])
        y = torch.tensor([UNBALANCED.class_names.index(name) for name in "CB"])
        divergence, total = (hier_cos(o, y, UNBALANCED, alpha).item() for alpha in (0.0, 0.1))
        assert divergence == pytest.approx(0.6609125, abs=5.1e-8)
        assert (total - divergence) / 0.1 == pytest.approx(1.1115088, abs=5.1e-7)
        assert total == pytest.approx(0.7720634, abs=5.1e-8)

    @pytest.mark.parametrize("depth", [2, 5])
    def test_hier_cos_targets(self, depth):
        wanted = {2: [0.2689414, 0.7310586], 5: [0.0982, 0.1085, 0.1282, 0.1789, 0.4863]}[depth]
        tree = literal.Tree([*range(-1, depth), depth - 1])  # one path and a sister of its leaf
        o = torch.zeros(1, depth + 1, dtype=torch.float64, requires_grad=True)
        # The gradient in o at o = 0+ is softmax - q.
        hier_cos(o + 1e-300, torch.tensor([0]), tree, 0.0).backward()
        q = 1 / (depth + 1) - o.grad[0, [v - 1 for v in literal.path(tree, 0)]]
        assert q.tolist() == pytest.approx(wanted, abs=5.1e-8 if depth == 2 else 5.1e-5)


@every_tree
@pytest.mark.parametrize("option", [0.1, 0.6, 1.0])
def test_losses_are_their_definitions(tree, option):
    logits, labels = batch(tree)
    nodes, _ = batch(tree, width=len(tree.parents))
    assert hxe(logits, labels, tree, option).item() == pytest.approx(mean(literal.hxe, tree, logits, labels, option))
    for z in (logits, nodes):
        assert hace(z, labels, tree, option).item() == pytest.approx(mean(literal.hace, tree, z, labels, option))
    wanted = float(literal.hier_cos(tree, nodes[:, 1:].tolist(), labels.tolist(), option))
    assert hier_cos(nodes[:, 1:], labels, tree, option).item() == pytest.approx(wanted)


@every_tree
def test_hxe_without_decay_is_cross_entropy_over_the_number_of_nodes(tree):
    logits, labels = batch(tree)
    wanted = F.cross_entropy(logits, labels) / len(tree.parents)
    torch.testing.assert_close(hxe(logits, labels, tree, 0.0), wanted, rtol=1e-13, atol=0)


@every_tree
def test_hace_of_the_leaf_alone_is_cross_entropy(tree):
    logits, labels = batch(tree)
    torch.testing.assert_close(hace(logits, labels, tree, 1.0), F.cross_entropy(logits, labels), rtol=1e-13, atol=0)


@pytest.mark.parametrize(("dtype", "rtol"), [(torch.float32, 2e-6), (torch.float64, 1e-13)])
@pytest.mark.parametrize(
    "row", [[1e4, -1e4, 9999, 0], [-1e4, 1e4, -1e4 + 0.5, 9999.5], [1e4, 1e4, -1e4, -1e4], [1e4, 9999.5, -1e4, 1e4]]
)
@pytest.mark.parametrize("label", range(4))
def test_hxe_is_exact_at_huge_logits(row, label, dtype, rtol):
    logits = torch.tensor([row], dtype=dtype, requires_grad=True)
    loss = hxe(logits, torch.tensor([label]), TEST_TREE, 0.5)
    loss.backward()
    assert loss.item() == pytest.approx(float(literal.hxe(TEST_TREE, row, label, 0.5)), rel=rtol)
    wanted = [float(g) for g in literal.hxe_gradient(TEST_TREE, row, label, 0.5)]
    assert logits.grad[0].tolist() == pytest.approx(wanted, rel=10 * rtol, abs=rtol / 10)


def test_hace_has_no_floor():
    # With one of 1e-6 the loss would be 12.57 at most, and its gradient zero.
    logits = torch.zeros(1, 4)
    logits[0, 3] = 200.0
    logits.requires_grad_()
    loss = hace(logits, torch.tensor([0]), TEST_TREE, 0.7)
    loss.backward()
    assert loss.item() == pytest.approx(200 * 0.7 + (200 - math.log(2)) * 0.3 * 0.7, rel=1e-6)
    assert logits.grad[0, 0] < -0.5


class TestSoftLabels:
    D = TEST_TREE.distances()

    def test_loss_is_the_divergence_per_sample_and_only_ratios_of_distances_matter(self):
        q = torch.softmax(-4.0 * self.D / 2, dim=1)[LABELS]
        wanted = (q * (q.log() - LOGITS.log_softmax(dim=1))).sum() / 2
        for distances in (self.D, 7 * self.D.float()):
            found = SoftLabelLoss(distances, 4.0)(LOGITS, LABELS)
            torch.testing.assert_close(found, wanted, rtol=1e-13, atol=0)
        assert SoftLabelLoss(self.D, 4.0)(q.log(), LABELS).abs() < 1e-15

    @pytest.mark.parametrize("beta", [100.0, 1e6])
    def test_large_beta_is_cross_entropy(self, beta):
        found = SoftLabelLoss(self.D, beta)(LOGITS, LABELS)
        torch.testing.assert_close(found, F.cross_entropy(LOGITS, LABELS), rtol=1e-12, atol=0)

    def test_survives_a_cast_of_the_module(self):
        logits, labels = material(dim=K, dtype=torch.float32)
        wanted = SoftLabelLoss(DISTANCES, 4.0)(logits, labels)
        torch.testing.assert_close(SoftLabelLoss(DISTANCES, 4.0).half()(logits, labels), wanted)


def test_hxe_after_a_conditional_softmax_weighs_the_levels():
    classifier = ConditionalSoftmaxClassifier(D, TREE).double()
    h, labels = material()
    z = classifier.nodes(h)
    alpha, total = 0.3, 0.0
    weights = torch.exp(-alpha * torch.arange(4, dtype=torch.float64))
    Z = (weights * torch.tensor([1, 2, 4, 2])).sum()
    for i, y in enumerate(labels.tolist()):
        for node in literal.path(TREE, y):
            siblings = [v - 1 for v in range(1, 9) if TREE.parents[v] == TREE.parents[node]]
            share = z[i, node - 1] - torch.logsumexp(z[i, siblings], dim=0)
            total = total - weights[TREE.depth[node]] / Z * share / len(labels)
    torch.testing.assert_close(HXELoss(TREE, alpha)(classifier(h), labels), total, rtol=1e-12, atol=0)


def test_hier_cos_at_zero_coordinates_is_finite():
    o = torch.zeros(2, 6, requires_grad=True)
    loss = hier_cos(o, torch.tensor([0, 3]), TEST_TREE, 0.5)
    loss.backward()
    # Each of two levels costs the 1 of its own node; q against the uniform distribution over six.
    assert loss.item() == pytest.approx(math.log(6) - 0.5822032 + 0.5 * 2, abs=1e-6)
    assert torch.equal(o.grad, torch.zeros(2, 6))


@pytest.mark.parametrize(
    ("loss", "width"), [(hxe, None), (hace, None), (hace, 0), (hier_cos, -1)], ids=["hxe", "hace", "nodes", "o"]
)
@pytest.mark.parametrize("tree", TREES[:4], ids=range(4))
def test_gradients_on_trees(loss, width, tree):
    logits, labels = batch(tree, 3, None if width is None else len(tree.parents) + width)
    assert torch.autograd.gradcheck(lambda z: loss(z, labels, tree, 0.3), logits.requires_grad_())


def haframe(dim=D):
    frame = hierarchy_aware_frame(DISTANCES, dim, dtype=torch.float64)
    return FrameClassifier(frame, normalize=False, dtype=torch.float64)


def angles(h, y, weight):
    """The second term of CosineGramLoss as a double sum."""
    cosines = F.cosine_similarity(weight[:, None], weight, dim=2)
    return sum((F.cosine_similarity(x, weight) - cosines[k]).square().sum() for x, k in zip(h, y, strict=True)) / len(y)


class TestCosineGramLoss:
    @pytest.mark.parametrize(("alpha", "beta"), [(0.0, 1.0), (0.4, 0.6), (1.0, 0.0), (2.0, 1.0)])
    def test_is_the_weighted_sum(self, alpha, beta):
        h, y = material()
        vectors = 3 * torch.randn(K, D, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
        classifier = FrameClassifier(vectors, normalize=False, dtype=torch.float64)
        wanted = beta * F.cross_entropy(classifier(h), y) + alpha * angles(h, y, classifier.weight)
        torch.testing.assert_close(CosineGramLoss(alpha)(h, y, classifier), wanted, rtol=1e-12, atol=0)

    @pytest.mark.parametrize("schedule", ["rising", "falling"])
    @pytest.mark.parametrize(("epoch", "epochs", "share"), [(0, 4, 0), (1, 4, 0.25), (4, 4, 1), (11, 10, 1), (0, 0, 1)])
    def test_follows_its_schedule(self, schedule, epoch, epochs, share):
        loss = CosineGramLoss(schedule=schedule, epochs=epochs)
        loss.set_epoch(epoch)
        assert loss.weights == ((1 - share, share) if schedule == "rising" else (share, 1 - share))

    @pytest.mark.parametrize(
        "classifier",
        [
            FrameClassifier(torch.eye(K, D), scale=3.0),
            NormalizedLinear(D, K),
            LinearClassifier(D, K),
            NearestETFClassifier(D, K),
            ConditionalSoftmaxClassifier(D, TREE),
        ],
        ids=lambda classifier: type(classifier).__name__,
    )
    def test_goes_with_every_classifier(self, classifier):
        h, y = material(dtype=torch.float32)
        loss = CosineGramLoss(0.5)(h.requires_grad_(), y, classifier)
        wanted = 0.5 * F.cross_entropy(classifier(h), y) + 0.5 * angles(h, y, classifier.weight)
        torch.testing.assert_close(loss, wanted)
        loss.backward()
        assert h.grad.isfinite().all()

    def test_angles_are_of_features_as_the_class_vectors_meet_them(self):
        h, y = material()
        classifier = HierCOSClassifier(D, TREE, dtype=torch.float64)
        met = classifier.coordinates(h).abs()
        torch.testing.assert_close(CosineGramLoss(1.0)(h, y, classifier), angles(met, y, classifier.weight))
        wanted = (1 - F.cosine_similarity(met, classifier.weight[y])).mean()
        torch.testing.assert_close(CorrelationLoss()(h, y, classifier), wanted)

    @pytest.mark.parametrize("alpha", [0.0, 1.0])
    def test_features_on_their_vectors_stay_there_where_cross_entropy_turns_them(self, alpha):
        classifier = haframe(K - 1)
        h = classifier.weight.detach().clone().requires_grad_()
        loss = CosineGramLoss(alpha)(h, torch.arange(K), classifier)
        loss.backward()
        turn = h.grad - (h.grad * h).sum(dim=1, keepdim=True) * h
        assert (loss.item() < 1e-28) == (turn.norm() < 1e-13) == (alpha == 1)

    def test_nothing_from_zero_features(self):
        zero = torch.zeros(1, D, dtype=torch.float64, requires_grad=True)
        classifier = haframe()
        loss = CosineGramLoss(1.0)(zero, torch.tensor([2]), classifier)
        loss.backward()
        torch.testing.assert_close(loss, (classifier.weight @ classifier.weight[2]).square().sum(), rtol=1e-12, atol=0)
        assert zero.grad.tolist() == [[0.0] * D]


class TestCorrelationLoss:
    def test_values(self):
        h = torch.tensor([[3.0, 4.0], [-1.0, 0.0], [0.0, 0.0]], dtype=torch.float64, requires_grad=True)
        classifier = FrameClassifier(torch.tensor([[2.0, 0.0], [0.0, 1.0]]), normalize=False, dtype=torch.float64)
        labels = torch.tensor([0, 0, 0])
        loss = CorrelationLoss()(h, labels, classifier)
        assert loss.item() == pytest.approx((0.4 + 2 + 1) / 3, rel=1e-15)
        wanted = loss + 0.1 * F.cross_entropy(classifier(h), labels)
        torch.testing.assert_close(CorrelationLoss(0.1)(h, labels, classifier), wanted)
        loss.backward()
        assert h.grad[2].tolist() == [0.0, 0.0]

    def test_reads_the_rows_of_the_batch_alone(self):
        matrix = torch.eye(K, D)
        matrix[4] = torch.nan
        h, _ = material(dtype=torch.float32)
        loss = CorrelationLoss()(h, torch.tensor([0, 1, 2, 3, 0, 1]), FrameClassifier(matrix))
        assert loss.isfinite()


LOSSES = {
    "soft": (SoftLabelLoss(DISTANCES, 4.0), None),
    "hxe": (HXELoss(TREE, 0.3), None),
    "hace": (HACELoss(TREE, 0.3), NodeClassifier(D, TREE).double()),
    "hace-leaves": (HACELoss(TREE, 0.3), haframe()),
    "hier-cos": (HierCOSLoss(TREE, 0.3), HierCOSClassifier(D, TREE, dtype=torch.float64)),
    "gram": (CosineGramLoss(0.4), haframe()),
    "correlation": (CorrelationLoss(0.1), haframe()),
}
every = pytest.mark.parametrize(("loss", "classifier"), LOSSES.values(), ids=LOSSES)


def value(loss, classifier, inputs, labels):
    return loss(inputs, labels) if classifier is None else loss(inputs, labels, classifier)


def inputs_of(classifier, dtype=torch.float64):
    return material(dim=K if classifier is None else D, dtype=dtype)


@every
def test_kind_state_and_repr(loss, classifier):
    assert isinstance(loss, FeatureLoss) == (classifier is not None)
    assert list(loss.parameters()) == []
    assert set(loss.state_dict()) <= {"tree._extra_state"}
    assert "=" in loss.extra_repr()


@every
def test_gradient(loss, classifier):
    inputs, labels = inputs_of(classifier)
    assert torch.autograd.gradcheck(lambda x: value(loss, classifier, x, labels), inputs.requires_grad_())


@every
def test_moves_and_keeps_its_integers(loss, classifier):
    moved = copy.deepcopy(loss).half().to("meta")
    assert all(b.dtype == torch.int64 for name, b in moved.named_buffers() if "tree" in name)
    assert all(b.device.type == "meta" for b in moved.buffers())


@every
def test_half_precision_and_autocast_are_computed_in_float32(loss, classifier):
    if isinstance(classifier, NodeClassifier):
        return  # its linear map is computed in half precision
    inputs, labels = inputs_of(classifier, torch.bfloat16)
    classifier = copy.deepcopy(classifier) if classifier is None else copy.deepcopy(classifier).float()
    wanted = value(loss, classifier, inputs.float(), labels)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = value(loss, classifier, inputs, labels)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, wanted, rtol=2e-2, atol=0)  # a classifier gives logits in the dtype of its input


@every
def test_compiles_to_one_graph(loss, classifier):
    torch._dynamo.reset()
    inputs, labels = inputs_of(classifier)
    compiled = torch.compile(loss, fullgraph=True, backend="eager")
    found = value(compiled, classifier, inputs, labels)
    torch.testing.assert_close(found, value(loss, classifier, inputs, labels))


@every
def test_bad_batches(loss, classifier):
    h, y = inputs_of(classifier)
    for inputs, labels, error, message in (
        (h, y + K, LabelError, r"labels must lie in 0\.\.4"),
        (h, y - K, LabelError, r"labels must lie in 0\.\.4"),
        (h, y.double(), DtypeError, "labels must be an integer tensor"),
        (h, y[:2], ShapeError, r"labels must have shape \(B,\) = \(6,\)"),
        (h.long(), y, DtypeError, "floating"),
        (h[:, :-1], y, ShapeError, "d = "),
        (h[0], y, ShapeError, "shape"),
    ):
        with pytest.raises(error, match=message):
            value(loss, classifier, inputs, labels)
    assert value(loss, classifier, h[:0], y[:0]).isnan()


def test_trees_must_agree():
    h, labels = material(dtype=torch.float32)
    with pytest.raises(ArgumentError, match="classifier must have the tree of the loss"):
        HACELoss(TREE, 0.3)(h, labels, NodeClassifier(D, OTHER))
    with pytest.raises(ArgumentError, match="classifier must have the tree of the loss"):
        HierCOSLoss(TREE, 0.3)(h, labels, HierCOSClassifier(D, OTHER))
    with pytest.raises(ArgumentError, match="classifier must be a HierCOSClassifier for HierCOSLoss, got Linear"):
        HierCOSLoss(TREE, 0.3)(h, labels, LinearClassifier(D, K))
    with pytest.raises(ShapeError, match="logits must have width d = 4, got 5"):
        HACELoss(TEST_TREE, 0.3)(h, labels, LinearClassifier(D, K))


NEGATIVE = (-0.1, math.nan, math.inf, True)


@pytest.mark.parametrize(
    ("make", "values", "message"),
    [
        (lambda x: SoftLabelLoss(DISTANCES, x), (0.0, *NEGATIVE), "beta must be finite and > 0"),
        (lambda x: SoftLabelLoss(x, 1.0), (torch.zeros(2, 2),), "distances must be positive between different"),
        (lambda x: HXELoss(TREE, x), NEGATIVE, "alpha must be finite and >= 0"),
        (lambda x: HXELoss(x, 1.0), (DISTANCES, None), r"tree must be a tightframe\.Tree"),
        (lambda x: HACELoss(TREE, x), (0.0, 1.1, *NEGATIVE), r"d_il must be finite and in \(0, 1\]"),
        (lambda x: HierCOSLoss(TREE, x), NEGATIVE, "alpha must be finite and >= 0"),
        (lambda x: CosineGramLoss(x), NEGATIVE, "alpha must be finite and >= 0"),
        (lambda x: CosineGramLoss(x), (None,), "alpha must be given and epochs left out with schedule='constant'"),
        (lambda x: CosineGramLoss(0.4, epochs=x), (3,), "alpha must be given and epochs left out"),
        (lambda x: CosineGramLoss(x, schedule="rising"), (None, 0.4), "epochs must be given and alpha left out"),
        (lambda x: CosineGramLoss(x, schedule="rising", epochs=3), (0.4,), "epochs must be given and alpha left out"),
        (lambda x: CosineGramLoss(schedule="falling", epochs=x), (-1, 1.5), "epochs must be an integer >= 0"),
        (lambda x: CosineGramLoss(schedule=x), ("sine",), "schedule must be one of 'constant', 'falling', 'rising'"),
        (lambda x: CosineGramLoss(0.4).set_epoch(x), (-1,), "epoch must be an integer >= 0"),
        (lambda x: CorrelationLoss(x), NEGATIVE, "ce_weight must be finite and >= 0"),
    ],
)
def test_bad_options(make, values, message):
    for bad in values:
        with pytest.raises(ArgumentError, match=message):
            make(bad)
    with pytest.raises(ShapeError, match="K >= 2"):
        SoftLabelLoss(torch.zeros(1, 1), 4.0)
