"""Batches that an arm draws from its real and synthetic images."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from rebalance import imaging
from rebalance.learning.batches import TensorBatch
from rebalance.runtime.devices import without_waiting
from rebalance.trials.pools import Pool


@dataclass(frozen=True)
class ClassifierBatch(TensorBatch):
    """A batch of a classifier.

    Attributes:
        images: (B, C, H, W) float32 in [-1, 1].
        labels: (B,) int64.
        weights: (B,) float32, of each image in the loss.
        image_mix: (B,) float32, weight of the pixels of an image beside those of its partner, the image as far from the
            batch's end; None: 1.
        label_mix: (B,) float32, weight of its label in the loss beside its partner's; None: 1.
    """

    images: torch.Tensor
    labels: torch.Tensor
    weights: torch.Tensor
    image_mix: torch.Tensor | None = None
    label_mix: torch.Tensor | None = None

    def to(self, device: torch.device, memory_format: torch.memory_format) -> ClassifierBatch:
        """Return the batch on a device, without waiting for the copy; images get the memory format."""

        def moved(tensor: torch.Tensor) -> torch.Tensor:
            there = without_waiting(tensor, device)
            return there.contiguous(memory_format=memory_format) if tensor.ndim == 4 else there

        return self._each(moved)


@dataclass(frozen=True)
class Amounts:
    """The images that an arm draws from, and how often.

    Attributes:
        real: (classes,) int64 real images, with those that its remedy makes of them.
        synthetic: (classes,) int64 synthetic images.
        probabilities: (classes,) of a class.
        shares: (classes,) of the class's draws that are synthetic.
    """

    real: np.ndarray
    synthetic: np.ndarray
    probabilities: np.ndarray
    shares: np.ndarray


@dataclass(frozen=True)
class Mixture:
    """The draws of an arm: a class, then real or synthetic, then an image uniformly.

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
    rows = pool.rows[pool.starts[labels] + (places * pool.counts[labels]).astype(np.int64)]
    pixels: np.ndarray = pool.pixels[rows]
    return pixels


def to_tensor(pixels: np.ndarray) -> torch.Tensor:
    """Return pixels (n, H, W, C) uint8 as (n, C, H, W) float32 in [-1, 1]."""
    return imaging.to_float(torch.from_numpy(np.ascontiguousarray(pixels)))
