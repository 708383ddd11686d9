"""The flow against an exact solution, against small steps in time, and by what it must keep."""

import math

import pytest
import torch

from tightframe.errors import ArgumentError, ShapeError
from tightframe.ufm import ULPM, CrossEntropyUFM, MaxMargin, closed_form
from tightframe.ufm.convex import ConvexSolver
from tightframe.ufm.flow import LogTimeFlow


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def simplex_start(K, n, a):
    """Return balanced W and H with logits a (I - 11ᵀ/K)."""
    centering = torch.eye(K, dtype=torch.float64) - 1 / K
    return math.sqrt(a * math.sqrt(n)) * centering, math.sqrt(a / math.sqrt(n)) * centering


def time_to(a, start, K, n):
    """Return t at which the scale is a: dt = (e^a + K - 1) / (2 √n K a) da, by Gauss-Legendre on short intervals."""
    pieces = max(1, math.ceil((a - start) / 0.25))
    edges = torch.linspace(start, a, pieces + 1, dtype=torch.float64)
    nodes = torch.tensor([-math.sqrt(3 / 5), 0.0, math.sqrt(3 / 5)], dtype=torch.float64)
    weights = torch.tensor([5 / 9, 8 / 9, 5 / 9], dtype=torch.float64)
    total = 0.0
    for _ in range(6):  # Richardson's halving until nothing changes any more
        half = edges.diff() / 2
        x = (edges[:-1] + half).unsqueeze(1) + half.unsqueeze(1) * nodes
        total = (half.unsqueeze(1) * weights * (x.exp() + K - 1) / (2 * math.sqrt(n) * K * x)).sum().item()
        edges = torch.linspace(start, a, 2 * len(edges) - 1, dtype=torch.float64)
    return total


@pytest.mark.parametrize(("K", "n"), [(2, 1), (4, 5), (10, 3)])
def test_balanced_simplex_follows_its_equation_to_late_times(K, n):
    a0 = 0.3
    problem = ULPM((n,) * K, K)
    trajectory = LogTimeFlow(start=simplex_start(K, n, a0), records=12).run(problem)
    assert trajectory.reason == "t = 1e+12 reached"
    assert trajectory.times[-1].item() == pytest.approx(1e12, rel=1e-12)
    for t, W, H, loss, norm in zip(
        trajectory.times[1:],
        trajectory.W[1:],
        trajectory.H[1:],
        trajectory.losses[1:],
        trajectory.norms[1:],
        strict=True,
    ):
        Z = H @ W.T
        a = (Z[0, 0] - Z[0, 1]).item()
        assert time_to(a, a0, K, n) == pytest.approx(t.item(), rel=1e-8)
        assert loss.item() == pytest.approx(K * n * math.log1p((K - 1) * math.exp(-a)), rel=1e-10)
        assert norm.item() == pytest.approx(2 * (K - 1) * math.sqrt(n) * a, rel=1e-10)
    # L ≈ (K - 1)√n / (2 t a)
    last = (K - 1) * math.sqrt(n) / (2e12 * a)
    assert trajectory.losses[-1].item() == pytest.approx(last, rel=0.05)
    assert trajectory.primal[-1].item() == pytest.approx((K - 1) * math.sqrt(n), rel=1e-9)
    assert trajectory.gaps[-1].abs() < 1e-8


@pytest.mark.parametrize("per_sample", [False, True])
def test_agrees_with_small_steps_in_time(per_sample):
    counts, d, T = (4, 2, 1), 3, 5.0
    W, H = 0.7 * draw(3, d), 0.7 * draw(7 if per_sample else 3, d, seed=1)
    end = LogTimeFlow(final_time=T, start=(W, H), records=3).run(ULPM(counts, d))
    labels = torch.arange(3).repeat_interleave(torch.tensor(counts))
    rows = labels if not per_sample else torch.arange(7)

    def velocity(state):
        leaves = [part.clone().requires_grad_() for part in state]
        # Of samples that share a feature each moves it by the gradient of one of them.
        loss = torch.nn.functional.cross_entropy(leaves[1][rows] @ leaves[0].T, labels, reduction="sum")
        gradients = torch.autograd.grad(loss, leaves)
        shared = torch.ones(7) if per_sample else torch.tensor(counts)
        return -gradients[0], -gradients[1] / shared.double().unsqueeze(1)

    def shifted(state, slope, h):
        return tuple(x + h * v for x, v in zip(state, slope, strict=True))

    state, steps = (W, H), 1000
    h = T / steps
    for _ in range(steps):  # the classical Runge-Kutta method
        k1 = velocity(state)
        k2 = velocity(shifted(state, k1, h / 2))
        k3 = velocity(shifted(state, k2, h / 2))
        k4 = velocity(shifted(state, k3, h))
        mean = tuple((a + 2 * b + 2 * c + e) / 6 for a, b, c, e in zip(k1, k2, k3, k4, strict=True))
        state = shifted(state, mean, h)
    torch.testing.assert_close(end.W[-1], state[0], rtol=0, atol=1e-9)
    torch.testing.assert_close(end.H[-1], state[1], rtol=0, atol=1e-9)


@pytest.mark.parametrize("counts", [(3,) * 4, (30, 10, 2, 1)])
@pytest.mark.parametrize("per_sample", [False, True])
def test_what_a_flow_keeps_and_proves(counts, per_sample):
    problem = ULPM(counts, 5)
    trajectory = LogTimeFlow(per_sample=per_sample, records=24).run(problem)
    assert trajectory.times.shape == (25,)
    assert trajectory.drifts.max() < 1e-10
    assert (trajectory.losses.diff() < 0).all()
    late = trajectory.times > 1e3
    assert (trajectory.margins[late] > 0).all()
    assert (trajectory.gaps[late] >= 0).all()
    assert (trajectory.primal[late].diff() < 0).all()
    assert (trajectory.gaps[late][::4].diff() < 0).all()
    best = closed_form(MaxMargin(counts, 5)).loss
    assert (trajectory.primal[late] >= best - 1e-9).all()
    assert (trajectory.dual[late] <= best + 1e-9).all()
    first, last = trajectory.misalignments[[10, -1]].tolist()
    assert last < first
    # While samples are wrong there is no multiple of margin 1.
    wrong = trajectory.margins <= 0
    assert wrong.any()
    assert torch.isinf(trajectory.primal[wrong]).all()


def test_drift_measures_the_integrators_error():
    problem, start = ULPM((3, 2, 1), 4), (draw(3, 4), draw(3, 4, seed=1))
    runs = [LogTimeFlow(start=start, tolerance=tol, final_time=1e6) for tol in (1e-4, 1e-7, 1e-12)]
    coarse, fine, finest = (run.run(problem) for run in runs)
    assert coarse.drifts.max() > 10 * fine.drifts.max() > 100 * finest.drifts.max()
    errors = [(run.W[-1] - finest.W[-1]).norm().item() for run in (coarse, fine)]
    assert errors[0] > 10 * errors[1]
    assert coarse.evaluations < fine.evaluations < finest.evaluations


def test_features_that_start_alike_stay_alike():
    counts, problem = (4, 2, 1), ULPM((4, 2, 1), 3)
    W, H = draw(3, 3), draw(3, 3, seed=1)
    rows = torch.arange(3).repeat_interleave(torch.tensor(counts))
    classes, samples = (LogTimeFlow(start=(W, h), records=6).run(problem) for h in (H, H[rows]))
    torch.testing.assert_close(samples.H, classes.H[:, rows], rtol=1e-9, atol=1e-9)
    for name in ("losses", "norms", "margins", "primal", "dual", "misalignments"):
        torch.testing.assert_close(getattr(samples, name)[1:], getattr(classes, name)[1:], rtol=1e-7, atol=1e-9)


def test_rotation_and_permutation():
    problem, W, H = ULPM((4, 2, 1), 3), draw(3, 3), draw(3, 3, seed=1)
    R, order = torch.linalg.qr(draw(3, 3, seed=2))[0], [2, 0, 1]
    plain = LogTimeFlow(start=(W, H), final_time=1e4).run(problem)
    turned = LogTimeFlow(start=(W @ R, H @ R), final_time=1e4).run(problem)
    torch.testing.assert_close(turned.W, plain.W @ R, rtol=0, atol=1e-8)
    moved = LogTimeFlow(start=(W[order], H[order]), final_time=1e4).run(ULPM((1, 4, 2), 3))
    torch.testing.assert_close(moved.H, plain.H[:, order], rtol=0, atol=1e-8)


def test_direction_nears_that_of_vanishing_penalties_as_the_reciprocal_of_log_t():
    counts = (5, 5, 5, 5)
    trajectory = LogTimeFlow(records=3).run(ULPM(counts, 8))
    gram = ConvexSolver().solve(CrossEntropyUFM(counts, 8, 1e-6, 1e-6)).gram_W
    grams = trajectory.W @ trajectory.W.mT
    apart = (grams / torch.linalg.matrix_norm(grams, keepdim=True) - gram / gram.norm()).norm(dim=(1, 2))[1:]
    assert (apart.diff() < 0).all()
    paced = apart * trajectory.times[1:].log()
    assert paced.max() < 1.5 * paced.min()


def test_solution_is_the_end_of_the_trajectory():
    solver, problem = LogTimeFlow(final_time=1e3, records=5), ULPM((5, 2), 3)
    solution, trajectory = solver.solve(problem), solver.run(problem)
    assert torch.equal(solution.W, trajectory.W[-1])
    assert solution.loss == trajectory.losses[-1].item()
    wanted = {"time", "norm", "margin", "primal", "dual", "separation_gap", "misalignment", "drift", "largest_drift"}
    assert set(solution.facts) == wanted
    assert solution.facts["separation_gap"] == trajectory.gaps[-1].item()
    assert not solution.exact
    assert solution.lower_bound == 0
    assert solution.reason == "t = 1000 reached; the infimum 0 is not attained"
    leaves = [part.clone().requires_grad_() for part in (solution.W, solution.H)]
    labels, weights = torch.arange(2), torch.tensor([5.0, 2.0]).double()
    loss = weights @ torch.nn.functional.cross_entropy(leaves[1] @ leaves[0].T, labels, reduction="none")
    gradients = torch.autograd.grad(loss, leaves)
    # By features of all samples, not of classes.
    square = gradients[0].square().sum() + (gradients[1].square().sum(dim=1) / weights).sum()
    assert solution.residual == pytest.approx(square.sqrt().item(), rel=1e-9)


def test_errors():
    with pytest.raises(ArgumentError, match="problem must be a ULPM for LogTimeFlow, got MaxMargin"):
        LogTimeFlow().run(MaxMargin((2, 1), 2))
    with pytest.raises(ArgumentError, match="start must be small enough for a finite flow, got overflow at s = 0"):
        LogTimeFlow(start=(1e200 * draw(2, 2), 1e200 * draw(2, 2, seed=1))).run(ULPM((3, 3), 2))
    with pytest.raises(ShapeError, match=r"start must be W \(K, d\) = \(2, 2\).*got \(3, 2\)"):
        LogTimeFlow(start=(draw(3, 2), draw(2, 2))).run(ULPM((2, 1), 2))
    with pytest.raises(ShapeError, match="H must have a row for each of K = 2 classes or N = 5 samples, got 4"):
        LogTimeFlow(start=(draw(2, 2), draw(4, 2))).run(ULPM((4, 1), 2))


@pytest.mark.parametrize("options", [{"final_time": 0.0}, {"records": 0}, {"tolerance": 1e-16}, {"scale": -1.0}])
def test_options_are_checked(options):
    with pytest.raises(ArgumentError, match=next(iter(options))):
        LogTimeFlow(**options)


def test_times_at_which_the_gradient_squared_is_below_the_smallest_number():
    facts = LogTimeFlow(final_time=1e250, records=20).solve(ULPM((2, 2, 2), 3)).facts
    assert facts["primal"] >= facts["dual"] > 0.99 * facts["primal"]
    assert 0 < facts["misalignment"] < 1e-3
