"""Test-time decision rules: scores that rank the classes in another order than the logits, at no cost in training.

Their scores can be used like logits: by the severity metrics, by ``argmax``.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from tightframe.errors import check_features, check_finite
from tightframe.functional.ranking import check_device
from tightframe.hierarchy import check_distances


def conditional_risk(logits: Tensor, distances: Tensor) -> Tensor:
    r"""Return minus the conditional risk of every class (CRM, Karthik et al., ICLR 2021).

    .. math:: -r_k = -\sum_j D_{kj}\,p_j, \qquad p = \operatorname{softmax}(z)

    Its argmax is the class of least expected distance, which need not be the likeliest. Risks are exact to rounding,
    1e-16 of the largest distance: the order of classes that are less likely than that has no meaning.

    Args:
        logits: Logits ``(B, K)``, floating point, finite; log-probabilities do as well.
        distances: Distances ``(K, K)``, see ``hierarchy.check_distances``.

    Returns:
        ``(B, K)`` float64 in [-max D, 0], differentiable in the logits.

    Raises:
        DtypeError, ShapeError, DeviceError: if the tensors do not fit.
        NonFiniteError: if a logit is NaN or infinite.

    Example:
        >>> from tightframe.hierarchy import Tree
        >>> D = Tree.from_nested({"E": ["A", "B"], "F": ["C", "D"]}).distances()
        >>> conditional_risk(torch.tensor([[2.0, 1.0, 0.0, -1.0]]), D)
        tensor([[-0.4753, -0.8823, -1.7937, -1.8487]], dtype=torch.float64)
    """
    _check(logits, distances)
    return _minus_risk(logits, distances)


def tree_order(logits: Tensor, distances: Tensor) -> Tensor:
    """Return scores that rank the likeliest class first and the others by their distance to it.

    Of classes at one distance the likelier ranks first, of equally likely ones the lower index. The decision is that
    of the logits, so top-1 metrics stay the same; only the order behind it changes. Every study of rankings needs this
    baseline: it costs nothing.

    Args:
        logits: Logits ``(B, K)``, floating point, finite.
        distances: Distances ``(K, K)``, see ``hierarchy.check_distances``.

    Returns:
        ``(B, K)`` float64: minus the place of each class, 0 for the first.

    Raises:
        DtypeError, ShapeError, DeviceError: if the tensors do not fit.
        NonFiniteError: if a logit is NaN or infinite.

    Example:
        >>> from tightframe.hierarchy import Tree
        >>> D = Tree.from_nested({"E": ["A", "B"], "F": ["C", "D"]}).distances()
        >>> tree_order(torch.tensor([[2.0, -3.0, 0.0, 1.0]]), D)
        tensor([[ 0., -1., -3., -2.]], dtype=torch.float64)
    """
    _check(logits, distances)
    return _minus_place(logits, distances)


def _minus_risk(logits: Tensor, distances: Tensor) -> Tensor:
    # D is symmetric. In float32 the product would make equal what is nearly equal.
    return -(logits.double().softmax(dim=1) @ distances.double())


def _minus_place(logits: Tensor, distances: Tensor) -> Tensor:
    by_logit = logits.detach().sort(dim=1, descending=True, stable=True).indices
    away = distances.detach()[by_logit[:, 0]].gather(1, by_logit)
    order = by_logit.gather(1, away.sort(dim=1, stable=True).indices)
    scores = torch.arange(0, -order.shape[1], -1, dtype=torch.float64, device=order.device)
    return torch.empty_like(order, dtype=torch.float64).scatter_(1, order, scores.expand(order.shape))


DECISIONS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "argmax": lambda logits, distances: logits,
    "crm": _minus_risk,
    "tree-order": _minus_place,
}
"""Every rule by name, for input that was checked before."""


def _check(logits: Tensor, distances: Tensor) -> None:
    check_distances(distances)
    check_features(logits, distances.shape[0], "logits")
    check_finite(logits, "logits")
    check_device(distances, logits)
