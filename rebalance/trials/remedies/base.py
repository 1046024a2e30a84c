"""What a remedy against imbalance decides about the training of a classifier."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
import torch.nn.functional as F

from rebalance.config import DownstreamOptions
from rebalance.trials.batches import ClassifierBatch, Mixture, to_tensor
from rebalance.trials.pools import Pool

ImageLoss = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
"""Maps logits (B, classes) float32 and labels (B,) int64 to the loss (B,) of each image."""


@dataclass(frozen=True)
class Mix:
    """Weights of the images of a batch beside their partners, each the one as far from the batch's end.

    Attributes:
        images: (n,) float32, of the pixels.
        labels: (n,) float32, of the labels in the loss.
    """

    images: np.ndarray
    labels: np.ndarray


class Remedy:
    """A remedy against imbalance that needs no new images. A remedy overrides what it does otherwise than this class.

    Attributes:
        name: how `arms` names it.
        usual: the arms that a study compares by default: one for each element, True with the standard augmentation.
    """

    name: ClassVar[str]
    usual: ClassVar[tuple[bool, ...]] = (True,)

    def real_counts(self, n_real: np.ndarray, n_synthetic: np.ndarray) -> np.ndarray:
        """Return how many images (classes,) int64 of `filled_up` an arm takes beside its synthetic ones.

        Args:
            n_real: (classes,) real images.
            n_synthetic: (classes,) synthetic images.
        """
        return n_real

    def filled_up(self, real: Pool, seed: int) -> Pool:
        """Return the real images, and after them in each class those that the remedy makes of them."""
        return real

    def class_mass(self, counts: np.ndarray) -> np.ndarray:
        """Return how often (classes,) float64 classes of so many images are drawn, up to a factor: as their images."""
        return counts.astype(np.float64)

    def class_weights(self, probabilities: np.ndarray, progress: float, options: DownstreamOptions) -> np.ndarray:
        """Return the weight (classes,) float32 of each class in the loss.

        Args:
            probabilities: (classes,) with which classes are drawn.
            progress: share of the steps that have been taken.
            options: the classifier's.
        """
        return np.ones(len(probabilities), np.float32)

    def mix(self, labels: np.ndarray, rng: np.random.Generator, options: DownstreamOptions) -> Mix | None:
        """Return how images of labels (n,) are mixed with their partners; None: they are not."""
        return None

    def batch(
        self, mixture: Mixture, rng: np.random.Generator, progress: float, late: bool, options: DownstreamOptions
    ) -> ClassifierBatch:
        """Draw a batch, weigh and mix its images.

        Args:
            mixture: the images and how often they are drawn.
            rng: draws everything here.
            progress: share of the steps that have been taken.
            late: draw real images only.
            options: the classifier's.
        """
        pixels, labels = mixture.draw(options.batch, rng, late)
        weights = self.class_weights(mixture.probabilities, progress, options)
        mix = self.mix(labels, rng, options)
        return ClassifierBatch(
            to_tensor(pixels),
            torch.from_numpy(labels),
            torch.from_numpy(weights[labels]),
            None if mix is None else torch.from_numpy(mix.images),
            None if mix is None else torch.from_numpy(mix.labels),
        )

    def image_loss(self, probabilities: np.ndarray) -> ImageLoss:
        """Return the loss of single images, for classes that are drawn with probabilities (classes,)."""
        return cross_entropy


def cross_entropy(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Return the cross-entropy (B,) of logits (B, classes) and labels (B,)."""
    return F.cross_entropy(logits, labels, reduction="none")


def even_mass(counts: np.ndarray) -> np.ndarray:
    """Return 1.0 for each class (classes,) that has images, so that all are drawn equally often."""
    return (counts > 0).astype(np.float64)


def balancing_weights(probabilities: np.ndarray) -> np.ndarray:
    """Return weights (classes,) float32 that make every class count the same; 0 for one that is never drawn."""
    present = probabilities > 0
    weights = np.zeros(len(probabilities), np.float32)
    weights[present] = 1 / (probabilities[present] * present.sum())
    return weights
