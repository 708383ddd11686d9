"""What a user might bring to a Trainer: a small problem, a plain LightningModule, and the Trainer itself."""

import copy
from functools import partial

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import nn
from torch.utils.data import DataLoader, Dataset, TensorDataset

from tests.problems import scattered, simplex
from tightframe.nn import LinearClassifier
from tightframe.training import ClassifierModule, make_loader

# What Lightning says of a Trainer as small as these.
quiet = pytest.mark.filterwarnings("ignore::UserWarning", "ignore:.*LeafSpec.*")

K, D = 3, 4


def dataset(n=20, seed=0, dtype=torch.float32):
    problem = scattered(2 * simplex(K, D), [n + 7, n - 2, n - 5], 0.6, seed=seed)
    return TensorDataset(problem.features.to(dtype), problem.labels)


def undecidable(data):
    """The inputs of a dataset, each under every label: whatever is trained is right about one in K of them."""
    inputs = data.tensors[0]
    return TensorDataset(inputs.repeat_interleave(K, dim=0), torch.arange(K).repeat(len(inputs)))


TRAIN, VALIDATION = dataset(), dataset(8, seed=7)


class Pairs(Dataset):
    """The same samples as a dataset that is no TensorDataset."""

    def __init__(self, tensors=TRAIN):
        self.tensors = tensors

    def __len__(self):
        return len(self.tensors)

    def __getitem__(self, index):
        inputs, label = self.tensors[index]
        return inputs, int(label)


class Plain(LightningModule):
    """Nobody's idea of a base class: a network, its loss and its optimiser."""

    def __init__(self, lr=0.1):
        super().__init__()
        torch.manual_seed(0)
        self.lr = lr
        self.net = nn.Sequential(
            nn.Linear(D, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Dropout(0.3), nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, K)
        )

    def forward(self, inputs):
        return self.net(inputs)

    def training_step(self, batch, batch_idx):
        return nn.functional.cross_entropy(self(batch[0]), batch[1])

    def validation_step(self, batch, batch_idx, dataloader_idx=0):
        self.log("validation_loss", nn.functional.cross_entropy(self(batch[0]), batch[1]))

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), self.lr)


class Weights(Callback):
    """Keeps the weights before training and after every epoch, by completed epochs."""

    def __init__(self):
        self.after = {}

    def on_train_start(self, trainer, pl_module):
        self.after[0] = copy.deepcopy(pl_module.state_dict())

    def on_train_epoch_end(self, trainer, pl_module):
        self.after[trainer.current_epoch + 1] = copy.deepcopy(pl_module.state_dict())


def sgd(lr):
    return partial(torch.optim.SGD, lr=lr)


def module(*, classifier=None, loss=None, lr=0.1, **options):
    torch.manual_seed(0)
    backbone = nn.Sequential(nn.Linear(D, 5), nn.ReLU())
    return ClassifierModule(
        backbone, classifier or LinearClassifier(5, K), loss or nn.CrossEntropyLoss(), sgd(lr), **options
    )


def trainer(*callbacks, **options):
    bare = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False)
    short = {"accelerator": "cpu", "devices": 1, "max_epochs": 2, "num_sanity_val_steps": 0}
    return Trainer(callbacks=list(callbacks), **{**bare, **short, **options})


def shuffled(data=TRAIN, batch_size=10):
    return DataLoader(data, batch_size, shuffle=True)


def ordered(data=VALIDATION, batch_size=7):
    return make_loader(data, batch_size)


def fit_with(callback, *others, model=None, train=None, validation=None, **options):
    model = model or Plain()
    trainer(*others, callback, **options).fit(model, shuffled() if train is None else train, validation)
    return model


def measured(callback, **options):
    fit_with(callback, **options)
    return callback.records
