"""Slots: the images that an output shall have, cut into shards."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np


def keyed_rng(*key: object) -> np.random.Generator:
    """Return a counter-based generator (Philox) keyed by the hash of `key`'s texts."""
    digest = hashlib.sha256("/".join(map(str, key)).encode()).digest()
    return np.random.Generator(np.random.Philox(key=np.frombuffer(digest[:16], np.uint64)))


@dataclass(frozen=True)
class Slot:
    """One wanted image.

    Attributes:
        class_name: its class.
        ordinal: its number within that class, over the whole output.
    """

    class_name: str
    ordinal: int


@dataclass(frozen=True)
class Slots:
    """All slots of an output: classes interleaved in the wanted proportion and cut into shards.

    Attributes:
        counts: images of each class.
        shard_size: images of a shard; the last may have fewer.
        key: key of the permutation.
    """

    counts: Mapping[str, int]
    shard_size: int
    key: str

    @cached_property
    def _order(self) -> np.ndarray:
        numbers = np.arange(len(self.counts), dtype=np.uint16)
        order = np.repeat(numbers, list(self.counts.values()))
        keyed_rng(self.key, "order").shuffle(order)
        return order

    @property
    def n_shards(self) -> int:
        """Number of shards."""
        return -(-sum(self.counts.values()) // self.shard_size)

    def of_shard(self, number: int) -> list[Slot]:
        """Return the slots of a shard."""
        first = number * self.shard_size
        seen = np.bincount(self._order[:first], minlength=len(self.counts)).tolist()
        names, slots = list(self.counts), []
        for class_number in self._order[first : first + self.shard_size].tolist():
            slots.append(Slot(names[class_number], seen[class_number]))
            seen[class_number] += 1
        return slots
