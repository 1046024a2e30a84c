"""Image folders: `root/CLASS/**` or `root/{train,val,test}/CLASS/**`."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from rebalance import storage
from rebalance.errors import InputError
from rebalance.imaging.decoding import EXTENSIONS
from rebalance.index.readers.listing import SPLIT_NAMES, Entry, Listing, _hidden, _listing, _readable, _subfolders


def read_folder(root: Path) -> Listing:
    """List `root/CLASS/**/*` or `root/{train,val,test}/CLASS/**/*`; hidden and system files are passed over.

    Raises:
        InputError: there is no class folder.
    """
    folders = _subfolders(root)
    splits = {folder: SPLIT_NAMES.get(folder.name.lower()) for folder in folders}
    entries: list[Entry] = []
    classes: set[str] = set()
    if folders and all(splits.values()) and "train" in splits.values():
        for folder, split in splits.items():
            for class_folder in _subfolders(folder):
                classes.add(class_folder.name)
                entries.extend(_walk(root, class_folder, class_folder.name, str(split)))
            entries.extend(_loose(root, folder, str(split)))
    else:
        _refuse_mixed_layout(splits)
        for class_folder in folders:
            classes.add(class_folder.name)
            entries.extend(_walk(root, class_folder, class_folder.name, "train"))
    entries.extend(_loose(root, root, "train"))
    if not classes:
        raise InputError(
            "no class folders in `data`",
            value=str(root),
            allowed="CLASS/*.jpg or {train,val,test}/CLASS/*.jpg",
        )
    return _listing(root, classes, entries)


def _refuse_mixed_layout(splits: dict[Path, str | None]) -> None:
    """Refuse a train folder of class folders beside folders that are no splits: they cannot all be classes."""
    train = next((folder for folder, split in splits.items() if split == "train"), None)
    if train is not None and _subfolders(train) and not storage.list_files(train):
        others = sorted(folder.name for folder, split in splits.items() if split is None)
        raise InputError(
            f"{train} holds class folders, but beside it lie folders that are no splits",
            value=", ".join(others),
            allowed=f"only {', '.join(SPLIT_NAMES)} beside each other",
            remedy="Move the other folders away",
        )


def _loose(root: Path, folder: Path, split: str) -> Iterator[Entry]:
    """Yield the images that lie outside every class folder."""
    for path in storage.list_files(folder):
        if not _hidden(path.name) and path.suffix.lower() in EXTENSIONS:
            yield _entry(path.relative_to(root).as_posix(), "", split, "not in a class folder")


def _walk(root: Path, folder: Path, class_name: str, split: str) -> Iterator[Entry]:
    within = len(folder.relative_to(root).parts)
    seen = {storage.real_path(parent) for parent in (folder, *folder.parents[:within])}

    def unreadable(error: OSError) -> None:
        raise InputError(f"cannot read the folder {error.filename}: {error.strerror}") from error

    for directory, subfolders, names in storage.walk(folder, follow_links=True, on_error=unreadable):
        kept = [name for name in sorted(subfolders) if not _hidden(name)]
        subfolders[:] = []
        for name in kept:
            real = storage.real_path(os.path.join(directory, name))
            if real not in seen:
                seen.add(real)
                subfolders.append(name)
        below = Path(directory).relative_to(root).as_posix()  # once a folder: pathlib is slow
        for name in names:
            if not _hidden(name):
                is_image = os.path.splitext(name)[1].lower() in EXTENSIONS
                reason = "" if is_image else "not an image: unknown file ending"
                yield _entry(f"{below}/{name}", class_name, split, reason)


def _entry(path: str, class_name: str, split: str, reason: str) -> Entry:
    readable, safe_class = _readable(path), _readable(class_name)
    if (readable, safe_class) != (path, class_name):
        reason = "file name is not UTF-8"
    return Entry(readable, safe_class, split, reason=reason)
