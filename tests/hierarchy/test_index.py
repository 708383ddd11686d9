from __future__ import annotations

import numpy as np
import pytest
import torch

from tests.hierarchy.tree_literal import TEST_TREE, TREES, batch, below, classes_below, log_softmax, log_sum, path
from tightframe.errors import ArgumentError
from tightframe.hierarchy import Tree
from tightframe.hierarchy.index import TreeIndex, below_root, edge_log_probabilities, path_sums, sibling_log_softmax

every_tree = pytest.mark.parametrize("tree", TREES, ids=range(len(TREES)))


@every_tree
def test_index_describes_the_tree(tree):
    index = TreeIndex(tree)
    order = index.order.tolist()
    assert index.num_nodes == len(tree.parents)
    assert index.num_classes == tree.num_classes
    assert sorted(order) == list(range(len(order)))
    assert tree.depth[order].tolist() == sorted(tree.depth.tolist())
    assert index.sizes == tuple(int((tree.depth == d).sum()) for d in range(tree.depth.max() + 1))
    for place, node in enumerate(order[1:], start=1):
        assert order[index.parents[place]] == tree.parents[node]
    assert index.leaves.tolist() == tree.classes.tolist()
    for k in range(tree.num_classes):
        assert order[index.sources.tolist().index(k)] == tree.classes[k]
        nodes = path(tree, k)
        assert int(index.depth[k]) == len(nodes)
        assert [order[p] for p in index.paths[k]] == nodes + [0] * (index.paths.shape[1] - len(nodes))
    assert (index.sources == tree.num_classes).sum() == len(order) - tree.num_classes
    assert {tensor.dtype for tensor in index.half().buffers()} == {torch.int64}


@every_tree
def test_edges_are_the_logarithms_of_conditional_probabilities(tree):
    index = TreeIndex(tree)
    for width in (tree.num_classes, len(tree.parents)):
        logits, _ = batch(tree, width=width)
        edges = edge_log_probabilities(logits, index)[:, torch.argsort(index.order)]
        for row, values in zip(edges, logits.tolist(), strict=True):
            assert row[0] == 0
            log_p = log_softmax(values)
            inside = classes_below if width == tree.num_classes else below
            for node in range(1, len(tree.parents)):
                wanted, above = (log_sum(log_p[v] for v in inside(tree, n)) for n in (node, int(tree.parents[node])))
                assert row[node].item() == pytest.approx(float(wanted - above), abs=1e-13)


def test_edges_of_large_logits_in_float32_are_exact_differences():
    logits = torch.tensor([[1e4, 1e4 - 0.5, -1e4, -1e4 + 2]])
    edges = edge_log_probabilities(logits, TreeIndex(TEST_TREE))[0, 3:]
    wanted = torch.cat([torch.tensor([0.0, -0.5]).log_softmax(0), torch.tensor([0.0, 2.0]).log_softmax(0)])
    torch.testing.assert_close(edges, wanted, rtol=1e-6, atol=0)


@every_tree
def test_siblings_share_a_softmax(tree):
    index = TreeIndex(tree)
    logits, _ = batch(tree, width=len(tree.parents) - 1)
    found = sibling_log_softmax(logits, index)[:, torch.argsort(index.order)]
    assert found[:, 0].abs().max() == 0
    for parent in set(tree.parents[1:].tolist()):
        siblings = np.flatnonzero(tree.parents == parent)
        wanted = logits[:, siblings - 1].log_softmax(dim=1)
        torch.testing.assert_close(found[:, siblings], wanted, rtol=0, atol=1e-14)


def test_siblings_of_large_logits():
    logits = torch.tensor([[-1e4, 1e4, 1e4 - 0.5, 1e4, -1e4, -1e4 + 2]])
    index = TreeIndex(TEST_TREE)
    found = sibling_log_softmax(logits, index)[:, torch.argsort(index.order)]
    for node, sibling in ((1, 4), (2, 3), (5, 6)):
        wanted = logits[:, [node - 1, sibling - 1]].log_softmax(dim=1)
        torch.testing.assert_close(found[:, [node, sibling]], wanted, rtol=1e-6, atol=0)


@every_tree
def test_path_sums(tree):
    index = TreeIndex(tree)
    values, _ = batch(tree, width=len(tree.parents) - 1)
    sums = path_sums(torch.nn.functional.pad(below_root(values, index), (1, 0)), index)
    wanted = torch.stack([values[:, [v - 1 for v in path(tree, k)]].sum(dim=1) for k in range(tree.num_classes)], 1)
    torch.testing.assert_close(sums, wanted, rtol=0, atol=1e-14)


def test_half_precision_is_widened():
    index = TreeIndex(TEST_TREE)
    logits = torch.tensor([[2.0, 1.0, 0.0, -1.0]])
    assert torch.equal(edge_log_probabilities(logits.half(), index), edge_log_probabilities(logits, index))
    nodes = torch.arange(6.0).unsqueeze(0)
    assert torch.equal(sibling_log_softmax(nodes.bfloat16(), index), sibling_log_softmax(nodes, index))


@pytest.mark.parametrize("width", [4, 7])
def test_edges_have_a_right_gradient_and_second_derivative(width):
    index = TreeIndex(TEST_TREE)
    logits, _ = batch(TEST_TREE, 2, width)
    logits.requires_grad_()
    assert torch.autograd.gradcheck(lambda z: edge_log_probabilities(z, index), logits)
    assert torch.autograd.gradgradcheck(lambda z: edge_log_probabilities(z, index), logits)


def test_gradient_of_siblings():
    index = TreeIndex(TEST_TREE)
    logits, _ = batch(TEST_TREE, 2, 6)
    assert torch.autograd.gradcheck(lambda z: sibling_log_softmax(z, index), logits.requires_grad_())


def test_bad_trees():
    with pytest.raises(ArgumentError, match=r"tree must be a tightframe\.Tree, got dict"):
        TreeIndex({"E": ["A"]})
    with pytest.raises(ArgumentError, match="at least two classes, got 1"):
        TreeIndex(Tree.from_nested({"E": ["A"]}))
