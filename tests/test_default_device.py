"""Under ``torch.set_default_device`` draws and indices stay on the CPU, and results are those without it."""

import pytest
import torch
from torch.utils.data import TensorDataset

from tightframe import ufm
from tightframe.data import Digits, FreeSamples, long_tailed_counts
from tightframe.frames import hierarchy_aware_frame
from tightframe.functional import gnc2, severity_metrics
from tightframe.hierarchy import Tree
from tightframe.nn import NearestETFClassifier
from tightframe.training import ImageTransform, make_loader
from tightframe.training.loaders import evaluation_loader

from .problems import draw

X, Y = draw(60, 8).float(), torch.arange(60) % 4
TREE = Tree.from_nested({"E": ["A", "B"], "F": ["C", "D"]})
IMAGES = torch.arange(2 * 3 * 8 * 8, dtype=torch.uint8).view(2, 3, 8, 8)
TRANSFORM = ImageTransform([0.5] * 3, [0.5] * 3, padding=2, flip=True)


def transformed():
    torch.manual_seed(0)
    return [TRANSFORM(IMAGES)]


def classified():
    classifier = NearestETFClassifier(8, 4, device="cpu")
    classifier(X, Y)
    return list(classifier.state_dict().values())


def solved():
    problem = ufm.CrossEntropyUFM((2,) * 3, 4, 0.01, 0.01)
    found = ufm.closed_form(problem)
    return [found.W, ufm.solve(problem).W, torch.tensor([ufm.certify(problem, found).gap], device="cpu")]


def shuffled(data):
    return make_loader(data, 16, seed=0)


CALLS = {
    "loader": lambda: [part for batch in shuffled(TensorDataset(X, Y)) for part in batch],
    "loader of samples": lambda: [batch[0] for batch in shuffled([(x, 0) for x in X])],
    "evaluation loader": lambda: [part for b in evaluation_loader(shuffled(TensorDataset(X, Y)), 7) for part in b],
    "transform": transformed,
    "digits": lambda: Digits(imbalance=0.1).load().train[:],
    "free samples": lambda: FreeSamples(num_classes=3, samples_per_class=2).load().train[:],
    "long-tailed counts": lambda: [long_tailed_counts(4, 10, 0.1)],
    "hierarchy-aware frame": lambda: [hierarchy_aware_frame(TREE.distances(), 2, asymptote="max-separation").frame],
    "severity": lambda: list(severity_metrics(X[:, :4], Y, TREE.distances()).values()),
    "Riesz energy": lambda: [gnc2(X[:4], "riesz")],
    "nearest simplex": classified,
    "free-feature model": solved,
}


@pytest.mark.parametrize("name", CALLS)
def test_the_default_device_does_not_matter(name):
    wanted = CALLS[name]()
    with torch.device("meta"):  # stands for "cuda": nothing can be computed there
        found = CALLS[name]()
    assert len(found) == len(wanted) > 0
    for one, other in zip(found, wanted, strict=True):
        assert torch.equal(one, other)
