"""The images that `filter` is given: which can be used, in which format, and what is known of their making."""

from __future__ import annotations

import tarfile
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np

from rebalance import imaging, storage
from rebalance.errors import DamagedError, InputError
from rebalance.filtering import Scores
from rebalance.index import ImageIndex, build_index
from rebalance.measures.sets import at_most
from rebalance.shards.names import SYNTHETIC
from rebalance.shards.records import FILTERED, Manifest, SampleRecord, manifest_of
from rebalance.shards.request import GivenIdentity

_HEAD_BYTES = 12
# So many tell the usual quality of a collection; each of them is read whole.
_JPEGS_READ = 64
_USUAL_QUALITY = 95


@dataclass(frozen=True)
class GivenImages:
    """Images made by anything.

    Attributes:
        index: all of them.
        manifest: of the output of `generate` or `filter` that they are; None for anything else.
        rows: ids of those that can be used, ascending, by class in alphabetical order.
        bad: files that cannot be used, by reason.
        file_format: that in which they are written: their own where all have one, else "png".
        quality: of jpg and webp: an output's own, else the jpg files' median, else the usual one; 0 for png.
        original: whether their own bytes are written.
    """

    index: ImageIndex
    manifest: Manifest | None
    rows: Mapping[str, np.ndarray]
    bad: Mapping[str, int]
    file_format: str
    quality: int
    original: bool

    @property
    def encoding(self) -> tuple[str, int] | None:
        """What real images must go through to be comparable; None where nothing is lost."""
        return None if self.file_format == "png" else (self.file_format, self.quality)

    @property
    def largest_px(self) -> int:
        """Their largest side."""
        every = np.concatenate(list(self.rows.values()))
        return int(np.maximum(self.index.column("width")[every], self.index.column("height")[every]).max())

    def identity(self) -> GivenIdentity:
        """Return what tells these images from others."""
        return GivenIdentity(
            fingerprint=self.index.fingerprint,
            usable=sum(len(rows) for rows in self.rows.values()),
            bad=dict(self.bad),
            output=self.manifest.fingerprint if self.manifest else "",
        )

    def without_caches(self) -> GivenImages:
        """Return the same images with nothing in memory that can be derived again, to be sent to a process."""
        return replace(self, index=replace(self.index))

    def record(self, row: int) -> SampleRecord:
        """Return what is known of an image: an output's own record, else that it is a file.

        Raises:
            DamagedError: an output's record is missing or damaged.
        """
        if self.manifest is None:
            return self._record_of_file(row)
        offset, size = self._json_places[row].tolist()
        path = self.index.root / self.index.column("path")[row]
        try:
            return SampleRecord.from_json(storage.read_bytes(path, offset, size))
        except (OSError, DamagedError) as error:
            raise DamagedError(
                f"{path}: the json of {self.index.column('member')[row]} is missing or damaged",
                remedy="Mend `images` with the command that made it",
            ) from error

    def _record_of_file(self, row: int) -> SampleRecord:
        class_name = str(self.index.column("class")[row])
        return SampleRecord(
            class_name=class_name,
            label=self.index.label(class_name),
            synthetic=True,
            method=FILTERED,
            run="",
            origin="file",
            source=self.index.name(row),
            references=(),
            source_class=class_name,
            modality=-1,
            seed=0,
            candidate=-1,
            scores=Scores().to_json(),
            width=int(self.index.column("width")[row]),
            height=int(self.index.column("height")[row]),
        )

    @cached_property
    def _json_places(self) -> np.ndarray:
        """Offset and size (n, 2) of each image's JSON in its tar file; size 0 where there is none."""
        places = np.zeros((self.index.table.num_rows, 2), np.int64)
        paths, members = self.index.column("path"), self.index.column("member")
        for path in np.unique(paths.astype(str)):
            with storage.opened(self.index.root / path) as file, tarfile.open(fileobj=file, mode="r:") as archive:
                of_key = {
                    member.name.partition(".")[0]: (member.offset_data, member.size)
                    for member in archive
                    if member.name.endswith(".json")
                }
            for row in np.flatnonzero(paths == path).tolist():
                places[row] = of_key.get(members[row].partition(".")[0], (0, 0))
        return places


def given_images(path: Path, seed: int, progress: bool) -> GivenImages:
    """Return the images of a folder, manifest, shards, or complete output; of an output, the synthetic ones.

    Args:
        path: where they are.
        seed: seed of the draw of files that tell the quality.
        progress: show a progress bar on stderr.

    Raises:
        InputError: the path has none of these forms, the output is not complete, or no image can be used.
    """
    if not storage.exists(path):
        raise InputError(
            "`images` does not exist", value=str(path), allowed="image folder, manifest, WebDataset shards or an output"
        )
    manifest = manifest_of(path, "images") if storage.is_folder(path) else None
    index = build_index(path, progress=progress)
    synthetic = np.ones(index.table.num_rows, bool)
    if manifest is not None:
        synthetic = np.array([name.startswith(f"{SYNTHETIC}-") for name in index.column("path")], bool)
    classes, usable = index.column("class"), index.usable & synthetic
    if not usable.any():
        raise InputError("there is no synthetic image", value=str(path))
    rows = {name: np.flatnonzero(usable & (classes == name)) for name in sorted(set(classes[usable]))}
    bad = Counter(str(reason) for reason in index.column("reason")[synthetic & ~index.usable])
    if manifest is not None:
        file_format, quality = manifest.request.settings.file_format, manifest.request.settings.quality
    else:
        file_format, quality = _format_of(index, np.flatnonzero(usable), seed)
    return GivenImages(
        index, manifest, rows, dict(sorted(bad.items())), file_format or "png", quality, original=bool(file_format)
    )


def _format_of(index: ImageIndex, rows: np.ndarray, seed: int) -> tuple[str, int]:
    """Return the format that all images have, "" when they have several or another one, and its quality, 0 for png."""
    formats = {imaging.format_of(head) for head in _heads(index, rows)}
    file_format = formats.pop() if len(formats) == 1 else ""
    if file_format in ("", "png"):
        return file_format, 0
    if file_format == "webp":
        return file_format, _USUAL_QUALITY  # its files do not tell
    drawn = at_most(rows, _JPEGS_READ, seed).tolist()
    return file_format, int(np.median([imaging.jpeg_quality(index.read(row)) for row in drawn]))


def _heads(index: ImageIndex, rows: np.ndarray) -> Iterator[bytes]:
    """Yield the first bytes of images; a tar file is opened once for all of its images."""
    paths = index.column("path")[rows].astype(str)
    offsets = np.maximum(index.column("offset")[rows], 0)
    order = np.argsort(paths, kind="stable")
    names, firsts = np.unique(paths[order], return_index=True)
    for name, positions in zip(names, np.split(order, firsts[1:]), strict=True):
        path = index.root / str(name)
        try:
            with storage.opened(path) as file:
                for offset in offsets[positions].tolist():
                    file.seek(offset)
                    yield file.read(_HEAD_BYTES)
        except OSError as error:
            raise InputError(f"cannot read {path}: {error.strerror}", remedy="Restore `images`") from error
