"""JSON files, and sealed ones that can tell whether any byte of them has changed."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rebalance.errors import DamagedError
from rebalance.storage.access import opened, read_bytes, write_text

_SEAL = "seal"
_BLOCK = 1 << 20  # bytes read at once: shards of gigabytes are hashed in little memory


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
    with opened(path) as file:
        digest = hashlib.sha256()
        for block in iter(lambda: file.read(_BLOCK), b""):
            digest.update(block)
        return digest.hexdigest()


def canonical_json(value: Any) -> str:
    """Return `value` as JSON with sorted keys and no spaces, so that equal values have equal text."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


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
    return _parsed(path, _read(path))


def _read(path: Path) -> bytes:
    try:
        return read_bytes(path)
    except FileNotFoundError as error:
        raise DamagedError(f"{path} is missing") from error
    except OSError as error:
        raise DamagedError(f"{path} is damaged: {error}") from error


def _parsed(path: Path, data: bytes) -> Any:
    try:
        return json.loads(data.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise DamagedError(f"{path} is damaged: {error}") from error


def write_sealed_json(path: Path, value: Mapping[str, Any]) -> None:
    """Write `value` as `write_json` does, with the hash of the rest as its member "seal"."""
    write_json(path, {**value, _SEAL: sha256_bytes(canonical_json(value).encode())})


def read_sealed_json(path: Path) -> dict[str, Any]:
    """Read a file of `write_sealed_json` without its seal.

    Raises:
        DamagedError: the file is missing, or any byte of it is not the one that was written.
    """
    data = _read(path)
    value = _parsed(path, data)
    rest = {key: item for key, item in value.items() if key != _SEAL} if isinstance(value, dict) else {}
    try:
        sealed = {**rest, _SEAL: sha256_bytes(canonical_json(rest).encode())}
        intact = value == sealed and data == _json_text(sealed).encode()
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
        data = read_bytes(path)
    except OSError as error:
        raise DamagedError(f"{path} cannot be read: {error.strerror}") from error
    if sha256_bytes(data) != sha256:
        raise DamagedError(f"{path} is damaged")
    return data
