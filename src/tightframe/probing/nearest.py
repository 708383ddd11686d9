"""Count how often the nearest class centre of a layer decides otherwise than the label, or than the network."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from tightframe import functional as F
from tightframe.functional import ClassMoments
from tightframe.probing.passes import moments_on


class NearestCenters:
    """Decisions of the nearest class centre in several layers, counted batch by batch.

    Args:
        moments: of the *training* features of each layer, on any device; they are read when a batch is counted.

    Attributes:
        samples: how many were counted.
    """

    def __init__(self, moments: Mapping[str, ClassMoments]) -> None:
        self._moments = moments
        self._here: dict[str, ClassMoments] = {}  # on the device of the features
        self._wrong: dict[str, Tensor] = {}
        self._differing: dict[str, Tensor] = {}
        self.samples = 0
        self._decided = True  # whether the network's decision came with every batch

    def add(self, features: Mapping[str, Tensor], labels: Tensor, decisions: Tensor | None = None) -> None:
        """Count a batch: features ``(B, d)`` by layer, labels ``(B,)``, and the network's decisions ``(B,)``."""
        self.samples += labels.numel()
        self._decided &= decisions is not None
        for name, h in features.items():
            if name not in self._here:
                self._here[name] = moments_on(self._moments[name], h.device)
            nearest = F.nearest_class_center(h, self._here[name])
            self._wrong[name] = self._wrong.get(name, 0) + (nearest != labels).sum()
            if decisions is not None:
                self._differing[name] = self._differing.get(name, 0) + (nearest != decisions).sum()

    @property
    def errors(self) -> dict[str, float]:
        """Share of samples, by layer, whose nearest class centre is not that of their label."""
        return self._shares(self._wrong)

    @property
    def mismatches(self) -> dict[str, float]:
        """Share of samples, by layer, on which the network decides otherwise; nan if its decisions are not known."""
        if not self._decided:
            return dict.fromkeys(self._wrong, torch.nan)
        return self._shares(self._differing)

    def _shares(self, counts: Mapping[str, Tensor]) -> dict[str, float]:
        return {name: count.item() / self.samples for name, count in counts.items()}
