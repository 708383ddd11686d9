r"""Fixed simplexes for linear layers of any shape: as a weight, as a product without one, and their controls.

A weight is ``(out_features, in_features)`` as that of ``nn.Linear``. Its k = min(out, in) columns (out >= in) or rows
are the vertices of a simplex ETF:

.. math:: W = s\, U\, C_k \quad (out \ge in), \qquad W = s\, C_k U^\top \quad (out < in), \qquad
    C_k = \sqrt{\tfrac{k}{k-1}}\, (I - \tfrac1k \mathbf{1}\mathbf{1}^\top),

with orthonormal columns in U ``(max(out, in), k)`` and the gain s, the length of every vertex. Such a weight has rank
k - 1: it loses the direction of ones and treats all others alike. Its squared Frobenius norm is :math:`s^2 k`.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from tightframe.errors import (
    ArgumentError,
    DimensionError,
    ShapeError,
    check_choice,
    check_features,
    check_positive,
)
from tightframe.frames.nearest import nearest_simplex_etf
from tightframe.frames.simplex import simplex_etf
from tightframe.linalg import at_least_float32, haar_orthonormal

SIMPLEX_KINDS = ("haar", "canonical", "class-rank", "classifier")
CONTROL_KINDS = ("orthogonal", "gaussian")


def check_gain(gain: float) -> None:
    """Raise :class:`ArgumentError` unless ``gain`` is a finite number > 0."""
    if isinstance(gain, bool) or not isinstance(gain, int | float) or not 0 < gain < math.inf:
        raise ArgumentError(f"gain must be a finite number > 0, got {gain!r}")


def num_vertices(out_features: int, in_features: int, *, kind: str = "haar", num_classes: int | None = None) -> int:
    """Return how many vertices a weight of this kind has: its squared Frobenius norm at gain 1.

    Args:
        out_features: rows of the weight, >= 1.
        in_features: its columns, >= 1.
        kind: Kind of :func:`simplex_weight` or :func:`control_weight`; a control has the norm of ``"haar"``.
        num_classes: Number of classes, as in :func:`simplex_weight`.

    Raises:
        ArgumentError: if an argument is outside its range, or ``num_classes`` given where it means nothing.
        DimensionError: if there is no such simplex in these sizes.

    Example:
        >>> num_vertices(512, 128), num_vertices(10, 9, kind="classifier")
        (128, 10)
    """
    check_positive("out_features", out_features)
    check_positive("in_features", in_features)
    check_choice("kind", kind, SIMPLEX_KINDS + CONTROL_KINDS)
    if kind != "class-rank" and num_classes is not None:
        raise ArgumentError(
            f"num_classes is for kind='class-rank', got {num_classes!r} with kind={kind!r}; leave it out"
        )
    narrow = min(out_features, in_features)
    if kind in CONTROL_KINDS:
        return narrow
    if kind in ("haar", "canonical"):
        if narrow < 2:
            raise DimensionError(
                f"kind={kind!r} needs out_features, in_features >= 2, got {out_features} and {in_features}: a simplex "
                "has two vertices or more; for a classifier of a one-dimensional feature use kind='classifier'"
            )
        return narrow
    name, classes = ("out_features", out_features) if kind == "classifier" else ("num_classes", num_classes)
    if not isinstance(classes, int):
        raise ArgumentError(f"kind='class-rank' needs num_classes, an integer >= 2, got {classes!r}")
    check_positive(name, classes, 2)
    width = in_features if kind == "classifier" else narrow
    if width < classes - 1:
        raise DimensionError(
            f"a simplex of {name} = {classes} vertices needs {classes - 1} dimensions, got out_features = "
            f"{out_features} and in_features = {in_features}; widen the layer, or use a general frame"
        )
    return classes


def simplex_weight(
    out_features: int,
    in_features: int,
    *,
    kind: str = "haar",
    num_classes: int | None = None,
    gain: float = 1.0,
    generator: torch.Generator | None = None,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
) -> Tensor:
    r"""Return a simplex ETF as the weight ``(out_features, in_features)`` of a linear layer.

    The vertices, of length ``gain``, are

    - ``"haar"``: the k = min(out, in) columns or rows of the formula above, U uniformly drawn;
    - ``"canonical"``: the same, U the first k coordinates. The outputs (or inputs) after the k-th have weight zero;
    - ``"classifier"``: all ``out_features`` rows, for any ``in_features >= out_features - 1``, uniformly drawn;
    - ``"class-rank"``: those of a simplex of C = ``num_classes`` vertices inside the layer,
      :math:`s A C_C B^\top` with orthonormal columns in A ``(out, C)`` and B ``(in, C)``. Its rank is C - 1 only and
      its squared Frobenius norm :math:`s^2 C`: it destroys all else, which at the start of a training is not yet noise.

    Args:
        out_features: rows, >= 2 (with ``"class-rank"`` >= C - 1).
        in_features: columns, >= 2 (with ``"class-rank"`` and ``"classifier"`` >= C - 1).
        kind: one of the four.
        num_classes: C >= 2, for ``"class-rank"`` alone.
        gain: s > 0.
        generator: source of the draw, on the CPU; None is a fresh one with seed 0, so equal calls give equal weights.
            The draw is in float64 and then cast: it depends on neither dtype nor device.
        dtype: floating-point type of the weight; None is PyTorch's default.
        device: Device of the weight; None is PyTorch's default.

    Raises:
        ArgumentError: if an argument is outside its range.
        DimensionError: if there is no such simplex in these sizes.
        DeviceError: if the generator is not on the CPU.

    Example:
        >>> W = simplex_weight(6, 4, dtype=torch.float64)  # four columns in six dimensions
        >>> W.T @ W
        tensor([[ 1.0000, -0.3333, -0.3333, -0.3333],
                [-0.3333,  1.0000, -0.3333, -0.3333],
                [-0.3333, -0.3333,  1.0000, -0.3333],
                [-0.3333, -0.3333, -0.3333,  1.0000]], dtype=torch.float64)
    """
    check_choice("kind", kind, SIMPLEX_KINDS)
    check_gain(gain)
    vertices = num_vertices(out_features, in_features, kind=kind, num_classes=num_classes)
    if generator is None:
        generator = torch.Generator(device="cpu").manual_seed(0)
    if kind == "class-rank":
        # The Helmert basis that stands between the two in C_C is lost in them: both are uniform.
        A, B = (haar_orthonormal(width, vertices - 1, generator) for width in (out_features, in_features))
        weight = math.sqrt(vertices / (vertices - 1)) * A @ B.T
    else:
        rows = kind == "classifier" or out_features < in_features
        dim = in_features if rows else out_features
        orientation = "canonical" if kind == "canonical" else "haar"
        frame = simplex_etf(
            vertices, dim, orientation=orientation, generator=generator, dtype=torch.float64, device="cpu"
        )
        weight = frame if rows else frame.T
    return _cast(gain * weight, dtype, device)


def control_weight(
    out_features: int,
    in_features: int,
    *,
    kind: str,
    gain: float = 1.0,
    generator: torch.Generator | None = None,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
) -> Tensor:
    """Return a random weight that is no simplex, with the Frobenius norm of the ``"haar"`` one of the same gain.

    What a simplex is worth shows beside these, frozen in its place: ``"orthogonal"`` is ``gain`` times a uniformly
    drawn partial isometry, which keeps the direction of ones, and ``"gaussian"`` has independent entries, scaled so
    that the norm is ``gain * sqrt(k)`` exactly, k = min(out, in).

    Args:
        out_features: rows, >= 1.
        in_features: columns, >= 1.
        kind: ``"orthogonal"`` or ``"gaussian"``.
        gain: > 0, as in :func:`simplex_weight`; so are the others.
        generator: source of the draw.
        dtype: floating-point type of the weight.
        device: Device of the weight.

    Raises:
        ArgumentError: if an argument is outside its range.
        DeviceError: if the generator is not on the CPU.

    Example:
        >>> norms = [control_weight(6, 4, kind=kind, gain=3.0).norm().item() for kind in ("orthogonal", "gaussian")]
        >>> [round(norm, 4) for norm in [*norms, simplex_weight(6, 4, gain=3.0).norm().item()]]
        [6.0, 6.0, 6.0]
    """
    check_choice("kind", kind, CONTROL_KINDS)
    check_gain(gain)
    narrow = num_vertices(out_features, in_features, kind=kind)
    if generator is None:
        generator = torch.Generator(device="cpu").manual_seed(0)
    if kind == "orthogonal":
        weight = haar_orthonormal(max(out_features, in_features), narrow, generator)
        weight = weight if out_features >= in_features else weight.T
    else:  # a Gaussian vector divided by its norm
        weight = haar_orthonormal(out_features * in_features, 1, generator).reshape(out_features, in_features)
        weight = math.sqrt(narrow) * weight
    return _cast(gain * weight, dtype, device)


@torch.no_grad()
def nearest_simplex_weight(weight: Tensor, *, gain: float | None = None) -> Tensor:
    r"""Return the simplex weight nearest to a given one in Frobenius norm: the *aligned* construction.

    For out >= in, with the thin SVD :math:`W (I - \tfrac1k \mathbf{1}\mathbf{1}^\top) = P \Sigma Q^\top`, it is

    .. math:: \frac{\operatorname{tr} \Sigma}{k - 1}\, P Q^\top (I - \tfrac1k \mathbf{1}\mathbf{1}^\top),

    and the transpose of that of :math:`W^\top` for out < in. Nearest is meant among all gains, or with ``gain`` among
    the simplexes of that one. Directions that W does not determine (it has rank below k - 1 once centred) leave several
    equally near: they come from a fixed draw, so that the result is one of these, always the same.

    Args:
        weight: ``(out_features, in_features)`` floating point, both >= 2, finite; half precision is widened inside.
        gain: length of the vertices, > 0; None is the best, :math:`\operatorname{tr}\Sigma / \sqrt{k (k - 1)}`.

    Returns:
        ``(out_features, in_features)`` in the dtype and on the device of ``weight``, without gradient.

    Raises:
        DtypeError, ShapeError: if the weight is not as above.
        NonFiniteError: if it is not finite.
        ArgumentError: if ``gain`` is not a finite number > 0, or None and all the would-be vertices are equal (a zero
            weight): the best gain is then 0.

    Example:
        >>> W = simplex_weight(6, 4, gain=2.0, dtype=torch.float64)
        >>> torch.allclose(nearest_simplex_weight(W + torch.ones(6, 1)), W)  # what all vertices share is centred away
        True
    """
    check_features(weight, name="weight")
    if min(weight.shape) < 2:
        raise ShapeError(f"weight must have shape (out, in) with both >= 2, got {tuple(weight.shape)}")
    if gain is not None:
        check_gain(gain)
    rows = weight.shape[0] < weight.shape[1]
    vertices = weight if rows else weight.T
    nearest = nearest_simplex_etf(vertices, gradient="none")
    if gain is None:
        if int(nearest.rank) == 0:
            raise ArgumentError(
                "weight must have vertices that differ, got all of them equal: the nearest simplex has gain 0; pass "
                "gain=1.0 to take any simplex of that gain"
            )
        gain = float((vertices.double() * nearest.frame.double()).sum()) / vertices.shape[0]
    found = (gain * nearest.frame).to(weight.dtype)
    return (found if rows else found.T).contiguous()


def canonical_product(x: Tensor, out_features: int) -> Tensor:
    """Return ``x @ W.T`` for the canonical :func:`simplex_weight` of gain 1, in O(out + in) a vector and without W.

    Args:
        x: ``(…, in_features)`` floating point, in_features >= 2; half precision is widened and stays so.
        out_features: >= 2; neither is checked.

    Returns:
        ``(…, out_features)``.

    Example:
        >>> x = torch.tensor([1.0, 2.0, 6.0])
        >>> canonical_product(x, 4)
        tensor([-2.4495, -1.2247,  3.6742,  0.0000])
        >>> torch.allclose(canonical_product(x, 4), simplex_weight(4, 3, kind="canonical") @ x)
        True
    """
    kept = at_least_float32(x)[..., :out_features]
    k = kept.shape[-1]
    product = (kept - kept.mean(dim=-1, keepdim=True)) * math.sqrt(k / (k - 1))
    return F.pad(product, (0, out_features - k)) if out_features > k else product


def _cast(weight: Tensor, dtype: torch.dtype | None, device: torch.device | str | None) -> Tensor:
    """Return the float64 weight in the dtype and on the device wanted, contiguous."""
    dtype = torch.get_default_dtype() if dtype is None else dtype
    device = torch.get_default_device() if device is None else torch.device(device)
    return weight.to(dtype=dtype, device=device).contiguous()
