"""Synthetic images of any origin, and real ones brought to the same view, so that nothing but the pictures differs."""

from __future__ import annotations

import functools
import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from rebalance import files, images, metrics
from rebalance.config import EXTRACTORS, FeatureOptions
from rebalance.errors import InputError
from rebalance.index import ImageIndex, build_index
from rebalance.index.table import SPLITS
from rebalance.shards import read_synthetic
from rebalance.shards.manifest import MANIFEST, REQUEST

_MAX_SIDE_PX = 1024


@dataclass(frozen=True)
class View:
    """How images are looked at, the same for real and synthetic ones: as colour squares of one size.

    Attributes:
        size_px: their side.
        square: how other shapes become square.
        encoding: format and quality that real images go through, as the synthetic ones have; None: none.
    """

    size_px: int
    square: str
    encoding: tuple[str, int] | None

    def of_real(self, image: Image.Image) -> np.ndarray:
        """Bring a real image to the synthetic ones' shape and through their file format."""
        pixels = self.of_synthetic(image)
        if self.encoding is None:
            return pixels
        if image.mode == "L":
            pixels = pixels[..., :1]
        return self.of_synthetic(Image.open(io.BytesIO(images.encode(pixels, *self.encoding))))

    def of_synthetic(self, image: Image.Image) -> np.ndarray:
        """Bring an image to the shape, (size_px, size_px, 3) uint8."""
        return images.to_square(image, self.size_px, 3, self.square)


@dataclass(frozen=True)
class Picture:
    """A synthetic image: its larger side, and how to get it."""

    side_px: int
    load: Callable[[], Image.Image]


def manifest_of(synthetic: Path) -> dict[str, Any]:
    """Return the manifest of an output of `generate`, empty for anything else."""
    if (synthetic / MANIFEST).is_file() and (synthetic / REQUEST).is_file():
        return files.read_sealed_json(synthetic / MANIFEST)
    if (synthetic / REQUEST).is_file():
        raise InputError(
            "SYNTHETIC is not complete: it has no manifest.json",
            value=str(synthetic),
            remedy="Run the same `rebalance generate` again",
        )
    return {}


def pictures_of_output(out: Path, max_images: int) -> dict[str, list[Picture]]:
    """Return the first synthetic images of each class, whose order is seeded."""
    found: dict[str, list[Picture]] = {}
    for image in read_synthetic(out):
        kept = found.setdefault(image.fields["class"], [])
        if len(kept) < max_images:
            kept.append(Picture(max(image.picture.size), image.picture.copy))
    return found


def pictures_of_folder(path: Path, max_images: int, seed: int, progress: bool) -> dict[str, list[Picture]]:
    """Return a seeded draw of the images of each class; each is decoded when it is looked at."""
    index, found = build_index(path, progress=progress), {}
    sides = np.maximum(index.column("width"), index.column("height"))
    for label, name in enumerate(index.classes):
        rows = np.concatenate([index.rows(split, name) for split in SPLITS])
        if len(rows):
            chosen = metrics.at_most(rows, max_images, seed, label).tolist()
            found[name] = [Picture(int(sides[row]), functools.partial(index.load, row)) for row in chosen]
    return found


def check_classes(made: Mapping[str, Sequence[Picture]], index: ImageIndex, split: str) -> None:
    """Check that there is something to compare.

    Raises:
        InputError: no synthetic image, of a class that is unknown, or no real image of any of their classes.
    """
    if not made:
        raise InputError("there is no synthetic image")
    unknown = sorted(name for name in made if name not in index.classes)
    if unknown:
        raise InputError(
            "synthetic images of classes that DATA does not have", value=unknown[:5], allowed=", ".join(index.classes)
        )
    absent = [name for name in made if not len(index.rows(split, name))]
    if len(absent) == len(made):
        raise InputError(f"DATA has no {split} image of any class that has synthetic ones", value=absent[:5])


def view_of(made: Mapping[str, Sequence[Picture]], manifest: Mapping[str, Any], square: str | None) -> View:
    """Return the view in which all images are compared: that of the largest synthetic one, within reason."""
    request = manifest.get("request", {})
    largest = max(picture.side_px for pictures in made.values() for picture in pictures)
    return View(
        size_px=min(largest, _MAX_SIDE_PX),
        square=square or manifest.get("square", "crop"),
        encoding=(request["file_format"], request["quality"]) if request else None,
    )


def feature_options(
    manifest: Mapping[str, Any], extractor: str | None, input_px: int | None, weights: str | Path | None
) -> FeatureOptions:
    """Return the features asked for, else the run's, else the default."""
    known = manifest.get("features", {})
    if input_px is None and "input_px" in known:
        input_px = known["input_px"]
    return FeatureOptions(
        extractor=extractor if extractor in EXTRACTORS else known.get("extractor", "efficientnet"),
        input_px=224 if input_px is None else input_px,
        layer=known.get("layer") if input_px == known.get("input_px") else None,
        weights=str(weights) if weights else "",
    )
