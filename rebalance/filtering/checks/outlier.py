"""Reject images that lie farther out than real ones, or are rougher or smoother."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from rebalance.filtering.checks.base import (
    KEPT_OF_REAL,
    Check,
    ClassMaterial,
    Fit,
    FittedCheck,
    ScoredBatch,
    StoredCheck,
)
from rebalance.filtering.limits import limit_of_next, rank_of_next
from rebalance.filtering.space import Space
from rebalance.measures.estimators import ledoit_wolf, student_quantile

TEXTURE = "texture"
# The width of the texture's interval where it is predicted: three deviations, as 99% of a Gaussian lie within 2.6.
_LEAST_SIGMAS = 3.0
# Real images of one texture would allow no other; this is below what rounding to uint8 changes.
_LEAST_DEVIATION = 1e-3


@dataclass(frozen=True)
class FittedOutlier(FittedCheck):
    """The spread of a class's real images.

    Attributes:
        space: components and whitening.
        mean: (d,) mean of the real train images, whitened.
        precision: (d, d) inverse of their shrunk covariance, whitened.
        max_distance: largest Mahalanobis distance.
        texture: mean of the real images' texture, and how far from it an image may be; empty: not measured.
    """

    space: Space
    mean: np.ndarray
    precision: np.ndarray
    max_distance: float
    texture: tuple[float, ...]

    @property
    def threshold(self) -> float:
        """The largest Mahalanobis distance."""
        return self.max_distance

    def score(self, batch: ScoredBatch) -> np.ndarray:
        """Return the distance over the largest allowed, or that of the texture where it is larger."""
        distance = mahalanobis(batch.components @ self.space.whitening - self.mean, self.precision) / self.max_distance
        measured = batch.evidence.measured.get(TEXTURE)
        if not self.texture or measured is None:
            return distance
        mean, most = self.texture
        return np.maximum(distance, np.abs(measured - mean) / most)

    def fails(self, score: float) -> bool:
        """Return whether it is beyond 1."""
        return score > 1

    def arrays(self) -> dict[str, np.ndarray]:
        """Return the arrays to store."""
        return {"mean": self.mean, "precision": self.precision}

    def numbers(self) -> dict[str, Any]:
        """Return the numbers to store."""
        return {"max_distance": self.max_distance, "texture": list(self.texture)}


def texture(pixels: np.ndarray) -> np.ndarray:
    """Return the roughness (n,) of images (n, H, W, C) uint8: log of 1 + the mean absolute Laplacian of their gray."""
    gray = pixels.mean(3, dtype=np.float32)
    inner = gray[:, 1:-1, 1:-1]
    around = gray[:, :-2, 1:-1] + gray[:, 2:, 1:-1] + gray[:, 1:-1, :-2] + gray[:, 1:-1, 2:]
    return np.asarray(np.log1p(np.abs(4 * inner - around).mean((1, 2))))


class OutlierCheck(Check):
    """Reject what lies beyond 99% of the real images, each measured leave-one-out, in features or in texture.

    The score is the larger of the Mahalanobis distance and the deviation of the texture, each over its limit.
    Deep features hardly see that an image is rougher or smoother than real ones.
    """

    name = "outlier"
    score_name = "outlier"
    score_doc = "distance from the real images, divided by the largest allowed"
    threshold_name = "max_distance"
    pixel_measures: ClassVar[Mapping[str, Callable[[np.ndarray], np.ndarray]]] = {TEXTURE: texture}

    def fit(self, material: ClassMaterial) -> Fit:
        """Fit mean, covariance and the limits."""
        mean, precision, max_distance = _distance(material)
        of_train = material.real.measured.get(TEXTURE, {}).get(material.class_name)
        limits = () if of_train is None else _texture_limits(of_train)
        return Fit(FittedOutlier(material.space, mean, precision, max_distance, limits))

    def restored(self, stored: StoredCheck) -> FittedOutlier:
        """Rebuild the fitted check."""
        numbers, arrays = stored.numbers, stored.arrays
        limits = tuple(numbers["texture"])
        return FittedOutlier(stored.space, arrays["mean"], arrays["precision"], numbers["max_distance"], limits)


def mahalanobis(centred: np.ndarray, precision: np.ndarray) -> np.ndarray:
    """Return Mahalanobis distances (n,) of vectors from the mean (n, d), with an inverse covariance (d, d)."""
    return np.asarray(np.sqrt(((centred @ precision) * centred).sum(1).clip(min=0)))


def _distance(material: ClassMaterial) -> tuple[np.ndarray, np.ndarray, float]:
    """Return mean and precision of the real images, and the distance within which 99% lie, measured leave-one-out."""
    space = material.space
    whitened = space.projection.apply(material.train) @ space.whitening
    n, mean = len(whitened), whitened.mean(0)
    if rank_of_next(n, KEPT_OF_REAL) > n:
        material.note(f"{n} train images are too few to count: the limits on outliers are predicted")
    centred = whitened - mean
    _, shrinkage = ledoit_wolf(centred, assume_centered=True)
    # Towards the pooled within-class covariance, which is the identity here; of few images little is known.
    shrinkage = max(shrinkage, min(1.0, len(mean) / (4 * n)))
    covariance = (1 - shrinkage) * centred.T @ centred / n + shrinkage * np.eye(len(mean))
    precision = np.linalg.inv(covariance)
    # Leaving one out moves the mean and takes one outer product from the covariance (Sherman and Morrison, 1950),
    # and from the pooled one, which knows each image too: where real images are few, that is most of it.
    own = mahalanobis(centred, precision) ** 2
    taken = ((1 - shrinkage) / n + shrinkage * space.image_weight) * n / (n - 1)
    left_out = np.sqrt((n / (n - 1)) ** 2 * own / (1 - taken * own).clip(min=1e-6))
    # A Gaussian's distances in d dimensions have a logarithm with a deviation of about 1 / sqrt(2 d).
    logs = np.log(left_out.clip(min=1e-12))
    return mean, precision, float(np.exp(limit_of_next(logs, KEPT_OF_REAL, 1 / np.sqrt(2 * len(mean)))))


def _texture_limits(of_train: np.ndarray) -> tuple[float, float]:
    """Return mean and largest deviation of real images' texture: what 99% keep, leave-one-out, or three deviations."""
    n, mean, sigma = len(of_train), float(of_train.mean()), float(of_train.std(ddof=1))
    deviation = np.sort(np.abs(of_train - mean)) * n / (n - 1)
    # Student's interval of the next image; wide where few say how much images vary.
    student = np.sqrt(1 + 1 / n) * student_quantile((1 + KEPT_OF_REAL) / 2, n - 1)
    by_sigma = sigma * max(_LEAST_SIGMAS, student)
    counted = deviation[min(rank_of_next(n, KEPT_OF_REAL), n) - 1]
    return mean, float(max(counted, by_sigma, _LEAST_DEVIATION))
