"""NC1 (pinv) from gathered moments against the pseudo-inverse of a d x d covariance."""

from __future__ import annotations

import torch

from benchmarks._timing import Row, one_thread, race, report
from tightframe.functional import nc1
from tightframe.moments import ClassMoments


def run(K: int = 100, d: int = 2048, per_class: int = 20, rounds: int = 3) -> list[Row]:
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(K).repeat(per_class)
    features = torch.randn(K, d, generator=generator)[labels] + torch.randn(K * per_class, d, generator=generator)
    moments = ClassMoments.from_samples(features, labels, K, scatter=True)
    centered = moments.centered_means().float()
    between, within = centered.T @ centered / K, moments.scatter.float() / labels.numel()

    def peer() -> float:
        return (torch.trace(within @ torch.linalg.pinv(between)) / K).item()

    torch.testing.assert_close(nc1(moments).item(), peer(), rtol=1e-3, atol=0)  # the two sides mean the same
    result = race(lambda: nc1(moments), peer, rounds)
    return [result.faster(f"nc1, K = {K}, d = {d}; peer: pinv of the covariance, float32", at_least=10)]


TINY = {"K": 4, "d": 16, "rounds": 1}


def main() -> None:
    one_thread()
    report("NC1 (pinv) once the moments are gathered", run())


if __name__ == "__main__":
    main()
