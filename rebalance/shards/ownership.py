"""Whose an output folder is: this request's, another's, or none of this package."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Sequence
from pathlib import Path

from rebalance import storage
from rebalance.errors import DamagedError, RefusedError
from rebalance.shards.names import CALIBRATION, CARD, REQUEST, SYNTHETIC
from rebalance.shards.request import Request, StoredRequest, write_request

logger = logging.getLogger(__name__)

_MOST_CHANGES = 8
_OWN_FILES = ("*.tar", "*.json", "*.moments.safetensors", CARD)


def claim(out: Path, request: Request, overwrite: bool) -> None:
    """Make `out` this request's.

    Raises:
        RefusedError: it holds shards of another request or version, or files of something else.
        DamagedError: what it was begun with is damaged.
    """
    if overwrite:
        _clear(out)
    begun = _begun(out, request)
    if begun is not None:
        begun.refuse_other_version(out)
        changes = request.changes_since(begun.values)
        if not changes and begun.fingerprint != request.fingerprint:
            changes = [f"version {begun.version} of this package, which began it, had other defaults"]
        _refuse_changes(out, changes)
        return
    foreign = _visible(out)
    if foreign and storage.is_file(out / REQUEST):
        claim(out, request, overwrite=False)  # another range has begun it meanwhile
        return
    _refuse_foreign(out, foreign)
    write_request(out, request)


def refuse_others(out: Path, request: Request, not_yet: Sequence[str]) -> None:
    """Refuse a folder that `claim` would refuse, as far as can be said before anything is measured.

    Args:
        out: the folder.
        request: the request.
        not_yet: keys of the request that are not known yet.
    """
    if not storage.is_file(out / REQUEST):
        if not storage.list_files(out, f"{SYNTHETIC}-*.json"):  # else `claim` may know whose they are
            _refuse_foreign(out, _visible(out))
        return
    with contextlib.suppress(DamagedError):  # `claim` says so, or mends it
        begun = StoredRequest.read(out)
        begun.refuse_other_version(out)
        _refuse_changes(out, request.changes_since(begun.values, without=not_yet))


def _refuse_changes(out: Path, changes: Sequence[str]) -> None:
    if changes:
        raise RefusedError(
            f"{out} holds shards of another request: {'; '.join(changes[:_MOST_CHANGES])}",
            remedy="Choose another `out`, give the same request, or start again with `overwrite=True`",
        )


def _visible(out: Path) -> list[str]:
    return [name for name in storage.list_names(out) if not name.startswith(".")]


def _refuse_foreign(out: Path, foreign: Sequence[str]) -> None:
    if foreign:
        raise RefusedError(
            f"{out} is not empty and holds no shards of this tool: {', '.join(foreign[:5])}",
            remedy="Choose an empty folder as `out`",
        )


def _begun(out: Path, request: Request) -> StoredRequest | None:
    """Return the request that `out` was begun with, None without one; mend its file where shards tell it."""
    try:
        return StoredRequest.read(out)
    except DamagedError as error:
        if _holds_shards_of(out, request):
            logger.warning("%s It is written again, because the shards beside it are of this request.", error)
            write_request(out, request)
            return StoredRequest.read(out)
        if storage.is_file(out / REQUEST):
            raise DamagedError(str(error), remedy="Start again with `overwrite=True`") from error
        return None


def _holds_shards_of(out: Path, request: Request) -> bool:
    for path in storage.list_files(out, "*-*.json"):
        with contextlib.suppress(DamagedError):
            if storage.read_sealed_json(path).get("fingerprint") == request.fingerprint:
                return True
    return False


def _clear(out: Path) -> None:
    """Delete an output, its request last, so that a kill in between leaves it recognisable."""
    if not storage.is_file(out / REQUEST):
        return
    for pattern in _OWN_FILES:
        for path in storage.list_files(out, pattern):
            if path.name != REQUEST:
                storage.remove_file(path)
    storage.remove_folder(out / CALIBRATION)
    storage.remove_file(out / REQUEST)
