"""Passes over a model: probe_layers, measure and the collapse callback against bare forward passes."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from lightning.pytorch import Trainer
from torch import nn

import tightframe
from benchmarks._timing import Batches, Row, batches_of, extra_memory, leaner, race, samples
from benchmarks.collapse import bare_products
from tightframe.data import ClassificationData, Digits
from tightframe.nn import LinearClassifier
from tightframe.probing import LayerCurves, probe_layers
from tightframe.training import MLP, ClassifierModule, NeuralCollapseCallback, ResNet, SmallCNN, make_loader

DEPTH = 12
CASES = tuple(
    (kind, width, K, N, 256)
    for kind, width, N in (
        ("mlp", 256, 4096),
        ("mlp", 512, 2048),
        ("mlp", 1024, 1024),
        ("transformer", 128, 512),
        ("cnn mean", 32, 1024),
        ("cnn flatten", 32, 1024),
    )
    for K in (10, 100)
)
TINY: dict[str, dict[str, Any]] = {
    "probing": {
        "cases": (("mlp", 8, 3, 60, 16), ("transformer", 8, 3, 30, 16), ("cnn flatten", 2, 3, 30, 16)),
        "N": 256,
        "rounds": 1,
    },
    "measure": {"images": 10, "size": (40, 8, 4), "rounds": 1},
    "callback": {"widths": (2, 3), "epochs": 1, "schedules": (1,), "rounds": 1},
}
BATCH = 512  # of a measurement by the callback


def forward(model: nn.Module, batches: Batches) -> None:
    """Make the forward pass and nothing else."""
    with torch.no_grad():
        for inputs, _ in batches:
            model(inputs)


def network(kind: str, width: int, K: int) -> tuple[nn.Module, tuple[int, ...], dict[str, Any]]:
    """Return a network of twelve layers, the shape of its input, and how to probe it."""
    if kind == "mlp":
        return mlp(width, K), (width,), {}
    if kind == "transformer":
        layer = nn.TransformerEncoderLayer(width, 4, 4 * width, dropout=0.0, batch_first=True, norm_first=True)
        blocks = nn.TransformerEncoder(layer, DEPTH - 1, enable_nested_tensor=False)
        model = nn.Sequential(blocks, nn.Flatten(), nn.Linear(16 * width, K))
        return model, (16, width), {"pooling": "mean", "layers": ["0.layers.*", "2"]}
    layers: list[nn.Module] = []
    for i in range(DEPTH - 1):
        layers += [nn.Conv2d(width if i else 1, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU()]
    model = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, K))
    return model, (1, 8, 8), {"pooling": kind.split()[1]}


def mlp(width: int, K: int) -> nn.Sequential:
    layers = [m for _ in range(DEPTH - 1) for m in (nn.Linear(width, width), nn.ReLU())]
    return nn.Sequential(*layers, nn.Linear(width, K))


def probing_times(kind: str, width: int, K: int, N: int, batch: int, rounds: int) -> list[Row]:
    torch.manual_seed(0)
    model, shape, options = network(kind, width, K)
    batches = batches_of(torch.randn(N, *shape), torch.randint(K, (N,)), batch)
    bare = partial(forward, model.eval(), batches)
    probe, name = partial(probe_layers, model, batches, num_classes=K, **options), f"{kind}, width {width}, K = {K}"
    return [
        race(partial(probe, ncc=False), bare, rounds).costlier(f"{name}: moments, one pass", 1.5),
        race(partial(probe, hold_bytes=0), bare, rounds).costlier(f"{name}: with the second look"),
    ]


def stream_probe(N: int, ncc: bool) -> Callable[[], LayerCurves]:
    """Return a call that probes N samples, made while it runs, so that the data themselves take no memory."""
    K, width, batch = 10, 256, 256
    model = mlp(width, K).eval()

    class Stream:
        def __iter__(self) -> Any:
            generator = torch.Generator().manual_seed(0)
            for _ in range(N // batch):
                labels = torch.randint(K, (batch,), generator=generator)
                yield torch.randn(batch, width, generator=generator), labels

    return lambda: probe_layers(model, Stream(), ncc=ncc, hold_bytes=0)


def probing(cases: Sequence[tuple[str, int, int, int, int]] = CASES, N: int = 16384, rounds: int = 9) -> list[Row]:
    """probe_layers: 12 layers, batches of 256; peer: bare forward pass."""
    rows = [row for case in cases for row in probing_times(*case, rounds)]
    for ncc, name in ((False, "one pass"), (True, "with the second look")):
        few, many = (extra_memory(stream_probe, (256, ncc), (n, ncc)) for n in (N, 4 * N))
        held = 4 * 3 * N * DEPTH * 256  # what the features of the 3 N samples more would take
        name = f"growth of the peak, mlp, width 256, N = {N} to {4 * N}, {name}; peer: the features themselves"
        rows.append(leaner(name, many - few, held, 0.02))
    return rows


def products(model: nn.Linear, batches: Batches, precision: torch.dtype) -> None:
    """Compute scatter and logits, and the singular values of K class means, for which the weight stands in."""
    d, weight = model.in_features, model.weight.detach().to(precision)
    bare_products(batches, d)
    for h, _ in batches:
        h.to(precision) @ weight.T
    torch.linalg.svd(model.weight.detach().double(), full_matrices=False)


def measure(images: int = 500, size: tuple[int, int, int] = (50_000, 512, 1000), rounds: int = 5) -> list[Row]:
    """tightframe.measure against the bare work that it cannot avoid."""
    torch.manual_seed(0)
    resnet = nn.Sequential(ResNet(18, 3, small_images=True), nn.Linear(512, 10)).eval()
    pictures = batches_of(torch.randn(images, 3, 32, 32), torch.arange(images) % 10, 100)
    perceptron = nn.Sequential(MLP(64, [256, 128], relu_last=False), nn.Linear(128, 10)).eval()
    data = Digits().load()
    digits = [batch for part in (data.train, data.test) for batch in batches_of(*part[:], 512)]
    rows = [
        race(lambda: tightframe.measure(resnet, pictures), lambda: forward(resnet, pictures), rounds).costlier(
            f"ResNet-18, {images} images of 32 x 32; peer: forward pass", 1.1
        ),
        race(lambda: tightframe.measure(perceptron, digits), lambda: forward(perceptron, digits), 4 * rounds).costlier(
            "MLP, all digits; peer: forward pass", 3
        ),
    ]
    N, d, K = size
    linear, batches = nn.Linear(d, K), batches_of(*samples(N, d, K), 512)
    name = f"features {N} x {d}, K = {K}; peer: float64 XᵀX and SVD of the means"
    # Nearest means are found in float64, for which products with the class vectors cost twice those of the model.
    for precision, limit in ((torch.float64, 2.5), (torch.float32, None)):
        bare = partial(products, linear, batches, precision)
        timed = race(lambda: tightframe.measure(linear, batches, hold_bytes=2**30), bare, rounds)
        rows.append(timed.costlier(f"{name}, {precision} logits".replace("torch.", ""), limit))
    return rows


def fit(data: ClassificationData, widths: tuple[int, ...], epochs: int, every: int | None = None) -> None:
    """Train and evaluate every epoch; with the collapse callback after every so many epochs."""
    torch.manual_seed(0)
    backbone = SmallCNN(1, widths)
    module = ClassifierModule(
        backbone,
        LinearClassifier(backbone.out_features, data.num_classes),
        nn.CrossEntropyLoss(),
        lambda parameters: torch.optim.SGD(parameters, lr=0.05, momentum=0.9),
    )
    trainer = Trainer(
        max_epochs=epochs,
        accelerator="cpu",
        callbacks=[] if every is None else [NeuralCollapseCallback(every_n_epochs=every, batch_size=BATCH)],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        use_distributed_sampler=False,
    )
    trainer.fit(module, make_loader(data.train, 64, seed=0), make_loader(data.test, BATCH))


def callback(
    widths: tuple[int, ...] = (32, 64, 128), epochs: int = 5, schedules: tuple[int, ...] = (1, 5), rounds: int = 7
) -> list[Row]:
    """NeuralCollapseCallback: SmallCNN(1, (32, 64, 128)) on digits, batch 64, validated every epoch."""
    for noise in (".*does not have many workers.*", ".*LeafSpec.*"):
        warnings.filterwarnings("ignore", noise)
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    bare = partial(fit, Digits(flatten=False).load(), widths, epochs)
    name = f"{epochs} epochs with the callback, every_n_epochs={{}}; peer: without"
    return [race(partial(bare, n), bare, rounds).costlier(name.format(n), 1.1) for n in schedules]
