"""ClassMoments: count, mean and scatter of every class, in float64 and in one pass over any number of samples."""

from __future__ import annotations

import math
import threading
from functools import partial
from typing import Any, NoReturn

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from tightframe.errors import (
    ArgumentError,
    DeviceError,
    DtypeError,
    EmptyDataError,
    LabelError,
    NonFiniteError,
    ShapeError,
    as_labels,
    as_tensor,
    check_choice,
    check_features,
    check_finite,
    check_label_range,
    check_labels,
    check_positive,
)

BLOCK = 64  # columns of the scatter computed at a time; below the diagonal nothing is
CHUNK = 2**17  # differences that a thread of a CPU holds at a time: two megabytes with what is subtracted


class ClassMoments:
    r"""Count, mean and within-class scatter of every class, updated batch by batch.

    Each class is accumulated as differences :math:`\delta_i = h_i - r_k` from a reference of its own, the first sample
    seen of it (shifted data, Chan, Golub & LeVeque 1983). Reading folds the sums into the reference,

    .. math:: m_k = r_k + D_k / n_k, \qquad S_k = \sum_i \lVert\delta_i\rVert^2 - \lVert D_k\rVert^2 / n_k,
        \qquad D_k = \sum_i \delta_i,

    and shards are merged by Chan's rule. As one :math:`\delta_i` is zero, Cauchy-Schwarz leaves
    :math:`S_k \ge \frac{1}{n_k} \sum_i \lVert\delta_i\rVert^2`: rounding cannot turn a variance negative, a class whose
    features are equal has variance 0 exactly, and the order and the size of the batches do not matter beyond rounding.

    All numbers are in one float64 vector, :attr:`packed`; store or send that.

    On a CPU bad input raises at once and changes nothing. On an accelerator a look at the values would stall it, so bad
    samples are left out and counted, and the next reading raises.

    Args:
        num_classes: Number of classes K >= 1.
        dim: Feature dimension d >= 1.
        scatter: Whether to keep the pooled within-class scatter ``(d, d)``, which ``nc1`` (pinv) and ``vci`` need.
        device: Device to accumulate on; it must support float64.
        packed: Earlier :attr:`packed` vector to continue with; it is used in place, not copied.

    Example:
        >>> import torch
        >>> moments = ClassMoments(num_classes=2, dim=1)
        >>> moments.update(torch.tensor([[0.0], [2.0], [5.0]]), torch.tensor([0, 0, 1]))
        >>> moments.mean.squeeze(1).tolist(), moments.trace.tolist()
        ([1.0, 5.0], [2.0, 0.0])
    """

    def __init__(
        self,
        num_classes: int,
        dim: int,
        *,
        scatter: bool = False,
        device: torch.device | str | None = None,
        packed: Tensor | None = None,
    ) -> None:
        check_positive("num_classes", num_classes)
        check_positive("dim", dim)
        size = self.packed_size(num_classes, dim, scatter)
        if packed is None:
            packed = torch.zeros(size, dtype=torch.float64, device=device)
        if packed.dtype != torch.float64:
            raise DtypeError(f"packed must be float64, got {packed.dtype}; a cast loses the digits that collapse needs")
        if packed.shape != (size,):
            raise ShapeError(f"packed must have shape ({size},) for K = {num_classes}, d = {dim}, got {packed.shape}")
        self.num_classes = num_classes
        self.dim = dim
        self.packed = packed
        self._facts: tuple[int, dict[Any, Any]] = -1, {}  # see tightframe.functional.geometry.kept
        # The layout of `packed`: two counters of bad samples; the coarsest precision of what the sums hold, 0 if they
        # hold nothing, and of what was folded in before; counts, sums of squares, references, sums, products.
        parts = [2, 1, 1, num_classes, num_classes, num_classes * dim, num_classes * dim, dim * dim if scatter else 0]
        self._bad, self._pending, self._eps, self._count, self._squares, reference, sums, products = packed.split(parts)
        self._reference = reference.view(num_classes, dim)
        self._sum = sums.view(num_classes, dim)
        self._products = products.view(dim, dim) if scatter else None

    @staticmethod
    def packed_size(num_classes: int, dim: int, scatter: bool) -> int:
        """Return the length of :attr:`packed`."""
        return 4 + 2 * num_classes + 2 * num_classes * dim + (dim * dim if scatter else 0)

    @classmethod
    def from_samples(cls, features: Tensor, labels: Tensor, num_classes: int, scatter: bool = True) -> ClassMoments:
        """Return the moments of features ``(N, d)`` and labels ``(N,)``; arguments and errors as in :meth:`update`."""
        features, labels = as_tensor(features, "features"), as_labels(labels)
        check_features(features)
        moments = cls(num_classes, features.shape[1], scatter=scatter, device=features.device)
        check_labels(labels, features)
        rows = max(256, 2**20 // features.shape[1])
        for h, y in zip(features.split(rows), labels.split(rows), strict=True):
            moments.update(h, y)
        return moments

    def __repr__(self) -> str:
        return f"ClassMoments(num_classes={self.num_classes}, dim={self.dim}, scatter={self.has_scatter})"

    @property
    def has_scatter(self) -> bool:
        """Whether the pooled scatter is kept."""
        return self._products is not None

    @property
    def device(self) -> torch.device:
        """Device of the moments."""
        return self.packed.device

    @property
    def eps(self) -> Tensor:
        """Machine epsilon of the coarsest floating-point type of the features ``()``; 0 before the first sample."""
        return self._settle()._eps.squeeze()

    @property
    def count(self) -> Tensor:
        """Samples of each class ``(K,)``, float64."""
        return self._settle()._count

    @property
    def mean(self) -> Tensor:
        """Class means ``(K, d)``; rows of absent classes are zero."""
        return self._settle()._reference

    @property
    def trace(self) -> Tensor:
        """Sum over each class of squared distances from its mean ``(K,)``."""
        return self._settle()._squares

    @property
    def scatter(self) -> Tensor:
        """Pooled within-class scatter ``(d, d)``: the sum over all samples of ``(h - mean)(h - mean)ᵀ``.

        Raises:
            ArgumentError: if the moments were built without ``scatter=True``.
        """
        if self._products is None:
            raise ArgumentError("these moments hold no scatter; build them with ClassMoments(..., scatter=True)")
        self._settle()
        return self._products

    @property
    def present(self) -> Tensor:
        """Whether each class has at least one sample ``(K,)``."""
        return self.count > 0

    def global_mean(self, weighting: str = "class") -> Tensor:
        """Return the mean of the class means of the present classes (``"class"``) or of all samples (``"sample"``).

        Raises:
            EmptyDataError: if no sample was seen.
        """
        check_choice("weighting", weighting, ("class", "sample"))
        present = self.present
        if not bool(present.any()):
            raise EmptyDataError("no sample was seen; update the moments with at least one batch first")
        mean, count = self.mean[present], self.count[present]
        weight = count if weighting == "sample" else torch.ones_like(count)
        # Averaging differences from one of the means keeps a common offset out of the sum.
        return mean[0] + weight @ (mean - mean[0]) / weight.sum()

    def centered_means(self, weighting: str = "class") -> Tensor:
        """Return class means of the present classes minus the global mean ``(K', d)``."""
        return self.mean[self.present] - self.global_mean(weighting)

    def update(self, features: Tensor, labels: Tensor, ignore_index: int | None = None) -> None:
        """Add a batch.

        Args:
            features: Features ``(B, d)``, floating point, finite; B may be 0. A tensor, a numpy array or a list.
            labels: Labels ``(B,)``, integers in 0..K-1; likewise.
            ignore_index: Label whose samples are left out, such as -100; any other label out of range is an error.

        Raises:
            DtypeError, ShapeError, DeviceError: if the tensors do not fit.
            LabelError: if a label is out of range.
            NonFiniteError: if a feature is NaN or infinite. The moments are unchanged after any error.
        """
        features, labels = as_tensor(features, "features"), as_labels(labels)
        check_features(features, self.dim)
        check_labels(labels, features)
        if features.device != self.device:
            raise DeviceError(
                f"features are on {features.device} and the moments on {self.device}; "
                f"move one, or build with ClassMoments(..., device='{features.device}')"
            )
        with torch.no_grad():
            if self.device.type == "cpu":
                self._update_checked(features, labels, ignore_index)
            else:
                self._update_masked(features, labels, ignore_index)

    def _update_checked(self, features: Tensor, labels: Tensor, ignore_index: int | None) -> None:
        if ignore_index is not None:
            keep = labels != ignore_index
            features, labels = features[keep], labels[keep]
        if labels.numel() == 0:
            return
        # A product of few rows would cost more to add to the scatter than to compute.
        rows = max(CHUNK * torch.get_num_threads() // self.dim, 1 if self._products is None else 256)
        pieces = [(features, labels)]
        if labels.numel() > rows:
            _check_squares(features)  # before any piece is added, because a later one must not fail
            pieces = list(zip(features.split(rows), labels.split(rows), strict=True))
        try:
            new = self._adopt_references(features, labels)
        except IndexError:
            check_label_range(labels, self.num_classes)
            raise
        for h, y in pieces:
            delta = _differences(h, y, self._reference)
            squares = torch.linalg.vector_norm(delta, dim=1).square_()
            if not math.isfinite(squares.sum().item()):
                if new is not None:
                    self._reference.index_fill_(0, new, 0)
                _raise_not_finite(features)
            self._fold(delta, squares, y, torch.ones_like(squares), features.dtype)

    def _adopt_references(self, features: Tensor, labels: Tensor) -> Tensor | None:
        """Make the first sample of each class that has none its reference, and return these classes, if any."""
        seen = self._count.index_select(0, labels)
        if seen.all().item():
            return None
        rows = (seen == 0).nonzero().squeeze(1)
        found, first = np.unique(labels[rows].numpy(), return_index=True)
        classes = torch.from_numpy(found)
        self._reference.index_copy_(0, classes, features.index_select(0, rows[torch.from_numpy(first)]).double())
        return classes

    def _update_masked(self, features: Tensor, labels: Tensor, ignore_index: int | None) -> None:
        """Add a batch without reading any value on the host: no shape depends on the data."""
        if labels.numel() == 0:
            return
        wanted = torch.ones_like(labels, dtype=torch.bool) if ignore_index is None else labels != ignore_index
        in_range = (labels >= 0) & (labels < self.num_classes)
        finite = torch.isfinite(features).all(dim=1)
        self._bad.add_(torch.stack([(wanted & ~in_range).sum(), (wanted & ~finite).sum()]))
        keep = wanted & in_range & finite
        # A sample left out becomes a copy, of weight zero, of the first one that is kept.
        stand_in = keep.byte().argmax()
        index = torch.where(keep, torch.arange(labels.numel(), device=self.device), stand_in)
        features = features.where(finite.unsqueeze(1), 0)[index]
        labels = labels.where(in_range, 0)[index]
        # Every row of a class without reference writes the same first sample, so their order does not matter.
        first = torch.full((self.num_classes,), labels.numel(), device=self.device)
        first.scatter_reduce_(0, labels, torch.arange(labels.numel(), device=self.device), "amin")
        new = (keep.any() & (self._count[labels] == 0)).unsqueeze(1)
        self._reference[labels] = torch.where(new, features[first[labels]].double(), self._reference[labels])
        weight = keep.to(self.packed)
        delta = (features - self._reference[labels]).mul_(weight.unsqueeze(1))
        self._fold(delta, torch.linalg.vector_norm(delta, dim=1).square_(), labels, weight, features.dtype)

    def _fold(self, delta: Tensor, squares: Tensor, labels: Tensor, weight: Tensor, dtype: torch.dtype) -> None:
        """Add differences from the references to the sums; ``dtype`` is the type the features came in."""
        self._sum.index_add_(0, labels, delta)
        self._squares.index_add_(0, labels, squares)
        self._count.index_add_(0, labels, weight)
        if self._products is not None:
            _add_products(self._products, delta)
        self._pending.clamp_(min=torch.finfo(dtype).eps)

    def _settle(self) -> ClassMoments:
        """Fold the sums into the references, so that these are the means and the squares are centred."""
        if not self._pending.item():
            return self
        self._raise_if_bad()
        count = self._count.clamp(min=1)
        self._squares.sub_(torch.linalg.vector_norm(self._sum, dim=1).square_().div_(count))
        if self._products is not None:
            _add_products(self._products, self._sum / count.sqrt().unsqueeze(1), alpha=-1)
            for start in range(BLOCK, self.dim, BLOCK):
                block = slice(start - BLOCK, start)
                self._products[start:, block] = self._products[block, start:].T
        self._reference.addcdiv_(self._sum, count.unsqueeze(1))
        self._sum.zero_()
        self._eps.clamp_(min=self._pending)
        self._pending.zero_()
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        return _unpack, (self.num_classes, self.dim, self.has_scatter, self.packed)

    def merge(self, other: ClassMoments) -> None:
        """Add the moments of other samples, such as another shard's.

        Raises:
            ShapeError: if K, d or the presence of the scatter differ.
        """
        if (self.num_classes, self.dim, self.has_scatter) != (other.num_classes, other.dim, other.has_scatter):
            raise ShapeError(f"other must be like {self!r}, got {other!r}")
        before, added = self.count, other.count.to(self.device)
        after = (before + added).clamp(min=1)
        gap = torch.where(added.unsqueeze(1) > 0, other.mean.to(self.device) - self.mean, 0)
        self._reference.addcmul_(gap, (added / after).unsqueeze(1))
        gap.mul_((before * added / after).sqrt_().unsqueeze(1))
        self._squares.add_(other.trace.to(self.device)).add_(torch.linalg.vector_norm(gap, dim=1).square_())
        if self._products is not None:
            self._products.add_(other.scatter.to(self.device)).addmm_(gap.T, gap)
        self._count.add_(added)
        self._eps.clamp_(min=other._eps.to(self.device))

    def all_reduce_(self, group: dist.ProcessGroup | None = None) -> ClassMoments:
        """Merge the moments of all ranks in place, on every rank; needs ``torch.distributed`` initialised.

        The state is reduced in place with one more ``(K, d)``: no rank holds the states of others.
        """
        dist.all_reduce(self._bad, group=group)  # first, so that every rank raises or none
        self._raise_if_bad()
        self._settle()
        dist.all_reduce(self._eps, op=dist.ReduceOp.MAX, group=group)
        counts = self._count.clone().unsqueeze(1)
        dist.all_reduce(self._count, group=group)
        # Means are averaged as differences from an origin common to all ranks, so that an offset costs no digits.
        origin = torch.where(counts > 0, self._reference, -torch.inf)
        dist.all_reduce(origin, op=dist.ReduceOp.MAX, group=group)
        origin.masked_fill_(self._count.unsqueeze(1) == 0, 0)
        gap = torch.sub(self._reference, origin, out=self._sum)  # the sums are empty now, so their memory is free
        torch.mul(gap, counts, out=self._reference)
        dist.all_reduce(self._reference, group=group)
        self._reference.div_(self._count.clamp(min=1).unsqueeze(1))
        gap.sub_(self._reference).mul_(counts.sqrt_())
        self._reference.add_(origin)
        self._squares.add_(torch.linalg.vector_norm(gap, dim=1).square_())
        dist.all_reduce(self._squares, group=group)
        if self._products is not None:
            self._products.addmm_(gap.T, gap)
            dist.all_reduce(self._products, group=group)
        self._sum.zero_()
        return self

    def _raise_if_bad(self) -> None:
        labels, features = self._bad.tolist()
        if labels:
            raise LabelError(f"labels must lie in 0..{self.num_classes - 1}, got {int(labels)} samples out of range")
        if features:
            raise NonFiniteError(f"features must be finite, got {int(features)} samples with NaN or infinity")


_scratch = threading.local()


def _differences(features: Tensor, labels: Tensor, references: Tensor) -> Tensor:
    """Return the features minus the references of their classes, in memory that the next call of the thread reuses.

    Fresh memory for every batch would cost more than the arithmetic. Moments of several layers, updated in turn, share
    it: separate memory would never be in the cache.
    """
    size = features.numel()
    memory = getattr(_scratch, "memory", None)
    if memory is None or memory.shape[1] < size:
        with torch.inference_mode(False):  # or no later update outside of it could use this memory
            memory = _scratch.memory = torch.empty(2, size, dtype=torch.float64, device="cpu")
    delta, reference = memory[:, :size].view(2, *features.shape)
    delta.copy_(features)
    return delta.sub_(torch.index_select(references, 0, labels, out=reference))


def _check_squares(features: Tensor) -> None:
    """Raise :class:`NonFiniteError` unless sums of squares of differences of such features are finite in float64."""
    for length in (torch.linalg.vector_norm, partial(torch.linalg.vector_norm, dtype=torch.float64)):
        if length(features).item() < 1e150:  # the length itself may overflow in the features' own precision
            return
    _raise_not_finite(features)


def _raise_not_finite(features: Tensor) -> NoReturn:
    check_finite(features)
    raise NonFiniteError("features must have squares within float64, got larger values; rescale them")


def _add_products(products: Tensor, rows: Tensor, alpha: float = 1) -> None:
    """Add ``alpha * rows.T @ rows`` to the products, on and above the diagonal; reading mirrors the rest."""
    for start in range(0, products.shape[0], BLOCK):
        block = slice(start, start + BLOCK)
        products[block, start:].addmm_(rows[:, block].T, rows[:, start:], alpha=alpha)


def _unpack(num_classes: int, dim: int, scatter: bool, packed: Tensor) -> ClassMoments:
    return ClassMoments(num_classes, dim, scatter=scatter, packed=packed)
