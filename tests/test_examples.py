import importlib.util
from pathlib import Path

EXAMPLES = Path(__file__).parents[1] / "examples"


def load(name):
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_own_trainer_gets_the_collapse_of_two_layers(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    records = load("own_trainer").main(epochs=10).records
    assert records.unique("epoch") == [0, 5, 10]
    assert records.unique("layer") == ["net.2", "features"]
    assert all(records.value("nc1.ratio", layer=layer, epoch=10) > 0 for layer in ("net.2", "features"))


def test_every_example_is_tested():
    assert [p.stem for p in sorted(EXAMPLES.glob("*.py"))] == ["own_trainer"]
