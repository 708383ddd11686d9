import pytest
import torch

import tightframe as tf
from tightframe.errors import ArgumentError
from tightframe.probing import probe_layers
from tightframe.runs import write
from tightframe.ufm import CrossEntropyUFM, closed_form


def records():
    found = tf.Records()
    for epoch in (1, 2):
        found.add("accuracy", 0.3 * epoch, epoch=epoch, split="test")
    return found


def curves():
    model = torch.nn.Sequential(torch.nn.Linear(4, 5), torch.nn.ReLU(), torch.nn.Linear(5, 3))
    inputs = torch.randn(30, 4, generator=torch.Generator().manual_seed(0))
    return probe_layers(model, [(inputs, torch.arange(30) % 3)], num_classes=3)


@pytest.mark.parametrize(
    ("make", "titles"),
    [
        (records, ["Test accuracy %"]),
        (curves, ["nearest-class-centre error", "CDNV", "NC1"]),
        (lambda: tf.simplex_etf(4, 3), ["Gram matrix"]),
        (lambda: tf.SimplexETF(4, 3), ["Gram matrix"]),
        (lambda: tf.nearest_simplex_etf(torch.eye(4)), ["Gram matrix"]),
        (lambda: closed_form(CrossEntropyUFM((3, 3, 3), 3, 0.01, 0.01)), ["class vectors", "class means"]),
    ],
)
def test_the_figure_of_an_object(make, titles):
    axes = tf.plot(make()).axes
    for axis, title in zip(axes, titles, strict=False):
        assert axis.get_title("left").startswith(title) or axis.get_title().startswith(title)


def test_the_figure_of_a_directory(tmp_path):
    write(records(), tmp_path, run="mine")
    for given in (tmp_path, str(tmp_path)):
        (axis, *_) = tf.plot(given).axes
        assert [line.get_label() for line in axis.lines] == ["mine"]


@pytest.mark.parametrize("given", [3, tf.Records(), torch.zeros(3)])
def test_what_has_no_figure(given):
    with pytest.raises(ArgumentError, match="x must"):
        tf.plot(given)


def test_the_names_that_a_user_sees():
    assert {"plot", "measure", "nn", "Records"} <= set(dir(tf))
    assert not {"importlib", "annotations", "Any", "TYPE_CHECKING", "_HOMES"} & set(dir(tf))
    for name in dir(tf):
        getattr(tf, name)
