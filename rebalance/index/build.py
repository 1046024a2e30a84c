"""From entries to rows: every image is opened once, in parallel, and decoded fully."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pyarrow as pa
from tqdm import tqdm

from rebalance import files, images
from rebalance.index.readers import Entry, Listing, read_listing
from rebalance.index.table import SCHEMA, ImageIndex


def build_index(data: Path, sublabel_column: str = "", progress: bool = False) -> ImageIndex:
    """Index a data set: an image folder, a manifest, or WebDataset shards.

    Args:
        data: path of the data set.
        sublabel_column: manifest column of sub-labels, if any.
        progress: show a progress bar on stderr.

    Raises:
        InputError: the path has none of the forms. A bad image is a row with its reason, never an error.
    """
    listing = read_listing(Path(data), sublabel_column)
    with ThreadPoolExecutor(max_workers=min(32, (os.cpu_count() or 1) + 2)) as pool:
        facts = pool.map(lambda entry: _row(listing, entry), listing.entries)
        bar = tqdm(facts, total=len(listing.entries), desc="index", unit="img", disable=not progress, leave=False)
        table = _table(bar)
    return ImageIndex(listing.root, listing.classes, table)


def _table(rows: Iterable[dict[str, object]]) -> pa.Table:
    columns: dict[str, list[object]] = {name: [] for name in SCHEMA.names}
    for number, row in enumerate(rows):
        columns["id"].append(number)
        for name in SCHEMA.names[1:]:
            columns[name].append(row[name])
    return pa.table(columns, schema=SCHEMA)


def _row(listing: Listing, entry: Entry) -> dict[str, object]:
    row: dict[str, object] = {
        "path": entry.path,
        "member": entry.member,
        "offset": entry.offset,
        "class": entry.class_name,
        "sublabel": entry.sublabel,
        "split": entry.split,
        "width": 0,
        "height": 0,
        "bytes": max(entry.size, 0),
        "hash": "",
        "status": "bad",
        "reason": entry.reason,
    }
    if entry.reason:
        return row
    try:
        data = _read(listing.root / entry.path, entry)
        row["bytes"] = len(data)
        row["hash"] = files.sha256_bytes(data)
        size = images.probe(data)
        row.update(width=size.width, height=size.height, status="ok")
    except images.BadImageError as error:
        row["reason"] = str(error)
    except OSError as error:
        row["reason"] = f"cannot be read: {error.strerror}"
    except ValueError as error:  # a NUL in a manifest's path
        row["reason"] = f"cannot be read: {error}"
    return row


def _read(path: Path, entry: Entry) -> bytes:
    status = path.stat()
    if not stat.S_ISREG(status.st_mode):  # a pipe or a device could be waited for, or read, for ever
        raise images.BadImageError("not a file")
    size = status.st_size if entry.offset < 0 else entry.size
    if size > images.MAX_BYTES:
        raise images.BadImageError(f"too large: {size} bytes")
    with open(path, "rb") as file:
        file.seek(max(entry.offset, 0))
        data = file.read(size)
    if len(data) != size and entry.offset >= 0:
        raise images.BadImageError("truncated: the shard ends inside the image")
    return data
