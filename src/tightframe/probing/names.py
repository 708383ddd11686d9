"""Name layers of a model: by patterns, or all its linear maps."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from fnmatch import fnmatchcase

from torch import nn

from tightframe.errors import ArgumentError
from tightframe.nn import Classifier

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)


def match_layers(model: nn.Module, patterns: Sequence[str], argument: str = "layers") -> list[str]:
    """Return the dotted names of the modules that patterns match, each once, in the order of patterns and model.

    A pattern is compared part by part, so ``*`` does not reach across a dot: ``"blocks.*.mlp"`` names the ``mlp`` of
    every block, and ``"blocks.*"`` the blocks without their parts.

    Args:
        model: Module whose parts are named.
        patterns: Dotted names, whose parts may hold ``*``, ``?`` and ``[...]``.
        argument: Name of the patterns in errors.

    Raises:
        ArgumentError: if they are one string, or a pattern names no module; the message lists similar names.

    Example:
        >>> model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Sequential(nn.Linear(8, 3)))
        >>> match_layers(model, ["2.*", "[01]"])
        ['2.0', '0', '1']
    """
    if isinstance(patterns, str):
        raise ArgumentError(f"{argument} must be a list of names or patterns, got {patterns!r}")
    names = [name for name, _ in model.named_modules()]
    found: dict[str, None] = {}
    for pattern in patterns:
        matching = [pattern] if pattern in names else [name for name in names if _matches(name, pattern)]
        if not matching:
            close = difflib.get_close_matches(pattern, names, n=8, cutoff=0.5)
            others = ", ".join(repr(name) for name in close or names if name)[:300]
            known = "near it are" if close else "it has"
            raise ArgumentError(f"{argument} must name modules of the model, got {pattern!r}; {known} {others}")
        found.update(dict.fromkeys(matching))
    return list(found)


def _matches(name: str, pattern: str) -> bool:
    parts, wanted = name.split("."), pattern.split(".")
    return len(parts) == len(wanted) and all(map(fnmatchcase, parts, wanted))


def linear_maps(model: nn.Module) -> list[str]:
    """Return the dotted names of all linear maps of a model, in its order, without those inside of another.

    These are ``nn.Linear``, convolutions, classifiers of :mod:`tightframe.nn` and the ``Conv1D`` of Hugging Face.

    Example:
        >>> linear_maps(nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8, 3)))
        ['0', '3']
    """
    found: list[str] = []
    for name, module in model.named_modules():
        inside = any(is_inside(name, outer) for outer in found[-1:])
        if not inside and (isinstance(module, CONVOLUTIONS) or is_dense(module)):
            found.append(name)
    return found


def is_inside(name: str, outer: str) -> bool:
    """Return whether a module of this name lies inside another one."""
    return name != outer and (not outer or name.startswith(f"{outer}."))


def is_dense(module: nn.Module) -> bool:
    """Return whether a module maps the last dimension of an input of any number of dimensions."""
    return isinstance(module, nn.Linear | Classifier) or type(module).__name__ == "Conv1D"


def takes_channels_first(module: nn.Module) -> bool | None:
    """Return whether a module takes features as dimension 1 rather than the last; None: it may take either."""
    if isinstance(module, CONVOLUTIONS):
        return True
    return False if is_dense(module) else None


def trains_matrix(module: nn.Module) -> bool:
    """Return whether a module trains a matrix, under any name; it may train a bias or scale beside a fixed matrix."""
    return any(p.requires_grad and p.ndim > 1 for p in module.parameters())
