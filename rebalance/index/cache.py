"""Facts about files from the last call, so that a data set which has not changed is not decoded again."""

from __future__ import annotations

import logging
import os
from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path

import PIL
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from rebalance import storage
from rebalance.errors import RebalanceError
from rebalance.index.image_index import SCHEMA
from rebalance.index.readers.listing import Entry
from rebalance.version import __version__

logger = logging.getLogger(__name__)

STAMP_SCHEMA = pa.schema(
    [("file_bytes", pa.int64()), ("modified_ns", pa.int64()), ("changed_ns", pa.int64()), ("inode", pa.uint64())]
)
"""Columns that tell an unchanged file from a changed one."""

_SETTLED_NS = 2_000_000_000
"""A file that was changed this shortly before the cache was written may change again without another time."""


@dataclass(frozen=True, slots=True)
class Facts:
    """Facts about one image.

    Attributes:
        width: as shown, in pixels.
        height: as shown, in pixels.
        bytes: size of the image's file.
        hash: SHA-256 of its bytes, "" where it could not be read.
        status: "ok" or "bad".
        reason: why it is bad.
        file_bytes: size of the file that holds it, which is the tar file's for a member.
        modified_ns: time of that file's last change, -1 where it was not looked at.
        changed_ns: time of the last change of its inode, which no program can set back.
        inode: number of that file.
    """

    width: int = 0
    height: int = 0
    bytes: int = 0
    hash: str = ""
    status: str = "bad"
    reason: str = ""
    file_bytes: int = -1
    modified_ns: int = -1
    changed_ns: int = -1
    inode: int = 0


FACTS_SCHEMA = pa.schema([pa.unify_schemas([SCHEMA, STAMP_SCHEMA]).field(field.name) for field in fields(Facts)])
"""The fields of `Facts`, in their order."""

_KEY = ("path", "member", "offset")
_SCHEMA = pa.schema([*(SCHEMA.field(name) for name in _KEY), *FACTS_SCHEMA])
_PART = 1 << 14  # rows filtered at once: a second table of all would double the memory


def stamped(facts: Facts, status: storage.FileStatus) -> Facts:
    """Return facts with the fields that tell their file from a changed one."""
    return replace(
        facts,
        file_bytes=status.size,
        modified_ns=status.modified_ns,
        changed_ns=status.changed_ns,
        inode=status.inode,
    )


class FactsCache:
    """The facts of one data set by path and member; reading from several threads is safe."""

    def __init__(self, path: Path | None, table: pa.Table, written_ns: int) -> None:
        self._path, self._table, self._newest_ns = path, table.select(_SCHEMA.names), written_ns - _SETTLED_NS

    @classmethod
    def of(cls, root: Path) -> FactsCache:
        """Open the cache of a data set, empty when there is none or when it cannot be read."""
        folder = storage.cache_folder()
        if folder is None:
            return cls(None, _SCHEMA.empty_table(), 0)
        # What counts as an image may change with these versions.
        key = os.fsencode(root) + f"\0{__version__}\0{PIL.__version__}".encode()
        path = folder / f"index-{storage.sha256_bytes(key)[:24]}.parquet"
        try:
            return cls(path, _read_table(path), storage.status(path).modified_ns)
        except (OSError, KeyError, pa.ArrowException):
            return cls(path, _SCHEMA.empty_table(), 0)

    def find(self, entries: Sequence[Entry], root: Path) -> list[Facts | None]:
        """Return the facts of neighbouring entries, None for one that is new or whose file may have changed."""
        rows = self._rows(entries[0], entries[-1])
        columns = {name: rows.column(name).to_pylist() for name in _SCHEMA.names}
        keys = zip(*(columns[name] for name in _KEY), strict=True)
        facts = dict(zip(keys, map(Facts, *(columns[name] for name in FACTS_SCHEMA.names)), strict=True))
        remembered = [facts.get((entry.path, entry.member, entry.offset)) for entry in entries]
        return [
            past if past and not entry.reason and self._is_unchanged(past, root / entry.path) else None
            for entry, past in zip(entries, remembered, strict=True)
        ]

    def _rows(self, first: Entry, last: Entry) -> pa.Table:
        """Return the rows from an entry to a later one; they are in the order of entries, so bisection finds them."""
        paths, members, every = self._table.column("path"), self._table.column("member"), range(self._table.num_rows)

        def name(row: int) -> tuple[str, str]:
            return paths[row].as_py(), members[row].as_py()

        start = bisect_left(every, (first.path, first.member), key=name)
        return self._table.slice(start, bisect_right(every, (last.path, last.member), key=name) - start)

    def _is_unchanged(self, past: Facts, path: Path) -> bool:
        if past.changed_ns >= self._newest_ns:
            return False
        try:
            return stamped(past, storage.status(path)) == past
        except (OSError, ValueError):
            return False

    def remember(self, table: pa.Table) -> None:
        """Write the rows of usable images; a place that cannot be written costs time only.

        Bad ones are looked at each time, because what was wrong may have been the moment: memory, a network disk.
        """
        if self._path is None or self._holds(table):
            return
        try:
            with storage.replacing(self._path) as temporary, pq.ParquetWriter(temporary, _SCHEMA) as writer:
                for rows in _usable(table):
                    writer.write_table(rows)
        except RebalanceError as error:
            logger.info("facts about the data set are not remembered: %s", error)

    def _holds(self, table: pa.Table) -> bool:
        """Return whether the usable rows of a table are those that were read, and settled when they were written."""
        if (pc.max(self._table.column("changed_ns")).as_py() or 0) >= self._newest_ns:
            return False
        n_same = 0
        for rows in _usable(table):
            if not rows.equals(self._table.slice(n_same, len(rows))):
                return False
            n_same += len(rows)
        return n_same == len(self._table)


def _read_table(path: Path) -> pa.Table:
    with storage.opened(path) as file:
        return pq.read_table(file)


def _usable(table: pa.Table) -> Iterator[pa.Table]:
    """Yield the rows of usable images part by part, because all at once would be a second table."""
    for first in range(0, len(table), _PART):
        rows = table.select(_SCHEMA.names).slice(first, _PART)
        yield rows.filter(pc.equal(rows.column("status"), "ok"))
