"""From entries to rows: every image is opened once, in parallel, and decoded fully, unless the cache has it."""

from __future__ import annotations

import contextlib
import os
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa
from tqdm import tqdm

from rebalance import imaging, storage
from rebalance.index.cache import FACTS_SCHEMA, STAMP_SCHEMA, Facts, FactsCache, stamped
from rebalance.index.image_index import SCHEMA, ImageIndex, table_of
from rebalance.index.readers.detection import read_listing
from rebalance.index.readers.listing import Entry, Listing

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")

_CHUNK = 256  # images a task, so that futures cost little beside decoding
_AHEAD = 64  # tasks on their way: enough for 32 threads


def build_index(data: Path, sublabel_column: str = "", progress: bool = False, parameter: str = "data") -> ImageIndex:
    """Index a data set: an image folder, a manifest, or WebDataset shards.

    Facts about files whose size, times and inode are as they were the last time come from the cache.

    Args:
        data: path of the data set.
        sublabel_column: manifest column of sub-labels, if any.
        progress: show a progress bar on stderr.
        parameter: what the caller's user calls the path, for errors.

    Raises:
        InputError: the path has none of the forms. A bad image is a row with its reason, never an error.
    """
    listing = read_listing(Path(data), sublabel_column, parameter)
    cache = FactsCache.of(listing.root)
    bar = tqdm(total=listing.table.num_rows, desc="index", unit="img", disable=not progress, leave=False)
    threads = ThreadPoolExecutor(max_workers=min(32, (os.cpu_count() or 1) + 2))
    with (
        threads as pool,
        bar,
        contextlib.closing(
            _in_order(pool, lambda entries: _facts_of(listing.root, entries, cache), _chunks(listing))
        ) as chunks,
    ):
        facts = table_of(Facts, _shown(chunks, bar), FACTS_SCHEMA)
    table = _beside(listing.table, facts)
    cache.remember(table)
    return ImageIndex(listing.root, listing.classes, table.select(SCHEMA.names))


def _shown(chunks: Iterable[list[Facts]], bar: tqdm[Any]) -> Iterator[Facts]:
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


def _facts_of(root: Path, entries: Sequence[Entry], cache: FactsCache) -> list[Facts]:
    return [
        remembered or _examined(root, entry)
        for entry, remembered in zip(entries, cache.find(entries, root), strict=True)
    ]


def _examined(root: Path, entry: Entry) -> Facts:
    """Read and decode one image."""
    facts = Facts(bytes=max(entry.size, 0), reason=entry.reason)
    if entry.reason:
        return facts
    try:
        status = storage.status(root / entry.path)
        data = _read(root / entry.path, entry, status)
        facts = replace(facts, bytes=len(data), hash=storage.sha256_bytes(data))
        facts = stamped(facts, status)
        size = imaging.probe(data)
        return replace(facts, width=size.width, height=size.height, status="ok")
    except imaging.BadImageError as error:
        return replace(facts, reason=str(error))
    except OSError as error:
        return replace(facts, reason=f"cannot be read: {error.strerror}")
    except ValueError as error:  # a NUL in a manifest's path
        return replace(facts, reason=f"cannot be read: {error}")


def _read(path: Path, entry: Entry, status: storage.FileStatus) -> bytes:
    if not status.regular:  # a pipe or a device could be waited for, or read, for ever
        raise imaging.BadImageError("not a file")
    size = status.size if entry.offset < 0 else entry.size
    if size > imaging.MAX_BYTES:
        raise imaging.BadImageError(f"too large: {size} bytes")
    data = storage.read_bytes(path, max(entry.offset, 0), size)
    if len(data) != size and entry.offset >= 0:
        raise imaging.BadImageError("truncated: the shard ends inside the image")
    return data
