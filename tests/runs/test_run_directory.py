import json
from dataclasses import asdict, replace

import pytest
import torch
import yaml

from tests.recipe_material import data, recipe
from tightframe.config import Method, Part
from tightframe.errors import ConfigError, ResumeError
from tightframe.run_directory import check_directory, write_directory


def open_directory(out, chosen):
    """What a command does with its directory before and after everything has been bound."""
    check_directory(out, chosen)
    write_directory(out, chosen, data())


def test_a_new_directory_holds_configuration_and_versions(tmp_path):
    out = tmp_path / "a" / "b"
    open_directory(out, recipe())
    assert yaml.safe_load((out / "config.yaml").read_text()) == asdict(recipe())
    versions = json.loads((out / "versions.json").read_text())
    assert versions["torch"] == torch.__version__
    assert {"python", "platform", "tightframe", "numpy", "lightning"} <= versions.keys()
    assert not list(out.glob("*.partial"))


def test_the_same_recipe_opens_it_again(tmp_path):
    tuples = recipe(backbone=Part("MLP", {"widths": (8, 6)}), description="Çay")
    open_directory(tmp_path, tuples)
    open_directory(tmp_path, tuples)
    open_directory(tmp_path, replace(tuples, backbone=Part("MLP", {"widths": [8, 6]})))


@pytest.mark.parametrize(
    ("changes", "keys"),
    [
        ({"epochs": 3}, "epochs"),
        ({"optimizer": Part("SGD", {"lr": 0.2, "momentum": 0.9})}, "optimizer.args.lr, optimizer.args.momentum"),
        ({"scheduler": Part("StepLR", {"step_size": 3})}, "scheduler"),
        ({"methods": {"other": Method(Part("LinearClassifier"))}}, "methods.learned, methods.other"),
        ({"trainer": {"precision": "bf16-mixed"}, "mixup_alpha": 1.0}, "mixup_alpha, trainer.precision"),
    ],
)
def test_another_recipe_is_refused_by_its_keys(tmp_path, changes, keys):
    open_directory(tmp_path, recipe())
    before = (tmp_path / "config.yaml").read_bytes()
    with pytest.raises(ResumeError, match=f"another configuration: {keys} differ; choose another --out"):
        open_directory(tmp_path, recipe(**changes))
    assert (tmp_path / "config.yaml").read_bytes() == before


def test_a_directory_from_before_a_key_existed_opens_again(tmp_path):
    open_directory(tmp_path, recipe())
    config = yaml.safe_load((tmp_path / "config.yaml").read_text())
    for key in ("adaptive", "etf_transformer", "backbone"):
        del config["methods"]["learned"][key]
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
    open_directory(tmp_path, recipe())
    del config["collapse"]
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
    changed = Method(Part("LinearClassifier"), backbone={"widths": [3]})
    with pytest.raises(ResumeError, match=r"configuration: methods\.learned\.backbone differ"):
        open_directory(tmp_path, recipe(methods={"learned": changed}))


@pytest.mark.parametrize("text", ["", "- 1", "data: 3", "a: b"])
def test_a_configuration_that_is_none(tmp_path, text):
    (tmp_path / "config.yaml").write_text(text)
    with pytest.raises(ResumeError, match="another configuration"):
        open_directory(tmp_path, recipe())


def test_a_configuration_that_is_no_yaml(tmp_path):
    (tmp_path / "config.yaml").write_text("data: [")
    with pytest.raises(ResumeError, match="cannot be read as YAML"):
        open_directory(tmp_path, recipe())


@pytest.mark.parametrize("break_it", [lambda path: path.write_bytes(b"\xff\xfe\xff"), lambda path: path.mkdir()])
def test_a_configuration_that_cannot_be_read(tmp_path, break_it):
    break_it(tmp_path / "config.yaml")
    with pytest.raises(ResumeError, match=r"config\.yaml cannot be read"):
        open_directory(tmp_path, recipe())


@pytest.mark.parametrize("below", [".", "runs"])
def test_a_directory_that_cannot_be_made(tmp_path, below):
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match=r"--out .*file.* cannot be written"):
        open_directory(tmp_path / "file" / below, recipe())
