"""Evidence that a module is the classifier: its output, for the input it received, is the model's output."""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from tightframe.errors import ArgumentError, check_finite
from tightframe.nn import Classifier
from tightframe.probing.names import CONVOLUTIONS, is_dense, is_inside
from tightframe.probing.passes import evaluating
from tightframe.probing.probe import first_result, unwatched, version

ROUNDINGS = 4  # steps of the coarsest type by which equal logits may differ
SMALLEST = -60.0  # logits below the largest of their row that a float32 probability still tells apart


class Seen(NamedTuple):
    """A module that ran: its input, the number of in-place changes of that input by then, and its output."""

    name: str
    module: nn.Module
    given: Tensor
    version: int
    gave: Tensor


@dataclass(frozen=True)
class Head:
    """The classifier of a model, and how its input becomes one vector a sample.

    Args:
        name: Dotted name, or "" if weight and bias were given.
        module: Module of the classifier; None if weight and bias were given.
        reading: Relation of its output to the logits, ``"whole"``: both have one shape; ``"mean"``: the logits are
            averages over maps or tokens; ``"token"``: they are the output at one token.
        matrix: Weight ``(K, d)`` and bias ``(K,)`` or None, if they were given.
        log: Whether the model returns probabilities, whose logarithms are logits.
    """

    name: str
    module: nn.Module | None = None
    reading: str = "whole"
    matrix: tuple[Tensor, Tensor | None] | None = None
    log: bool = False

    def logits(self, output: Tensor) -> Tensor:
        """Return the logits of an output of the model."""
        return output.clamp(min=torch.finfo(output.dtype).tiny).log() if self.log else output

    def tap(self, seen: Seen) -> str:
        """Return ``"prepared"`` if the classifier changes features before they meet its class vectors."""
        first = seen.given[:1]
        changes = isinstance(self.module, Classifier) and self.module.prepare(first) is not first
        return "prepared" if changes else "input"

    def features(self, seen: Seen, logits: Tensor | None) -> Tensor:
        """Return features ``(B, d)``, or ``(B, ..., d)`` if logits have positions, as class vectors receive them."""
        if version(seen.given) != seen.version:
            raise ArgumentError(
                f"the input of the classifier {self.name!r} was changed in place after the classifier ran; replace "
                "the operation by one that is not in place"
            )
        given = channels_last(seen.module, seen.given)
        if self.reading == "mean":
            given = given.flatten(1, -2).mean(dim=1, dtype=torch.promote_types(given.dtype, torch.float32))
        elif self.reading == "token" and logits is not None:
            gave = channels_last(seen.module, seen.gave).flatten(1, -2)
            given = given.flatten(1, -2)
            floor = SMALLEST if self.log else -math.inf
            target = _relative(self.logits(logits), floor).unsqueeze(1)
            chosen = _distances(gave, target, floor).argmin(dim=1)
            given = given[torch.arange(len(given), device=given.device), chosen]
        if isinstance(self.module, Classifier):
            given = self.module.prepare(given)
        return given

    def check_weights(self, seen: Seen) -> None:
        """Raise :class:`ArgumentError` if the module gives another output with its present weights."""
        if self.module is None or (found := _own_matrix(self.module)) is None:
            return
        with evaluating(self.module), unwatched(self.module):
            off = (self.module(seen.given.to(found[0].dtype)) - seen.gave).abs().amax().item()
        if off > 8 * torch.finfo(seen.gave.dtype).eps ** 0.5 * seen.gave.abs().amax().item():
            raise ArgumentError(
                f"classifier {self.name!r} ran with other weights than it has now: its outputs differ by {off:.2g}; "
                "put weights that functional_call or an averaging swaps in into the model before measuring"
            )

    def weights(self) -> tuple[Tensor, Tensor | None]:
        """Return weight ``(K, d)`` and bias ``(K,)``, if there is one, as they are now.

        Raises:
            ArgumentError: if the classifier is neither an affine map nor has a weight of two dimensions.
        """
        if self.matrix is not None:
            return self.matrix
        module: Any = self.module
        with evaluating(module):  # dropout would not be affine, and reading a spectral norm changes it
            found = _own_matrix(module)
            if found is None and isinstance(width := _width(module), int):
                found = _affine(module, width)
            if found is None and _sole_matrix(module):
                found = module.weight.detach(), _bias_of(module)
        if found is None:
            raise ArgumentError(
                f"classifier {self.name!r} ({type(module).__name__}) is not an affine map and has no weight (K, d); "
                "pass classifier=(weight, bias) and features=, the module whose output it receives"
            )
        return found


def decide(seen: list[Seen], logits: Tensor) -> Head:
    """Return the classifier among the modules that ran: one whose output is the model's, up to a constant per row.

    Of several that lie apart from each other, it is the one that ran last. A wrapper, such as LoRA's, that adds
    something to a linear map of the same input is preferred to that map.

    Args:
        seen: Modules that ran in one forward pass, in their order.
        logits: Logits, log-probabilities or probabilities ``(B, K)``, or ``(B, ..., K)`` if every position has them.

    Raises:
        ArgumentError: if none fits; the message lists the candidates and how far each is off.
    """
    check_finite(logits, "the model's output")
    fits: dict[str, tuple[Seen, str, bool]] = {}
    gaps: dict[str, float] = {}
    misses: dict[str, float] = {}
    for item in seen:
        gap, reading, log = evidence(item, logits)
        fits.pop(item.name, None)  # the last time that it ran counts
        if gap <= 1:
            fits[item.name] = item, reading, log
            gaps[item.name] = gap
        elif is_linear(item.module):
            misses[item.name] = gap
    known = [name for name, (item, *_) in fits.items() if is_linear(item.module)]
    known = known or [name for name, (item, *_) in fits.items() if _explained(item)]
    # In half precision rounding hides much, so equal outputs come first.
    known = [name for name in known if not gaps[name]] or known
    innermost = [name for name in known if not any(is_inside(other, name) for other in known)]
    if not innermost:
        off = ", ".join(f"{name!r} is off by {gap:.2g}" for name, gap in list(misses.items())[-8:])
        seen_to = f"{off} times the rounding of the outputs" if off else "no linear map with as many outputs ran"
        raise ArgumentError(
            f"no module gives the model's output, so its classifier is not known: {seen_to}; name it with "
            "classifier='...', or pass classifier=(weight, bias) and features=, the module whose output it receives"
        )
    name = innermost[-1]
    for outer, (item, *_) in fits.items():
        if is_inside(name, outer) and _adds_to(item, fits[name][0], seen) and _explained(item):
            name = outer
    item, reading, log = fits[name]
    return Head(name, item.module, reading, log=log)


def evidence(item: Seen, logits: Tensor) -> tuple[float, str, bool]:
    """Return the distance of a module's output from the model's, in units of the rounding that is allowed.

    Returns:
        The distance, the reading of the output (see :class:`Head`), and whether the model gives probabilities.
    """
    gave = channels_last(item.module, item.gave)
    if gave.shape == logits.shape and torch.equal(gave, logits):  # the usual case, and cheaper than a distance
        return 0.0, "whole", False
    readings = {"whole": gave}
    if gave.ndim > logits.ndim == 2 and gave.shape[0] == logits.shape[0]:
        flat = gave.flatten(1, -2)
        readings = {"mean": flat.mean(dim=1), "relu": flat.relu().mean(dim=1), "token": flat}
    readings = {
        reading: value
        for reading, value in readings.items()
        if value.shape[-1] == logits.shape[-1] and (reading == "token" or value.shape == logits.shape)
    }
    eps = max(torch.finfo(tensor.dtype).eps for tensor in (item.gave, logits))
    best = (math.inf, "whole", False)
    for log in (False, True):
        if not readings or best[0] <= 1 or (log and not _are_probabilities(logits)):
            break
        floor = SMALLEST if log else -math.inf
        target = _relative(logits.double().log() if log else logits, floor)
        for reading, value in readings.items():
            if reading == "token":
                distance = _distances(value, target.unsqueeze(1), floor).amin(dim=1).amax().item()
            else:
                distance = _distances(value, target, floor).amax().item()
            scale = max(value.abs().amax().item(), 1.0 if log else logits.abs().amax().item())
            gap = distance / (ROUNDINGS * eps * scale) if distance else 0.0
            best = min(best, (gap, "mean" if reading == "relu" else reading, log), key=lambda found: found[0])
    return best


def is_linear(module: nn.Module) -> bool:
    """Return whether a module is a linear map of features: dense, or a convolution of one pixel."""
    return is_dense(module) or (isinstance(module, CONVOLUTIONS) and set(module.kernel_size) == {1})


def channels_last(module: nn.Module, value: Tensor) -> Tensor:
    """Return an input or output of a module with the features as the last dimension."""
    return value.movedim(1, -1) if isinstance(module, CONVOLUTIONS) and value.ndim > 2 else value


def _relative(logits: Tensor, floor: float = -math.inf) -> Tensor:
    """Return logits relative to the largest of their row, clamped at a floor, where probabilities end."""
    logits = logits.double()
    return (logits - logits.amax(dim=-1, keepdim=True)).clamp_(min=floor)


def _are_probabilities(values: Tensor) -> bool:
    return bool((values >= 0).all()) and bool(((values.double().sum(dim=-1) - 1).abs() < 1e-2).all())


def _distances(gave: Tensor, target: Tensor, floor: float = -math.inf) -> Tensor:
    """Return the largest difference of each row from a target that is relative already."""
    return (_relative(gave, floor) - target).abs().amax(dim=-1)


def _own_matrix(module: nn.Module) -> tuple[Tensor, Tensor | None] | None:
    """Return weight ``(K, d)`` and bias of a module that is known to be exactly this map."""
    plain = type(module).forward is nn.Linear.forward
    if not plain and not isinstance(module, Classifier) and not isinstance(module, CONVOLUTIONS):
        return None
    weight: Any = module.weight
    return weight.detach().flatten(1), _bias_of(module)


def _sole_matrix(module: nn.Module) -> bool:
    """Return whether a module has a weight ``(K, d)`` and no other matrix, as a head of cosines does."""
    matrices = [p for p in (*module.parameters(), *module.buffers()) if p.ndim > 1]
    weight = getattr(module, "weight", None)
    return len(matrices) == 1 and matrices[0] is weight and weight.ndim == 2 and type(module).__name__ != "Conv1D"


def _bias_of(module: nn.Module) -> Tensor | None:
    bias = getattr(module, "bias", None)
    return bias.detach() if isinstance(bias, Tensor) else None


def _width(module: nn.Module) -> int | None:
    """Return the input width of a module that is or wraps a linear map, if it is known."""
    for name in ("in_features", "nx"):
        if isinstance(width := getattr(module, name, None), int):
            return width
    weight = getattr(module, "weight", None)
    if isinstance(weight, Tensor) and weight.ndim == 2:
        return weight.shape[0] if type(module).__name__ == "Conv1D" else weight.shape[1]
    inner = [part for part in module.modules() if is_linear(part)]
    return _width(inner[0]) if inner and inner[0] is not module else None


@torch.no_grad()
def _affine(module: nn.Module, width: int, given: Tensor | None = None) -> tuple[Tensor, Tensor | None] | None:
    """Return matrix and offset of an affine map of vectors, found by calling it; None if it is not affine."""
    like = next((p for p in module.parameters() if p.is_floating_point()), torch.empty(0))
    try:
        if torch.finfo(like.dtype).bits < 32:  # its rounding hides what is not affine
            module, like = copy.deepcopy(module).float(), like.float()
        basis = torch.eye(width, device=like.device, dtype=like.dtype)
        trial = basis.cumsum(dim=1).flip(0)[:8] / 3 if given is None else given.to(basis)
        with unwatched(module), torch.autocast(like.device.type, enabled=False):
            bias = first_result(module(basis[:1] * 0))[0]
            weight = first_result(module(basis)) - bias
            expected, found = torch.addmm(bias, trial, weight), first_result(module(trial))
    except Exception:  # a module may raise anything on vectors it is not made for
        return None
    close = (found - expected).abs().amax() <= 1e2 * torch.finfo(basis.dtype).eps * width**0.5 * (
        expected.abs().amax() + bias.abs().amax()
    )
    return (weight.T.contiguous(), bias) if close else None


def _explained(item: Seen) -> bool:
    """Return whether class vectors map the input of a module to its output: by an affine map, or by cosines."""
    matrices = any(p.ndim > 1 for p in (*item.module.parameters(), *item.module.buffers()))
    if not matrices and not callable(getattr(item.module, "weight", None)):
        return False  # a scale or a normalisation of the logits
    given, weight = item.given, getattr(item.module, "weight", None)
    if given.ndim == 2 and isinstance(weight, Tensor) and weight.shape == (item.gave.shape[-1], given.shape[1]):
        cosines = nn.functional.normalize(given.double()) @ nn.functional.normalize(weight.detach().double()).T
        gave = item.gave.double()
        scale = (cosines * gave).sum() / cosines.square().sum()
        eps = torch.finfo(item.gave.dtype).eps
        if (gave - scale * cosines).abs().amax() <= 8 * eps * gave.abs().amax():
            return True
    return given.ndim == 2 and _affine(item.module, given.shape[1], given) is not None


def _adds_to(outer: Seen, inner: Seen, seen: list[Seen]) -> bool:
    """Return whether a module adds something, with own parameters, to a map of the same input inside it."""
    if outer.given.shape != inner.given.shape or not torch.equal(outer.given, inner.given):
        return False
    own = set(inner.module.parameters())
    ran = [item.module for item in seen if is_inside(item.name, outer.name) and item.module is not inner.module]
    return any(set(module.parameters()) - own for module in ran)
