"""Files that are never half-visible: temporary name, fsync, rename; and locks that die with their process."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rebalance.errors import DamagedError, InputError, RebalanceError, RefusedError

_TEMPORARY_SUFFIX = ".partial"
_TOKEN = os.urandom(4).hex()
_SEAL = "seal"


@dataclass(frozen=True)
class Problem:
    """Something wrong with what this package wrote: which file, and what."""

    file: str
    what: str


def sha256_bytes(data: bytes) -> str:
    """Return the SHA-256 of `data` in hexadecimal."""
    return hashlib.sha256(data).hexdigest()


def sha256_file(path: Path) -> str:
    """Return the SHA-256 of a file in hexadecimal, read in pieces."""
    with open(path, "rb") as file:
        digest = hashlib.sha256()
        for block in iter(lambda: file.read(1 << 20), b""):
            digest.update(block)
        return digest.hexdigest()


def canonical_json(value: Any) -> str:
    """Return `value` as JSON with sorted keys and no spaces, so that equal values have equal text."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def fsync_path(path: Path) -> None:
    """Force a file or directory to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _temporary(path: Path) -> Path:
    """A name of this process's own, also among containers, so that none writes into another's file."""
    return path.with_name(f".{path.name}.{os.getpid()}-{_TOKEN}{_TEMPORARY_SUFFIX}")


def remove_partials(directory: Path) -> None:
    """Remove what killed processes left half-written anywhere below `directory`."""
    for path in directory.rglob(f".*{_TEMPORARY_SUFFIX}"):
        shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink(missing_ok=True)


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn an operating-system error met while writing `path` into a message that names it."""
    try:
        yield
    except OSError as error:
        if error.errno == errno.ENOSPC:
            remedy = "Free some space and run the same command again; what was finished before is intact"
        else:
            remedy = "Check the path and its permissions and run the same command again"
        raise RebalanceError(f"cannot write {path}: {error.strerror or error}", remedy=remedy) from error


@contextlib.contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; on success it is fsynced and renamed to `path`, else removed.

    Raises:
        RebalanceError: when the disk is full or the place cannot be written; `path` is then as it was.
    """
    path = Path(path)
    temporary = _temporary(path)
    try:
        with writing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            yield temporary
            fsync_path(temporary)
            os.replace(temporary, path)
            fsync_path(path.parent)
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def write_bytes(path: Path, data: bytes) -> None:
    """Write `data` to `path` atomically."""
    with atomic_path(path) as temporary:
        temporary.write_bytes(data)


def write_text(path: Path, text: str) -> None:
    """Write `text` to `path` as UTF-8, atomically."""
    write_bytes(path, text.encode("utf-8"))


def write_json(path: Path, value: Any) -> None:
    """Write `value` to `path` as indented JSON with sorted keys, atomically."""
    write_text(path, _json_text(value))


def _json_text(value: Any) -> str:
    return json.dumps(value, sort_keys=True, indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def read_json(path: Path) -> Any:
    """Read a JSON file that this package wrote.

    Raises:
        DamagedError: the file is missing or does not parse.
    """
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise DamagedError(f"{path} is missing") from error
    except (ValueError, OSError, RecursionError) as error:
        raise DamagedError(f"{path} is damaged: {error}") from error


def write_sealed_json(path: Path, value: Mapping[str, Any]) -> None:
    """Write `value` as `write_json` does, with the hash of the rest as its member "seal"."""
    write_json(path, {**value, _SEAL: sha256_bytes(canonical_json(value).encode())})


def read_sealed_json(path: Path) -> dict[str, Any]:
    """Read a file of `write_sealed_json` without its seal.

    Raises:
        DamagedError: the file is missing, or any byte of it is not the one that was written.
    """
    value = read_json(path)
    rest = {key: item for key, item in value.items() if key != _SEAL} if isinstance(value, dict) else {}
    try:
        sealed = {**rest, _SEAL: sha256_bytes(canonical_json(rest).encode())}
        intact = value == sealed and Path(path).read_bytes() == _json_text(sealed).encode()
    except (ValueError, RecursionError):  # numbers and characters that are never written
        intact = False
    if not intact:
        raise DamagedError(f"{path} is damaged: it is not as it was written")
    return rest


def read_hashed(path: Path, sha256: str) -> bytes:
    """Read a file that this package wrote.

    Raises:
        DamagedError: the file is missing or its hash is another.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise DamagedError(f"{path} cannot be read: {error.strerror}") from error
    if sha256_bytes(data) != sha256:
        raise DamagedError(f"{path} is damaged")
    return data


@contextlib.contextmanager
def atomic_directory(path: Path) -> Iterator[Path]:
    """Yield a temporary directory beside `path`; on success it is fsynced and renamed to `path`, else removed."""
    path = Path(path)
    temporary = _temporary(path)
    with writing(path):
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        try:
            yield temporary
            for file in temporary.iterdir():
                fsync_path(file)
            fsync_path(temporary)
            os.rename(temporary, path)
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise
        fsync_path(path.parent)


@contextlib.contextmanager
def locked(directory: Path, *, shared: bool = False, wait: bool = False) -> Iterator[None]:
    """Hold `directory` for this process alone; the kernel drops the lock when the process dies.

    Args:
        directory: made if it does not exist.
        shared: let others in that also ask to share.
        wait: until whoever holds it has ended, instead of an error.

    Raises:
        RefusedError: another process holds it.
    """
    with writing(directory / ".lock"):
        directory.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(directory / ".lock", os.O_CREAT | os.O_RDWR, 0o644)
    try:
        try:
            fcntl.flock(descriptor, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError as error:
            raise RefusedError(
                f"another process is working in {directory}", remedy="Wait until it has ended or choose another folder"
            ) from error
        yield
    finally:
        os.close(descriptor)


def cache_folder() -> Path | None:
    """Return where this user's caches lie: $REBALANCE_CACHE, else `rebalance` in the desktop's cache folder.

    None when $REBALANCE_CACHE is empty or there is no home: then nothing is cached.
    """
    chosen = os.environ.get("REBALANCE_CACHE")
    if chosen is not None:
        return Path(chosen) if chosen else None
    general = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    return Path(general) / "rebalance" if os.path.isabs(general) else None


def existing_directory(path: Path, option: str) -> Path:
    """Return `path` if it is a directory.

    Raises:
        InputError: it is missing or something else.
    """
    path = Path(path)
    if not path.is_dir():
        kind = "is a file" if path.exists() else "does not exist"
        raise InputError(f"{option} {kind}", value=str(path), allowed="an existing folder")
    return path
