"""Training-free conversion: find the effective depth of a trained network, and lock its layers there or cut it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.benchmark import Timer
from torch.utils.data import DataLoader
from torch.utils.flop_counter import FlopCounterMode

from tightframe.errors import DataFileError, check_range
from tightframe.files import read_tensors, write_tensors, written_whole
from tightframe.probing import LayerCurves, effective_depth, measure, probe_layers
from tightframe.probing.names import match_layers, takes_channels_first
from tightframe.probing.passes import evaluating, restored_modes
from tightframe.probing.pooling import pool
from tightframe.surgery.batch_norm import reestimate_batch_norm
from tightframe.surgery.classifiers import nearest_class_mean_linear
from tightframe.surgery.locking import Fix, Lock, lock_beyond
from tightframe.surgery.parameters import parameter_report
from tightframe.surgery.truncation import TruncatedModel, truncate

MODEL_FILE = "model.safetensors"
CONVERSION_FILE = "conversion.json"
ROUNDS = 15


@dataclass(frozen=True)
class Stage:
    """Accuracy and cost of a network at one stage of its conversion.

    Args:
        name: Name of the stage.
        train: Accuracy on the training part, in eval mode.
        test: Accuracy on the test part.
        trainable: Number of values that training would change.
        parameters: Number of values in its parameters.
        flops: Floating-point operations of one sample's forward pass, in matrix products, attention and convolutions.
        seconds: Median time of a forward pass over a batch of the test part, on one thread.
        relative: Median ratio of that time to that of the first network; the two take turns, so that other work on the
            machine slows both.
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
    """Result of a conversion.

    Args:
        network: Converted network; the given one for a truncation that finds no depth, or the last layer.
        depth: Effective depth, counted from 1, or None if there is none.
        layers: Names of the layers 1..L.
        ncc_error: Nearest-class-centre error of each layer on the training part.
        stages: Stages of the network: for a lock, before, after, and after batch norm was re-estimated; for a
            truncation, whole, and cut after each layer but the last.
        pooling: Pooling of tokens and maps to vectors.
        locks: Locks of the layers.
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
        linear: Classifier of the pooled features ``(B, d)``.
        pooling: Pooling: ``"flatten"``, ``"mean"``, ``"cls"`` or None.
        channels_first: Layout of the features, as in :func:`tightframe.probing.pooling.pool`.
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


@dataclass(frozen=True)
class Parts:
    """Data of a conversion.

    Args:
        num_classes: Number K of classes.
        train: Loader of the training part, in any order.
        test: Loader of the test part.
        shuffled: Loader of the training part as in training, for the statistics of batch norm.
    """

    num_classes: int
    train: DataLoader[Any]
    test: DataLoader[Any]
    shuffled: DataLoader[Any]

    @cached_property
    def sample(self) -> Tensor:
        """First batch of inputs of the test part."""
        inputs: Tensor = next(iter(self.test))[0]
        return inputs

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
    fix: Fix = Fix(),  # noqa: B008  # frozen
    epsilon: float = 0.01,
    inclusive: bool = False,
    pooling: str | None = None,
    layers: Sequence[str] | None = None,
    keep: Sequence[str] = (),
) -> Conversion:
    """Lock the layers of a trained network beyond its effective depth, in place, and re-estimate its batch norm.

    Args:
        network: Trained network.
        parts: Data.
        fix: Values of the fixed weights.
        epsilon: Error of the nearest class mean at the depth.
        inclusive: Whether to lock the layer at the depth too.
        pooling: Pooling of tokens and maps to vectors.
        layers: Names or patterns of the layers 1..L, as in :func:`~tightframe.probing.names.match_layers`; None for all
            linear maps.
        keep: Names or patterns of layers that are not locked wherever they are.
    """
    kept = match_layers(network, keep, "keep")
    curves, depth = find_depth(network, parts, epsilon, pooling, layers)
    stages = [parts.stage("trained", network)]
    locks: list[Lock] = []
    if depth is not None:
        locks = lock_beyond(
            network, curves.layers, depth, fix.for_classes(parts.num_classes), inclusive=inclusive, keep=kept
        )
    if locks:
        stages.append(parts.stage(f"{len(locks)} locked", network))
        if reestimate_batch_norm(network, parts.shuffled):
            stages.append(parts.stage("batch norm re-estimated", network))
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
        network: Trained network; it is not changed.
        parts: Data.
        epsilon: Error of the nearest class mean at the depth at which the returned network is cut.
        pooling: Pooling of tokens and maps to vectors.
        layers: Names or patterns of the layers 1..L, such as blocks and the classifier; None for all linear maps.
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


def write_conversion(conversion: Conversion, out: Path, facts: Mapping[str, Any]) -> None:
    """Write the state of the converted network and the facts of its conversion into a directory.

    Args:
        conversion: Conversion to write.
        out: Directory; it is created.
        facts: Further facts, for JSON.

    Raises:
        OutputError: if a file cannot be written.
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
    text = json.dumps(described, indent=2) + "\n"
    with written_whole(out / CONVERSION_FILE) as partial:
        partial.write_text(text, encoding="utf-8")
        write_tensors(out / MODEL_FILE, network.state_dict(), {"conversion": sha256(text.encode()).hexdigest()})


def load_conversion(out: Path, network: nn.Module, sample: Tensor) -> nn.Module:
    """Return the converted network of a directory that :func:`write_conversion` wrote.

    Args:
        out: Directory.
        network: Network of the architecture that was converted. If it was cut, a copy is cut; else its own weights are
            replaced.
        sample: Batch of its inputs.

    Raises:
        DataFileError: if a file is missing or something else, or of another network.
    """
    try:
        text = (out / CONVERSION_FILE).read_bytes()
        state, metadata = read_tensors(out / MODEL_FILE)
        if metadata["conversion"] != sha256(text).hexdigest():
            raise DataFileError(f"{MODEL_FILE} and {CONVERSION_FILE} are of two conversions")
        facts = json.loads(text)
        if facts["truncated"]:
            num_classes, dim = state["classifier.linear.weight"].shape
            linear = nn.Linear(dim, num_classes)
            network = cut_after(network, facts["layers"], facts["depth"], linear, sample, facts["pooling"])
        network.load_state_dict(state)
        for name in facts["frozen"]:
            network.get_parameter(name).requires_grad_(False)
    except Exception as error:  # whatever JSON, safetensors and torch say of files that are something else
        raise DataFileError(
            f"{out} holds no conversion of this network: {' '.join(str(error).split())[:300]}"
        ) from error
    return network
