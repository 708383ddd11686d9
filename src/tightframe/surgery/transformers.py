"""ETF-Transformer: fixed simplexes in the feed-forward layers of a transformer's blocks."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import nn

from tightframe.errors import ArgumentError, ShapeError, check_choice
from tightframe.probing.names import is_inside
from tightframe.surgery._modules import is_conv1d
from tightframe.surgery.locking import LOCK_KINDS, Fix, Lock, as_fix, check_optimizer, lock_to_etf, lockable

KINDS = tuple(kind for kind in LOCK_KINDS if kind != "class-rank")

Pattern = Mapping[str, str | Sequence[str]]

_PREFIX = r"(?:(.+)\.)?"  # what the names of one block have in common
# Layers from d to f, and back, of nn.TransformerEncoderLayer and DecoderLayer; timm, and Hugging Face's ViT, CLIP and
# BART; its BERT, and ViT before transformers 5; GPT-2; and Llama, gated.
_PATTERNS: tuple[Pattern, ...] = (
    {"w1": _PREFIX + "linear1", "w2": _PREFIX + "linear2"},
    {"w1": _PREFIX + "fc1", "w2": _PREFIX + "fc2"},
    {"w1": _PREFIX + r"intermediate\.dense", "w2": _PREFIX + r"(?<!attention\.)output\.dense"},
    {"w1": _PREFIX + r"mlp\.c_fc", "w2": _PREFIX + r"mlp\.c_proj"},
    {"w1": (_PREFIX + "gate_proj", _PREFIX + "up_proj"), "w2": _PREFIX + "down_proj"},
)


class _Block(NamedTuple):
    """Names of the layers of one feed-forward network, and what their names have in common."""

    prefix: str
    w1: tuple[str, ...]
    w2: tuple[str, ...]


def etf_transformer_(
    model: nn.Module,
    which: str = "both",
    *,
    blocks: Iterable[int] | None = None,
    kind: str | Fix = "haar",
    pattern: Pattern | None = None,
    optimizer: torch.optim.Optimizer | None = None,
    **options: Any,
) -> list[Lock]:
    r"""Lock the feed-forward layers of a transformer to simplexes, each with a draw of its own.

    In :math:`W_2\, \mathrm{act}(W_1 x + b_1) + b_2` the simplexes are :math:`W_1 = s\, U_1 C_d` and
    :math:`W_2 = s\, C_d U_2^\top` for f >= d (see :func:`~tightframe.frames.simplex_weight`; ETF-Transformer of Liu
    2024, arXiv 2412.00884, whose details are reconstructed here). Attention, embeddings, norms and biases stay as they
    are and are trained. It is :func:`~tightframe.surgery.lock_to_etf` for every layer, so keys and modules stay too.

    What C_d loses is the direction of ones. A layer norm before :math:`W_1` has no such part, up to its affine map, and
    one after the residual sum removes what :math:`W_2` might have added to it: nothing is lost. Root mean square norms
    (Llama) do not centre, so with them the mean over the features of a token is what the network can neither read nor
    write there.

    Fixing both is not free where the feed-forward layers matter: in the pilot on source code, W2 alone cost little, and
    both kept about half of what those layers give. The gain decides: the variance-preserving one, the default, is one
    number for both, 1.70 for GELU, while ``"match-init"`` on the small second matrices of GPT-2 was no better than no
    feed-forward layers at all. In a gated block the input of :math:`W_2` is a product, whose variance it does not
    preserve.

    Layers are found by name and by shape: pairs ``linear1, linear2``; ``fc1, fc2``; ``intermediate.dense,
    output.dense``; ``mlp.c_fc, mlp.c_proj``; and the triple ``gate_proj, up_proj, down_proj``, from d to f and back.

    Args:
        model: Any module with such blocks, changed in place.
        which: ``"w1"`` (gated: both that enter), ``"w2"`` or ``"both"``.
        blocks: Numbers of the blocks, counted from 0 in the order of the model; None for all. The draws of one do not
            depend on the others.
        kind: Kind of the fixed weights or a :class:`~tightframe.surgery.Fix`, but not ``"class-rank"``;
            ``"canonical"`` leaves f - d of the hidden units with nothing but their bias.
        pattern: Patterns for other models: ``{"w1": regex, "w2": regex}`` for whole names of layers. Their groups are
            the common parts of the names of one block, as in ``{"w1": r"(.+)\.ffn\.lin1", "w2": r"(.+)\.ffn\.lin2"}``;
            a list of several for ``w1`` if gated.
        optimizer: Optimizer, as in :func:`~tightframe.surgery.lock_to_etf`.
        options: Further fields of :class:`~tightframe.surgery.Fix`; its activation is ``"gelu"`` unless given.

    Returns:
        The locks, layer by layer in the order of the blocks.

    Raises:
        ArgumentError: if an argument is outside its range, if nothing matches, if a block has a layer too few or too
            many, if what matches lies in attention, or if a layer cannot be locked; nothing is changed then.
        ShapeError: if the layers of a block do not go from d to f and back.
        DimensionError, DtypeError, DeviceError, NonFiniteError: as in :func:`~tightframe.surgery.lock_to_etf`.

    Example:
        >>> model = nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), num_layers=2)
        >>> for lock in etf_transformer_(model, "w2"):
        ...     print(lock.name, lock.shape, round(lock.gain, 2))
        layers.0.linear2 (8, 16) 1.7
        layers.1.linear2 (8, 16) 1.7
    """
    check_choice("which", which, ("w1", "w2", "both"))
    fix = as_fix(kind, options if isinstance(kind, Fix) else {"activation": "gelu", **options})
    check_choice("kind", fix.kind, KINDS)
    check_optimizer(optimizer)
    found = _find_blocks(model, _PATTERNS if pattern is None else (_checked(pattern),))
    for block in found:
        _check_shapes(model, block)
    chosen = range(len(found)) if blocks is None else sorted(set(blocks))
    if not chosen or not set(chosen) <= set(range(len(found))):
        names = [block.prefix for block in found]
        raise ArgumentError(f"blocks must be some of 0..{len(found) - 1}, got {list(chosen)}; they are {names}")
    wanted = [
        (name, replace(fix, seed=_seed(fix.seed, index, place)))
        for index in chosen
        for place, name in enumerate(found[index].w1 + found[index].w2)
        if which == "both" or name in getattr(found[index], which)
    ]
    for name, own in wanted:
        lockable(model, name, own, classifier=False)
    return [lock_to_etf(model, name, own, classifier=False, optimizer=optimizer) for name, own in wanted]


def _seed(seed: int, block: int, place: int) -> int:
    """Return a seed of its own for each layer of each block."""
    return int(np.random.SeedSequence([seed, block, place]).generate_state(1, np.uint32)[0])


def _checked(pattern: Pattern) -> Pattern:
    if not isinstance(pattern, Mapping) or set(pattern) != {"w1", "w2"}:
        raise ArgumentError(f"pattern must be {{'w1': regex, 'w2': regex}}, got {pattern!r}")
    for expression in (*_several(pattern["w1"]), *_several(pattern["w2"])):
        try:
            re.compile(expression)
        except (re.error, TypeError) as error:
            raise ArgumentError(f"pattern must hold regular expressions, got {expression!r}: {error}") from error
    return pattern


def _several(expressions: str | Sequence[str]) -> tuple[str, ...]:
    return (expressions,) if isinstance(expressions, str) else tuple(expressions)


def _find_blocks(model: nn.Module, patterns: Sequence[Pattern]) -> list[_Block]:
    """Return the blocks in the order of the model."""
    linear = [name for name, module in model.named_modules() if isinstance(module, nn.Linear) or is_conv1d(module)]
    order = {name: index for index, name in enumerate(linear)}
    blocks = [block for pattern in patterns for block in _matches(linear, pattern)]
    if not blocks:
        seen = ", ".join(f"{name} {_shape(model, name)}" for name in linear)[:1000] or "none"
        raise ArgumentError(
            "no feed-forward layers were found by their names; pass pattern={'w1': regex, 'w2': regex}. "
            f"The linear layers are {seen}"
        )
    for block in blocks:
        for name in block.w1 + block.w2:
            if _in_attention(name):
                raise ArgumentError(f"{name!r} matches and belongs to attention; pass a pattern that leaves it out")
        others = [other for other in blocks if other is not block]
        inside = [o for o in others if o.prefix == block.prefix or is_inside(o.prefix, block.prefix)]
        if inside:
            raise ArgumentError(
                f"block {block.prefix!r} has two candidates, {block.w1 + block.w2} and {inside[0].w1 + inside[0].w2}; "
                "pass a pattern that matches one"
            )
    return sorted(blocks, key=lambda block: min(order[name] for name in block.w1 + block.w2))


def _matches(names: Sequence[str], pattern: Pattern) -> list[_Block]:
    """Return the blocks of one pattern, each of whose expressions must match one name of it."""
    found: dict[tuple[str, ...], list[list[str]]] = {}
    expressions = [(role, expression) for role in ("w1", "w2") for expression in _several(pattern[role])]
    for place, (_, expression) in enumerate(expressions):
        for name in names:
            match = re.fullmatch(expression, name)
            if match:
                key = tuple(group or "" for group in match.groups())
                found.setdefault(key, [[] for _ in expressions])[place].append(name)
    blocks = []
    for key, columns in found.items():
        for (_, expression), matched in zip(expressions, columns, strict=True):
            if len(matched) != 1:
                others = [name for column in columns for name in column if column is not matched]
                raise ArgumentError(
                    f"a block must have one layer for {expression!r}, got {matched or 'none'} beside {others}; pass a "
                    "pattern that matches whole blocks alone"
                )
        layers = [column[0] for column in columns]
        enter = len(_several(pattern["w1"]))
        blocks.append(_Block(".".join(key), tuple(layers[:enter]), tuple(layers[enter:])))
    return blocks


def _in_attention(name: str) -> bool:
    """Return whether a part of the name says attention; those before the first number name the whole model."""
    parts = name.split(".")
    first = next((index for index, part in enumerate(parts) if part.isdecimal()), -1)
    return any(re.search("attn|attention", part, re.IGNORECASE) for part in parts[first + 1 :])


def _shape(model: nn.Module, name: str) -> tuple[int, ...]:
    """Return ``(out, in)`` of a layer."""
    module = model.get_submodule(name)
    if isinstance(module, nn.Linear):
        return module.out_features, module.in_features
    return tuple(module.get_parameter("weight").shape)[::-1]


def _check_shapes(model: nn.Module, block: _Block) -> None:
    """Check that all layers that enter have one shape, and those that leave the transposed one."""
    shapes = {name: _shape(model, name) for name in block.w1 + block.w2}
    enter = shapes[block.w1[0]]
    if {shapes[name] for name in block.w1} != {enter} or {shapes[name] for name in block.w2} != {enter[::-1]}:
        raise ShapeError(
            f"feed-forward layers must go from d to f and back, got weights (out, in) {shapes}; pass a pattern that "
            "matches others"
        )
