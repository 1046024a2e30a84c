"""What lies beside the shards: markers, manifest, index files and the dataset card."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rebalance import files
from rebalance.errors import DamagedError, InputError
from rebalance.filtering import ClassCalibration
from rebalance.frechet import FrechetResult
from rebalance.shards.make import ShardName
from rebalance.shards.request import REAL, Request
from rebalance.version import __version__

MANIFEST = "manifest.json"
REQUEST = "generation.json"
_MARKER_FIELDS = {"shard", "fingerprint", "images", "counts", "rejects", "shortfall", "moments", "bytes", "sha256"}


@dataclass(frozen=True)
class About:
    """What a reader of an output wants to know beside its request.

    Attributes:
        classes: all classes, in label order.
        method: what made the images.
        origin: where they come from, a sentence for the card.
        validation: share and seed of the images that were held out, where the data set has no val split.
        square: how real images become square.
        features: the features that evaluations take by default: extractor, input size, layer.
        beside: files of the output beside the usual ones.
    """

    classes: tuple[str, ...]
    method: str
    origin: str
    validation: Mapping[str, Any]
    square: str
    features: Mapping[str, Any]
    beside: tuple[str, ...] = ()


@dataclass(frozen=True)
class Tally:
    """What the markers of shards add up to, by class.

    Attributes:
        synthetic: synthetic images.
        real: real images.
        rejects: rejected images by reason.
        shortfall: slots that no candidate could fill.
    """

    synthetic: Mapping[str, int]
    real: Mapping[str, int]
    rejects: dict[str, dict[str, int]]
    shortfall: dict[str, int]


def tally(markers: Iterable[tuple[ShardName, Mapping[str, Any]]]) -> Tally:
    """Add up the markers of shards."""
    synthetic, real, shortfall = Counter[str](), Counter[str](), Counter[str]()
    rejects: dict[str, Counter[str]] = {}
    for name, marker in markers:
        (real if name.kind == REAL else synthetic).update(marker["counts"])
        shortfall.update(marker["shortfall"])
        for class_name, reasons in marker["rejects"].items():
            rejects.setdefault(class_name, Counter()).update(reasons)
    return Tally(synthetic, real, {name: dict(reasons) for name, reasons in sorted(rejects.items())}, dict(shortfall))


def read_marker(out: Path, name: ShardName) -> dict[str, Any]:
    """Read a shard's done-marker.

    Raises:
        DamagedError: missing or damaged.
    """
    marker = files.read_sealed_json(out / name.marker)
    if marker.keys() != _MARKER_FIELDS:
        raise DamagedError(f"{out / name.marker} is of another version")
    return marker


def manifest_of(synthetic: Path, what: str = "SYNTHETIC") -> dict[str, Any]:
    """Return the manifest of an output of `generate` or `filter`, empty for anything else.

    Raises:
        InputError: the output, which is called `what`, is not complete.
    """
    if (synthetic / MANIFEST).is_file() and (synthetic / REQUEST).is_file():
        return files.read_sealed_json(synthetic / MANIFEST)
    if (synthetic / REQUEST).is_file():
        raise InputError(
            f"{what} is not complete: it has no manifest.json",
            value=str(synthetic),
            remedy="Run the command that began it again",
        )
    return {}


def write_manifest(
    out: Path,
    about: About,
    request: Request,
    calibrations: Mapping[str, ClassCalibration],
    finished: Mapping[str, FrechetResult],
    names: Sequence[ShardName],
) -> None:
    """Write manifest, index files and dataset card of a complete output; the manifest comes last."""
    markers = {name: read_marker(out, name) for name in names}
    # What other tools read names no shard without images: some of them stop at one.
    filled = [marker for marker in markers.values() if marker["images"]]
    files.write_json(out / "index.json", _wids_index(about, filled))
    files.write_json(out / "_info.json", _timm_info(filled))
    manifest = _manifest(about, request, calibrations, finished, markers)
    files.write_text(out / "README.md", _card(manifest, about.origin, filled))
    beside = ("README.md", "_info.json", "index.json", REQUEST, *about.beside)
    files.write_sealed_json(
        out / MANIFEST, {**manifest, "files": {name: files.sha256_file(out / name) for name in beside}}
    )


def _manifest(
    about: About,
    request: Request,
    calibrations: Mapping[str, ClassCalibration],
    finished: Mapping[str, FrechetResult],
    markers: Mapping[ShardName, dict[str, Any]],
) -> dict[str, Any]:
    total = tally(markers.items())
    classes = [
        {
            "class": name,
            "label": label,
            "synthetic": total.synthetic.get(name, 0),
            "real": total.real.get(name, 0),
            "shortfall": total.shortfall.get(name, 0),
        }
        for label, name in enumerate(about.classes)
    ]
    return {
        "version": __version__,
        "fingerprint": request.fingerprint,
        "request": request.to_json(),
        "validation": dict(about.validation),
        "square": about.square,
        "features": dict(about.features),
        "images": sum(marker["images"] for marker in markers.values()),
        "classes": classes,
        "rejects": total.rejects,
        "calibration": {name: calibration.to_json() for name, calibration in calibrations.items()},
        "finished": {name: asdict(distance) for name, distance in finished.items()},
        "shards": [{key: marker[key] for key in ("shard", "images", "bytes", "sha256")} for marker in markers.values()],
    }


def _wids_index(about: About, markers: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    shards = [{"url": marker["shard"], "nsamples": marker["images"], "filesize": marker["bytes"]} for marker in markers]
    return {"__kind__": "wids-shard-index-v1", "wids_version": 1, "name": about.method, "shardlist": shards}


def _timm_info(markers: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    train = {
        "name": "train",
        "filenames": [marker["shard"] for marker in markers],
        "shard_lengths": [marker["images"] for marker in markers],
        "num_samples": sum(marker["images"] for marker in markers),
    }
    return {"splits": {"train": train}}


def _cell(text: str) -> str:
    """A class name for a Markdown table."""
    printable = "".join(character if character.isprintable() else " " for character in text)
    return printable.replace("|", r"\|")


def _card(manifest: Mapping[str, Any], origin: str, filled: Sequence[Mapping[str, Any]]) -> str:
    """The dataset card, with the front matter that the Hugging Face hub reads."""
    named = "".join(f"\n  - {marker['shard']}" for marker in filled)
    data_files = named if 0 < len(filled) < len(manifest["shards"]) else ' "*.tar"'
    rows = "\n".join(
        f"| {row['label']} | {_cell(row['class'])} | {row['synthetic']} | {row['real']} |"
        for row in manifest["classes"]
    )
    return f"""---
tags:
- synthetic
- webdataset
task_categories:
- image-classification
configs:
- config_name: default
  data_files:{data_files}
---
# Rebalanced images

{manifest["images"]} images in {len(manifest["shards"])} WebDataset shards, made by
rebalance {manifest["version"]} (`rebalance-images` on PyPI). Fingerprint `{manifest["fingerprint"]}`.

| label | class | synthetic | real |
|---|---|---|---|
{rows}

Every sample has an image, `cls` (the label) and `json` with `class`, `label`, `synthetic`, `method`, `run`, `source`,
`source_class`, `reference`, `modality`, `seed`, `candidate`, `scores`, `width` and `height`. Scores: `outlier`
(distance from the real images, over the largest allowed), `confidence` (probability of the class), `similarity` (cosine
to the most similar real train image), `influence` (share of a pool of candidates that does less to the Fréchet
distance). A score of -1 was not measured; `modality` is -1 for an image outside training, `candidate` is -1 for a real
one.

{origin} They must not be used to test a classifier.
"""
