"""The result of every reader: a listing of entries."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass, replace
from operator import attrgetter
from pathlib import Path

import pyarrow as pa

from rebalance import storage
from rebalance.errors import InputError
from rebalance.index.image_index import table_of

SPLIT_NAMES = {"train": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}
"""Folder and manifest names of splits, and what they mean."""

_IGNORED = frozenset(("thumbs.db", "desktop.ini", "__macosx"))
"""Files and folders that operating systems leave in a folder of images."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One file of the data set, not yet opened.

    Attributes:
        path: relative to the data set's root, with forward slashes.
        class_name: its class; "" when it has none.
        split: "train", "val" or "test".
        member: name inside a tar file; "" for a plain file.
        offset: where its bytes begin inside the tar file; -1 for a plain file.
        size: bytes inside the tar file; -1: the whole file.
        sublabel: sub-label of a manifest; "" when it has none.
        reason: why it cannot be used; "" when it may be.
    """

    path: str
    class_name: str
    split: str
    member: str = ""
    offset: int = -1
    size: int = -1
    sublabel: str = ""
    reason: str = ""


_ENTRY_SCHEMA = pa.schema(
    [  # the fields of `Entry`, in their order
        ("path", pa.string()),
        ("class", pa.string()),
        ("split", pa.string()),
        ("member", pa.string()),
        ("offset", pa.int64()),
        ("size", pa.int64()),
        ("sublabel", pa.string()),
        ("reason", pa.string()),
    ]
)


@dataclass(frozen=True)
class Listing:
    """The files of a data set, as a reader lists them.

    Attributes:
        root: folder that the paths are relative to.
        classes: class names in label order.
        table: the entries, one a row, by path and member.
    """

    root: Path
    classes: tuple[str, ...]
    table: pa.Table

    def entries(self, first: int, number: int) -> list[Entry]:
        """Return this number of entries from the first on, fewer at the end."""
        return list(map(Entry, *(column.to_pylist() for column in self.table.slice(first, number).columns)))


def _hidden(name: str) -> bool:
    return name.startswith(".") or name.lower() in _IGNORED


def _subfolders(folder: Path) -> list[Path]:
    try:
        return [path for path in storage.list_folders(folder) if not _hidden(path.name)]
    except OSError as error:
        raise InputError(f"cannot read the folder {folder}: {error.strerror}") from error


def _readable(name: str) -> str:
    """Return a file's name with bytes that are not UTF-8 written out."""
    if name.isascii():
        return name
    return os.fsencode(name).decode("utf-8", "backslashreplace")


def _listing(root: Path, classes: Iterable[str], entries: Iterable[Entry], numeric: bool = False) -> Listing:
    rows = [_without_nul(entry) for entry in entries]
    for name in ("member", "path"):  # one stable sort after the other: a key of both would be a tuple for each entry
        rows.sort(key=attrgetter(name))
    names = {_readable(name) for name in classes if name and "\0" not in name}
    if numeric and all(name.isascii() and name.isdigit() for name in names):
        ordered = sorted(names, key=int)
    else:
        ordered = sorted(names)
    return Listing(Path(root).absolute(), tuple(ordered), table_of(Entry, rows, _ENTRY_SCHEMA))


def _without_nul(entry: Entry) -> Entry:
    """Return an entry without labels that hold a NUL, because arrays of text end at it."""
    if "\0" not in entry.class_name + entry.sublabel:
        return entry
    return replace(entry, class_name="", sublabel="", reason="its label holds a NUL character")
