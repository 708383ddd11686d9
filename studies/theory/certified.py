"""Certificates of networks on digits that are trained with weight decay, and what their gaps are made of."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from tightframe.ufm.duality import descent_of_fit
from tightframe.ufm.forms.common import bisect, sigma_of
from tightframe.ufm.objective import fit, row_weights
from tightframe.ufm.problems import CrossEntropyUFM
from torch import Tensor

from studies.theory.networks import Network, Shape, balanced_digits, decayed
from tightframe.errors import ArgumentError
from tightframe.ufm.network import NetworkCertificate, certify_network
from tightframe.ufm.solution import Solution, labels_of_rows


@dataclass(frozen=True)
class Moment:
    """A network's certificates in the middle of its training.

    Args:
        step: steps that were made.
        network: certificate of :class:`~tightframe.ufm.CrossEntropyUFM`.
        relu: certificate of :class:`~tightframe.ufm.ReLUImbalanced`, where features are behind a ReLU.
        parts: see :func:`gap_parts`.
    """

    step: int
    network: NetworkCertificate
    relu: NetworkCertificate | None
    parts: Mapping[str, float]

    @property
    def above(self) -> dict[str, float]:
        """How far the network and its parts are above the minimum, relative to the certified bound of it."""
        bound = self.network.certificate.lower_bound
        return {name: value / bound - 1 for name, value in self.parts.items()}

    @property
    def cross_entropy(self) -> float:
        """The mean of it, without penalties."""
        point = self.network.point
        weights = row_weights(point.problem, point.H)[0]
        return fit(point.problem, point.logits, point.labels, weights).item()

    @property
    def above_relu(self) -> float | None:
        """How far the network is above the minimum of nonnegative features."""
        return None if self.relu is None else self.relu.certificate.loss / self.relu.certificate.lower_bound - 1


def certified_course(
    shape: Shape, seed: int, decay: float, steps: int, marks: Sequence[int] = (), per_class: int = 50
) -> list[Moment]:
    """Return the certificates of a network on digits that is trained with weight decay, at steps and in the end.

    Args:
        shape: of the network.
        seed: of its draw.
        decay: of SGD, for every parameter.
        steps: in all.
        marks: steps to look at before the end.
        per_class: samples.
    """
    images, labels = balanced_digits(per_class)
    network = Network(shape, images.shape[1], seed)
    moments = []
    for step in decayed(network, images, labels, decay, steps, marks):
        W, H = network.point(images)
        found = certify_network(H, labels, W, weight_decay=decay)
        relu = certify_network(H, labels, W, weight_decay=decay, relu=True) if shape.relu else None
        moments.append(Moment(step, found, relu, gap_parts(found.point)))
    return moments


def best_scaled(problem: CrossEntropyUFM, W: Tensor, H: Tensor) -> float:
    r"""Return the least objective of these class vectors and features, each of the two scaled as is best.

    .. math:: \min_{c \ge 0} F(c\, H W^\top) + c\, \sigma\, \lVert W\rVert\, \lVert\tilde H\rVert

    which is convex in c.

    Args:
        problem: without bias.
        W: ``(K, d)``.
        H: ``(K, d)`` or ``(N, d)``, class by class.
    """
    Z = H @ W.T
    labels, (weights, prices) = labels_of_rows(problem, H), row_weights(problem, H)
    price = sigma_of(problem) * W.norm().item() * (prices.sqrt().unsqueeze(1) * H).norm().item()

    def slope(c: float) -> float:
        return price - (descent_of_fit(problem, c * Z, labels, weights) * Z).sum().item()

    high = 1.0
    while slope(high) < 0:
        high *= 2
    c = bisect(slope, 0.0, high) if slope(0.0) < 0 else 0.0
    return fit(problem, c * Z, labels, weights).item() + c * price


def gap_parts(point: Solution) -> dict[str, float]:
    """Return the objective of a network's point, and what it is when parts of its geometry are made as predicted.

    ``as it is``; with ``class means`` for features; with these ``centred``; W and features scaled anew each time. What
    is still above the minimum then is in the angles and the relative lengths of class means and class vectors.

    Args:
        point: of a :class:`CrossEntropyUFM` without bias.
    """
    problem, means = point.problem, point.class_means
    if not isinstance(problem, CrossEntropyUFM):
        raise ArgumentError(f"point must be one of a CrossEntropyUFM, got {type(problem).__name__}")
    return {
        "as it is": point.loss,
        "class means": best_scaled(problem, point.W, means),
        "centred": best_scaled(problem, point.W, means - means.mean(dim=0)),
    }
