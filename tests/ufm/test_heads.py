import itertools
import math

import pytest
import torch

from tightframe.errors import ArgumentError, DtypeError, EmptyDataError, LabelError, NonFiniteError, ShapeError
from tightframe.functional import nc1
from tightframe.moments import ClassMoments
from tightframe.ufm.heads import certify_head


def generator(seed):
    return torch.Generator().manual_seed(seed)


def draw(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=generator(seed))


def orthonormal(rows, cols, seed):
    return torch.linalg.qr(draw(rows, cols, seed=seed))[0]


def random_head(seed, *, squared_error=None):
    """A head near balance, which inputs near collapse enter; how near is drawn as well, down to exactly."""
    g = generator(seed)
    K, depth, extra = (int(torch.randint(low, high, (1,), generator=g)) for low, high in ((2, 6), (2, 5), (0, 4)))
    d, counts = K + extra, torch.randint(1, 7, (K,), generator=g)
    labels = torch.arange(K).repeat_interleave(counts)
    noises = 10 ** (-8 * torch.rand(4, dtype=torch.float64, generator=g)) * (torch.rand(4, generator=g) > 0.1)
    s = 0.5 + 1.5 * torch.rand(K, dtype=torch.float64, generator=g)
    if squared_error is None:
        squared_error = bool(torch.rand((), generator=g) > 0.5)
    if not squared_error and torch.rand((), generator=g) > 0.5:
        s[-1] = 0  # as with cross-entropy
    frames = [orthonormal(d, K, seed + i) for i in range(depth)]
    frames.append(orthonormal(K, K, seed + depth))
    roots = s ** (1 / depth)
    matrices = []
    for i in range(depth):
        matrix = (frames[i + 1] * roots) @ frames[i].T
        matrices.append(matrix + 0.3 * noises[0] * draw(*matrix.shape, seed=seed + 10 + i))
    if squared_error:  # logits near the targets
        means = torch.linalg.pinv((frames[-1] * s) @ frames[0].T)
        inputs = means.T[labels]
    else:
        inputs = draw(K, d, seed=seed + 20)[labels]
    inputs = inputs + 0.3 * noises[1] * draw(len(labels), d, seed=seed + 30)
    return matrices, inputs, labels.long()[torch.randperm(len(labels), generator=generator(seed))], K


def measure(matrices, inputs, labels, biases, K):
    x, entering = inputs, []
    for matrix, bias in zip(matrices, biases, strict=True):
        entering.append(x)
        x = x @ matrix.T + (0 if bias is None else bias)
    Z = entering[-1]
    means = torch.stack([Z[labels == k].mean(dim=0) for k in range(K)])
    within = (Z - means[labels]).square().sum()
    between = (means[labels] - Z.mean(dim=0)).square().sum()
    W = matrices[-1]
    s, sw = torch.linalg.svdvals(means), torch.linalg.svdvals(W)
    cosines = (means * W).sum(dim=1) / (means.norm(dim=1) * W.norm(dim=1))
    return (within / between).item(), (s[0] / s[-1]).item(), cosines, (sw[0] / sw[-1]).item(), x


def test_no_bound_is_violated():
    finite = dict.fromkeys(("nc1", "nc1_a_priori", "nc2", "nc3", "conditioning"), 0)
    refused = vacuous = tight = 0
    for seed in range(400):
        matrices, inputs, labels, K = random_head(100 * seed)
        if seed % 3:  # as drawn, samples of a class are alike; labels at random test the worst
            labels = labels.sort().values
        biases = [None] * len(matrices)
        if seed % 5 == 0:
            biases = [draw(len(matrix), seed=seed + i) if i % 2 else None for i, matrix in enumerate(matrices)]
        head = certify_head(matrices, inputs, labels, biases=biases if seed % 5 == 0 else None)
        within, kappa, cosines, kappa_W, logits = measure(matrices, inputs, labels, biases, K)
        assert head.nc1.measured == pytest.approx(within, rel=1e-7, abs=1e-25)
        assert head.nc2.measured == pytest.approx(kappa, rel=1e-6) or min(kappa, head.nc2.measured) > 1e6
        assert head.conditioning.measured == pytest.approx(kappa_W, rel=1e-6) or kappa_W > 1e6
        torch.testing.assert_close(head.cosines, cosines, rtol=0, atol=1e-9)
        targets = torch.nn.functional.one_hot(labels, K)
        assert head.training_error == pytest.approx((logits - targets).norm().item(), rel=1e-12)
        slack = 1 + 1e-7
        for name in ("nc1", "nc1_a_priori", "nc2", "conditioning"):
            bound = getattr(head, name)
            # Collapse to rounding has none of the digits that a comparison needs.
            assert not bound.measured > bound.bound * slack + 1e-24, (seed, name, bound)
            finite[name] += math.isfinite(bound.bound)
            assert math.isfinite(bound.bound) == (bound.reason == "")
            vacuous += bound.bound == math.inf
            refused += math.isnan(bound.bound)
            tight += 1 <= bound.bound / bound.measured < 1.5 if bound.measured > 1e-20 else 0
        known = ~head.cosine_bounds.isnan()
        assert (head.cosines[known] >= head.cosine_bounds[known] - 1e-9).all(), seed
        finite["nc3"] += math.isfinite(head.nc3.bound)
        refused += math.isnan(head.nc3.bound)
    assert min(finite.values()) > 50
    assert vacuous > 50
    assert refused > 50
    assert tight > 50


def test_a_balanced_head_of_the_closed_form_attains_its_bounds():
    K, d, depth = 4, 6, 3
    frames = [orthonormal(d, K, seed) for seed in range(depth)] + [torch.eye(K, dtype=torch.float64)]
    matrices = [1.3 * frames[i + 1] @ frames[i].T for i in range(depth)]
    labels = torch.arange(K).repeat(5)
    inputs = (frames[0].T * 1.3**-depth)[labels]
    head = certify_head(matrices, inputs, labels)
    assert head.imbalance < 1e-14
    assert head.training_error < 1e-14
    assert head.nc1.bound < 1e-28
    for bound in (head.nc2, head.nc3, head.conditioning):
        assert bound.bound == pytest.approx(1, abs=1e-12)
        assert bound.measured == pytest.approx(1, abs=1e-12)
    torch.testing.assert_close(head.cosine_bounds, torch.ones(K).double(), rtol=0, atol=1e-12)


def test_the_formulas_by_hand():
    K, N = 3, 9
    lower, upper = draw(4, 5, seed=1), draw(K, 4, seed=2)
    labels = torch.arange(K).repeat_interleave(3)
    product = torch.linalg.pinv(upper @ lower).T
    inputs = product[labels] + 0.02 * draw(N, 5, seed=3)
    head = certify_head([lower, upper], inputs, labels)
    A = (labels.unsqueeze(1) == labels).double() / 3
    eye, J = torch.eye(N).double(), torch.full((N, N), 1 / N).double()
    before, logits = inputs.T, upper @ lower @ inputs.T
    s = [*torch.linalg.svdvals(upper).tolist(), 0.0]
    eps = torch.linalg.matrix_norm(upper.T @ upper - lower @ lower.T, ord=2).item()
    assert head.imbalance == pytest.approx(eps, rel=1e-12)
    terms = [
        ((logits @ (eye - A)).norm() / s[r - 1]) ** 2 + (eps + s[r] ** 2) * (before @ (eye - A)).norm() ** 2
        for r in (1, 2, 3)
    ]
    wanted = s[0] ** 2 * min(terms) / (logits @ (A - J)).norm() ** 2
    assert head.nc1.bound == pytest.approx(wanted.item(), rel=1e-10)
    assert terms[head.rank - 1] == min(terms)
    means, M = logits @ A[:, ::3], before @ A[:, ::3]
    e = torch.linalg.matrix_norm(means - torch.eye(K).double(), ord=2).item()
    outside = eps * s[2] ** 2 * torch.linalg.matrix_norm(M, ord=2).item() ** 2
    assert head.nc2.bound == pytest.approx(s[0] / s[2] * math.sqrt((1 + e) ** 2 + outside) / (1 - e), rel=1e-10)
    for k in range(K):
        error = (means[:, k] - torch.eye(K)[k]).norm().item()
        length = upper[k].norm() * math.sqrt(((1 + error) / s[2]) ** 2 + eps * M[:, k].norm().item() ** 2)
        assert head.cosine_bounds[k].item() == pytest.approx((means[k, k] / length).item(), rel=1e-10)
    deviation = head.training_error
    assert deviation == pytest.approx((logits - torch.eye(K).double()[labels].T).norm().item(), rel=1e-12)


@pytest.mark.parametrize("excess", [-0.03, 0.03])
def test_a_class_mean_one_away_from_its_target_is_refused(excess):
    """The sign trap: from e_k = 1 on the own logit may be negative, and the formula no bound."""
    eye = torch.eye(3, dtype=torch.float64)
    inputs = eye.repeat(2, 1)
    inputs[[0, 3], 0] = 1 - (1 + excess)
    head = certify_head([eye, eye], inputs, torch.arange(3).repeat(2))
    assert math.isnan(head.nc3.bound) == (excess > 0)
    assert head.cosine_bounds.isnan().tolist() == [excess > 0, False, False]
    if excess > 0:
        assert "1 classes (0)" in head.nc3.reason
        assert head.nc3.measured == -1
    assert (head.nc2.bound == math.inf) == (excess > 0)


def test_biases_leave_the_bound_of_nc1_and_refuse_nc2_and_nc3():
    matrices, inputs, labels, _ = random_head(700, squared_error=True)
    plain = certify_head(matrices, inputs, labels)
    biases = [draw(len(matrix), seed=i) for i, matrix in enumerate(matrices)]
    biased = certify_head(matrices, inputs, labels, biases=biases)
    assert biased.nc1.bound == pytest.approx(plain.nc1.bound, rel=1e-6)
    assert biased.conditioning == plain.conditioning
    for bound in (biased.nc2, biased.nc3):
        assert math.isnan(bound.bound)
        assert "biases" in bound.reason


def test_early_in_training_bounds_are_infinite():
    labels = torch.arange(4).repeat(5)
    head = certify_head([0.1 * draw(6, 6), 0.1 * draw(4, 6, seed=1)], draw(20, 6, seed=2), labels)
    assert head.nc2.bound == head.nc1_a_priori.bound == head.conditioning.bound == math.inf
    assert head.nc2.reason
    assert head.conditioning.reason
    zero = certify_head([draw(6, 6), torch.zeros(4, 6)], draw(20, 6, seed=2), labels)
    assert zero.nc1.bound == math.inf
    assert zero.nc1.measured > 0


def test_narrow_heads_have_no_bound_of_conditioning():
    head = certify_head([draw(2, 5), draw(3, 2, seed=1)], draw(6, 5, seed=2), torch.arange(3).repeat(2))
    assert head.nc2.measured == head.nc2.bound == math.inf
    assert head.conditioning.bound == math.inf


def test_order_of_samples_and_precision():
    matrices, inputs, labels, K = random_head(300, squared_error=True)
    order = torch.randperm(len(labels), generator=generator(0))
    one, other = certify_head(matrices, inputs, labels), certify_head(matrices, inputs[order], labels[order].int())
    assert one.nc1.bound == pytest.approx(other.nc1.bound, rel=1e-9)
    singles = certify_head([m.float().requires_grad_() for m in matrices], inputs.float(), labels)
    doubles = certify_head([m.float().double() for m in matrices], inputs.float().double(), labels)
    assert singles.nc2 == doubles.nc2
    moments = ClassMoments.from_samples(inputs, labels, K)
    if moments.count.unique().numel() == 1:
        assert nc1(moments, "ratio").item() > 0


def test_nc1_is_the_ratio_of_traces_of_balanced_classes():
    labels = torch.arange(3).repeat(4)
    lower, inputs = draw(5, 6), draw(12, 6, seed=1)
    head = certify_head([lower, draw(3, 5, seed=2)], inputs, labels)
    wanted = nc1(ClassMoments.from_samples(inputs @ lower.T, labels, 3), "ratio")
    assert head.nc1.measured == pytest.approx(wanted.item(), rel=1e-12)


# A network -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("depth", "rate"), [(2, 0.05), (4, 0.1)])
def test_a_trained_head_is_within_its_bounds(depth, rate):
    """Four Gaussian classes, a ReLU layer and a linear head, squared error with weight decay."""
    K, n, decay, steps, widths = 4, 10, 5e-3, 1500, [32, *[12] * (depth - 1), 4]
    labels = torch.arange(K).repeat_interleave(n)
    x = 2 * draw(K, 8)[labels] + draw(K * n, 8, seed=1)
    body = 0.4 * draw(32, 8, seed=2)
    head = [0.9 * orthonormal(a, b, a + b).T.contiguous() for a, b in itertools.pairwise(widths)]
    leaves = [matrix.requires_grad_() for matrix in (body, *head)]
    targets = torch.nn.functional.one_hot(labels, K)
    optimiser = torch.optim.SGD(leaves, lr=rate, momentum=0.9, weight_decay=decay)
    certificates = [certify_head(head, (x @ body.T).relu(), labels)]
    for step in range(steps):
        h = (x @ body.T).relu()
        for matrix in head:
            h = h @ matrix.T
        optimiser.param_groups[0]["lr"] = rate * min(1.0, (step + 1) / 100) * (1 if step < steps // 2 else 0.3)
        optimiser.zero_grad()
        ((h - targets).square().sum() / (2 * K * n)).backward()
        torch.nn.utils.clip_grad_norm_(leaves, 1.0)
        optimiser.step()
    certificates.append(certify_head(head, (x @ body.T).relu(), labels))
    start, end = certificates
    assert start.nc2.bound == math.inf
    assert math.isnan(start.nc3.bound)
    assert end.nc1.measured <= end.nc1.bound <= end.nc1_a_priori.bound
    assert not end.nc2.measured > end.nc2.bound  # nan where training has not come far enough
    assert not end.nc3.measured < end.nc3.bound
    assert not end.conditioning.measured > end.conditioning.bound


# Errors --------------------------------------------------------------------------------------------------------------

GOOD = {"matrices": [draw(5, 6), draw(3, 5)], "inputs": draw(6, 6), "labels": torch.arange(3).repeat(2)}


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"matrices": [draw(3, 6)]}, ArgumentError, "at least two weights.*got 1"),
        ({"matrices": draw(3, 6)}, ArgumentError, "got a tensor"),
        ({"matrices": [draw(5, 6), draw(3, 4)]}, ShapeError, r"^matrices\[1\] must have width d = 5, got 4"),
        ({"inputs": draw(6, 7)}, ShapeError, r"^matrices\[0\] must have width d = 7, got 6"),
        ({"labels": torch.tensor([0, 1, 2, 0, 1, 3])}, LabelError, "K = 3.*got 3"),
        ({"labels": torch.tensor([0, 1, 1, 0, 1, 0])}, EmptyDataError, "every class of K = 3, got none of \\[2\\]"),
        ({"labels": torch.arange(3)}, ShapeError, "^labels"),
        ({"inputs": torch.full((6, 6), math.nan)}, NonFiniteError, "^inputs"),
        ({"biases": [None]}, ArgumentError, "one for each of 2 matrices, got 1"),
        ({"biases": [None, draw(5)]}, ShapeError, r"biases\[1\] must have shape \(3,\), got \(5,\)"),
        ({"biases": [None, torch.arange(3)]}, DtypeError, r"biases\[1\] must be floating point, got torch.int64"),
    ],
)
def test_errors_name_what_does_not_fit(change, error, message):
    arguments = GOOD | change
    with pytest.raises(error, match=message):
        certify_head(
            arguments["matrices"], arguments["inputs"], arguments["labels"], biases=arguments.get("biases", None)
        )


def test_imbalance_decays_exactly_along_gradient_flow():
    """Whatever the loss, W₂ᵀW₂ - W₁W₁ᵀ falls as exp(-2λt): RK4 keeps it to the order of its step."""
    decay, step, steps = 0.3, 2e-3, 1000
    inputs, labels = draw(12, 5, seed=1), torch.arange(12) % 3
    state = [0.5 * draw(6, 5, seed=2), 0.5 * draw(4, 6, seed=3), 0.5 * draw(3, 4, seed=4)]

    def velocity(matrices):
        leaves = [matrix.clone().requires_grad_() for matrix in matrices]
        logits = torch.relu(inputs @ leaves[0].T) @ leaves[1].T @ leaves[2].T
        loss = torch.nn.functional.cross_entropy(logits, labels)
        gradients = torch.autograd.grad(loss, leaves)
        return [-g - decay * m for g, m in zip(gradients, matrices, strict=True)]

    def moved(slopes, size):
        return [m + size * v for m, v in zip(state, slopes, strict=True)]

    first = state[2].T @ state[2] - state[1] @ state[1].T
    for _ in range(steps):
        a = velocity(state)
        b = velocity(moved(a, step / 2))
        c = velocity(moved(b, step / 2))
        e = velocity(moved(c, step))
        state = [m + step / 6 * (p + 2 * q + 2 * r + s) for m, p, q, r, s in zip(state, a, b, c, e, strict=True)]
    last = state[2].T @ state[2] - state[1] @ state[1].T
    torch.testing.assert_close(last, math.exp(-2 * decay * step * steps) * first, rtol=0, atol=1e-11)
