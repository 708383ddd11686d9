"""CDNV against the form that holds the differences of all pairs of class means at once."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from benchmarks._timing import Row, extra_memory, megabytes, one_thread, race, report
from tightframe.functional import cdnv
from tightframe.moments import ClassMoments


def draw(K: int, d: int) -> ClassMoments:
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(K).repeat(2)
    return ClassMoments.from_samples(torch.randn(2 * K, d, generator=generator), labels, K, scatter=False)


def ours(K: int, d: int) -> Callable[[], Tensor]:
    moments = draw(K, d)
    moments.mean  # noqa: B018  # reading finishes the sums
    return lambda: cdnv(moments)


def untiled(K: int, d: int) -> Callable[[], Tensor]:
    """Return the pairwise form in float32, as published code has it."""
    moments = draw(K, d)
    means, variances = moments.mean.float(), (moments.trace / moments.count).float()

    def call() -> Tensor:
        squares = (means.unsqueeze(1) - means.unsqueeze(0)).square().sum(dim=2)
        ratios = (variances.unsqueeze(1) + variances) / (2 * squares)
        return ratios[~torch.eye(K, dtype=torch.bool)].mean()

    return call


def times(K: int, d: int, rounds: int) -> Row:
    torch.testing.assert_close(ours(9, 8)().float(), untiled(9, 8)(), rtol=1e-4, atol=0)  # the two mean the same
    name = f"time, K = {K}, d = {d}; peer: untiled pairs, float32"
    return race(ours(K, d), untiled(K, d), rounds).faster(name, at_least=20)


def memory(K: int, d: int) -> Row:
    mine, theirs = (extra_memory(side, (8, 8), (K, d)) for side in (ours, untiled))
    ratio = theirs / mine
    name = f"peak extra memory, K = {K}, d = {d}"
    return Row(name, megabytes(mine), megabytes(theirs), f"{ratio:.0f}x leaner", ">= 50x", ratio >= 50)


def main() -> None:
    one_thread()
    report("CDNV", [times(1000, 512, rounds=3), memory(1000, 512)])


if __name__ == "__main__":
    main()
