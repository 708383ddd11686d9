"""Every recipe that ships is parsed, bound and trained two steps with each of its methods.

Where the data is not on every machine, small files in its format stand in for it, and networks are narrower. Batches
are small, and free features are few.
"""

import math
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
import torch

from tests.data import published
from tests.training.models import quiet, trainer
from tightframe.cli import main
from tightframe.config import Recipe, build, recipe_parser, shipped_recipes
from tightframe.files import read_yaml
from tightframe.training import NeuralCollapseCallback, backbones, make_loader

pytestmark = quiet
WRITERS = {
    "CIFAR10": published.cifar10,
    "CIFAR100": published.cifar100,
    "STL10": published.stl10,
    "ImageFolder": published.image_folder,
}


@cache
def parsed(name):
    parser = recipe_parser()
    return Recipe(**vars(parser.instantiate(parser.parse_object(read_yaml(shipped_recipes()[name])))))


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """Return experiments by name, such as any machine has and can train in a moment."""

    @cache
    def prepare(name):
        recipe = parsed(name)
        args = dict(recipe.data.args)
        if recipe.data.name in WRITERS:
            args["root"] = str(tmp_path_factory.mktemp(name))
            WRITERS[recipe.data.name](Path(args["root"]))
        if recipe.data.name == "FreeSamples":
            args["samples_per_class"] = 2
        return build(replace(recipe, data=replace(recipe.data, args=args), batch_size=4), [])

    return prepare


@pytest.mark.parametrize("name", shipped_recipes())
def test_a_recipe_says_what_it_shows_and_measures_what_it_trains(name):
    recipe = parsed(name)
    assert len(recipe.description) > 40
    assert recipe.methods
    assert 0 < NeuralCollapseCallback(**recipe.collapse).every_n_epochs <= recipe.epochs


METHODS = [(name, method) for name, path in shipped_recipes().items() for method in read_yaml(path)["methods"]]


@pytest.mark.parametrize(("name", "method"), METHODS)
def test_a_method_trains_two_steps(name, method, small, monkeypatch):
    experiment = small(name)
    recipe, data = experiment.recipe, experiment.data
    if recipe.data.name in WRITERS:
        monkeypatch.setattr(backbones, "WIDTH", 8)
    module = experiment.module(method, seed=0)
    before = [p.detach().clone() for p in module.backbone.parameters()]
    losses = []
    original = module.training_step
    module.training_step = lambda *args: losses.append(original(*args)) or losses[-1]
    options = {key: value for key, value in recipe.trainer.items() if key not in ("devices", "accelerator")}
    loader = make_loader(data.train, recipe.batch_size, seed=0)
    fitted = trainer(max_epochs=2 // min(len(loader), 2), limit_train_batches=2, limit_val_batches=1, **options)
    evaluation = [make_loader(part, 8) for part in experiment.evaluation.values()]
    fitted.fit(module, loader, evaluation)
    assert len(losses) == fitted.global_step == 2
    assert all(math.isfinite(loss.item()) for loss in losses)
    assert all(math.isfinite(value) for value in fitted.callback_metrics.values())
    after = list(module.backbone.parameters())
    assert all(p.isfinite().all() for p in after)
    assert any(not torch.equal(p, q) for p, q in zip(before, after, strict=True))


MISSING = [name for name in shipped_recipes() if read_yaml(shipped_recipes()[name])["data"]["name"] in WRITERS]


@pytest.mark.parametrize("name", MISSING)
def test_data_that_is_missing_is_one_clear_line(name, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as caught:
        main(["compare", name])
    assert caught.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"tightframe: error: {tmp_path / parsed(name).data.args['root']}")
    assert "root" in line
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", [name for name in MISSING if name.endswith("-nearest")])
def test_what_the_published_runs_share(name):
    recipe = parsed(name)
    assert (recipe.epochs, recipe.batch_size, recipe.optimizer.args["gain"]) == (200, 256, 10)
    assert all(method.classifier.args["scale"] == 5 for method in recipe.methods.values())
    num_classes = {"CIFAR10": 10, "CIFAR100": 100, "STL10": 10, "ImageFolder": 1000}[recipe.data.name]
    for method in ("nearest", "nearest-frozen"):
        assert recipe.methods[method].classifier.args["proximal"] == pytest.approx(1e-3 * (num_classes - 1) / 2)
