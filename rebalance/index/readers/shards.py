"""WebDataset shards: tar files with an image and its label under one key."""

from __future__ import annotations

import json
import re
import tarfile
from collections.abc import Iterator
from pathlib import Path

from rebalance import storage
from rebalance.errors import InputError
from rebalance.imaging.decoding import EXTENSIONS
from rebalance.index.readers.listing import SPLIT_NAMES, Entry, Listing, _listing, _readable


def read_shards(root: Path, tars: list[Path]) -> Listing:
    """List WebDataset shards: an image with a `.cls` or a `.json` (field `class` or `label`) beside it.

    The split is that of a folder or file name beginning with train, val or test; otherwise train.

    Raises:
        InputError: a tar file cannot be read.
    """
    entries: list[Entry] = []
    for tar in tars:
        relative = tar.relative_to(root).as_posix()
        split = next(
            (SPLIT_NAMES[word] for word in re.split(r"[^a-z]+", relative.lower()) if word in SPLIT_NAMES),
            "train",
        )
        try:
            with storage.opened(tar) as file, tarfile.open(fileobj=file, mode="r:") as archive:
                entries.extend(_shard_entries(archive, relative, split))
        except (tarfile.TarError, OSError) as error:
            raise InputError(f"cannot read the shard {tar}: {error}") from error
    return _listing(root, (entry.class_name for entry in entries), entries, numeric=True)


def _shard_entries(archive: tarfile.TarFile, path: str, split: str) -> Iterator[Entry]:
    images: dict[str, tarfile.TarInfo] = {}
    labels: dict[str, str] = {}
    repeated: set[str] = set()
    for member in archive:
        if member.size < 0:
            raise tarfile.ReadError(f"{member.name} has a size below 0, which would be read for ever")
        folder, _, name = member.name.rpartition("/")
        key, _, ending = name.partition(".")
        key = f"{folder}/{key}" if folder else key
        if f".{ending.lower()}" in EXTENSIONS:
            repeated.update((key,) if key in images else ())
            images.setdefault(key, member)
        elif ending.lower() in ("cls", "json") and member.isreg() and member.size <= 1 << 20:
            label = _shard_label(archive, member, ending.lower())
            if label and (ending.lower() == "json" or key not in labels):
                labels[key] = label
    for key, member in images.items():
        reason = _member_fault(member)
        if key in repeated:
            reason = "key occurs twice in its shard"
        elif key not in labels:
            reason = "no .cls and no .json label"
        name = _readable(member.name)
        yield Entry(path, labels.get(key, ""), split, name, member.offset_data, member.size, reason=reason)


def _member_fault(member: tarfile.TarInfo) -> str:
    """Return why a member of a tar file is never read as an image, "" when it may be."""
    if not member.isreg():
        return "a link or a special file inside its shard"
    if member.issparse():
        return "a sparse file inside its shard"
    return "" if _readable(member.name) == member.name else "file name is not UTF-8"


def _shard_label(archive: tarfile.TarFile, member: tarfile.TarInfo, ending: str) -> str:
    file = archive.extractfile(member)
    text = file.read().decode("utf-8", "replace").strip() if file else ""
    if ending == "cls":
        return text
    try:
        fields = json.loads(text)
    except (ValueError, RecursionError):
        return ""
    if not isinstance(fields, dict):
        return ""
    label = fields.get("class", fields.get("label", ""))
    return "" if label is None else str(label)
