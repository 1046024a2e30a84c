"""The three forms of a data set - image folder, manifest, WebDataset shards - each as a listing of entries."""

from __future__ import annotations

import itertools
import json
import os
import re
import sys
import tarfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from operator import attrgetter
from pathlib import Path

import pyarrow as pa
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq

from rebalance.errors import InputError
from rebalance.images import EXTENSIONS
from rebalance.index.table import table_of

SPLIT_NAMES = {"train": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}
"""Folder and manifest names of splits, and what they mean."""

_IGNORED = frozenset(("thumbs.db", "desktop.ini", "__macosx"))


@dataclass(frozen=True, slots=True)
class Entry:
    """One file of the data set, not yet opened.

    Attributes:
        path: relative to the data set's root, with forward slashes.
        class_name: its class; "" when it has none.
        split: "train", "val" or "test".
        member: name inside a tar file; "" for a plain file.
        offset: where its bytes begin inside the tar file; -1 for a plain file.
        size: bytes inside the tar file; -1: the whole file.
        sublabel: sub-label of a manifest; "" when it has none.
        reason: why it cannot be used; "" when it may be.
    """

    path: str
    class_name: str
    split: str
    member: str = ""
    offset: int = -1
    size: int = -1
    sublabel: str = ""
    reason: str = ""


_ENTRY_SCHEMA = pa.schema(
    [  # the fields of `Entry`, in their order
        ("path", pa.string()),
        ("class", pa.string()),
        ("split", pa.string()),
        ("member", pa.string()),
        ("offset", pa.int64()),
        ("size", pa.int64()),
        ("sublabel", pa.string()),
        ("reason", pa.string()),
    ]
)


@dataclass(frozen=True)
class Listing:
    """Everything a reader found.

    Attributes:
        root: folder that the paths are relative to.
        classes: class names in label order.
        table: the entries, one a row, by path and member.
    """

    root: Path
    classes: tuple[str, ...]
    table: pa.Table

    def entries(self, first: int, number: int) -> list[Entry]:
        """Return this number of entries from the first on, fewer at the end."""
        return list(map(Entry, *(column.to_pylist() for column in self.table.slice(first, number).columns)))


def read_listing(data: Path, sublabel_column: str = "") -> Listing:
    """List a data set of any supported form.

    Args:
        data: image folder, folder of tar files, tar file, or manifest (.csv, .tsv, .parquet).
        sublabel_column: manifest column of sub-labels, if any.

    Raises:
        InputError: the path does not exist or has none of the forms.
    """
    data = Path(data)
    if not data.exists():
        raise InputError("DATA does not exist", value=str(data), allowed="image folder, manifest or WebDataset shards")
    if data.is_file() and data.suffix == ".tar":
        return read_shards(data.parent, [data])
    if data.is_file():
        return read_manifest(data, sublabel_column)
    if sublabel_column:
        raise InputError("data.sublabel_column needs a manifest", value=str(data), allowed=".csv, .tsv or .parquet")
    if _has_class_folders(data):
        return read_folder(data)
    tars = sorted(path for path in data.rglob("*.tar") if path.is_file() and not _hidden(path.name))
    return read_shards(data, tars) if tars else read_folder(data)


def _hidden(name: str) -> bool:
    return name.startswith(".") or name.lower() in _IGNORED


def _subfolders(folder: Path) -> list[Path]:
    try:
        return sorted(path for path in folder.iterdir() if path.is_dir() and not _hidden(path.name))
    except OSError as error:
        raise InputError(f"cannot read the folder {folder}: {error.strerror}") from error


def _has_class_folders(root: Path) -> bool:
    """Whether any folder directly below holds an image, so that tar files beside it are not the data set."""
    return any(
        Path(name).suffix.lower() in EXTENSIONS
        for folder in _subfolders(root)
        for _, _, names in os.walk(folder)
        for name in names
    )


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
            "no class folders in DATA", value=str(root), allowed="DATA/CLASS/*.jpg or DATA/{train,val,test}/CLASS/*.jpg"
        )
    return _listing(root, classes, entries)


def _refuse_mixed_layout(splits: dict[Path, str | None]) -> None:
    """Refuse a train folder of class folders beside folders that are no splits: they cannot all be classes."""
    train = next((folder for folder, split in splits.items() if split == "train"), None)
    if train is not None and _subfolders(train) and not any(path.is_file() for path in train.iterdir()):
        others = sorted(folder.name for folder, split in splits.items() if split is None)
        raise InputError(
            f"{train} holds class folders, but beside it lie folders that are no splits",
            value=", ".join(others),
            allowed=f"only {', '.join(SPLIT_NAMES)} beside each other",
            remedy="Move the other folders away",
        )


def _loose(root: Path, folder: Path, split: str) -> Iterator[Entry]:
    """Images that lie outside every class folder."""
    for path in folder.iterdir():
        if path.is_file() and not _hidden(path.name) and path.suffix.lower() in EXTENSIONS:
            yield _entry(path.relative_to(root).as_posix(), "", split, "not in a class folder")


def _walk(root: Path, folder: Path, class_name: str, split: str) -> Iterator[Entry]:
    within = len(folder.relative_to(root).parts)
    seen = {os.path.realpath(parent) for parent in (folder, *folder.parents[:within])}

    def unreadable(error: OSError) -> None:
        raise InputError(f"cannot read the folder {error.filename}: {error.strerror}") from error

    for directory, subfolders, names in os.walk(folder, followlinks=True, onerror=unreadable):
        kept = [name for name in sorted(subfolders) if not _hidden(name)]
        subfolders[:] = []
        for name in kept:
            real = os.path.realpath(os.path.join(directory, name))
            if real not in seen:
                seen.add(real)
                subfolders.append(name)
        below = Path(directory).relative_to(root).as_posix()  # once a folder: pathlib is slow
        for name in names:
            if not _hidden(name):
                known = os.path.splitext(name)[1].lower() in EXTENSIONS
                reason = "" if known else "not an image: unknown file ending"
                yield _entry(f"{below}/{name}", class_name, split, reason)


def _entry(path: str, class_name: str, split: str, reason: str) -> Entry:
    readable, safe_class = _readable(path), _readable(class_name)
    if (readable, safe_class) != (path, class_name):
        reason = "file name is not UTF-8"
    return Entry(readable, safe_class, split, reason=reason)


def _readable(name: str) -> str:
    """Return a file's name with bytes that are not UTF-8 written out."""
    if name.isascii():
        return name
    return os.fsencode(name).decode("utf-8", "backslashreplace")


def _listing(root: Path, classes: Iterable[str], entries: Iterable[Entry], numeric: bool = False) -> Listing:
    found = [_without_nul(entry) for entry in entries]
    for name in ("member", "path"):  # one stable sort after the other: a key of both would be a tuple for each entry
        found.sort(key=attrgetter(name))
    names = {_readable(name) for name in classes if name and "\0" not in name}
    if numeric and all(name.isascii() and name.isdigit() for name in names):
        ordered = sorted(names, key=int)
    else:
        ordered = sorted(names)
    return Listing(Path(root).absolute(), tuple(ordered), table_of(Entry, found, _ENTRY_SCHEMA))


def _without_nul(entry: Entry) -> Entry:
    """Labels with a NUL are no labels: arrays of text end at it."""
    if "\0" not in entry.class_name + entry.sublabel:
        return entry
    return replace(entry, class_name="", sublabel="", reason="its label holds a NUL character")


def read_manifest(manifest: Path, sublabel_column: str = "") -> Listing:
    """List a CSV, TSV or Parquet manifest with columns `path`, `label` and optionally `split`.

    Paths are relative to the manifest's folder. Labels that are all whole numbers keep their numeric order.

    Raises:
        InputError: unreadable, a column missing, or an unknown split.
    """
    table = _manifest_table(manifest)
    columns = {name.strip().lower(): name for name in table.column_names}
    for needed in ("path", "label", *([sublabel_column.lower()] if sublabel_column else [])):
        if needed not in columns:
            raise InputError(
                f"manifest {manifest} has no column {needed!r}",
                value=table.column_names,
                allowed="path, label, [split]",
            )

    def texts(name: str) -> Iterator[str]:
        for chunk in table.column(columns[name]).chunks:
            yield from ("" if value is None else str(value) for value in chunk.to_pylist())

    splits = texts("split") if "split" in columns else itertools.repeat("train", table.num_rows)
    sublabels = texts(sublabel_column.lower()) if sublabel_column else itertools.repeat("", table.num_rows)
    entries, seen = [], set()
    for path, label, split, sublabel in zip(texts("path"), texts("label"), splits, sublabels, strict=True):
        if split.lower() not in SPLIT_NAMES:
            raise InputError(f"manifest {manifest}: unknown split", value=split, allowed=", ".join(SPLIT_NAMES))
        reason = "no label" if not label else "listed twice" if path in seen else ""
        seen.add(path)
        label, sublabel = sys.intern(label), sys.intern(sublabel)  # one string for all images of a class
        entries.append(Entry(path, label, SPLIT_NAMES[split.lower()], sublabel=sublabel, reason=reason))
    return _listing(manifest.parent, (entry.class_name for entry in entries), entries, numeric=True)


def _manifest_table(manifest: Path) -> pa.Table:
    try:
        if manifest.suffix.lower() == ".parquet":
            return pq.read_table(manifest)
        if manifest.suffix.lower() in (".csv", ".tsv"):
            delimiter = "\t" if manifest.suffix.lower() == ".tsv" else ","
            with open(manifest, encoding="utf-8-sig") as file:
                names = file.readline().rstrip("\r\n").split(delimiter)
            as_text = {form.strip('"'): pa.string() for name in names for form in (name, name.strip())}
            return pa_csv.read_csv(
                manifest,
                parse_options=pa_csv.ParseOptions(delimiter=delimiter, newlines_in_values=True),
                convert_options=pa_csv.ConvertOptions(column_types=as_text),
            )
    except (OSError, UnicodeDecodeError, pa.ArrowException) as error:
        raise InputError(f"cannot read the manifest {manifest}: {error}") from error
    raise InputError("DATA has an unknown form", value=str(manifest), allowed="a folder, .csv, .tsv, .parquet or .tar")


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
            with tarfile.open(tar, "r:") as archive:
                entries.extend(_shard_entries(archive, relative, split))
        except (tarfile.TarError, OSError) as error:
            raise InputError(f"cannot read the shard {tar}: {error}") from error
    return _listing(root, (entry.class_name for entry in entries), entries, numeric=True)


def _shard_entries(archive: tarfile.TarFile, path: str, split: str) -> Iterator[Entry]:
    found: dict[str, tarfile.TarInfo] = {}
    labels: dict[str, str] = {}
    repeated: set[str] = set()
    for member in archive:
        if member.size < 0:
            raise tarfile.ReadError(f"{member.name} has a size below 0, which would be read for ever")
        folder, _, name = member.name.rpartition("/")
        key, _, ending = name.partition(".")
        key = f"{folder}/{key}" if folder else key
        if f".{ending.lower()}" in EXTENSIONS:
            repeated.update((key,) if key in found else ())
            found.setdefault(key, member)
        elif ending.lower() in ("cls", "json") and member.isreg() and member.size <= 1 << 20:
            label = _shard_label(archive, member, ending.lower())
            if label and (ending.lower() == "json" or key not in labels):
                labels[key] = label
    for key, member in found.items():
        reason = _member_fault(member)
        if key in repeated:
            reason = "key occurs twice in its shard"
        elif key not in labels:
            reason = "no .cls and no .json label"
        name = _readable(member.name)
        yield Entry(path, labels.get(key, ""), split, name, member.offset_data, member.size, reason=reason)


def _member_fault(member: tarfile.TarInfo) -> str:
    """Why a member of a tar file is never read as an image, "" when it may be."""
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
