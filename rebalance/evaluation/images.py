"""Synthetic images of any origin, to be compared with real ones."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from rebalance.errors import InputError
from rebalance.generation.provenance import Provenance
from rebalance.imaging.views import View
from rebalance.index import ImageIndex
from rebalance.index.image_index import SPLITS
from rebalance.measures.sets import at_most
from rebalance.shards import read_synthetic
from rebalance.shards.comparison import check_known, comparison_view
from rebalance.shards.records import Manifest


@dataclass(frozen=True)
class Picture:
    """A synthetic image.

    Attributes:
        side_px: its larger side.
        load: loads it.
        provenance: what it was made from.
    """

    side_px: int
    load: Callable[[], Image.Image]
    provenance: Provenance


def pictures_of_output(out: Path, max_images: int) -> dict[str, list[Picture]]:
    """Return the first synthetic images of each class, whose order is seeded."""
    pictures: dict[str, list[Picture]] = {}
    for image in read_synthetic(out):
        of_class = pictures.setdefault(image.record.class_name, [])
        if len(of_class) < max_images:
            of_class.append(Picture(max(image.picture.size), image.picture.copy, image.record.provenance))
    return pictures


def pictures_of_index(index: ImageIndex, max_images: int, seed: int) -> dict[str, list[Picture]]:
    """Return a seeded draw of the given images of each class; each is decoded when it is loaded."""
    pictures: dict[str, list[Picture]] = {}
    sides = np.maximum(index.column("width"), index.column("height"))
    for label, name in enumerate(index.classes):
        rows = np.concatenate([index.rows(split, name) for split in SPLITS])
        if len(rows):
            drawn = at_most(rows, max_images, seed, label).tolist()
            given = Provenance("file")
            pictures[name] = [Picture(int(sides[row]), functools.partial(index.load, row), given) for row in drawn]
    return pictures


def check_classes(pictures: Mapping[str, Sequence[Picture]], index: ImageIndex, split: str) -> None:
    """Check that there is something to compare.

    Raises:
        InputError: no synthetic image, one of a class that is unknown, or no real image of any of their classes.
    """
    check_known(pictures, index)
    absent = [name for name in pictures if not len(index.rows(split, name))]
    if len(absent) == len(pictures):
        raise InputError(
            f"the real data set has no {split} image of any class that has synthetic ones", value=absent[:5]
        )


def view_of(pictures: Mapping[str, Sequence[Picture]], manifest: Manifest | None, square: str | None) -> View:
    """Return the view in which all images are compared: that of the largest synthetic one, within reason."""
    largest = max(picture.side_px for of_class in pictures.values() for picture in of_class)
    settings = manifest.request.settings if manifest else None
    encoding = (settings.file_format, settings.quality) if settings else None
    return comparison_view(largest, manifest, square, encoding)
