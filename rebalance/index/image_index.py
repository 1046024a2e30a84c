"""The index as a table: sorted, stable, one row an image."""

from __future__ import annotations

import hashlib
import itertools
import json
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, fields, replace
from functools import cached_property
from operator import attrgetter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from rebalance import imaging, storage
from rebalance.config import DataOptions
from rebalance.errors import DamagedError, InputError

SPLITS = ("train", "val", "test")

SCHEMA = pa.schema(
    [
        ("id", pa.int64()),
        ("path", pa.string()),
        ("member", pa.string()),
        ("offset", pa.int64()),
        ("class", pa.string()),
        ("sublabel", pa.string()),
        ("split", pa.string()),
        ("width", pa.int32()),
        ("height", pa.int32()),
        ("bytes", pa.int64()),
        ("hash", pa.string()),
        ("status", pa.string()),
        ("reason", pa.string()),
    ]
)
"""`path` is relative to the root; `member` and `offset` locate an image inside a tar file (offset -1: a plain file)."""

_WORDS = ("class", "sublabel", "split", "status", "reason")
"""Columns of few different values."""

_BLOCK = 1 << 13  # rows turned into objects at once: all of them would take several times the table


def table_of(kind: type, rows: Iterable[Any], schema: pa.Schema) -> pa.Table:
    """Return rows as a table, block by block as they come: as objects they take several times its memory.

    Args:
        kind: dataclass of the rows; its fields are the columns, in the order of the schema.
        rows: values of that class.
        schema: names and types of the columns.
    """
    values = map(attrgetter(*(field.name for field in fields(kind))), rows)
    blocks = [schema.empty_table()]
    while block := list(itertools.islice(values, _BLOCK)):
        blocks.append(pa.table(list(zip(*block, strict=True)), schema=schema))
    return pa.concat_tables(blocks)


@dataclass(frozen=True)
class ImageIndex:
    """All images of a data set.

    Attributes:
        root: folder that the paths are relative to.
        classes: class names in label order, classes without images included.
        table: rows of `SCHEMA`, sorted by path and member; `id` is the row number.
    """

    root: Path
    classes: tuple[str, ...]
    table: pa.Table

    def column(self, name: str) -> np.ndarray:
        """Return a column as a numpy array, one value a row."""
        if name not in self._columns:
            column = self.table.column(name)
            self._columns[name] = _words(column) if name in _WORDS else _array(column)
        return self._columns[name]

    @cached_property
    def _columns(self) -> dict[str, np.ndarray]:
        """Those asked for so far; all of them take several times the memory of the table."""
        return {}

    @cached_property
    def usable(self) -> np.ndarray:
        """(n,) bool: rows whose image can be used."""
        return self.column("status") == "ok"

    def rows(self, split: str, class_name: str) -> np.ndarray:
        """Return the ids of the usable images of a class in a split, (n,) int64, ascending."""
        return np.flatnonzero(self.usable & (self.column("split") == split) & (self.column("class") == class_name))

    def counts(self, split: str) -> dict[str, int]:
        """Return the number of usable images of every class in a split, in label order."""
        in_split = self.usable & (self.column("split") == split)
        class_counts = Counter(self.column("class")[in_split].tolist())
        return {name: class_counts[name] for name in self.classes}

    def n_copies(self) -> np.ndarray:
        """Return how many rows have the content of each row, (n,) int64; files that were never read count as one."""
        contents = self.table.column("hash").dictionary_encode().combine_chunks().indices.to_numpy()
        return np.bincount(contents)[contents]

    def label(self, class_name: str) -> int:
        """Return the label of a class: its position among the classes."""
        return self.classes.index(class_name)

    def name(self, image_id: int) -> str:
        """Return what a user would call an image: its path, and its member for an image inside a tar file."""
        path, member = self._value("path", image_id), self._value("member", image_id)
        return f"{path}/{member}" if member else path

    def _value(self, name: str, image_id: int) -> Any:
        """Return one value of a column that should not become an array for it."""
        return self.table.column(name)[int(image_id)].as_py()

    def read(self, image_id: int) -> bytes:
        """Return the bytes of an image's file.

        Raises:
            InputError: the file has gone or has changed since it was indexed.
        """
        path, offset = self.root / self._value("path", image_id), self._value("offset", image_id)
        size = self._value("bytes", image_id)
        try:
            data = storage.read_bytes(path, max(offset, 0), None if offset < 0 else size)
        except OSError as error:
            raise InputError(
                f"cannot read {path}: {error.strerror}", remedy="Restore the data set, or name where it is with `data`"
            ) from error
        if storage.sha256_bytes(data) != self._value("hash", image_id):
            raise InputError(f"{path} has changed since it was indexed", remedy="Restore the data set")
        return data

    def load(self, image_id: int) -> Image.Image:
        """Return an image decoded to mode "L" or "RGB" as a viewer would show it."""
        try:
            return imaging.decode(self.read(image_id))
        except imaging.BadImageError as error:
            raise InputError(f"{self.name(image_id)} has changed since it was indexed: {error}") from error

    def square(self, image_id: int, options: DataOptions) -> np.ndarray:
        """Return an image as the model's square, (size_px, size_px, channels) uint8."""
        return imaging.to_square(self.load(image_id), options.size_px, options.channels, options.square)

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 over what decides the data: names, classes, splits and content hashes, not where they lie."""
        digest = hashlib.sha256(json.dumps(self.classes).encode())
        what = self.table.select(("path", "member", "class", "sublabel", "split", "hash", "status"))
        for first in range(0, len(what), _BLOCK):  # arrays of text take many times the table
            columns = [_array(column).astype(str) for column in what.slice(first, _BLOCK).columns]
            for row in zip(*columns, strict=True):
                digest.update("\0".join(row).encode() + b"\n")
        return digest.hexdigest()

    def moved_to(self, data: Path) -> ImageIndex:
        """Return the index of the same files where the data set (a folder, manifest or shard) is now."""
        return replace(self, root=(data.parent if storage.is_file(data) else data).absolute())

    def save(self, path: Path) -> None:
        """Write the index as Parquet, atomically."""
        metadata = {"root": str(self.root), "classes": json.dumps(self.classes)}
        with storage.replacing(path) as temporary:
            pq.write_table(self.table.replace_schema_metadata(metadata), temporary)

    @classmethod
    def read_from(cls, path: Path) -> ImageIndex:
        """Read an index that `save` wrote.

        Raises:
            DamagedError: missing or damaged.
        """
        try:
            with storage.opened(path) as file:
                table = pq.read_table(file)
            metadata = table.schema.metadata or {}
            classes = tuple(json.loads(metadata[b"classes"]))
            return cls(Path(metadata[b"root"].decode()), classes, table.replace_schema_metadata(None))
        except (OSError, KeyError, ValueError, pa.ArrowException) as error:
            raise DamagedError(f"{path} is missing or damaged: {error}") from error


def _array(column: pa.ChunkedArray) -> np.ndarray:
    return column.to_numpy(zero_copy_only=False)


def _words(column: pa.ChunkedArray) -> np.ndarray:
    """Return a column as an array in which equal values are one object."""
    encoded = column.dictionary_encode().combine_chunks()
    return encoded.dictionary.to_numpy(zero_copy_only=False)[encoded.indices.to_numpy()]
