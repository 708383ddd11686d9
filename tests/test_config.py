import math
from dataclasses import replace

import pytest
import torch
from lightning.pytorch import Callback
from torch import nn
from torch.utils.data import TensorDataset

from tests.conversion.material import recipe as small_recipe
from tests.recipe_material import K, data, recipe
from tests.training.models import quiet, trainer
from tightframe.config import AUTO, Experiment, Method, Part, bind, build, find_recipe, located, shipped_recipes
from tightframe.data import ClassificationData, Digits, FreeSamples
from tightframe.errors import ArgumentError, ConfigError, ShapeError, TightframeError
from tightframe.frames import hierarchy_aware_frame
from tightframe.nn import Classifier, DotRegressionLoss, LinearClassifier, SimplexETFClassifier
from tightframe.training import AGD, MLP, FreeFeatures, ImageTransform
from tightframe.training.loaders import make_loader

pytestmark = quiet


def classifier(name, **args):
    return bind(Part(name, args), ("tightframe.nn",), Classifier, "here", {"dim": 6, "num_classes": K, "seed": 3})


# --- recipes by name ---


def test_shipped_recipes_are_found_by_name():
    assert {"digits", "digits-longtail", "stdlib"} <= shipped_recipes().keys()
    assert all(path.is_file() and path.stem == name for name, path in shipped_recipes().items())
    assert find_recipe("digits") == shipped_recipes()["digits"]


def test_a_file_is_a_recipe_too(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("mine.yaml", "digits.yml"):
        (tmp_path / name).write_text("")
        assert find_recipe(name).samefile(tmp_path / name)


@pytest.mark.parametrize("name", ["digit", "", "recipes/digits", "."])
def test_unknown_names_are_told_the_known_ones(name):
    with pytest.raises(ConfigError, match=r"digits, .*stdlib, .*got"):
        find_recipe(name)


def test_a_missing_file(tmp_path):
    with pytest.raises(ConfigError, match="does not exist"):
        find_recipe(str(tmp_path / "mine.yaml"))
    (tmp_path / "folder.yaml").mkdir()
    with pytest.raises(ConfigError, match="does not exist"):
        find_recipe(str(tmp_path / "folder.yaml"))


# --- bind ---


def test_what_the_recipe_decides_is_filled_in():
    made = classifier("LinearClassifier", bias=False)
    assert type(made) is LinearClassifier
    assert (made.in_features, made.out_features, made.bias) == (6, K, None)


def test_optional_arguments_are_filled_in_on_request_alone():
    def weight(**args):
        return classifier("SimplexETFClassifier", **args).weight

    assert torch.equal(weight(), SimplexETFClassifier(6, K).weight)
    assert torch.equal(weight(seed=AUTO), SimplexETFClassifier(6, K, seed=3).weight)
    assert torch.equal(weight(seed=4), SimplexETFClassifier(6, K, seed=4).weight)


def test_an_argument_of_the_recipe_goes_before_what_would_be_filled_in():
    assert classifier("LinearClassifier", dim=9).in_features == 9


def test_arguments_are_converted_as_their_annotations_say():
    made = bind(Part("MLP", {"widths": (8, 4), "in_features": 3}), ("tightframe.training",), nn.Module, "backbone")
    assert isinstance(made, MLP)
    assert made.out_features == 4


def test_a_dotted_name_needs_no_room():
    assert isinstance(bind(Part("torch.nn.Tanh"), (), nn.Module, "here"), nn.Tanh)


def test_rooms_are_searched_in_their_order():
    loss = bind(Part("CrossEntropyLoss"), ("tightframe.nn", "torch.nn"), nn.Module, "loss")
    assert isinstance(loss, nn.CrossEntropyLoss)
    assert isinstance(
        bind(Part("DotRegressionLoss"), ("tightframe.nn", "torch.nn"), nn.Module, "loss"), DotRegressionLoss
    )


@pytest.mark.parametrize(
    ("part", "text"),
    [
        (Part("Nothing"), "here.name: no class or function 'Nothing' in tightframe.nn"),
        (Part("torch.nn.Nothing"), "here.name: no class or function 'Nothing' in torch.nn"),
        (Part("no.such.Thing"), "here.name: no.such cannot be imported"),
        (Part(""), "here.name: no class or function ''"),
        (Part("torch.nn.functional.relu"), "here.name must be a Classifier, .*got torch.nn.functional.relu"),
        (
            Part("FrameClassifier", {"frame": 3}),
            "here.args.frame must be the name of a frame of tightframe, or a mapping",
        ),
        (Part("FrameClassifier", {"frame": "coherence"}), "here.args.frame.name must be a Frame, .*got coherence"),
        (Part("FrameClassifier", {"frame": {"name": "SimplexETF", "args": {"dimm": 3}}}), "takes no 'dimm'"),
        (Part("torch.nn.Linear"), "here.name must be a Classifier, .*got torch.nn.Linear"),
        (
            Part("LinearClassifier", {"colour": 1, "biass": 2}),
            "LinearClassifier takes no 'biass', 'colour'; it takes dim,",
        ),
        (Part("LinearClassifier", {"bias": "perhaps"}), "here.args: .*bias.*perhaps"),
        (Part("LinearClassifier", {"dim": 2.5}), "here.args: .*dim"),
        (Part("SimplexETFClassifier", {"scale": "big"}), "here.args: .*scale.*big"),
        (
            Part("LinearClassifier", {"bias": AUTO}),
            "here.args must set bias for LinearClassifier: nothing else decides it",
        ),
        (Part("FrameClassifier"), "here.args must set frame for FrameClassifier: nothing else decides it"),
    ],
)
def test_what_cannot_be_bound(part, text):
    with pytest.raises(ConfigError, match=text) as caught:
        classifier(part.name, **part.args)
    assert "\n" not in str(caught.value)


def test_an_argument_that_is_a_frame_names_a_class_or_a_function():
    distances = 1 - torch.eye(K, dtype=torch.float64)
    given = {"dim": 6, "num_classes": K, "seed": 3, "distances": distances}

    def weight(frame):
        return bind(Part("FrameClassifier", {"frame": frame}), ("tightframe.nn",), Classifier, "here", given).weight

    def drawn(seed):
        generator = torch.Generator().manual_seed(seed)
        return hierarchy_aware_frame(distances, 6, gamma=2.0, generator=generator).frame.float()

    named = {"name": "hierarchy_aware_frame", "args": {"gamma": 2.0}}
    assert torch.equal(weight(named), drawn(3))
    assert torch.equal(weight({**named, "args": {"gamma": 2.0, "seed": 5}}), drawn(5))
    assert weight("hierarchy_aware_frame").shape == (K, 6)


def test_a_value_out_of_range_is_the_classes_own_error():
    with pytest.raises(ArgumentError, match="scale must be finite and > 0"):
        classifier("SimplexETFClassifier", scale=-1.0)


def test_an_abstract_class_is_refused():
    with pytest.raises((ConfigError, TypeError), match=r"abstract|here\.name"):
        classifier("Classifier")


# --- data ---


def test_data_are_loaded_with_their_arguments():
    chosen = recipe(data=Part("Digits", {"imbalance": 0.1, "flatten": False}))
    loaded = build(chosen, [], trust=True).data
    assert torch.equal(loaded.class_counts, Digits(imbalance=0.1).load().class_counts)
    assert loaded.train[0][0].shape == (1, 8, 8)


def test_only_a_data_source_is_data():
    with pytest.raises(ConfigError, match=r"data\.name must be a DataSource"):
        build(recipe(data=Part("torch.nn.ReLU")))


def test_parts_to_evaluate():
    assert list(build(recipe(), [], data=data()).evaluation) == ["validation", "test"]
    assert list(build(recipe(), [], data=data(validation=False)).evaluation) == ["test"]


# --- modules ---


def test_sizes_come_from_the_data():
    module = build(recipe(), [], data=data()).module("learned", 0)
    assert module.backbone[1].in_features == 24
    assert (module.classifier.in_features, module.classifier.out_features) == (6, K)
    assert isinstance(module.loss, nn.CrossEntropyLoss)
    assert module.splits == ["validation", "test"]
    assert module.seed == 0
    images = build(recipe(backbone=Part("SmallCNN", {"widths": [6]})), [], data=data()).module("learned", 0)
    assert images.backbone[0].in_channels == 3
    assert images(data().train[:4][0]).shape == (4, K)


def test_class_counts_come_from_the_data():
    method = Method(Part("LinearClassifier"), Part("LogitAdjustedCrossEntropy"))
    loss = build(recipe(methods={"la": method}), [], data=data()).module("la", 0).loss
    assert torch.equal(loss.class_counts, data().class_counts)


def test_mixup_is_passed_on():
    assert build(recipe(mixup_alpha=0.5), [], data=data()).module("learned", 0).mixup_alpha == 0.5


def test_a_seed_gives_all_methods_the_same_backbone():
    methods = {
        "learned": Method(Part("LinearClassifier")),
        "etf": Method(Part("SimplexETFClassifier", {"seed": AUTO}), Part("DotRegressionLoss")),
    }
    shared = recipe(methods=methods)
    one, other = (build(shared, [], data=data()).module(method, 1) for method in methods)
    third = build(shared, [], data=data()).module("etf", 2)
    same = [torch.equal(p, q) for p, q in zip(one.backbone.parameters(), other.backbone.parameters(), strict=True)]
    assert all(same)
    assert not torch.equal(one.backbone[1].weight, third.backbone[1].weight)
    assert not torch.equal(other.classifier.weight, third.classifier.weight)


def test_one_seed_gives_one_module_whatever_was_drawn_before():
    one = build(recipe(), [], data=data()).module("learned", 1)
    torch.rand(7)
    again = build(recipe(), [], data=data()).module("learned", 1)
    assert all(torch.equal(p, q) for p, q in zip(one.parameters(), again.parameters(), strict=True))


def test_the_number_of_samples_reaches_the_backbone():
    part = TensorDataset(torch.arange(40), torch.arange(40) % K)
    free = ClassificationData(part, None, part, K, tuple("abcde"), part.tensors[1].bincount())
    module = build(recipe(backbone=Part("FreeFeatures", {"dim": 6})), [], data=free).module("learned", 0)
    assert isinstance(module.backbone, FreeFeatures)
    assert module.backbone.weight.shape == (40, 6)


def test_threads():
    before = torch.get_num_threads()
    try:
        build(recipe(num_threads=2), [], data=data()).module("learned", 0)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


# --- transforms ---

COLOURS = {"mean": [0.5] * 3, "std": [0.5] * 3}


def pictures(dtype=torch.uint8):
    """White images, whose every crop is white."""
    part = TensorDataset(torch.full((40, 3, 6, 8), 255).to(dtype), torch.arange(40) % K)
    return ClassificationData(part, None, part, K, tuple("abcde"), part.tensors[1].bincount())


def with_transform(**args):
    return recipe(transform=Part("ImageTransform", {**COLOURS, **args}), backbone=Part("SmallCNN", {"widths": [6]}))


def test_a_transform_stands_in_front_of_the_backbone_and_is_trained_with_it():
    module = build(with_transform(crop=4, flip=False), [], data=pictures()).module("learned", 0)
    transform, backbone = module.backbone
    assert isinstance(transform, ImageTransform)
    assert module.classifier.in_features == backbone.out_features == 6
    seen = []
    backbone.register_forward_pre_hook(lambda layer, args: seen.append((transform.training, args[0])))
    fitted = trainer(max_epochs=1, limit_train_batches=1, limit_val_batches=1)
    fitted.fit(module, make_loader(pictures().train, 16), make_loader(pictures().test, 16))
    assert [training for training, _ in seen] == [True, False]
    assert all(torch.equal(images, torch.ones(16, 3, 4, 4)) for _, images in seen)


def test_a_transform_changes_no_weight():
    plain, augmented = (
        build(chosen, [], data=pictures(torch.float32)).module("learned", 3)
        for chosen in (recipe(backbone=Part("SmallCNN", {"widths": [6]})), with_transform(padding=2))
    )
    pairs = zip(plain.parameters(), augmented.parameters(), strict=True)
    assert all(torch.equal(p, q) for p, q in pairs)


def test_sizes_are_those_after_the_transform():
    chosen = replace(with_transform(crop=4), backbone=Part("MLP", {"widths": [5]}))
    assert build(chosen, [], data=pictures()).module("learned", 0).backbone[1][1].in_features == 3 * 4 * 4


def test_a_transform_of_other_images_is_found_before_training():
    with pytest.raises(ShapeError, match=r"images must have shape .*C = 3, .* got \(1, 1, 8, 8\)"):
        build(with_transform(), data=Digits(flatten=False).load())
    with pytest.raises(ShapeError, match="at least crop = 9"):
        build(with_transform(crop=9), data=pictures())


@pytest.mark.parametrize(
    ("part", "text"),
    [
        (Part("ImageTransform", {"mean": [0.5]}), r"transform\.args must set std"),
        (Part("ImageTransform", {"mean": "grey", "std": [1.0]}), r"transform\.args: .*mean"),
        (Part("Transform"), r"transform\.name: no class or function 'Transform' in tightframe\.training, torch\.nn"),
        (Part("torch.optim.SGD"), r"transform\.name must be a Module"),
    ],
)
def test_a_transform_that_cannot_be_bound(part, text):
    with pytest.raises(ConfigError, match=text):
        build(recipe(transform=part), [], data=pictures()).module("learned", 0)


def test_integers_cannot_be_mixed_whatever_the_transform_makes_of_them():
    chosen = replace(with_transform(), mixup_alpha=0.5)
    with pytest.raises(ConfigError, match=r"mixup_alpha must be 0: inputs of type torch\.uint8 cannot be mixed"):
        build(chosen, data=pictures())
    build(chosen, data=pictures(torch.float32))


# --- optimisers ---


def test_automatic_gradient_descent_starts_from_scaled_orthogonal_weights():
    plain = {"backbone": Part("MLP", {"widths": [6, 5], "batch_norm": False, "relu_last": False})}
    bias_free = {"classifier": Part("NormalizedLinear", {"projected": True})}
    chosen = recipe(optimizer=Part("AGD"), methods={"learned": Method(**bias_free)}, **plain)
    with pytest.raises(ArgumentError, match=r"got \(6,\).*bias=False"):
        build(chosen, [], data=data()).module("learned", 0)
    chosen = recipe(
        optimizer=Part("AGD"), methods={"learned": Method(**bias_free)}, backbone=Part("FreeFeatures", {"dim": 6})
    )
    free = FreeSamples(num_classes=3, samples_per_class=4).load()
    modules = [build(chosen, [], data=free).module("learned", seed) for seed in (1, 1, 2)]
    tables = [module.backbone.weight.detach() for module in modules]
    assert torch.equal(tables[0], tables[1])
    assert not torch.equal(tables[0], tables[2])
    torch.testing.assert_close(torch.linalg.svdvals(tables[0]), torch.full((6,), (12 / 6) ** 0.5))
    torch.testing.assert_close(modules[0].classifier.vectors.norm(dim=1), torch.ones(3))
    optimizer = modules[0]._optimizer(modules[0].parameters())
    assert isinstance(optimizer, AGD)
    assert torch.equal(modules[0].backbone.weight, tables[0])


@pytest.mark.parametrize(
    ("scheduler", "last"),
    [
        (None, 0.1),
        (Part("CosineAnnealingLR"), 0.1 * (1 + math.cos(5 / 6 * math.pi)) / 2),
        (Part("LinearLR", {"start_factor": 1.0, "end_factor": 0.4, "total_iters": AUTO}), 0.05),
        (Part("StepLR", {"step_size": 3}), 0.01),
        (Part("OneCycleLR", {"max_lr": 0.4, "total_steps": AUTO, "final_div_factor": 1e3}), 0.4 / 25 / 1e3),
    ],
)
def test_optimizer_and_the_rate_of_its_last_step(scheduler, last):
    class Rates(Callback):
        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            rates.append(trainer.optimizers[0].param_groups[0]["lr"])

    rates = []
    module = build(recipe(scheduler=scheduler), [], data=data()).module("learned", 0)
    fitted = trainer(Rates(), max_epochs=2)
    fitted.fit(module, make_loader(data().train, 16), make_loader(data().test, 16))
    assert isinstance(fitted.optimizers[0], torch.optim.SGD)
    assert len(rates) == 6
    assert rates[-1] == pytest.approx(last)


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"backbone": Part("torch.nn.Flatten")}, "backbone.name: torch.nn.Flatten has no integer out_features"),
        ({"backbone": Part("MLQ")}, "backbone.name: no class or function 'MLQ' in tightframe.training, torch.nn"),
        ({"backbone": Part("MLP")}, "backbone.args must set widths for MLP"),
        ({"methods": {"learned": Method(Part("MLP"))}}, "methods.learned.classifier.name: no class or function 'MLP'"),
        ({"methods": {"learned": Method(Part("LinearClassifier"), Part("Loss"))}}, "methods.learned.loss.name"),
    ],
)
def test_parts_that_cannot_be_bound(changes, text):
    with pytest.raises(ConfigError, match=text):
        build(recipe(**changes), [], data=data()).module("learned", 0)


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"optimizer": Part("SGD", {"lr": "fast"})}, "optimizer.args"),
        ({"optimizer": Part("ReLU")}, "optimizer.name"),
        ({"optimizer": Part("torch.nn.ReLU")}, "optimizer.name must be a Optimizer"),
        ({"scheduler": Part("StepLR")}, "scheduler.args must set step_size"),
        ({"scheduler": Part("CosineLR")}, "scheduler.name"),
    ],
)
def test_an_optimizer_that_cannot_be_bound(changes, text):
    def train():
        module = build(recipe(**changes), [], data=data()).module("learned", 0)
        trainer(max_epochs=1).fit(module, make_loader(data().train, 16), make_loader(data().test, 16))

    with pytest.raises(ConfigError, match=text):
        train()


# --- mistakes are found before the first training ---


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"backbone": Part("SmallCNN", {"widths": [6]})}, "methods.learned: inputs of type torch.uint8 and shape"),
        ({"methods": {"a/b": Method(Part("LinearClassifier"))}}, "methods must have names of letters"),
    ],
)
def test_what_training_would_find(changes, text):
    with pytest.raises(ConfigError, match=text):
        build(recipe(**changes), data=pictures())


# --- paths and trust ---


def test_sources_are_the_files_that_were_read(tmp_path):
    for name in ("train-0.npz", "train-1.npz", "test.npz", "tree.tsv"):
        (tmp_path / name).touch()
    args = {"train": [str(tmp_path / "train-*.npz")], "test": str(tmp_path / "test.npz"), "validation": None}
    wanted = recipe(data=Part("FeatureFiles", args), hierarchy=str(tmp_path / "tree.tsv"))
    assert Experiment(wanted, data(), {}).sources == {
        "hierarchy": tmp_path / "tree.tsv",
        "data.args.train (train-0.npz)": tmp_path / "train-0.npz",
        "data.args.train (train-1.npz)": tmp_path / "train-1.npz",
        "data.args.test (test.npz)": tmp_path / "test.npz",
    }


def test_paths_start_at_the_folder_of_the_recipe(tmp_path):
    plain = {
        "hierarchy": "tree.tsv",
        "methods": {"a": {"hierarchy": "../b.tsv"}, "b": {"hierarchy": None}, "c": 3},
        "data": {"name": "ImageFolder", "args": {"root": "images", "size": 8}},
    }
    found = located(plain, tmp_path / "recipes")
    assert found["hierarchy"] == str(tmp_path / "recipes" / "tree.tsv")
    assert found["methods"] == {"a": {"hierarchy": str(tmp_path / "b.tsv")}, "b": {"hierarchy": None}, "c": 3}
    assert found["data"]["args"] == {"root": str(tmp_path / "recipes" / "images"), "size": 8}
    assert located(found, tmp_path / "elsewhere") == found
    assert located(["no recipe"], tmp_path) == ["no recipe"]


# --- what a method changes in the backbone ---


def of_tokens(**method):
    chosen = small_recipe("tokens", Method(Part("LinearClassifier"), **method), optimizer=Part("AdamW", {"lr": 0.01}))
    return chosen, build(chosen, [], trust=True).data


@pytest.mark.parametrize(
    ("which", "layers"), [("w1", ["linear1"]), ("w2", ["linear2"]), ("both", ["linear1", "linear2"])]
)
def test_fixed_feed_forward_weights_stay_bit_for_bit_while_the_rest_is_trained(which, layers):
    chosen, loaded = of_tokens(etf_transformer={"which": which})
    module = build(chosen, [], trust=True, data=loaded).module("learned", 0)
    before = {name: p.detach().clone() for name, p in module.named_parameters()}
    trainer(max_epochs=-1, max_steps=2).fit(module, make_loader(loaded.train, 16), make_loader(loaded.test, 16))
    same = [name for name, p in module.named_parameters() if torch.equal(p, before[name])]
    assert same == [f"backbone.blocks.{i}.{layer}.weight" for i in (0, 1) for layer in layers]


def test_fixed_feed_forward_weights_are_drawn_by_the_seed_of_the_run_unless_they_have_their_own():
    def weight(seed, /, **args):
        chosen, loaded = of_tokens(etf_transformer={"which": "w2", **args})
        return build(chosen, [], trust=True, data=loaded).module("learned", seed).backbone.blocks[0].linear2.weight

    assert torch.equal(weight(1), weight(1))
    assert not torch.equal(weight(1), weight(2))
    assert torch.equal(weight(1, seed=7), weight(2, seed=7))
    assert torch.equal(weight(7), weight(1, seed=7))


def test_fixed_feed_forward_weights_change_no_other():
    chosen, loaded = of_tokens(etf_transformer={"which": "w2"})
    plain, _ = of_tokens()
    fixed, free = (build(r, [], data=loaded, trust=True).module("learned", 3).state_dict() for r in (chosen, plain))
    differing = [name for name in free if not torch.equal(fixed[name], free[name])]
    assert differing == [f"backbone.blocks.{i}.linear2.weight" for i in (0, 1)]


def test_a_method_has_its_own_arguments_for_the_backbone():
    chosen, loaded = of_tokens(backbone={"feed_forward": 0, "blocks": 3})
    backbone = build(chosen, [], trust=True, data=loaded).module("learned", 0).backbone
    assert len(backbone.blocks) == 3
    assert not any(hasattr(block, "linear1") for block in backbone.blocks)
    assert backbone.out_features == 8
    assert chosen.backbone.args["feed_forward"] == 12


@pytest.mark.parametrize(
    ("method", "text"),
    [
        ({"etf_transformer": {"whcih": "w2"}}, "methods.learned.etf_transformer: .*'whcih'"),
        ({"etf_transformer": {"model": "x"}}, "methods.learned.etf_transformer: .*'model'"),
        ({"etf_transformer": {"blocks": 1}}, "methods.learned.etf_transformer: .*not iterable"),
        ({"etf_transformer": {"which": "w3"}}, "which must be one of"),
        ({"etf_transformer": {"blocks": [2]}}, r"blocks must be some of 0\.\.1"),
        ({"etf_transformer": {"kind": "class-rank"}}, "kind must be one of"),
        ({"etf_transformer": {"gain": [1]}}, "gain"),
        ({"etf_transformer": {"seed": "auto"}}, "seed"),
        ({"etf_transformer": {}, "backbone": {"feed_forward": 0}}, "no feed-forward layers were found"),
        ({"backbone": {"feedforward": 0}}, "backbone with methods.learned.backbone.args: .* takes no 'feedforward'"),
        ({"backbone": {"feed_forward": "wide"}}, "backbone with methods.learned.backbone.args: .*feed_forward"),
        ({"backbone": {"feed_forward": -1}}, "feed_forward must be an integer >= 0"),
        ({"backbone": {"dropout": 2.0}}, "backbone with methods.learned.backbone: TokenTransformer cannot be made"),
        ({"backbone": {"heads": 3}}, "dim must be a multiple of heads"),
    ],
)
def test_what_a_method_cannot_change_in_the_backbone(method, text):
    chosen, loaded = of_tokens(**method)
    with pytest.raises(TightframeError, match=text) as caught:
        build(chosen, data=loaded, trust=True)
    assert "\n" not in str(caught.value)
