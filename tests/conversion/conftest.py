import pytest

from tests.conversion.material import run_of
from tightframe.config import Part
from tightframe.surgery import convert as conversion


@pytest.fixture(autouse=True)
def hurry(monkeypatch):
    monkeypatch.setattr(conversion, "ROUNDS", 2)


@pytest.fixture(scope="package")
def mlp(tmp_path_factory):
    return run_of(tmp_path_factory, "mlp")


@pytest.fixture(scope="package")
def cnn(tmp_path_factory):
    return run_of(tmp_path_factory, "cnn", "images")


@pytest.fixture(scope="package")
def transformer(tmp_path_factory):
    return run_of(tmp_path_factory, "transformer", "tokens", optimizer=Part("AdamW", {"lr": 0.01}))
