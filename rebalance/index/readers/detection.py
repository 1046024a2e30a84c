"""Choosing the one of three readers that a data set needs."""

from __future__ import annotations

from pathlib import Path

from rebalance import storage
from rebalance.errors import InputError
from rebalance.imaging.decoding import EXTENSIONS
from rebalance.index.readers.folder import read_folder
from rebalance.index.readers.listing import Listing, _hidden, _subfolders
from rebalance.index.readers.manifest import read_manifest
from rebalance.index.readers.shards import read_shards


def read_listing(data: Path, sublabel_column: str = "", parameter: str = "data") -> Listing:
    """List a data set of any supported form.

    Args:
        data: image folder, folder of tar files, tar file, or manifest (.csv, .tsv, .parquet).
        sublabel_column: manifest column of sub-labels, if any.
        parameter: what the caller's user calls the path, for errors.

    Raises:
        InputError: the path does not exist or has none of the forms.
    """
    data = Path(data)
    if not storage.exists(data):
        raise InputError(
            f"`{parameter}` does not exist", value=str(data), allowed="image folder, manifest or WebDataset shards"
        )
    if storage.is_file(data) and data.suffix == ".tar":
        return read_shards(data.parent, [data])
    if storage.is_file(data):
        return read_manifest(data, sublabel_column)
    if sublabel_column:
        raise InputError("data.sublabel_column needs a manifest", value=str(data), allowed=".csv, .tsv or .parquet")
    if _has_class_folders(data):
        return read_folder(data)
    tars = [path for path in storage.find_files(data, "*.tar") if not _hidden(path.name)]
    return read_shards(data, tars) if tars else read_folder(data)


def _has_class_folders(root: Path) -> bool:
    """Return whether any folder directly below holds an image, so that tar files beside it are not the data set."""
    return any(
        Path(name).suffix.lower() in EXTENSIONS
        for folder in _subfolders(root)
        for _, _, names in storage.walk(folder)
        for name in names
    )
