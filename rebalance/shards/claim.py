"""Whose an output folder is, and which of its shards are done."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rebalance import files
from rebalance.config import changed_keys
from rebalance.errors import DamagedError, RefusedError
from rebalance.shards.make import ShardName
from rebalance.shards.manifest import REQUEST, read_marker
from rebalance.shards.moments import read_moments
from rebalance.shards.request import SYNTHETIC, Request

logger = logging.getLogger(__name__)

CALIBRATION = "calibration"
"""Folder of the calibration in an output that belongs to no run."""


def claim(out: Path, request: Request, overwrite: bool) -> None:
    """Make `out` this request's, or refuse."""
    if overwrite:
        _clear(out)
    begun = _begun(out, request)
    if begun:
        _refuse_changes(out, begun, request.to_json())
        return
    foreign = _foreign(out)
    if foreign and (out / REQUEST).is_file():
        claim(out, request, overwrite=False)  # another range has begun it meanwhile
        return
    _refuse_foreign(out, foreign)
    _write_request(out, request)


def refuse_others(out: Path, known: Mapping[str, Any]) -> None:
    """Refuse a folder that `claim` would refuse, as far as is known before anything is measured.

    Args:
        out: the folder.
        known: that part of the request.
    """
    if not (out / REQUEST).is_file():
        if not any(out.glob(f"{SYNTHETIC}-*.json")):  # else `claim` may know whose they are
            _refuse_foreign(out, _foreign(out))
        return
    with contextlib.suppress(DamagedError):  # `claim` says so, or mends it
        begun = files.read_sealed_json(out / REQUEST)["request"]
        _refuse_changes(out, {key: begun[key] for key in known if key in begun}, known)


def _refuse_changes(out: Path, begun: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
    changes = changed_keys(begun, wanted)
    if changes:
        raise RefusedError(
            f"{out} holds shards of another request: {'; '.join(changes[:8])}",
            remedy="Choose another --out, give the same request, or start again with --overwrite",
        )


def _foreign(out: Path) -> list[str]:
    return sorted(item.name for item in out.iterdir() if not item.name.startswith("."))


def _refuse_foreign(out: Path, foreign: Sequence[str]) -> None:
    if foreign:
        raise RefusedError(
            f"{out} is not empty and holds no shards of this tool: {', '.join(foreign[:5])}",
            remedy="Choose an empty --out",
        )


def _begun(out: Path, request: Request) -> dict[str, Any]:
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


def _write_request(out: Path, request: Request) -> None:
    files.write_sealed_json(out / REQUEST, {"fingerprint": request.fingerprint, "request": request.to_json()})


def _holds_shards_of(out: Path, request: Request) -> bool:
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
    for pattern in ("*.tar", "*.json", "*.moments.safetensors", "README.md", f"{CALIBRATION}/*"):
        for path in out.glob(pattern):
            if path.name != REQUEST:
                path.unlink()
    if (out / CALIBRATION).is_dir():
        (out / CALIBRATION).rmdir()
    (out / REQUEST).unlink()


def is_done(out: Path, name: ShardName, request: Request) -> bool:
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
    try:
        read_moments(out / name.moments, marker["moments"])
    except DamagedError as error:
        logger.warning("%s It is made again.", error)
        return False
    return marker["fingerprint"] == request.fingerprint


def is_marked(out: Path, name: ShardName) -> bool:
    """Whether a shard has its done-marker; the shard itself is not looked at."""
    try:
        return bool(read_marker(out, name))
    except DamagedError:
        return False
