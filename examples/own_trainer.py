"""Measure collapse in your own Lightning training: one line, the callback."""

from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from tightframe.training import NeuralCollapseCallback


class MyModule(LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))

    def forward(self, inputs: Tensor) -> Tensor:
        return self.net(inputs)

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        inputs, labels = batch
        return nn.functional.cross_entropy(self(inputs), labels)

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.1, momentum=0.9)


def main(epochs: int = 20) -> NeuralCollapseCallback:
    torch.manual_seed(0)
    pixels, labels = load_digits(return_X_y=True)
    data = TensorDataset(torch.tensor(pixels / 16, dtype=torch.float32), torch.tensor(labels))
    callback = NeuralCollapseCallback(every_n_epochs=5, layers=["net.2"])
    trainer = Trainer(
        max_epochs=epochs, callbacks=[callback], accelerator="cpu", logger=False, enable_checkpointing=False
    )
    trainer.fit(MyModule(), DataLoader(data, batch_size=64, shuffle=True))
    return callback


if __name__ == "__main__":
    table = main().records.to_frame()
    chosen = table[table.metric.isin(["nc1.pinv", "nc2.max_angle.means", "nc3.distance", "nc4.agreement"])]
    print(chosen.pivot_table(index="epoch", columns=["layer", "metric"], values="value").to_string())
