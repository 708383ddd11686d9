"""Certificates of trained networks: last-layer features and classifier as a point of an unconstrained-feature model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from tightframe.errors import ArgumentError, DimensionError, check_choice
from tightframe.files import html_table
from tightframe.ufm.bound import dual_bound
from tightframe.ufm.certificate import Certificate
from tightframe.ufm.certify import certify
from tightframe.ufm.convex import ConvexSolver
from tightframe.ufm.cross_entropy import CrossEntropyUFM
from tightframe.ufm.mean_squared import MeanSquaredUFM
from tightframe.ufm.problem import Penalised, Problem, check_penalty, objective
from tightframe.ufm.relu import ReLUImbalanced
from tightframe.ufm.solution import Solution
from tightframe.ufm.solve import closed_form
from tightframe.ufm.trained import checked_layers


@dataclass(frozen=True, repr=False)
class NetworkCertificate:
    """Facts that :func:`certify_network` finds of a trained network.

    Args:
        certificate: Certificate of the network's point; its gap is to the better of the point's own bound and
            that of the predicted minimum.
        point: features, sorted class by class, and classifier as a point of the model ``point.problem``.
        predicted: the model's minimum, or the best point that was found (``predicted.reason``); None if d is too small.
        note: Origin of the penalty on features, and the reason if there is no prediction.
    """

    certificate: Certificate
    point: Solution
    predicted: Solution | None
    note: str

    def __repr__(self) -> str:
        return f"NetworkCertificate({self.certificate}, {self.note}; {self.point.problem})"

    def _repr_html_(self) -> str:
        """Return the verdict and the deviations from the predicted geometry as tables, for notebooks."""
        rows = [(f"deviation of {name}", value) for name, value in self.deviations().items()]
        return self.certificate._repr_html_() + html_table([self.note, ""], rows)

    @property
    def gap(self) -> float:
        """At most so much is the network's objective above the model's minimum."""
        return self.certificate.gap

    def deviations(self) -> dict[str, float]:
        """Return how far the geometry is from the predicted one, relative; empty without a prediction.

        ``gram_W``, ``gram_H`` and ``logits``: Frobenius distance of the Gram matrix of class vectors, of class means,
        and of the class-mean logits, over the norm of the predicted ones (infinite if these are zero); ``norm_W`` and
        ``norm_H``: of ‖W‖ and of the root of the features' summed squares.
        """
        if self.predicted is None:
            return {}
        pairs = {
            "gram_W": (self.point.gram_W, self.predicted.gram_W),
            "gram_H": (self.point.gram_H, self.predicted.gram_H),
            "logits": (_class_logits(self.point), _class_logits(self.predicted)),
            "norm_W": (torch.linalg.matrix_norm(self.point.W), torch.linalg.matrix_norm(self.predicted.W)),
            "norm_H": (_feature_norm(self.point), _feature_norm(self.predicted)),
        }
        return {
            name: (torch.linalg.vector_norm(seen - wanted) / torch.linalg.vector_norm(wanted)).item()
            for name, (seen, wanted) in pairs.items()
        }


def certify_network(
    features: Tensor,
    labels: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    weight_decay: float,
    feature_decay: float | None = None,
    bias_decay: float | None = None,
    loss: str = "cross-entropy",
    relu: bool = False,
    sample_weights: Sequence[float] | None = None,
) -> NetworkCertificate:
    r"""Return how near the last layer of a trained network is to the minimum of an unconstrained-feature model.

    Features and classifier are a point of :class:`CrossEntropyUFM` or :class:`MeanSquaredUFM` with the penalty

    .. math:: \lambda_H = \lambda_W \frac{\lVert W\rVert^2}{\sum_i \lVert h_i\rVert^2}

    on features, unless it is given: the only one with which the point can be stationary, since
    :math:`\lambda_W W^\top W = \lambda_H H^\top H` there (Zhu et al. 2021). Its predicted minimum is
    :func:`~tightframe.ufm.closed_form.closed_form` where that is exact, else that of
    :class:`~tightframe.ufm.convex.ConvexSolver`.

    Args:
        features: Inputs of the classifier ``(N, d)``, samples in any order, of any floating point type; ideally of
            the training set, without augmentation and dropout.
        labels: ``(N,)`` in 0..K-1, every class at least once, any counts.
        weight: Weight of the classifier ``(K, d)``.
        bias: Bias of the classifier ``(K,)``, if it has one.
        weight_decay: :math:`\lambda_W > 0` as in ``torch.optim.SGD(weight_decay=...)``, for a loss that is a mean over
            samples. Decoupled decay (AdamW) penalises something else.
        feature_decay: :math:`\lambda_H > 0`, if features were penalised.
        bias_decay: :math:`\lambda_b \ge 0`; None if the bias decays as the weight does.
        loss: ``"cross-entropy"``, or ``"mse"`` for half the squared error against one-hot targets, summed over classes.
        relu: Whether features are nonnegative by construction, as behind a ReLU: the model is then
            :class:`ReLUImbalanced`, with a larger minimum. Only with cross-entropy and without bias.
        sample_weights: Weight of one sample of each class in the loss ``(K,)``; None is 1/N. ``nn.MSELoss()``
            averages over classes too, which is a weight of 2/(N K).

    Raises:
        ArgumentError: if a decay is not positive, the point is zero, or ``relu`` does not fit.
        ShapeError, DtypeError, DeviceError, LabelError, NonFiniteError: if the tensors do not fit each other.
        EmptyDataError: if a class has no sample.

    Example:
        >>> W = 2 * (torch.eye(3) - 1 / 3)
        >>> network = certify_network(W.repeat(4, 1), torch.arange(3).repeat(4), W, weight_decay=0.05)
        >>> network.point.problem.counts, round(network.point.problem.feature_decay, 6)
        ((4, 4, 4), 0.0125)
        >>> network.predicted.exact, 0 < network.certificate.relative_gap < 0.1
        (True, True)
        >>> round(network.deviations()["gram_W"], 3)  # in the directions of the prediction, but longer
        0.384
    """
    H, labels, (W,), (b,) = checked_layers(("features", features), labels, {"weight": weight}, {"bias": bias})
    H, counts = H[labels.argsort(stable=True)], tuple(labels.bincount().tolist())
    kind = _kind(loss, relu, b, H)
    check_penalty("weight_decay", weight_decay)
    source = "given"
    if feature_decay is None:
        source = "inferred from the norms of weight and features"
        squares = W.square().sum().item(), H.square().sum().item()
        if min(squares) == 0:
            raise ArgumentError("features and weight must not be zero to infer feature_decay from them; pass it")
        feature_decay = weight_decay * squares[0] / squares[1]
    options: dict[str, Any] = {"sample_weights": None if sample_weights is None else tuple(sample_weights)}
    if b is not None:
        # The bias decays as the weight does, as in an optimiser with one group.
        options["bias_decay"] = weight_decay if bias_decay is None else bias_decay
    problem = kind(counts, H.shape[1], weight_decay, feature_decay, **options)
    point = Solution(problem, W, H, b, objective(problem, W, H, b).item(), False, "a trained network")
    predicted, note = _prediction(problem)
    certificate = certify(problem, point)
    if predicted is not None:
        bound = dual_bound(problem, predicted.W, predicted.H, predicted.bias)
        certificate = replace(certificate, lower_bound=max(certificate.lower_bound, bound))
    note = f"feature_decay = {feature_decay:.4g} is {source}" + (f"; {note}" if note else "")
    return NetworkCertificate(certificate, point, predicted, note)


def _kind(loss: str, relu: bool, bias: Tensor | None, H: Tensor) -> type[Penalised]:
    check_choice("loss", loss, ("cross-entropy", "mse"))
    if not relu:
        return CrossEntropyUFM if loss == "cross-entropy" else MeanSquaredUFM
    if loss != "cross-entropy" or bias is not None:
        seen = f"loss={loss!r}" if loss != "cross-entropy" else "a bias"
        raise ArgumentError(f"relu must be False unless the loss is cross-entropy and bias None, got {seen}")
    if bool((H < 0).any()):
        raise ArgumentError(f"features must be >= 0 with relu=True, got {H.min().item():.3g}; pass relu=False")
    return ReLUImbalanced


def _prediction(problem: Problem) -> tuple[Solution | None, str]:
    """Return the minimum, or why there is none."""
    reason = ""
    for find in (closed_form,) if problem.nonnegative else (closed_form, ConvexSolver().solve):
        try:
            found = find(problem)
        except DimensionError as error:
            reason = f"no prediction: {error}"
            continue
        if found.exact or find is not closed_form:
            return found, ""
    return None, reason


def _class_logits(solution: Solution) -> Tensor:
    logits = solution.class_means @ solution.W.T
    return logits if solution.bias is None else logits + solution.bias


def _feature_norm(solution: Solution) -> Tensor:
    prices = solution.problem.rows(len(solution.H)).prices
    return (prices * solution.H.square().sum(dim=1)).sum().sqrt()
