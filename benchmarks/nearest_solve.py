"""The nearest simplex ETF in closed form against the published trust region."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from threadpoolctl import threadpool_limits
from torch import Tensor, nn

from benchmarks import _nearest_peers as peers
from benchmarks._timing import Row, one_thread, race, report
from tightframe.frames import nearest_simplex_etf
from tightframe.nn import NearestETFClassifier
from tightframe.training import AGD, FreeFeatures


class Size(NamedTuple):
    d: int
    K: int
    rounds: int
    target: float | None = None
    decay: float = 0.0
    dtype: torch.dtype = torch.float64


SIZES = (
    Size(512, 10, rounds=15),
    Size(512, 100, rounds=15, target=50),
    Size(512, 100, rounds=5, decay=1.0),
    Size(2048, 100, rounds=5),
    Size(2048, 1000, rounds=2, target=20, dtype=torch.float32),
)


def solve(size: Size) -> Row:
    task = peers.problem(size.d, size.K, decay=size.decay, dtype=size.dtype)
    H, start = peers.normalized(task.means).numpy(), task.previous.numpy()
    frame = peers.frame_of(task.previous)

    def ours() -> Tensor:
        return nearest_simplex_etf(task.means, previous=frame, proximal=task.proximal, gradient="none").frame

    kind = f"{size.dtype}".removeprefix("torch.") + (", singular values about 1/k" if size.decay else "")
    name = f"{size.d} x {size.K}, {kind}; peer: trust region"
    return race(ours, lambda: peers.trust_region(H, start), size.rounds).faster(name, size.target)


def agreement(d: int, K: int) -> list[Row]:
    """Compare what both find, in float64."""
    task = peers.problem(d, K, apart=True)
    lift = torch.eye(d, dtype=torch.float64)[-1]
    H, start = peers.normalized(task.means).numpy(), task.previous.numpy()
    found = nearest_simplex_etf(task.means, previous=peers.frame_of(task.previous), proximal=task.proximal).frame
    theirs = peers.trust_region(H, start)
    values = [float(peers.objective(H, U, start)) for U in (peers.orthonormal(found, lift).numpy(), theirs)]
    excess = values[0] - values[1]
    apart = _relative(peers.frame_of(torch.from_numpy(theirs)), found)
    name = f"{d} x {K}, float64"
    return [
        Row(
            f"{name}: objective", f"{values[0]:.6f}", f"{values[1]:.6f}", f"{excess:+.1e}", "<= 1e-10", excess <= 1e-10
        ),
        Row(f"{name}: ETF of the peer from ours", "-", "-", f"{apart:.1e}"),
    ]


def trajectory(classifier: Any, N: int, d: int, K: int, steps: int) -> tuple[Tensor, Tensor]:
    """Train free features in full batches; return the loss and the ETF of every step."""
    torch.manual_seed(0)
    features = FreeFeatures(N, d).double()
    optimizer = AGD(features.parameters(), gain=10.0)
    labels = torch.arange(N) % K
    losses, frames = [], []
    for _ in range(steps):
        loss = nn.functional.cross_entropy(classifier(features.weight, labels), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.detach())
        frames.append(classifier.weight)
    return torch.stack(losses), torch.stack(frames)


def training(N: int, d: int, K: int, steps: int) -> list[Row]:
    ours = NearestETFClassifier(d, K, proximal=peers.DELTA * (K - 1) / 2, dtype=torch.float64)
    (losses, frames), (their_losses, their_frames) = (
        trajectory(classifier, N, d, K, steps) for classifier in (ours, peers.TrustRegionClassifier(d, K))
    )
    rows = []
    off = (losses - their_losses).abs().max().item()
    apart = max(_relative(a, b) for a, b in zip(their_frames, frames, strict=True))
    name = f"{steps} training steps of UFM-{K}, N = {N}, d = {d}"
    for what, mine, theirs, value in (
        ("loss", f"{losses[-1]:.6f}", f"{their_losses[-1]:.6f}", off),
        ("ETF", "-", "-", apart),
    ):
        rows.append(
            Row(f"{name}: greatest difference of {what}", mine, theirs, f"{value:.1e}", "<= 1e-06", value <= 1e-6)
        )
    return rows


def run(
    sizes: Sequence[Size] = SIZES,
    d: int = 512,
    K: int = 100,
    ufm: tuple[int, int, int] = (1000, 512, 10),
    steps: int = 30,
) -> list[Row]:
    with threadpool_limits(1, user_api="blas"):  # NumPy's, beside that of torch
        return [*map(solve, sizes), *agreement(d, K), *training(*ufm, steps)]


def _relative(found: Tensor, truth: Tensor) -> float:
    return (torch.linalg.matrix_norm(found - truth) / torch.linalg.matrix_norm(truth)).item()


TINY: dict[str, Any] = {
    "sizes": (Size(16, 4, rounds=1, target=50), Size(16, 4, rounds=1, decay=1.0, dtype=torch.float32)),
    "d": 16,
    "K": 4,
    "ufm": (20, 12, 4),
    "steps": 3,
}


def main() -> None:
    one_thread()
    report("Nearest simplex ETF, d x K: a step of training, delta = 1e-3", run())


if __name__ == "__main__":
    main()
