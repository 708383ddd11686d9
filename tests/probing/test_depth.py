import math

import pytest
import torch

from tightframe.errors import ArgumentError, EmptyDataError
from tightframe.probing import effective_depth

NAN = math.nan


@pytest.mark.parametrize(
    ("curve", "first", "suffix"),
    [
        ([0.0], 1, 1),
        ([0.3, 0.2, 0.01], 3, 3),  # an error of exactly epsilon passes
        ([0.3, 0.01, 0.011], 2, None),
        ([0.3, 0.005, 0.04, 0.0, 0.0], 2, 4),
        ([0.0, 0.0, 0.0], 1, 1),
        ([0.0, 0.5, 0.0, 0.5], 1, None),
        ([0.3, 0.2, 0.1], None, None),
        ([NAN, 0.0, 0.0], 2, 2),
        ([0.0, NAN, 0.0], 1, 3),
        ([0.0, 0.0, NAN], 1, None),
        ([NAN, NAN], None, None),
        ([math.inf, 0.0], 2, 2),
    ],
)
def test_worked_curves(curve, first, suffix):
    assert effective_depth(curve, mode="first") == first
    assert effective_depth(curve, mode="suffix") == effective_depth(curve) == suffix
    assert effective_depth(tuple(curve)) == effective_depth(torch.tensor(curve, dtype=torch.float64)) == suffix


@pytest.mark.parametrize(("epsilon", "first", "suffix"), [(0.0, 4, 4), (0.1, 3, 3), (0.4, 1, 3), (0.9, 1, 1)])
def test_epsilon_decides(epsilon, first, suffix):
    curve = [0.4, 0.5, 0.1, 0.0]
    assert effective_depth(curve, epsilon, "first") == first
    assert effective_depth(curve, epsilon, "suffix") == suffix


@pytest.mark.parametrize("seed", range(20))
def test_suffix_is_the_first_of_a_tail_that_passes(seed):
    curve = (torch.rand(7, generator=torch.Generator().manual_seed(seed)) * 0.3).tolist()
    tails = [i for i in range(1, 8) if all(error <= 0.2 for error in curve[i - 1 :])]
    assert effective_depth(curve, 0.2) == (min(tails) if tails else None)


@pytest.mark.parametrize(
    ("options", "error", "text"),
    [
        ({"curve": []}, EmptyDataError, "at least one layer"),
        ({"epsilon": 1.0}, ArgumentError, r"epsilon must lie in \[0, 1\), got 1.0"),
        ({"epsilon": -0.01}, ArgumentError, "got -0.01"),
        ({"epsilon": NAN}, ArgumentError, "got nan"),
        ({"mode": "last"}, ArgumentError, "'suffix', 'first', got 'last'"),
    ],
)
def test_bad_input(options, error, text):
    with pytest.raises(error, match=text):
        effective_depth(**{"curve": [0.1], **options})
