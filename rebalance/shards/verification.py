"""`verify`: every shard against its marker and the manifest."""

from __future__ import annotations

import io
import tarfile
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

from rebalance import storage
from rebalance.errors import DamagedError, InputError
from rebalance.shards.names import MANIFEST, REQUEST, ShardName
from rebalance.shards.records import (
    SAMPLE_KEY,
    Manifest,
    Marker,
    SampleRecord,
    ShardRow,
    read_manifest,
    read_marker,
)
from rebalance.shards.shard_moments import read_moments


@dataclass(frozen=True)
class Verification:
    """What was checked and what was found.

    Attributes:
        shards: shards checked.
        images: samples checked.
        counts: samples of each class.
        problems: everything that is missing or damaged; empty when all is well.
    """

    shards: int
    images: int
    counts: dict[str, int]
    problems: tuple[storage.Problem, ...]

    @property
    def exit_code(self) -> int:
        """0 when all is well, else 1."""
        return 1 if self.problems else 0

    def to_json(self) -> dict[str, Any]:
        """Return the verification as plain values."""
        return asdict(self)


def verify(path: str | Path, progress: bool = False) -> Verification:
    """Check hashes, counts, keys and fields of every shard of an output; every tar is read once.

    Args:
        path: folder of the shards.
        progress: show a progress bar on stderr.

    Raises:
        InputError: not a folder of shards made by `generate` or `filter`.
    """
    out = storage.existing_folder(Path(path), "path")
    if not storage.is_file(out / REQUEST) and not storage.is_file(out / MANIFEST):
        raise InputError(
            "`path` holds no shards of this tool", value=str(out), allowed="a folder made by `generate` or `filter`"
        )
    checking = _Checking(out, [], Counter(), set())
    manifest = checking.manifest()
    rows = {row.shard: row for row in manifest.shards} if manifest else {}
    names = checking.names(rows)
    for name in tqdm(names, desc="verify", unit="shard", disable=not progress, leave=False):
        try:
            marker = checking.shard(name)
            if manifest and name.tar in rows:
                checking.listed(marker, rows[name.tar], manifest.fingerprint)
        except DamagedError as error:
            checking.report(name.tar, str(error))
    if manifest:
        checking.totals(manifest)
    counts = dict(sorted(checking.counts.items()))
    return Verification(len(names), checking.counts.total(), counts, tuple(checking.problems))


@dataclass(frozen=True)
class _Checking:
    """A check of one output.

    Attributes:
        out: the output folder.
        problems: what was found wrong so far.
        counts: intact samples of each class so far.
        keys: keys of samples so far.
    """

    out: Path
    problems: list[storage.Problem]
    counts: Counter[str]
    keys: set[str]

    def report(self, file: str, what: str) -> None:
        """Add a problem."""
        self.problems.append(storage.Problem(file, what))

    def manifest(self) -> Manifest | None:
        """Return the manifest; None when it is missing or damaged."""
        try:
            return read_manifest(self.out)
        except DamagedError as error:
            self.report(MANIFEST, f"{error} Run the command that began it again.")
            return None

    def names(self, rows: Mapping[str, ShardRow]) -> list[ShardName]:
        """Return all shards that are there or should be, by manifest, markers and tar files."""
        files = {*rows, *storage.list_names(self.out)}
        shards = {shard for file in files if (shard := ShardName.of_file(file)) is not None}
        names = sorted(shards, key=lambda shard: shard.stem)
        for name in names:
            if rows and name.tar not in rows:
                self.report(name.tar, "not in the manifest")
        return names

    def shard(self, name: ShardName) -> Marker:
        """Check a shard against its marker.

        Raises:
            DamagedError: its marker or its tar file is missing or damaged.
        """
        marker, path = read_marker(self.out, name), self.out / name.tar
        if not storage.is_file(path):
            raise DamagedError(f"{name.tar} is missing")
        data = storage.read_bytes(path)
        if len(data) != marker.bytes or storage.sha256_bytes(data) != marker.sha256:
            raise DamagedError(
                f"{name.tar} is damaged: its hash is not its marker's",
                remedy="Delete it and run the command that began it again, which makes it anew",
            )
        self._moments(name, marker)
        counts: Counter[str] = Counter()
        try:
            for key, parts in _samples(data):
                class_name = self._sample(name, key, parts, marker.fingerprint)
                if class_name is not None:
                    counts[class_name] += 1
        except (tarfile.TarError, OSError) as error:
            raise DamagedError(f"{name.tar} cannot be read: {error}") from error
        if dict(counts) != marker.counts or counts.total() != marker.images:
            self.report(name.tar, f"holds {dict(counts)}, its marker says {marker.counts}")
        self.counts.update(counts)
        return marker

    def _moments(self, name: ShardName, marker: Marker) -> None:
        try:
            for class_name, moments in read_moments(self.out / name.moments, marker.moments).items():
                if moments.n != marker.counts[class_name]:
                    self.report(name.moments, f"is not of the shard's images of {class_name!r}")
        except DamagedError as error:
            self.report(name.moments, str(error))

    def _sample(self, name: ShardName, key: str, parts: Mapping[str, bytes], fingerprint: str) -> str | None:
        """Return the class of an intact sample; report what is wrong with another."""
        try:
            if key in self.keys:
                raise DamagedError("key occurs twice")
            return _checked_record(key, parts, fingerprint).class_name
        except DamagedError as error:
            self.report(name.tar, f"sample {key}: {error}")
            return None
        finally:
            self.keys.add(key)

    def listed(self, marker: Marker, row: ShardRow, fingerprint: str) -> None:
        """Check a shard's marker against its row of the manifest."""
        if ShardRow.of(marker) != row:
            self.report(marker.shard, "its marker and the manifest disagree")
        if marker.fingerprint != fingerprint:
            self.report(marker.shard, "belongs to another fingerprint than the manifest")

    def totals(self, manifest: Manifest) -> None:
        """Check counts and the files beside the shards against the manifest."""
        for row in manifest.classes:
            expected, counted = row.synthetic + row.real, self.counts[row.class_name]
            if counted != expected:
                self.report(MANIFEST, f"says {expected} images of {row.class_name!r}, the shards hold {counted}")
        for name, sha256 in manifest.files.items():
            if not storage.is_file(self.out / name):
                self.report(name, "missing")
            elif storage.sha256_file(self.out / name) != sha256:
                self.report(name, "damaged: its hash is not the manifest's")


def _samples(tar: bytes) -> Iterator[tuple[str, dict[str, bytes]]]:
    """Yield the key and the files of each sample of a tar file."""
    with tarfile.open(fileobj=io.BytesIO(tar), mode="r:") as archive:
        key, parts = "", dict[str, bytes]()
        for member in archive:
            file = archive.extractfile(member)
            name, _, ending = member.name.partition(".")
            if name != key and parts:
                yield key, parts
                parts = {}
            key = name
            parts[ending] = file.read() if file else b""
        if parts:
            yield key, parts


def _checked_record(key: str, parts: Mapping[str, bytes], fingerprint: str) -> SampleRecord:
    """Return the record of a sample.

    Raises:
        DamagedError: saying what is wrong with the sample.
    """
    label = SAMPLE_KEY.fullmatch(key)
    if not label:
        raise DamagedError("its key is not CLASSINDEX-ORDINAL")
    if len(parts) != 3 or not {"cls", "json"} <= parts.keys():
        raise DamagedError(f"holds {sorted(parts)} instead of an image, cls and json")
    record = SampleRecord.from_json(parts["json"])
    if record.run != fingerprint:
        raise DamagedError("it belongs to another fingerprint")
    if not parts["cls"].decode("ascii", "replace") == str(record.label) == str(int(label[1])):
        raise DamagedError("key, cls and json disagree about the label")
    return record
