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

from rebalance import files, images
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

_BLOCK = 1 << 13


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
        chosen = self.usable & (self.column("split") == split) & (self.column("class") == class_name)
        return np.flatnonzero(chosen)

    def counts(self, split: str) -> dict[str, int]:
        """Return the number of usable images of every class in a split, in label order."""
        chosen = self.usable & (self.column("split") == split)
        found = Counter(self.column("class")[chosen].tolist())
        return {name: found[name] for name in self.classes}

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
            with open(path, "rb") as file:
                file.seek(max(offset, 0))
                data = file.read() if offset < 0 else file.read(size)
        except OSError as error:
            raise InputError(
                f"cannot read {path}: {error.strerror}", remedy="Restore the data set, or name where it is with --data"
            ) from error
        if files.sha256_bytes(data) != self._value("hash", image_id):
            raise InputError(f"{path} has changed since it was indexed", remedy="Restore the data set")
        return data

    def load(self, image_id: int) -> Image.Image:
        """Return an image decoded to mode "L" or "RGB" as a viewer would show it."""
        try:
            return images.decode(self.read(image_id))
        except images.BadImageError as error:
            raise InputError(f"{self.name(image_id)} has changed since it was indexed: {error}") from error

    def square(self, image_id: int, options: DataOptions) -> np.ndarray:
        """Return an image as the model's square, (size_px, size_px, channels) uint8."""
        return images.to_square(self.load(image_id), options.size_px, options.channels, options.square)

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
        return replace(self, root=(data.parent if data.is_file() else data).absolute())

    def save(self, path: Path) -> None:
        """Write the index as Parquet, atomically."""
        metadata = {"root": str(self.root), "classes": json.dumps(self.classes)}
        with files.atomic_path(path) as temporary:
            pq.write_table(self.table.replace_schema_metadata(metadata), temporary)

    @classmethod
    def read_from(cls, path: Path) -> ImageIndex:
        """Read an index that `save` wrote.

        Raises:
            DamagedError: missing or damaged.
        """
        try:
            table = pq.read_table(path)
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


def carve_validation(index: ImageIndex, fraction: float, seed: int, *, part: int = 0, least: int = 0) -> ImageIndex:
    """Move a seeded, stratified share of train to a new val split; a no-op where a val split exists.

    A class keeps at least one image in train. An image whose exact copy is also in train is never carved, so the new
    split does not leak.

    Args:
        index: the index.
        fraction: share of each class's train images, rounded down.
        seed: seed of the choice.
        part: which share: part k is the k-th after another in one order, round and round.
        least: images of each class at least, where two times as many are left in train.
    """
    split = index.column("split").copy()
    if fraction == 0 or (split == "val").any():
        return index
    train, n_copies = index.usable & (split == "train"), index.n_copies()
    for label, class_name in enumerate(index.classes):
        rows = np.flatnonzero(train & (index.column("class") == class_name))
        n_val = max(int(len(rows) * fraction), least if len(rows) >= 3 * least else 0)
        n_val = max(min(n_val, len(rows) - 1), 0)
        eligible = rows[n_copies[rows] == 1]
        order = np.random.default_rng((seed, label)).permutation(len(eligible))
        chosen = np.arange(part * n_val, part * n_val + min(n_val, len(order)))
        split[eligible[order.take(chosen, mode="wrap")]] = "val"
    position = index.table.schema.get_field_index("split")
    return replace(index, table=index.table.set_column(position, "split", pa.array(split.astype(str))))
