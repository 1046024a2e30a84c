"""From entries to rows: every image is opened once, in parallel, and decoded fully, unless it is known already."""

from __future__ import annotations

import contextlib
import os
import stat
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa
from tqdm import tqdm

from rebalance import files, images
from rebalance.index.cache import FACTS_SCHEMA, STAMP_SCHEMA, Facts, FactsCache, stamp_of
from rebalance.index.readers import Entry, Listing, read_listing
from rebalance.index.table import SCHEMA, ImageIndex, table_of

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")

_CHUNK = 256
_AHEAD = 64


def build_index(data: Path, sublabel_column: str = "", progress: bool = False) -> ImageIndex:
    """Index a data set: an image folder, a manifest, or WebDataset shards.

    What was found in files whose size, times and inode are as they were the last time is taken from the cache.

    Args:
        data: path of the data set.
        sublabel_column: manifest column of sub-labels, if any.
        progress: show a progress bar on stderr.

    Raises:
        InputError: the path has none of the forms. A bad image is a row with its reason, never an error.
    """
    listing = read_listing(Path(data), sublabel_column)
    known = FactsCache.of(listing.root)
    bar = tqdm(total=listing.table.num_rows, desc="index", unit="img", disable=not progress, leave=False)
    threads = ThreadPoolExecutor(max_workers=min(32, (os.cpu_count() or 1) + 2))
    with (
        threads as pool,
        bar,
        contextlib.closing(
            _in_order(pool, lambda entries: _facts_of(listing.root, entries, known), _chunks(listing))
        ) as chunks,
    ):
        facts = table_of(Facts, _shown(chunks, bar), FACTS_SCHEMA)
    table = _beside(listing.table, facts)
    known.remember(table)
    return ImageIndex(listing.root, listing.classes, table.select(SCHEMA.names))


def _shown(chunks: Iterable[list[Facts]], bar: tqdm) -> Iterator[Facts]:
    for chunk in chunks:
        yield from chunk
        bar.update(len(chunk))


def _chunks(listing: Listing) -> Iterator[Sequence[Entry]]:
    for first in range(0, listing.table.num_rows, _CHUNK):
        yield listing.entries(first, _CHUNK)


def _in_order(
    pool: ThreadPoolExecutor, work: Callable[[_Item], _Result], items: Iterable[_Item]
) -> Generator[_Result, None, None]:
    """Map in parallel with few items on their way, because a future for each of a million takes gigabytes."""
    waiting: deque[Future[_Result]] = deque()
    try:
        for item in items:
            waiting.append(pool.submit(work, item))
            if len(waiting) > _AHEAD:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        for future in waiting:
            future.cancel()


def _beside(entries: pa.Table, facts: pa.Table) -> pa.Table:
    """Return the rows of `SCHEMA` and of `STAMP_SCHEMA`; the reason is that of the facts."""
    columns: dict[str, Any] = {"id": np.arange(len(entries))}
    for table in (entries, facts):
        columns.update(zip(table.column_names, table.columns, strict=True))
    schema = pa.unify_schemas([SCHEMA, STAMP_SCHEMA])
    return pa.table([columns[name] for name in schema.names], schema=schema)


def _facts_of(root: Path, entries: Sequence[Entry], known: FactsCache) -> list[Facts]:
    return [found or _look(root, entry) for entry, found in zip(entries, known.find(entries, root), strict=True)]


def _look(root: Path, entry: Entry) -> Facts:
    """Read and decode one image."""
    found = Facts(bytes=max(entry.size, 0), reason=entry.reason)
    if entry.reason:
        return found
    try:
        status = os.stat(root / entry.path)
        data = _read(root / entry.path, entry, status)
        found = replace(found, bytes=len(data), hash=files.sha256_bytes(data), **stamp_of(status))
        size = images.probe(data)
        return replace(found, width=size.width, height=size.height, status="ok")
    except images.BadImageError as error:
        return replace(found, reason=str(error))
    except OSError as error:
        return replace(found, reason=f"cannot be read: {error.strerror}")
    except ValueError as error:  # a NUL in a manifest's path
        return replace(found, reason=f"cannot be read: {error}")


def _read(path: Path, entry: Entry, status: os.stat_result) -> bytes:
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
