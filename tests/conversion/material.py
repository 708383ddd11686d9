"""Small problems of three kinds of input, and short trainings on them in run directories, to be converted."""

import copy
from dataclasses import asdict

import torch
from torch import nn
from torch.utils.data import TensorDataset

from tightframe import config
from tightframe.config import Method, Part, Recipe, load_run
from tightframe.data import ClassificationData, DataSource
from tightframe.runs import open_directory
from tightframe.surgery.convert import Parts
from tightframe.training import fit, make_loader

K = 4
SHAPES = {"vectors": (6,), "images": (1, 8, 8), "tokens": (6,), "bytes": (3, 8, 8)}
VOCABULARY = 20


class Blobs(DataSource):
    """Four classes that overlap a little.

    Args:
        kind: of input.
        validation: whether there is such a part.
    """

    def __init__(self, kind: str = "vectors", validation: bool = False):
        self.kind = kind
        self.validation = validation

    def load(self):
        generator = torch.Generator().manual_seed(0)
        centers = torch.randn(K, *SHAPES[self.kind], generator=generator)

        def part(size):
            labels = torch.arange(size) % K
            places = centers[labels]
            if self.kind == "vectors":  # each class is two blobs, whose mean says nothing
                places = (
                    1.5 * places * torch.arange(size)[:, None].div(K, rounding_mode="floor").remainder(2).mul(2).sub(1)
                )
            inputs = places + 0.7 * torch.randn(size, *SHAPES[self.kind], generator=generator)
            inputs[1] = inputs[0]  # of another class: no layer of any network tells all samples apart
            if self.kind == "tokens":
                inputs = (3 * inputs + VOCABULARY / 2).long().clamp(0, VOCABULARY - 1)
            if self.kind == "bytes":
                inputs = (40 * inputs + 128).clamp(0, 255).to(torch.uint8)
            return TensorDataset(inputs, labels)

        train, test = part(130), part(70)
        names = tuple("abcd")
        counts = train.tensors[1].bincount()
        return ClassificationData(train, part(30) if self.validation else None, test, K, names, counts)


BACKBONES = {
    "vectors": Part("MLP", {"widths": [12, 10, 8]}),
    "images": Part("SmallCNN", {"widths": [4, 6, 8]}),
    "bytes": Part("SmallCNN", {"widths": [4, 6, 8]}),
    "tokens": Part("TokenTransformer", {"vocabulary": VOCABULARY, "dim": 8, "heads": 2, "feed_forward": 12}),
}


def recipe(kind="vectors", method=None, **changes):
    given = {
        "data": Part("tests.conversion.material.Blobs", {"kind": kind}),
        "backbone": BACKBONES[kind],
        "methods": {"learned": method or Method(Part("LinearClassifier"))},
        "optimizer": Part("SGD", {"lr": 0.1, "momentum": 0.9}),
        "epochs": 10 if kind == "vectors" else 3,
        "batch_size": 20,
        "collapse": {"every_n_epochs": 10},
    }
    return Recipe(**{**given, **changes})


def trained(out, chosen, seed=0):
    """Train the one method of a recipe; return its directory, and the module as it was at the end."""
    ((method, how),) = chosen.methods.items()
    experiment = config.build(chosen, [], trust=True)
    names, trees, sources = experiment.data.class_names, experiment.trees, experiment.sources
    open_directory(out, asdict(chosen), class_names=names, trees=trees, sources=sources)
    directory = out / method / f"seed-{seed}"
    module = experiment.module(method, seed)
    fit(
        module,
        experiment.data.train,
        experiment.evaluation,
        directory,
        run=method,
        seed=seed,
        epochs=chosen.epochs,
        batch_size=chosen.batch_size,
        collapse=chosen.collapse,
        trainer={"accelerator": "cpu"},
        adaptive=how.adaptive,
    )
    return directory, module


def run_of(factory, name, *args, **kwargs):
    chosen = recipe(*args, **kwargs)
    directory, module = trained(factory.mktemp(name), chosen)
    return directory, module.eval(), chosen, config.build(chosen, [], trust=True).data


def opened(run):
    directory, _, chosen, data = run
    return load_run(directory, trust=True).network, parts_of(data, chosen.batch_size)


def parts_of(data, batch_size):
    train, test = (make_loader(part, 512) for part in (data.train, data.test))
    return Parts(data.num_classes, train, test, make_loader(data.train, batch_size, seed=0))


def right(network, part):
    """The share of samples that a network gets right."""
    inputs, labels = part.tensors
    with torch.no_grad():
        return (copy.deepcopy(network).eval()(inputs).argmax(dim=1) == labels).double().mean().item()


def size(network, trained_alone=False):
    return sum(p.numel() for p in network.parameters() if p.requires_grad or not trained_alone)


def same_state(a, b):
    a, b = a.state_dict(), b.state_dict()
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


def early_means_err():
    """A network whose last layer alone has nearest class means that never err, and its data."""
    network = nn.Sequential(nn.Linear(2, 2, bias=False), nn.BatchNorm1d(2), nn.Linear(2, 2, bias=False))
    with torch.no_grad():
        network[0].weight.copy_(torch.eye(2))
        network[2].weight.copy_(torch.tensor([[-1.0, 0.0], [1.0, 0.0]]))
        network[1].bias.copy_(torch.tensor([-0.5, 0.0]))
    points = torch.tensor([[0.0, 0.0], [0.0, 10.0], [0.0, 10.0], [1.0, 0.0], [1.0, 0.0], [1.0, 10.0]])
    labels = torch.tensor([0, 0, 0, 1, 1, 1])
    part = TensorDataset(points, labels)
    return network, ClassificationData(part, None, part, 2, ("a", "b"), labels.bincount())


def first_means_err():
    """The same with two layers more, so that the first alone has means that err."""
    network, data = early_means_err()
    beyond = nn.Linear(2, 3, bias=False), nn.BatchNorm1d(3), nn.Linear(3, 2, bias=False)
    with torch.no_grad():
        beyond[0].weight.copy_(torch.eye(3, 2))
        beyond[2].weight.copy_(torch.eye(2, 3))
    return nn.Sequential(*network, nn.BatchNorm1d(2), *beyond), data
