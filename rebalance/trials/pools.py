"""The images of a study in memory, class by class."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from tqdm import tqdm

Loader = Callable[[], np.ndarray]
"""Loads an image, (H, W, C) uint8."""


@dataclass(frozen=True)
class Pool:
    """Images sorted by class; several pools may be parts of the same pixels.

    Attributes:
        pixels: (m, H, W, C) uint8.
        counts: (classes,) images of each class.
        rows: (n,) int64, where each image lies in `pixels`, class by class.
    """

    pixels: np.ndarray
    counts: np.ndarray
    rows: np.ndarray

    @classmethod
    def of_sorted(cls, pixels: np.ndarray, counts: np.ndarray) -> Pool:
        """Return all of images (n, H, W, C) that are sorted by class."""
        return cls(pixels, counts, np.arange(len(pixels)))

    @classmethod
    def of_classes(cls, by_class: Sequence[np.ndarray]) -> Pool:
        """Join images (n, H, W, C) of each class, in label order."""
        return cls.of_sorted(np.concatenate(list(by_class)), np.array([len(pixels) for pixels in by_class]))

    @cached_property
    def starts(self) -> np.ndarray:
        """The first row (classes,) of each class."""
        starts: np.ndarray = np.cumsum(self.counts) - self.counts
        return starts

    @property
    def labels(self) -> np.ndarray:
        """The label (n,) of each image."""
        return np.repeat(np.arange(len(self.counts)), self.counts)

    def of_class(self, label: int) -> np.ndarray:
        """Return the images of a class."""
        pixels: np.ndarray = self.pixels[self.rows[self.starts[label] : self.starts[label] + self.counts[label]]]
        return pixels

    def first(self, counts: np.ndarray) -> Pool:
        """Return the first images of each class, so many (classes,) or all there are, without copying pixels."""
        return self.kept(np.arange(len(self.rows)) - self.starts[self.labels] < counts[self.labels])

    def kept(self, mask: np.ndarray) -> Pool:
        """Return the images where a mask (n,) bool is true, without copying pixels."""
        counts = np.bincount(self.labels[mask], minlength=len(self.counts))
        return replace(self, counts=counts, rows=self.rows[mask])


def load_pool(by_class: Sequence[Sequence[Loader]], shape: tuple[int, int, int], name: str, progress: bool) -> Pool:
    """Load a pool image by image.

    Args:
        by_class: for each class, in label order, a loader of each of its images, (H, W, C) uint8.
        shape: (H, W, C).
        name: what the progress bar calls them.
        progress: show a progress bar on stderr.
    """
    counts = np.array([len(of_class) for of_class in by_class])
    pixels = np.empty((int(counts.sum()), *shape), np.uint8)
    with ThreadPoolExecutor() as threads:
        loaded = threads.map(lambda load: load(), itertools.chain.from_iterable(by_class))
        bar = tqdm(loaded, total=len(pixels), desc=name, unit="img", disable=not progress, leave=False)
        for position, image in enumerate(bar):
            pixels[position] = image
    return Pool.of_sorted(pixels, counts)


def grayed(pools: Mapping[str, Pool]) -> dict[str, Pool]:
    """Keep one channel of all pools where none has any colour: a third of the work for the same pictures."""
    gray = all((pool.pixels == pool.pixels[..., :1]).all() for pool in pools.values())
    return {name: replace(pool, pixels=pool.pixels[..., :1]) if gray else pool for name, pool in pools.items()}
