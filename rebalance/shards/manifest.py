"""What lies beside the shards: markers, manifest, index files and the dataset card."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rebalance import files
from rebalance.errors import DamagedError
from rebalance.filtering import ClassCalibration
from rebalance.generation import LoadedRun
from rebalance.shards.make import ShardName
from rebalance.shards.request import REAL, GenerationRequest
from rebalance.version import __version__

MANIFEST = "manifest.json"
REQUEST = "generation.json"
_MARKER_FIELDS = {"shard", "fingerprint", "images", "counts", "rejects", "shortfall", "bytes", "sha256"}


def read_marker(out: Path, name: ShardName) -> dict[str, Any]:
    """Read a shard's done-marker.

    Raises:
        DamagedError: missing or damaged.
    """
    marker = files.read_sealed_json(out / name.marker)
    if marker.keys() != _MARKER_FIELDS:
        raise DamagedError(f"{out / name.marker} is of another version")
    return marker


def write_manifest(
    out: Path,
    run: LoadedRun,
    request: GenerationRequest,
    calibrations: Mapping[str, ClassCalibration],
    names: Sequence[ShardName],
) -> None:
    """Write manifest, index files and dataset card of a complete output; the manifest comes last."""
    markers = {name: read_marker(out, name) for name in names}
    files.write_json(out / "index.json", _wids_index(run, markers))
    files.write_json(out / "_info.json", _timm_info(markers))
    manifest = _manifest(run, request, calibrations, markers)
    files.write_text(out / "README.md", _card(manifest))
    beside = {name: files.sha256_file(out / name) for name in ("README.md", "_info.json", "index.json", REQUEST)}
    files.write_sealed_json(out / MANIFEST, {**manifest, "files": beside})


def _manifest(
    run: LoadedRun,
    request: GenerationRequest,
    calibrations: Mapping[str, ClassCalibration],
    markers: Mapping[ShardName, dict[str, Any]],
) -> dict[str, Any]:
    synthetic, real, shortfall = Counter[str](), Counter[str](), Counter[str]()
    for name, marker in markers.items():
        (real if name.kind == REAL else synthetic).update(marker["counts"])
        shortfall.update(marker["shortfall"])
    classes = [
        {"class": name, "label": label, "synthetic": synthetic[name], "real": real[name], "shortfall": shortfall[name]}
        for label, name in enumerate(run.index.classes)
    ]
    return {
        "version": __version__,
        "fingerprint": request.fingerprint,
        "request": request.to_json(),
        "validation": {"fraction": run.recipe.data.val_fraction, "seed": run.recipe.seed},
        "square": run.recipe.data.square,
        "features": {key: getattr(run.recipe.features, key) for key in ("extractor", "input_px", "layer")},
        "images": sum(marker["images"] for marker in markers.values()),
        "classes": classes,
        "calibration": {name: calibration.to_json() for name, calibration in calibrations.items()},
        "shards": [{key: marker[key] for key in ("shard", "images", "bytes", "sha256")} for marker in markers.values()],
    }


def _wids_index(run: LoadedRun, markers: Mapping[ShardName, dict[str, Any]]) -> dict[str, Any]:
    shards = [
        {"url": marker["shard"], "nsamples": marker["images"], "filesize": marker["bytes"]}
        for marker in markers.values()
    ]
    return {"__kind__": "wids-shard-index-v1", "wids_version": 1, "name": run.recipe.method, "shardlist": shards}


def _timm_info(markers: Mapping[ShardName, dict[str, Any]]) -> dict[str, Any]:
    train = {
        "name": "train",
        "filenames": [marker["shard"] for marker in markers.values()],
        "shard_lengths": [marker["images"] for marker in markers.values()],
        "num_samples": sum(marker["images"] for marker in markers.values()),
    }
    return {"splits": {"train": train}}


def _cell(text: str) -> str:
    """A class name for a Markdown table."""
    printable = "".join(character if character.isprintable() else " " for character in text)
    return printable.replace("|", r"\|")


def _card(manifest: Mapping[str, Any]) -> str:
    """The dataset card, with the front matter that the Hugging Face hub reads."""
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
  data_files: "*.tar"
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

Synthetic images are translations of real train images. They must not be used to test a classifier.
"""
