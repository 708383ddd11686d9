"""Certificates of trained networks: last-layer features and classifier as a point of an unconstrained-feature model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from tightframe.errors import (
    ArgumentError,
    DimensionError,
    EmptyDataError,
    ShapeError,
    check_choice,
    check_features,
    check_finite,
    check_label_range,
    check_labels,
)
from tightframe.ufm.certificate import Certificate, verdict
from tightframe.ufm.certify import certify
from tightframe.ufm.closed_form import closed_form
from tightframe.ufm.convex import ConvexSolver
from tightframe.ufm.duality import dual_bound
from tightframe.ufm.objective import objective, row_weights
from tightframe.ufm.problems import CrossEntropyUFM, MeanSquaredUFM, ReLUImbalanced, check_penalty
from tightframe.ufm.solution import Solution


@dataclass(frozen=True)
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
    H, W, b, counts = _checked(features, labels, weight, bias)
    kind = _kind(loss, relu, b, H)
    # The bias decays as the weight does, as in an optimiser with one group.
    decay = None if b is None else weight_decay if bias_decay is None else bias_decay
    problem = _problem(H, W, counts, weight_decay, feature_decay, decay, kind, sample_weights)
    value = objective(problem, W, H, b).item()
    point = Solution(problem, W, H, b, value, False, "a trained network")
    predicted, note = _prediction(problem)
    certificate = certify(problem, point)
    if predicted is not None:
        bound = dual_bound(problem, predicted.W, predicted.H, predicted.bias)
        certificate = replace(certificate, lower_bound=max(certificate.lower_bound, bound))
        certificate = replace(certificate, explanation=verdict(certificate))
    source = "given" if feature_decay is not None else "inferred from the norms of weight and features"
    note = f"feature_decay = {problem.feature_decay:.4g} is {source}" + (f"; {note}" if note else "")
    return NetworkCertificate(certificate, point, predicted, note)


def _problem(
    H: Tensor,
    W: Tensor,
    counts: tuple[int, ...],
    weight_decay: float,
    feature_decay: float | None,
    bias_decay: float | None,
    kind: type[CrossEntropyUFM | MeanSquaredUFM | ReLUImbalanced],
    sample_weights: Sequence[float] | None,
) -> CrossEntropyUFM | MeanSquaredUFM | ReLUImbalanced:
    check_penalty("weight_decay", weight_decay)
    if feature_decay is None:
        squares = W.square().sum().item(), H.square().sum().item()
        if min(squares) == 0:
            raise ArgumentError("features and weight must not be zero to infer feature_decay from them; pass it")
        feature_decay = weight_decay * squares[0] / squares[1]
    weights = None if sample_weights is None else tuple(sample_weights)
    if issubclass(kind, ReLUImbalanced):
        return kind(counts, H.shape[1], weight_decay, feature_decay, weights)
    return kind(counts, H.shape[1], weight_decay, feature_decay, weights, bias_decay)


def _kind(
    loss: str, relu: bool, bias: Tensor | None, H: Tensor
) -> type[CrossEntropyUFM | MeanSquaredUFM | ReLUImbalanced]:
    check_choice("loss", loss, ("cross-entropy", "mse"))
    if not relu:
        return CrossEntropyUFM if loss == "cross-entropy" else MeanSquaredUFM
    if loss != "cross-entropy" or bias is not None:
        seen = f"loss={loss!r}" if loss != "cross-entropy" else "a bias"
        raise ArgumentError(f"relu must be False unless the loss is cross-entropy and bias None, got {seen}")
    if bool((H < 0).any()):
        raise ArgumentError(f"features must be >= 0 with relu=True, got {H.min().item():.3g}; pass relu=False")
    return ReLUImbalanced


def _prediction(problem: CrossEntropyUFM | MeanSquaredUFM | ReLUImbalanced) -> tuple[Solution | None, str]:
    """Return the minimum, or why there is none."""
    try:
        form = closed_form(problem)
        if form.exact or isinstance(problem, ReLUImbalanced):
            return form, ""
    except DimensionError as error:
        if isinstance(problem, ReLUImbalanced):
            return None, f"no prediction: {error}"
    try:
        return ConvexSolver().solve(problem), ""
    except DimensionError as error:
        return None, f"no prediction: {error}"


def _class_logits(solution: Solution) -> Tensor:
    logits = solution.class_means @ solution.W.T
    return logits if solution.bias is None else logits + solution.bias


def _feature_norm(solution: Solution) -> Tensor:
    prices = row_weights(solution.problem, solution.H)[1]
    return (prices * solution.H.square().sum(dim=1)).sum().sqrt()


def _checked(
    features: Tensor, labels: Tensor, weight: Tensor, bias: Tensor | None
) -> tuple[Tensor, Tensor, Tensor | None, tuple[int, ...]]:
    """Return features sorted by class, weight and bias in float64 on the CPU, and the counts."""
    check_features(features)
    check_labels(labels, features)
    check_features(weight, features.shape[1], name="weight")
    num_classes = weight.shape[0]
    if bias is not None and (not bias.is_floating_point() or bias.shape != (num_classes,)):
        raise ShapeError(
            f"bias must be floating point of shape (K,) = ({num_classes},), got {bias.dtype} {tuple(bias.shape)}"
        )
    check_label_range(labels, num_classes)
    for name, values in (("features", features), ("weight", weight), ("bias", bias)):
        if values is not None:
            check_finite(values, name)
    labels = labels.detach().cpu().long()
    counts = labels.bincount(minlength=num_classes)
    if not bool(counts.all()):
        missing = (counts == 0).nonzero().flatten().tolist()
        raise EmptyDataError(
            f"labels must hold every class of K = {num_classes}, got none of {missing[:10]}; pass the samples of all "
            "classes that the network was trained on"
        )
    H, W = (x.detach().to("cpu", torch.float64) for x in (features, weight))
    b = None if bias is None else bias.detach().to("cpu", torch.float64)
    return H[labels.argsort(stable=True)], W, b, tuple(counts.tolist())
