"""The closed form of a problem, or the bound where none is known."""

from __future__ import annotations

from tightframe.errors import ArgumentError
from tightframe.ufm.forms.cross_entropy import cross_entropy_form
from tightframe.ufm.forms.deep import deep_squared_form
from tightframe.ufm.forms.margin import max_margin_form, unregularised_form
from tightframe.ufm.forms.mean_squared import mean_squared_form
from tightframe.ufm.forms.relu import relu_form
from tightframe.ufm.layer_peeled import layer_peeled_form
from tightframe.ufm.problems import (
    ULPM,
    CrossEntropyUFM,
    DeepUFM,
    LayerPeeled,
    MaxMargin,
    MeanSquaredUFM,
    Problem,
    ReLUImbalanced,
)
from tightframe.ufm.solution import Solution, on_cpu
from tightframe.ufm.structures import deep_form


@on_cpu
def closed_form(problem: Problem) -> Solution:
    """Return the global minimum of a model in closed form, or a good point and a lower bound where none is known.

    ``exact`` says which of the two, and ``reason`` by which theorem or why not; ``facts`` hold scales, norms and
    thresholds. What is known of each model is said by ``cross_entropy_form``, ``mean_squared_form``, ``relu_form``,
    ``max_margin_form``, ``unregularised_form``, ``deep_squared_form`` (all in :mod:`tightframe.ufm.forms`),
    ``layer_peeled_form`` and ``deep_form``.

    Args:
        problem: any model of :mod:`tightframe.ufm.problems`.

    Raises:
        ArgumentError: if the problem is none of them, or one of which nothing is known.
        DimensionError: if d is too small for the form.

    Example:
        >>> solution = closed_form(CrossEntropyUFM((5, 5, 5), dim=2, weight_decay=0.01, feature_decay=0.01))
        >>> round(solution.loss, 6), solution.exact
        (0.213667, True)
        >>> solution.gram_W / solution.gram_W[0, 0]
        tensor([[ 1.0000, -0.5000, -0.5000],
                [-0.5000,  1.0000, -0.5000],
                [-0.5000, -0.5000,  1.0000]], dtype=torch.float64)
    """
    match problem:
        case CrossEntropyUFM():
            return cross_entropy_form(problem)
        case MeanSquaredUFM():
            return mean_squared_form(problem)
        case ReLUImbalanced():
            return relu_form(problem)
        case LayerPeeled():
            return layer_peeled_form(problem)
        case ULPM():
            return unregularised_form(problem)
        case MaxMargin():
            return max_margin_form(problem)
        case DeepUFM():
            return deep_squared_form(problem) if problem.loss == "mse" else deep_form(problem)
    raise ArgumentError(f"problem must be a model of tightframe.ufm.problems, got {type(problem).__name__}")
