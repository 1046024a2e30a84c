"""The space that the filters of several classes share: principal components, whitening, and a classifier."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from rebalance.filtering.evidence import RealFeatures
from rebalance.measures import frechet
from rebalance.measures.class_probe import ClassProbe, fit_probe
from rebalance.measures.estimators import ledoit_wolf
from rebalance.measures.sets import at_most


@dataclass(frozen=True)
class Space:
    """What the filters of several classes share.

    Attributes:
        projection: principal components of the pooled real features.
        whitening: (d, d) float64, makes the pooled within-class covariance there the identity.
        probe: classifier of all classes; None when there is only one.
        image_weight: what one image of those that the whitening was fitted to weighs in that covariance; only fitting
            asks for it.
    """

    projection: frechet.Projection
    whitening: np.ndarray
    probe: ClassProbe | None
    image_weight: float = 0.0

    @property
    def centre(self) -> np.ndarray:
        """The pooled mean (D,) float32."""
        return self.projection.centre.astype(np.float32)

    def centred(self, features: np.ndarray) -> np.ndarray:
        """Return features (n, D) less the pooled mean, float32."""
        return np.asarray(features.astype(np.float32) - self.centre)

    def moments(self, features: np.ndarray) -> frechet.Moments:
        """Return moments of features (n, D) in components, shrunk towards the pooled within-class covariance."""
        small = self.projection.apply(features)
        mean = small.mean(0)
        covariance, _ = ledoit_wolf((small - mean) @ self.whitening, assume_centered=True)
        back = np.linalg.inv(self.whitening)
        return frechet.Moments(mean, frechet.positive_definite(back @ covariance @ back), len(small))


def fit_space(real: RealFeatures, dimensions: int, per_class: int, seed: int) -> Space:
    """Fit what all classes share.

    Args:
        real: the real features.
        dimensions: principal components, at most.
        per_class: images of a class that the components are fitted to, at most.
        seed: seed of all draws.
    """
    parts = [at_most(features, per_class, seed, number) for number, features in enumerate(real.train.values())]
    projection = frechet.fit_projection(np.concatenate(parts), dimensions)
    small = [projection.apply(part) for part in parts if len(part)]
    scatter = np.concatenate([part - part.mean(0) for part in small])
    within, shrinkage = ledoit_wolf(scatter, assume_centered=True)
    values, vectors = np.linalg.eigh(within)
    # Directions without variance get a small one, so that the inverse root exists.
    whitening = vectors / np.sqrt(values.clip(min=max(values.max() * 1e-9, 1e-12))) @ vectors.T
    return Space(projection, whitening, fit_probe(real.train, seed), float(1 - shrinkage) / len(scatter))


def float64_product(rows: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    """Return rows (n, d) of as many images times a float64 matrix (d, k), float64.

    A library sums in another order for fewer rows, and for the last of many. In float32 an image's scores, of six
    digits, would depend on what is scored with it; in float64 they do not.
    """
    return np.asarray(rows.astype(np.float64) @ matrix)
