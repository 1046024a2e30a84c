"""Which image belongs to which modality: clustering, storing, showing."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from rebalance import imaging, storage
from rebalance.errors import DamagedError, InputError
from rebalance.index import ImageIndex
from rebalance.modalities.clustering import cluster

PREVIEW_ROWS = 8


@dataclass(frozen=True)
class Modality:
    """One latent mode of a class.

    Attributes:
        class_name: the data-set class.
        number: its number within the class, the largest mode first.
    """

    class_name: str
    number: int


@dataclass(frozen=True)
class Modalities:
    """The modality of every train image that takes part.

    Attributes:
        table: all modalities; a modality's id is its position here.
        image_ids: (n,) int64, ascending ids of the index.
        modality_ids: (n,) int64, the modality of each.
    """

    table: tuple[Modality, ...]
    image_ids: np.ndarray
    modality_ids: np.ndarray

    def of_class(self, class_name: str) -> tuple[int, ...]:
        """Return the ids of a class's modalities."""
        return tuple(i for i, modality in enumerate(self.table) if modality.class_name == class_name)

    def images_of(self, modality_id: int) -> np.ndarray:
        """Return the image ids of a modality, ascending."""
        return self.image_ids[self.modality_ids == modality_id]

    def of_image(self, image_id: int) -> int:
        """Return the modality of an image, -1 when it took no part."""
        position = int(np.searchsorted(self.image_ids, image_id))
        takes_part = position < len(self.image_ids) and self.image_ids[position] == image_id
        return int(self.modality_ids[position]) if takes_part else -1

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of which image is of which modality, whatever file it is written to."""
        table = [[modality.class_name, modality.number] for modality in self.table]
        rows = [self.image_ids.tolist(), self.modality_ids.tolist()]
        return storage.sha256_bytes(storage.canonical_json([table, rows]).encode())

    def save(self, path: Path, index: ImageIndex) -> None:
        """Write one row an image - id, path, class, modality - as Parquet."""
        numbers = np.array([self.table[i].number for i in self.modality_ids], dtype=np.int64)
        table = pa.table(
            {
                "id": self.image_ids,
                "path": [index.name(int(image_id)) for image_id in self.image_ids],
                "class": [self.table[i].class_name for i in self.modality_ids],
                "modality": numbers,
            }
        )
        with storage.replacing(path) as temporary:
            pq.write_table(table, temporary)

    @classmethod
    def read_from(cls, path: Path) -> Modalities:
        """Read what `save` wrote.

        Raises:
            DamagedError: missing or damaged.
        """
        try:
            with storage.opened(path) as file:
                table = pq.read_table(file)
            classes, numbers = table.column("class").to_pylist(), table.column("modality").to_pylist()
            return _collect(table.column("id").to_numpy(), list(zip(classes, numbers, strict=True)))
        except (OSError, KeyError, ValueError, pa.ArrowException) as error:
            raise DamagedError(f"{path} is missing or damaged: {error}") from error


def _collect(image_ids: np.ndarray, modes: list[tuple[str, int]]) -> Modalities:
    table = sorted(set(modes))
    number = {mode: position for position, mode in enumerate(table)}
    order = np.argsort(image_ids, kind="stable")
    modality_ids = np.array([number[mode] for mode in modes], dtype=np.int64)
    return Modalities(tuple(Modality(*mode) for mode in table), image_ids[order].astype(np.int64), modality_ids[order])


def assign(
    index: ImageIndex,
    numbers: Mapping[str, int],
    by: str,
    features: Callable[[np.ndarray], np.ndarray] | None,
    seed: int,
) -> Modalities:
    """Give every train image of the classes that take part its modality.

    Args:
        index: the data set.
        numbers: wanted modalities of each class.
        by: "column" takes the index's sub-labels of classes with more than one modality wanted; else clusters.
        features: maps image ids (n,) to L2-normalised features (n, d); needed where a class is clustered.
        seed: seed of k-means.

    Raises:
        InputError: an image without a sub-label.
    """
    image_ids: list[np.ndarray] = []
    modes: list[tuple[str, int]] = []
    for class_name, k in numbers.items():
        rows = index.rows("train", class_name)
        if by == "column" and k > 1:
            labels = _by_sublabel(index, rows)
        elif k > 1 and features is not None:
            labels = cluster(features(rows), k, seed)
        else:
            labels = np.zeros(len(rows), np.int64)
        image_ids.append(rows)
        modes.extend((class_name, int(label)) for label in labels)
    return _collect(np.concatenate(image_ids), modes)


def _by_sublabel(index: ImageIndex, rows: np.ndarray) -> np.ndarray:
    sublabels = index.column("sublabel")[rows].astype(str)
    if (sublabels == "").any():
        missing = rows[np.flatnonzero(sublabels == "")[0]]
        raise InputError(
            f"{index.name(int(missing))} has no sub-label", remedy="Fill the column or change modalities.by"
        )
    return np.unique(sublabels, return_inverse=True)[1]


def modality_preview(modalities: Modalities, load: Callable[[int], np.ndarray]) -> Image.Image:
    """Draw a grid with one column a modality and up to 8 images each.

    Args:
        modalities: the modalities.
        load: maps an image id to its pixels (H, W, C) uint8.
    """
    columns = [[load(int(i)) for i in modalities.images_of(m)[:PREVIEW_ROWS]] for m in range(len(modalities.table))]
    blank = np.full_like(columns[0][0], 255)
    rows = [[column[r] if r < len(column) else blank for column in columns] for r in range(max(map(len, columns)))]
    return imaging.grid(rows, min_side_px=32)
