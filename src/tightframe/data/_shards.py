"""One file of features and labels in each of the formats: header, streaming, memory map and writing."""

from __future__ import annotations

import struct
import zipfile
import zlib
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from numpy.lib import format as npy
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from tightframe.errors import (
    DataFileError,
    DtypeError,
    EmptyDataError,
    LabelError,
    ShapeError,
    TightframeError,
    check_finite,
    require_extra,
)

# Rows read at once where the caller gives no batch size: 64 MiB at d = 4096 in float32.
CHUNK = 4096
# Rows that a reader of parquet may have to hold at once: 32 MiB at d = 1024 in float32.
ROW_GROUP = 8192
FLOATS = ("float16", "bfloat16", "float32", "float64")
INTEGERS = ("int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64")

_BROKEN = (OSError, ValueError, EOFError, NotImplementedError, zlib.error, zipfile.BadZipFile, SafetensorError)


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Turn what the format libraries raise on a broken file into a :class:`DataFileError` that names it."""
    try:
        yield
    except TightframeError:
        raise
    except _BROKEN as error:
        raise DataFileError(
            f"{path} is truncated, damaged or no {path.suffix} file ({type(error).__name__}: {error}); write it again"
        ) from error


class Shard(ABC):
    """Features ``(N, d)`` and labels ``(N,)`` in one file. Opening reads the headers, and no file stays open.

    Args:
        path: the file.
        features_key: name of the features in it.
        labels_key: name of the labels in it.

    Raises:
        DataFileError: if the file is damaged, lacks a key, or has features and labels of different length.
        DtypeError: if features are no floating-point or labels no integer numbers.
        ShapeError: if features are not ``(N, d)`` or labels not ``(N,)``.
        EmptyDataError: if N or d is 0.
    """

    writable: tuple[torch.dtype, ...] = (torch.float16, torch.float32, torch.float64)

    def __init__(self, path: Path, features_key: str, labels_key: str) -> None:
        self.path, self.features_key, self.labels_key = path, features_key, labels_key
        with reading(path):
            keys = self._keys()
            for argument, key in (("features_key", features_key), ("labels_key", labels_key)):
                if key not in keys:
                    raise DataFileError(f"{path} has no {key!r}; pass {argument}=, one of {sorted(keys)}")
            shape, dtype = self._header(features_key)
            labels_shape, labels_dtype = self._header(labels_key)
        self._check_headers(shape, dtype, labels_shape, labels_dtype)
        self.rows, self.dim = shape
        self.dtype: torch.dtype = getattr(torch, dtype)

    def _check_headers(
        self, shape: tuple[int, ...], dtype: str, labels_shape: tuple[int, ...], labels_dtype: str
    ) -> None:
        for name, seen, allowed in (("features", dtype, FLOATS), ("labels", labels_dtype, INTEGERS)):
            if seen not in allowed:
                raise DtypeError(
                    f"{self.path}: {name} must be one of {', '.join(allowed)}, got {seen}; convert them and write again"
                )
        if 0 in (*shape, *labels_shape):
            raise EmptyDataError(f"{self.path} is empty: features {shape}, labels {labels_shape}; leave the file out")
        if len(shape) != 2:
            raise ShapeError(f"{self.path}: features must have shape (N, d), got {shape}; flatten each sample first")
        if len(labels_shape) != 1:
            raise ShapeError(f"{self.path}: labels must have shape (N,), got {labels_shape}; one class index a sample")
        if shape[0] != labels_shape[0]:
            raise DataFileError(
                f"{self.path} has {shape[0]} features but {labels_shape[0]} labels; it must hold one label a sample"
            )

    def labels(self) -> Tensor:
        """Read the labels ``(N,)`` as int64.

        Raises:
            DataFileError: if the file is damaged.
            LabelError: if a label is negative.
        """
        with reading(self.path):
            labels = self._labels()
        negative = int((labels < 0).sum())
        if negative:
            raise LabelError(
                f"{self.path}: labels must be >= 0, got {int(labels.min())} ({negative} of {len(labels)} negative); "
                "leave such samples out of the file"
            )
        return labels

    def batches(self, batch_size: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield ``(B, d)`` features and ``(B,)`` int64 labels in file order, ``B <= batch_size``.

        Raises:
            DataFileError: if the file is damaged.
            LabelError: if a label is negative.
            NonFiniteError: if features of the batch are NaN or infinite.
        """
        labels = self.labels()
        done = 0
        blocks = self._blocks(batch_size)
        while True:
            with reading(self.path):
                block = next(blocks, None)
            if block is None:
                return
            check_finite(block, name=f"features in {self.path}")
            yield block, labels[done : done + len(block)]
            done += len(block)

    def fill(self, features: Tensor) -> None:
        """Copy the features into ``features (N, d)``; raises as :meth:`batches`."""
        done = 0
        for block, _ in self.batches(CHUNK):
            features[done : done + len(block)] = block
            done += len(block)

    @property
    def maps(self) -> bool:
        """Whether :meth:`features` is a private memory map of the file, and not loaded."""
        return False

    def features(self) -> Tensor:
        """Return the features ``(N, d)``: loaded and checked, or a memory map whose values nobody has looked at."""
        features = torch.empty(self.rows, self.dim, dtype=self.dtype, device="cpu")
        self.fill(features)
        return features

    @staticmethod
    @abstractmethod
    def write(path: Path, features: Tensor, labels: Tensor) -> None:
        """Write a file with the keys ``features`` and ``labels``."""

    @abstractmethod
    def _keys(self) -> list[str]:
        """Return the names of the tensors or columns."""

    @abstractmethod
    def _header(self, key: str) -> tuple[tuple[int, ...], str]:
        """Return shape and dtype, the latter by torch's name where there is one."""

    @abstractmethod
    def _labels(self) -> Tensor:
        """Read the labels as int64."""

    @abstractmethod
    def _blocks(self, size: int) -> Iterator[Tensor]:
        """Yield the features in blocks of at most ``size`` rows."""


class SafetensorsShard(Shard):
    """Two tensors of a safetensors file."""

    writable = (*Shard.writable, torch.bfloat16)
    _DTYPES = MappingProxyType(
        {"BF16": "bfloat16"}
        | {f"F{bits}": f"float{bits}" for bits in (16, 32, 64)}
        | {f"{code}{bits}": f"{kind}{bits}" for code, kind in (("I", "int"), ("U", "uint")) for bits in (8, 16, 32, 64)}
    )

    @staticmethod
    def write(path: Path, features: Tensor, labels: Tensor) -> None:
        """Write a file with the keys ``features`` and ``labels``."""
        save_file({"features": features.contiguous(), "labels": labels.contiguous()}, path)

    def _keys(self) -> list[str]:
        with safe_open(self.path, framework="pt") as file:
            return list(file.keys())

    def _header(self, key: str) -> tuple[tuple[int, ...], str]:
        with safe_open(self.path, framework="pt") as file:
            view = file.get_slice(key)
            code = view.get_dtype()
            return tuple(view.get_shape()), self._DTYPES.get(code, code.lower())

    def _labels(self) -> Tensor:
        with safe_open(self.path, framework="pt") as file:
            # A copy: otherwise the labels would keep the whole file mapped.
            return file.get_tensor(self.labels_key).clone().long()

    def _blocks(self, size: int) -> Iterator[Tensor]:
        with safe_open(self.path, framework="pt") as file:
            view = file.get_slice(self.features_key)
            for start in range(0, self.rows, size):
                yield view[start : start + size]

    @property
    def maps(self) -> bool:
        """True: safetensors maps what it reads."""
        return True

    def features(self) -> Tensor:
        """Return the features ``(N, d)`` as a memory map."""
        with reading(self.path), safe_open(self.path, framework="pt") as file:
            return file.get_tensor(self.features_key)


class NpzShard(Shard):
    """Two arrays of an npz file; one stored uncompressed (``numpy.savez``) is mapped where it lies in the zip."""

    @staticmethod
    def write(path: Path, features: Tensor, labels: Tensor) -> None:
        """Write a file with the keys ``features`` and ``labels``."""
        with open(path, "wb") as file:
            np.savez(file, features=features.numpy(), labels=labels.numpy())

    def _keys(self) -> list[str]:
        with zipfile.ZipFile(self.path) as archive:
            return [name.removesuffix(".npy") for name in archive.namelist() if name.endswith(".npy")]

    def _header(self, key: str) -> tuple[tuple[int, ...], str]:
        with zipfile.ZipFile(self.path) as archive, archive.open(key + ".npy") as member:
            shape, _, dtype = _npy_header(member)
            return shape, dtype.name if dtype.isnative else f"{dtype.name} of the other byte order"

    def _labels(self) -> Tensor:
        with np.load(self.path, allow_pickle=False) as archive:
            return torch.from_numpy(archive[self.labels_key].astype(np.int64))

    def _blocks(self, size: int) -> Iterator[Tensor]:
        with zipfile.ZipFile(self.path) as archive, archive.open(self.features_key + ".npy") as member:
            _, by_columns, dtype = _npy_header(member)
            if by_columns:
                yield from self._blocks_by_columns(size)
                return
            for start in range(0, self.rows, size):
                count = min(size, self.rows - start)
                data = member.read(count * self.dim * dtype.itemsize)
                # bytearray, because torch cannot hold read-only memory; too short a member fails in the reshape.
                yield torch.from_numpy(np.frombuffer(bytearray(data), dtype).reshape(count, self.dim))
            # The zip's checksum is compared at the end of a member only.
            if member.read(1):
                raise ValueError(f"{member.name} is longer than its header says")

    def _blocks_by_columns(self, size: int) -> Iterator[Tensor]:
        """Yield row blocks of an array in Fortran order, which a stream of bytes does not give: mapped or loaded."""
        if self.maps:
            features = self.features()
        else:
            with np.load(self.path, allow_pickle=False) as archive:
                features = torch.from_numpy(archive[self.features_key])
        for block in features.split(size):
            yield block.clone(memory_format=torch.contiguous_format)

    @property
    def maps(self) -> bool:
        """Whether the features are stored uncompressed."""
        with reading(self.path), zipfile.ZipFile(self.path) as archive:
            return archive.getinfo(self.features_key + ".npy").compress_type == zipfile.ZIP_STORED

    def features(self) -> Tensor:
        """Return the features ``(N, d)``: a memory map unless they are compressed."""
        if not self.maps:
            return super().features()
        with reading(self.path), zipfile.ZipFile(self.path) as archive:
            info = archive.getinfo(self.features_key + ".npy")
            with archive.open(info) as member:
                shape, by_columns, dtype = _npy_header(member)
                offset = _data_offset(self.path, info) + member.tell()
            return torch.from_numpy(np.memmap(self.path, dtype, "c", offset, shape, "F" if by_columns else "C"))


class ParquetShard(Shard):
    """Two columns of a parquet file: lists of floats, all of one length, and integers. Needs the extra ``hf``."""

    @staticmethod
    def write(path: Path, features: Tensor, labels: Tensor) -> None:
        """Write a file with the columns ``features`` and ``labels``."""
        pa = require_extra("pyarrow", "hf")
        flat = pa.array(features.contiguous().numpy().reshape(-1))
        columns = [pa.FixedSizeListArray.from_arrays(flat, features.shape[1]), pa.array(labels.numpy())]
        table = pa.Table.from_arrays(columns, names=["features", "labels"])
        _parquet().write_table(table, path, row_group_size=ROW_GROUP)

    def _keys(self) -> list[str]:
        with _parquet().ParquetFile(self.path, memory_map=True) as file:
            return list(file.schema_arrow.names)

    def _header(self, key: str) -> tuple[tuple[int, ...], str]:
        with _parquet().ParquetFile(self.path, memory_map=True) as file:
            kind = file.schema_arrow.field(key).type
            shape: tuple[int, ...] = (file.metadata.num_rows,)
            if hasattr(kind, "value_type"):
                kind = kind.value_type
                shape = (*shape, self._width(file, key))
        return shape, {"halffloat": "float16", "float": "float32", "double": "float64"}.get(str(kind), str(kind))

    def _width(self, file: Any, key: str) -> int:
        """Return the length of the first list in a column, 0 if there is none."""
        for batch in file.iter_batches(1, columns=[key]):
            return len(batch.column(0)[0].as_py() or ())
        return 0

    def _labels(self) -> Tensor:
        column = _parquet().read_table(self.path, columns=[self.labels_key]).column(0)
        if column.null_count:
            raise DataFileError(f"{self.path}: {column.null_count} labels are null; leave such samples out of the file")
        return torch.from_numpy(column.to_numpy().astype(np.int64))

    def _blocks(self, size: int) -> Iterator[Tensor]:
        with _parquet().ParquetFile(self.path, memory_map=True) as file:
            for batch in file.iter_batches(size, columns=[self.features_key]):
                column = batch.column(0)
                if column.null_count or any(width != self.dim for width in column.value_lengths().unique().to_pylist()):
                    raise DataFileError(f"{self.path}: features must all be lists of d = {self.dim} numbers")
                yield torch.from_numpy(np.array(column.flatten()).reshape(-1, self.dim))


FORMATS: dict[str, type[Shard]] = {".npz": NpzShard, ".safetensors": SafetensorsShard, ".parquet": ParquetShard}


def format_of(path: Path) -> type[Shard]:
    """Return the reader for a file by its suffix, or raise :class:`DataFileError`."""
    if path.suffix not in FORMATS:
        raise DataFileError(f"{path} must end in one of {', '.join(FORMATS)}, got {path.suffix or 'no suffix'!r}")
    return FORMATS[path.suffix]


def _parquet() -> Any:
    return require_extra("pyarrow.parquet", "hf")


def _npy_header(member: Any) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    """Read an npy header: shape, whether in Fortran order, dtype; the member then stands at the data."""
    read = npy.read_array_header_1_0 if npy.read_magic(member) == (1, 0) else npy.read_array_header_2_0
    return read(member)


def _data_offset(path: Path, info: zipfile.ZipInfo) -> int:
    """Return where a member's data begin in the zip: after a local header whose length the directory does not tell."""
    with open(path, "rb") as file:
        file.seek(info.header_offset + 26)
        return info.header_offset + 30 + sum(struct.unpack("<HH", file.read(4)))
