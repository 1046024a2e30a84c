"""What was found in files the last time, so that a data set which has not changed is not decoded again."""

from __future__ import annotations

import logging
import os
from dataclasses import dataclass, fields
from pathlib import Path

import PIL
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from rebalance import files
from rebalance.errors import RebalanceError
from rebalance.index.readers import Entry
from rebalance.index.table import SCHEMA
from rebalance.version import __version__

logger = logging.getLogger(__name__)

STAMP_SCHEMA = pa.schema(
    [("file_bytes", pa.int64()), ("modified_ns", pa.int64()), ("changed_ns", pa.int64()), ("inode", pa.uint64())]
)
"""What tells that a file is the one of the last time."""

_SETTLED_NS = 2_000_000_000
"""A file that was changed this shortly before the cache was written may change again without another time."""


@dataclass(frozen=True, slots=True)
class Facts:
    """What looking at one image gave.

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


def stamp_of(status: os.stat_result) -> dict[str, int]:
    """Return the fields of `Facts` that tell a file from a changed one."""
    return {
        "file_bytes": status.st_size,
        "modified_ns": status.st_mtime_ns,
        "changed_ns": status.st_ctime_ns,
        "inode": status.st_ino,
    }


class FactsCache:
    """The facts of one data set by path and member; reading from several threads is safe."""

    def __init__(self, path: Path | None, table: pa.Table | None, written_ns: int) -> None:
        self._path, self._table, self._newest_ns = path, table, written_ns - _SETTLED_NS
        names = (*_KEY, *FACTS_SCHEMA.names)
        self._columns = {name: table.column(name).to_pylist() if table else [] for name in names}
        keys = zip(*(self._columns[name] for name in _KEY), strict=True)
        self._rows = {key: row for row, key in enumerate(keys)}

    @classmethod
    def of(cls, root: Path) -> FactsCache:
        """Open the cache of a data set, empty when there is none or when it cannot be read."""
        folder = files.cache_folder()
        if folder is None:
            return cls(None, None, 0)
        # What counts as an image may change with these versions.
        key = os.fsencode(root) + f"\0{__version__}\0{PIL.__version__}".encode()
        path = folder / f"index-{files.sha256_bytes(key)[:24]}.parquet"
        try:
            return cls(path, pq.read_table(path), path.stat().st_mtime_ns)
        except (OSError, KeyError, pa.ArrowException):
            return cls(path, None, 0)

    def find(self, entry: Entry, root: Path) -> Facts | None:
        """Return what is known of an entry, None when it is new or its file may have changed."""
        if entry.reason:
            return None
        row = self._rows.get((entry.path, entry.member, entry.offset))
        if row is None or not self._is_as_it_was(row, os.path.join(root, entry.path)):
            return None
        return Facts(**{field.name: self._columns[field.name][row] for field in fields(Facts)})

    def _is_as_it_was(self, row: int, path: str) -> bool:
        if self._columns["changed_ns"][row] >= self._newest_ns:
            return False
        try:
            stamp = stamp_of(os.stat(path))
        except (OSError, ValueError):
            return False
        return all(self._columns[name][row] == value for name, value in stamp.items())

    def remember(self, table: pa.Table) -> None:
        """Write the rows of usable images; a place that cannot be written costs time only.

        Bad ones are looked at each time, because what was wrong may have been the moment: memory, a network disk.
        """
        if self._path is None:
            return
        known = table.filter(pc.equal(table.column("status"), "ok"))
        rows = known.select(list(self._columns))
        newest = pc.max(rows.column("changed_ns")).as_py() if rows.num_rows else 0
        if self._table is not None and rows.equals(self._table) and newest < self._newest_ns:
            return
        try:
            with files.atomic_path(self._path) as temporary:
                pq.write_table(rows, temporary)
        except RebalanceError as error:
            logger.info("what was found in the data set is not remembered: %s", error)
