"""The images of a study in memory, by origin and class, and the batches that arms draw from them."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from imblearn.over_sampling import SMOTE, RandomOverSampler
from tqdm import tqdm

from rebalance import images
from rebalance.trials.arms import FULL

_SMOTE_NEIGHBOURS = 5


@dataclass(frozen=True)
class Pool:
    """Images sorted by class.

    Attributes:
        pixels: (n, H, W, C) uint8.
        counts: (classes,) images of each class.
    """

    pixels: np.ndarray
    counts: np.ndarray

    @classmethod
    def of_classes(cls, by_class: Sequence[np.ndarray]) -> Pool:
        """Join images (n, H, W, C) of each class, in label order."""
        return cls(np.concatenate(list(by_class)), np.array([len(pixels) for pixels in by_class]))

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
        return self.pixels[self.starts[label] : self.starts[label] + self.counts[label]]


def with_smote(real: Pool, seed: int) -> Pool:
    """Return real images with SMOTE's (Chawla et al., 2002) up to the largest class, interpolated pixel by pixel.

    A class of one image has no neighbours: it is repeated. A single class stays as it is.
    """
    if np.count_nonzero(real.counts) < 2:
        return real
    flat, labels = real.pixels.reshape(len(real.pixels), -1).astype(np.float32), real.labels
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
        mix = None if self.mix is None else self.mix.to(device, non_blocking=True)
        return ClassifierBatch(
            self.images.to(device, non_blocking=True).contiguous(memory_format=memory_format),
            self.labels.to(device, non_blocking=True),
            self.weights.to(device, non_blocking=True),
            mix,
        )


@dataclass(frozen=True)
class Mixture:
    """What an arm draws: a class, then real or synthetic, then an image uniformly.

    Attributes:
        real: real images, with SMOTE's where the arm has them.
        synthetic: synthetic images; None without.
        limits: (classes,) how many of each class's synthetic images are used, the first ones.
        probabilities: (classes,) of a class.
        shares: (classes,) of the class's draws that are synthetic.
    """

    real: Pool
    synthetic: Pool | None
    limits: np.ndarray
    probabilities: np.ndarray
    shares: np.ndarray

    def draw(self, n: int, rng: np.random.Generator, late: bool = False) -> tuple[np.ndarray, np.ndarray]:
        """Draw pixels (n, H, W, C) uint8 and labels (n,); `late` draws real images only."""
        labels = rng.choice(len(self.probabilities), n, p=self.probabilities)
        place, synthetic = rng.random(n), rng.random(n) < self.shares[labels]
        if late:
            synthetic &= self.real.counts[labels] == 0  # such a class has nothing else
        rows = self.real.starts[labels] + (place * self.real.counts[labels]).astype(np.int64)
        if self.synthetic is None or not synthetic.any():
            return self.real.pixels[rows], labels
        pixels = self.real.pixels[np.where(synthetic, 0, rows)]
        chosen = labels[synthetic]
        pixels[synthetic] = self.synthetic.pixels[
            self.synthetic.starts[chosen] + (place[synthetic] * self.limits[chosen]).astype(np.int64)
        ]
        return pixels, labels


def mixture(
    real: Pool, synthetic: Pool | None, multiple: float, share: float | None, balanced: bool, n_real: np.ndarray
) -> Mixture:
    """Decide how an arm draws.

    Args:
        real: real images, with SMOTE's where the arm has them.
        synthetic: synthetic images; None without.
        multiple: synthetic images of a class, times its real ones, at most.
        share: share of the draws of a class that has synthetic images; None: as they are many.
        balanced: every class as often, instead of every image.
        n_real: (classes,) real images, which multiples count.
    """
    available = np.zeros(len(n_real), np.int64) if synthetic is None else synthetic.counts
    limits = available
    if multiple != FULL:
        limits = np.minimum(available, np.floor(n_real * multiple + 1e-9).astype(np.int64))
    total = real.counts + limits
    shares = limits / np.maximum(total, 1)
    if share is not None:
        shares = np.where(limits > 0, np.where(real.counts > 0, share, 1.0), 0.0)
    mass = (total > 0).astype(np.float64) if balanced else total.astype(np.float64)
    return Mixture(real, synthetic, limits, mass / mass.sum(), shares)


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
    return Pool(pixels, counts)


def grayed(pools: Mapping[str, Pool]) -> dict[str, Pool]:
    """Keep one channel of all pools where none has any colour: a third of the work for the same pictures."""
    gray = all((pool.pixels == pool.pixels[..., :1]).all() for pool in pools.values())
    return {name: Pool(pool.pixels[..., :1] if gray else pool.pixels, pool.counts) for name, pool in pools.items()}


def to_tensor(pixels: np.ndarray) -> torch.Tensor:
    """Return pixels (n, H, W, C) uint8 as (n, C, H, W) float32 in [-1, 1]."""
    return images.to_float(torch.from_numpy(np.ascontiguousarray(pixels)))
