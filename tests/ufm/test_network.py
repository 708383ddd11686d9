import math

import pytest
import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits

from tightframe.errors import ArgumentError, DtypeError, EmptyDataError, LabelError, NonFiniteError, ShapeError
from tightframe.ufm import CrossEntropyUFM, MeanSquaredUFM, ReLUImbalanced, closed_form
from tightframe.ufm.certify import certify
from tightframe.ufm.network import certify_network


def generator(seed):
    return torch.Generator().manual_seed(seed)


def draw(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=generator(seed))


def as_network(solution, seed=0):
    """Return features of all samples in random order, labels, weight and bias of a solution."""
    labels = torch.arange(solution.problem.num_classes).repeat_interleave(torch.tensor(solution.problem.counts))
    order = torch.randperm(len(labels), generator=generator(seed))
    return solution.H[labels][order], labels[order], solution.W, solution.bias


# A minimum -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("problem", "options"),
    [
        (CrossEntropyUFM((6,) * 4, 5, 5e-3, 2e-3), {}),
        (CrossEntropyUFM((6,) * 4, 5, 5e-3, 2e-3, bias_decay=5e-3), {}),
        (CrossEntropyUFM((6,) * 4, 5, 5e-3, 2e-3, bias_decay=0.0), {"bias_decay": 0.0}),
        (MeanSquaredUFM((6,) * 4, 5, 5e-3, 2e-3, bias_decay=0.1), {"bias_decay": 0.1, "loss": "mse"}),
        (MeanSquaredUFM((12, 5, 3), 5, 5e-3, 2e-3), {"loss": "mse"}),
        (ReLUImbalanced((12, 5, 3), 5, 5e-3, 2e-3), {"relu": True}),
    ],
    ids=str,
)
def test_a_minimum_is_found_to_be_one_and_its_penalty_inferred(problem, options):
    solution = closed_form(problem)
    network = certify_network(*as_network(solution), weight_decay=problem.weight_decay, **options)
    assert network.point.problem.feature_decay == pytest.approx(problem.feature_decay, rel=1e-9)
    assert network.point.problem.counts == problem.counts
    assert type(network.point.problem) is type(problem)
    assert network.certificate.is_global(1e-9)
    assert network.certificate.stationarity < 1e-8
    assert network.predicted.exact
    assert max(network.deviations().values()) < 1e-6
    assert "inferred" in network.note


def test_an_imbalanced_minimum_is_predicted_by_the_convex_solver():
    problem = CrossEntropyUFM((30, 12, 5, 2), 4, 5e-3, 2e-3, bias_decay=0.0)
    start = certify_network(
        draw(49, 4), torch.arange(4).repeat_interleave(torch.tensor(problem.counts)), draw(4, 4), torch.zeros(4),
        weight_decay=5e-3, feature_decay=2e-3, bias_decay=0.0,
    )  # fmt: skip
    assert start.point.problem == problem
    assert start.predicted.exact
    assert "given" in start.note
    network = certify_network(*as_network(start.predicted), weight_decay=5e-3, bias_decay=0.0)
    assert network.certificate.is_global(1e-8)
    assert network.deviations()["gram_W"] < 1e-4
    # the bound of the prediction is no worse than the point's own
    assert start.certificate.lower_bound >= certify(problem, start.point).lower_bound
    assert start.certificate.lower_bound == pytest.approx(start.predicted.loss, rel=1e-8)


def test_longer_vectors_deviate_by_what_they_are_longer():
    solution = closed_form(CrossEntropyUFM((6,) * 4, 5, 5e-3, 2e-3))
    H, labels, W, _ = as_network(solution)
    network = certify_network(1.1 * H, labels, 1.2 * W, weight_decay=5e-3, feature_decay=2e-3)
    deviations = network.deviations()
    assert deviations["norm_W"] == pytest.approx(0.2, rel=1e-9)
    assert deviations["norm_H"] == pytest.approx(0.1, rel=1e-9)
    assert deviations["gram_W"] == pytest.approx(0.44, rel=1e-9)
    assert deviations["gram_H"] == pytest.approx(0.21, rel=1e-9)
    assert deviations["logits"] == pytest.approx(0.32, rel=1e-9)
    assert network.gap == pytest.approx(network.point.loss - solution.loss, rel=1e-9)


def test_order_precision_and_rotation_change_nothing():
    H, W, b = draw(40, 6).float(), draw(3, 6, seed=1).float(), draw(3, seed=2).float()
    labels = torch.cat([torch.arange(3), torch.randint(0, 3, (37,), generator=generator(0))])
    wanted = certify_network(H, labels, W, b, weight_decay=0.01)
    order = torch.randperm(40, generator=generator(1))
    R = torch.linalg.qr(draw(6, 6, seed=3))[0]
    for other in (
        certify_network(H[order], labels[order].int(), W, b, weight_decay=0.01),
        certify_network(H.double(), labels, W.double(), b.double().requires_grad_(), weight_decay=0.01),
        certify_network(H.double() @ R, labels, W.double() @ R, b.double(), weight_decay=0.01),
    ):
        assert other.point.H.dtype == torch.float64
        for name in ("loss", "lower_bound", "stationarity", "operator_norm", "balance"):
            found = getattr(other.certificate, name)
            assert found == pytest.approx(getattr(wanted.certificate, name), rel=1e-8), name


def test_the_inferred_penalty_balances_the_norms():
    H, W, labels = draw(12, 5), draw(3, 5, seed=1), torch.arange(3).repeat(4)
    network = certify_network(H, labels, W, weight_decay=0.02)
    problem = network.point.problem
    assert problem.feature_decay * H.square().sum().item() == pytest.approx(0.02 * W.square().sum().item(), rel=1e-12)
    assert problem.bias_decay is None
    biased = certify_network(H, labels, W, torch.zeros(3), weight_decay=0.02).point.problem
    assert biased.bias_decay == 0.02


def test_mse_loss_of_torch_is_a_weight():
    H, W, labels = draw(12, 5), draw(3, 5, seed=1), torch.arange(3).repeat(4)
    network = certify_network(H, labels, W, weight_decay=0.02, loss="mse", sample_weights=[2 / 36] * 3)
    fit = F.mse_loss(H @ W.T, F.one_hot(labels, 3).double())
    assert network.point.loss == pytest.approx((fit + 0.02 * W.square().sum()).item(), rel=1e-12)


def test_without_the_dimensions_there_is_a_gap_but_no_prediction():
    network = certify_network(draw(12, 1), torch.arange(4).repeat(3), draw(4, 1, seed=1), weight_decay=1e-3)
    assert network.predicted is None
    assert network.deviations() == {}
    assert "no prediction: dim must be at least" in network.note
    assert 0 < network.certificate.gap < math.inf


# Networks of digits --------------------------------------------------------------------------------------------------


def digits(num):
    images, labels = load_digits(return_X_y=True)
    return torch.tensor(images[:num] / 16, dtype=torch.float32), torch.tensor(labels[:num])


@pytest.fixture(scope="module")
def trained():
    """An MLP on digits, with weight decay on everything; what it was before, halfway, and in the end."""
    images, labels = digits(500)
    torch.manual_seed(0)
    body = torch.nn.Sequential(torch.nn.Linear(64, 128), torch.nn.ReLU(), torch.nn.Linear(128, 24), torch.nn.ReLU())
    classifier = torch.nn.Linear(24, 10)
    parameters = [*body.parameters(), *classifier.parameters()]
    optimiser = torch.optim.SGD(parameters, lr=0.2, momentum=0.9, weight_decay=5e-3)
    states = []
    for step in range(601):
        optimiser.param_groups[0]["lr"] = 0.2 * min(1.0, (601 - step) / 300)
        features = body(images)
        if step in (0, 60, 600):
            states.append((features.detach(), labels, classifier.weight.detach().clone(), classifier.bias.clone()))
        optimiser.zero_grad()
        F.cross_entropy(classifier(features), labels).backward()
        optimiser.step()
    return states


def test_a_network_trained_with_weight_decay_gets_its_certificate_from_one_call(trained):
    networks = [certify_network(*state, weight_decay=5e-3) for state in trained]
    features, labels, weight, bias = trained[-1]
    end = networks[-1]
    squares = 0.005 / 2 * (weight.double().square().sum() + bias.double().square().sum())
    fit = F.cross_entropy(features.double() @ weight.double().T + bias, labels)
    # as the features' penalty is inferred, it is as large as the weight's
    wanted = fit + squares + 0.005 / 2 * weight.double().square().sum()
    assert end.certificate.loss == pytest.approx(wanted.item(), rel=1e-6)
    assert end.point.problem.counts == tuple(labels.bincount().tolist())
    assert end.predicted.exact
    assert 0 < end.certificate.lower_bound < end.certificate.loss
    gaps = [network.certificate.gap for network in networks]
    assert gaps[0] > gaps[1] > gaps[2] > 0
    assert not end.certificate.is_global()
    assert "above the minimum" in end.certificate.explanation
    stationarities = [network.certificate.stationarity for network in networks]
    assert stationarities[2] < 0.2 * stationarities[0]
    # the bias is stationary, as is the weight up to what training left
    problem, point = end.point.problem, end.point
    W = point.W.clone().requires_grad_()
    logits = point.H @ W.T + point.bias
    (slope,) = torch.autograd.grad(F.cross_entropy(logits, point.labels), W)
    assert (slope + problem.weight_decay * W).norm() < 0.1 * (problem.weight_decay * W).norm()
    collapse = end.point.collapse()
    assert collapse["nc3.alignment"] < 0.2
    assert set(end.deviations()) == {"gram_W", "gram_H", "logits", "norm_W", "norm_H"}


def test_features_of_a_relu_have_the_larger_minimum(trained):
    features, labels, weight, _ = trained[-1]
    linear = certify_network(features, labels, weight, weight_decay=5e-3)
    relu = certify_network(features, labels, weight, weight_decay=5e-3, relu=True)
    assert relu.certificate.loss == pytest.approx(linear.certificate.loss, rel=1e-12)
    assert relu.certificate.lower_bound > linear.certificate.lower_bound
    assert relu.predicted.exact
    assert relu.certificate.operator_norm < linear.certificate.operator_norm


def test_a_network_whose_features_are_penalised_instead_of_its_body_gets_within_percents_of_the_minimum():
    """The body can fit any features of so few samples: it is unconstrained, and its certificate shows it."""
    images, labels = digits(40)
    torch.manual_seed(0)
    body = torch.nn.Sequential(torch.nn.Linear(64, 256), torch.nn.ReLU(), torch.nn.Linear(256, 12)).double()
    classifier = torch.nn.Linear(12, 10, bias=False).double()
    parameters = [*body.parameters(), *classifier.parameters()]
    optimiser = torch.optim.LBFGS(parameters, max_iter=400, history_size=20, line_search_fn="strong_wolfe")

    def closure():
        optimiser.zero_grad()
        features = body(images.double())
        loss = F.cross_entropy(classifier(features), labels)
        loss = loss + 5e-3 * classifier.weight.square().sum() + 5e-4 * features.square().sum()
        loss.backward()
        return loss

    arguments = {"weight_decay": 1e-2, "feature_decay": 1e-3}
    start = certify_network(body(images.double()), labels, classifier.weight, **arguments)
    optimiser.step(closure)
    end = certify_network(body(images.double()), labels, classifier.weight, **arguments)
    assert start.certificate.relative_gap > 0.3
    assert 0 < end.certificate.relative_gap < 1e-3
    assert end.certificate.loss == pytest.approx(closure().item(), rel=1e-9)
    assert max(end.deviations().values()) < 0.05
    assert end.certificate.facts["balance.relative"] < 0.01
    inferred = certify_network(body(images.double()), labels, classifier.weight, weight_decay=1e-2)
    assert inferred.point.problem.feature_decay == pytest.approx(1e-3, rel=0.01)


# Errors --------------------------------------------------------------------------------------------------------------

GOOD = {"features": draw(6, 4), "labels": torch.arange(3).repeat(2), "weight": draw(3, 4), "weight_decay": 0.1}


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"features": draw(6, 4).long()}, DtypeError, "^features"),
        ({"features": draw(6)}, ShapeError, "^features"),
        ({"labels": torch.arange(3)}, ShapeError, "^labels"),
        ({"labels": torch.tensor([0, 1, 2, 0, 1, 3])}, LabelError, "K = 3.*got 3"),
        ({"labels": torch.tensor([0, 1, 1, 0, 1, 0])}, EmptyDataError, r"every class of K = 3, got none of \[2\]"),
        ({"weight": draw(3, 5)}, ShapeError, "^weight must have width d = 4, got 5"),
        ({"bias": draw(4)}, ShapeError, r"^bias must have shape \(3,\), got \(4,\)"),
        ({"weight": torch.full((3, 4), math.inf)}, NonFiniteError, "^weight"),
        ({"weight_decay": 0.0}, ArgumentError, "^weight_decay must be a finite number > 0, got 0.0"),
        ({"feature_decay": -1.0}, ArgumentError, "^feature_decay must be a finite number > 0"),
        ({"bias": draw(3), "bias_decay": -1.0}, ArgumentError, "^bias_decay"),
        ({"weight": torch.zeros(3, 4)}, ArgumentError, "must not be zero to infer feature_decay"),
        ({"loss": "hinge"}, ArgumentError, "^loss must be one of"),
        ({"relu": True}, ArgumentError, "^features must be >= 0 with relu=True, got -"),
        ({"relu": True, "loss": "mse"}, ArgumentError, "^relu must be False unless .* got loss='mse'"),
        ({"relu": True, "bias": draw(3)}, ArgumentError, "^relu must be False unless .* got a bias"),
        ({"sample_weights": [1.0, 1.0]}, ArgumentError, "^sample_weights must be one for each of 3 classes, got 2"),
    ],
)
def test_errors_name_what_does_not_fit(change, error, message):
    with pytest.raises(error, match=message):
        certify_network(**(GOOD | change))
