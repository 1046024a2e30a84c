"""The images that `filter` is given: which can be used, in which format, and what is known of their making."""

from __future__ import annotations

import json
import tarfile
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from rebalance import images, metrics
from rebalance.errors import DamagedError, InputError
from rebalance.index import ImageIndex, build_index
from rebalance.shards.manifest import manifest_of
from rebalance.shards.request import SYNTHETIC
from rebalance.shards.verify import FIELDS

PROVENANCE = ("method", "source", "source_class", "reference", "modality", "candidate")
"""Fields of a sample that say how it was made, and stay what they are."""

_HEAD_BYTES = 12
_JPEGS_LOOKED_AT = 64
_USUAL_QUALITY = 95


@dataclass(frozen=True)
class GivenImages:
    """Images made by anything.

    Attributes:
        index: all of them.
        manifest: of the output of `generate` or `filter` that they are; empty for anything else.
        rows: ids of those that can be used, ascending, by class in alphabetical order.
        bad: files that cannot be used, by reason.
        file_format: that in which they are written: their own where all have one, else "png".
        quality: of jpg and webp: an output's own, else the jpg files' median, else the usual one.
        original: whether their own bytes are written.
    """

    index: ImageIndex
    manifest: Mapping[str, Any]
    rows: Mapping[str, np.ndarray]
    bad: Mapping[str, int]
    file_format: str
    quality: int
    original: bool

    @property
    def encoding(self) -> tuple[str, int] | None:
        """What real images must go through to look as these do; None where nothing is lost."""
        return None if self.file_format == "png" else (self.file_format, self.quality)

    @property
    def largest_px(self) -> int:
        """Their largest side."""
        every = np.concatenate(list(self.rows.values()))
        return int(np.maximum(self.index.column("width")[every], self.index.column("height")[every]).max())

    def identity(self) -> dict[str, Any]:
        """What tells these images from others."""
        return {
            "fingerprint": self.index.fingerprint,
            "usable": sum(len(rows) for rows in self.rows.values()),
            "bad": dict(self.bad),
            "output": self.manifest.get("fingerprint", ""),
        }

    def provenance(self, row: int) -> dict[str, Any]:
        """Return what an output's sample says of how it was made, else that it was given.

        Raises:
            DamagedError: an output's sample does not say it.
        """
        if not self.manifest:
            given = str(self.index.column("class")[row])
            return dict(zip(PROVENANCE, ("filter", self.index.name(row), given, "", -1, -1), strict=True))
        offset, size = self._json_places[row].tolist()
        path = self.index.root / self.index.column("path")[row]
        try:
            with open(path, "rb") as file:
                file.seek(offset)
                fields = json.loads(file.read(size))
            found = {name: fields[name] for name in PROVENANCE}
            if any(type(value) is not FIELDS[name] for name, value in found.items()):
                raise ValueError("of another type")
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise DamagedError(
                f"{path}: the json of {self.index.column('member')[row]} is missing or damaged",
                remedy="Mend IMAGES with the command that made it",
            ) from error
        return found

    @cached_property
    def _json_places(self) -> np.ndarray:
        """Offset and size (n, 2) of each image's JSON in its tar file; size 0 where there is none."""
        places = np.zeros((self.index.table.num_rows, 2), np.int64)
        paths, members = self.index.column("path"), self.index.column("member")
        for path in np.unique(paths.astype(str)):
            with tarfile.open(self.index.root / path, "r:") as archive:
                found = {m.name.partition(".")[0]: (m.offset_data, m.size) for m in archive if m.name.endswith(".json")}
            for row in np.flatnonzero(paths == path).tolist():
                places[row] = found.get(members[row].partition(".")[0], (0, 0))
        return places


def given_images(path: Path, seed: int, progress: bool) -> GivenImages:
    """Look at the images of a folder, manifest, shards, or complete output; of an output, at the synthetic ones.

    Args:
        path: where they are.
        seed: seed of the draw of files whose quality is looked at.
        progress: show a progress bar on stderr.

    Raises:
        InputError: the path has none of these forms, the output is not complete, or no image can be used.
    """
    if not path.exists():
        raise InputError(
            "IMAGES does not exist", value=str(path), allowed="image folder, manifest, WebDataset shards or an output"
        )
    manifest = manifest_of(path, "IMAGES") if path.is_dir() else {}
    index = build_index(path, progress=progress)
    ours = np.ones(index.table.num_rows, bool)
    if manifest:
        ours = np.array([name.startswith(f"{SYNTHETIC}-") for name in index.column("path")], bool)
    classes, usable = index.column("class"), index.usable & ours
    if not usable.any():
        raise InputError("there is no synthetic image", value=str(path))
    rows = {name: np.flatnonzero(usable & (classes == name)) for name in sorted(set(classes[usable]))}
    bad = Counter(str(reason) for reason in index.column("reason")[ours & ~index.usable])
    file_format, quality = _format_of(index, np.flatnonzero(usable), manifest, seed)
    return GivenImages(
        index, manifest, rows, dict(sorted(bad.items())), file_format or "png", quality, original=bool(file_format)
    )


def _format_of(index: ImageIndex, rows: np.ndarray, manifest: Mapping[str, Any], seed: int) -> tuple[str, int]:
    """The format that all images have, "" when they have several or another one, and its quality, 0 for png."""
    formats = {images.format_of(_head(index, row)) for row in rows.tolist()}
    found = formats.pop() if len(formats) == 1 else ""
    if found in ("", "png"):
        return found, 0
    request = manifest.get("request", {})
    if request.get("file_format") == found:
        return found, request["quality"]
    if found == "webp":
        return found, _USUAL_QUALITY  # its files do not tell
    drawn = metrics.at_most(rows, _JPEGS_LOOKED_AT, seed).tolist()
    return found, int(np.median([images.jpeg_quality(index.read(row)) for row in drawn]))


def _head(index: ImageIndex, row: int) -> bytes:
    path = index.root / index.column("path")[row]
    try:
        with open(path, "rb") as file:
            file.seek(max(int(index.column("offset")[row]), 0))
            return file.read(_HEAD_BYTES)
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}", remedy="Restore IMAGES") from error
