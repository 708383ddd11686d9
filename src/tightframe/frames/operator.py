"""Frame: K class vectors in d dimensions, as a matrix or as a product without one; predicates and bounds."""

from __future__ import annotations

import copy
import math
from abc import ABC, abstractmethod
from typing import Any, Literal, TypeVar, overload

import torch
from torch import Tensor

from tightframe.errors import (
    ArgumentError,
    DtypeError,
    ShapeError,
    check_label_range,
    check_last_dimension,
    check_positive,
)
from tightframe.files import html_table
from tightframe.linalg import at_least_float32, outside_autocast


class Frame(ABC):
    """K class vectors in d dimensions, the rows of W ``(K, d)``; its geometry never changes.

    A subclass sets the four attributes through ``__init__`` and supplies the abstract methods, which get arguments that
    are already checked.

    Args:
        num_classes: Number of classes K.
        dim: Feature dimension d.
        dtype: Type of the results of :meth:`as_matrix`, :meth:`rows` and :attr:`gram`.
        device: Device of these.

    Attributes:
        stored: Whether the frame keeps W, so that :meth:`as_matrix` returns the tensor itself.
    """

    stored = False

    def __init__(self, num_classes: int, dim: int, dtype: torch.dtype, device: torch.device) -> None:
        self.num_classes = num_classes
        self.dim = dim
        self.dtype = dtype
        self.device = device

    def _facts(self) -> dict[str, Any]:
        """Return the facts that ``repr`` and notebooks show, by name."""
        return {"num_classes": self.num_classes, "dim": self.dim, "dtype": self.dtype}

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(f'{name}={value}' for name, value in self._facts().items())})"

    def _repr_html_(self) -> str:
        return html_table([type(self).__name__, ""], self._facts().items())

    def logits(self, features: Tensor) -> Tensor:
        """Return ``features @ W.T``, with sums in float32 or better and outside autocast.

        Args:
            features: Features ``(…, d)``, floating point, on the device of the frame.

        Returns:
            ``(…, K)`` in the dtype of the features.

        Raises:
            DtypeError: if the features are not floating point.
            ShapeError: if their last dimension is not d.
        """
        check_last_dimension(features, self.dim)
        with outside_autocast(features.device):
            return self._logits(at_least_float32(features)).to(features.dtype)

    def rows(self, index: Tensor) -> Tensor:
        """Return the class vectors ``(B, d)`` of the classes ``index (B,)``; no other row is read.

        The values of ``index`` are checked on the CPU only, where reading them costs no synchronisation.

        Raises:
            DtypeError: if the entries of ``index`` are not integers.
            ShapeError: if it is not one-dimensional.
            LabelError: if an entry lies outside 0..K-1 (on the CPU).
        """
        if index.dtype not in (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64):
            raise DtypeError(f"index must be an integer tensor, got {index.dtype}; convert with index.long()")
        if index.ndim != 1:
            raise ShapeError(f"index must have shape (B,), got {tuple(index.shape)}")
        if index.device.type == "cpu" and not torch.compiler.is_compiling():
            check_label_range(index, self.num_classes, "index")
        return self._rows(index.long())

    @abstractmethod
    def _logits(self, features: Tensor) -> Tensor:
        """Return ``features @ W.T`` for features ``(…, d)`` of float32 or better."""

    @abstractmethod
    def _rows(self, index: Tensor) -> Tensor:
        """Return the rows ``(B, d)`` of an int64 index."""

    @property
    @abstractmethod
    def gram(self) -> Tensor:
        """The inner products ``W @ W.T`` of shape ``(K, K)``, or those that W was made to have."""

    @abstractmethod
    def as_matrix(self) -> Tensor:
        """Return W ``(K, d)``."""

    @abstractmethod
    def to(self, *, dtype: torch.dtype | None = None, device: torch.device | str | None = None) -> Frame:
        """Return the same frame in another dtype or on another device."""


Same = TypeVar("Same", bound="MatrixFrame")


class MatrixFrame(Frame):
    """Class vectors given as a matrix. A subclass adds facts about them, as attributes.

    Args:
        matrix: Class vectors W ``(K, d)``, floating point; used as it is, not copied, and gradients flow into it.

    Raises:
        DtypeError: if ``matrix`` is not floating point.
        ShapeError: if it is not two-dimensional, or empty.

    Example:
        >>> frame = MatrixFrame(torch.tensor([[1.0, 0.0], [0.0, 2.0], [1.0, 1.0]]))
        >>> frame.logits(torch.tensor([3.0, 5.0])).tolist()
        [3.0, 10.0, 8.0]
    """

    stored = True

    def __init__(self, matrix: Tensor) -> None:
        if not isinstance(matrix, Tensor) or not matrix.is_floating_point():
            seen = matrix.dtype if isinstance(matrix, Tensor) else type(matrix).__name__
            raise DtypeError(f"matrix must be a floating-point tensor (K, d), got {seen}; convert with matrix.float()")
        if matrix.ndim != 2 or 0 in matrix.shape:
            raise ShapeError(f"matrix must have shape (K, d) with K, d >= 1, got {tuple(matrix.shape)}")
        self._set(matrix)

    def _set(self, matrix: Tensor) -> None:
        super().__init__(matrix.shape[-2], matrix.shape[-1], matrix.dtype, matrix.device)
        self._matrix = matrix

    def _logits(self, features: Tensor) -> Tensor:
        return features @ self._matrix.to(features.dtype).mT

    def _rows(self, index: Tensor) -> Tensor:
        return self._matrix[..., index, :]

    @property
    def frame(self) -> Tensor:
        """W ``(K, d)`` itself."""
        return self._matrix

    @property
    def gram(self) -> Tensor:
        """The inner products ``W @ W.T`` of shape ``(K, K)``, with sums in float32 or better."""
        return self.logits(self._matrix)

    def as_matrix(self) -> Tensor:
        """Return W ``(K, d)`` itself."""
        return self._matrix

    def to(self: Same, *, dtype: torch.dtype | None = None, device: torch.device | str | None = None) -> Same:
        """Return the same frame in another dtype or on another device."""
        frame = copy.copy(self)
        frame._set(self._matrix.to(device=device, dtype=dtype))
        return frame


def as_frame(frame: Frame | Tensor) -> Frame:
    """Return ``frame`` itself, or a :class:`MatrixFrame` of a matrix ``(K, d)``."""
    return frame if isinstance(frame, Frame) else MatrixFrame(frame)


@overload
def is_unit_norm(frame: Frame | Tensor, *, tol: float = ..., explain: Literal[False] = ...) -> bool: ...
@overload
def is_unit_norm(frame: Frame | Tensor, *, tol: float = ..., explain: Literal[True]) -> tuple[bool, str]: ...
def is_unit_norm(frame: Frame | Tensor, *, tol: float = 1e-5, explain: bool = False) -> bool | tuple[bool, str]:
    """Return whether every class vector has length 1.

    Args:
        frame: Frame, or its matrix ``(K, d)``.
        tol: Largest deviation of a length from 1.
        explain: Whether to return the reason too, with its numbers.

    Example:
        >>> is_unit_norm(torch.tensor([[1.0, 0.0], [0.0, 3.0]]), explain=True)
        (False, 'row 1 has length 3, off 1 by 2 > tol = 1e-05')
    """
    norms = torch.linalg.vector_norm(_double(frame), dim=1)
    gap, row = (norms - 1).abs().max(dim=0)
    verdict, comparison = _compare(gap, tol)
    return _answer(verdict, f"row {int(row)} has length {float(norms[row]):.6g}, off 1 by {comparison}", explain)


@overload
def is_tight(frame: Frame | Tensor, *, tol: float = ..., explain: Literal[False] = ...) -> bool: ...
@overload
def is_tight(frame: Frame | Tensor, *, tol: float = ..., explain: Literal[True]) -> tuple[bool, str]: ...
def is_tight(frame: Frame | Tensor, *, tol: float = 1e-5, explain: bool = False) -> bool | tuple[bool, str]:
    r"""Return whether the frame is tight on its span: the nonzero singular values of W are equal.

    For :math:`S = W^\top W` and :math:`c = \lVert S\rVert_F^2 / \mathrm{tr}\, S` the deviation is
    :math:`\lVert S^2 - cS\rVert_F / (c \lVert S\rVert_F)`, which is zero exactly then and needs no numerical rank.
    A frame of zeros is not tight.

    Args:
        frame: Frame, or its matrix ``(K, d)``.
        tol: Largest deviation.
        explain: Whether to return the reason too, with its numbers.

    Example:
        >>> is_tight(torch.tensor([[1.0, 0.0], [0.0, 2.0]]))
        False
        >>> is_tight(torch.tensor([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]]))
        True
    """
    W = _double(frame)
    S = W.T @ W if W.shape[1] < W.shape[0] else W @ W.T
    trace = S.trace()
    if trace == 0:
        return _answer(False, "every row is zero", explain)
    size = torch.linalg.matrix_norm(S)
    c = size.square() / trace
    gap = torch.linalg.matrix_norm(S @ S - c * S) / (c * size)
    verdict, comparison = _compare(gap, tol)
    return _answer(verdict, f"the squared singular values are off {float(c):.6g} by {comparison} (relative)", explain)


@overload
def is_equiangular(frame: Frame | Tensor, *, tol: float = ..., explain: Literal[False] = ...) -> bool: ...
@overload
def is_equiangular(frame: Frame | Tensor, *, tol: float = ..., explain: Literal[True]) -> tuple[bool, str]: ...
def is_equiangular(frame: Frame | Tensor, *, tol: float = 1e-5, explain: bool = False) -> bool | tuple[bool, str]:
    """Return whether all pairs of class vectors have one cosine, sign included; lengths do not matter.

    Args:
        frame: Frame, or its matrix ``(K, d)``; one class is equiangular, a zero row is not.
        tol: Largest difference between two cosines.
        explain: Whether to return the reason too, with its numbers.

    Example:
        >>> is_equiangular(torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0]]), explain=True)
        (False, 'cosines range from -1 to 0, a spread of 1 > tol = 1e-05')
    """
    cosines = _pair_cosines(frame)
    if cosines.numel() == 0:
        return _answer(True, "there is one class only", explain)
    low, high = cosines.min(), cosines.max()
    verdict, comparison = _compare(high - low, tol)
    reason = f"cosines range from {float(low):.6g} to {float(high):.6g}, a spread of {comparison}"
    return _answer(verdict, reason, explain)


@overload
def is_simplex_etf(frame: Frame | Tensor, *, tol: float = ..., explain: Literal[False] = ...) -> bool: ...
@overload
def is_simplex_etf(frame: Frame | Tensor, *, tol: float = ..., explain: Literal[True]) -> tuple[bool, str]: ...
def is_simplex_etf(frame: Frame | Tensor, *, tol: float = 1e-5, explain: bool = False) -> bool | tuple[bool, str]:
    """Return whether the class vectors have length 1 and all pairwise cosines are -1/(K-1).

    Args:
        frame: Frame, or its matrix ``(K, d)``.
        tol: Largest deviation of a length or of a cosine.
        explain: Whether to return the reason too, with its numbers.

    Example:
        >>> is_simplex_etf(torch.tensor([[1.0], [-1.0]]))
        True
        >>> is_simplex_etf(torch.eye(3), explain=True)
        (False, 'a cosine is 0 where a simplex has -0.5, off by 0.5 > tol = 1e-05')
    """
    unit, reason = is_unit_norm(frame, tol=tol, explain=True)
    cosines = _pair_cosines(frame)
    if not unit or cosines.numel() == 0:
        return _answer(False, reason if not unit else "a simplex needs K >= 2 classes, got 1", explain)
    wanted = -1 / (as_frame(frame).num_classes - 1)
    gap, worst = (cosines - wanted).abs().max(dim=0)
    verdict, comparison = _compare(gap, tol)
    reason = f"a cosine is {float(cosines[worst]):.6g} where a simplex has {wanted:.6g}, off by {comparison}"
    return _answer(verdict, reason, explain)


def coherence(frame: Frame | Tensor, *, signed: bool = False) -> float:
    r"""Return the largest :math:`\lvert\cos\rvert` between two class vectors, or with ``signed`` the largest cosine.

    Args:
        frame: Frame, or its matrix ``(K, d)``, of K >= 2 classes; the result is nan if a row is zero.
        signed: Whether to take the largest cosine itself, which tells how far apart the classes are.

    Raises:
        ArgumentError: if there is one class only.

    Example:
        >>> coherence(torch.tensor([[1.0], [-1.0]])), coherence(torch.tensor([[1.0], [-1.0]]), signed=True)
        (1.0, -1.0)
    """
    cosines = _pair_cosines(frame)
    if cosines.numel() == 0:
        raise ArgumentError("frame must have K >= 2 classes to have pairs, got 1")
    return float((cosines if signed else cosines.abs()).max())


def welch_bound(num_classes: int, dim: int) -> float:
    r"""Return a lower bound on the coherence of K unit vectors in d dimensions.

    :math:`\sqrt{(K - d) / (d (K - 1))}` for K > d (Welch, IEEE Trans. Inf. Theory 20, 1974), and 0 for K <= d.

    Args:
        num_classes: Number of classes K >= 1.
        dim: Feature dimension d >= 1.

    Raises:
        ArgumentError: if either is not a positive integer.

    Example:
        >>> welch_bound(4, 3)
        0.333...
    """
    check_positive("num_classes", num_classes)
    check_positive("dim", dim)
    if num_classes <= dim:
        return 0.0
    return math.sqrt((num_classes - dim) / (dim * (num_classes - 1)))


def _double(frame: Frame | Tensor) -> Tensor:
    """Return W ``(K, d)`` in float64: a predicate is about the numbers stored, not about its own rounding."""
    return as_frame(frame).as_matrix().detach().double()


def _pair_cosines(frame: Frame | Tensor) -> Tensor:
    """Return the cosines of all pairs i < j ``(K (K - 1) / 2,)``; nan where a row is zero."""
    W = _double(frame)
    W = W / torch.linalg.vector_norm(W, dim=1, keepdim=True)
    row, column = torch.triu_indices(W.shape[0], W.shape[0], offset=1, device=W.device)
    return (W @ W.T)[row, column]


def _compare(gap: Tensor, tol: float) -> tuple[bool, str]:
    verdict = bool(gap <= tol)
    return verdict, f"{float(gap):.3g} {'<=' if verdict else '>'} tol = {tol:.3g}"


def _answer(verdict: bool, reason: str, explain: bool) -> bool | tuple[bool, str]:
    return (verdict, reason) if explain else verdict
