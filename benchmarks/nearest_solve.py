"""The nearest simplex ETF in closed form against the published trust region; and which way to its polar factor."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from threadpoolctl import threadpool_limits
from torch import Tensor, nn

from benchmarks import _nearest_peers as peers
from benchmarks._timing import Row, one_thread, race, report
from tightframe.frames import nearest_simplex_etf
from tightframe.linalg import haar_orthonormal, helmert_coordinates, helmert_product
from tightframe.nn import NearestETFClassifier
from tightframe.training import AGD, FreeFeatures

CONVERGED = 1e-12  # of Newton-Schulz: how far the rows are from orthonormal
DEVICES = ("cpu", "cuda") if torch.cuda.is_available() else ("cpu",)
CLOCKS = {"cpu": time.process_time, "cuda": time.perf_counter}


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
CASES = (*((512, 100, kappa, 7) for kappa in (1e1, 5e2, 2e3, 1e5)), (2048, 1000, 1e1, 2))


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


def eigenvectors(A: Tensor) -> Tensor:
    """Return the polar factor ``(n, d)`` from the Gram matrix, polished by a step of Newton-Schulz."""
    values, Q = torch.linalg.eigh(A @ A.mT)
    return newton_schulz_step((Q * values.rsqrt()) @ Q.mT @ A)


def eigenvectors_turned(A: Tensor) -> Tensor:
    """Return the same, then turned as the first derivative of the polar factor says, which makes A Vᵀ symmetric."""
    values, Q = torch.linalg.eigh(A @ A.mT)
    values = values.sqrt()
    V = newton_schulz_step((Q / values) @ Q.mT @ A)
    product = A @ V.mT
    turn = Q.mT @ (product - product.mT) @ Q / (values.unsqueeze(-1) + values)
    return newton_schulz_step(V + Q @ turn @ Q.mT @ V)


def thin_svd(A: Tensor) -> Tensor:
    left, _, right = torch.linalg.svd(A, full_matrices=False)
    return left @ right


def qr_then_svd(A: Tensor) -> Tensor:
    basis, R = torch.linalg.qr(A.mT)
    return thin_svd(R.mT) @ basis.mT


def newton_schulz(A: Tensor, smallest: float) -> Tensor:
    """Return the polar factor by the iteration, scaled for singular values in [smallest, 1] as it goes."""
    V, low = A, smallest
    for _ in range(100):
        factor = math.sqrt(3 / (1 + low + low**2))
        V, low = newton_schulz_step(V * factor), 0.5 * factor * low * (3 - (factor * low) ** 2)
        gram = V @ V.mT
        gram.diagonal().sub_(1)
        if torch.linalg.matrix_norm(gram) < CONVERGED:
            break
    return V


def newton_schulz_step(V: Tensor) -> Tensor:
    step = (V @ V.mT).mul_(-0.5)
    step.diagonal().add_(1.5)
    return step @ V


def factorised(n: int, d: int, kappa: float) -> tuple[Tensor, Tensor]:
    """Return a matrix ``(n, d)`` of condition number ``kappa`` and norm 1, and its polar factor."""
    generator = torch.Generator().manual_seed(0)
    left, right = haar_orthonormal(n, n, generator), haar_orthonormal(d, n, generator)
    values = torch.logspace(0, -math.log10(kappa), n, dtype=torch.float64)
    return (left * values) @ right.T, left @ right.T


def ways(d: int, K: int, kappa: float, rounds: int, device: str) -> list[Row]:
    """Return time, error, and time against that of the eigenvectors, of each way."""
    A, truth = (tensor.to(device) for tensor in factorised(K - 1, d, kappa))
    means = helmert_product(A.mT).mT
    calls: dict[str, Callable[[], Tensor]] = {
        "eigenvectors of the Gram matrix": lambda: eigenvectors(A),
        "the same, turned": lambda: eigenvectors_turned(A),
        "thin SVD": lambda: thin_svd(A),
        "QR, then SVD": lambda: qr_then_svd(A),
        "scaled Newton-Schulz": lambda: newton_schulz(A, 1 / kappa),
        "nearest_simplex_etf": lambda: nearest_simplex_etf(means, gradient="none").frame,
    }
    first, *_ = calls.values()
    rows = []
    for name, call in calls.items():
        timed = race(_finished(call, device), _finished(first, device), rounds, CLOCKS[device])
        found = call()
        if name == "nearest_simplex_etf":
            found = helmert_coordinates(found.mT).mT * math.sqrt((K - 1) / K)
        row = timed.costlier(f"{device}, {d} x {K}, condition {kappa:.0e}: {name}")
        rows.append(replace(row, peer=f"{_relative(found, truth):.1e}"))
    return rows


def _finished(call: Callable[[], Any], device: str) -> Callable[[], None]:
    def finished() -> None:
        call()
        if device == "cuda":
            torch.cuda.synchronize()

    return finished


def run_ways(cases: Sequence[tuple[int, int, float, int]] = CASES) -> list[Row]:
    return [row for device in DEVICES for case in cases for row in ways(*case, device)]


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
    columns = ("time", "relative error", "against the first")
    report("Ways to the polar factor of the means, d x K, float64", run_ways(), columns)


if __name__ == "__main__":
    main()
