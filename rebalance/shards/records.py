"""Records of an output: a sample's JSON, a shard's done-marker, the manifest; each has one reader and one writer."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from rebalance import storage
from rebalance.config import FeatureOptions
from rebalance.errors import DamagedError, InputError
from rebalance.generation.provenance import REFERENCES, Origin, Provenance
from rebalance.measures.frechet import FrechetResult
from rebalance.shards.names import MANIFEST, REQUEST, SYNTHETIC, ShardName
from rebalance.shards.request import Request, request_from_json
from rebalance.shards.versions import version_fields, without_version, written_by

SAMPLE_KEY = re.compile(r"(\d{5,})-(\d{9,})")
"""Keys of samples: CLASSINDEX-ORDINAL."""

FILTERED, REAL_METHOD = "filter", "real"
"""Methods of images that this package was given: by a caller of `filter`, and as real train images."""


def sample_key(label: int, ordinal: int) -> str:
    """Return the key of a sample, padded so that keys of one length sort by number."""
    return f"{label:05d}-{ordinal:09d}"


@dataclass(frozen=True, kw_only=True)
class SampleRecord:
    """The JSON beside an image; the same fields in every sample, none of them null.

    Attributes:
        class_name: the image's class ("class" in the JSON).
        label: number of the class.
        synthetic: False for a real train image.
        method: name of the method that made it, "filter" for a given image, "real" for a real one.
        run: fingerprint of the output's request.
        origin: what it was made from, see `Provenance`.
        source: name of its source image, of the file itself where it is one, "" without.
        references: names of its reference images ("reference" in the JSON, as one text).
        source_class: class of its source, or the class that it was made for.
        modality: number of its source's modality within its class, -1 where there is none.
        seed: seed of the output.
        candidate: number of the candidate of its slot, -1 where there was none.
        scores: what each check measured, -1 where it measured nothing.
        width: in pixels.
        height: in pixels.
    """

    class_name: str
    label: int
    synthetic: bool
    method: str
    run: str
    origin: Origin
    source: str
    references: tuple[str, ...]
    source_class: str
    modality: int
    seed: int
    candidate: int
    scores: Mapping[str, float]
    width: int
    height: int

    @property
    def provenance(self) -> Provenance:
        """Return what the image was made from."""
        if self.origin != "images":
            return Provenance(self.origin)
        return Provenance("images", tuple(name for name in (self.source, *self.references) if name))

    def to_json(self) -> dict[str, Any]:
        """Return the fields as plain values."""
        return {
            "class": self.class_name,
            "label": self.label,
            "synthetic": self.synthetic,
            "method": self.method,
            "run": self.run,
            "origin": self.origin,
            "source": self.source,
            "source_class": self.source_class,
            "reference": REFERENCES.join(self.references),
            "modality": self.modality,
            "seed": self.seed,
            "candidate": self.candidate,
            "scores": dict(self.scores),
            "width": self.width,
            "height": self.height,
        }

    @classmethod
    def from_json(cls, data: bytes | Mapping[str, Any]) -> SampleRecord:
        """Read the fields of a sample, also of one that version 0.1 wrote, which had no `origin`.

        Raises:
            DamagedError: it does not parse, or has other fields or types.
        """
        values = _parsed(data)
        if "origin" not in values:
            values = {**values, "origin": _origin_of_0_1(values)}
        if values.keys() != SAMPLE_FIELDS.keys():
            raise DamagedError("its json has other fields")
        wrong = [name for name, kind in SAMPLE_FIELDS.items() if type(values[name]) is not kind]
        if wrong:
            raise DamagedError(f"its json has wrong types in {', '.join(wrong)}")
        if values["origin"] not in _ORIGINS or not all(type(score) is float for score in values["scores"].values()):
            raise DamagedError("its json has an unknown origin or scores that are no numbers")
        reference = values["reference"]
        named = {name: value for name, value in values.items() if name not in ("class", "reference")}
        return cls(
            class_name=values["class"], references=tuple(reference.split(REFERENCES)) if reference else (), **named
        )


SAMPLE_FIELDS: Mapping[str, type] = {
    "class": str, "label": int, "synthetic": bool, "method": str, "run": str, "origin": str, "source": str,
    "source_class": str, "reference": str, "modality": int, "seed": int, "candidate": int, "scores": dict,
    "width": int, "height": int,
}  # fmt: skip
"""Fields of a sample's JSON and their types."""

_ORIGINS: tuple[Origin, ...] = ("images", "latent", "file")


def _parsed(data: bytes | Mapping[str, Any]) -> Mapping[str, Any]:
    try:
        values = json.loads(data) if isinstance(data, bytes) else data
    except ValueError as error:
        raise DamagedError("its json does not parse") from error
    if not isinstance(values, Mapping):
        raise DamagedError("its json has other fields")
    return values


def _origin_of_0_1(values: Mapping[str, Any]) -> Origin:
    """Return what a sample of version 0.1 was made from; a method without references names its source alone."""
    if values.get("reference"):
        return "images"
    return "file" if values.get("method") in (FILTERED, REAL_METHOD) else "images"


@dataclass(frozen=True)
class MomentsFile:
    """The file with the moments of a shard's images.

    Attributes:
        classes: classes in it, in its order.
        sha256: its hash.
    """

    classes: tuple[str, ...]
    sha256: str


@dataclass(frozen=True, kw_only=True)
class Marker:
    """The done-marker of a shard, written after everything else of it.

    Attributes:
        shard: name of the tar file.
        fingerprint: of the output's request.
        images: samples in the shard.
        counts: samples of each class.
        rejects: rejected images of each class by reason.
        shortfall: slots of each class that no candidate could fill.
        moments: the file with the moments of its images; None without one.
        bytes: size of the tar file.
        sha256: hash of the tar file.
    """

    shard: str
    fingerprint: str
    images: int
    counts: Mapping[str, int]
    rejects: Mapping[str, Mapping[str, int]]
    shortfall: Mapping[str, int]
    moments: MomentsFile | None
    bytes: int
    sha256: str

    def to_json(self) -> dict[str, Any]:
        """Return the marker as plain values."""
        moments = {"classes": list(self.moments.classes), "sha256": self.moments.sha256} if self.moments else {}
        return {**version_fields(), **asdict(self), "moments": moments}

    @classmethod
    def from_json(cls, values: Mapping[str, Any], path: Path) -> Marker:
        """Read a marker, also one of version 0.1.

        Raises:
            DamagedError: another version wrote it; the message names the version and `path`.
        """
        rest = without_version(values, path)
        if rest.keys() != cls.__dataclass_fields__.keys():
            raise DamagedError(f"{path} is of another version: {written_by(values)} wrote it")
        moments = rest["moments"]
        named = MomentsFile(tuple(moments["classes"]), moments["sha256"]) if moments else None
        return cls(**{**rest, "moments": named})


def read_marker(out: Path, name: ShardName) -> Marker:
    """Read a shard's done-marker.

    Raises:
        DamagedError: missing or damaged, or another version wrote it.
    """
    path = out / name.marker
    return Marker.from_json(storage.read_sealed_json(path), path)


@dataclass(frozen=True)
class ValidationShare:
    """Which images are held out where a data set has no val split.

    Attributes:
        fraction: share of each class.
        seed: seed of the draw.
    """

    fraction: float
    seed: int


@dataclass(frozen=True)
class ClassRow:
    """A class in the manifest.

    Attributes:
        class_name: its name ("class" in the JSON).
        label: its number.
        synthetic: synthetic images.
        real: real images.
        shortfall: slots that no candidate could fill.
    """

    class_name: str
    label: int
    synthetic: int
    real: int
    shortfall: int

    def to_json(self) -> dict[str, Any]:
        """Return the row as plain values."""
        values = asdict(self)
        return {"class": values.pop("class_name"), **values}


@dataclass(frozen=True)
class ShardRow:
    """A shard in the manifest, see `Marker`."""

    shard: str
    images: int
    bytes: int
    sha256: str

    @classmethod
    def of(cls, marker: Marker) -> ShardRow:
        """Return the row of a shard."""
        return cls(marker.shard, marker.images, marker.bytes, marker.sha256)


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """What a complete output holds; written last.

    Attributes:
        version: version of this package that wrote it.
        fingerprint: of its request.
        request: its request.
        validation: which real images were held out, where the data set has no val split.
        square: how real images became square.
        features: in which evaluations compare by default.
        images: samples of all shards.
        classes: all classes, in label order.
        rejects: rejected images of each class by reason.
        calibration: what was measured of each class, as plain values, for whoever reads the file.
        finished: distance of the finished images to the real train images, by class.
        shards: all shards.
        files: hashes of the files beside the shards.
    """

    version: str
    fingerprint: str
    request: Request
    validation: ValidationShare
    square: str
    features: FeatureOptions
    images: int
    classes: tuple[ClassRow, ...]
    rejects: Mapping[str, Mapping[str, int]]
    calibration: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    finished: Mapping[str, FrechetResult] = field(default_factory=dict)
    shards: tuple[ShardRow, ...] = ()
    files: Mapping[str, str] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Return the manifest as plain values."""
        return {
            **version_fields(),
            "fingerprint": self.fingerprint,
            "request": self.request.to_json(),
            "validation": asdict(self.validation),
            "square": self.square,
            "features": {name: getattr(self.features, name) for name in _FEATURES},
            "images": self.images,
            "classes": [row.to_json() for row in self.classes],
            "rejects": {name: dict(reasons) for name, reasons in self.rejects.items()},
            "calibration": dict(self.calibration),
            "finished": {name: asdict(distance) for name, distance in self.finished.items()},
            "shards": [asdict(row) for row in self.shards],
            "files": dict(self.files),
        }

    @classmethod
    def from_json(cls, values: Mapping[str, Any], path: Path) -> Manifest:
        """Read a manifest, also one of version 0.1.

        Raises:
            DamagedError: another version wrote it; the message names the version and `path`.
        """
        rest = without_version(values, path)
        try:
            rows = ({**row, "class_name": row["class"]} for row in rest["classes"])
            known = {key: value for key, value in rest.items() if key in cls.__dataclass_fields__}
            return cls(
                **{
                    **known,
                    "version": written_by(values),
                    "request": request_from_json(rest["request"]),
                    "validation": ValidationShare(**rest["validation"]),
                    "features": FeatureOptions(**{key: rest["features"][key] for key in _FEATURES}),
                    "classes": tuple(ClassRow(**{k: v for k, v in row.items() if k != "class"}) for row in rows),
                    "finished": {name: FrechetResult(**distance) for name, distance in rest["finished"].items()},
                    "shards": tuple(ShardRow(**row) for row in rest["shards"]),
                }
            )
        except (KeyError, TypeError, ValueError, InputError) as error:
            raise DamagedError(f"{path} cannot be read: {written_by(values)} wrote it ({error})") from error

    def counts(self) -> dict[str, int]:
        """Return the synthetic images of each class, in label order."""
        return {row.class_name: row.synthetic for row in self.classes}


_FEATURES = ("extractor", "input_px", "layer")


def read_manifest(out: Path) -> Manifest:
    """Read the manifest of a complete output.

    Raises:
        DamagedError: missing or damaged, or another version wrote it.
    """
    return Manifest.from_json(storage.read_sealed_json(out / MANIFEST), out / MANIFEST)


def manifest_of(path: Path, parameter: str) -> Manifest | None:
    """Return the manifest of an output of `generate` or `filter`, None for anything else.

    Raises:
        InputError: the output is not complete; the message names the parameter.
        DamagedError: its manifest is damaged.
    """
    if not storage.is_file(path / REQUEST):
        return None
    if not storage.is_file(path / MANIFEST):
        raise InputError(
            f"`{parameter}` is not complete: it has no {MANIFEST}",
            value=str(path),
            remedy="Run the command that began it again",
        )
    return read_manifest(path)


def synthetic_tars(manifest: Manifest) -> list[str]:
    """Return the names of the shards of synthetic images."""
    return [row.shard for row in manifest.shards if row.shard.startswith(f"{SYNTHETIC}-")]
