"""What is written beside the shards of a complete output: manifest, index files and the dataset card."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rebalance import storage
from rebalance.config import FeatureOptions
from rebalance.filtering import ClassCalibration
from rebalance.measures.frechet import FrechetResult
from rebalance.shards.card import card_text
from rebalance.shards.names import CARD, MANIFEST, REQUEST, TIMM_INFO, WIDS_INDEX, ShardName
from rebalance.shards.records import ClassRow, Manifest, Marker, ShardRow, ValidationShare
from rebalance.shards.request import Request
from rebalance.shards.totals import Totals
from rebalance.version import __version__


@dataclass(frozen=True)
class About:
    """What an output says of itself beside its request.

    Attributes:
        classes: all classes, in label order.
        method: what made the images.
        origin: where they come from, a sentence for the card.
        validation: which real images were held out, where the data set has no val split.
        square: how real images become square.
        features: the features that evaluations take by default.
        beside: files of the output beside the usual ones.
    """

    classes: tuple[str, ...]
    method: str
    origin: str
    validation: ValidationShare
    square: str
    features: FeatureOptions
    beside: tuple[str, ...] = ()


def write_manifest(
    out: Path,
    about: About,
    request: Request,
    calibrations: Mapping[str, ClassCalibration],
    distances: Mapping[str, FrechetResult],
    markers: Mapping[ShardName, Marker],
) -> None:
    """Write manifest, index files and dataset card of a complete output; the manifest comes last.

    Args:
        out: the output folder.
        about: what it says of itself.
        request: its request.
        calibrations: of its classes.
        distances: of its images to the real train images, by class.
        markers: of all its shards.
    """
    # What other tools read names no shard without images: some of them stop at one.
    filled = [marker for marker in markers.values() if marker.images]
    storage.write_json(out / WIDS_INDEX, _wids_index(about.method, filled))
    storage.write_json(out / TIMM_INFO, _timm_info(filled))
    total = Totals.of(markers)
    manifest = Manifest(
        version=__version__,
        fingerprint=request.fingerprint,
        request=request,
        validation=about.validation,
        square=about.square,
        features=about.features,
        images=sum(marker.images for marker in markers.values()),
        classes=tuple(_class_row(name, label, total) for label, name in enumerate(about.classes)),
        rejects=total.rejects,
        calibration={name: calibration.to_json() for name, calibration in calibrations.items()},
        finished=distances,
        shards=tuple(ShardRow.of(marker) for marker in markers.values()),
    )
    storage.write_text(out / CARD, card_text(manifest, about.origin, [marker.shard for marker in filled]))
    beside = (CARD, TIMM_INFO, WIDS_INDEX, REQUEST, *about.beside)
    hashes = {name: storage.sha256_file(out / name) for name in beside}
    storage.write_sealed_json(out / MANIFEST, {**manifest.to_json(), "files": hashes})


def _class_row(name: str, label: int, total: Totals) -> ClassRow:
    return ClassRow(name, label, *(of.get(name, 0) for of in (total.synthetic, total.real, total.shortfall)))


def _wids_index(name: str, markers: Sequence[Marker]) -> dict[str, Any]:
    shards = [{"url": marker.shard, "nsamples": marker.images, "filesize": marker.bytes} for marker in markers]
    return {"__kind__": "wids-shard-index-v1", "wids_version": 1, "name": name, "shardlist": shards}


def _timm_info(markers: Sequence[Marker]) -> dict[str, Any]:
    train = {
        "name": "train",
        "filenames": [marker.shard for marker in markers],
        "shard_lengths": [marker.images for marker in markers],
        "num_samples": sum(marker.images for marker in markers),
    }
    return {"splits": {"train": train}}
