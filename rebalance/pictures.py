"""Synthetic images of any origin, to be compared with real ones."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from rebalance import metrics
from rebalance.errors import InputError
from rebalance.index import ImageIndex, build_index
from rebalance.index.table import SPLITS
from rebalance.shards import read_synthetic
from rebalance.views import View, check_known, view_for


@dataclass(frozen=True)
class Picture:
    """A synthetic image.

    Attributes:
        side_px: its larger side.
        load: how to get it.
        made_from: names of the real images that it is a translation of, source and references, where that is known.
    """

    side_px: int
    load: Callable[[], Image.Image]
    made_from: tuple[str, ...] = ()


def pictures_of_output(out: Path, max_images: int) -> dict[str, list[Picture]]:
    """Return the first synthetic images of each class, whose order is seeded."""
    found: dict[str, list[Picture]] = {}
    for image in read_synthetic(out):
        kept = found.setdefault(image.fields["class"], [])
        if len(kept) < max_images:
            kept.append(Picture(max(image.picture.size), image.picture.copy, image.made_from))
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
    check_known(made, index)
    absent = [name for name in made if not len(index.rows(split, name))]
    if len(absent) == len(made):
        raise InputError(f"DATA has no {split} image of any class that has synthetic ones", value=absent[:5])


def view_of(made: Mapping[str, Sequence[Picture]], manifest: Mapping[str, Any], square: str | None) -> View:
    """Return the view in which all images are compared: that of the largest synthetic one, within reason."""
    request = manifest.get("request", {})
    largest = max(picture.side_px for pictures in made.values() for picture in pictures)
    encoding = (request["file_format"], request["quality"]) if request else None
    return view_for(largest, manifest, square, encoding)
