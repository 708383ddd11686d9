"""The check of matrices of class distances."""

from __future__ import annotations

import re

import numpy as np
import pytest
import torch

from tightframe.errors import ArgumentError, DtypeError, ShapeError
from tightframe.hierarchy import check_distances

from .material import GOLDEN


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ((1, 3, 0.0), "positive between different classes, got 0.0 and back 2.0 for classes 1 and 3"),
        ((2, 2, 0.5), "exactly zero on the diagonal, got 0.5 for classes 2 and 2"),
        ((0, 2, 1.5), "distances must be symmetric, got 1.5 and back 2.0 for classes 0 and 2"),
        ((3, 1, -1.0), "not be negative, got -1.0 and back 2.0 for classes 3 and 1"),
        ((3, 1, float("nan")), "be finite, got nan and back 2.0 for classes 3 and 1"),
        ((0, 1, float("inf")), "be finite, got inf and back 1.0 for classes 0 and 1"),
    ],
)
def test_wrong_distances_name_the_pair(change: tuple[int, int, float], message: str) -> None:
    distances = torch.tensor(GOLDEN)
    check_distances(distances, at_least=4)
    distances[change[0], change[1]] = change[2]
    with pytest.raises(ArgumentError, match=re.escape(message)):
        check_distances(distances)


def test_wrong_form_of_distances() -> None:
    with pytest.raises(DtypeError, match=re.escape("got torch.int64")):
        check_distances(torch.zeros(2, 2, dtype=torch.long))
    with pytest.raises(DtypeError, match="got ndarray"):
        check_distances(np.zeros((2, 2)))  # type: ignore[arg-type]
    for shape in ((3,), (2, 3), (0, 0)):
        with pytest.raises(ShapeError, match=re.escape(f"(K, K) with K >= 1, got {shape}")):
            check_distances(torch.zeros(shape))
    with pytest.raises(ShapeError, match=re.escape("heights must have shape (K, K) with K >= 5, got (4, 4)")):
        check_distances(torch.tensor(GOLDEN), at_least=5, name="heights")
