"""A directory as a comparison writes it: tiny softmax networks really trained on scikit-learn's digits."""

from __future__ import annotations

import functools
import json
import math
from pathlib import Path

import numpy as np
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn

from tightframe.records import Records
from tightframe.runs.layout import CLASSES_FILE, CONFIG_FILE, RECORDS_FILE, SNAPSHOT_DIR, TIMING_FILE, VERSIONS_FILE
from tightframe.runs.snapshots import Snapshot

K, D = 10, 32
CLASS_NAMES = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]


def simplex(dim: int = D, num_classes: int = K) -> Tensor:
    ortho = torch.linalg.qr(torch.randn(dim, num_classes, generator=torch.Generator().manual_seed(7)))[0].T
    return math.sqrt(num_classes / (num_classes - 1)) * (ortho - ortho.mean(0))


class Network(nn.Module):
    def __init__(self, fixed: bool) -> None:
        super().__init__()
        layers = [nn.Linear(64, 128), nn.BatchNorm1d(128), nn.ReLU(), nn.Linear(128, D), nn.BatchNorm1d(D)]
        self.backbone = nn.Sequential(*layers)
        self.classifier = nn.Linear(D, K, bias=False)
        if fixed:
            self.classifier.weight.data = simplex()
            self.classifier.requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.backbone(x))


@functools.cache
def digits() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    images, labels = load_digits(return_X_y=True)
    x, y = torch.tensor(images / 16, dtype=torch.float32), torch.tensor(labels)
    test = torch.arange(len(y)) % 5 == 0
    return x[~test], y[~test], x[test], y[test]


def class_means(h: Tensor, y: Tensor) -> Tensor:
    return torch.stack([h[y == c].mean(0) for c in range(K)]).double()


def collapse(h: Tensor, y: Tensor, w: Tensor) -> dict[str, float]:
    h, w = h.double(), w.double()
    means = class_means(h, y)
    a = means - means.mean(0)
    within = (h - means[y]).T @ (h - means[y]) / len(y)
    between = a.T @ a / K
    off = ~torch.eye(K, dtype=torch.bool)
    cosine = nn.functional.normalize(a) @ nn.functional.normalize(a).T
    gaps = torch.cdist(means, means)[off] ** 2
    nearest = torch.cdist(h, means).argmin(1)
    return {
        "nc1.pinv": float(torch.trace(within @ torch.linalg.pinv(between, rtol=1e-8))) / K,
        "nc1.ratio": float(within.trace() / between.trace()),
        "cdnv": float((within.trace() / gaps).mean()),
        "nc2.equinorm.means": float(a.norm(dim=1).std() / a.norm(dim=1).mean()),
        "nc2.equinorm.classifier": float(w.norm(dim=1).std() / w.norm(dim=1).mean()),
        "nc2.equiangularity.means": float(cosine[off].std()),
        "nc2.max_angle.means": float((cosine[off] + 1 / (K - 1)).abs().mean()),
        "nc3.distance": float(((w / w.norm() - a / a.norm()) ** 2).sum()),
        "nc4.agreement": float((nearest == (h @ w.T).argmax(1)).double().mean()),
        "ncc.accuracy": float((nearest == y).double().mean()),
    }


def train(
    directory: Path, run: str, seed: int, *, fixed: bool, epochs: int, every: int, weight_decay: float, samples: int
) -> None:
    torch.manual_seed(seed)
    x, y, x_test, y_test = digits()
    x, y = x[:samples], y[:samples]
    net = Network(fixed)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.05, momentum=0.9, weight_decay=weight_decay)
    shown = torch.cat([torch.nonzero(y == c)[:40, 0] for c in range(K)])
    records, step = Records(), 0
    for epoch in range(epochs + 1):
        if epoch:
            net.train()
            for batch in torch.randperm(len(y)).split(64):
                optimizer.zero_grad()
                nn.functional.cross_entropy(net(x[batch]), y[batch]).backward()
                optimizer.step()
                step += 1
        net.eval()
        with torch.no_grad():
            h, w = net.backbone(x), net.classifier.weight
            where = {"run": run, "seed": seed, "epoch": epoch, "step": step}
            for split, logits, labels in (("train", h @ w.T, y), ("test", net(x_test), y_test)):
                records.add("accuracy", float((logits.argmax(1) == labels).double().mean()), split=split, **where)
                records.add("loss", float(nn.functional.cross_entropy(logits, labels)), split=split, **where)
            if epoch % every == 0 or epoch == epochs:
                for metric, value in collapse(h, y, w).items():
                    records.add(metric, value, split="train", layer="features", **where)
                Snapshot(epoch, class_means(h, y), w, h[shown], y[shown]).save(directory / SNAPSHOT_DIR)
    records.save(directory / RECORDS_FILE)
    parameters = sum(p.numel() for p in net.parameters() if p.requires_grad)
    timing = {
        "fit_seconds": 1.25 * (seed + 1),
        "epochs": epochs,
        "trainable_parameters": parameters,
        "classifier_parameters": 0 if fixed else K * D,
    }
    (directory / TIMING_FILE).write_text(json.dumps(timing))


RUNS = {
    "learned": {"fixed": False, "weight_decay": 5e-4},
    "fixed-etf": {"fixed": True, "weight_decay": 5e-4},
    "learned, strong decay": {"fixed": False, "weight_decay": 5e-3},
    "fixed-etf, strong decay": {"fixed": True, "weight_decay": 5e-3},
    "learned, no decay": {"fixed": False, "weight_decay": 0.0},
}


def write_comparison(
    out: Path, *, runs: int = 2, seeds: int = 2, epochs: int = 2, every: int = 1, samples: int = 400
) -> Path:
    """Write ``runs`` x ``seeds`` trainings below ``out``."""
    names = list(RUNS)[:runs]
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # matrices this small only suffer from more, most of all on a busy machine
    for run in names:
        for seed in range(seeds):
            train(out / run / f"seed-{seed}", run, seed, epochs=epochs, every=every, samples=samples, **RUNS[run])
    torch.set_num_threads(threads)
    listed = "\n".join(f"  {json.dumps(name)}: {{classifier: {{name: {name.split(',')[0]}}}}}" for name in names)
    (out / CONFIG_FILE).write_text(f"data: {{name: Digits}}\nmethods:\n{listed}\nepochs: {epochs}\n")
    (out / CLASSES_FILE).write_text(
        json.dumps(["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"])
    )
    (out / VERSIONS_FILE).write_text(json.dumps({"tightframe": "0.1.0", "numpy": np.__version__, "torch": "2.13.0"}))
    return out
