"""Classifiers that predict through the nodes of a tree."""

from __future__ import annotations

from typing import final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tightframe.errors import DimensionError, check_last_dimension, check_positive
from tightframe.hierarchy import Tree
from tightframe.hierarchy.index import TreeIndex, below_root, path_sums, sibling_log_softmax
from tightframe.linalg import at_least_float32, haar_orthonormal, outside_autocast
from tightframe.nn.classifiers import Classifier, linear_of


class _LinearOnNodes(Classifier):
    """A learned linear map to a logit for each node of a tree, with the root or without it."""

    _first_node = 0  # 1 is without the root

    def __init__(
        self,
        dim: int,
        tree: Tree,
        bias: bool = True,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        check_positive("dim", dim)
        self.tree = TreeIndex(tree, device)
        self.in_features = dim
        self.out_features = tree.num_classes
        self.nodes = nn.Linear(dim, len(tree.parents) - self._first_node, bias=bias, device=device, dtype=dtype)


@final
class NodeClassifier(_LinearOnNodes):
    """A linear map to a logit for every node, for :class:`~tightframe.nn.HACELoss`; it predicts among the classes.

    The loss sees the logits of internal nodes, which take a share of its softmax. Prediction must not see them, or the
    most likely "class" may be an internal node. So :meth:`forward` gives the leaves' logits alone.

    Args:
        dim: Feature dimension d >= 1.
        tree: Tree over the K classes, with N nodes.
        bias: Whether to learn a bias.
        device: Device of the parameters; None is PyTorch's default.
        dtype: Type of the parameters; None is PyTorch's default.

    Attributes:
        nodes: Linear map to the N nodes by their number in the tree.

    Raises:
        ArgumentError: if ``dim`` is not a positive integer, or ``tree`` is not a tree of at least two classes.

    Example:
        >>> classifier = NodeClassifier(4, Tree.from_nested({"E": ["A", "B"], "F": ["C", "D"]}))
        >>> classifier(torch.ones(2, 4)).shape, classifier.node_logits(torch.ones(2, 4)).shape
        (torch.Size([2, 4]), torch.Size([2, 7]))
    """

    @property
    def weight(self) -> Tensor:  # type: ignore[override]  # computed here, a parameter elsewhere
        """The leaves' vectors ``(K, d)``."""
        return self.nodes.weight[self.tree.leaves]

    @property
    def bias(self) -> Tensor | None:  # type: ignore[override]
        """The leaves' biases ``(K,)``, or None."""
        return None if self.nodes.bias is None else self.nodes.bias[self.tree.leaves]

    def forward(self, features: Tensor, labels: Tensor | None = None) -> Tensor:
        """Return the leaves' logits ``(…, K)`` of features ``(…, d)``."""
        check_last_dimension(features, self.in_features)
        return F.linear(features, self.weight, self.bias)

    def node_logits(self, features: Tensor) -> Tensor:
        """Return logits ``(…, N)`` of features ``(…, d)``, by number in the tree."""
        check_last_dimension(features, self.in_features)
        return self.nodes(features)

    def export(self) -> nn.Linear:
        """Return an ``nn.Linear`` with copies of the leaves' parameters: the same logits."""
        return linear_of(self.weight, self.bias)


@final
class ConditionalSoftmaxClassifier(_LinearOnNodes):
    r"""A softmax over each set of siblings (YOLO9000: Redmon & Farhadi, CVPR 2017, arXiv 1612.08242).

    Every node but the root has a logit. The probability of a class is the product along its path of the softmax among
    siblings, and :meth:`forward` gives its logarithm. So :class:`~tightframe.nn.HXELoss` on it weighs the conditional
    cross-entropies of the levels, and cross-entropy adds them up.

    It cannot be exported, because no linear map predicts the same. :attr:`weight` holds for each class the sum of the
    vectors along its path: the part of its logarithm that is linear in the features.

    Args:
        dim: Feature dimension d >= 1.
        tree: Tree over the K classes, with N nodes.
        bias: Whether to learn a bias.
        device: Device of the parameters; None is PyTorch's default.
        dtype: Type of the parameters; None is PyTorch's default.

    Attributes:
        nodes: Linear map to the N - 1 nodes by their number in the tree less one.

    Raises:
        ArgumentError: if ``dim`` is not a positive integer, or ``tree`` is not a tree of at least two classes.

    Example:
        >>> classifier = ConditionalSoftmaxClassifier(4, Tree.from_nested({"E": ["A", "B"], "C": None}))
        >>> round(classifier(torch.zeros(1, 4)).exp().sum().item(), 4)
        1.0
        >>> classifier.nodes.out_features
        4
    """

    _first_node = 1

    @property
    def weight(self) -> Tensor:  # type: ignore[override]  # computed here, a parameter elsewhere
        """The sums ``(K, d)`` of the vectors along each path."""
        return self._along_paths(self.nodes.weight.T).T

    @property
    def bias(self) -> Tensor | None:  # type: ignore[override]
        """The sums ``(K,)`` of the biases along each path, or None."""
        return None if self.nodes.bias is None else self._along_paths(self.nodes.bias.unsqueeze(0)).squeeze(0)

    def forward(self, features: Tensor, labels: Tensor | None = None) -> Tensor:
        """Return log-probabilities ``(…, K)`` of features ``(…, d)``, in float32 or better."""
        check_last_dimension(features, self.in_features)
        logits = self.nodes(features)
        flat = path_sums(sibling_log_softmax(logits.reshape(-1, logits.shape[-1]), self.tree), self.tree)
        return flat.reshape(*features.shape[:-1], self.out_features)

    def _along_paths(self, values: Tensor) -> Tensor:
        return path_sums(F.pad(below_root(values, self.tree), (1, 0)), self.tree)


@final
class HierCOSClassifier(Classifier):
    r"""A fixed orthonormal direction for each node, and the norm of a feature along each path (Hier-COS, 2025).

    With :math:`o = Q x`, Q a random orthogonal matrix of N - 1 rows, the score of a class is the norm of o on its path:
    the largest is the class whose subspace is nearest. Train it with :class:`~tightframe.nn.HierCOSLoss`.

    Neither score nor loss sees a sign. So collapse is measured on ``|o|``, which :meth:`prepare` gives, against
    :attr:`weight`, which holds the unit vector of each class's path. It cannot be exported, because no linear map
    predicts the same. If classes are not equally deep, noise alone favours the deep ones.

    Args:
        dim: Feature dimension d, N - 1 exactly.
        tree: Tree over the K classes, with N nodes; a node with one child takes a dimension that separates nothing.
        seed: Seed of Q, >= 0.
        device: Device of Q; None is PyTorch's default.
        dtype: Type of Q; None is PyTorch's default.

    Attributes:
        rotation: Q ``(N - 1, N - 1)``; row v - 1 is the direction of node v.

    Raises:
        ArgumentError: if a size or the seed is out of range, or ``tree`` is not a tree of at least two classes.
        DimensionError: if ``dim`` is not N - 1.

    Example:
        >>> classifier = HierCOSClassifier(6, Tree.from_nested({"E": ["A", "B"], "F": ["C", "D"]}))
        >>> features = 3 * classifier.rotation[[0, 1]].sum(dim=0)  # E and A
        >>> [round(score, 4) for score in classifier(features).tolist()]
        [4.2426, 3.0, 0.0, 0.0]
    """

    rotation: Tensor

    def __init__(
        self,
        dim: int,
        tree: Tree,
        *,
        seed: int = 0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        check_positive("dim", dim)
        check_positive("seed", seed, 0)
        self.tree = TreeIndex(tree, device)
        needed = len(tree.parents) - 1
        if dim != needed:
            raise DimensionError(
                f"dim must be N - 1 = {needed}, a direction for each node but the root, got {dim}; make the features "
                "of the backbone that wide"
            )
        self.in_features = dim
        self.out_features = tree.num_classes
        self.register_parameter("bias", None)
        rotation = haar_orthonormal(dim, dim, torch.Generator(device="cpu").manual_seed(seed))
        self.register_buffer("rotation", rotation.to(device=device, dtype=dtype or torch.get_default_dtype()))

    @property
    def weight(self) -> Tensor:  # type: ignore[override]  # computed here, a parameter elsewhere
        """The paths as unit vectors ``(K, d)`` in the coordinates of the nodes."""
        index = self.tree
        # Column 0, the root, takes the levels that a path does not reach.
        paths = self.rotation.new_zeros(index.num_classes, index.num_nodes).scatter_(1, index.order[index.paths], 1.0)
        return paths[:, 1:] / index.depth.to(paths.dtype).sqrt().unsqueeze(1)

    def coordinates(self, features: Tensor) -> Tensor:
        """Return o ``(…, N - 1)`` of features ``(…, d)``, in float32 or better, autocast or not."""
        check_last_dimension(features, self.in_features)
        with outside_autocast(features.device):
            wide = at_least_float32(features)
            return F.linear(wide, self.rotation.to(wide.dtype))

    def prepare(self, features: Tensor) -> Tensor:
        """Return ``|o| (…, d)``, in float32 or better."""
        return self.coordinates(features).abs()

    def forward(self, features: Tensor, labels: Tensor | None = None) -> Tensor:
        """Return scores ``(…, K)`` of features ``(…, d)``."""
        squares = self.coordinates(features).square().reshape(-1, self.in_features)
        sums = path_sums(F.pad(below_root(squares, self.tree), (1, 0)), self.tree)
        zero = sums == 0  # where the root has no derivative; it is taken as 0
        scores = torch.where(zero, 0.0, torch.where(zero, 1.0, sums).sqrt())
        return scores.reshape(*features.shape[:-1], self.out_features).to(features.dtype)
