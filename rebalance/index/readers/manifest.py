"""Manifests: CSV, TSV or Parquet tables of paths and labels."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq

from rebalance import storage
from rebalance.errors import InputError
from rebalance.index.readers.listing import SPLIT_NAMES, Entry, Listing, _listing


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
            with storage.opened(manifest) as file:
                return pq.read_table(file)
        if manifest.suffix.lower() in (".csv", ".tsv"):
            delimiter = "\t" if manifest.suffix.lower() == ".tsv" else ","
            with storage.opened(manifest) as file:
                names = file.readline().decode("utf-8-sig").rstrip("\r\n").split(delimiter)
            as_text = {form.strip('"'): pa.string() for name in names for form in (name, name.strip())}
            with storage.opened(manifest) as file:
                return pa_csv.read_csv(
                    file,
                    parse_options=pa_csv.ParseOptions(delimiter=delimiter, newlines_in_values=True),
                    convert_options=pa_csv.ConvertOptions(column_types=as_text),
                )
    except (OSError, UnicodeDecodeError, pa.ArrowException) as error:
        raise InputError(f"cannot read the manifest {manifest}: {error}") from error
    raise InputError("`data` has an unknown form", value=str(manifest), allowed="folder, .csv, .tsv, .parquet or .tar")
