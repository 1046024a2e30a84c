"""Moments of a class's real images, so that the Fréchet distance of finished ones needs no real images."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from rebalance.measures import frechet


@dataclass(frozen=True)
class RealMoments:
    """The real train images of a class.

    Attributes:
        projection: principal components of the pooled real features.
        real: moments of the class's real train images there.
    """

    projection: frechet.Projection
    real: frechet.Moments

    def measure(self, features: np.ndarray) -> frechet.StreamingMoments:
        """Return the moments of images by their features (n, D)."""
        moments = frechet.StreamingMoments(len(self.real.mean))
        moments.add(self.projection.apply(features))
        return moments

    def compare(self, images: frechet.StreamingMoments, draws: int, seed: int) -> frechet.FrechetResult | None:
        """Return the distance of images to the real ones as the class's limit measures it; None for fewer than two."""
        return frechet.compare_moments(self.real, images.shrunk(), draws=draws, seed=seed) if images.n > 1 else None
