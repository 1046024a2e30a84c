"""The index as a table: sorted, stable, one row an image."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

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
        return self._columns[name]

    @cached_property
    def _columns(self) -> dict[str, np.ndarray]:
        return {name: self.table.column(name).to_numpy(zero_copy_only=False) for name in self.table.column_names}

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
        names, numbers = np.unique(self.column("class")[chosen].astype(str), return_counts=True)
        found = dict(zip(names.tolist(), numbers.tolist(), strict=True))
        return {name: found.get(name, 0) for name in self.classes}

    def label(self, class_name: str) -> int:
        """Return the label of a class: its position among the classes."""
        return self.classes.index(class_name)

    def name(self, image_id: int) -> str:
        """Return what a user would call an image: its path, and its member for an image inside a tar file."""
        path, member = self.column("path")[image_id], self.column("member")[image_id]
        return f"{path}/{member}" if member else path

    def read(self, image_id: int) -> bytes:
        """Return the bytes of an image's file.

        Raises:
            InputError: the file has gone or has changed since it was indexed.
        """
        path, offset = self.root / self.column("path")[image_id], int(self.column("offset")[image_id])
        size = int(self.column("bytes")[image_id])
        try:
            with open(path, "rb") as file:
                file.seek(max(offset, 0))
                data = file.read() if offset < 0 else file.read(size)
        except OSError as error:
            raise InputError(
                f"cannot read {path}: {error.strerror}", remedy="Restore the data set, or name where it is with --data"
            ) from error
        if files.sha256_bytes(data) != self.column("hash")[image_id]:
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
        columns = [
            self.column(name).astype(str) for name in ("path", "member", "class", "sublabel", "split", "hash", "status")
        ]
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
    hashes = index.column("hash").astype(str)
    train = index.usable & (split == "train")
    _, inverse, copies = np.unique(hashes, return_inverse=True, return_counts=True)
    for label, class_name in enumerate(index.classes):
        rows = np.flatnonzero(train & (index.column("class") == class_name))
        n_val = max(int(len(rows) * fraction), least if len(rows) >= 3 * least else 0)
        n_val = max(min(n_val, len(rows) - 1), 0)
        eligible = rows[copies[inverse[rows]] == 1]
        order = np.random.default_rng((seed, label)).permutation(len(eligible))
        chosen = np.arange(part * n_val, part * n_val + min(n_val, len(order)))
        split[eligible[order.take(chosen, mode="wrap")]] = "val"
    position = index.table.schema.get_field_index("split")
    return replace(index, table=index.table.set_column(position, "split", pa.array(split.astype(str))))
