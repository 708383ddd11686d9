from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from tests.hierarchy import tree_literal as literal
from tests.hierarchy.tree_literal import TEST_TREE, TREES, UNBALANCED, batch, mean
from tightframe.errors import ArgumentError, DeviceError, DtypeError, LabelError, ShapeError
from tightframe.functional.hierarchical import (
    SCHEDULES,
    correlation_loss,
    cosine_gram,
    cosine_gram_weights,
    hace,
    hier_cos,
    hxe,
    soft_label_loss,
    soft_labels,
)
from tightframe.hierarchy.index import tree_index

every_tree = pytest.mark.parametrize("tree", TREES, ids=range(len(TREES)))
LOGITS = torch.tensor([[2, 1, 0, -1], [0.5, 0, 3, 1]], dtype=torch.float64)
LABELS = torch.tensor([1, 2])
D = TEST_TREE.distances()


def by_name(tree, names, rows):
    """Return columns given by node name in the order of the tree's numbers; the root may be left out."""
    rows = torch.tensor(rows, dtype=torch.float64)
    own = ["R" if node == 0 else name for node, name in enumerate(tree.names)]
    return rows[:, [names.index(name) for name in own if name in names]]


class TestGolden:
    def test_soft_labels(self):
        wanted = torch.tensor([0.8532666, 0.1154771, 0.0156281, 0.0156281], dtype=torch.float64)
        # The first is 0.85326653: the printed digits are those of float32.
        torch.testing.assert_close(soft_labels(D, 4.0)[0], wanted, rtol=0, atol=1e-7)

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
    def test_loss_is_the_divergence_per_sample(self):
        q = soft_labels(D, 4.0)[LABELS]
        wanted = (q * (q.log() - LOGITS.log_softmax(dim=1))).sum() / 2
        torch.testing.assert_close(soft_label_loss(LOGITS, LABELS, D, 4.0), wanted, rtol=1e-13, atol=0)

    def test_only_ratios_of_distances_matter(self):
        found = soft_label_loss(LOGITS, LABELS, 7 * D.float(), 4.0)
        torch.testing.assert_close(found, soft_label_loss(LOGITS, LABELS, D, 4.0), rtol=1e-14, atol=0)

    def test_least_at_the_targets(self):
        targets = soft_labels(D, 4.0)[LABELS].log()
        assert soft_label_loss(targets, LABELS, D, 4.0).abs() < 1e-15

    @pytest.mark.parametrize("beta", [100.0, 1e6])
    def test_large_beta_is_cross_entropy(self, beta):
        found = soft_label_loss(LOGITS, LABELS, D, beta)
        torch.testing.assert_close(found, F.cross_entropy(LOGITS, LABELS), rtol=1e-12, atol=0)

    def test_bad_input(self):
        for beta in (0.0, -1.0, math.nan, math.inf, True):
            with pytest.raises(ArgumentError, match="beta must be finite and > 0"):
                soft_label_loss(LOGITS, LABELS, D, beta)
        with pytest.raises(ArgumentError, match="distances must be positive between different classes"):
            soft_labels(torch.zeros(4, 4), 4.0)
        with pytest.raises(ShapeError, match="at least two classes"):
            soft_labels(torch.zeros(1, 1), 4.0)
        with pytest.raises(ShapeError, match="logits must have width 3, got 4"):
            soft_label_loss(LOGITS, LABELS, D[:3, :3], 4.0)


class TestCosineGram:
    K, d = 7, 5

    def material(self, size=6):
        generator = torch.Generator().manual_seed(2)
        draw = lambda *shape: torch.randn(*shape, dtype=torch.float64, generator=generator)  # noqa: E731
        return draw(size, self.d), torch.randint(self.K, (size,), generator=generator), 3 * draw(self.K, self.d)

    @pytest.mark.parametrize("given", [True, False])
    def test_is_the_double_sum(self, given):
        x, y, w = self.material()
        unit = F.normalize(w)
        gram = torch.randn(self.K, self.K, dtype=torch.float64) if given else unit @ unit.T
        wanted = 0.0
        for features, label in zip(x, y, strict=True):
            for c in range(self.K):
                wanted += (F.cosine_similarity(features, w[c], dim=0) - gram[label, c]).square() / len(y)
        found = cosine_gram(x, y, w, gram if given else None)
        torch.testing.assert_close(found, wanted, rtol=1e-12, atol=0)

    def test_zero_at_the_class_vectors_and_nothing_from_zero_features(self):
        _, y, w = self.material()
        assert cosine_gram(5 * w[y], y, w) < 1e-28
        zero = torch.zeros(1, self.d, dtype=torch.float64, requires_grad=True)
        loss = cosine_gram(zero, y[:1], w)
        loss.backward()
        gram = F.normalize(w) @ F.normalize(w).T
        torch.testing.assert_close(loss, gram[y[0]].square().sum(), rtol=1e-12, atol=0)
        assert zero.grad.tolist() == [[0.0] * self.d]

    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
    def test_half_precision_and_autocast_lower_nothing(self, dtype):
        x, y, w = self.material()
        x, w = x.to(dtype), w.to(dtype)
        wanted = cosine_gram(x.float(), y, w.float())
        assert torch.equal(cosine_gram(x, y, w), wanted)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert torch.equal(cosine_gram(x, y, w), wanted)

    @pytest.mark.parametrize("given", [True, False])
    def test_gradient(self, given):
        x, y, w = self.material(3)
        gram = torch.eye(self.K, dtype=torch.float64) if given else None
        inputs = x.requires_grad_(), w.requires_grad_()
        assert torch.autograd.gradcheck(lambda x, w: cosine_gram(x, y, w, gram), inputs)

    def test_bad_input(self):
        x, y, w = self.material()
        with pytest.raises(ShapeError, match=r"gram must have shape \(K, K\) = \(7, 7\), got \(2, 7\)"):
            cosine_gram(x, y, w, w[:2] @ w.T)
        with pytest.raises(ShapeError, match="features must have width d = 4, got 5"):
            cosine_gram(x, y, w[:, :4])
        with pytest.raises(DtypeError, match="weight must be a floating-point tensor"):
            cosine_gram(x, y, w.long())
        with pytest.raises(DeviceError, match="weight is on meta and features on cpu"):
            cosine_gram(x, y, w.to("meta"))
        with pytest.raises(DeviceError, match="gram is on meta"):
            cosine_gram(x, y, w, torch.zeros(7, 7, device="meta"))
        with pytest.raises(LabelError, match=r"0\.\.6"):
            cosine_gram(x, y + 7, w)


class TestSchedules:
    @pytest.mark.parametrize(("alpha", "beta"), [(0.0, 1.0), (0.4, 0.6), (1.0, 0.0), (1.5, 1.0)])
    def test_constant(self, alpha, beta):
        for epoch in (0, 99):
            assert cosine_gram_weights("constant", epoch, alpha=alpha) == (beta, alpha)

    @pytest.mark.parametrize("epoch", [0, 1, 3, 7, 10])
    def test_formulas(self, epoch):
        t, T, p = epoch, 10, 4
        u = (1 - math.cos(2 * math.pi * t / p)) / 2
        wanted = {
            "falling": 1 - t / T,
            "rising": t / T,
            "wave": u,
            "rising-wave": u * t / T,
            "falling-wave": 1 - u * t / T,
        }
        assert set(wanted) | {"constant"} == set(SCHEDULES)
        for schedule, value in wanted.items():
            options = {"epochs": T} if schedule != "wave" else {}
            options |= {"period": p} if "wave" in schedule else {}
            beta, alpha = cosine_gram_weights(schedule, epoch, **options)
            assert alpha == pytest.approx(value, abs=1e-15)
            assert beta == pytest.approx(1 - value, abs=1e-15)

    @pytest.mark.parametrize(("schedule", "alpha"), [("falling", 0.0), ("rising", 1.0)])
    @pytest.mark.parametrize(("epoch", "epochs"), [(0, 0), (5, 0), (11, 10)])
    def test_after_the_last_epoch_and_without_any(self, schedule, alpha, epoch, epochs):
        assert cosine_gram_weights(schedule, epoch, epochs=epochs) == (1 - alpha, alpha)

    @pytest.mark.parametrize(
        ("schedule", "options", "name"),
        [
            ("linear", {}, "schedule"),
            ("constant", {}, "alpha must be given"),
            ("constant", {"alpha": -0.1}, "alpha must be finite and >= 0"),
            ("constant", {"alpha": math.nan}, "alpha"),
            ("constant", {"alpha": 0.4, "epochs": 3}, "epochs must be left out"),
            ("rising", {"epochs": 3, "alpha": 0.4}, "alpha must be left out"),
            ("rising", {}, "epochs must be given"),
            ("rising", {"epochs": -1}, "epochs"),
            ("rising", {"epochs": 3, "period": 2}, "period must be left out"),
            ("wave", {}, "period must be given"),
            ("wave", {"period": 0}, "period"),
            ("wave", {"period": 2, "epochs": 3}, "epochs must be left out"),
            ("wave", {"period": 2, "epoch": -1}, "epoch"),
        ],
    )
    def test_bad_options(self, schedule, options, name):
        with pytest.raises(ArgumentError, match=name):
            cosine_gram_weights(schedule, **options)


class TestCorrelation:
    def test_values(self):
        x = torch.tensor([[3.0, 4.0], [-1.0, 0.0], [0.0, 0.0]], dtype=torch.float64, requires_grad=True)
        targets = torch.tensor([[2.0, 0.0]], dtype=torch.float64).repeat(3, 1)
        loss = correlation_loss(x, targets)
        assert loss.item() == pytest.approx((0.4 + 2 + 1) / 3, rel=1e-15)
        loss.backward()
        assert x.grad[2].tolist() == [0.0, 0.0]

    def test_gradient(self):
        generator = torch.Generator().manual_seed(0)
        x, w = (torch.randn(3, 4, dtype=torch.float64, generator=generator).requires_grad_() for _ in range(2))
        assert torch.autograd.gradcheck(correlation_loss, (x, w))

    def test_bad_input(self):
        with pytest.raises(ShapeError, match="targets must have the shape"):
            correlation_loss(torch.zeros(3, 4), torch.zeros(2, 4))
        with pytest.raises(DeviceError, match="targets is on meta"):
            correlation_loss(torch.zeros(3, 4), torch.zeros(3, 4, device="meta"))


TREE_LOSSES = {
    "hxe": lambda z, y, tree=TEST_TREE, a=0.3: hxe(z, y, tree, a),
    "hace": lambda z, y, tree=TEST_TREE, a=0.3: hace(z, y, tree, a),
    "hier_cos": lambda z, y, tree=TEST_TREE, a=0.3: hier_cos(z, y, tree, a),
}
WIDTHS = {"hxe": 4, "hace": 4, "hier_cos": 6}
every_loss = pytest.mark.parametrize("name", TREE_LOSSES)


@pytest.mark.parametrize(
    ("name", "width"), [("hxe", None), ("hace", None), ("hace", 0), ("hier_cos", -1)], ids=["hxe", "hace", "nodes", "o"]
)
@pytest.mark.parametrize("tree", TREES[:5], ids=range(5))
def test_gradients(name, width, tree):
    logits, labels = batch(tree, 3, None if width is None else len(tree.parents) + width)
    assert torch.autograd.gradcheck(lambda z: TREE_LOSSES[name](z, labels, tree), logits.requires_grad_())


def test_gradient_of_soft_labels():
    assert torch.autograd.gradcheck(lambda z: soft_label_loss(z, LABELS, D, 4.0), LOGITS.clone().requires_grad_())


def test_hier_cos_at_zero_coordinates_is_finite():
    o = torch.zeros(2, 6, requires_grad=True)
    loss = hier_cos(o, torch.tensor([0, 3]), TEST_TREE, 0.5)
    loss.backward()
    # Each of two levels costs the 1 of its own node; q against the uniform distribution over six.
    assert loss.item() == pytest.approx(math.log(6) - 0.5822032 + 0.5 * 2, abs=1e-6)
    assert torch.equal(o.grad, torch.zeros(2, 6))


@every_loss
def test_half_precision_is_widened(name):
    z = torch.randn(3, WIDTHS[name], generator=torch.Generator().manual_seed(0)).half()
    y = torch.tensor([0, 3, 1])
    found = TREE_LOSSES[name](z, y)
    assert found.dtype == torch.float32
    assert torch.equal(found, TREE_LOSSES[name](z.float(), y))


@every_loss
def test_bad_batches(name):
    loss, z, y = TREE_LOSSES[name], torch.zeros(2, WIDTHS[name]), torch.tensor([0, 3])
    with pytest.raises(ShapeError, match="must have width"):
        loss(torch.zeros(2, 5), y)
    with pytest.raises(ShapeError, match="shape"):
        loss(torch.zeros(4), y)
    with pytest.raises(DtypeError, match="floating-point"):
        loss(z.long(), y)
    with pytest.raises(DtypeError, match="labels must be an integer tensor"):
        loss(z, y.float())
    with pytest.raises(ShapeError, match=r"labels must have shape \(B,\) = \(2,\)"):
        loss(z, y[:1])
    with pytest.raises(LabelError, match=r"0\.\.3"):
        loss(z, y + 1)
    with pytest.raises(ArgumentError, match=r"tree must be a tightframe\.Tree"):
        loss(z, y, D)
    assert loss(z[:0], y[:0]).isnan()


@pytest.mark.parametrize(
    ("name", "bad", "wanted"),
    [
        ("hxe", (-0.1, math.nan, math.inf, True), "alpha must be finite and >= 0"),
        ("hace", (0.0, 1.1, math.nan, True), r"d_il must be finite and in \(0, 1\]"),
        ("hier_cos", (-0.1, math.nan, math.inf, True), "alpha must be finite and >= 0"),
    ],
)
def test_bad_options(name, bad, wanted):
    for value in bad:
        with pytest.raises(ArgumentError, match=wanted):
            TREE_LOSSES[name](torch.zeros(1, WIDTHS[name]), torch.tensor([0]), a=value)


@every_loss
def test_compiles_to_one_graph(name):
    torch._dynamo.reset()
    z, y = torch.randn(3, WIDTHS[name], generator=torch.Generator().manual_seed(0)), torch.tensor([0, 3, 1])
    index = tree_index(TEST_TREE)
    compiled = torch.compile(lambda z: TREE_LOSSES[name](z, y, index), fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(z), TREE_LOSSES[name](z, y))
