"""TreeBuffers: a tree that lies where its module lies."""

from __future__ import annotations

import hashlib
from typing import final

import numpy as np
import torch
from torch import Tensor, nn

from tightframe.errors import ArgumentError
from tightframe.hierarchy import Tree
from tightframe.hierarchy.index import TreeIndex, tree_index


@final
class TreeBuffers(nn.Module):
    """The index tensors of a tree as buffers, integers that no cast changes.

    They are not part of the state; a fingerprint of the tree is, so that a state of another tree does not load.

    Args:
        tree: of the classes.
        device: where the buffers lie; None is PyTorch's default.

    Attributes:
        fingerprint: a number that trees of other nodes or classes do not have.

    Raises:
        ArgumentError: if ``tree`` is no tree or has one class only.
    """

    def __init__(self, tree: Tree, device: torch.device | str | None = None) -> None:
        super().__init__()
        index = tree_index(tree, device)
        for name, values in zip(index._fields[:-1], index[:-1], strict=True):
            self.register_buffer(name, values, persistent=False)
        self.sizes = index.sizes
        numbers = np.concatenate([tree.parents, tree.classes]).astype("<i8").tobytes()
        self.fingerprint = int.from_bytes(hashlib.sha256(numbers).digest()[:7], "big")

    @property
    def index(self) -> TreeIndex:
        """The tree as index tensors."""
        return TreeIndex(*(getattr(self, name) for name in TreeIndex._fields))

    def get_extra_state(self) -> Tensor:
        """Return the fingerprint, for the state."""
        return torch.tensor(self.fingerprint, device="cpu")

    def set_extra_state(self, state: Tensor) -> None:
        """Raise :class:`ArgumentError` if the state is of another tree."""
        if int(state) != self.fingerprint:
            raise ArgumentError("the state must be of the same tree, got that of another; build this with its tree")

    def extra_repr(self) -> str:
        """Return the sizes for ``repr``."""
        return f"num_classes={len(self.index.depth)}, nodes={sum(self.sizes)}"
