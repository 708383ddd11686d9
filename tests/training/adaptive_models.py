"""What the tests of AdaptiveETF train: a network of five linear maps, its curves measured or written by hand."""

from functools import partial
from types import SimpleNamespace

import torch
from lightning.pytorch import Callback
from torch import nn

from tests.training.models import TRAIN, D, K, trainer
from tightframe.moments import ClassMoments
from tightframe.nn import LinearClassifier
from tightframe.training import AdaptiveETF, ClassifierModule, adaptive, make_loader

WIDTH = 6
LAYERS = ("backbone.0", "backbone.3", "backbone.6", "backbone.9", "classifier")
WEIGHTS = [f"{name}.weight" for name in LAYERS]
STEPS = 6  # of an epoch
momentum = partial(torch.optim.SGD, lr=0.1, momentum=0.9, weight_decay=0.01)


def network(scheduler=None, *, optimizer=momentum, classifier=None, norm=nn.BatchNorm1d, width=WIDTH, **options):
    torch.manual_seed(0)
    blocks = [[nn.Linear(D if i == 0 else width, width), norm(width), nn.ReLU()] for i in range(4)]
    backbone = nn.Sequential(*(layer for block in blocks for layer in block))
    classifier = classifier or LinearClassifier(width, K)
    return ClassifierModule(backbone, classifier, nn.CrossEntropyLoss(), optimizer, scheduler, seed=1, **options)


def curve(depth):
    """Errors of which the depth is the effective one, or those of a network without one."""
    return tuple(float(depth is None or layer < depth) for layer in range(1, len(LAYERS) + 1))


def playing(monkeypatch, curves):
    """Put curves, or the depths of curves, in place of what is measured, one a check; return what is left of them."""
    rest = list(curves)

    def probe(module, batches, *, ncc, **options):
        if not ncc:
            return SimpleNamespace(layers=LAYERS, moments={"0": ClassMoments(3, 1)})
        found = rest.pop(0)
        return SimpleNamespace(layers=LAYERS, ncc_error=found if isinstance(found, tuple) else curve(found))

    monkeypatch.setattr(adaptive, "probe_layers", probe)
    return rest


def fit(callback, *others, model=None, loader=None, epochs=6, **options):
    """Train a network, the callback after the others, and return it."""
    model = model or network()
    fitted = trainer(*others, callback, max_epochs=epochs, **options)
    fitted.fit(model, loader or make_loader(TRAIN, 10, seed=0))
    return model


def easy(**options):
    """The callback with a rule that finds depth 1 in everything, for tests of what comes after."""
    return AdaptiveETF(**{"epsilon": 0.999, "patience": 2, **options})


def locks(callback):
    """Names of the layers that were locked, by epoch."""
    found = {}
    for row in callback.records.where(metric="lock.distance"):
        found.setdefault(row.epoch, []).append(row.layer)
    return found


class Rates(Callback):
    """The learning rate of every step."""

    def __init__(self):
        self.steps = []

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        self.steps.append(float(trainer.optimizers[0].param_groups[0]["lr"]))


class Seen(Callback):
    """Batches of every epoch, and the state of the random numbers at the start of each."""

    def __init__(self):
        self.batches = []
        self.states = []

    def on_train_epoch_start(self, trainer, pl_module):
        self.states.append(torch.get_rng_state())

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        self.batches.append(batch[0].clone())


class At(Callback):
    """Calls a function with the model at the end of an epoch."""

    def __init__(self, epoch, call):
        self.epoch, self.call = epoch, call

    def on_train_epoch_end(self, trainer, pl_module):
        if trainer.current_epoch + 1 == self.epoch:
            self.call(pl_module)


def copied(module):
    return {name: t.detach().clone() for name, t in module.state_dict().items()}
