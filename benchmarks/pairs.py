"""Peak memory of the metrics that look at all pairs of classes, against one float64 matrix of them."""

from __future__ import annotations

import argparse
from collections.abc import Callable

import torch
from torch import Tensor

from benchmarks._timing import Row, extra_memory, megabytes, one_thread, report
from tightframe import functional as F
from tightframe.moments import ClassMoments

OF_MEANS = ("nc2_equiangularity", "nc2_max_angle", "nc2_gram", "nc2_min_separation", "gnc2", "cdnv")
WITH_ROWS = ("nc3_gram", "frame_cosine_error")


def prepare(name: str, K: int, d: int) -> Callable[[], Tensor]:
    generator = torch.Generator().manual_seed(0)
    moments = ClassMoments(K, d)
    for _ in range(2):
        moments.update(torch.randn(K, d, generator=generator), torch.arange(K))
    moments.mean  # noqa: B018  # reading finishes the sums
    rows = torch.randn(K, d, generator=generator)
    metric = getattr(F, name)
    return lambda: metric(moments, rows) if name in WITH_ROWS else metric(moments)


def memory(name: str, K: int, d: int, at_most: float) -> Row:
    used, matrix = extra_memory(prepare, (name, 9, 8), (name, K, d)), 8.0 * K**2
    target = f"<= {megabytes(at_most)}"
    return Row(name, megabytes(used), megabytes(matrix), f"{used / matrix:.2f} of it", target, used <= at_most)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--classes", type=int, default=6000)
    parser.add_argument("--dim", type=int, default=512)
    K, d = (options := parser.parse_args()).classes, options.dim
    one_thread()
    at_most = 200e6 if K <= 6000 else 4e9
    rows = [memory(name, K, d, at_most) for name in (*OF_MEANS, *WITH_ROWS)]
    report(f"Peak extra memory, K = {K}, d = {d}", rows, ("ours", "one K x K matrix", "share"))


if __name__ == "__main__":
    main()
