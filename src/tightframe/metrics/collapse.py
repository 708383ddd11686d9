"""torchmetrics classes over ``tightframe.functional``: streaming, distributed, one packed float64 state."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from torch import Tensor, nn

from tightframe.errors import ArgumentError, check_choice, check_features, check_finite
from tightframe.functional.registry import Preset, evaluate, select
from tightframe.functional.rows import METRICS
from tightframe.metrics._base import StreamedMetric
from tightframe.moments import ClassMoments


class MomentsMetric(StreamedMetric):
    """Base of metrics that are functions of :class:`ClassMoments`: it gathers them, a subclass computes.

    The state is one float64 vector, which ``half()`` or ``to(torch.bfloat16)`` of a parent module never casts.
    Synchronisation reduces it in place, so it needs one copy of the state instead of one per rank. Metrics of a
    ``MetricCollection`` that gather the same moments share them, as torchmetrics' compute groups do.

    Args:
        num_classes: Number of classes K.
        dim: Feature dimension d.
        scatter: Whether to gather the pooled scatter ``(d, d)``.
        ignore_index: Label whose samples are left out.
        kwargs: Arguments of ``torchmetrics.Metric``.
    """

    packed: Tensor

    def __init__(
        self, num_classes: int, dim: int, *, scatter: bool, ignore_index: int | None = None, **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        self.ignore_index = ignore_index
        self._moments = ClassMoments(num_classes, dim, scatter=scatter)
        merge = partial(_merge_packed, num_classes=num_classes, dim=dim, scatter=scatter)
        self.add_state("packed", self._moments.packed, dist_reduce_fx=merge)
        if ignore_index is not None:
            self._keep_apart(f"ignores_{ignore_index}")

    @property
    def moments(self) -> ClassMoments:
        """The moments gathered so far, a view of the state."""
        if self._moments.packed is not self.packed:
            like = self._moments
            self._moments = ClassMoments(like.num_classes, like.dim, scatter=like.has_scatter, packed=self.packed)
        return self._moments

    def update(self, features: Tensor, labels: Tensor) -> None:
        """Fold in features ``(B, d)`` and labels ``(B,)``; errors as :meth:`ClassMoments.update`."""
        self.moments.update(features, labels, self.ignore_index)

    @abstractmethod
    def compute(self) -> Any:
        """Return the metric of all samples on all ranks."""

    def _evaluate(self, preset: Preset, **given: Tensor | None) -> dict[str, Tensor]:
        have = {"means"} | {name for name, tensor in given.items() if tensor is not None}
        if self.moments.has_scatter:
            have.add("scatter")
        return evaluate(select(preset, have), self.moments, **given)

    def _sync_dist(self, dist_sync_fn: Callable | None = None, process_group: Any = None) -> None:
        # The state may be shared within a compute group, so the copy that torchmetrics made of it is reduced instead.
        cache: dict[str, Any] = {"packed": self.packed.clone()} if self._cache is None else self._cache
        self.packed, cache["packed"] = cache["packed"], self.packed
        self.moments.all_reduce_(process_group or self.process_group)


class NeuralCollapse(MomentsMetric):
    """All collapse metrics of a layer, or those of one published code, as a dict keyed by metric id.

    Args:
        num_classes: Number of classes K.
        dim: Feature dimension d.
        classifier: Last linear map of the model, or an object with ``weight (K, d)`` and perhaps ``bias (K,)``. It is
            read when the metrics are computed, and is not part of this metric. None leaves out metrics that need it.
        preset: Metrics to compute, see :func:`tightframe.functional.collapse_metrics`.
        scatter: Whether to gather the pooled scatter ``(d, d)``, which ``nc1.pinv`` and ``vci`` need.
        ignore_index: Label whose samples are left out.
        kwargs: Arguments of ``torchmetrics.Metric``.

    Example:
        >>> import torch
        >>> metric = NeuralCollapse(num_classes=3, dim=3)
        >>> metric.update(torch.eye(3), torch.arange(3))
        >>> round(metric.compute()["nc2.max_angle.means"].item(), 12)
        0.0
    """

    def __init__(
        self,
        num_classes: int,
        dim: int,
        *,
        classifier: nn.Module | None = None,
        preset: Preset | None = None,
        scatter: bool = True,
        ignore_index: int | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(num_classes, dim, scatter=scatter, ignore_index=ignore_index, **kwargs)
        self.preset = "default" if preset is None else preset
        select(self.preset, ())  # an unknown one raises before any sample is read
        self._classifier = _Reference(classifier)

    def compute(self) -> dict[str, Tensor]:
        """Return 0-d float64 tensors by metric id."""
        weight, bias = self._classifier.parameters()
        return self._evaluate(self.preset, weight=weight, bias=bias)


class FrameCollapse(MomentsMetric):
    """All metrics of :func:`tightframe.functional.frame_metrics`, as a dict keyed by metric id.

    Args:
        frame: Class vectors ``(K, d)``; a copy is kept in its own precision, from which its rounding is known.
        scatter: Whether to gather the pooled scatter ``(d, d)``, which ``frame.outside.features`` needs.
        ignore_index: Label whose samples are left out.
        kwargs: Arguments of ``torchmetrics.Metric``.

    Raises:
        DtypeError, ShapeError, NonFiniteError: if the frame is not a finite floating-point matrix.

    Example:
        >>> import torch
        >>> metric = FrameCollapse(torch.eye(3))
        >>> metric.update(torch.eye(3), torch.arange(3))
        >>> metric.compute()["frame.alignment"]
        tensor(1., dtype=torch.float64)
    """

    frame: Tensor

    def __init__(self, frame: Tensor, *, scatter: bool = False, ignore_index: int | None = None, **kwargs: Any) -> None:
        check_features(frame, name="frame")
        check_finite(frame, "frame")
        super().__init__(frame.shape[0], frame.shape[1], scatter=scatter, ignore_index=ignore_index, **kwargs)
        self.register_buffer("frame", frame.detach().clone(), persistent=False)

    def compute(self) -> dict[str, Tensor]:
        """Return 0-d float64 tensors by metric id."""
        return self._evaluate([metric.id for metric in METRICS if "frame" in metric.needs], frame=self.frame)


class _OneRow(MomentsMetric):
    """One row of the registry."""

    higher_is_better = False
    plot_lower_bound = 0.0

    def __init__(
        self,
        num_classes: int,
        dim: int,
        row: str,
        options: Mapping[str, Any] | None = None,
        *,
        classifier: nn.Module | None = None,
        scatter: bool = False,
        ignore_index: int | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(num_classes, dim, scatter=scatter, ignore_index=ignore_index, **kwargs)
        self._row = (row, options or {})
        self._classifier = _Reference(classifier)

    def compute(self) -> Tensor:
        """Return a 0-d float64 tensor."""
        weight, _ = self._classifier.parameters()
        for value in self._evaluate([self._row], weight=weight).values():
            return value
        raise ArgumentError("classifier must be a module with a weight (K, d), got None")


class NC1(_OneRow):
    """Variability collapse; see :func:`tightframe.functional.nc1`.

    Args:
        num_classes: Number of classes K.
        dim: Feature dimension d.
        variant: Variant of ``functional.nc1``.
        weighting: Global mean that centres the class means, ``"class"`` or ``"sample"``.
        kwargs: Options of ``MomentsMetric``.

    Example:
        >>> import torch
        >>> metric = NC1(num_classes=2, dim=1, variant="ratio")
        >>> metric.update(torch.tensor([[0.0], [2.0], [5.0], [7.0]]), torch.tensor([0, 0, 1, 1]))
        >>> metric.compute()
        tensor(0.1600, dtype=torch.float64)
    """

    def __init__(
        self, num_classes: int, dim: int, *, variant: str = "pinv", weighting: str = "class", **kwargs: Any
    ) -> None:
        check_choice("variant", variant, ("pinv", "pinv_sum", "ratio"))
        check_choice("weighting", weighting, ("class", "sample"))
        options = {"weighting": weighting}
        super().__init__(num_classes, dim, f"nc1.{variant}", options, scatter=variant != "ratio", **kwargs)


class NC2(_OneRow):
    """Convergence of the class means to a simplex ETF, by one of five measures.

    Args:
        num_classes: Number of classes K.
        dim: Feature dimension d.
        variant: Measure ``equinorm``, ``equiangularity``, ``max_angle``, ``gram`` or ``etf_gap``.
        kwargs: Options of ``MomentsMetric``.
    """

    def __init__(self, num_classes: int, dim: int, *, variant: str = "gram", **kwargs: Any) -> None:
        check_choice("variant", variant, ("equinorm", "equiangularity", "max_angle", "gram", "etf_gap"))
        super().__init__(num_classes, dim, f"nc2.{variant}.means", **kwargs)


class NC3(_OneRow):
    """Self-duality of classifier and class means, by one of three measures.

    Args:
        num_classes: Number of classes K.
        dim: Feature dimension d.
        classifier: Module as in :class:`NeuralCollapse`.
        variant: Measure ``distance``, ``gram`` or ``alignment``, each ``functional.nc3_*``.
        kwargs: Options of ``MomentsMetric``.
    """

    def __init__(
        self, num_classes: int, dim: int, *, classifier: nn.Module, variant: str = "distance", **kwargs: Any
    ) -> None:
        check_choice("variant", variant, ("distance", "gram", "alignment"))
        super().__init__(num_classes, dim, f"nc3.{variant}", classifier=classifier, **kwargs)


class CDNV(_OneRow):
    """Class-distance normalised variance; see :func:`tightframe.functional.cdnv`."""

    def __init__(self, num_classes: int, dim: int, *, power: int = 1, **kwargs: Any) -> None:
        super().__init__(num_classes, dim, "cdnv", {"power": power}, **kwargs)


class _Reference:
    """Refers to a module without owning it: a copy of the metric still watches the same classifier."""

    def __init__(self, module: nn.Module | None) -> None:
        self.module = module

    def __deepcopy__(self, memo: dict[int, Any]) -> _Reference:
        return self

    def parameters(self) -> tuple[Tensor | None, Tensor | None]:
        weight, bias = getattr(self.module, "weight", None), getattr(self.module, "bias", None)
        return (
            weight.detach() if isinstance(weight, Tensor) else None,
            bias.detach() if isinstance(bias, Tensor) else None,
        )


def _merge_packed(states: Tensor, num_classes: int, dim: int, scatter: bool) -> Tensor:
    """Merge packed moments ``(n, size)`` into one vector."""
    parts = [ClassMoments(num_classes, dim, scatter=scatter, packed=state) for state in states]
    for other in parts[1:]:
        parts[0].merge(other)
    return parts[0].packed.clone()  # a view would keep the memory of all of them
