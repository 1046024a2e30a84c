"""`verify`: every shard against its marker and the manifest."""

from __future__ import annotations

import json
import re
import tarfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

from rebalance import files
from rebalance.errors import DamagedError, InputError
from rebalance.shards.make import ShardName
from rebalance.shards.manifest import MANIFEST, REQUEST, read_marker
from rebalance.shards.moments import read_moments

FIELDS = {
    "class": str, "label": int, "synthetic": bool, "method": str, "run": str, "source": str, "source_class": str,
    "reference": str, "modality": int, "seed": int, "candidate": int, "scores": dict, "width": int, "height": int,
}  # fmt: skip
"""Fields of a sample's JSON and their types."""

_KEY = re.compile(r"\d{5,}-\d{9,}")


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
    problems: tuple[files.Problem, ...]

    @property
    def exit_code(self) -> int:
        """0 when all is well, else 1."""
        return 1 if self.problems else 0

    def to_json(self) -> dict[str, Any]:
        """Return the verification as plain values."""
        return asdict(self)


def verify(out: str | Path, progress: bool = False) -> Verification:
    """Check hashes, counts, keys and fields of every shard of an output.

    Args:
        out: folder of the shards.
        progress: show a progress bar on stderr.

    Raises:
        InputError: not a folder of shards made by `generate` or `filter`.
    """
    out = files.existing_directory(Path(out), "OUT")
    if not (out / REQUEST).is_file() and not (out / MANIFEST).is_file():
        raise InputError(
            "OUT holds no shards of this tool", value=str(out), allowed="a folder made by `generate` or `filter`"
        )
    problems: list[files.Problem] = []
    counts: Counter[str] = Counter()
    keys: set[str] = set()
    manifest = _manifest(out, problems)
    rows = {row["shard"]: row for row in manifest.get("shards", [])}
    names = _names(out, rows, problems)
    for name in tqdm(names, desc="verify", unit="shard", disable=not progress, leave=False):
        try:
            found = _check_shard(out, name, keys, problems)
            counts.update(found)
            if name.tar in rows:
                _check_listed(read_marker(out, name), rows[name.tar], manifest["fingerprint"], problems)
        except DamagedError as error:
            problems.append(files.Problem(name.tar, str(error)))
    _check_totals(out, manifest, counts, problems)
    return Verification(len(names), counts.total(), dict(sorted(counts.items())), tuple(problems))


def _manifest(out: Path, problems: list[files.Problem]) -> dict[str, Any]:
    """The manifest; empty when it is missing or damaged."""
    try:
        return files.read_sealed_json(out / MANIFEST)
    except DamagedError as error:
        problems.append(files.Problem(MANIFEST, f"{error} Run the command that began it again."))
        return {}


def _check_listed(marker: dict[str, Any], row: dict[str, Any], fingerprint: str, problems: list[files.Problem]) -> None:
    """Hold a shard's marker against its line of the manifest."""
    if any(row[field] != marker[field] for field in ("images", "bytes", "sha256")):
        problems.append(files.Problem(marker["shard"], "its marker and the manifest disagree"))
    if marker["fingerprint"] != fingerprint:
        problems.append(files.Problem(marker["shard"], "belongs to another fingerprint than the manifest"))


def _names(out: Path, rows: dict[str, dict[str, Any]], problems: list[files.Problem]) -> list[ShardName]:
    """All shards that are there or should be, by manifest, markers and tar files."""
    listed = {Path(tar).stem for tar in rows}
    present = {path.stem for pattern in ("*.tar", "*.json") for path in out.glob(pattern)}
    stems = sorted(stem for stem in listed | present if re.fullmatch(r"(synthetic|real)-\d{6,}", stem))
    for stem in stems:
        if listed and stem not in listed:
            problems.append(files.Problem(f"{stem}.tar", "not in the manifest"))
    return [ShardName(stem.partition("-")[0], int(stem.partition("-")[2])) for stem in stems]


def _check_shard(out: Path, name: ShardName, keys: set[str], problems: list[files.Problem]) -> Counter[str]:
    marker, path = read_marker(out, name), out / name.tar
    if not path.is_file():
        raise DamagedError(f"{name.tar} is missing")
    if path.stat().st_size != marker["bytes"] or files.sha256_file(path) != marker["sha256"]:
        raise DamagedError(
            f"{name.tar} is damaged: its hash is not its marker's",
            remedy="Run the command that began it again, which makes it anew",
        )
    _check_moments(out, name, marker, problems)
    counts: Counter[str] = Counter()
    try:
        for key, parts in _samples(path):
            wrong = _check_sample(key, parts, marker["fingerprint"])
            if key in keys:
                wrong = "key occurs twice"
            keys.add(key)
            if wrong:
                problems.append(files.Problem(name.tar, f"sample {key}: {wrong}"))
            else:
                counts[json.loads(parts["json"])["class"]] += 1
    except (tarfile.TarError, OSError) as error:
        raise DamagedError(f"{name.tar} cannot be read: {error}") from error
    if dict(counts) != marker["counts"] or counts.total() != marker["images"]:
        problems.append(files.Problem(name.tar, f"holds {dict(counts)}, its marker says {marker['counts']}"))
    return counts


def _check_moments(out: Path, name: ShardName, marker: dict[str, Any], problems: list[files.Problem]) -> None:
    try:
        for class_name, moments in read_moments(out / name.moments, marker["moments"]).items():
            if moments.n != marker["counts"][class_name]:
                problems.append(files.Problem(name.moments, f"is not of the shard's images of {class_name!r}"))
    except DamagedError as error:
        problems.append(files.Problem(name.moments, str(error)))


def _samples(path: Path) -> Iterator[tuple[str, dict[str, bytes]]]:
    with tarfile.open(path, "r:") as archive:
        key, parts = "", {}
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


def _check_sample(key: str, parts: dict[str, bytes], fingerprint: str) -> str:
    """Return what is wrong with a sample, "" when nothing is."""
    if not _KEY.fullmatch(key):
        return "its key is not CLASSINDEX-ORDINAL"
    if len(parts) != 3 or not {"cls", "json"} <= parts.keys():
        return f"holds {sorted(parts)} instead of an image, cls and json"
    try:
        fields = json.loads(parts["json"])
    except ValueError:
        return "its json does not parse"
    if not isinstance(fields, dict) or fields.keys() != FIELDS.keys():
        return "its json has other fields"
    wrong = [name for name, kind in FIELDS.items() if type(fields[name]) is not kind]
    if wrong:
        return f"its json has wrong types in {', '.join(wrong)}"
    if fields["run"] != fingerprint:
        return "it belongs to another fingerprint"
    if not parts["cls"].decode("ascii", "replace") == str(fields["label"]) == str(int(key.partition("-")[0])):
        return "key, cls and json disagree about the label"
    return ""


def _check_totals(out: Path, manifest: dict[str, Any], counts: Counter[str], problems: list[files.Problem]) -> None:
    """Hold counts and the files beside the shards against the manifest."""
    if not manifest:
        return
    expected = {row["class"]: row["synthetic"] + row["real"] for row in manifest["classes"]}
    for name, number in expected.items():
        if counts[name] != number:
            problems.append(
                files.Problem(MANIFEST, f"says {number} images of {name!r}, the shards hold {counts[name]}")
            )
    for name, sha256 in manifest["files"].items():
        if not (out / name).is_file():
            problems.append(files.Problem(name, "missing"))
        elif files.sha256_file(out / name) != sha256:
            problems.append(files.Problem(name, "damaged: its hash is not the manifest's"))
