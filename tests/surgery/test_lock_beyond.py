import pytest
import torch
from torch import nn

from tightframe.errors import ArgumentError, DimensionError
from tightframe.surgery import lock_beyond, lock_to_etf


def tower():
    torch.manual_seed(0)
    return nn.Sequential(*(nn.Linear(6, 6) for _ in range(4)), nn.Linear(6, 3))


NAMES = ["0", "1", "2", "3", "4"]


@pytest.mark.parametrize(
    ("options", "locked"),
    [
        ({"depth": 5}, []),
        ({"depth": 5, "inclusive": True}, ["4"]),
        ({"depth": 3}, ["3", "4"]),
        ({"depth": 1, "inclusive": True}, ["1", "2", "3", "4"]),
        ({"depth": 1, "inclusive": True, "min_trainable": 4}, ["4"]),
        ({"depth": 1, "min_trainable": 9}, []),
        ({"depth": 2, "keep": ["4"]}, ["2", "3"]),
        ({"depth": 2, "keep": ["[23]"]}, ["4"]),
    ],
)
def test_which_layers_lie_beyond(options, locked):
    model = tower()
    assert [lock.name for lock in lock_beyond(model, NAMES, **options)] == locked
    frozen = [name for name, p in model.named_parameters() if not p.requires_grad]
    assert frozen == [f"{name}.weight" for name in locked]


def test_a_draw_depends_on_the_number_of_the_layer_alone():
    model, other = tower(), tower()
    lock_to_etf(other, "2", "canonical")
    before = other[2].weight.clone()
    lock_beyond(model, NAMES, 1, kind="haar", seed=3)
    assert [lock.name for lock in lock_beyond(other, NAMES, 2, kind="haar", seed=3)] == ["3", "4"]
    assert torch.equal(other[2].weight, before)
    assert torch.equal(other[3].weight, model[3].weight)
    assert torch.equal(other[4].weight, model[4].weight)
    draws = [model[i].weight for i in (1, 2, 3)]
    assert not any(torch.equal(a, b) for i, a in enumerate(draws) for b in draws[:i])


def test_what_is_locked_leaves_the_optimizer():
    model = tower()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    lock_beyond(model, NAMES, 3, optimizer=optimizer)
    assert len(optimizer.param_groups[0]["params"]) == 8


def test_layers_without_a_trained_matrix_are_passed_over():
    model = tower()
    model[3].weight.requires_grad_(False)
    assert [lock.name for lock in lock_beyond(model, NAMES, 2)] == ["2", "4"]


@pytest.mark.parametrize(
    ("options", "error", "text"),
    [
        ({"depth": 0}, ArgumentError, "depth must be an integer >= 1"),
        ({"depth": 6}, ArgumentError, r"depth must be one of the layers 1\.\.5, got 6"),
        ({"depth": True}, ArgumentError, "depth"),
        ({"depth": 1, "min_trainable": 0}, ArgumentError, "min_trainable must be an integer >= 1"),
        ({"depth": 1, "kind": "etf"}, ArgumentError, "kind must be one of"),
        ({"depth": 4, "layers": ["0", "1", "2", "3", "5"]}, ArgumentError, "no module '5'"),
        ({"depth": 1, "keep": ["head"]}, ArgumentError, "keep must name modules of the model, got 'head'"),
        ({"depth": 1, "keep": "4"}, ArgumentError, "keep must be a list of names or patterns, got '4'"),
        ({"depth": 4, "kind": "class-rank", "num_classes": 9}, ArgumentError, "num_classes must be K = 3"),
    ],
)
def test_what_lock_beyond_refuses(options, error, text):
    with pytest.raises(error, match=text):
        lock_beyond(tower(), **{"layers": NAMES, **options})


def test_a_layer_that_is_trained_and_cannot_be_locked_is_not_passed_over():
    model = tower()
    nn.utils.parametrizations.weight_norm(model[3])
    with pytest.raises(ArgumentError, match="layer '3' is computed by a parametrization"):
        lock_beyond(model, NAMES, 2)
    narrow = nn.Sequential(nn.Linear(6, 2), nn.Linear(2, 5))
    with pytest.raises(DimensionError, match=r"d >= K - 1.*keep it trainable"):
        lock_beyond(narrow, ["0", "1"], 1)
    assert lock_beyond(narrow, ["0", "1"], 1, keep=["1"]) == []
