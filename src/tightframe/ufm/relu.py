"""Cross-entropy of nonnegative features: an orthogonal class mean each, and the classes that die."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from tightframe.ufm.problem import Penalised
from tightframe.ufm.solution import Solution, solution_of


@dataclass(frozen=True, repr=False)
class ReLUImbalanced(Penalised):
    r"""Cross-entropy of nonnegative features, H >= 0, without bias (Dang et al. 2024).

    The arguments are those of :class:`~tightframe.ufm.CrossEntropyUFM`.
    """

    @property
    def nonnegative(self) -> bool:
        """True."""
        return True


def relu_form(problem: ReLUImbalanced) -> Solution:
    r"""Return the minimum of cross-entropy with nonnegative features, for any counts and weights.

    The problem decouples (Dang et al. 2024, arXiv 2401.02058). With :math:`\sigma = \sqrt{\lambda_W\lambda_H}` and
    :math:`c_k = \sigma \sqrt{(K-1)/K} / (\omega_k\sqrt{n_k})` the logits of class k are :math:`a_k (e_k - 1/K)`,

    .. math:: a_k = \bigl[\log\bigl((K-1)(1/c_k - 1)\bigr)\bigr]_+, \qquad
        \lVert h_k\rVert^2 = \sqrt{\frac{\lambda_W (K-1)}{\lambda_H K n_k}}\, a_k, \qquad
        w_j = \sum_k \frac{a_k}{\lVert h_k\rVert^2} (\delta_{jk} - 1/K)\, h_k

    and the class means are orthogonal. Class k dies, :math:`h_k = 0`, iff
    :math:`\omega_k \sqrt{n_k} \le \sigma \sqrt{K/(K-1)}`, whatever the others do; all dead classes share one w. It is
    global since the classes' slopes point away from each other, so no nonnegative combination of them is steeper.

    Args:
        problem: d at least the number of classes that live.

    Returns:
        The solution, the features of class k on an axis of its own; ``facts`` hold ``sigma``, ``active_classes``,
        ``zero_sigma`` and ``death_sigma``, from which all and the first class die, ``death_count`` if all samples weigh
        the same, and ``squared_norm_shared_w`` if there are dead classes.

    Raises:
        DimensionError: if d is smaller than the number of classes that live.

    Example:
        >>> problem = ReLUImbalanced((40, 9, 1), dim=3, weight_decay=0.02, feature_decay=0.02)
        >>> relu_form(problem).H  # the third class is too small
        tensor([[0.5796, 0.0000, 0.0000],
                [0.0000, 0.6756, 0.0000],
                [0.0000, 0.0000, 0.0000]], dtype=torch.float64)
    """
    sigma, K, counts = problem.sigma, problem.num_classes, problem.n
    thresholds = problem.strengths * math.sqrt(1 - 1 / K)
    scales = _class_scales(problem, thresholds)
    active = scales > 0
    problem.require_dim(int(active.sum()), "the orthogonal features of the active classes")
    ratio = math.sqrt(problem.weight_decay / problem.feature_decay)
    lengths = (ratio * math.sqrt(1 - 1 / K) / counts.sqrt() * scales).sqrt()
    axis = active.cumsum(dim=0) - 1
    H, pulls = (torch.zeros(K, problem.dim, dtype=torch.float64) for _ in range(2))
    H[active, axis[active]] = lengths[active]
    pulls[active, axis[active]] = scales[active] / lengths[active]
    W = pulls - pulls.sum(dim=0) / K
    facts = {
        "sigma": sigma,
        "zero_sigma": thresholds.max().item(),
        "death_sigma": thresholds.min().item(),
        "active_classes": int(active.sum()),
    }
    weights = problem.class_weights / counts
    if problem.sample_weights is None or bool((weights == weights[0]).all()):
        facts["death_count"] = (sigma / weights[0].item()) ** 2 * K / (K - 1)
    if not bool(active.all()):
        facts["squared_norm_shared_w"] = W[~active][0].square().sum().item()
    reason = "the classes decouple: their slopes point away from each other"
    return solution_of(problem, W, H, None, facts, exact=True, reason=reason)


def _class_scales(problem: ReLUImbalanced, thresholds: Tensor) -> Tensor:
    """Return a_k ``(K,)``: with c_k = (1 - 1/K) σ/threshold_k it is positive iff σ is below the threshold."""
    K = problem.num_classes
    ratio = thresholds / problem.sigma
    return (K * ratio - K + 1).clamp(min=1.0).log()
