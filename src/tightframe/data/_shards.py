"""One file of features and labels in each of the formats: header, streaming, memory map and writing."""

from __future__ import annotations

import math
import struct
import zipfile
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from functools import reduce
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.lib import format as npy
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from tightframe.errors import (
    DataFileError,
    DtypeError,
    EmptyDataError,
    LabelError,
    ShapeError,
    as_labels,
    check_finite,
    require_extra,
    shown,
)
from tightframe.files import reading

# Rows read at once where the caller gives no batch size: 64 MiB at d = 4096 in float32.
CHUNK = 4096
# Rows that a reader of parquet may have to hold at once: 32 MiB at d = 1024 in float32.
ROW_GROUP = 8192
# Class indices fit into int32.
MOST_CLASSES = 2**31
FLOATS = ("float16", "bfloat16", "float32", "float64")
INTEGERS = ("int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64")


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
        (self.rows, self.dim), dtype = self._checked("features", features_key, 2, FLOATS, "flatten each sample first")
        (labels,), _ = self._checked("labels", labels_key, 1, INTEGERS, "one class index a sample")
        self.dtype: torch.dtype = getattr(torch, dtype)
        if self.rows != labels:
            raise DataFileError(f"{path} has {self.rows} features but {labels} labels; it must hold one label a sample")

    def _checked(self, name: str, key: str, ndim: int, dtypes: Sequence[str], fix: str) -> tuple[tuple[int, ...], str]:
        """Return shape and dtype of a tensor or column, after a look at its header."""
        with self._reading():
            keys = self._keys()
            if key not in keys:
                raise DataFileError(f"{self.path} has no {key!r}; pass {name}_key=, one of {shown(sorted(keys))}")
            if keys.count(key) > 1:
                raise DataFileError(f"{self.path} has {keys.count(key)} of the name {key!r}; leave one")
            shape, dtype = self._header(key)
            if min(shape, default=0) < 0:
                raise ValueError(f"{name} of shape {shape}")
        if dtype not in dtypes:
            raise DtypeError(
                f"{self.path}: {name} must be one of {', '.join(dtypes)}, got {dtype}; convert them and write again"
            )
        if 0 in shape:
            raise EmptyDataError(f"{self.path} is empty: {name} {shape}; leave the file out")
        if len(shape) != ndim:
            wanted = "(N, d)" if ndim == 2 else "(N,)"
            raise ShapeError(f"{self.path}: {name} must have shape {wanted}, got {shape}; {fix}")
        return shape, dtype

    def _reading(self) -> AbstractContextManager[None]:
        return reading(self.path, f"is truncated, damaged or no {self.path.suffix} file", "write it again")

    def labels(self) -> Tensor:
        """Read the labels ``(N,)`` as int64.

        Raises:
            DataFileError: if the file is damaged.
            LabelError: if a label is negative, or beyond any class.
        """
        with self._reading():
            labels = as_labels(torch.cat(list(self._blocks(self.labels_key, CHUNK))))
            if len(labels) != self.rows:
                raise ValueError(f"it holds {len(labels)} labels but claims {self.rows}")
        wrong = ((labels < 0) | (labels >= MOST_CLASSES)).nonzero()
        if len(wrong):
            row = int(wrong[0])
            raise LabelError(
                f"{self.path}: labels must lie in 0..{MOST_CLASSES - 1}, got {int(labels[row])} in row {row} "
                f"({len(wrong)} of {len(labels)} outside); leave such samples out of the file"
            )
        return labels

    def batches(self, batch_size: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield ``(B, d)`` features and ``(B,)`` int64 labels in file order, ``B <= batch_size``.

        Raises:
            DataFileError: if the file is damaged, or holds other rows than its header claims.
            LabelError: if a label is negative, or beyond any class.
            NonFiniteError: if features of the batch are NaN or infinite.
        """
        labels = self.labels()
        done = 0
        blocks = self._blocks(self.features_key, batch_size)
        while True:
            with self._reading():
                block = next(blocks, None)
                rows = done if block is None else done + len(block)
                if rows > self.rows or (block is None and rows < self.rows):
                    raise ValueError(f"it holds {rows} rows of features but claims {self.rows}")
                if block is not None and (block.dtype != self.dtype or block.shape[1:] != (self.dim,)):
                    raise ValueError(f"it holds {block.dtype} {tuple(block.shape)} but claims {self.dtype}, {self.dim}")
            if block is None:
                return
            check_finite(block, name=f"features in {self.path}")
            yield block, labels[done:rows]
            done = rows

    def mapped(self) -> Tensor | None:
        """Return the features as a private memory map whose values nobody has looked at; None where there is none."""
        with self._reading():
            return self._map(self.features_key)

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
    def _blocks(self, key: str, size: int) -> Iterator[Tensor]:
        """Yield a tensor or column in blocks of at most ``size`` rows."""

    def _map(self, key: str) -> Tensor | None:
        """Return a memory map of a tensor, if the format has one."""
        return None


class SafetensorsShard(Shard):
    """Two tensors of a safetensors file, which are mapped whenever they are read."""

    writable = (*Shard.writable, torch.bfloat16)

    @staticmethod
    def write(path: Path, features: Tensor, labels: Tensor) -> None:
        """Write a file with the keys ``features`` and ``labels``."""
        save_file({"features": features.contiguous(), "labels": labels.contiguous()}, path)

    def _keys(self) -> list[str]:
        with safe_open(self.path, framework="pt") as file:
            return list(file.keys())

    def _header(self, key: str) -> tuple[tuple[int, ...], str]:
        tensor = self._map(key)
        return tuple(tensor.shape), str(tensor.dtype).removeprefix("torch.")

    def _blocks(self, key: str, size: int) -> Iterator[Tensor]:
        yield from self._map(key).split(size)

    def _map(self, key: str) -> Tensor:
        with safe_open(self.path, framework="pt") as file:
            return file.get_tensor(key)


class NpzShard(Shard):
    """Two arrays of an npz file; one stored uncompressed (``numpy.savez``) is mapped where it lies in the zip."""

    @staticmethod
    def write(path: Path, features: Tensor, labels: Tensor) -> None:
        """Write a file with the keys ``features`` and ``labels``."""
        with open(path, "wb") as file:
            np.savez(file, features=features.numpy(), labels=labels.numpy())

    @contextmanager
    def _open(self, key: str) -> Iterator[tuple[Any, tuple[int, ...], bool, np.dtype[Any]]]:
        """Yield the member of an array, which stands at the data, its shape, whether in Fortran order, and dtype."""
        with zipfile.ZipFile(self.path) as archive, archive.open(key + ".npy") as member:
            read = npy.read_array_header_1_0 if npy.read_magic(member) == (1, 0) else npy.read_array_header_2_0
            shape, by_columns, dtype = read(member)
            held = archive.getinfo(member.name).file_size - member.tell()
            # What objects take is not said, but they are refused by their dtype.
            if held != math.prod(shape) * dtype.itemsize and not dtype.hasobject:
                raise ValueError(f"{member.name} has {held} bytes for {dtype} of shape {shape}")
            yield member, shape, by_columns, dtype

    def _keys(self) -> list[str]:
        with zipfile.ZipFile(self.path) as archive:
            return [name.removesuffix(".npy") for name in archive.namelist() if name.endswith(".npy")]

    def _header(self, key: str) -> tuple[tuple[int, ...], str]:
        with self._open(key) as (_, shape, _, dtype):
            return shape, dtype.name if dtype.isnative else f"{dtype.name} of the other byte order"

    def _blocks(self, key: str, size: int) -> Iterator[Tensor]:
        with self._open(key) as (member, shape, by_columns, dtype):
            if by_columns:
                # A stream of bytes does not give the rows.
                whole = self._map(key)
                if whole is None:
                    data = np.frombuffer(bytearray(member.read()), dtype)
                    whole = torch.from_numpy(data.reshape(shape, order="F"))
                while member.read(2**20):  # the zip's checksum is compared at the end of a member only
                    pass
                for block in whole.split(size):
                    yield block.clone(memory_format=torch.contiguous_format)
                return
            for start in range(0, shape[0], size):
                rows = (min(size, shape[0] - start), *shape[1:])
                data = member.read(math.prod(rows) * dtype.itemsize)
                # bytearray, because torch cannot hold read-only memory; too short a member fails in the reshape.
                yield torch.from_numpy(np.frombuffer(bytearray(data), dtype).reshape(rows))
            member.read(1)  # as above

    def _map(self, key: str) -> Tensor | None:
        with zipfile.ZipFile(self.path) as archive:
            info = archive.getinfo(key + ".npy")
        if info.compress_type != zipfile.ZIP_STORED:
            return None
        with open(self.path, "rb") as file, self._open(key) as (member, shape, by_columns, dtype):
            # The data begin after a local header, whose length the directory of the zip does not tell.
            file.seek(info.header_offset + 26)
            offset = info.header_offset + 30 + sum(struct.unpack("<HH", file.read(4))) + member.tell()
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
        parquet = require_extra("pyarrow.parquet", "hf")
        parquet.write_table(table, path, row_group_size=ROW_GROUP, write_page_checksum=True)

    def _open(self) -> Any:
        parquet = require_extra("pyarrow.parquet", "hf")
        return parquet.ParquetFile(self.path, memory_map=True, page_checksum_verification=True)

    def _keys(self) -> list[str]:
        with self._open() as file:
            return list(file.schema_arrow.names)

    def _header(self, key: str) -> tuple[tuple[int, ...], str]:
        with self._open() as file:
            kind = file.schema_arrow.field(key).type
            shape: tuple[int, ...] = (file.metadata.num_rows,)
            types = require_extra("pyarrow.types", "hf")
            if types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind):
                kind = kind.value_type
                first = [batch.column(0)[0].as_py() for batch in islice(file.iter_batches(1, columns=[key]), 1)]
                shape = (*shape, len(first[0] or ()) if first else 0)
        return shape, {"halffloat": "float16", "float": "float32", "double": "float64"}.get(str(kind), str(kind))

    def _blocks(self, key: str, size: int) -> Iterator[Tensor]:
        with self._open() as file:
            for batch in file.iter_batches(size, columns=[key]):
                column = batch.column(0)
                if key == self.labels_key:
                    if column.null_count:
                        seen = f"{column.null_count} labels are null among {len(column)} rows"
                        raise DataFileError(f"{self.path}: {seen}; leave such samples out of the file")
                    yield torch.from_numpy(np.array(column))
                elif column.null_count or any(
                    width != self.dim for width in column.value_lengths().unique().to_pylist()
                ):
                    raise DataFileError(f"{self.path}: features must all be lists of d = {self.dim} numbers")
                else:
                    yield torch.from_numpy(np.array(column.flatten()).reshape(-1, self.dim))


FORMATS: dict[str, type[Shard]] = {".npz": NpzShard, ".safetensors": SafetensorsShard, ".parquet": ParquetShard}


def format_of(path: Path) -> type[Shard]:
    """Return the reader for a file by its suffix, or raise :class:`DataFileError`."""
    if path.suffix not in FORMATS:
        raise DataFileError(f"{path} must end in one of {', '.join(FORMATS)}, got {path.suffix or 'no suffix'!r}")
    return FORMATS[path.suffix]


def gathered(shards: Sequence[Shard]) -> tuple[Tensor, Tensor]:
    """Read the features ``(N, d)`` and int64 labels ``(N,)`` of all shards into memory; raises as ``batches``."""
    labels = torch.cat([shard.labels() for shard in shards])
    features = torch.empty(0, device="cpu")
    done = 0
    for shard in shards:
        for block, _ in shard.batches(CHUNK):
            if not done:  # no sooner: a header may claim any size
                dtype = reduce(torch.promote_types, (shard.dtype for shard in shards))
                with shard._reading():
                    features = torch.empty(len(labels), shard.dim, dtype=dtype, device="cpu")
            features[done : done + len(block)] = block
            done += len(block)
    return features, labels
