import pytest
import torch
from torch import nn

from tests.probing.material import INPUTS, K, hooks_of, network
from tightframe.errors import ArgumentError
from tightframe.nn import SimplexETFClassifier
from tightframe.probing import Probe, find_classifier
from tightframe.surgery import replace_classifier

# --- the classifier ---


def test_the_last_linear_layer_is_the_classifier():
    assert find_classifier(network()) == "6"
    assert find_classifier(nn.Linear(4, 3)) == ""
    assert find_classifier(nn.ModuleDict({"body": network(), "head": nn.Linear(3, 3)})) == "head"


def test_a_tightframe_classifier_goes_before_any_linear_layer():
    model = nn.Sequential(SimplexETFClassifier(4, 3), nn.Linear(3, 3))
    assert find_classifier(model) == "0"


def test_no_classifier():
    with pytest.raises(ArgumentError, match=r"neither a tightframe classifier nor an nn\.Linear"):
        find_classifier(nn.Sequential(nn.Conv2d(1, 1, 1), nn.ReLU()))


def test_with_inputs_the_classifier_is_what_gives_the_output():
    class Exits(nn.Module):
        def __init__(self):
            super().__init__()
            self.body, self.head, self.exit = nn.Linear(4, 5), nn.Linear(5, K), nn.Linear(5, K)

        def forward(self, inputs):
            h = self.body(inputs)
            self.exit(h)
            return self.head(h)

    model = Exits()
    assert find_classifier(model) == "exit"
    assert find_classifier(model, INPUTS) == "head"
    old, head = replace_classifier(model, nn.Linear(5, 2), INPUTS), model.head
    assert old.out_features == K
    assert head.out_features == 2


def test_of_several_that_give_the_output_the_last_that_ran_is_the_classifier():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.late, self.early = nn.Linear(4, K), nn.Linear(4, K)
            for head in (self.late, self.early):
                nn.init.zeros_(head.weight)
                nn.init.zeros_(head.bias)

        def forward(self, inputs):
            self.early(inputs)
            return self.late(inputs.square())

    assert find_classifier(Twice(), INPUTS) == "late"


# --- Probe ---


def test_a_layer_that_is_given_keywords():
    class Keywords(nn.Module):
        def __init__(self):
            super().__init__()
            self.head = nn.Linear(4, 3)

        def forward(self, inputs):
            return self.head(input=inputs)

    model = Keywords()
    with Probe(model, ["head"]) as probe:
        model(INPUTS)
        assert torch.equal(probe.take()["head"], INPUTS)


def test_a_layer_that_runs_twice_is_seen_the_last_time():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.step = nn.Linear(4, 4, bias=False)
            nn.init.eye_(self.step.weight)

        def forward(self, inputs):
            return self.step(2 * self.step(inputs))

    model = Twice()
    with Probe(model, ["step"]) as probe:
        model(INPUTS)
        assert torch.equal(probe.take()["step"], 2 * INPUTS)


def test_hooks_are_gone_after_an_exception():
    model = network()
    with pytest.raises(RuntimeError, match="mat1 and mat2"), Probe(model, ["2", "6"]):
        model(torch.ones(2, 9))
    assert hooks_of(model) == 0


def test_no_capture_is_an_error():
    model = nn.ModuleDict({"used": nn.Linear(4, 3), "unused": nn.Linear(4, 3)})
    with Probe(model, ["used", "unused"]) as probe:
        model["used"](INPUTS)
        with pytest.raises(ArgumentError, match=r"\['unused'\] captured nothing"):
            probe.take()
