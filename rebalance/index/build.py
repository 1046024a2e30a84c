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
from typing import TypeVar

import pyarrow as pa
from tqdm import tqdm

from rebalance import files, images
from rebalance.index.cache import FACT_NAMES, STAMP_SCHEMA, Facts, FactsCache, stamp_of
from rebalance.index.readers import Entry, read_listing
from rebalance.index.table import SCHEMA, ImageIndex

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
    bar = tqdm(total=len(listing.entries), desc="index", unit="img", disable=not progress, leave=False)
    threads = ThreadPoolExecutor(max_workers=min(32, (os.cpu_count() or 1) + 2))
    with (
        threads as pool,
        bar,
        contextlib.closing(
            _in_order(pool, lambda entries: _facts_of(listing.root, entries, known), _chunks(listing.entries))
        ) as chunks,
    ):
        parts, first = [], 0
        for chunk in chunks:
            parts.append(_table(listing.entries[first : first + len(chunk)], chunk, first))
            first += len(chunk)
            bar.update(len(chunk))
    table = pa.concat_tables(parts) if parts else _table((), (), 0)
    known.remember(table)
    return ImageIndex(listing.root, listing.classes, table.select(SCHEMA.names).combine_chunks())


def _chunks(entries: Sequence[Entry]) -> Iterator[Sequence[Entry]]:
    for first in range(0, len(entries), _CHUNK):
        yield entries[first : first + _CHUNK]


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


def _table(entries: Sequence[Entry], facts: Sequence[Facts], first: int) -> pa.Table:
    """Return the rows of entries, those of `SCHEMA` and of `STAMP_SCHEMA`."""
    columns: dict[str, list[object]] = {
        "id": list(range(first, first + len(entries))),
        "path": [entry.path for entry in entries],
        "member": [entry.member for entry in entries],
        "offset": [entry.offset for entry in entries],
        "class": [entry.class_name for entry in entries],
        "sublabel": [entry.sublabel for entry in entries],
        "split": [entry.split for entry in entries],
    }
    for name in (*FACT_NAMES, *STAMP_SCHEMA.names):
        columns[name] = [getattr(fact, name) for fact in facts]
    return pa.table(columns, schema=pa.unify_schemas([SCHEMA, STAMP_SCHEMA]))


def _facts_of(root: Path, entries: Sequence[Entry], known: FactsCache) -> list[Facts]:
    return [known.find(entry, root) or _look(root, entry) for entry in entries]


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
