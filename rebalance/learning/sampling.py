"""Samplers: batch t is a pure function of (seed, t), whatever the number of processes or loader threads.

Every process draws the whole batch and loads its own rows of it. A batch may consist of several parts, one for each
repetition of a phase and so on; a process has its share of each part, so that part j is the same for any number.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import torch

from rebalance.config import TrainingOptions
from rebalance.errors import InputError
from rebalance.learning.batches import BatchAt, ClassBatch, PairBatch
from rebalance.learning.image_store import ImageStore, step_rng
from rebalance.learning.trainable import Trainable
from rebalance.runtime.ranks import Ranks

# Streams of random numbers; the modality encoder has 1, previews have 3.
_PAIR_STREAM, _CLASS_STREAM = 2, 4


@dataclass(frozen=True)
class ClassPool:
    """The images of one data-set class by translator class.

    Attributes:
        name: the data-set class.
        labels: translator class of each modality.
        positions: the store positions of each modality's images.
    """

    name: str
    labels: tuple[int, ...]
    positions: tuple[np.ndarray, ...]


@dataclass(frozen=True)
class TrainingPools:
    """The images that a model is trained on.

    Attributes:
        store: the images.
        classes: the classes that are drawn from.
        related: (n, n) bool, which of these are paired.
        sources: for each target, the names of the classes that its sources come from.
    """

    store: ImageStore
    classes: tuple[ClassPool, ...]
    related: np.ndarray
    sources: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Refuse an empty pool, because a loop over nothing would never end."""
        for pool in self.classes:
            if not pool.positions or any(len(positions) == 0 for positions in pool.positions):
                raise InputError(f"class {pool.name!r} has no image to train on")

    def numbers(self, names: tuple[str, ...]) -> np.ndarray:
        """Return the numbers (n,) of the classes of these names that take part."""
        return np.array([number for number, pool in enumerate(self.classes) if pool.name in names], np.int64)


class StageTrainable(Trainable):
    """Base of everything that a stage of `fit` trains: it brings its sampler."""

    @abstractmethod
    def sampler(self, pools: TrainingPools, options: TrainingOptions, seed: int, ranks: Ranks) -> BatchAt:
        """Return what maps a step to this process's share of its batch."""


def own_rows(batch: int, ranks: Ranks, *, parts: int = 1, multiple: int = 1) -> np.ndarray:
    """Return which rows of a batch are this process's: its share of each part.

    Args:
        batch: rows of all processes.
        ranks: who shares the batch.
        parts: parts of a batch, of equal size.
        multiple: a process's rows of a part must be a multiple of it.

    Raises:
        InputError: the batch cannot be shared out evenly.
    """
    if batch % (parts * ranks.count * multiple):
        raise InputError(
            "training.batch" + (f" with {ranks.count} processes" if ranks.count > 1 else ""),
            value=batch,
            allowed=f"multiples of {parts * ranks.count * multiple}",
            remedy="Change it" + (", or the number of processes" if ranks.count > 1 else ""),
        )
    rows = np.arange(batch).reshape(parts, ranks.count, -1)
    return rows[:, ranks.number].reshape(-1)


@dataclass(frozen=True)
class PairSampler:
    """Source and reference, drawn independently: class uniformly, then modality, then image.

    Attributes:
        pools: the images.
        draw: "classes" draws classes uniformly, "modalities" draws modalities uniformly.
        batch: pairs a step.
        seed: seed of all draws.
        per_class: consecutive pairs whose references are of one class.
        same_modality: whether these are of one translator class too.
        directed: references from targets only, each with sources of that target only.
        parts: parts of a batch, see `own_rows`.
        ranks: who shares the batch; all draw the same, and load their own pairs of it.
    """

    pools: TrainingPools
    draw: str
    batch: int
    seed: int
    per_class: int = 1
    same_modality: bool = False
    directed: bool = False
    parts: int = 1
    ranks: Ranks = Ranks()

    def __post_init__(self) -> None:
        """Refuse a batch that cannot be shared out."""
        own_rows(self.batch, self.ranks, parts=self.parts, multiple=self.per_class)

    def __call__(self, step: int) -> PairBatch:
        """Return the batch of a step, or this process's share of it."""
        rng = step_rng(self.seed, _PAIR_STREAM, step)
        wanted = self._reference_classes()
        drawn: list[tuple[int, int, int, int]] = []
        reference, modality = 0, -1
        for number in range(self.batch):
            if number % self.per_class == 0:
                reference, modality = self._draw_class(rng, wanted), -1
            source = self._draw_class(rng, self._source_classes(reference))
            source_image = self._draw_image(rng, source)
            reference_image = self._draw_image(rng, reference, modality)
            if self.same_modality:
                modality = self.pools.classes[reference].labels.index(reference_image[1])
            drawn.append((*source_image, *reference_image))
        own = np.array(drawn, np.int64)[own_rows(self.batch, self.ranks, parts=self.parts, multiple=self.per_class)]
        sources, source_labels, references, reference_labels = own.T
        return PairBatch(
            self.pools.store.tensor(sources),
            torch.from_numpy(source_labels.copy()),
            self.pools.store.tensor(references),
            torch.from_numpy(reference_labels.copy()),
        )

    def _reference_classes(self) -> np.ndarray:
        return self.pools.numbers(tuple(self.pools.sources)) if self.directed else np.arange(len(self.pools.classes))

    def _source_classes(self, reference: int) -> np.ndarray:
        if self.directed:
            return self.pools.numbers(self.pools.sources[self.pools.classes[reference].name])
        return np.flatnonzero(self.pools.related[reference])

    def _draw_class(self, rng: np.random.Generator, candidates: np.ndarray) -> int:
        if self.draw == "classes":
            return int(rng.choice(candidates))
        sizes = np.array([len(self.pools.classes[i].labels) for i in candidates])
        return int(rng.choice(candidates, p=sizes / sizes.sum()))

    def _draw_image(self, rng: np.random.Generator, number: int, modality: int = -1) -> tuple[int, int]:
        """Draw an image of a class, of a modality of it where that is given; return its position and label."""
        pool = self.pools.classes[number]
        if modality < 0:
            modality = int(rng.integers(len(pool.labels)))
        return int(rng.choice(pool.positions[modality])), pool.labels[modality]


@dataclass(frozen=True)
class ClassSampler:
    """Images of a class: class uniformly, then modality, then image.

    Attributes:
        pools: the images.
        batch: images a step.
        seed: seed of all draws.
        parts: parts of a batch, see `own_rows`.
        ranks: who shares the batch.
    """

    pools: TrainingPools
    batch: int
    seed: int
    parts: int = 1
    ranks: Ranks = Ranks()

    def __post_init__(self) -> None:
        """Refuse a batch that cannot be shared out."""
        own_rows(self.batch, self.ranks, parts=self.parts)

    def __call__(self, step: int) -> ClassBatch:
        """Return the batch of a step, or this process's share of it."""
        rng = step_rng(self.seed, _CLASS_STREAM, step)
        drawn: list[tuple[int, int]] = []
        for _ in range(self.batch):
            pool = self.pools.classes[int(rng.integers(len(self.pools.classes)))]
            modality = int(rng.integers(len(pool.labels)))
            drawn.append((int(rng.choice(pool.positions[modality])), pool.labels[modality]))
        positions, labels = np.array(drawn, np.int64)[own_rows(self.batch, self.ranks, parts=self.parts)].T
        return ClassBatch(self.pools.store.tensor(positions), torch.from_numpy(labels.copy()))
