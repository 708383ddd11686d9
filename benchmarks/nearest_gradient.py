"""The derivative of the nearest simplex ETF against the published declarative node."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from benchmarks import _nearest_peers as peers
from benchmarks._timing import Row, extra_memory, megabytes, one_thread, race, report
from tightframe.frames import nearest_simplex_etf

TARGETS = {20: 300.0, 50: 2000.0}
MEGABYTES = 200


def cotangent(d: int, K: int, dtype: torch.dtype) -> Tensor:
    """Draw a derivative of the loss by the ETF ``(K, d)``; it leaves the last dimension alone, as the means do."""
    drawn = torch.randn(K, d, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    drawn[:, -1] = 0
    return drawn.to(dtype)


def backwards(d: int, K: int, dtype: torch.dtype) -> tuple[Callable[[], Tensor], Callable[[], Tensor]]:
    """Return what gives the derivative by the normalised means, ``(K, d)``, ours and the published."""
    task = peers.problem(d, K, apart=True, dtype=dtype)
    H, grad = peers.normalized(task.means), cotangent(d, K, dtype)
    means = H.T.contiguous().requires_grad_()
    frame = nearest_simplex_etf(means, previous=peers.frame_of(task.previous), proximal=task.proximal).frame
    U = peers.orthonormal(frame.detach(), torch.eye(d, dtype=dtype)[-1])
    by_U = math.sqrt(K / (K - 1)) * (grad - grad.mean(dim=0)).T

    def ours() -> Tensor:
        return torch.autograd.grad(frame, means, grad, retain_graph=True)[0]

    def theirs() -> Tensor:
        by_H = peers.literal_node(H, U, task.previous, by_U)
        return (by_H - (by_H * H).sum() * H).T  # ours is the derivative through the normalisation

    return ours, theirs


def difference(d: int, K: int) -> Row:
    """Compare the two in float64, relative to the largest entry."""
    mine, theirs = (call() for call in backwards(d, K, torch.float64))
    value = ((mine - theirs).abs().max() / theirs.abs().max()).item()
    largest = (f"{side.abs().max():.6f}" for side in (mine, theirs))
    return Row(
        f"greatest entry and difference, {d} x {K}, float64", *largest, f"{value:.1e}", "<= 1e-10", value <= 1e-10
    )


def whole(d: int, K: int) -> Callable[[], Tensor]:
    """Return our forward and backward pass in float32."""
    task = peers.problem(d, K, dtype=torch.float32)
    frame, grad = peers.frame_of(task.previous), cotangent(d, K, torch.float32)
    means = task.means.requires_grad_()

    def call() -> Tensor:
        found = nearest_simplex_etf(means, previous=frame, proximal=task.proximal).frame
        return torch.autograd.grad(found, means, grad)[0]

    return call


def published(d: int, K: int) -> Callable[[], Tensor]:
    return backwards(d, K, torch.float32)[1]


def memory(large: tuple[int, int], small: tuple[int, int]) -> Row:
    """Compare peaks, ours of both passes at a size that the peer could not hold."""
    mine, theirs = extra_memory(whole, (16, 4), large), extra_memory(published, (16, 4), small)
    name = "peak extra memory, float32, {} x {}, both passes; peer: {} x {}, backward".format(*large, *small)
    met = mine <= MEGABYTES * 1e6
    return Row(name, megabytes(mine), megabytes(theirs), f"{mine / 1e6:.0f} MB", f"<= {MEGABYTES} MB", met)


def run(
    d: int = 512,
    classes: Sequence[int] = (10, 20, 50),
    rounds: int = 5,
) -> list[Row]:
    rows = [difference(d, K) for K in classes]
    for dtype in (torch.float64, torch.float32):
        kind = f"{dtype}".removeprefix("torch.")
        for K in classes:
            target = TARGETS.get(K) if dtype == torch.float64 else None
            timed = race(*backwards(d, K, dtype), rounds)
            rows.append(timed.faster(f"backward, {d} x {K}, {kind}; peer: declarative node", target))
    return rows


TINY: dict[str, Any] = {"d": 16, "classes": (4,), "rounds": 1}


def main() -> None:
    one_thread()
    report("Derivative of the nearest simplex ETF, d x K", [*run(), memory((2048, 1000), (512, 50))])


if __name__ == "__main__":
    main()
