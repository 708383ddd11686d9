from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F

from tests.hierarchy import tree_literal as literal
from tests.hierarchy.tree_literal import TEST_TREE
from tightframe.errors import ArgumentError, DtypeError, LabelError, ShapeError
from tightframe.functional.hierarchical import cosine_gram, hace, hier_cos, hxe, soft_label_loss
from tightframe.nn import (
    ConditionalSoftmaxClassifier,
    CorrelationLoss,
    CosineGramLoss,
    FeatureLoss,
    FrameClassifier,
    HACELoss,
    HierarchyAwareClassifier,
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


def haframe(**options):
    return HierarchyAwareClassifier(D, DISTANCES, dtype=torch.float64, **options)


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
def test_half_precision_gives_a_float32_loss(loss, classifier):
    inputs, labels = inputs_of(classifier, torch.bfloat16)
    classifier = None if classifier is None or isinstance(classifier, NodeClassifier) else classifier.float()
    if isinstance(loss, HACELoss) and classifier is None:
        classifier = NodeClassifier(D, TREE).bfloat16()
    try:
        assert value(loss, classifier, inputs, labels).dtype == torch.float32
    finally:
        if classifier is not None:
            classifier.double()


@every
def test_bad_batches(loss, classifier):
    inputs, labels = inputs_of(classifier)
    with pytest.raises(LabelError):
        value(loss, classifier, inputs, labels + K)
    with pytest.raises(DtypeError):
        value(loss, classifier, inputs, labels.double())
    with pytest.raises(ShapeError):
        value(loss, classifier, inputs, labels[:2])
    if classifier is None:
        with pytest.raises(ShapeError):
            loss(inputs[:, :-1], labels)


def test_functions_behind_the_modules():
    logits, labels = material(dim=K)
    assert torch.equal(SoftLabelLoss(DISTANCES, 4.0)(logits, labels), soft_label_loss(logits, labels, DISTANCES, 4.0))
    assert torch.equal(HXELoss(TREE, 0.3)(logits, labels), hxe(logits, labels, TREE, 0.3))
    h, _ = material()
    nodes = NodeClassifier(D, TREE).double()
    assert torch.equal(HACELoss(TREE, 0.3)(h, labels, nodes), hace(nodes.node_logits(h), labels, TREE, 0.3))
    assert torch.equal(HACELoss(TREE, 0.3)(h, labels, haframe()), hace(haframe()(h), labels, TREE, 0.3))
    cos = HierCOSClassifier(D, TREE, dtype=torch.float64)
    assert torch.equal(HierCOSLoss(TREE, 0.3)(h, labels, cos), hier_cos(cos.coordinates(h), labels, TREE, 0.3))


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


def test_trees_must_agree():
    h, labels = material(dtype=torch.float32)
    with pytest.raises(ArgumentError, match="classifier must have the tree of the loss"):
        HACELoss(TREE, 0.3)(h, labels, NodeClassifier(D, OTHER))
    with pytest.raises(ArgumentError, match="classifier must have the tree of the loss"):
        HierCOSLoss(TREE, 0.3)(h, labels, HierCOSClassifier(D, OTHER))
    with pytest.raises(ArgumentError, match="classifier must be a HierCOSClassifier for HierCOSLoss, got Linear"):
        HierCOSLoss(TREE, 0.3)(h, labels, LinearClassifier(D, K))
    with pytest.raises(ShapeError, match="logits must have width K = 4 or N = 7, got 5"):
        HACELoss(TEST_TREE, 0.3)(h, labels, LinearClassifier(D, K))


@pytest.mark.parametrize(
    ("make", "name"),
    [
        (lambda: SoftLabelLoss(DISTANCES, 0.0), "beta"),
        (lambda: SoftLabelLoss(torch.zeros(2, 2), 1.0), "distances"),
        (lambda: HXELoss(TREE, -1.0), "alpha"),
        (lambda: HXELoss(DISTANCES, 1.0), "tree"),
        (lambda: HACELoss(TREE, 0.0), "d_il"),
        (lambda: HACELoss(None, 0.5), "tree"),
        (lambda: HierCOSLoss(TREE, float("nan")), "alpha"),
        (lambda: HierCOSLoss([], 0.1), "tree"),
        (lambda: CosineGramLoss(), "alpha must be given"),
        (lambda: CosineGramLoss(0.4, schedule="rising", epochs=3), "alpha must be left out"),
        (lambda: CosineGramLoss(schedule="sine"), "schedule"),
        (lambda: CosineGramLoss(0.4).set_epoch(-1), "epoch"),
        (lambda: CorrelationLoss(-0.1), "ce_weight"),
    ],
)
def test_bad_options(make, name):
    with pytest.raises(ArgumentError, match=name):
        make()


class TestCosineGramLoss:
    @pytest.mark.parametrize(("alpha", "beta"), [(0.4, 0.6), (1.0, 0.0), (2.0, 1.0)])
    def test_is_the_weighted_sum(self, alpha, beta):
        h, y = material()
        classifier = haframe()
        wanted = beta * F.cross_entropy(h @ classifier.weight.T, y) + alpha * cosine_gram(h, y, classifier.weight)
        torch.testing.assert_close(CosineGramLoss(alpha)(h, y, classifier), wanted, rtol=1e-13, atol=0)

    def test_follows_its_schedule(self):
        loss = CosineGramLoss(schedule="rising", epochs=4)
        h, y = material()
        classifier = haframe()
        ends = F.cross_entropy(classifier(h), y), cosine_gram(h, y, classifier.weight)
        for epoch in (0, 1, 4):
            loss.set_epoch(epoch)
            assert loss.epoch == epoch
            wanted = torch.lerp(*ends, epoch / 4)
            torch.testing.assert_close(loss(h, y, classifier), wanted, rtol=1e-13, atol=0)

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
        wanted = 0.5 * F.cross_entropy(classifier(h), y) + 0.5 * cosine_gram(h, y, classifier.weight)
        torch.testing.assert_close(loss, wanted)
        loss.backward()
        assert h.grad.isfinite().all()

    def test_angles_are_of_features_as_the_class_vectors_meet_them(self):
        h, y = material()
        classifier = HierCOSClassifier(D, TREE, dtype=torch.float64)
        wanted = cosine_gram(classifier.coordinates(h).abs(), y, classifier.weight)
        torch.testing.assert_close(CosineGramLoss(1.0)(h, y, classifier), wanted)
        cosines = F.cosine_similarity(classifier.coordinates(h).abs(), classifier.weight[y])
        torch.testing.assert_close(CorrelationLoss()(h, y, classifier), (1 - cosines).mean())

    @pytest.mark.parametrize("alpha", [0.0, 1.0])
    def test_features_on_their_vectors_stay_there_where_cross_entropy_turns_them(self, alpha):
        classifier = HierarchyAwareClassifier(K - 1, DISTANCES, dtype=torch.float64)
        h = classifier.weight.detach().clone().requires_grad_()
        CosineGramLoss(alpha)(h, torch.arange(K), classifier).backward()
        turn = h.grad - (h.grad * h).sum(dim=1, keepdim=True) * h
        assert (turn.norm() < 1e-13) == (alpha == 1)


class TestCorrelationLoss:
    def test_values(self):
        h, y = material()
        classifier = haframe()
        wanted = (1 - F.cosine_similarity(h, classifier.weight[y])).mean()
        torch.testing.assert_close(CorrelationLoss()(h, y, classifier), wanted)
        wanted = wanted + 0.1 * F.cross_entropy(classifier(h), y)
        torch.testing.assert_close(CorrelationLoss(0.1)(h, y, classifier), wanted)

    def test_reads_the_rows_of_the_batch_alone(self):
        matrix = torch.eye(K, D)
        matrix[4] = torch.nan
        h, _ = material(dtype=torch.float32)
        loss = CorrelationLoss()(h, torch.tensor([0, 1, 2, 3, 0, 1]), FrameClassifier(matrix))
        assert loss.isfinite()


def test_soft_labels_survive_a_cast_of_the_module():
    logits, labels = material(dim=K, dtype=torch.float32)
    loss = SoftLabelLoss(DISTANCES, 4.0)
    torch.testing.assert_close(loss.half()(logits, labels), soft_label_loss(logits, labels, DISTANCES, 4.0))
