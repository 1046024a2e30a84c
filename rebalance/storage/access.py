"""Functions that stations call: each path goes to the storage that it belongs to, where tests inject faults."""

from __future__ import annotations

import fnmatch
import os
import re
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import IO

from rebalance.errors import InputError
from rebalance.storage.base import FileStatus, Storage
from rebalance.storage.local import LocalStorage

LOCAL: Storage = LocalStorage()

_URL = re.compile(r"[a-z][a-z0-9+.-]+:/", re.IGNORECASE)  # pathlib shortens "s3://bucket" to "s3:/bucket"


def storage_of(path: str | Path) -> Storage:
    """Return the storage of a path.

    Raises:
        InputError: a URL; only local paths are supported.
    """
    if _URL.match(str(path)):
        raise InputError("a URL is no path here", value=str(path), allowed="a path of this machine")
    return LOCAL


def read_bytes(path: Path, offset: int = 0, size: int | None = None) -> bytes:
    """Return the bytes of a file, or `size` of them from `offset` on, fewer at its end."""
    return storage_of(path).read(path, offset, size)


def opened(path: Path) -> AbstractContextManager[IO[bytes]]:
    """Yield a file, open for reading."""
    return storage_of(path).opened(path)


def appending(path: Path) -> AbstractContextManager[IO[bytes]]:
    """Yield a file, open for appending; its folder is made if it does not exist."""
    return storage_of(path).appending(path)


def truncate(path: Path, size: int) -> None:
    """Cut a file to its first `size` bytes."""
    storage_of(path).truncate(path, size)


def replacing(path: Path) -> AbstractContextManager[Path]:
    """Yield a temporary local path; on success its contents become those of `path`, durably and in one step.

    Raises:
        RebalanceError: the place is full or cannot be written; `path` is then as it was.
    """
    return storage_of(path).replacing(Path(path))


def replacing_folder(path: Path) -> AbstractContextManager[Path]:
    """Yield a temporary local folder; on success it becomes `path`, durably and in one step."""
    return storage_of(path).replacing_folder(Path(path))


def write_bytes(path: Path, data: bytes) -> None:
    """Write `data` to `path` in one step."""
    with replacing(path) as temporary, open(temporary, "wb") as file:
        file.write(data)


def write_text(path: Path, text: str) -> None:
    """Write `text` to `path` as UTF-8 in one step."""
    write_bytes(path, text.encode("utf-8"))


def status(path: Path) -> FileStatus:
    """Return the facts about a file, of the one that a link names."""
    return storage_of(path).status(path)


def size(path: Path) -> int:
    """Return the size of a file in bytes."""
    return status(path).size


def is_file(path: Path) -> bool:
    """Return whether a path is a file."""
    return storage_of(path).is_file(path)


def is_folder(path: Path) -> bool:
    """Return whether a path is a folder."""
    return storage_of(path).is_folder(path)


def exists(path: Path) -> bool:
    """Return whether there is a file or folder."""
    return is_file(path) or is_folder(path)


def list_names(folder: Path) -> list[str]:
    """Return the names in a folder, sorted; none where there is no such folder."""
    return storage_of(folder).names(folder) if is_folder(folder) else []


def list_files(folder: Path, pattern: str = "*") -> list[Path]:
    """Return the files in a folder whose names match a pattern, sorted; none where there is no such folder."""
    names = fnmatch.filter(list_names(folder), pattern)
    return [folder / name for name in names if is_file(folder / name)]


def list_folders(folder: Path, pattern: str = "*") -> list[Path]:
    """Return the folders in a folder whose names match a pattern, sorted; none where there is no such folder."""
    names = fnmatch.filter(list_names(folder), pattern)
    return [folder / name for name in names if is_folder(folder / name)]


def find_files(folder: Path, pattern: str) -> list[Path]:
    """Return the files anywhere below a folder whose names match a pattern, sorted."""
    return storage_of(folder).find(folder, pattern)


def walk(
    folder: Path, follow_links: bool = False, on_error: Callable[[OSError], object] | None = None
) -> Iterator[tuple[str, list[str], list[str]]]:
    """Yield each folder below a folder with the names of its folders and files, see `Storage.walk`."""
    return storage_of(folder).walk(folder, follow_links, on_error)


def real_path(path: str | Path) -> str:
    """Return the absolute path of a file or folder, links followed; equal for two names of one folder."""
    return storage_of(path).real_path(path)


def reserve(path: Path) -> None:
    """Have the disk keep room for all bytes of a sparse file, so that a full one is noticed at once."""
    storage_of(path).reserve(path)


def linked(path: Path, name: str) -> AbstractContextManager[Path]:
    """Yield a temporary local folder in which a file has another name."""
    return storage_of(path).linked(path, name)


def touch(path: Path) -> None:
    """Set the time of a file's last change to now."""
    storage_of(path).touch(path)


def remove_file(path: Path) -> None:
    """Remove a file if it is there."""
    storage_of(path).remove_file(path)


def remove_folder(path: Path) -> None:
    """Remove a folder with everything below it, as far as it is there."""
    storage_of(path).remove_folder(path)


def move(path: Path, target: Path) -> None:
    """Give a file another name in the same storage, replacing what has that name."""
    storage_of(path).move(path, target)


def sync(path: Path) -> None:
    """Force a file or folder to the disk."""
    storage_of(path).sync(path)


def locked(folder: Path, *, shared: bool = False, wait: bool = False) -> AbstractContextManager[None]:
    """Hold a folder for this process alone, see `Storage.locked`."""
    return storage_of(folder).locked(Path(folder), shared=shared, wait=wait)


def remove_partials(folder: Path) -> None:
    """Remove what killed processes left half-written anywhere below a folder."""
    storage_of(folder).remove_partials(folder)


def is_inside(path: str | Path, folder: str | Path) -> bool:
    """Return whether a path lies in a folder, or is it, links followed."""
    return Path(real_path(path)).is_relative_to(real_path(folder))


def existing_folder(path: str | Path, parameter: str) -> Path:
    """Return `path` if it is a folder.

    Raises:
        InputError: it is missing or something else; the message names the parameter.
    """
    path = Path(path)
    if not is_folder(path):
        kind = "is a file" if exists(path) else "does not exist"
        raise InputError(f"`{parameter}` {kind}", value=str(path), allowed="an existing folder")
    return path


def cache_folder() -> Path | None:
    """Return where this user's caches lie: $REBALANCE_CACHE, else `rebalance` in the desktop's cache folder.

    None when $REBALANCE_CACHE is empty or there is no home: then nothing is cached.
    """
    configured = os.environ.get("REBALANCE_CACHE")
    if configured is not None:
        return Path(configured) if configured else None
    general = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    return Path(general) / "rebalance" if os.path.isabs(general) else None
