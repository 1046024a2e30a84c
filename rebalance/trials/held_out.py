"""Which real images are held out of train, to choose on, seed by seed."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from rebalance.generation.provenance import Provenance
from rebalance.index import ImageIndex, carve_validation


@dataclass(frozen=True)
class HeldOut:
    """The val images of a study: those of the data set, or, where it has none, other train images for every seed.

    A tenth of a poor class is a few images, or none. So that they are not always the same ones, seed k holds out the
    k-th part of the order in which a run holds them out: seed 0 the run's own; and at least one image of every class
    that has three or more.

    Attributes:
        index: the data set as it was read.
        fraction: share of each class.
        seed: seed of the order.
    """

    index: ImageIndex
    fraction: float
    seed: int

    @property
    def changes(self) -> bool:
        """True where every seed has val images of its own."""
        return self.fraction > 0 and not bool((self.index.column("split") == "val").any())

    @cached_property
    def of_run(self) -> ImageIndex:
        """The data set as a run splits it."""
        return carve_validation(self.index, self.fraction, self.seed)

    def ids(self, seed: int) -> np.ndarray:
        """Return the ids of a seed's val images, ascending."""
        carved = carve_validation(self.index, self.fraction, self.seed, part=seed, least=1)
        return np.flatnonzero(carved.usable & (carved.column("split") == "val"))

    @cached_property
    def _ids(self) -> dict[str, int]:
        return {self.index.name(image_id): image_id for image_id in range(self.index.table.num_rows)}

    def can_trace(self, provenance: Provenance) -> bool:
        """Return True if all real images that an image was made from are named, and in the data set."""
        return bool(provenance.images) and all(name in self._ids for name in provenance.images)

    def ids_of(self, provenances: Iterable[Provenance]) -> np.ndarray:
        """Return the ids (n, k) int64 of the real images that each of n images was made from, -1 for none."""
        ids = [[self._ids.get(name, -1) for name in provenance.images] for provenance in provenances]
        table = np.full((len(ids), max(map(len, ids), default=0)), -1, np.int64)
        for row, of_image in enumerate(ids):
            table[row, : len(of_image)] = of_image
        return table
