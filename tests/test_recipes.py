"""Every recipe that ships is parsed, bound and trained two steps with each of its methods."""

import math
from functools import cache

import pytest
import torch

from tests.training.models import quiet, trainer
from tightframe.cli import build_parser
from tightframe.config import Recipe, build_data, build_module, evaluation_parts, shipped_recipes
from tightframe.training import NeuralCollapseCallback, make_loader

pytestmark = quiet


@cache
def parsed(name):
    parser = build_parser()
    options = parser.instantiate(parser.parse_args(["compare", "--config", str(shipped_recipes()[name])])).compare
    for own in ("config", "out", "seed", "num_seeds"):
        options.pop(own)
    return Recipe(**options)


@pytest.fixture(scope="module")
def data():
    return cache(lambda name: build_data(parsed(name)))


@pytest.mark.parametrize("name", shipped_recipes())
def test_a_recipe_says_what_it_shows(name):
    recipe = parsed(name)
    assert len(recipe.description) > 40
    assert recipe.epochs > 0
    assert recipe.methods


METHODS = [(name, method) for name in shipped_recipes() for method in parsed(name).methods]


@pytest.mark.parametrize(("name", "method"), METHODS)
def test_a_method_trains_two_steps(name, method, data):
    recipe = parsed(name)
    module = build_module(recipe, method, data(name), seed=0)
    before = [p.detach().clone() for p in module.backbone.parameters()]
    losses = []
    original = module.training_step
    module.training_step = lambda *args: losses.append(original(*args)) or losses[-1]
    options = {key: value for key, value in recipe.trainer.items() if key not in ("devices", "accelerator")}
    fitted = trainer(max_epochs=1, limit_train_batches=2, limit_val_batches=1, **options)
    evaluation = [make_loader(part, 512) for part in evaluation_parts(data(name)).values()]
    fitted.fit(module, make_loader(data(name).train, recipe.batch_size, seed=0), evaluation)
    assert len(losses) == fitted.global_step == 2
    assert all(math.isfinite(loss.item()) for loss in losses)
    assert all(math.isfinite(value) for value in fitted.callback_metrics.values())
    after = list(module.backbone.parameters())
    assert all(p.isfinite().all() for p in after)
    assert any(not torch.equal(p, q) for p, q in zip(before, after, strict=True))


@pytest.mark.parametrize("name", shipped_recipes())
def test_options_of_the_collapse_callback_are_known(name):
    assert NeuralCollapseCallback(**parsed(name).collapse).every_n_epochs <= parsed(name).epochs
