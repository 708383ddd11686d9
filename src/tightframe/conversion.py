"""Training-free conversion: take a trained network, find its effective depth, and lock its layers there or cut it."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.benchmark import Timer
from torch.utils.data import DataLoader
from torch.utils.flop_counter import FlopCounterMode

from tightframe.data import ClassificationData
from tightframe.errors import ConfigError, DataFileError, check_range
from tightframe.probing import LayerCurves, effective_depth, measure, probe_layers
from tightframe.probing.names import match_layers, takes_channels_first
from tightframe.probing.passes import evaluating, restored_modes
from tightframe.probing.pooling import pool
from tightframe.surgery import (
    Lock,
    TruncatedModel,
    check_lock_options,
    lock_beyond,
    nearest_class_mean_linear,
    parameter_report,
    reestimate_batch_norm,
    truncate,
)
from tightframe.training import make_loader

MODEL_FILE = "model.safetensors"
CONVERSION_FILE = "conversion.json"
BATCH = 512
ROUNDS = 15


@dataclass(frozen=True)
class Stage:
    """A network on its way: what it gets right and what it costs.

    Args:
        name: what was done last.
        train: accuracy on the training part, in eval mode.
        test: on the test part.
        trainable: numbers that training would change.
        parameters: numbers in its parameters.
        flops: floating-point operations of one sample's forward pass, in matrix products, attention and convolutions.
        seconds: median of a forward pass over a batch of the test part, on one thread.
        relative: median of its ratio to that of the first network, in turns, so that other work on the machine slows
            both.
    """

    name: str
    train: float
    test: float
    trainable: int
    parameters: int
    flops: int
    seconds: float = torch.nan
    relative: float = torch.nan


@dataclass(frozen=True)
class Conversion:
    """What converting a network did.

    Args:
        network: the converted one; for a truncation that finds no depth, or the last layer, the given one.
        depth: its effective depth, counted from 1, or None if it has none.
        layers: names of the layers 1..L.
        ncc_error: nearest-class-centre error of each on the training part.
        stages: of a lock, the network before, after, and after its batch norms were mended; of a truncation, the whole
            network and the one cut after each layer but the last.
        pooling: how tokens and maps became vectors.
        locks: what was locked.
    """

    network: nn.Module
    depth: int | None
    layers: tuple[str, ...]
    ncc_error: tuple[float, ...]
    stages: tuple[Stage, ...]
    pooling: str | None = None
    locks: tuple[Lock, ...] = ()

    @property
    def truncated(self) -> bool:
        """Whether the network was cut."""
        return isinstance(self.network, TruncatedModel)

    @property
    def changed(self) -> bool:
        """Whether anything was converted: there may be no depth, nothing beyond it, or nothing left to lock there."""
        return self.truncated or bool(self.locks)


class PooledClassifier(nn.Module):
    """A linear classifier of maps or tokens, made vectors as :func:`tightframe.probing.probe_layers` does.

    Args:
        linear: of the pooled features ``(B, d)``.
        pooling: ``"flatten"``, ``"mean"``, ``"cls"`` or None.
        channels_first: as in :func:`tightframe.probing.pooling.pool`.
    """

    def __init__(self, linear: nn.Linear, pooling: str | None, channels_first: bool | None) -> None:
        super().__init__()
        self.linear = linear
        self.pooling = pooling
        self.channels_first = channels_first

    def forward(self, features: Tensor) -> Tensor:
        """Return logits ``(B, K)``."""
        return self.linear(pool(features, self.pooling, None, channels_first=self.channels_first))

    def extra_repr(self) -> str:
        """Return the pooling for ``repr``."""
        return f"pooling={self.pooling!r}"


class Parts:
    """The parts of the data as a conversion looks at them.

    Args:
        data: what the network was trained on.
        batch_size: of a training step, for the statistics of batch norm.
    """

    def __init__(self, data: ClassificationData, batch_size: int) -> None:
        self.num_classes = data.num_classes
        self.train: DataLoader[Any] = make_loader(data.train, BATCH)
        self.test: DataLoader[Any] = make_loader(data.test, BATCH)
        self.shuffled: DataLoader[Any] = make_loader(data.train, batch_size, seed=0)
        self.sample: Tensor = next(iter(self.test))[0]

    def stage(self, name: str, network: nn.Module) -> Stage:
        """Measure a network, all but its time."""
        report = parameter_report(network)
        parts = {"train": self.train, "test": self.test}
        rows = measure(network, parts, num_classes=self.num_classes, scatter=False, preset=["accuracy"])
        train, test = (rows.value("accuracy", split=split) for split in parts)
        flops = count_flops(network, self.sample[:1])
        return Stage(name, train, test, report.trainable, report.trainable + report.frozen, flops)

    def timed(self, stages: Sequence[Stage], networks: Sequence[nn.Module]) -> tuple[Stage, ...]:
        """Return the stages with the times of their networks, which take turns."""
        timers = [Timer("network(sample)", globals={"network": n, "sample": self.sample}) for n in networks]
        together = nn.ModuleList(networks)
        with torch.inference_mode(), restored_modes(together):
            together.eval()
            number = max(1, round(0.01 / timers[0].timeit(3).mean))
            times = torch.tensor([[timer.timeit(number).mean for timer in timers] for _ in range(ROUNDS)])
        medians, ratios = times.median(dim=0).values.tolist(), (times / times[:, :1]).median(dim=0).values.tolist()
        return tuple(replace(s, seconds=m, relative=r) for s, m, r in zip(stages, medians, ratios, strict=True))


def count_flops(network: nn.Module, inputs: Tensor) -> int:
    """Return the floating-point operations of a forward pass; fused attention, which is not counted, is taken apart."""
    counter = FlopCounterMode(display=False)
    with torch.no_grad(), evaluating(network), sdpa_kernel(SDPBackend.MATH), counter:
        network(inputs)
    return int(counter.get_total_flops())


def find_depth(
    network: nn.Module, parts: Parts, epsilon: float, pooling: str | None, layers: Sequence[str] | None
) -> tuple[LayerCurves, int | None]:
    """Return the curves of a network on the training part, and its effective depth."""
    check_range("epsilon", epsilon, 0 <= epsilon < 1, "in [0, 1)")
    curves = probe_layers(network, parts.train, layers=layers, pooling=pooling, num_classes=parts.num_classes)
    return curves, effective_depth(curves.ncc_error, epsilon)


def lock_network(
    network: nn.Module,
    parts: Parts,
    *,
    epsilon: float = 0.01,
    inclusive: bool = False,
    pooling: str | None = None,
    layers: Sequence[str] | None = None,
    keep: Sequence[str] = (),
    **options: Any,
) -> Conversion:
    """Lock the layers of a trained network beyond its effective depth, in place, and mend its batch norms.

    Args:
        network: as trained.
        parts: of the data.
        epsilon: of the depth.
        inclusive: lock the layer at the depth too.
        pooling: how tokens and maps become vectors.
        layers: names or patterns of the layers 1..L, as in :func:`~tightframe.probing.match_layers`; None for all
            linear maps.
        keep: names or patterns of those that are not locked wherever they are.
        options: ``kind``, ``gain``, ``activation`` and ``seed`` of :func:`~tightframe.surgery.lock_to_etf`; they are
            checked also where nothing is to be locked.
    """
    check_lock_options(**options)
    kept = match_layers(network, keep, "keep")
    if options.get("kind") == "class-rank":
        options["num_classes"] = parts.num_classes
    curves, depth = find_depth(network, parts, epsilon, pooling, layers)
    stages = [parts.stage("trained", network)]
    locks: list[Lock] = []
    if depth is not None:
        locks = lock_beyond(network, curves.layers, depth, inclusive=inclusive, keep=kept, **options)
    if locks:
        stages.append(parts.stage(f"{len(locks)} locked", network))
        if reestimate_batch_norm(network, parts.shuffled):
            stages.append(parts.stage("batch norm anew", network))
    timed = parts.timed(stages, [network] * len(stages))  # locking changes no operation
    return Conversion(network, depth, curves.layers, curves.ncc_error, timed, pooling, tuple(locks))


def truncate_network(
    network: nn.Module,
    parts: Parts,
    *,
    epsilon: float = 0.01,
    pooling: str | None = None,
    layers: Sequence[str] | None = None,
) -> Conversion:
    """Cut a trained network after every layer in turn, and finish with the nearest class mean as a linear map.

    Args:
        network: as trained; it is left as it is.
        parts: of the data.
        epsilon: of the depth at which the returned network is cut.
        pooling: how tokens and maps become vectors.
        layers: names or patterns of the layers 1..L, such as blocks and the classifier; None for all linear maps.
    """
    curves, depth = find_depth(network, parts, epsilon, pooling, layers)
    stages, networks = [parts.stage("whole", network)], [network]
    for i, layer in enumerate(curves.layers[:-1], start=1):
        cut = cut_after(
            network, curves.layers, i, nearest_class_mean_linear(curves.moments[layer]), parts.sample, pooling
        )
        stages.append(parts.stage(f"{i} {layer}", cut))
        networks.append(cut)
    found = network if depth is None or depth == len(curves.layers) else networks[depth]
    return Conversion(found, depth, curves.layers, curves.ncc_error, parts.timed(stages, networks), pooling)


def cut_after(
    network: nn.Module, layers: Sequence[str], depth: int, linear: nn.Linear, sample: Tensor, pooling: str | None
) -> nn.Module:
    """Return a network that ends with a linear classifier of what layer ``depth + 1`` of the layers 1..L receives."""
    channels_first = takes_channels_first(network.get_submodule(layers[depth]))  # as the one that receives it
    classifier = PooledClassifier(linear, pooling, channels_first)
    return truncate(network, layers[depth - 1], classifier, sample, layers=layers)


def cells(conversion: Conversion) -> tuple[list[str], list[list[str]]]:
    """Write headings and rows of the stages, as text; FLOPs and time are in percent of the first one's."""
    first = conversion.stages[0]
    headings = ["Network", "Train %", "Test %", "Trainable", "Parameters", "FLOPs %", "Time %"]
    rows = [
        [
            stage.name,
            f"{100 * stage.train:.2f}",
            f"{100 * stage.test:.2f}",
            f"{stage.trainable:,}",
            f"{stage.parameters:,}",
            f"{100 * stage.flops / max(first.flops, 1):.0f}",
            f"{100 * stage.relative:.0f}",
        ]
        for stage in conversion.stages
    ]
    return headings, rows


def write_conversion(conversion: Conversion, out: Path, facts: Mapping[str, Any]) -> None:
    """Write the state of the converted network, and what is known of it, into a directory: both files or none.

    Args:
        conversion: to write.
        out: the directory; it is created.
        facts: further ones, for JSON.

    Raises:
        ConfigError: if it cannot be written.
    """
    network = conversion.network
    described = {
        **facts,
        "truncated": conversion.truncated,
        "pooling": conversion.pooling,
        "depth": conversion.depth,
        "layers": conversion.layers,
        "ncc_error": conversion.ncc_error,
        "stages": [asdict(stage) for stage in conversion.stages],
        "locks": [asdict(lock) for lock in conversion.locks],
        "frozen": [name for name, parameter in network.named_parameters() if not parameter.requires_grad],
    }
    # Copies, as safetensors refuses tensors that share memory.
    state = {
        name: value.detach().cpu().clone(memory_format=torch.contiguous_format)
        for name, value in network.state_dict().items()
    }
    try:
        out.mkdir(parents=True, exist_ok=True)
        model, text = (out / f"{name}.partial" for name in (MODEL_FILE, CONVERSION_FILE))
        save_file(state, model)
        text.write_text(json.dumps(described, indent=2) + "\n", encoding="utf-8")
        (out / CONVERSION_FILE).unlink(missing_ok=True)  # lest it describes another network if this stops here
        os.replace(model, out / MODEL_FILE)
        os.replace(text, out / CONVERSION_FILE)
    except (OSError, SafetensorError) as error:
        raise ConfigError(f"--out {out} cannot be written: {_one_line(error)}") from error


def load_conversion(out: Path, network: nn.Module, sample: Tensor) -> nn.Module:
    """Return the converted network of a directory that :func:`write_conversion` wrote.

    Args:
        out: the directory.
        network: of the architecture that was converted. If it was cut, a copy is; else its own weights are replaced.
        sample: a batch of its inputs.

    Raises:
        DataFileError: if a file is missing or something else, or of another network.
    """
    try:
        facts = json.loads((out / CONVERSION_FILE).read_text(encoding="utf-8"))
        state = load_file(out / MODEL_FILE)
        if facts["truncated"]:
            num_classes, dim = state["classifier.linear.weight"].shape
            linear = nn.Linear(dim, num_classes)
            network = cut_after(network, facts["layers"], facts["depth"], linear, sample, facts["pooling"])
        network.load_state_dict(state)
        for name in facts["frozen"]:
            network.get_parameter(name).requires_grad_(False)
    except Exception as error:  # whatever JSON, safetensors and torch say of files that are something else
        raise DataFileError(f"{out} holds no conversion of this network: {_one_line(error)}") from error
    return network


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:300] or type(error).__name__
