"""The images of a study in memory, by origin and class, and the batches that arms draw from them."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import torch
from imblearn.over_sampling import SMOTE, RandomOverSampler
from tqdm import tqdm

from rebalance import images
from rebalance.devices import without_waiting
from rebalance.trials.amounts import Amounts

_SMOTE_NEIGHBOURS = 5


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
        """(classes,) where each class begins."""
        return np.cumsum(self.counts) - self.counts

    @property
    def labels(self) -> np.ndarray:
        """(n,) labels."""
        return np.repeat(np.arange(len(self.counts)), self.counts)

    def of_class(self, label: int) -> np.ndarray:
        """Return the images of a class."""
        return self.pixels[self.rows[self.starts[label] : self.starts[label] + self.counts[label]]]

    def first(self, counts: np.ndarray) -> Pool:
        """Return the first images of each class, so many (classes,) or all there are, without copying pixels."""
        return self.kept(np.arange(len(self.rows)) - self.starts[self.labels] < counts[self.labels])

    def kept(self, chosen: np.ndarray) -> Pool:
        """Return the images that are chosen (n,) bool, without copying pixels."""
        counts = np.bincount(self.labels[chosen], minlength=len(self.counts))
        return replace(self, counts=counts, rows=self.rows[chosen])


def with_smote(real: Pool, seed: int) -> Pool:
    """Return real images, and after them SMOTE's (Chawla et al., 2002) up to the largest class, made pixel by pixel.

    A class of one image has no neighbours: it is repeated. A single class stays as it is.
    """
    if np.count_nonzero(real.counts) < 2:
        return real
    flat, labels = real.pixels[real.rows].reshape(len(real.rows), -1).astype(np.float32), real.labels
    present = real.counts[real.counts > 0]
    lonely = {label: int(present.max()) for label, n in enumerate(real.counts) if n == 1}
    if lonely:
        flat, labels = RandomOverSampler(sampling_strategy=lonely, random_state=seed).fit_resample(flat, labels)
    fewest = min((int(n) for n in present if n > 1), default=2)
    neighbours = min(_SMOTE_NEIGHBOURS, fewest - 1)
    flat, labels = SMOTE(k_neighbors=neighbours, random_state=seed).fit_resample(flat, labels)
    pixels = flat.round().clip(0, 255).astype(np.uint8).reshape(-1, *real.pixels.shape[1:])
    return Pool.of_classes([pixels[labels == label] for label in range(len(real.counts))])


@dataclass(frozen=True)
class ClassifierBatch:
    """A batch of a classifier.

    Attributes:
        images: (B, C, H, W) float32 in [-1, 1].
        labels: (B,) int64.
        weights: (classes,) float32, of each class in the loss.
        mix: (B,) float32 weight of an image beside its partner, the one as far from the batch's end (Mixup); None: 1.
    """

    images: torch.Tensor
    labels: torch.Tensor
    weights: torch.Tensor
    mix: torch.Tensor | None = None

    def __len__(self) -> int:
        return len(self.labels)

    def to(self, device: torch.device, memory_format: torch.memory_format) -> ClassifierBatch:
        """Move to a device without waiting for the copy."""
        mix = None if self.mix is None else without_waiting(self.mix, device)
        return ClassifierBatch(
            without_waiting(self.images, device).contiguous(memory_format=memory_format),
            without_waiting(self.labels, device),
            without_waiting(self.weights, device),
            mix,
        )


@dataclass(frozen=True)
class Mixture:
    """What an arm draws: a class, then real or synthetic, then an image uniformly.

    Attributes:
        real: real images, with SMOTE's where the arm has them.
        synthetic: synthetic images; None without.
        probabilities: (classes,) of a class.
        shares: (classes,) of the class's draws that are synthetic.
    """

    real: Pool
    synthetic: Pool | None
    probabilities: np.ndarray
    shares: np.ndarray

    @classmethod
    def of_amounts(cls, real: Pool, synthetic: Pool | None, amounts: Amounts) -> Mixture:
        """Draw from the first images of each class, as many as an arm takes."""
        some = None if synthetic is None else synthetic.first(amounts.synthetic)
        return cls(real.first(amounts.real), some, amounts.probabilities, amounts.shares)

    def draw(self, n: int, rng: np.random.Generator, late: bool = False) -> tuple[np.ndarray, np.ndarray]:
        """Draw pixels (n, H, W, C) uint8 and labels (n,); `late` draws real images only."""
        labels = rng.choice(len(self.probabilities), n, p=self.probabilities)
        place, synthetic = rng.random(n), rng.random(n) < self.shares[labels]
        if late:
            synthetic &= self.real.counts[labels] == 0  # such a class has nothing else
        pixels = np.empty((n, *self.real.pixels.shape[1:]), np.uint8)
        pixels[~synthetic] = _at(self.real, labels[~synthetic], place[~synthetic])
        if self.synthetic is not None:
            pixels[synthetic] = _at(self.synthetic, labels[synthetic], place[synthetic])
        return pixels, labels


def _at(pool: Pool, labels: np.ndarray, places: np.ndarray) -> np.ndarray:
    """Return the images (n, H, W, C) at places (n,) in [0, 1) of the classes of labels (n,)."""
    return pool.pixels[pool.rows[pool.starts[labels] + (places * pool.counts[labels]).astype(np.int64)]]


def load_pool(
    by_class: Sequence[Sequence[Callable[[], np.ndarray]]], shape: tuple[int, int, int], what: str, progress: bool
) -> Pool:
    """Load a pool image by image.

    Args:
        by_class: for each class, in label order, what gives each of its images, (H, W, C) uint8.
        shape: (H, W, C).
        what: what the progress bar calls them.
        progress: show a progress bar on stderr.
    """
    counts = np.array([len(of_class) for of_class in by_class])
    pixels = np.empty((int(counts.sum()), *shape), np.uint8)
    with ThreadPoolExecutor() as threads:
        loaded = threads.map(lambda load: load(), itertools.chain.from_iterable(by_class))
        bar = tqdm(loaded, total=len(pixels), desc=what, unit="img", disable=not progress, leave=False)
        for position, image in enumerate(bar):
            pixels[position] = image
    return Pool.of_sorted(pixels, counts)


def grayed(pools: Mapping[str, Pool]) -> dict[str, Pool]:
    """Keep one channel of all pools where none has any colour: a third of the work for the same pictures."""
    gray = all((pool.pixels == pool.pixels[..., :1]).all() for pool in pools.values())
    return {name: replace(pool, pixels=pool.pixels[..., :1]) if gray else pool for name, pool in pools.items()}


def to_tensor(pixels: np.ndarray) -> torch.Tensor:
    """Return pixels (n, H, W, C) uint8 as (n, C, H, W) float32 in [-1, 1]."""
    return images.to_float(torch.from_numpy(np.ascontiguousarray(pixels)))
