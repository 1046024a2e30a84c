"""Whose an output folder is, and which of its shards are done."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from rebalance import files
from rebalance.config import changed_keys
from rebalance.errors import DamagedError, RefusedError
from rebalance.shards.make import ShardName
from rebalance.shards.manifest import REQUEST, read_marker
from rebalance.shards.request import GenerationRequest

logger = logging.getLogger(__name__)


def claim(out: Path, request: GenerationRequest, overwrite: bool) -> None:
    """Make `out` this request's, or refuse."""
    if overwrite:
        _clear(out)
    begun = _begun(out, request)
    changes = changed_keys(begun, request.to_json()) if begun else []
    if changes:
        raise RefusedError(
            f"{out} holds shards of another request: {'; '.join(changes[:8])}",
            remedy="Choose another --out, give the same request, or start again with --overwrite",
        )
    if begun:
        return
    foreign = [item.name for item in out.iterdir() if not item.name.startswith(".")]
    if foreign and (out / REQUEST).is_file():
        claim(out, request, overwrite=False)  # another range has begun it meanwhile
        return
    if foreign:
        raise RefusedError(
            f"{out} is not empty and holds no shards of this tool: {', '.join(sorted(foreign)[:5])}",
            remedy="Choose an empty --out",
        )
    _write_request(out, request)


def _begun(out: Path, request: GenerationRequest) -> dict[str, Any]:
    """Return the request that `out` was begun with, empty when it was not; mend its file where shards tell it."""
    path = out / REQUEST
    try:
        return files.read_sealed_json(path)["request"]
    except DamagedError as error:
        if _holds_shards_of(out, request):
            logger.warning("%s It is written again, because the shards beside it are of this request.", error)
            _write_request(out, request)
            return request.to_json()
        if path.is_file():
            raise DamagedError(str(error), remedy="Start again with --overwrite") from error
        return {}


def _write_request(out: Path, request: GenerationRequest) -> None:
    files.write_sealed_json(out / REQUEST, {"fingerprint": request.fingerprint, "request": request.to_json()})


def _holds_shards_of(out: Path, request: GenerationRequest) -> bool:
    for path in out.glob("*-*.json"):
        try:
            if files.read_sealed_json(path).get("fingerprint") == request.fingerprint:
                return True
        except DamagedError:
            continue
    return False


def _clear(out: Path) -> None:
    """Delete an output, its request last, so that a kill in between leaves it recognisable."""
    if not (out / REQUEST).is_file():
        return
    for pattern in ("*.tar", "*.json", "README.md"):
        for path in out.glob(pattern):
            if path.name != REQUEST:
                path.unlink()
    (out / REQUEST).unlink()


def is_done(out: Path, name: ShardName, request: GenerationRequest) -> bool:
    """Whether a shard is there and whole; says so when one that was finished is not."""
    if not (out / name.marker).is_file():
        return False
    try:
        marker = read_marker(out, name)
    except DamagedError as error:
        logger.warning("%s It is made again.", error)
        return False
    tar = out / name.tar
    if not tar.is_file() or files.sha256_file(tar) != marker["sha256"]:
        logger.warning("%s is missing or damaged; it is made again", tar)
        return False
    return marker["fingerprint"] == request.fingerprint


def is_marked(out: Path, name: ShardName) -> bool:
    """Whether a shard has its done-marker; the shard itself is not looked at."""
    try:
        return bool(read_marker(out, name))
    except DamagedError:
        return False
