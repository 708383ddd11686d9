"""Minority collapse before it happens: whether classes will share one vector, and what keeps them apart."""

from __future__ import annotations

import math
from dataclasses import dataclass

from tightframe.errors import ArgumentError
from tightframe.ufm.cross_entropy import CrossEntropyUFM
from tightframe.ufm.layer_peeled import LayerPeeled, groups_of, minority_collapse_threshold


@dataclass(frozen=True)
class MinorityCollapse:
    """Whether some classes that are alike share one class vector at the minimum, and what keeps their vectors apart.

    Args:
        classes: the classes that are alike, in count and in weight.
        margin: the weight of these classes over the weight where they collapse: above 1 their vectors are distinct.
            Infinite if there is no such weight, as of a class by itself.
        weighting: the factor on the weight of their samples above which the vectors are distinct; 1 if they are.
        duplication: the number of copies of each of their samples above which they are; infinite if no number of copies
            helps.
    """

    classes: tuple[int, ...]
    margin: float
    weighting: float
    duplication: float

    @property
    def collapsed(self) -> bool:
        """Whether all these classes have one and the same class vector."""
        return self.margin <= 1


def minority_collapse(problem: LayerPeeled | CrossEntropyUFM, class_index: int | None = None) -> MinorityCollapse:
    r"""Return whether the classes like one share its class vector at the minimum, and the remedies.

    With penalties, two or more classes of n samples of weight ω have identical class vectors iff

    .. math:: \omega \sqrt n \le \sigma = \sqrt{\lambda_W \lambda_H},

    whatever the other classes and the bias are. A weight acts on ω. A copy of a sample has a feature of its own, for
    which it pays, so m copies act on :math:`\sqrt n` as :math:`\sqrt m`; if all samples weigh 1/N, copies raise N too:
    with :math:`n_+` samples in all classes alike they help iff :math:`\sqrt{m n} > \sigma\,(N + (m - 1)\, n_+)`, which
    is an interval of m that begins at ``duplication``, or no m at all.

    In the layer-peeled model of two groups the ratio of class weights R is compared with
    :func:`~tightframe.ufm.layer_peeled.minority_collapse_threshold` R_0. A weight and copies there do the same: w of
    either makes R/w of R. At w = R all classes weigh the same, and the minimum is the exact simplex ETF.

    Args:
        problem: d at least the number of different class vectors less one. A :class:`LayerPeeled` one has at most two
            different class weights :math:`n_k \omega_k`.
        class_index: a class of the group asked about; by default the lightest one.

    Raises:
        ArgumentError: if there is no such class, or a layer-peeled model has more than two class weights.
        DimensionError: if d is smaller.

    Example:
        >>> problem = CrossEntropyUFM((90, 90, 10, 10), dim=4, weight_decay=0.02, feature_decay=0.02)
        >>> fate = minority_collapse(problem)
        >>> fate.classes, fate.collapsed
        ((2, 3), True)
        >>> round(fate.margin, 4), round(fate.weighting, 4), round(fate.duplication, 4)
        (0.7906, 1.2649, 1.9015)
    """
    if not isinstance(problem, LayerPeeled | CrossEntropyUFM):
        raise ArgumentError(f"problem must be LayerPeeled or CrossEntropyUFM, got {type(problem).__name__}")
    K = problem.num_classes
    if class_index is not None and not 0 <= class_index < K:
        raise ArgumentError(f"class_index must lie in 0..{K - 1}, got {class_index}")
    if isinstance(problem, LayerPeeled):
        fates = [_under_budgets(problem, k) for k in range(K)]
        lightest = int(problem.class_weights.argmin())
    else:
        fates = [_under_penalties(problem, k) for k in range(K)]
        lightest = int(problem.strengths.argmin())
    # Classes that share a vector need no dimension of their own.
    vectors = {fate.classes if fate.collapsed else (k,) for k, fate in enumerate(fates)}
    problem.require_dim(len(vectors) - 1, "the theory of minority collapse")
    return fates[lightest if class_index is None else class_index]


def _under_budgets(problem: LayerPeeled, class_index: int) -> MinorityCollapse:
    heavy, values = groups_of(problem)
    if len(values) > 2:
        raise ArgumentError(
            f"counts and sample_weights must give at most two class weights, got {len(values)}: no threshold is known; "
            "solve the problem numerically"
        )
    light = ~heavy if len(values) == 2 else heavy
    group = light if light[class_index] else heavy
    classes = tuple(group.nonzero().squeeze(1).tolist())
    margin = math.inf
    if len(values) == 2 and group is light:
        budgets = problem.weight_budget, problem.feature_budget
        threshold = minority_collapse_threshold(int(heavy.sum()), len(classes), *budgets)
        weights = problem.class_weights
        margin = threshold * (weights[light].mean() / weights[heavy].mean()).item()
    factor = max(1.0, 1 / margin)
    return MinorityCollapse(classes, margin, factor, factor)


def _under_penalties(problem: CrossEntropyUFM, k: int) -> MinorityCollapse:
    strengths = problem.strengths
    kinds = list(zip(problem.counts, problem.sample_weights or problem.counts, strict=True))
    classes = tuple(j for j, kind in enumerate(kinds) if kind == kinds[k])
    if len(classes) == 1:
        return MinorityCollapse(classes, math.inf, 1.0, 1.0)
    margin = strengths[k].item() / problem.sigma
    if margin > 1:
        return MinorityCollapse(classes, margin, 1.0, 1.0)
    if problem.sample_weights is not None:
        return MinorityCollapse(classes, margin, 1 / margin, 1 / margin**2)
    share = len(classes) * problem.counts[k] / problem.num_samples
    return MinorityCollapse(classes, margin, 1 / margin, _copies_of_mean(margin, share))


def _copies_of_mean(margin: float, share: float) -> float:
    """Return the smallest m >= 1 with margin √m >= 1 + (m - 1) share, where the samples copied are a share of N."""
    discriminant = margin**2 - 4 * share * (1 - share)
    if discriminant < 0:
        return math.inf
    # The smaller root of share m - margin √m + 1 - share, written so that nothing cancels where the share is small.
    root = 2 * (1 - share) / (margin + math.sqrt(discriminant))
    return root**2 if root >= 1 else math.inf
