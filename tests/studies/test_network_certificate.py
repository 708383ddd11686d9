"""The study of certificates of trained networks in small: what a gap is split into, and what the table says."""

import math

import pytest
import torch
import torch.nn.functional as F
from studies.network_certificate import VARIATIONS, Training
from studies.theory.certificates import best_scaled, certified_course, gap_parts
from studies.theory.networks import Network, Shape, descent, digits

from studies import network_certificate
from studies.theory import FIGURES, certificates
from tightframe.report.charts import Chart
from tightframe.ufm import CrossEntropyUFM, Solution, certify_network, closed_form
from tightframe.ufm.problem import objective

PROBLEM = CrossEntropyUFM((3,) * 4, dim=6, weight_decay=2e-2, feature_decay=1e-2)
TINY = {"small": Training(Shape(16, 1), 5e-3, 30), "linear": Training(Shape(16, 1, relu=False), 5e-3, 30)}


def draw(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def point_of(W, H):
    return Solution(PROBLEM, W, H, None, objective(PROBLEM, W, H).item(), False, "")


def samples(H):
    return H[torch.arange(4).repeat_interleave(3)]


# The gap's parts -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rows", [4, 12])
@pytest.mark.parametrize("seed", range(3))
def test_the_best_scales_are_those_of_a_search_over_both(rows, seed):
    W, H = (
        draw(4, 6, seed=seed),
        draw(rows, 6, seed=seed + 10) + 2 * (samples(draw(4, 6, seed=seed)) if rows == 12 else 0),
    )
    found = best_scaled(PROBLEM, W, H)
    logs = torch.zeros(2, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([logs], max_iter=200, tolerance_grad=1e-12, line_search_fn="strong_wolfe")

    def closure():
        optimizer.zero_grad()
        value = objective(PROBLEM, logs[0].exp() * W, logs[1].exp() * H)
        value.backward()
        return value

    optimizer.step(closure)
    assert found == pytest.approx(min(closure().item(), math.log(4)), rel=1e-8)


def test_features_that_point_away_are_best_left_out():
    solution = closed_form(PROBLEM)
    assert best_scaled(PROBLEM, solution.W, -solution.H) == pytest.approx(math.log(4), rel=1e-12)


def test_each_part_removes_what_it_is_named_for():
    solution = closed_form(PROBLEM)
    W, H, least = solution.W, samples(solution.H), solution.loss
    assert gap_parts(point_of(W, H)) == pytest.approx((least, least, least), rel=1e-12)
    # longer or shorter: W and features of other lengths are scaled back
    as_it_is, means, _ = gap_parts(point_of(2 * W, 3 * H))
    assert as_it_is > 1.1 * least
    assert means == pytest.approx(least, rel=1e-9)
    # spread within the classes, of mean zero
    spread = torch.stack([draw(6), -draw(6), torch.zeros(6, dtype=torch.float64)]).repeat(4, 1)
    as_it_is, means, _ = gap_parts(point_of(W, H + spread))
    assert as_it_is > 1.1 * least
    assert means == pytest.approx(least, rel=1e-9)
    # a common offset
    _, means, centred = gap_parts(point_of(W, H + spread + draw(6, seed=1)))
    assert means > 1.05 * least
    assert centred == pytest.approx(least, rel=1e-9)
    # a class vector of another length
    _, _, centred = gap_parts(point_of(torch.cat([3 * W[:1], W[1:]]), H))
    assert centred > 1.02 * least


# Trainings -----------------------------------------------------------------------------------------------------------


def test_training_is_descent_with_momentum_and_decay_at_a_rate_that_falls_as_a_cosine():
    images, labels = digits((2,) * 10)
    trained, by_hand = (Network(Shape(16, 1), 64, 0).double() for _ in range(2))
    sgd = torch.optim.SGD(trained.parameters(), lr=0.2, momentum=0.9, weight_decay=0.5)
    made = descent(lambda: F.cross_entropy(trained(images.double()), labels), sgd, 4, cosine=True)
    assert list(made) == [0, 1, 2, 3, 4]
    parameters = list(by_hand.parameters())
    velocities = [torch.zeros_like(p) for p in parameters]
    for step in range(4):
        gradients = torch.autograd.grad(F.cross_entropy(by_hand(images.double()), labels), parameters)
        for p, v, gradient in zip(parameters, velocities, gradients, strict=True):
            v.mul_(0.9).add_(gradient + 0.5 * p.detach())
            p.data -= 0.1 * (1 + math.cos(math.pi * step / 4)) * v
    for p, wanted in zip(trained.parameters(), parameters, strict=True):
        torch.testing.assert_close(p, wanted)


def test_a_course_is_of_certificates_at_their_steps():
    rows = certified_course(Shape(16, 1), 0, 5e-3, 60, marks=(1, 10), per_class=3)
    assert [row["step"] for row in rows] == [1, 10, 60]
    for row in rows:
        assert row["as it is"] == pytest.approx(row["objective"] / row["bound"] - 1)
        assert row["as it is"] > row["class means"] > row["centred"] >= 0
        assert row["as it is"] > row["above ReLU's"] > 0
        # At the inferred price both penalties cost alike.
        assert row["cross-entropy"] + 5e-3 * row["‖W‖²"] == pytest.approx(row["objective"])
    assert math.isnan(certified_course(Shape(16, 1, relu=False), 0, 5e-3, 2, per_class=3)[-1]["above ReLU's"])


def test_a_penalty_of_the_features_is_in_the_loss():
    options = {"steps": 60, "per_class": 3, "feature_decay": 1e-3}
    first, last = certified_course(Shape(16, 1, relu=False), 0, 5e-3, marks=(0,), **options)
    for row in (first, last):
        penalties = 5e-3 / 2 * row["‖W‖²"] + 1e-3 / 2 * row["‖H‖²"]
        assert row["cross-entropy"] + penalties == pytest.approx(row["objective"])
        assert 1e-3 * row["predicted ‖H‖²"] == pytest.approx(5e-3 * row["predicted ‖W‖²"])
    assert last["objective"] < 0.5 * first["objective"]


def test_a_network_whose_features_have_died_has_no_gap_but_is_not_what_is_predicted():
    labels = torch.arange(10).repeat_interleave(5)
    found = certify_network(1e-6 * draw(50, 12), labels, 1e-3 * draw(10, 12, seed=1), weight_decay=5e-3)
    assert found.certificate.relative_gap < 1e-6
    assert found.point.loss == pytest.approx(math.log(10), rel=1e-5)
    assert found.deviations()["gram_W"] == math.inf


# The table -----------------------------------------------------------------------------------------------------------


def test_the_command_prints_what_it_was_asked_for(capsys, monkeypatch):
    for name, training in TINY.items():
        monkeypatch.setitem(VARIATIONS, name, training)
    assert network_certificate.main(["--seeds", "1", "--per_class", "3", "--only", "linear"]) == 0
    printed = capsys.readouterr().out
    assert "decay 0.005, 1000 steps, 1 seeds" in printed
    assert [line.split("|")[1].strip() for line in printed.splitlines() if line[:1] == "|"][2:] == ["linear"]


# The figure ----------------------------------------------------------------------------------------------------------


def test_certificates_are_drawn_along_the_trainings(monkeypatch):
    monkeypatch.setattr(certificates, "SHAPES", {"one": Shape(16, 1)})
    monkeypatch.setattr(certificates, "MARKS", (1, 5, 20))
    charts = FIGURES["network-certificate"](0)
    assert len(charts) == 3
    assert all(isinstance(chart, Chart) for chart in charts)
    objective_line, bound = charts[0].lines
    assert list(objective_line.x) == [1, 5, 20]
    assert all(low < high for low, high in zip(bound.y, objective_line.y, strict=True))
    assert [line.label for line in charts[1].lines] == ["one: as it is", "one: class means", "one: centred"]
