"""What decides every byte of an output, and its fingerprint."""

from __future__ import annotations

import platform
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

import numpy as np
import PIL
import torch

from rebalance import files, images
from rebalance.features import FeatureExtractor
from rebalance.filtering import ClassCalibration, Gates
from rebalance.generation import LoadedRun

SYNTHETIC, REAL = "synthetic", "real"


@dataclass(frozen=True, kw_only=True)
class Request:
    """Everything that changes a byte of an output, whatever its images come from.

    Attributes:
        counts: images of each class that is not withheld, in label order: wanted ones, or those to be filtered.
        withheld: withheld classes and why.
        calibration: SHA-256 of the calibration, "" without one.
        gates: the gates, as plain values.
        features: name and version of the features in which images are judged, "" where they are not.
        shard_size: images of a shard.
        file_format: "jpg", "png" or "webp".
        quality: 1 to 100; png ignores it.
        seed: the seed.
        device: "cpu" with its architecture and vector instructions, or "cuda" with the GPU's name.
        libraries: versions that floating-point results and encoded bytes depend on.
    """

    counts: Mapping[str, int]
    withheld: Mapping[str, str]
    calibration: str
    gates: Mapping[str, Any]
    features: str
    shard_size: int
    file_format: str
    quality: int
    seed: int
    device: str
    libraries: Mapping[str, str]

    def to_json(self) -> dict[str, Any]:
        """Return the request as plain values."""
        return asdict(self)

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of the request."""
        return files.sha256_bytes(files.canonical_json(self.to_json()).encode())


@dataclass(frozen=True, kw_only=True)
class GenerationRequest(Request):
    """A request to `generate`.

    Attributes:
        run: fingerprint of the run.
        include_real: whether the real train images come along.
        generation: the recipe's generation section, the number of threads among it.
    """

    run: Mapping[str, str]
    include_real: bool
    generation: Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class FilterRequest(Request):
    """A request to `filter`.

    Attributes:
        images: hash and number of the images, files that cannot be used by reason, and the fingerprint of the output
            that they are, "" when they are none.
        original: whether the images' own bytes are kept.
        real: hash of the real data set with its splits.
        view: how all images are looked at.
        filtering: how classes are calibrated.
        threads: CPU threads.
    """

    images: Mapping[str, Any]
    original: bool
    real: str
    view: Mapping[str, Any]
    filtering: Mapping[str, Any]
    threads: int


def make_request(
    run: LoadedRun,
    counts: Mapping[str, int],
    calibrations: Mapping[str, ClassCalibration],
    gates: Gates,
    extractor: FeatureExtractor | None,
    *,
    shard_size: int,
    file_format: str,
    quality: int,
    seed: int,
    include_real: bool,
    device: torch.device,
) -> GenerationRequest:
    """Build the request of an output of a run."""
    return GenerationRequest(
        run=run.fingerprint,
        include_real=include_real,
        generation=asdict(run.recipe.generation),
        **common_parts(counts, calibrations, gates, extractor, shard_size, file_format, quality, seed, device),
    )


def common_parts(
    counts: Mapping[str, int],
    calibrations: Mapping[str, ClassCalibration],
    gates: Gates,
    extractor: FeatureExtractor | None,
    shard_size: int,
    file_format: str,
    quality: int,
    seed: int,
    device: torch.device,
) -> dict[str, Any]:
    """Return what every request says; withheld classes lose their images."""
    withheld = {name: c.reason for name, c in calibrations.items() if c.withheld}
    stored = {name: c.to_json() for name, c in calibrations.items()}
    return {
        "counts": {name: n for name, n in counts.items() if name not in withheld},
        "withheld": withheld,
        "calibration": files.sha256_bytes(files.canonical_json(stored).encode()) if stored else "",
        "gates": gates.to_json(),
        "features": f"{extractor.name} {extractor.version}".strip() if extractor else "",
        "shard_size": shard_size,
        "file_format": file_format,
        "quality": quality if file_format != "png" else 0,
        "seed": seed,
        "device": device_kind(device),
        "libraries": {
            "torch": torch.__version__,
            "numpy": np.__version__,
            "pillow": PIL.__version__,
            "encoder": images.encoder_version(file_format),
        },
    }


def device_kind(device: torch.device) -> str:
    """Return what of a device decides how floating-point results are rounded."""
    if device.type == "cuda":
        return f"cuda {torch.cuda.get_device_name(device)}"
    return f"{device.type} {platform.machine()} {torch.backends.cpu.get_cpu_capability()}"
