"""SMOTE, pixel by pixel."""

from __future__ import annotations

import numpy as np
from imblearn.over_sampling import SMOTE, RandomOverSampler

from rebalance.trials.pools import Pool
from rebalance.trials.remedies.base import Remedy, even_mass

_NEIGHBOURS = 5  # the paper's, and imbalanced-learn's default


class Smote(Remedy):
    """SMOTE's images fill up what synthetic ones leave of the way to the largest class (Chawla et al., 2002).

    Every class is drawn equally often, also one that has more synthetic images than that.
    """

    name = "smote"

    def real_counts(self, n_real: np.ndarray, n_synthetic: np.ndarray) -> np.ndarray:
        """Return how many real and SMOTE images (classes,) int64 there are beside the synthetic ones."""
        return np.where(n_real > 0, np.maximum(n_real, n_real.max() - n_synthetic), 0)

    def filled_up(self, real: Pool, seed: int) -> Pool:
        """Return the real images, and after them SMOTE's up to the largest class."""
        return with_smote(real, seed)

    def class_mass(self, counts: np.ndarray) -> np.ndarray:
        """Return the same (classes,) for every class that has images."""
        return even_mass(counts)


def with_smote(real: Pool, seed: int) -> Pool:
    """Return real images, and after them SMOTE's (Chawla et al., 2002) up to the largest class, made pixel by pixel.

    A class of one image has no neighbours: it is repeated. A single class stays as it is.
    """
    if np.count_nonzero(real.counts) < 2:
        return real
    flat, labels = real.pixels[real.rows].reshape(len(real.rows), -1).astype(np.float32), real.labels
    present = real.counts[real.counts > 0]
    single = {label: int(present.max()) for label, n in enumerate(real.counts) if n == 1}
    if single:
        flat, labels = RandomOverSampler(sampling_strategy=single, random_state=seed).fit_resample(flat, labels)
    fewest = min((int(n) for n in present if n > 1), default=2)
    neighbours = min(_NEIGHBOURS, fewest - 1)
    flat, labels = SMOTE(k_neighbors=neighbours, random_state=seed).fit_resample(flat, labels)
    pixels = flat.round().clip(0, 255).astype(np.uint8).reshape(-1, *real.pixels.shape[1:])
    return Pool.of_classes([pixels[labels == label] for label in range(len(real.counts))])
